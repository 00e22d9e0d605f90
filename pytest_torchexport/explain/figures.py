"""How far off a result is, in words: both values, their errors, the noise, and what tolerance would have passed it."""

from __future__ import annotations

import math
import re
import textwrap
from typing import TYPE_CHECKING

import torch

from pytest_torchexport.compare.limits import assert_close
from pytest_torchexport.explain.layout import indented, wrapped
from pytest_torchexport.outcome import Cause, Leaf

if TYPE_CHECKING:
    from collections.abc import Sequence

BORDERLINE = 30.0
"""Times the noise: up to here no more than a change of precision was seen to be behind a difference."""
OTHER_COMPUTATION = 1000.0
"""Times the noise: from here on no loss of precision was seen to explain it."""
_TINY = (1e-6, 1e-7)
"""A value and its error below which a difference matters to few, however large beside the value's own noise."""
_CLEARLY = 1.5
"""Factor between two errors from which on one counts as the larger."""
_OTHERS_SHOWN = 3
_VALUE = 80
"""Columns for a value; a structure of tensors may be long."""


def how_it_differs(leaf: Leaf) -> str:
    """The end of a headline: `output is 214x the rounding noise (limit 6x)`, `output is off by 0.3`."""
    if leaf.cause is not Cause.NUMERIC:
        return f"{leaf.path}: {leaf.reason.partition(';')[0]}"
    if leaf.rule == "exact" and leaf.elements == 1:
        return f"{leaf.path} is {leaf.actual}, in eager {leaf.expected}"
    if leaf.rule == "exact":
        return f"{leaf.path}: {_count(leaf)} differ"
    if leaf.score:
        return f"{leaf.path} is off by {times(leaf.score)} the rounding noise (limit {times(leaf.limit)})"
    return f"{leaf.path} is off by {leaf.max_abs:.3g} where {leaf.allowed:.2g} is allowed"


def told(leaves: Sequence[Leaf], *, bands: bool = True) -> list[str]:
    """The worst leaf in full, some others in a line each, the rest counted.

    Args:
        leaves: what differs, the worst first.
        bands: say what a difference of that size was seen to be; not where it is known better.
    """
    if not leaves:
        return []
    lines = _in_full(leaves[0], bands=bands)
    lines += [f"  also {_in_a_line(leaf)}" for leaf in leaves[1 : 1 + _OTHERS_SHOWN]]
    more = len(leaves) - 1 - _OTHERS_SHOWN
    return [*lines, f"  and {more} more"] if more > 0 else lines


def times(factor: float) -> str:
    """A multiple as one writes it: `1.3x`, `214x`, `33,500,000x`."""
    if not math.isfinite(factor):
        return "endless times"
    return f"{factor:.2g}x" if factor < 100 else f"{factor:,.0f}x" if factor < 1e6 else f"{factor:.2g}x"


def _in_full(leaf: Leaf, *, bands: bool) -> list[str]:
    lines = wrapped(f"{leaf.path}{_where(leaf)}", "  ", "      ")
    values = [("eager", leaf.expected, leaf.eager_error), ("exported", leaf.actual, leaf.exported_error)]
    values = [(who, textwrap.shorten(value, _VALUE, placeholder=" …"), error) for who, value, error in values]
    width = max(len(value) for _, value, _ in values)
    told = leaf.cause is Cause.SPECIAL_VALUE or not (leaf.expected or leaf.actual)
    for who, value, error in () if told else values:
        off = f"   {error:.2g} from float64" if leaf.reference and leaf.cause is Cause.NUMERIC else ""
        lines.append(f"      {who:<8}  {value:<{width if off else 0}}{off}".rstrip())
    if leaf.reference and leaf.cause is Cause.NUMERIC:
        closer = "   the export is closer to it than eager is" if is_better(leaf) else ""
        lines.append(f"      {'float64':<8}  {leaf.reference}{closer}")
    if leaf.cause is Cause.NUMERIC:
        lines += [line for text in (_judged(leaf, bands=bands), least_tolerance(leaf)) for line in indented(text)]
    return lines


def _where(leaf: Leaf, *, worst: bool = True) -> str:
    """Which elements differ; what is not a matter of elements says its reason."""
    if leaf.cause is not Cause.NUMERIC:
        return f": {leaf.reason}" + (f"; {leaf.where}" if leaf.where and leaf.where not in leaf.reason else "")
    several = worst and leaf.index and leaf.elements > 1 and not leaf.where.startswith("one element")
    at = f"; the worst is {list(leaf.index)}" if several else ""
    if leaf.where:
        return f": {leaf.where}{at}"
    if not leaf.mismatched or not leaf.elements:
        return f": {leaf.reason}" if leaf.reason else ""
    if leaf.elements == 1:
        return ""
    return f": {leaf.mismatched} of {leaf.elements} elements differ ({leaf.mismatched / leaf.elements:.1%}){at}"


def is_better(leaf: Leaf) -> bool:
    """Whether the exported program is closer to the float64 reference than eager is."""
    return bool(leaf.reference) and leaf.eager_error > _CLEARLY * leaf.exported_error


def is_tiny(leaf: Leaf) -> bool:
    """Whether a value next to zero is off by next to nothing: some runtimes cut off what a function tends to."""
    try:
        value = abs(float(leaf.expected))
    except ValueError:
        return False
    error = leaf.exported_error or leaf.max_abs
    return bool(leaf.score) and leaf.dtype != "float64" and value < _TINY[0] and leaf.max_abs < _TINY[1] > error


def _count(leaf: Leaf) -> str:
    """How many of the whole numbers or flags differ: by how much says nothing, if they are indices or labels."""
    return f"{leaf.mismatched} of {leaf.elements} {'flags' if leaf.dtype == 'bool' else 'whole numbers'}"


def _judged(leaf: Leaf, *, bands: bool) -> str:
    """By what it was judged, and how far beyond that it is."""
    if leaf.rule == "exact":
        runs = f"{leaf.draws} jittered run{'s' * (leaf.draws != 1)} of eager"
        rounding = f"; rounding, as in {runs}, does not explain it" if leaf.draws else ""
        return f"{_count(leaf)} differ: compared exactly{rounding}"
    by_hand = leaf.rule.removeprefix("set: ") if leaf.rule.startswith("set: ") else ""
    if not leaf.score:
        return f"off by {leaf.max_abs:.3g}, allowed {leaf.allowed:.3g}{_bound(leaf.rule, by_hand)}"
    draws = f"{leaf.draws} jittered run{'s' * (leaf.draws != 1)} of eager" if leaf.draws else "jittered runs of eager"
    source = f"{draws} and float64" if leaf.reference else draws
    limit = f"limit {times(leaf.limit)}" + (f", set by hand: {by_hand}" if by_hand else "")
    size = band(leaf.score) if bands and not is_tiny(leaf) else ""
    return f"{times(leaf.score)} the rounding noise there ({leaf.noise:.2g}, from {source}), {limit}{size}"


def _bound(rule: str, by_hand: str) -> str:
    """Where the bound comes from, unless it is the usual one."""
    if by_hand:
        return f": set by hand, {by_hand}"
    said = {
        "assert_close": "the defaults of assert_close, as no noise could be measured",
    }
    return f": {said.get(rule, rule)}" if rule not in ("", "calibrated") else ""


def band(score: float) -> str:
    """What a difference of that size was seen to be; nothing in between, where it may be either."""
    if score <= BORDERLINE:
        return ": as small as a change of precision or of a tiny constant"
    return ": another computation, not rounding" if score > OTHER_COMPUTATION else ""


def least_tolerance(leaf: Leaf) -> str:
    """The least tolerance that lets the leaf pass, and whether the defaults of torch.testing would; exact ones none."""
    if leaf.rule == "exact":
        return ""
    ways = [f"Tolerance(k={_up(leaf.score)})"] if leaf.score and math.isfinite(leaf.score) else []
    if leaf.least_atol and math.isfinite(leaf.least_atol):
        ways.append(f"Tolerance(rtol={_rtol(leaf.dtype):g}, atol={_up(leaf.least_atol)})")
    text = f"would pass only with {' or '.join(ways)}" if ways else ""
    if leaf.assert_close is None or leaf.rule == "assert_close":
        return text
    if not text:
        return f"{'passes' if leaf.assert_close else 'fails'} with assert_close's defaults"
    return f"{text}; {'also' if leaf.assert_close else 'not'} with assert_close's defaults"


def _up(number: float) -> str:
    """Rounded up to two digits, so that what is written down passes."""
    digits = 1 - math.floor(math.log10(number)) if number > 0 else 0
    return f"{math.ceil(round(number * 10.0**digits, 6)) / 10.0**digits:g}"


def _rtol(dtype: str) -> float:
    kind = getattr(torch, dtype, None)
    return assert_close(kind).rtol if isinstance(kind, torch.dtype) else 0.0


def _in_a_line(leaf: Leaf) -> str:
    if leaf.cause is Cause.NUMERIC and leaf.score and leaf.rule != "exact":
        return f"{leaf.path}{_where(leaf, worst=False)}; {times(leaf.score)} the noise"
    return f"{leaf.path}: {re.sub(r'; .*', '', leaf.reason)}"
