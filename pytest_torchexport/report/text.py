"""Text of a report: nothing in it acts on the reader's screen, and numbers have units."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pytest_torchexport import measured

if TYPE_CHECKING:
    from collections.abc import Callable

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
"""Commands to a terminal: colours, titles, links."""
_ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but tab and newline
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # they turn the direction of the text that follows
    "\u2028\u2029\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"  # half a surrogate pair, not characters at all
)
_CONTROL_PICTURES = 0x2400


def clean(text: str) -> str:
    """The text without commands to a terminal; other characters that act and do not show become visible ones."""
    if text.isascii() and text.isprintable():
        return text
    text = _ESCAPES.sub("", text.replace("\r\n", "\n"))
    return _ACTING.sub(_visible, text)


def _visible(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(_CONTROL_PICTURES + code) if code < 0x20 else "\ufffd"


def one_line(text: str) -> str:
    """The text, cleaned, in one line."""
    return " ".join(clean(text).split())


def cut(text: str, most: int) -> str:
    """The beginning of a text that is too long, with a note of how much is left out."""
    if len(text) <= most:
        return text
    return f"{text[:most]}\n[{len(text) - most:,} more characters: the JSON report has them]"


def number(value: Any) -> float | None:
    """A number of a record; `"nan"`, `"inf"` and `"-inf"` are numbers too. None for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def seconds(value: Any, say: Callable[[float], str] = measured.digits) -> str:
    """A time with its unit: `182 µs`."""
    found = number(value)
    return "?" if found is None else typeset(measured.seconds(found, say))


def size(value: Any) -> str:
    """A number of bytes with its unit: `5.86 kB`."""
    found = number(value)
    return "?" if found is None else typeset(measured.size(found))


def times(value: Any, say: Callable[[float], str] = measured.digits) -> str:
    """A ratio: `1.21x`."""
    found = number(value)
    return "?" if found is None else measured.multiple(found, say)


def digits(value: Any) -> str:
    """What was measured, without a unit: `1.21`."""
    found = number(value)
    return "?" if found is None else measured.digits(found)


def change(value: Any) -> str:
    """A relative change: `+21 %`."""
    found = number(value)
    return "?" if found is None else typeset(measured.change(found))


def typeset(text: str) -> str:
    """A text with figures as they are printed: with the sign for micro, and no line begins with a unit."""
    return _UNIT.sub(lambda found: "\u00a0" + found[1].replace("us", "µs"), text)


_UNIT = re.compile(r"(?<=[0-9]) (ns|us|ms|s|B|kB|MB|GB|%)(?!\w)")


def count(amount: int, noun: str) -> str:
    """`1 check`, `2 checks`."""
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"
