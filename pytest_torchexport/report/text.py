"""Text of a report: nothing in it acts on the reader's screen, and numbers have units."""

from __future__ import annotations

import math
import re
from typing import Any

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


def figure(value: float) -> str:
    """Three significant digits, without an exponent where that is short."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        places = max(0, 2 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{places}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.2g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def _scaled(value: float | None, units: tuple[tuple[float, str], ...]) -> str:
    if value is None or not math.isfinite(value):
        return "?" if value is None else str(value)
    if value == 0:
        return f"0 {units[-1][1]}"
    for size, unit in units:
        if abs(value) >= size * 0.9995:
            return f"{figure(value / size)}\u00a0{unit}"
    size, unit = units[-1]
    return f"{figure(value / size)}\u00a0{unit}"


def seconds(value: Any) -> str:
    """A time with its unit: `182 µs`."""
    return _scaled(number(value), ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")))


def size(value: Any) -> str:
    """A number of bytes with its unit: `5.86 kB`."""
    return _scaled(number(value), ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")))


def times(value: Any) -> str:
    """A ratio: `1.21x`."""
    found = number(value)
    return "?" if found is None else f"{figure(found)}x"


def count(amount: int, noun: str) -> str:
    """`1 check`, `2 checks`."""
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"
