"""Where a quantile of a series lies, when neighbouring values resemble one another.

A quantile lies between two values of the series that a binomial distribution names, exactly and for any noise: half of
all independent values lie above their median. Timings are not independent. Load comes in bursts, so the number of
values above the median varies more, as if there were fewer of them. By how much, the moving-block bootstrap says
(Künsch, Annals of Statistics 17, 1989): whole blocks are drawn, with their inner likeness. Of a mean, and the share of
values above the median is one, its variance is known without drawing: that of the means of all blocks.

Percentiles of the bootstrapped median itself were the first choice. From 12 pairs of independent noise, their interval
for 99 % left the truth out 6 times in 100, from 24 pairs 4 times, from 96 still 1 (tests/latency/test_interval.py holds
what is used to 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEW = 48
"""Below, there are too few blocks to know how well their variance is known."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A number and where it lies; an end is infinite where the series is too short to tell."""

    value: float
    low: float
    high: float


def quantile(series: NDArray[np.float64], share: float, error: float) -> Interval:
    """A quantile of what a series is drawn from.

    Args:
        series: values in the order in which they came.
        share: 0.5 for the median, 0.99 for the 99th percentile.
        error: how often the quantile may lie below the lower end, and how often above the upper one.
    """
    ordered = np.sort(series)
    length = len(series)
    value = float(np.quantile(ordered, share))
    independent = max(1, int(length / likeness(series, share, error)))
    below = _rank(independent, share, error)
    above = _rank(independent, 1 - share, error)
    # The ranks belong to as many values as are independent.
    low = -math.inf if below is None else float(ordered[below * length // independent])
    high = math.inf if above is None else float(ordered[length - 1 - above * length // independent])
    return Interval(value, min(low, value), max(high, value))


def likeness(series: NDArray[np.float64], share: float, error: float) -> float:
    """By how much the share of values above a quantile varies more than that of independent values; at least 1.

    Blocks grow with the root of the length, faster than the cube root that is best for the mean square error: what is
    longer than a block is not seen.
    """
    length = len(series)
    block = max(1, round(math.sqrt(length)))
    above = series > np.quantile(series, share)
    variance = float(above.var())
    if variance == 0:
        return 1.0
    sums = np.concatenate([[0.0], np.cumsum(above - above.mean())])
    means = (sums[block:] - sums[:-block]) / block
    ratio = float((means**2).mean()) * block / (1 - block / length) / variance if block < length else 1.0
    if ratio <= 1:
        return 1.0
    # Only what goes beyond independence is uncertain: the binomial ranks have the rest exactly.
    return 1 + (ratio - 1) * (_widening(length / block - 1, error) if length >= FEW else 1.0)


def needed(series: NDArray[np.float64], share: float, error: float) -> int:
    """How many values it takes until there is an upper end of the quantile's interval, if the noise stays as it is."""
    return math.ceil(math.log(error) / math.log(share) * likeness(series, share, error))


def _rank(count: int, share: float, error: float) -> int | None:
    """The largest rank, from 0, at which a sorted value is below the quantile but for the error; None if none is."""
    upto = np.arange(1, count + 1)
    steps = np.log((count - upto + 1) / upto) + math.log(share / (1 - share))
    logs = count * math.log1p(-share) + np.concatenate([[0.0], np.cumsum(steps)])
    rank = int(np.searchsorted(np.cumsum(np.exp(logs)), error, "right")) - 1
    return rank if rank >= 0 else None


def _widening(freedom: float, error: float) -> float:
    """The square of Student's t over that of the normal deviate: the variance is itself an estimate."""
    squared = NormalDist().inv_cdf(error) ** 2
    # Within 3 % of t from three degrees of freedom on.
    inner = squared * (freedom - 5 / 6) / (freedom - 2 / 3 + 1 / (10 * freedom)) ** 2
    return freedom * math.expm1(inner) / squared
