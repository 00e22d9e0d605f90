"""Eager and the exported program as two things that can be called and timed: same input, same start, same mode."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.latency.measure import Side
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

    def exported(self, trial: Trial, exported: Exported) -> Side:
        """The program on the same call, its arguments bound beforehand."""
        program = Program(exported, self.plan, self.snapshot, self.reference, gradients=False)
        return self._side(trial, exported, program.start)

    def _side(self, trial: Trial, program: Callable[..., Any], start: Callable[[], Any]) -> Side:
        """A side whose calls all start alike.

        One that changes nothing is called over and over on one copy of its arguments. Another one is put back to its
        start before each call, on a copy of its own; neither is timed.
        """
        start()
        if id(trial) not in self._starts_anew:
            self._starts_anew[id(trial)] = self._has_to_start_anew(trial)
        if not self._starts_anew[id(trial)]:
            return Side(self._bound(trial.calls[0], program))
        fresh = _Fresh(start, functools.partial(self._bound, trial.calls[0], program))
        return Side(fresh.call, fresh.before)

    def _bound(self, call: Call, program: Callable[..., Any]) -> Callable[[], Any]:
        """A call of the program with its own copy of the arguments."""
        with torch.inference_mode(mode=False):
            own = call.clone()
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
        # Arguments that eager leaves alone are the call itself.
        if not trial.record.arguments or trial.record.arguments[0] is not trial.calls[0]:
            return True
        if not trial.record.state:
            return False
        self.snapshot.restore()
        call = functools.partial(self.plan.model, *trial.calls[0].args, **trial.calls[0].kwargs)
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


class _Fresh:
    """A call that is bound anew each time, from the same start."""

    def __init__(self, start: Callable[[], Any], bind: Callable[[], Callable[[], Any]]) -> None:
        self._start, self._bind = start, bind
        self._bound = bind()

    def before(self) -> None:
        """Back to the start, with arguments that nobody has changed."""
        self._start()
        self._bound = self._bind()

    def call(self) -> Any:
        """One call."""
        return self._bound()
