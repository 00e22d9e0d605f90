"""Numbers with units, in one place for messages, the terminal and reports."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchexport import measured
from pytest_torchexport.latency.budget import Budget
from pytest_torchexport.report import text

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0 ns"),
        (1e-12, "0.001 ns"),
        (9.5e-8, "95.0 ns"),
        (999.4e-9, "999 ns"),
        (999.6e-9, "1.00 us"),
        (9.994e-6, "9.99 us"),
        (9.996e-6, "10.0 us"),
        (99.94e-6, "99.9 us"),
        (99.96e-6, "100 us"),
        (999.4e-6, "999 us"),
        (999.6e-6, "1.00 ms"),
        (0.0123, "12.3 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (1.0, "1.00 s"),
        (123.4, "123 s"),
        (3600.0, "3600 s"),
        (-0.002, "-2.00 ms"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
    ],
)
def test_times(value: float, said: str) -> None:
    assert measured.seconds(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0 B"),
        (3, "3 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (5864, "5.86 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (12_000_000, "12.0 MB"),
        (2e12, "2000 GB"),
        (-5864, "-5.86 kB"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_sizes(value: float, said: str) -> None:
    assert measured.size(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0x"),
        (0.004, "0.004x"),
        (0.0994, "0.0994x"),
        (0.0996, "0.10x"),
        (0.612, "0.61x"),
        (1.344, "1.34x"),
        (9.996, "10.0x"),
        (99.96, "100x"),
        (12345.6, "12346x"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_ratios(value: float, said: str) -> None:
    assert measured.multiple(value) == said
    assert measured.digits(value) == said.removesuffix("x")


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.214, "+21 %"), (-0.05, "-5 %"), (0.0, "+0 %"), (12.0, "+1200 %"), (math.inf, "inf"), (math.nan, "nan")],
)
def test_changes(value: float, said: str) -> None:
    assert measured.change(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (1.2345, "1.23"),
        (0.9999, "1"),
        (0.00123, "0.00123"),
        (12345.0, "12,345"),
        (3600000.0, "3.6e6"),
        (1e-09, "1e-9"),
        (-2.5, "-2.5"),
        (100.0, "100"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_any_number(value: float, said: str) -> None:
    assert measured.figure(value) == said


def test_labels_of_an_axis_have_no_zeros_at_the_end() -> None:
    assert measured.seconds(1e-3, measured.figure) == "1 ms"
    assert measured.multiple(0.5, measured.figure) == "0.5x"


@pytest.mark.parametrize("value", [0.0, 182e-6, 0.9996, 2.34, math.nan, math.inf])
def test_a_report_says_the_same_with_its_own_signs(value: float) -> None:
    for given in (value, str(value)):
        assert text.seconds(given).replace("\u00a0", " ").replace("µ", "u") == measured.seconds(value)
        assert text.size(given).replace("\u00a0", " ") == measured.size(value)
        assert text.times(given) == measured.multiple(value)
        assert text.digits(given) == measured.digits(value)
        assert text.change(given).replace("\u00a0", " ") == measured.change(value)


@pytest.mark.parametrize("say", [text.seconds, text.size, text.times, text.digits, text.change])
def test_what_is_no_number_is_not_known(say: Callable[[Any], str]) -> None:
    assert [say(value) for value in (None, True, "about 3", [0])] == ["?"] * 4


def test_text_with_figures_is_set_as_they_are() -> None:
    assert text.typeset("141 us (140 us to 1.4 ms), +5 %") == "141\u00a0µs (140\u00a0µs to 1.4\u00a0ms), +5\u00a0%"
    assert text.typeset("3 users, 4 small us") == "3 users, 4 small us"


@pytest.mark.parametrize("value", [9.5e-8, 182e-6, 0.0123, 2.34, 5000.0])
def test_a_budget_can_be_copied_from_what_is_shown(value: float) -> None:
    shown = {measured.seconds(value), text.seconds(value), text.seconds(value).replace("µ", "\u03bc")}
    limits = {Budget(median=one).limits[0].value for one in shown}
    assert len(limits) == 1
    assert limits.pop() == pytest.approx(value, rel=0.01)


@pytest.mark.parametrize("value", [3, 5864, 12_000_000])
def test_a_size_can_be_copied_from_what_is_shown(value: int) -> None:
    for shown in (measured.size(value), text.size(value)):
        assert Budget(artifact_size=shown).limits[0].value == pytest.approx(value, rel=0.01)
