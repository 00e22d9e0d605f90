"""The pictures of a report, as positions and words; the template makes SVG of them.

Each picture has its plot on the left and says its numbers beside it, and all pictures of one kind in a test share their
scale, so that the backends can be compared. What is drawn is logarithmic, unless it says otherwise.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pytest_torchexport.measured import digits, figure
from pytest_torchexport.report.scales import LogScale, Tick
from pytest_torchexport.report.text import number, seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Numbers = dict[str, Any]

HEIGHT = 44.0
"""Of every picture."""
_MIDDLE = 22.0
_TALL = 17.0
LATENCY, RATIO, ERROR, CALLS, STAGES = 190.0, 84.0, 84.0, 132.0, 78.0
"""Widths of the plots, without their words."""
STAGE_SHADES = ("export", "compare", "latency")
"""Stages with a shade of their own; the others share one."""
_EDGE = 4.0
_CELLS = 56
"""Steps of a distribution's outline."""
_OUTERMOST = 1
"""The first and the last percentile are left out of the scale: one slow call would make all others a line."""
_SEARCHED = 3
_ERRORS = LogScale(1e-3, 1e3, _EDGE, ERROR - _EDGE)
"""Errors as multiples of what is allowed; the same for a whole report."""


# --- latency ---


@dataclass(frozen=True, slots=True)
class Side:
    """The distribution of one side's times: its outline, its median with the interval, and what is said of it."""

    path: str
    median: float
    low: float
    high: float
    text: str
    more: str


@dataclass(frozen=True, slots=True)
class Latency:
    """Eager above the line, the exported program below it."""

    eager: Side
    exported: Side
    title: str


def latency_scale(paired: Iterable[Numbers]) -> LogScale | None:
    """The scale of the times of all these measurements."""
    values: list[float | None] = []
    for one in paired:
        for side in (one["eager"], one["exported"]):
            quantiles = side.get("quantiles") or []
            values += [number(side[key]) for key in ("median", "low", "high")]
            values += [number(value) for value in quantiles[_OUTERMOST : len(quantiles) - _OUTERMOST]]
    return LogScale.over(values, _EDGE, LATENCY - _EDGE)


def latency(one: Numbers, scale: LogScale) -> Latency:
    """Both distributions on one input; a side has no outline where its quantiles are not known."""
    eager, exported = (_side(one[key], scale, sign) for key, sign in (("eager", -1.0), ("exported", 1.0)))
    title = (
        f"Time of a call on {one['input']}: eager {eager.text} ({eager.more}), exported {exported.text} "
        f"({exported.more}); {one['pairs']} pairs in turns"
    )
    return Latency(eager, exported, title)


def _side(found: Numbers, scale: LogScale, sign: float) -> Side:
    median, low, high = (number(found[key]) or scale.low for key in ("median", "low", "high"))
    quantiles = [number(value) for value in found.get("quantiles") or ()]
    known = [value for value in quantiles if value is not None and math.isfinite(value) and value > 0]
    outline = _outline(known, scale, sign) if len(known) == len(quantiles) >= _SEARCHED else ""
    p99 = f", p99 {seconds(found['p99'])}" if found.get("p99") is not None else ""
    more = f"{seconds(found['low'])} to {seconds(found['high'])}{p99}"
    return Side(outline, scale.at(median), scale.at(low), scale.at(high), seconds(found["median"]), more)


def _outline(quantiles: Sequence[float], scale: LogScale, sign: float) -> str:
    """The outline of a density over the logarithm of the time, from equally spaced quantiles; its peak is 1."""
    step = math.log(scale.high / scale.low) / _CELLS
    edges = [math.log(scale.low) + step * place for place in range(_CELLS + 1)]
    points = [math.log(value) for value in quantiles]
    below = [_part_below(edge, points) for edge in edges]
    mass = [after - before for before, after in pairwise(below)]
    for _ in range(2):
        padded = [0.0, *mass, 0.0]
        mass = [
            (before + 2 * here + after) / 4 for before, here, after in zip(padded, padded[1:], padded[2:], strict=False)
        ]
    peak = max(mass)
    if not peak > 0:
        return ""
    width = (scale.end - scale.start) / _CELLS
    drawn = [place for place, value in enumerate(mass) if value > peak / 200]
    first, last = drawn[0], drawn[-1]
    steps = "".join(
        f"L{scale.start + (place + 0.5) * width:.1f} {_MIDDLE + sign * (1.5 + _TALL * mass[place] / peak):.1f}"
        for place in range(first, last + 1)
    )
    base = _MIDDLE + sign * 1.5
    left, right = scale.start + first * width, scale.start + (last + 1) * width
    return f"M{left:.1f} {base:.1f}{steps}L{right:.1f} {base:.1f}Z"


def _part_below(edge: float, points: Sequence[float]) -> float:
    """The part of the distribution below a value, by its quantiles in rising order."""
    place = bisect_right(points, edge)
    if place in (0, len(points)):
        return float(place > 0)
    before, after = points[place - 1], points[place]
    return (place - 1 + (edge - before) / (after - before if after > before else 1.0)) / (len(points) - 1)


# --- ratio ---


@dataclass(frozen=True, slots=True)
class Ratio:
    """Exported / eager with its interval; `one` is where both are as fast, `budget` what is allowed."""

    at: float
    low: float
    high: float
    one: float
    budget: float | None
    text: str
    more: str
    over: bool
    title: str


def budget_of(judged: Iterable[Numbers], label: str) -> float | None:
    """The ratio that the budget allows on an input; None where none is set."""
    for one in judged:
        if one["name"] == "ratio" and one["input"] in ("", label):
            return number(str(one["budget"]).strip().removesuffix("x"))
    return None


def ratio_scale(values: Iterable[float | None]) -> LogScale | None:
    """The scale of ratios; it holds 1."""
    found = [value for value in values if value is not None]
    return LogScale.over([1.0, *found], _EDGE, RATIO - _EDGE) if found else None


def ratio(one: Numbers, budget: float | None, scale: LogScale) -> Ratio:
    """The ratio on one input."""
    value, low, high = (number(one[key]) or scale.low for key in ("ratio", "low", "high"))
    more = f"{digits(low)} to {digits(high)}"
    allowed = f"; the budget allows {times(budget, figure)}" if budget is not None else "; no budget"
    return Ratio(
        scale.at(value),
        scale.at(low),
        scale.at(high),
        scale.at(1.0),
        scale.at(budget) if budget else None,
        times(value),
        more,
        budget is not None and low > budget,
        f"Exported / eager: {times(value)}, interval {more}{allowed}",
    )


# --- first calls ---


@dataclass(frozen=True, slots=True)
class Calls:
    """The times of the first calls as dots; `settled` is where they are as fast as they get."""

    dots: str
    variant: str
    settled: float | None
    text: str
    more: str
    beside: str
    title: str


def calls_scale(starts: Iterable[Numbers]) -> LogScale | None:
    """The scale of the times of first calls; it rises upwards."""
    values = [number(value) for start in starts for value in start["calls"]]
    return LogScale.over(values, HEIGHT - _EDGE, _EDGE)


def calls(starts: Sequence[Numbers], scale: LogScale) -> Calls:
    """The first calls of the backend's own start, and of its first variant beside it."""
    own = starts[0]
    apart = (CALLS - 2 * _EDGE) / max(1, *(len(start["calls"]) - 1 for start in starts))
    settled = own["settled_after"]
    first = own["calls"][0] if own["calls"] else None
    more = f"settles after {settled}" if settled is not None else f"not settled in {len(own['calls'])}"
    title = "; ".join(
        f"{start['variant'] or 'first calls'}: {', '.join(seconds(value) for value in start['calls'])}"
        for start in starts[:2]
    )
    return Calls(
        _dots(own, scale, apart),
        _dots(starts[1], scale, apart, dash=4.0) if len(starts) > 1 else "",
        round(_EDGE + (settled - 0.5) * apart, 1) if settled is not None else None,
        f"1st {seconds(first)}",
        more,
        str(starts[1]["variant"]) if len(starts) > 1 else "",
        title,
    )


def _dots(start: Numbers, scale: LogScale, apart: float, *, dash: float = 0.0) -> str:
    """A path of points: with round caps, each is a dot; or of dashes."""
    places = [(place, number(value)) for place, value in enumerate(start["calls"])]
    return "".join(
        f"M{_EDGE + place * apart - dash / 2:.1f} {scale.at(value):.1f}h{dash:.0f}"
        for place, value in places
        if value is not None
    )


# --- error against limit ---


@dataclass(frozen=True, slots=True)
class Error:
    """The worst error as a multiple of what is allowed: a bar up to it; `limit` is where 1 is."""

    at: float
    limit: float
    beyond: bool
    text: str
    more: str
    title: str


def error(leaf: Numbers | None) -> Error | None:
    """The error of one leaf; None where nothing was compared."""
    if not leaf:
        return None
    part = excess(leaf)
    limit = _ERRORS.at(1.0)
    path = leaf.get("path", "")
    if part == 0:
        return Error(_EDGE, limit, beyond=False, text="identical", more="", title=f"{path}: identical to eager")
    if math.isinf(part):
        cause = leaf.get("cause") or "differs"
        words = f"{path}: {leaf.get('reason') or cause}"
        return Error(_ERRORS.end, limit, beyond=True, text=str(cause), more="no number", title=words)
    score, most = number(leaf.get("score")), number(leaf.get("limit"))
    if score and most:
        more, title = (
            f"{figure(score)} of {figure(most)}",
            f"{path}: {figure(score)} times the noise, limit {figure(most)}",
        )
    else:
        worst, allowed = number(leaf.get("max_abs")) or 0.0, number(leaf.get("allowed")) or 0.0
        more = f"{figure(worst)} of {figure(allowed)}"
        title = f"{path}: off by {figure(worst)}, allowed {figure(allowed)}"
    return Error(_ERRORS.at(part), limit, part > _ERRORS.high, f"{figure(part)} x limit", more, title)


def excess(leaf: Numbers) -> float:
    """The error of a leaf as a multiple of what is allowed; infinite for one that differs in kind."""
    worst = number(leaf.get("max_abs")) or 0.0
    if not leaf["agrees"] and (leaf.get("cause") != "numeric" or math.isnan(worst)):
        return math.inf
    score, limit = number(leaf.get("score")) or 0.0, number(leaf.get("limit")) or 0.0
    if limit:
        return math.inf if math.isnan(score) else score / limit
    allowed = number(leaf.get("allowed")) or 0.0
    if not allowed:
        return 0.0 if leaf["agrees"] else math.inf
    return worst / allowed


def error_ticks() -> tuple[Tick, ...]:
    """The axis of all errors."""
    return tuple(Tick(_ERRORS.at(value), label) for value, label in ((1e-3, ".001"), (1.0, "limit"), (1e3, "1000")))


# --- stages ---


@dataclass(frozen=True, slots=True)
class Stages:
    """Seconds by stage as pieces of a bar (linear): each with its place, its width, its name and its shade."""

    pieces: tuple[tuple[float, float, str, int], ...]
    text: str
    more: str
    title: str


def stages(durations: Numbers, longest: float) -> Stages | None:
    """What a check spent its time on; `longest` is the time of the test's longest check, in seconds."""
    spent = {name: number(value) or 0.0 for name, value in durations.items()}
    total = sum(spent.values())
    if not total or not longest:
        return None
    pieces, at = [], 0.0
    for name, value in spent.items():
        wide = STAGES * value / longest
        if wide >= 0.5:
            shade = STAGE_SHADES.index(name) if name in STAGE_SHADES else len(STAGE_SHADES)
            pieces.append((round(at, 1), round(max(wide - 0.6, 0.4), 1), name, shade))
        at += wide
    most = max(spent, key=lambda name: spent[name])
    title = ", ".join(f"{name} {seconds(value)}" for name, value in spent.items())
    return Stages(tuple(pieces), seconds(total), f"{most} {spent[most] / total:.0%}", title)
