"""Margins: how far a condition is from changing, as a number with a gradient. Positive where it holds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

Real = torch.Tensor | float
"""A differentiable 0-d tensor, or a plain number where nothing leads back to the input."""


@dataclass(frozen=True, eq=False)
class Count:
    """How many of some conditions hold: their margins along the last axis, times `unit` (1, or 1/n for a mean)."""

    margins: torch.Tensor
    unit: float = 1.0


@dataclass(frozen=True, eq=False)
class Choice:
    """The index of the largest of some scores, along the last axis."""

    scores: torch.Tensor


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a number comes from.

    Attributes:
        real: its value with a gradient; None where there is none to be had.
        count: set if it counts conditions.
        choice: set if it is the index of a largest score.
        size: it is a tensor's size and not a value in it.
    """

    real: torch.Tensor | None = None
    count: Count | None = None
    choice: Choice | None = None
    size: bool = False


def as_real(tensor: torch.Tensor) -> torch.Tensor:
    """A 0-d float64 tensor on the CPU that hangs on the same graph."""
    return tensor.reshape(()).to("cpu", torch.float64)


def away(difference: torch.Tensor) -> torch.Tensor:
    """`|difference|`, with a slope at zero too, where autograd's would be none."""
    return torch.where(difference < 0, -difference, difference)


def margin(name: str, difference: torch.Tensor) -> torch.Tensor:
    """The margin of a comparison from the difference of its two sides; its shape is that of the difference."""
    if name in ("gt", "ge"):
        return difference
    if name in ("lt", "le"):
        return -difference
    return away(difference) if name == "ne" else -away(difference)


MIRRORED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "eq": "eq", "ne": "ne"}
"""Of each comparison the one that says the same of the sides exchanged."""


def at_least(margins: torch.Tensor, k: int) -> torch.Tensor | None:
    """The margin of "at least k of these hold", along the last axis; None if that is always so, or never.

    Where it does not hold, its size is the distance, in margins, to the k nearest holding: a step that long along its
    gradient moves all of them and not only the nearest. Where it holds, likewise for those that would have to give way.
    """
    n = margins.shape[-1]
    if not 1 <= k <= n:
        return None
    if k == 1:
        nearest = margins.amax(-1)
        lacking, spare = nearest, margins
    elif k == n:
        nearest = margins.amin(-1)
        lacking, spare = margins, nearest
    else:
        ordered = margins.sort(dim=-1, descending=True).values
        nearest, lacking, spare = ordered[..., k - 1], ordered[..., :k], ordered[..., k - 1 :]
    holds = nearest > 0
    missing = nearest if k == 1 else -torch.linalg.vector_norm(lacking.clamp(max=0), dim=-1)
    surplus = nearest if k == n else torch.linalg.vector_norm(spare.clamp(min=0), dim=-1)
    far = torch.where(holds, surplus, missing)
    return torch.where((far == 0) | ~far.isfinite(), nearest, far)


def exceeds(origin: Origin, limit: float, *, strictly: bool) -> torch.Tensor | None:
    """The margin of `number > limit` (or `>=`), for counts that of the condition which would make the difference."""
    count = origin.count
    if count is not None:
        wanted = limit / count.unit
        k = math.floor(wanted) + 1 if strictly else math.ceil(wanted)
        found = at_least(count.margins, k)
        if found is not None:
            return found.reshape(()).to(torch.float64)
    return None if origin.real is None else origin.real - limit


def counted(name: str, exceed: Callable[..., torch.Tensor | None]) -> torch.Tensor | None:
    """The margin of comparing a count, from the margins of it being more, and of it being at least, the limit."""
    if name in ("gt", "le"):
        more = exceed(strictly=True)
        return more if more is None or name == "gt" else -more
    least = exceed(strictly=False)
    if name in ("ge", "lt"):
        return least if least is None or name == "ge" else -least
    more = exceed(strictly=True)
    if more is None or least is None:
        both_ways = least if more is None else -more
        if both_ways is None:
            return None
    else:
        both_ways = torch.minimum(least, -more)
    return both_ways if name == "eq" else -both_ways


def chosen(scores: torch.Tensor, index: int) -> torch.Tensor | None:
    """The margin of `argmax(scores) == index`, along the last axis."""
    n = scores.shape[-1]
    if not -n <= index < n or n < 2:
        return None
    index %= n
    others = torch.cat([scores[..., :index], scores[..., index + 1 :]], dim=-1)
    return scores[..., index] - others.amax(-1)
