"""Each figure of a budget against what was measured: within, over, or not to be told."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_torchexport.latency.budget import FIRST_CALLS
from pytest_torchexport.latency.decide import JUDGES
from pytest_torchexport.measured import Judged, Standing, multiple, seconds, size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_torchexport.latency.budget import Budget, Limit
    from pytest_torchexport.latency.interval import Interval
    from pytest_torchexport.latency.measure import Timing
    from pytest_torchexport.performance.cold import Starts

SURE = 7
"""Starts that must all be over a budget: were the median start within it, that would happen once in 128 times."""
FAR = 1.5
"""An excess by this factor in each of three starts is no chance either."""
LONGEST_S = 60.0
"""Seconds of further starts after which nothing more is learnt about one figure."""

_SAY: dict[str, Callable[[float], str]] = {"ratio": multiple, "median": seconds, "p99": seconds}
_MACHINES_OWN = ("median", "p99", "first_call", "warmup_calls")
"""Figures that other work on the machine makes worse. It makes a ratio worse on both sides."""


@dataclass
class Bench:
    """What was measured.

    Attributes:
        timings: of each input that was timed, by its label.
        starts: the cold starts, and the way to more of them.
        recompiles: compilations beyond the first; None for a backend that has none.
        artifact_bytes: size of the artifact; None for a backend without one.
        crowd: number of other processes in which tests may have run at the same time.
    """

    timings: Mapping[str, Timing]
    starts: Starts
    recompiles: int | None
    artifact_bytes: int | None
    crowd: int


def judge(budget: Budget, bench: Bench) -> tuple[Judged, ...]:
    """Every figure of the budget, in its order. A figure of the cold start may take more starts to be sure of."""
    return tuple(_in_crowd(one, bench) for limit in budget.limits for one in _judged(limit, budget, bench))


def _judged(limit: Limit, budget: Budget, bench: Bench) -> Iterator[Judged]:
    if limit.name in JUDGES:
        for label in budget.inputs:
            yield _timed(limit, label, bench)
    elif limit.name in _OF_A_START:
        yield _started(limit, bench)
    else:
        yield _counted(limit, bench.recompiles if limit.name == "recompiles" else bench.artifact_bytes)


def _timed(limit: Limit, label: str, bench: Bench) -> Judged:
    timing = bench.timings.get(label)
    if timing is None:
        why = "eager raises on this input"
        return Judged(limit.name, limit.text, "", Standing.NOT_CHECKED, label, why)
    found = JUDGES[limit.name](timing.samples, limit.value)
    return Judged(limit.name, limit.text, _interval(found.figure, _SAY[limit.name]), found.standing, label, found.why)


def _interval(figure: Interval, say: Callable[[float], str]) -> str:
    high = "any" if math.isinf(figure.high) else say(figure.high)
    return f"{say(figure.value)} ({say(max(figure.low, 0.0))} to {high})"


def _counted(limit: Limit, value: int | None) -> Judged:
    if value is None:
        why = "it recompiles nothing" if limit.name == "recompiles" else "it has no file"
        return Judged(limit.name, limit.text, "", Standing.NOT_CHECKED, why=f"the backend does not have it: {why}")
    standing = Standing.OVER if value > limit.value else Standing.WITHIN
    return Judged(limit.name, limit.text, size(value) if limit.name == "artifact_size" else str(value), standing)


# --- figures of a cold start ---


def _first_calls(starts: Starts) -> list[float | None]:
    return [start.first_call for start in starts.own]


def _calls_until_settled(starts: Starts) -> list[float | None]:
    # A start with fewer calls was made for another figure.
    full = [start for start in starts.own if len(start.calls) == len(starts.own[0].calls)]
    return [math.inf if start.settled_after is None else float(start.settled_after) for start in full]


def _peaks(starts: Starts) -> list[float | None]:
    on_host = starts.sides.plan.device.type == "cpu"
    return [peak.host if on_host else peak.device for peak in starts.memory]


@dataclass(frozen=True)
class _OfAStart:
    read: Callable[[Starts], list[float | None]]
    say: Callable[[float], str]
    calls: int = FIRST_CALLS


_OF_A_START = {
    "first_call": _OfAStart(_first_calls, seconds, calls=1),
    "warmup_calls": _OfAStart(_calls_until_settled, lambda n: "not settled" if math.isinf(n) else f"{n:.0f}"),
    "peak_memory": _OfAStart(_peaks, size),
}


def _started(limit: Limit, bench: Bench, clock: Callable[[], float] = time.monotonic) -> Judged:
    """Judge a figure that one start gives one value of: start again until one is within, or enough are over."""
    figure, starts = _OF_A_START[limit.name], bench.starts
    values = [value for value in figure.read(starts) if value is not None]
    if not values:
        return Judged(limit.name, limit.text, "", Standing.NOT_CHECKED, why=starts.memory[0].note or "it is not told")

    def judged(standing: Standing, why: str = "") -> Judged:
        return Judged(limit.name, limit.text, _range(values, figure.say), standing, why=why)

    if values[0] <= limit.value:
        return judged(Standing.WITHIN)
    begun = clock()
    while len(values) < SURE and not (len(values) >= 3 and min(values) > FAR * limit.value):
        if min(values) <= limit.value:
            return judged(Standing.INCONCLUSIVE, "some starts are over and some are not")
        if clock() - begun > LONGEST_S:
            return judged(Standing.INCONCLUSIVE, f"over in {len(values)} starts, which take too long to have more")
        starts.again(figure.calls)
        values = [value for value in figure.read(starts) if value is not None]
    if min(values) <= limit.value:
        return judged(Standing.INCONCLUSIVE, "some starts are over and some are not")
    return judged(Standing.OVER, f"in each of {len(values)} starts")


def _range(values: list[float], say: Callable[[float], str]) -> str:
    middle = say(sorted(values)[len(values) // 2])
    return middle if len(values) == 1 else f"{middle} ({say(min(values))} to {say(max(values))})"


# --- beside other processes ---


def _in_crowd(judged: Judged, bench: Bench) -> Judged:
    """What other processes can have caused is no excess of the program."""
    crowd, device = bench.crowd, bench.starts.sides.plan.device
    # A resident set is this process's own; what is free of an accelerator's memory, all processes take from.
    shared = judged.name in _MACHINES_OWN or (judged.name == "peak_memory" and device.type != "cpu")
    if not crowd or judged.standing is not Standing.OVER or not shared:
        return judged
    others = f"{crowd} other test process{'' if crowd == 1 else 'es'}"
    why = f"measured beside {others}, which may be to blame: run it with -n0"
    return replace(judged, standing=Standing.INCONCLUSIVE, why=why)
