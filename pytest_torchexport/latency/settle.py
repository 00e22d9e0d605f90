"""Whether times have settled: after a cold start, and while both sides are warmed up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

RUN = 5
"""Calls in a row that a settled series begins with."""
LATE = 0.1
"""The part of the calls after these that may still be slow: interrupts are no warm-up."""
FALL = 0.05
"""Times that fall by less than this have settled, where more of them are coming."""
CLEAR_FALL = 0.1
"""The same for a short series that is all there is: noise must not look like a slow start."""
SHORT = 24
"""Times that are compared by halves."""


def settled_after(times: Sequence[float]) -> int | None:
    """The number of calls after which the times of a series have settled.

    Settled is what takes about as long as the last calls do. A slow call among settled ones is noise; among the first
    ones it is not, since the second call is the slow one where a program is optimised for what the first one saw.

    Args:
        times: of the first calls of a program, in order, in any unit.

    Returns:
        How many calls came before the settled ones; None if the times still fall at the end, or are slow again and
        again.
    """
    series = np.asarray(times, dtype=float)
    if len(series) < RUN:
        return None
    last = series[-max(RUN, len(series) // 4) :]
    level, upper = (float(one) for one in np.quantile(last, (0.25, 0.75)))
    # Where the times jump between two levels, both are settled; what takes twice as long never is.
    limit = level + min(max(3 * (upper - level), 0.25 * level), level)
    slow = series > limit
    for start in range(len(series) - RUN + 1):
        rest = len(series) - start
        few_slow = not slow[start : start + RUN].any() and slow[start:].sum() <= max(1, LATE * rest)
        if few_slow and not falls(series[start:], by=CLEAR_FALL):
            return start
    return None


def falls(times: Sequence[float] | NDArray[np.float64], *, by: float = FALL) -> bool:
    """Whether the times still fall at the end of a series: by a relevant part, and by more than noise explains.

    The last window is compared with the one before it, by their medians and by the rank sum of Mann and Whitney.

    Args:
        times: in order.
        by: the part by which times have to fall to be called falling.
    """
    series = np.asarray(times, dtype=float)
    # A short series cannot spare its beginning, which a longer one has as the first of three windows.
    width = len(series) // (2 if len(series) < SHORT else 3)
    if width == 0:
        return True
    before, last = series[-2 * width : -width], series[-width:]
    if np.median(before) <= (1 + by) * np.median(last):
        return False
    order = np.sort(last)
    slower = (np.searchsorted(order, before, "left") + np.searchsorted(order, before, "right")).mean() / (2 * width)
    deviation = ((2 * width + 1) / 12) ** 0.5 / width
    return bool(slower >= min(1.0, 0.5 + 2 * deviation))
