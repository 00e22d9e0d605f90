"""Whether the speed of an exported program has changed since an earlier run. Standard library only.

Only ratios are compared, exported / eager: the speed of the machine, and what else runs on it, is in both.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

MINIMUM_EFFECT = 0.05
"""A smaller change is none: processes differ by a few percent, by where the allocator puts things for one."""


class Change(StrEnum):
    """What became of a ratio since the baseline."""

    SLOWER = "slower"
    FASTER = "faster"
    STEADY = "steady"
    UNCLEAR = "unclear"
    """The interval reaches from no change to a large one."""


@dataclass(frozen=True)
class Entry:
    """One measured ratio, as the baseline keeps it.

    Attributes:
        ratio: exported / eager, above 1 the export is slower.
        low: lower end of its confidence interval.
        high: its upper end.
        pairs: number of measured pairs behind it.
        date: day of the measurement, `2026-01-31`.
        conditions: what else the ratio depends on, by name: versions, threads, what is counted.
    """

    ratio: float
    low: float
    high: float
    pairs: int
    date: str
    conditions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Hold the numbers to what can be compared.

        Raises:
            ValueError: one is not positive and finite, or not in order.
        """
        numbers = (self.low, self.ratio, self.high)
        if not all(math.isfinite(number) and number > 0 for number in numbers):
            msg = f"a ratio and its interval are positive numbers, not {numbers}"
            raise ValueError(msg)
        if not self.low <= self.high:
            msg = f"an interval goes up, not from {self.low} to {self.high}"
            raise ValueError(msg)

    @classmethod
    def from_dict(cls, data: Any) -> Entry:
        """The entry that `to_dict` wrote.

        Raises:
            ValueError: it has other keys, or values that are none.
        """
        if not isinstance(data, dict) or any(not isinstance(data.get(key), kind) for key, kind in _KINDS.items()):
            msg = f"an entry has {', '.join(_KINDS)}, and this one {data!r}"
            raise ValueError(msg)
        conditions = {str(name): str(value) for name, value in data["conditions"].items()}
        return cls(**{key: data[key] for key in _KINDS} | {"conditions": conditions})

    def to_dict(self) -> dict[str, Any]:
        """The entry as plain data."""
        return asdict(self)


_NUMBER = (int, float)
_KINDS: dict[str, type | tuple[type, ...]] = {
    "ratio": _NUMBER,
    "low": _NUMBER,
    "high": _NUMBER,
    "pairs": int,
    "date": str,
    "conditions": dict,
}


@dataclass(frozen=True)
class Comparison:
    """A ratio now beside that of the baseline.

    Attributes:
        change: what became of it.
        effect: ratio now / ratio then, less 1: 0.21 is 21 % slower.
        low: lower end of the effect's confidence interval.
        high: its upper end.
        conditions: what else is not as it was: `torch 2.12.0 -> 2.13.0`.
    """

    change: Change
    effect: float
    low: float
    high: float
    conditions: tuple[str, ...] = ()


def compare(then: Entry, now: Entry) -> Comparison:
    """Whether a ratio has changed by more than `MINIMUM_EFFECT`: the whole interval of the change is beyond it.

    With d = ln(now) - ln(then), the interval is made from the ends of the two intervals, of whatever form, by squaring
    and adding (R. G. Newcombe, "Interval estimation for the difference between independent proportions", Statistics in
    Medicine 17, 1998; for any two independent estimates G. Y. Zou and A. Donner, "Construction of confidence limits
    about effect measures", Statistics in Medicine 27, 2008)::

        d - sqrt((ln now - ln now_low)^2 + (ln then_high - ln then)^2)
        d + sqrt((ln now_high - ln now)^2 + (ln then - ln then_low)^2)

    Its level is that of the two intervals. They hold the noise within a process and not what differs from process to
    process, so that no change at all is the wrong thing to test for, however narrow they are: what is tested is a
    change of the minimum effect. What passes is steady only if the interval has no room for a change of twice that.
    """
    difference = math.log(now.ratio / then.ratio)
    down = math.hypot(_up(now.low, now.ratio), _up(then.ratio, then.high))
    up = math.hypot(_up(now.ratio, now.high), _up(then.low, then.ratio))
    low, high = difference - down, difference + up
    effects = (math.expm1(difference), math.expm1(low), math.expm1(high))
    return Comparison(_change(low, high), *effects, changed_conditions(then, now))


def _up(low: float, high: float) -> float:
    """The distance on the logarithmic scale; none where an interval does not hold its own estimate."""
    return max(math.log(high / low), 0.0)


def _change(low: float, high: float) -> Change:
    least = math.log1p(MINIMUM_EFFECT)
    if low > least:
        return Change.SLOWER
    if high < -least:
        return Change.FASTER
    return Change.STEADY if max(high, -low) <= 2 * least else Change.UNCLEAR


def changed_conditions(then: Entry, now: Entry) -> tuple[str, ...]:
    """What is known of both and not the same, `threads 4 -> 1`."""
    return tuple(
        f"{name} {then.conditions[name]} -> {value}"
        for name, value in now.conditions.items()
        if name in then.conditions and then.conditions[name] != value
    )
