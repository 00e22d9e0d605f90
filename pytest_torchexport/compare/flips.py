"""Which differences of a discrete leaf (indices, counts, flags) eager's own rounding explains."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass
class Flips:
    """What runs with noise made of a discrete leaf, and the most elements that one loud run flipped."""

    ours: torch.Tensor
    seen: list[torch.Tensor] = field(default_factory=list)
    most: int = 0

    def add(self, theirs: torch.Tensor, *, loud: bool = False) -> None:
        """Take in what a run made of the leaf."""
        self.seen.append(theirs)
        if loud:
            self.most = max(self.most, int((theirs != self.ours).sum()))

    def unexplained(self, theirs: torch.Tensor) -> int:
        """How many elements have another value than eager's that no run explains."""
        return int(((theirs != self.ours) & ~self.explains(theirs)).sum())

    def explains(self, theirs: torch.Tensor) -> torch.Tensor:
        """Where some run has the same value.

        Rows of different values, as sorting and topk give, may come in another order, or hold other ones of several
        equal candidates: there it is enough that some run has the value in the row, if this place flips at all.
        """
        found = torch.zeros_like(self.ours, dtype=torch.bool)
        flips = found.clone()
        for seen in self.seen:
            found |= seen == theirs
            flips |= seen != self.ours
        if self.ours.dim() and self.ours.shape[-1] > 1:
            orders = _distinct(self.ours) & _distinct(theirs)
            in_row = torch.zeros_like(found)
            for seen in (self.ours, *self.seen):
                in_row |= _in_row(theirs, seen)
            found |= in_row & flips & orders
        return found


def _distinct(rows: torch.Tensor) -> torch.Tensor:
    """Whether the values of each row, along the last dimension, all differ; of shape (..., 1)."""
    return (rows.sort(-1).values.diff(dim=-1) != 0).all(-1, keepdim=True)


def _in_row(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Whether each value stands anywhere in the same row of the other tensor."""
    ordered = rows.sort(-1).values
    places = torch.searchsorted(ordered, values.contiguous()).clamp_max(rows.shape[-1] - 1)
    return ordered.gather(-1, places) == values
