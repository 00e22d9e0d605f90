"""Whether a program keeps its budget: over it, within it, or not to be told.

A pair of neighbouring timings gives one logarithm of exported / eager. What the machine does for longer than a pair, a
change of its frequency for one, is in both and cancels. The typical ratio is the median of these, and a program is over
its budget only if the lower end of the median's interval is (`interval.py`). The samples grow until that is decided. A
false alarm may come at each look, so each may only err a little: look k has 1 / (k (k + 1)) of the whole error, which
sums to it however many there are (an alpha-spending function; Lan and DeMets, Biometrika 70, 1983).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pytest_torchexport.latency.interval import Interval, needed, quantile
from pytest_torchexport.measured import Paired, Standing, Times

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from pytest_torchexport.latency.budget import Limit
    from pytest_torchexport.latency.measure import Samples, Timing

ERROR = 0.005
"""How often, over all looks, a program exactly at its budget may be called over it, and how often within."""
PRECISE = 0.02
"""Half of the interval of a ratio that is good enough to be shown, as a part of it."""
SEEN_P99 = 299
"""Calls from which a 99th percentile is shown: with fewer, the slowest is below it once in 20 times."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How one figure stands to its budget.

    Attributes:
        standing: over, within or inconclusive.
        figure: what was measured.
        why: the reason where it is inconclusive.
    """

    standing: Standing
    figure: Interval
    why: str = ""

    @property
    def final(self) -> bool:
        """Whether more samples are of no use."""
        return self.standing is not Standing.INCONCLUSIVE


def judge_ratio(samples: Samples, budget: float) -> Decision:
    """The typical quotient exported / eager against a budget."""
    return _stand(_ratio(samples), budget, f"{len(samples.eager)} pairs do not tell on which side of the budget it is")


def judge_median(samples: Samples, budget: float) -> Decision:
    """The median of the exported program's times against a budget in seconds."""
    figure = quantile(samples.exported, 0.5, _error(samples))
    return _stand(figure, budget, f"{len(samples.exported)} timings do not tell on which side of the budget it is")


def judge_p99(samples: Samples, budget: float) -> Decision:
    """The 99th percentile of the exported program's calls against a budget in seconds.

    Raises:
        ValueError: calls were timed together, so that no call's own time is known.
    """
    if samples.batch != 1:
        msg = f"no percentile of calls can be told from {samples.batch} calls that share their time"
        raise ValueError(msg)
    figure, calls = quantile(samples.exported, 0.99, _error(samples)), len(samples.exported)
    why = f"{calls} calls do not tell on which side of the budget it is"
    if math.isinf(figure.high):
        least = needed(samples.exported, 0.99, _error(samples))
        why = f"{calls} calls are too few for a 99th percentile, it would take about {_rounded(least)}"
    return _stand(figure, budget, why)


JUDGES: dict[str, Callable[[Samples, float], Decision]] = {
    "ratio": judge_ratio,
    "median": judge_median,
    "p99": judge_p99,
}
"""The figures of a budget that are read from samples."""


def decided_by(limits: Iterable[Limit], *, precisely: bool = False) -> Callable[[Samples], bool]:
    """Whether samples decide all limits of a budget; where it limits no time, whether they show a precise ratio.

    Args:
        limits: of the budget.
        precisely: whether the ratio has to be precise as well where it limits a time.
    """
    timed = [limit for limit in limits if limit.name in JUDGES]

    def decided(samples: Samples) -> bool:
        if (precisely or not timed) and not precise(samples):
            return False
        return all(JUDGES[limit.name](samples, limit.value).final for limit in timed)

    return decided


def precise(samples: Samples) -> bool:
    """Whether the ratio is known well enough to be shown."""
    figure = _ratio(samples)
    return math.log(figure.high / figure.low) / 2 <= PRECISE if figure.low > 0 else False


def summarise(timing: Timing) -> Paired:
    """What is kept of a timing.

    Its intervals are those that decide; an end that too few timings leave open is the most extreme one of these.
    """
    samples, figure, seen = timing.samples, _ratio(timing.samples), timing.samples.exported / timing.samples.eager
    return Paired(
        input=timing.label,
        eager=_times(samples.eager, samples),
        exported=_times(samples.exported, samples),
        ratio=figure.value,
        low=max(figure.low, float(seen.min())),
        high=min(figure.high, float(seen.max())),
        pairs=len(samples.eager),
        batch=samples.batch,
        warmup=timing.warmup,
        settled=timing.settled,
        seconds=timing.seconds,
    )


def _ratio(samples: Samples) -> Interval:
    logs = quantile(np.log(samples.exported / samples.eager), 0.5, _error(samples))
    return Interval(math.exp(logs.value), math.exp(logs.low), math.exp(logs.high))


def _error(samples: Samples) -> float:
    """What this look may add to the error on each side."""
    return ERROR / (samples.looks * (samples.looks + 1))


def _stand(figure: Interval, budget: float, why: str) -> Decision:
    if figure.low > budget:
        return Decision(Standing.OVER, figure)
    if figure.high < budget:
        return Decision(Standing.WITHIN, figure)
    return Decision(Standing.INCONCLUSIVE, figure, why)


def _times(times: NDArray[np.float64], samples: Samples) -> Times:
    median = quantile(times, 0.5, _error(samples))
    quantiles = np.quantile(times, np.linspace(0, 1, 101))
    calls = len(times) * samples.batch
    return Times(
        median=median.value,
        low=max(median.low, float(quantiles[0])),
        high=min(median.high, float(quantiles[100])),
        p99=float(quantiles[99]) if samples.batch == 1 and calls >= SEEN_P99 else None,
        calls=calls,
        noise=float(quantiles[75] - quantiles[25]) / 2 / median.value,
        quantiles=tuple(quantiles.tolist()),
    )


def _rounded(count: int) -> int:
    """A number with two digits that count."""
    step: int = 10 ** max(0, len(str(count)) - 2)
    return math.ceil(count / step) * step
