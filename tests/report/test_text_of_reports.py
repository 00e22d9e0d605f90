"""Text that does nothing."""

from __future__ import annotations

import pytest

from pytest_torchexport.report import text


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
