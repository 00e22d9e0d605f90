"""Numbers with units, and text that does nothing."""

from __future__ import annotations

import math

import pytest

from pytest_torchexport.report import text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1.0, "1 s"),
        (0.0123, "12.3 ms"),
        (182e-6, "182 µs"),
        (9.5e-8, "95 ns"),
        (123.4, "123 s"),
        (0.9999, "1 s"),
        (0.0, "0 ns"),
        ("nan", "nan"),
        ("inf", "inf"),
        (None, "?"),
    ],
)
def test_seconds(value: object, said: str) -> None:
    assert text.seconds(value).replace("\u00a0", " ") == said


@pytest.mark.parametrize(("value", "said"), [(5864, "5.86 kB"), (0, "0 B"), (12_000_000, "12 MB"), (3, "3 B")])
def test_sizes(value: int, said: str) -> None:
    assert text.size(value).replace("\u00a0", " ") == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (1.2345, "1.23"),
        (0.00123, "0.00123"),
        (12345.0, "12,345"),
        (3600000.0, "3.6e6"),
        (1e-09, "1e-9"),
        (-2.5, "-2.5"),
        (100.0, "100"),
        (math.inf, "inf"),
    ],
)
def test_figures(value: float, said: str) -> None:
    assert text.figure(value) == said


@pytest.mark.parametrize(
    ("dirty", "said"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]8;;http://a\x1b\\link\x1b]8;;\x07", "link"),
        ("\x1b", "␛"),
        ("a\x00b\rc\r\nd", "a␀b␍c\nd"),
        ("\x7f\x9b31m", "\ufffd\ufffd31m"),
        ("\u202egnp\u2069", "\ufffdgnp\ufffd"),
        ("\ud83d half", "\ufffd half"),
        ("שלום 🙂 é", "שלום 🙂 é"),
    ],
)
def test_text_that_acts_is_made_visible(dirty: str, said: str) -> None:
    assert text.clean(dirty) == said
    text.clean(dirty).encode()


def test_long_text_is_cut_with_a_note() -> None:
    assert text.cut("x" * 10, 10) == "x" * 10
    assert text.cut("x" * 1234, 10) == "x" * 10 + "\n[1,224 more characters: the JSON report has them]"
