"""Logarithmic axes: numbers to positions in a drawing, and round numbers to label them with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_ROUND = (((1.0, 2.0, 5.0), 1), ((1.0, 3.0), 1), ((1.0,), 1), ((1.0,), 2), ((1.0,), 3), ((1.0,), 6), ((1.0,), 12))
"""What is labelled in each power of ten, and every how many powers; the first that there is room for."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled position on an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class LogScale:
    """From `low` to `high` (both positive), drawn from position `start` to `end`; values beyond stop at the ends."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Iterable[float | None], start: float, end: float, *, least: float = 1.25) -> LogScale | None:
        """A scale that holds all the values, and is wider than a factor of `least` squared; None without any."""
        found = [value for value in values if value is not None and math.isfinite(value) and value > 0]
        if not found:
            return None
        low, high = min(found), max(found)
        margin = max(math.sqrt(least * least / (high / low)), (high / low) ** 0.04)
        return cls(low / margin, high * margin, start, end)

    def at(self, value: float) -> float:
        """The position of a value, to a tenth."""
        if not value > self.low:
            return self.start
        if value >= self.high:
            return self.end
        part = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.start + part * (self.end - self.start), 1)

    def ticks(self, label: Callable[[float], str], *, apart: float) -> tuple[Tick, ...]:
        """Round numbers within the scale, at least `apart` from each other, as many as there is room for."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for factors, step in _ROUND:
            powers = range(first - first % step, last + 1, step)
            values = [factor * 10.0**power for power in powers for factor in factors]
            kept = [(self.at(value), value) for value in values if self.low < value < self.high]
            if all(abs(after - before) >= apart for (before, _), (after, _) in pairwise(kept)):
                break
        return tuple(Tick(at, label(value)) for at, value in kept)
