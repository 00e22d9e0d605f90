"""What was measured of an exported program beside its values: speed, cold start, memory. Standard library only.

Times are in seconds, sizes in bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

SPEED = "its speed"
"""What the ledger calls a measurement that was to be made and was not."""


class Standing(StrEnum):
    """How a measured figure stands to its budget."""

    WITHIN = "within"
    OVER = "over"
    INCONCLUSIVE = "inconclusive"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, slots=True)
class Times:
    """Times of one side on one input, for one call.

    Attributes:
        median: of all calls.
        low: lower end of the confidence interval of the median.
        high: its upper end.
        p99: the 99th percentile; None where there are too few calls to tell.
        calls: number of calls that were timed.
        noise: half of the range of the middle half of the times, divided by the median.
        quantiles: 101 numbers, the quantiles 0 %, 1 % ... 100 %.
    """

    median: float
    low: float
    high: float
    p99: float | None
    calls: int
    noise: float
    quantiles: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Paired:
    """Eager and the exported program on one input, timed in random turns.

    Attributes:
        input: label of the input.
        eager: eager's times.
        exported: the exported program's.
        ratio: the typical quotient of two neighbouring times, exported / eager; above 1 the export is slower.
        low: lower end of its confidence interval.
        high: its upper end.
        pairs: number of pairs behind it.
        batch: calls that are timed together.
        warmup: calls of each side before their times settled; they are not counted.
        settled: whether they did before the time for it was over.
        seconds: what the measurement took.
    """

    input: str
    eager: Times
    exported: Times
    ratio: float
    low: float
    high: float
    pairs: int
    batch: int
    warmup: int
    settled: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class ColdStart:
    """An exported program from its export to the call from which on it is as fast as it gets.

    Attributes:
        export: seconds of the export.
        load: seconds in which the saved program is read anew; None where there is nothing to read.
        calls: seconds of each of the first calls on the example.
        settled_after: number of calls before the times settle; None if they do not within these calls.
        loads: how often it was loaded anew to be sure.
        variant: the option under which it started, where it is not the backend's own: `profiling=False`.
        note: what has to be known beside it: caches that were off.
    """

    export: float
    load: float | None
    calls: tuple[float, ...]
    settled_after: int | None
    loads: int = 1
    variant: str = ""
    note: str = ""

    @property
    def first_call(self) -> float:
        """Seconds of the first call."""
        return self.calls[0]


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """The most memory that each side took beyond what was held before, in bytes; None where it cannot be read.

    Attributes:
        host: resident set, while the exported program is loaded and called for the first times.
        host_eager: the same for the first call of eager.
        device: memory of the accelerator, for the exported program.
        device_eager: the same for eager.
        note: what is not in the figures, or why there are none.
    """

    host: int | None = None
    host_eager: int | None = None
    device: int | None = None
    device_eager: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """One figure of a budget and what was measured.

    Attributes:
        name: `ratio`, `median`, `p99`, `first_call`, `warmup_calls`, `recompiles`, `peak_memory` or `artifact_size`.
        budget: as the user would write it: `1.2x`, `5 ms`.
        measured: the figure with its interval, in words.
        standing: how the two compare.
        input: label of the input that was timed; empty for what belongs to no input.
        why: the reason where it is inconclusive or not checked.
    """

    name: str
    budget: str
    measured: str
    standing: Standing
    input: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Performance:
    """Speed, cold start and memory of one exported program beside eager, and how they stand to the budget.

    Attributes:
        mode: of autograd on both sides: `inference mode`, or `autograd` for a model that needs it.
        paired: the timing of each input.
        cold_starts: the backend's own first, then its variants.
        memory: the peak of each side.
        recompiles: compilations beyond the first that the inputs of the check caused; None for other backends.
        judged: each figure of the budget.
        enforced: whether a figure over its budget fails the test.
        copies: whether copies between host and device are `excluded` or `included`; empty on the CPU.
        machine: CPU, threads, GPU, governor, load: names and values.
    """

    mode: str = "inference mode"
    paired: tuple[Paired, ...] = ()
    cold_starts: tuple[ColdStart, ...] = ()
    memory: PeakMemory | None = None
    recompiles: int | None = None
    judged: tuple[Judged, ...] = ()
    enforced: bool = True
    copies: str = ""
    machine: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Performance:
        """What `dataclasses.asdict` made of it, perhaps on its way through JSON."""
        return cls(
            mode=data["mode"],
            paired=tuple(_paired(one) for one in data["paired"]),
            cold_starts=tuple(ColdStart(**one | {"calls": tuple(one["calls"])}) for one in data["cold_starts"]),
            memory=PeakMemory(**data["memory"]) if data["memory"] else None,
            recompiles=data["recompiles"],
            judged=tuple(Judged(**one | {"standing": Standing(one["standing"])}) for one in data["judged"]),
            enforced=data["enforced"],
            copies=data["copies"],
            machine=dict(data["machine"]),
        )


def _paired(data: dict[str, Any]) -> Paired:
    numbers = {name: float(data[name]) for name in ("ratio", "low", "high")}
    return Paired(**data | numbers | {side: _times(data[side]) for side in ("eager", "exported")})


def _times(data: dict[str, Any]) -> Times:
    # JSON has no infinity: an end of an interval that is not known is a string there.
    numbers = {name: float(data[name]) for name in ("median", "low", "high", "noise")}
    return Times(**data | numbers | {"quantiles": tuple(map(float, data["quantiles"]))})


# --- in words: the same in messages, in the terminal and in reports ---

_TIMES = (("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3), ("s", 1.0))
_SIZES = (("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9))


def figure(value: float) -> str:
    """Any number, by its first three digits and without zeros at the end: `0.05`, `1,234`, `3.6e6`."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        places = max(0, 2 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{places}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.2g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def digits(value: float) -> str:
    """What was measured, by three digits of which at most two are behind the point. Zeros at the end count."""
    if not 0.0995 <= abs(value) < math.inf:
        return figure(value)
    places = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{places}f}"


def seconds(value: float, say: Callable[[float], str] = digits) -> str:
    """A time in words: `141 us`, `2.30 s`. What is not finite has no unit."""
    return _with_unit(value, _TIMES, say)


def size(value: float) -> str:
    """A size in words: `12.3 MB`; bytes are counted."""
    return f"{value:.0f} B" if abs(value) < _NEXT else _with_unit(value, _SIZES, digits)


def multiple(value: float, say: Callable[[float], str] = digits) -> str:
    """A ratio in words: `1.34x`."""
    return say(value) + ("x" if math.isfinite(value) else "")


def change(effect: float) -> str:
    """A relative change in words: `+21 %` for 0.21."""
    return f"{round(100 * effect):+d} %" if math.isfinite(effect) else str(effect)


_NEXT = 999.5
"""From here on three digits are those of the next unit."""


def _with_unit(value: float, units: tuple[tuple[str, float], ...], say: Callable[[float], str]) -> str:
    if not math.isfinite(value):
        return str(value)
    unit, scale = next((one for one in units if abs(value) < _NEXT * one[1]), units[-1])
    return f"{say(value / scale)} {unit}"
