"""Lines of a message: broken between words, as a person reads them in a terminal or in the log of a CI job."""

from __future__ import annotations

import textwrap

WIDTH = 96
"""Columns; pytest puts a few in front."""


def wrapped(text: str, first: str, further: str) -> list[str]:
    """The text in lines, the first behind one indentation and the others behind another."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=further, break_long_words=False, break_on_hyphens=False
    )


def paragraph(label: str, text: str) -> list[str]:
    """A labelled paragraph; nothing where there is nothing to say."""
    return wrapped(f"{label}: {text}", "  ", "      ") if text else []


def indented(text: str) -> list[str]:
    """A text below a paragraph."""
    return wrapped(text, "      ", "      ")
