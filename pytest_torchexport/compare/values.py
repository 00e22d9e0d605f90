"""Compare the numbers of two tensors of one kind, a chunk at a time: outputs may be as large as the memory allows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pytest_torchexport.compare.tolerance import Tolerance, default_for
from pytest_torchexport.outcome import Cause, Leaf

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 1 << 20
"""Elements that are looked at together; each takes some 30 bytes for that time."""


def compare_values(path: str, expected: torch.Tensor, actual: torch.Tensor, tolerance: Tolerance | None) -> Leaf:
    """Compare two tensors of equal shape and layout, element by element.

    Integers and booleans are compared exactly under any tolerance, NaN and infinities have to be in the same places.

    Args:
        path: what the result is called.
        expected: eager's tensor.
        actual: the exported program's.
        tolerance: None takes the default for the dtype.
    """
    ours, theirs = plain(expected), plain(actual).to(plain_device(expected))
    facts = {"dtype": _name(ours.dtype), "shape": tuple(ours.shape), "elements": ours.numel()}
    ours, theirs = _computable(ours), _computable(theirs)
    if not ours.numel() or torch.equal(ours, theirs):
        return Leaf(path, agrees=True, **facts)  # type: ignore[arg-type]
    order = sorted(range(ours.dim()), key=ours.stride, reverse=True)
    mine, other = ours.permute(order).reshape(-1), theirs.permute(order).reshape(-1)
    if not ours.is_floating_point():
        limit = Tolerance(0.0, 0.0)
    else:
        limit = tolerance or default_for(expected.dtype, _scale(mine))
    found = _Differences.between(mine, other, limit)
    index = _unravel(found.worst, tuple(ours.shape), order)
    one, two = mine[found.worst].item(), other[found.worst].item()
    cause, reason = None, ""
    if found.special:
        cause, reason = (
            Cause.SPECIAL_VALUE,
            f"{_spell(two, ours.dtype)} instead of {_spell(one, ours.dtype)} at {list(index)}",
        )
    elif found.mismatched:
        cause = Cause.NUMERIC
        reason = f"{found.mismatched} of {ours.numel()} elements ({found.mismatched / ours.numel():.1%}) differ"
    return Leaf(
        path,
        agrees=not found.mismatched,
        cause=cause,
        reason=reason,
        mismatched=found.mismatched,
        max_abs=math.inf if found.special else found.max_abs,
        max_rel=found.max_rel,
        allowed=limit.atol + limit.rtol * abs(one) if math.isfinite(one) else limit.atol,
        index=index,
        expected=_spell(one, ours.dtype),
        actual=_spell(two, ours.dtype),
        **facts,  # type: ignore[arg-type]
    )


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The values as a dense real tensor: quantized and sparse ones unfolded, complex ones as pairs in a last dimension.

    Apple's devices know no float64: their tensors come to the CPU.
    """
    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.to(plain_device(tensor))
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def plain_device(tensor: torch.Tensor) -> torch.device:
    """The device on which the tensor's values are compared."""
    return torch.device("cpu") if tensor.device.type == "mps" else tensor.device


def _computable(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers in a dtype that torch can compare: the 8-bit floating ones it only stores."""
    return tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize == 1 else tensor


def _chunks(flat: torch.Tensor, other: torch.Tensor) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    for start in range(0, len(flat), CHUNK):
        yield start, flat[start : start + CHUNK], other[start : start + CHUNK]


def _scale(flat: torch.Tensor) -> float:
    """The largest finite magnitude."""
    largest = 0.0
    for _, part, _ in _chunks(flat, flat):
        size = part.abs()
        size.masked_fill_(~size.isfinite(), 0.0)
        largest = max(largest, float(size.max()))
    return largest


@dataclass
class _Differences:
    """What is known of the differences so far.

    Attributes:
        mismatched: number of elements beyond the limit, `special` among them.
        special: number of elements that are NaN or infinite in one and not alike in the other.
        max_abs: largest error of a finite element.
        max_rel: the same relative to eager's magnitude, where that is not zero.
        worst: position of the element that is furthest beyond the limit.
    """

    mismatched: int = 0
    special: int = 0
    max_abs: float = 0.0
    max_rel: float = 0.0
    worst: int = 0
    _rank: float = -1.0

    @classmethod
    def between(cls, flat: torch.Tensor, other: torch.Tensor, limit: Tolerance) -> _Differences:
        """Go through two flat tensors of equal length and dtype."""
        found = cls()
        for start, ours, theirs in _chunks(flat, other):
            found._add(start, ours, theirs, limit)
        return found

    def _add(self, start: int, ours: torch.Tensor, theirs: torch.Tensor, limit: Tolerance) -> None:
        special = _special(ours, theirs) if ours.is_floating_point() else None
        error, magnitude = _error(ours, theirs), ours.to(torch.float64, copy=True).abs_()
        if special is not None:
            finite = ours.isfinite() & theirs.isfinite()
            error.masked_fill_(~finite, 0.0)
            magnitude.masked_fill_(~finite, 0.0)
        self.max_abs = max(self.max_abs, float(error.max()))
        self.max_rel = max(self.max_rel, _largest(error / magnitude))
        allowed = magnitude.mul_(limit.rtol).add_(limit.atol)
        bad = error > allowed
        # Without any allowance every error is infinitely far beyond it: then the largest is the worst.
        rank = error.div_(allowed).nan_to_num_(nan=0.0, posinf=math.inf) if limit.rtol or limit.atol else error
        if special is not None:
            bad |= special
            rank.masked_fill_(special, math.inf)
            self.special += int(special.sum())
        self.mismatched += int(bad.sum())
        highest, position = rank.max(dim=0)
        if float(highest) > self._rank:
            self._rank, self.worst = float(highest), start + int(position)


def _error(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """The absolute differences, in float64."""
    # A copy: where the tensors are doubles themselves, what is changed here must not be theirs.
    error = ours.to(torch.float64, copy=True).sub_(theirs.to(torch.float64)).abs_()
    if not ours.is_floating_point():
        # 2**63 and 2**63 + 1 are one number to float64: whether they differ is for their own dtype to say.
        error.clamp_min_(1.0).masked_fill_(ours == theirs, 0.0)
    return error


def _special(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor | None:
    """Where one is NaN or infinite and the other is not the same; None if there is neither NaN nor infinity."""
    finite = ours.isfinite().logical_and_(theirs.isfinite())
    if bool(finite.all()):
        return None
    same = (ours == theirs).logical_or_(ours.isnan() & theirs.isnan())
    return ~(finite | same)


def _largest(relative: torch.Tensor) -> float:
    """The largest quotient that is a number: 0 / 0 is none, and what is not zero over zero says nothing."""
    return float(relative.nan_to_num_(nan=0.0, posinf=0.0).max())


def _unravel(position: int, shape: tuple[int, ...], order: list[int]) -> tuple[int, ...]:
    """The index of an element that is at the position where the dimensions are in the order."""
    index = [0] * len(shape)
    for dim in reversed(order):
        position, index[dim] = divmod(position, shape[dim])
    return tuple(index)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _spell(number: float, dtype: torch.dtype) -> str:
    if dtype is torch.bool:
        return str(bool(number))
    if not dtype.is_floating_point:
        return str(int(number))
    return f"{number:.9g}" if dtype is not torch.float64 else f"{number:.17g}"
