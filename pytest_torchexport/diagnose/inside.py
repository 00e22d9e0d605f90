"""Hypotheses that look at the operators of both sides: where a type is narrower, where the first NaN is made."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_torchexport.backends.base import TooLarge
from pytest_torchexport.compare.operators import tensors_in
from pytest_torchexport.diagnose.case import Clue
from pytest_torchexport.diagnose.likeness import tensors
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
    if theirs is not None:
        yield from _other_types(case, ours, theirs)
    if special:
        yield from _first_special(case, ours, theirs)


def _of_program(case: Case) -> _Seen | None:
    """What the program computes; None if its inside cannot be seen."""
    seen = _Seen()
    held: dict[str, set[str]] = {}
    try:
        steps = case.program.steps(case.trial)
    except TooLarge:
        return None
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


_UNITS = 100.0
"""Units of rounding, relative to the largest value, by which computing in a narrower type may change an output."""
_WIDTH = {torch.float64: 3, torch.float32: 2, torch.float16: 1, torch.bfloat16: 1}


def _other_types(case: Case, ours: _Seen, theirs: _Seen) -> Iterator[Clue]:
    """The first operator of one side whose result is of a narrower type than any that the other side computes in."""
    arguments = [case.plan.names(call) for call in case.trial.calls[:1]]
    given = {tensor.dtype for tensor in tensors_in([list(one.values()) for one in arguments])}
    for who, mine, other, others in (
        ("the exported program", theirs, "eager", ours),
        ("eager", ours, "the exported program", theirs),
    ):
        known = [_WIDTH[dtype] for dtype in (*others.types, *given) if dtype in _WIDTH]
        narrow = [made for dtype, made in mine.types.items() if known and _WIDTH.get(dtype, 9) < min(known)]
        if narrow and others.types:
            name, usual = str(narrow[0].dtype).removeprefix("torch."), ", ".join(_names(others.types))
            text = f"in {who}, {narrow[0]} computes in {name}; {other} computes in {usual} throughout"
            cause = Cause.DTYPE if _is_of_size(case, narrow[0].dtype) else None
            yield Clue((Evidence(text, narrow[0].location),), cause, tested=False)


def _is_of_size(case: Case, dtype: torch.dtype) -> bool:
    """Whether no output is further off than computing in the type may bring it."""
    for ours, theirs in zip(case.trial.record.outputs, case.record.outputs, strict=True):
        for (_, mine), (_, got) in zip(tensors(ours), tensors(theirs), strict=False):
            if mine.shape == got.shape and mine.is_floating_point() and mine.numel():
                one, two = mine.detach().double(), got.detach().to(mine.device).double()
                if float((one - two).abs().max()) > _UNITS * torch.finfo(dtype).eps * float(one.abs().max()):
                    return False
    return True


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
