"""Two programs timed in random turns, in one process: warmed up until their times settle, sampled until decided."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_torchexport.latency.clock import Clock, clock_of, collector_held
from pytest_torchexport.latency.settle import falls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from numpy.typing import NDArray

SECOND = 1_000_000_000
CAP_S = 5.0
"""Seconds after which a measurement ends undecided."""
LEAST_S = 0.1
"""Seconds that a measurement takes at least: with less, all of it may fall into one burst of other work."""
LEAST_PAIRS = 12
"""Pairs that are taken however long they take: with fewer no interval is narrow enough to decide anything."""
MOST_PAIRS = 100_000
GROWTH = 1.5
"""The samples are looked at each time that they have grown by this."""
WARMUP_S = 0.05
WARMUP_CAP_S = 3.0
LEAST_WARMUP = 3
TIMING_NS = 200_000
"""Calls are timed together until a timing takes about this long: a thousand times what reading the clock takes."""
MOST_TOGETHER = 1000
MOST_RESTORED = 10
"""The same for calls that change what the next one starts from: it is put back before each timing."""
BALANCED = 4
"""In as many pairs, each side has the first turn equally often."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two programs.

    Attributes:
        call: one call, its arguments bound.
        before: makes ready for a timing, of up to `MOST_RESTORED` calls: puts back what they change.
    """

    call: Callable[[], Any]
    before: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Samples:
    """Times of both sides, in the order of the pairs.

    Attributes:
        eager: seconds of one call, one number for each pair.
        exported: the same of the exported program.
        looks: how often the growing samples have been looked at, this time included: each look may err.
        batch: calls that were timed together, and share their time.
    """

    eager: NDArray[np.float64]
    exported: NDArray[np.float64]
    looks: int = 1
    batch: int = 1


@dataclass(frozen=True, slots=True)
class Timing:
    """What was timed on one input, and how.

    Attributes:
        label: of the input.
        samples: as they were last looked at.
        warmup: calls of each side that came before.
        settled: whether the times had settled after these.
        seconds: of the whole measurement.
    """

    label: str
    samples: Samples
    warmup: int
    settled: bool
    seconds: float


def time_pair(
    eager: Side,
    exported: Side,
    *,
    label: str,
    device: torch.device,
    seed: int,
    decided: Callable[[Samples], bool],
    single: bool = False,
    cap_s: float = CAP_S,
    clock: Clock | None = None,
) -> Timing:
    """Time two programs in random turns until a question about them is decided.

    Neighbouring timings see the same machine, whatever else it does, and neither side is always the first. Garbage is
    collected between timings only. Calls on an accelerator are timed one by one, each until its result is there: those
    of a batch would overlap.

    Args:
        eager: the one that is compared with.
        exported: the one that is judged.
        label: of the input that both are called on.
        device: where they run.
        seed: of the turns.
        decided: looks at growing samples; True ends the measurement.
        single: time each call by itself, for percentiles of single calls.
        cap_s: seconds after which it ends undecided, once there are 12 pairs.
        clock: instead of the device's own.

    Raises:
        Exception: whatever a call raises.
    """
    clock = clock or clock_of(device)
    rng = random.Random(seed)  # noqa: S311 no secrets
    with collector_held() as collect:
        start = clock()
        warm = _warm_up(eager, exported, _turns(rng), clock, collect)
        most = MOST_RESTORED if eager.before or exported.before else MOST_TOGETHER
        together = 1 if single or device.type != "cpu" else _batch(warm, most)
        samples = _sample(eager, exported, _turns(rng), clock, collect, decided, together, cap_s)
        seconds = (clock() - start) / SECOND
    return Timing(label, samples, len(warm.eager), warm.settled, seconds)


def first_calls(
    side: Side, device: torch.device, count: int = 20, *, cap_s: float = 60.0, clock: Clock | None = None
) -> tuple[float, ...]:
    """Seconds of each of the first calls of a program, each until its result is there.

    Fewer than asked for where they take longer than `cap_s` together.

    Raises:
        Exception: whatever a call raises.
    """
    clock = clock or clock_of(device)
    times: list[int] = []
    with collector_held() as collect:
        while len(times) < count and sum(times) < cap_s * SECOND:
            times.append(_timed(side, 1, clock))
            collect()
    return tuple(time / SECOND for time in times)


@dataclass
class _Times:
    """Nanoseconds of each side's timings."""

    eager: list[int]
    exported: list[int]
    settled: bool = False


def _turns(rng: random.Random) -> Iterator[bool]:
    """Whether the exported program has the first turn, for one pair after the other."""
    while True:
        turns = [True, False] * (BALANCED // 2)
        rng.shuffle(turns)
        yield from turns


def _timed(side: Side, together: int, clock: Clock) -> int:
    """Nanoseconds of some calls; one at least, so that quotients and logarithms exist on a coarse clock."""
    if side.before is not None:
        side.before()
    call, calls = side.call, itertools.repeat(None, together)
    start = clock()
    for _ in calls:
        call()
    return max(clock() - start, 1)


def _pair(eager: Side, exported: Side, turns: Iterator[bool], together: int, clock: Clock, times: _Times) -> None:
    exported_first = next(turns)
    if exported_first:
        times.exported.append(_timed(exported, together, clock))
    times.eager.append(_timed(eager, together, clock))
    if not exported_first:
        times.exported.append(_timed(exported, together, clock))


def _warm_up(eager: Side, exported: Side, turns: Iterator[bool], clock: Clock, collect: Callable[[], None]) -> _Times:
    """Call both in turns until neither becomes faster, or it takes too long."""
    times, start, check_at = _Times([], []), clock(), LEAST_WARMUP
    while True:
        _pair(eager, exported, turns, 1, clock, times)
        collect()
        calls, elapsed = len(times.eager), clock() - start
        over = calls >= LEAST_WARMUP and elapsed >= WARMUP_CAP_S * SECOND
        if not over and (calls < check_at or elapsed < WARMUP_S * SECOND):
            continue
        times.settled = not falls(times.eager) and not falls(times.exported)
        if times.settled or over:
            return times
        check_at = math.ceil(GROWTH * calls)


def _batch(warm: _Times, most: int) -> int:
    """How many calls are timed together."""
    fastest = min(float(np.median(side[-max(1, len(side) // 3) :])) for side in (warm.eager, warm.exported))
    return min(math.ceil(TIMING_NS / fastest), most)


def _sample(
    eager: Side,
    exported: Side,
    turns: Iterator[bool],
    clock: Clock,
    collect: Callable[[], None],
    decided: Callable[[Samples], bool],
    together: int,
    cap_s: float,
) -> Samples:
    """Take pairs and look at them as they become more, until it is decided or the time is over."""
    times, start, look_at, looks = _Times([], []), clock(), LEAST_PAIRS, 0
    while True:
        for _ in range(BALANCED):
            _pair(eager, exported, turns, together, clock, times)
            collect()
        pairs, elapsed = len(times.eager), clock() - start
        over = pairs >= LEAST_PAIRS and (elapsed >= cap_s * SECOND or pairs >= MOST_PAIRS)
        if not over and (pairs < look_at or elapsed < LEAST_S * SECOND):
            continue
        looks += 1
        scale = SECOND * together
        samples = Samples(np.array(times.eager) / scale, np.array(times.exported) / scale, looks, together)
        if over or decided(samples):
            return samples
        look_at = math.ceil(GROWTH * pairs)
