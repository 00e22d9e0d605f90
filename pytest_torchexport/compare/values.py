"""Compare the numbers of two tensors of one kind, a chunk at a time: outputs may be as large as the memory allows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.compare.limits import EXACT, Limit, assert_close, surely_within, without_measurement
from pytest_torchexport.compare.tolerance import CALIBRATED, DEFAULT_K, Tolerance
from pytest_torchexport.outcome import Cause, Leaf

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 1 << 20
"""Elements that are looked at together; each takes some 30 bytes for that time."""


def compare_values(path: str, expected: torch.Tensor, actual: torch.Tensor, tolerance: Tolerance = CALIBRATED) -> Leaf:
    """Compare two tensors of equal shape and layout, element by element.

    Integers and booleans are compared exactly under any tolerance, NaN and infinities have to be in the same places.
    Under the calibrated rule a leaf agrees here only where no measurement is needed for that; how far a leaf that does
    not is off is said against the bound that holds where none can be made.

    Args:
        path: what the result is called.
        expected: eager's tensor.
        actual: the exported program's.
        tolerance: its k, or its rtol and atol.
    """
    ours, theirs = plain(expected), plain(actual).to(plain_device(expected))
    facts: dict[str, Any] = {"dtype": _name(ours.dtype), "shape": tuple(ours.shape), "elements": ours.numel()}
    facts["rule"] = _rule(ours, tolerance)
    ours, theirs = _computable(ours), _computable(theirs)
    if not ours.numel() or torch.equal(ours, theirs):
        return Leaf(path, agrees=True, **facts)
    order = sorted(range(ours.dim()), key=ours.stride, reverse=True)
    mine, other = ours.permute(order).reshape(-1), theirs.permute(order).reshape(-1)
    usual = assert_close(expected.dtype)
    sure = None
    if not ours.is_floating_point():
        limit = EXACT
    elif tolerance.rtol is not None and tolerance.atol is not None:
        limit = Limit(tolerance.rtol, tolerance.atol)
    else:
        sure = surely_within(expected.dtype, DEFAULT_K if tolerance.k is None else tolerance.k)
        limit = without_measurement(expected.dtype, _scale(mine))
    found = _Differences.between(mine, other, limit, usual, sure or limit)
    index = _unravel(found.worst, tuple(ours.shape), order)
    one, two = mine[found.worst].item(), other[found.worst].item()
    cause, reason = None, ""
    if found.special:
        cause, reason = (
            Cause.SPECIAL_VALUE,
            f"{spell(two, ours.dtype)} instead of {spell(one, ours.dtype)} at {list(index)}",
        )
    elif found.beyond:
        count = found.mismatched or found.beyond
        cause = Cause.NUMERIC
        reason = f"{count} of {ours.numel()} elements ({count / ours.numel():.1%}) differ"
    return Leaf(
        path,
        agrees=not found.beyond,
        cause=cause,
        reason=reason,
        mismatched=found.mismatched,
        max_abs=math.inf if found.special else found.max_abs,
        max_rel=found.max_rel,
        allowed=limit.atol + limit.rtol * abs(one) if math.isfinite(one) else limit.atol,
        index=index,
        expected=spell(one, ours.dtype),
        actual=spell(two, ours.dtype),
        assert_close=not found.unusual,
        least_atol=found.least_atol,
        **facts,
    )


def _rule(ours: torch.Tensor, tolerance: Tolerance) -> str:
    if not ours.is_floating_point():
        return "exact"
    return "calibrated" if tolerance.is_default else f"set: {tolerance}"


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
        beyond: number of elements that do not surely agree.
        unusual: number of elements that `torch.testing.assert_close` does not accept by default.
        least_atol: the smallest atol with which it would accept all that are finite.
    """

    limit: Limit
    usual: Limit
    sure: Limit
    mismatched: int = 0
    special: int = 0
    max_abs: float = 0.0
    max_rel: float = 0.0
    worst: int = 0
    beyond: int = 0
    unusual: int = 0
    least_atol: float = 0.0
    _rank: float = -1.0

    @classmethod
    def between(cls, flat: torch.Tensor, other: torch.Tensor, limit: Limit, usual: Limit, sure: Limit) -> _Differences:
        """Go through two flat tensors of equal length and dtype."""
        found = cls(limit, usual, sure)
        for start, ours, theirs in _chunks(flat, other):
            found._add(start, ours, theirs)
        return found

    def _add(self, start: int, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        limit = self.limit
        special = _special(ours, theirs) if ours.is_floating_point() else None
        error, magnitude = _error(ours, theirs), ours.to(torch.float64, copy=True).abs_()
        if special is not None:
            finite = ours.isfinite() & theirs.isfinite()
            error.masked_fill_(~finite, 0.0)
            magnitude.masked_fill_(~finite, 0.0)
        self.max_abs = max(self.max_abs, float(error.max()))
        self.max_rel = max(self.max_rel, _largest(error / magnitude))
        least = (error - magnitude * self.usual.rtol).max()
        self.least_atol = max(self.least_atol, float(least))
        self.unusual += int((error > magnitude * self.usual.rtol + self.usual.atol).sum())
        self.beyond += int((error > magnitude * self.sure.rtol + self.sure.atol).sum())
        allowed = magnitude.mul_(limit.rtol).add_(limit.atol)
        bad = error > allowed
        # Without any allowance every error is infinitely far beyond it: then the largest is the worst.
        rank = error.div_(allowed).nan_to_num_(nan=0.0, posinf=math.inf) if limit.rtol or limit.atol else error
        if special is not None:
            bad |= special
            rank.masked_fill_(special, math.inf)
            self.special += (count := int(special.sum()))
            self.beyond += count
            # It takes NaN for different from NaN.
            self.unusual += int((special | ours.isnan()).sum())
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


def spell(number: float, dtype: torch.dtype) -> str:
    """A number with as many digits as its dtype has."""
    if dtype is torch.bool:
        return str(bool(number))
    if not dtype.is_floating_point:
        return str(int(number))
    return f"{number:.9g}" if dtype is not torch.float64 else f"{number:.17g}"
