"""Which differences between two runs are changes."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter

import pytest

from pytest_torchexport.latency.trend import Change, Entry, compare


def entry(ratio: float, half: float = 0.01, **conditions: str) -> Entry:
    """A ratio with an interval of plus and minus `half`, as a part of it."""
    return Entry(ratio, ratio / (1 + half), ratio * (1 + half), 100, "2026-01-31", conditions)


@pytest.mark.parametrize(
    ("then", "now", "change"),
    [
        (entry(0.61), entry(0.74), Change.SLOWER),
        (entry(0.74), entry(0.61), Change.FASTER),
        (entry(1.0), entry(1.0), Change.STEADY),
        (entry(1.0, 0.001), entry(1.04, 0.001), Change.STEADY),  # sure, and too small to matter
        (entry(1.04, 0.001), entry(1.0, 0.001), Change.STEADY),
        (entry(1.0, 0.001), entry(1.06, 0.001), Change.SLOWER),
        (entry(1.0, 0.02), entry(1.06, 0.02), Change.STEADY),  # a change, perhaps below the minimum
        (entry(1.06, 0.02), entry(1.0, 0.02), Change.STEADY),
        (entry(1.0, 0.15), entry(1.12, 0.15), Change.UNCLEAR),  # large, and not sure
        (entry(1.12, 0.15), entry(1.0, 0.15), Change.UNCLEAR),
        (entry(1.0, 0.3), entry(1.0, 0.3), Change.UNCLEAR),  # no sign of a change, and room for one
    ],
)
def test_change(then: Entry, now: Entry, change: Change) -> None:
    assert compare(then, now).change is change


def test_the_interval_is_that_of_the_quotient() -> None:
    found = compare(entry(0.5, 0.03), entry(1.0, 0.04))
    assert found.effect == pytest.approx(1.0)
    assert found.low == pytest.approx(2 * math.exp(-math.hypot(math.log(1.03), math.log(1.04))) - 1)
    assert found.high == pytest.approx(2 * math.exp(math.hypot(math.log(1.03), math.log(1.04))) - 1)


def test_each_end_takes_the_side_that_bounds_it() -> None:
    """Upwards: how much higher it may be now, how much lower it may have been then."""
    exact = Entry(1.0, 1.0, 1.0, 9, "")
    assert compare(exact, Entry(1.0, 0.8, 1.1, 9, "")).high == pytest.approx(0.1)
    assert compare(exact, Entry(1.0, 0.8, 1.1, 9, "")).low == pytest.approx(-0.2)
    assert compare(Entry(1.0, 0.8, 1.1, 9, ""), exact).high == pytest.approx(0.25)
    assert compare(Entry(1.0, 0.8, 1.1, 9, ""), exact).low == pytest.approx(1 / 1.1 - 1)


def test_an_estimate_outside_of_its_interval() -> None:
    """A percentile interval of a bootstrap need not hold the estimate."""
    exact, odd = Entry(1.0, 1.0, 1.0, 9, ""), Entry(1.0, 1.2, 1.3, 9, "")
    assert (compare(exact, odd).low, compare(odd, exact).high) == (0.0, 0.0)


def _measured(truth: float, generator: random.Random, pairs: int = 60, noise: float = 0.1) -> Entry:
    """A seeded measurement: the mean of noisy logarithms, its interval by the normal approximation."""
    logs = [generator.gauss(math.log(truth), noise) for _ in range(pairs)]
    mean, error = statistics.fmean(logs), 1.96 * statistics.stdev(logs) / math.sqrt(pairs)
    return Entry(math.exp(mean), math.exp(mean - error), math.exp(mean + error), pairs, "")


def _changes(factor: float, runs: int = 400) -> Counter[Change]:
    generator = random.Random(0)
    found = [compare(_measured(0.8, generator), _measured(0.8 * factor, generator)) for _ in range(runs)]
    return Counter(one.change for one in found)


def test_level_and_power() -> None:
    """Noise of 10 %, 60 pairs: each interval is ±2.6 %, that of the change ±3.6 %."""
    for factor in (1.0, 1.05):
        found = _changes(factor)
        assert found[Change.SLOWER] + found[Change.FASTER] <= 14, found  # 2.5 % of 400 is 10 in the worst case
    assert _changes(1.15)[Change.SLOWER] >= 396
    assert _changes(1 / 1.15)[Change.FASTER] >= 396


def test_the_interval_covers_the_truth() -> None:
    generator = random.Random(1)
    found = [compare(_measured(0.8, generator), _measured(0.96, generator, noise=0.2)) for _ in range(400)]
    covered = sum(one.low <= 0.2 <= one.high for one in found)
    assert 364 <= covered <= 394  # 95 % of 400 is 380, four standard deviations are 17


def test_conditions_that_changed_are_named() -> None:
    then = entry(1.0, torch="2.12.0", threads="4", python="3.11")
    now = entry(1.0, torch="2.13.0", threads="4", onnxruntime="1.22")
    assert compare(then, now).conditions == ("torch 2.12.0 -> 2.13.0",)


def test_to_plain_data_and_back() -> None:
    one = entry(1.0, torch="2.13.0")
    assert Entry.from_dict(one.to_dict()) == one


@pytest.mark.parametrize(
    "wrong",
    [
        *({"ratio": 0.0}, {"ratio": -1.0}, {"ratio": math.nan}, {"ratio": "1.2"}, {"high": math.inf}),
        *({"low": 1.2, "high": 0.9}, {"conditions": []}),
    ],
    ids=repr,
)
def test_damaged_entries_are_no_entries(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"positive|interval|entry has"):
        Entry.from_dict(entry(1.0).to_dict() | wrong)


@pytest.mark.parametrize("data", [{}, {"ratio": 1.0}, [], None, 1.0])
def test_something_else_is_no_entry(data: object) -> None:
    with pytest.raises(ValueError, match="an entry has ratio, low"):
        Entry.from_dict(data)
