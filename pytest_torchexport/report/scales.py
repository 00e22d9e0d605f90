"""Logarithmic axes: numbers to positions in a drawing, and round numbers to label them with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_ROUND = (1.0, 2.0, 5.0)
_FEW = 3


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
        """Round numbers within the scale, at least `apart` from each other; powers of ten where they are enough."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        tens = [10.0**power for power in range(first, last + 1) if self.low <= 10.0**power <= self.high]
        if len(tens) < _FEW:
            steps = (factor * 10.0**power for power in range(first, last + 1) for factor in _ROUND)
            tens = [value for value in steps if self.low <= value <= self.high]
        kept: list[Tick] = []
        for value in tens:
            at = self.at(value)
            if not kept or abs(at - kept[-1].at) >= apart:
                kept.append(Tick(at, label(value)))
        return tuple(kept)
