"""Eager and the exported program as two things that can be called and timed: same input, same start, same mode."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.backends.base import overwrite
from pytest_torchexport.latency.measure import MOST_RESTORED, Side
from pytest_torchexport.program import Program
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.state import identical

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from pytest_torchexport.backends.base import Exported
    from pytest_torchexport.plan import Plan
    from pytest_torchexport.subject.call import Call
    from pytest_torchexport.subject.state import Snapshot
    from pytest_torchexport.trials import Reference, Trial

MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autograd": torch.enable_grad,
}
"""Modes of autograd, the cheapest first: a deployed program runs in the first that it can."""


def modes(reference: Reference) -> list[str]:
    """The modes in which both sides may be able to run."""
    return ["autograd"] if reference.needs_grad_mode else ["inference mode", "no_grad"]


@dataclass
class Sides:
    """Makes the two sides of an input.

    Attributes:
        plan: the check's.
        snapshot: the model's starting state.
        reference: eager's side of the check.
        copies: whether a call begins and ends with its tensors on the host.
    """

    plan: Plan
    snapshot: Snapshot
    reference: Reference
    copies: bool = False
    _starts_anew: dict[int, bool] = field(default_factory=dict)

    def eager(self, trial: Trial) -> Side:
        """Eager on the input's first call."""
        return self._side(trial, self.plan.model, self.snapshot.restore)

    def exported(self, trial: Trial, exported: Exported, own: Call | None = None) -> Side:
        """The program on the same call, its arguments bound beforehand.

        Args:
            trial: the input.
            exported: the program.
            own: a copy of the call, for a side of which each call is timed by itself. It is made here by default.
        """
        program = Program(exported, self.plan, self.snapshot, self.reference, gradients=False)
        return self._side(trial, exported, program.start, own)

    def _side(
        self, trial: Trial, program: Callable[..., Any], start: Callable[[], Any], own: Call | None = None
    ) -> Side:
        """A side whose timings all start alike.

        One that changes nothing is called over and over on one copy of its arguments. Another one is put back to its
        start before each timing.
        """
        start()
        if id(trial) not in self._starts_anew:
            self._starts_anew[id(trial)] = self._has_to_start_anew(trial)
        call, after = trial.calls[0], _arguments_after(trial)
        if not self._starts_anew[id(trial)]:
            return Side(self._bound(own or copy_of(call), program))
        copies = [own] if own else [copy_of(call) for _ in range(1 if after is None else MOST_RESTORED)]
        restored = _Restored(start, functools.partial(self._bound, program=program), call, after, copies)
        return Side(restored.call, restored.before)

    def _bound(self, own: Call, program: Callable[..., Any]) -> Callable[[], Any]:
        """A call of the program, whose arguments are its own."""
        bind: Callable[..., Callable[[], Any]] | None = getattr(program, "bound_call", None)
        if not self._with_copies:
            return bind(*own.args, **own.kwargs) if bind else functools.partial(program, *own.args, **own.kwargs)
        device, host = self.plan.device, own.place(torch.device("cpu"))
        if bind and getattr(program, "takes_host_arguments", False):
            return bind(*host.args, **host.kwargs)

        def there_and_back() -> Any:
            placed = host.place(device)
            return containers.place(program(*placed.args, **placed.kwargs), torch.device("cpu"), None)

        return there_and_back

    def _has_to_start_anew(self, trial: Trial) -> bool:
        """Whether a second call would do other work than the first: it finds other arguments, or another state.

        A model that fills a cache, or keeps its last input, changes its state once: then its calls are all alike.
        """
        if _arguments_after(trial) is not None:
            return True
        if not trial.record.state:
            return False
        self.snapshot.restore()
        own = copy_of(trial.calls[0])
        call = functools.partial(self.plan.model, *own.args, **own.kwargs)
        try:
            call()
            once = self.snapshot.changes()
            call()
            return not identical(once, self.snapshot.changes())
        finally:
            self.snapshot.restore()

    @property
    def _with_copies(self) -> bool:
        return self.copies and self.plan.device.type != "cpu"


def _arguments_after(trial: Trial) -> Call | None:
    """The arguments of the first call as eager leaves them; None where it leaves them alone."""
    after = trial.record.arguments[0] if trial.record.arguments else None
    return None if after is trial.calls[0] else after


def copy_of(call: Call) -> Call:
    """A copy that can be used in and out of inference mode."""
    with torch.inference_mode(mode=False):
        return call.clone()


class _Restored:
    """Some calls that start from the same state, each with arguments that no earlier one has changed.

    What is done between timings takes the processor's caches from the program that is timed next, and more from one
    that runs more code. So calls are bound once, as many as are timed together, and what they change is put back in
    place.
    """

    def __init__(
        self,
        start: Callable[[], Any],
        bind: Callable[[Call], Callable[[], Any]],
        call: Call,
        after: Call | None,
        copies: list[Call],
    ) -> None:
        self._start, self._bind, self._original = start, bind, call
        self._in_place = after is None or _same_but_for_values(call, after)
        self._own = copies
        self._changed = after is not None
        self._bound = [bind(own) for own in self._own]
        self._turn = itertools.cycle(self._bound)

    def before(self) -> None:
        """Back to the start."""
        self._start()
        if not self._in_place:
            self._own = [copy_of(self._original) for _ in self._own]
            self._bound = [self._bind(own) for own in self._own]
        elif self._changed:
            for own in self._own:
                _put_back(own, self._original)
        self._turn = itertools.cycle(self._bound)

    def call(self) -> Any:
        """One call."""
        return next(self._turn)()


def _same_but_for_values(call: Call, after: Call) -> bool:
    """Whether only values of tensors differ: no shape, and nothing in a container."""
    one, other = (containers.leaves([each.args, dict(each.kwargs)]) for each in (call, after))
    return [_kind(path, leaf) for path, leaf in one] == [_kind(path, leaf) for path, leaf in other]


def _kind(path: str, leaf: Any) -> tuple[Any, ...]:
    return (path, leaf.shape, leaf.dtype) if isinstance(leaf, torch.Tensor) else (path, repr(leaf))


def _put_back(call: Call, original: Call) -> None:
    """Give the tensors of a call their original values."""
    pairs = zip(
        containers.tensors((call.args, dict(call.kwargs))),
        containers.tensors((original.args, dict(original.kwargs))),
        strict=True,
    )
    for (_, own), (_, value) in pairs:
        overwrite(own, value)
