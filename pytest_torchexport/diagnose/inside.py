"""Hypotheses that look at the operators of both sides: where a type is narrower, where the first NaN is made."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_torchexport.compare.operators import tensors_in
from pytest_torchexport.diagnose.case import Clue
from pytest_torchexport.outcome import Cause, Evidence, Location
from pytest_torchexport.subject import source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import FrameType

    from pytest_torchexport.diagnose.case import Case

NAN, INFINITY = "NaN", "an infinity"
_KINDS = (NAN, INFINITY)


@dataclass(frozen=True)
class _Made:
    """An operator that made something for the first time."""

    operator: str
    dtype: torch.dtype
    location: Location | None
    overflows: bool = False

    def __str__(self) -> str:
        return f"`{self.operator}`" + (" (overflow in float16)" if self.overflows else "")


@dataclass
class _Seen:
    """What one side computes: the first operator for each floating type, and for NaN and infinities."""

    types: dict[torch.dtype, _Made] = field(default_factory=dict)
    special: dict[str, _Made] = field(default_factory=dict)

    def step(
        self,
        operator: str,
        results: Iterable[torch.Tensor],
        held: Callable[[], set[str]],
        at: Callable[[], Location | None],
    ) -> None:
        """Take in one operator; what its operands held, and its line, are asked for only where they matter."""
        for result in results:
            if not result.is_floating_point() or result.is_meta or result.is_quantized:
                continue
            if result.dtype not in self.types:
                self.types[result.dtype] = _Made(operator, result.dtype, at())
            found = _specials(result) - self.special.keys() if len(self.special) < len(_KINDS) else set()
            if not found:
                continue
            before = held()
            for kind in found - before:
                is_half = result.dtype is torch.float16 and kind == INFINITY and not before
                self.special[kind] = _Made(operator, result.dtype, at(), overflows=is_half)


def _specials(tensor: torch.Tensor) -> set[str]:
    if not tensor.is_floating_point() or tensor.is_quantized or tensor.layout is not torch.strided:
        return set()
    kinds = set()
    if tensor.numel() and not bool(tensor.isfinite().all()):
        kinds |= {NAN} if bool(tensor.isnan().any()) else set()
        kinds |= {INFINITY} if bool(tensor.isinf().any()) else set()
    return kinds


def _held(tensors: Iterable[torch.Tensor]) -> set[str]:
    return {kind for tensor in tensors for kind in _specials(tensor)}


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what eager computes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = _Seen()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator."""
        result = func(*args, **(kwargs or {}))
        operands = tensors_in([*args, *(kwargs or {}).values()])
        self.seen.step(str(func), tensors_in([result]), lambda: _held(operands), _users_line)
        return result


def _users_line() -> Location | None:
    """The user's innermost line on the stack."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if source.is_users(frame.f_code.co_filename):
            return source.locate(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return None


def inside(case: Case) -> Iterator[Clue]:
    """Whether the program computes in a narrower type than eager, and which operators make NaN and infinities."""
    special = any(leaf.cause is Cause.SPECIAL_VALUE for leaf in case.leaves)
    first_call = len(case.trial.calls) == 1
    if not first_call and not any(leaf.path.startswith("call 1 ") for leaf in case.leaves):
        return
    watch = _Watch()
    case.eager(case.trial.calls[:1], mode=watch)
    ours, theirs = watch.seen, _of_program(case)
    if theirs is not None and (clue := _narrower(case, ours, theirs)) is not None:
        yield clue
    if special:
        yield from _first_special(case, ours, theirs)


def _of_program(case: Case) -> _Seen | None:
    """What the program computes; None if its inside cannot be seen."""
    seen = _Seen()
    held: dict[str, set[str]] = {}
    steps = case.program.steps(case.trial)
    if steps is None:
        return None
    for step in steps:
        before = functools.partial(_gathered, held, step.inputs)
        seen.step(step.operator, step.outputs.values(), before, functools.partial(_as_it_is, step.location))
        held |= {name: _specials(value) for name, value in step.outputs.items()}
    return seen


def _gathered(held: Mapping[str, set[str]], names: Iterable[str]) -> set[str]:
    return {kind for name in names for kind in held.get(name, ())}


def _as_it_is(location: Location | None) -> Location | None:
    return location


_NARROW = {torch.float64: 3, torch.float32: 2, torch.float16: 1, torch.bfloat16: 1}


def _narrower(case: Case, ours: _Seen, theirs: _Seen) -> Clue | None:
    """The first operator of the program whose result is of a narrower type than any that eager computes in."""
    arguments = [case.plan.names(call) for call in case.trial.calls[:1]]
    given = {tensor.dtype for tensor in tensors_in([list(one.values()) for one in arguments])}
    known = [_NARROW[dtype] for dtype in (*ours.types, *given) if dtype in _NARROW]
    narrow = [made for dtype, made in theirs.types.items() if known and _NARROW.get(dtype, 9) < min(known)]
    if not narrow:
        return None
    name, usual = str(narrow[0].dtype).removeprefix("torch."), ", ".join(_names(ours.types))
    text = f"the exported program computes in {name} from {narrow[0]} on, eager in {usual} throughout"
    return Clue((Evidence(text, narrow[0].location),), Cause.DTYPE, tested=False)


def _names(types: Iterable[torch.dtype]) -> list[str]:
    return [str(dtype).removeprefix("torch.") for dtype in types]


def _first_special(case: Case, ours: _Seen, theirs: _Seen | None) -> Iterator[Clue]:
    """Which operators make the first NaN and the first infinity, where only one side has them."""
    given = _held(tensors_in([list(case.plan.names(call).values()) for call in case.trial.calls[:1]]))
    for kind in _KINDS:
        if kind in given:
            continue
        mine = ours.special.get(kind)
        other = theirs.special.get(kind) if theirs is not None else None
        if mine is not None:
            too = f"; so does {other} in the exported program" if other is not None else ""
            yield Clue((Evidence(f"in eager, {mine} makes {kind} first{too}", mine.location),))
        elif other is not None:
            text = f"in the exported program, {other} makes {kind}; eager makes none on this input"
            yield Clue((Evidence(text, other.location),))
