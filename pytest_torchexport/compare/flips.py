"""Which differences of a discrete leaf (indices, counts, flags) eager's own rounding explains."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

_FREE = 0.25
"""The share of other elements that what is seen may let pass, if a pass is to mean anything."""
_OPEN = 0.7
"""From so many different values in so many runs on, most of those that fit were not seen."""
_NEAR = 5
"""Places around one whose values show by how much values move there."""


@dataclass
class Flips:
    """What runs with noise made of a discrete leaf, and the most elements that one loud run flipped.

    Rows of different values, as sorting and topk give, come in another order where scores are nearly equal, or hold
    other ones of several equal candidates. There a value is explained at the places between the first and the last
    that it took in some run; past the end where a run has it not at all. Elsewhere some run has to have the same value
    at the same place.
    """

    ours: torch.Tensor
    quiet: list[torch.Tensor] = field(default_factory=list)
    loud: list[torch.Tensor] = field(default_factory=list)
    ties: list[torch.Tensor] = field(default_factory=list)
    most: int = 0

    def add(self, theirs: torch.Tensor, *, loud: bool = False) -> None:
        """Take in what a run made of the leaf."""
        (self.loud if loud else self.quiet).append(_narrow(theirs))
        if loud:
            self.most = max(self.most, int((theirs != self.ours).sum()))

    def add_ties(self, theirs: torch.Tensor) -> None:
        """Take in a run without noise, in which only the order of equal candidates is another."""
        self.ties.append(_narrow(theirs))

    @property
    def allowed(self) -> int:
        """How many elements may be unexplained: runs sample the near ties, they do not list them.

        It grows with the square root of what is shown, so that in a half type, where much flips, no row can hide in it.
        """
        return min(self.most // 4, max(1, math.isqrt(self.most) // 2))

    def score(self, theirs: torch.Tensor, *, loud: bool = True) -> float:
        """How many elements no run explains, as a multiple of those that may be; at most 1 is fine."""
        missed, far = self._missed(theirs, self._runs(loud=loud))
        count = int(missed.sum())
        if bool(far.any()) or (count and not self.allowed):
            return math.inf
        return count / self.allowed if count else 0.0

    def unexplained(self, theirs: torch.Tensor) -> int:
        """How many elements have another value than eager's that no run explains."""
        return int(self._missed(theirs, self._runs(loud=True))[0].sum())

    def is_free(self, *, loud: bool = True) -> bool:
        """Whether noise would explain plainly other values too: then it says nothing. Ties are no noise."""
        runs = self._runs(loud=loud)
        for other in _others(self.ours):
            differs = other != self.ours
            passes = differs & ~self._missed(other, runs)[0]
            if self.ties:
                passes &= self._missed(other, [self.ours, *self.ties])[0]
            if int(passes.sum()) > _FREE * max(1, int(differs.sum())):
                return True
        return False

    def is_open(self, theirs: torch.Tensor, runs: list[torch.Tensor]) -> bool:
        """Whether these runs have another value nearly each time where none explains one: what else fits is not known.

        So it is with a few chosen among many equal candidates.
        """
        if len(runs) < _NEAR:
            return False
        missed = self._missed(theirs, self._runs(loud=True))[0]
        values = torch.stack([seen.to(torch.int64)[missed] for seen in runs]).sort(0).values
        kinds = 1 + (values.diff(dim=0) != 0).sum(0)
        return int((kinds < _OPEN * len(runs)).sum()) <= kinds.numel() // 8

    def share(self) -> float:
        """The share of the elements that some run flips."""
        flips = torch.zeros_like(self.ours, dtype=torch.bool)
        for seen in self._runs(loud=True):
            flips |= seen != self.ours
        return float(flips.double().mean())

    def _runs(self, *, loud: bool) -> list[torch.Tensor]:
        return [self.ours, *self.ties, *self.quiet, *(self.loud if loud else ())]

    def _missed(self, theirs: torch.Tensor, runs: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The elements that no run explains, and those of them that are far from where any run has them."""
        missed = torch.ones_like(self.ours, dtype=torch.bool)
        for seen in runs:
            missed &= seen != theirs
        far = torch.zeros_like(missed)
        if not self.ours.dim() or self.ours.shape[-1] < 2:
            return missed, far
        mine = _Places.of(self.ours, runs)
        orders = _distinct(self.ours) & _distinct(theirs) & (mine.width > 0).any(-1, keepdim=True)
        if not bool(orders.any()):
            return missed, far
        off = _Places.of(theirs, runs).off()
        moves = _most_around(mine.width)
        slack = torch.where(moves > 0, 1 + moves // 2, 0)
        return torch.where(orders, missed & (off > slack), missed), orders & missed & (off > 2 * slack + 1)


@dataclass(frozen=True)
class _Places:
    """The first and the last place that each value of the rows took in some run; the length where one has it not."""

    first: torch.Tensor
    last: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor, runs: list[torch.Tensor]) -> _Places:
        length = values.shape[-1]
        first = torch.full_like(values, length)
        last = torch.zeros_like(values)
        for rows in runs:
            ordered, order = rows.to(values.dtype).sort(-1)
            at = torch.searchsorted(ordered, values.contiguous()).clamp_max(length - 1)
            place = torch.where(ordered.gather(-1, at) == values, order.gather(-1, at), length)
            first, last = torch.minimum(first, place), torch.maximum(last, place)
        return cls(first, last)

    @property
    def width(self) -> torch.Tensor:
        return self.last - self.first

    def off(self) -> torch.Tensor:
        """How far each value is from where some run has it."""
        here = torch.arange(self.first.shape[-1], device=self.first.device)
        return torch.maximum(self.first - here, here - self.last).clamp_min(0)


def _most_around(sizes: torch.Tensor) -> torch.Tensor:
    """The largest of the numbers around each place of the rows."""
    rows = sizes.reshape(-1, 1, sizes.shape[-1]).double()
    return torch.nn.functional.max_pool1d(rows, _NEAR, 1, _NEAR // 2).to(sizes.dtype).reshape(sizes.shape)


def _distinct(rows: torch.Tensor) -> torch.Tensor:
    """Whether the values of each row, along the last dimension, all differ; of shape (..., 1)."""
    return (rows.sort(-1).values.diff(dim=-1) != 0).all(-1, keepdim=True)


def _others(ours: torch.Tensor) -> Iterator[torch.Tensor]:
    """Values that are plainly others: the same in another order, flags the other way round."""
    if ours.numel() and int(ours.min()) >= 0 and int(ours.max()) <= 1:
        yield 1 - ours
        return
    for axis, size in enumerate(ours.shape):
        if size > 1:
            yield ours.flip(axis)
            yield ours.roll(size // 2, axis)


def _narrow(whole: torch.Tensor) -> torch.Tensor:
    """The numbers in the narrowest type that holds them: of each run one copy is kept."""
    if not whole.numel():
        return whole
    least, most = (int(one) for one in whole.aminmax())
    for dtype in (torch.int8, torch.int16, torch.int32):
        info = torch.iinfo(dtype)
        if info.min <= least and most <= info.max:
            return whole.to(dtype)
    return whole
