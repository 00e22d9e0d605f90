"""The pictures' geometry: what is where on its axis, and that the backends of a test share their axes."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchexport.outcome import Cause, Leaf
from pytest_torchexport.report import drawings
from pytest_torchexport.report.page import make_page
from pytest_torchexport.report.scales import LogScale

if TYPE_CHECKING:
    from collections.abc import Callable

    Make = Callable[..., dict[str, Any]]


def test_a_logarithmic_scale() -> None:
    scale = LogScale(1.0, 100.0, 0.0, 50.0)
    assert [scale.at(value) for value in (1.0, 10.0, 100.0)] == [0.0, 25.0, 50.0]
    assert [scale.at(value) for value in (0.0, -1.0, 1e9, math.inf, math.nan)] == [0.0, 0.0, 50.0, 50.0, 0.0]


def test_a_scale_holds_all_values_and_has_a_width() -> None:
    assert LogScale.over([None, math.nan, math.inf, 0.0, -1.0], 0, 1) is None
    one = LogScale.over([5.0], 0, 1)
    assert one is not None
    assert one.low < 5.0 < one.high
    wide = LogScale.over([1e-6, 3.0], 0, 1)
    assert wide is not None
    assert wide.low < 1e-6 < 3.0 < wide.high


@pytest.mark.parametrize("high", [1.3, 4.0, 30.0, 1e3, 1e7, 1e14])
def test_labels_have_room(high: float) -> None:
    scale = LogScale(0.9, high, 0.0, 180.0)
    ticks = scale.ticks(str, apart=40.0)
    places = [tick.at for tick in ticks]
    assert ticks
    assert all(after - before >= 40.0 for before, after in itertools.pairwise(places))
    assert all(0 < place < 180 for place in places)


def test_backends_of_a_test_share_their_axes(record: Make, performance: Make, document: Make) -> None:
    ratios = {"trace": 0.5, "onnx": 1.0, "aoti": 2.0}
    records = [record(backend=name) | {"performance": performance(ratio)} for name, ratio in ratios.items()]
    (test,) = make_page(document(records)).tests
    trace, onnx, aoti = test.items
    assert trace.latency
    assert onnx.latency
    assert aoti.latency
    assert trace.latency.eager == onnx.latency.eager == aoti.latency.eager
    assert onnx.latency.exported.median == onnx.latency.eager.median
    # Half and twice as far are as far from one, on a logarithmic axis.
    left = onnx.latency.exported.median - trace.latency.exported.median
    right = aoti.latency.exported.median - onnx.latency.exported.median
    assert left == pytest.approx(right, abs=0.2)
    assert trace.ratio
    assert onnx.ratio
    assert aoti.ratio
    assert trace.ratio.at < trace.ratio.one == onnx.ratio.at < aoti.ratio.at
    assert aoti.ratio.low < aoti.ratio.at < aoti.ratio.high


def test_the_budget_is_a_line_and_an_excess_is_marked(record: Make, performance: Make, document: Make) -> None:
    records = [record(backend=str(ratio)) | {"performance": performance(ratio, "1.1x")} for ratio in (0.9, 1.5)]
    within, over = (one.ratio for one in make_page(document(records)).tests[0].items)
    assert within
    assert over
    assert within.budget == over.budget
    assert within.high < (within.budget or 0) < over.low
    assert (within.over, over.over) == (False, True)


def test_a_distribution_is_highest_at_its_mode() -> None:
    """Times close to 2 ms, but a tenth of them at 8 ms."""
    quantiles = [2e-3 * (1 + place / 1e4) for place in range(90)] + [8e-3 * (1 + place / 1e4) for place in range(11)]
    scale = LogScale(1e-3, 1e-2, 4.0, 186.0)
    side = {"median": 2e-3, "low": 2e-3, "high": 2e-3, "p99": None, "quantiles": quantiles}
    path = drawings._side(side, scale, -1.0).path
    points = [(float(x), 22.0 - float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]
    mode = max(points, key=lambda point: point[1])[0]
    assert mode == pytest.approx(scale.at(2e-3), abs=4)
    second = max((point for point in points if point[0] > scale.at(6e-3)), key=lambda point: point[1])
    assert second[0] == pytest.approx(scale.at(8e-3), abs=4)
    assert 1.5 + 17 / 12 < second[1] < 1.5 + 17 / 5


def test_one_slow_call_does_not_set_the_scale() -> None:
    times = {"median": 1.0, "low": 1.0, "high": 1.0, "p99": None, "quantiles": [0.9] + [1.0] * 99 + [1000.0]}
    scale = drawings.latency_scale([{"eager": times, "exported": times}])
    assert scale is not None
    assert scale.high < 2


@pytest.mark.parametrize("quantiles", [[], [1.0], [0.0] * 101, ["nan"] * 101, [1.0] * 101])
def test_odd_quantiles(quantiles: list[Any]) -> None:
    times = {"median": 1.0, "low": 1.0, "high": 1.0, "p99": None, "quantiles": quantiles}
    scale = drawings.latency_scale([{"eager": times, "exported": times}])
    assert scale is not None
    assert not re.search("nan|inf", drawings._side(times, scale, 1.0).path)


@pytest.mark.parametrize(
    "leaf",
    [
        Leaf("x", agrees=True),
        Leaf("x", agrees=True, score=3.0, limit=6.0),
        Leaf("x", agrees=False, cause=Cause.NUMERIC, score=60.0, limit=6.0),
        Leaf("x", agrees=True, max_abs=1e-3, allowed=1e-2),
        Leaf("x", agrees=False, cause=Cause.NUMERIC, max_abs=1.0),
        Leaf("x", agrees=False, cause=Cause.SHAPE),
        Leaf("x", agrees=False, cause=Cause.NUMERIC, max_abs=math.nan, score=1.0, limit=6.0),
    ],
)
def test_the_error_is_that_of_the_outcome(leaf: Leaf) -> None:
    assert drawings.excess(asdict(leaf)) == leaf.excess
    drawn = drawings.error(asdict(leaf))
    assert drawn is not None
    assert (drawn.at > drawn.limit) == (leaf.excess > 1)
    assert drawn.text


def test_stages_fill_the_bar_of_the_longest_check(record: Make, document: Make) -> None:
    records = [record(durations={"export": 3.0, "run": 1.0}), record(durations={"reference": 1.0, "run": 1.0})]
    first, second = (one.stages for one in make_page(document(records)).tests[0].items)
    assert first
    assert second
    assert [name for _, _, name, _ in first.pieces] == ["export", "run"]
    assert sum(width for _, width, _, _ in first.pieces) == pytest.approx(drawings.STAGES, abs=2)
    assert sum(width for _, width, _, _ in second.pieces) == pytest.approx(drawings.STAGES / 2, abs=2)
    assert (first.more, first.text) == ("export 75%", "4.00\u00a0s")
