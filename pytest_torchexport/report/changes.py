"""What became of the ratios to eager since the baseline: the words for the trend of a document."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from pytest_torchexport.report.text import change, number

if TYPE_CHECKING:
    from collections.abc import Iterable

Entry = dict[str, Any]

CHANGED = ("slower", "faster")
_COMPARED = (*CHANGED, "steady", "unclear")


def changed(trend: Iterable[Entry]) -> list[Entry]:
    """The ratios that have changed, the largest change first."""
    found = [one for one in trend if one["change"] in CHANGED]
    return sorted(found, key=lambda one: -abs(number(one["effect"]) or 0.0))


def totals(trend: Iterable[Entry]) -> str:
    """`9 compared: 1 slower, 8 steady; 3 new`."""
    counted = Counter(one["change"] for one in trend)
    words = [f"{counted[one]} {one}" for one in _COMPARED if counted[one]]
    parts = [f"{sum(counted[one] for one in _COMPARED)} compared" + (f": {', '.join(words)}" if words else "")]
    if counted["new"]:
        parts.append(f"{counted['new']} new")
    if counted["unsettled"]:
        parts.append(f"{counted['unsettled']} not used, because the times did not settle")
    return "; ".join(parts)


def label(one: Entry) -> str:
    """The input that was timed; empty for the example."""
    return "" if one["input"] == "example" else str(one["input"])


def effect(one: Entry) -> str:
    """`+21 % (+15 % to +28 %)`."""
    return f"{change(one['effect'])} ({change(one['low'])} to {change(one['high'])})"
