"""Branch coverage over the lines of the user's source."""

from __future__ import annotations

import io
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_AROUND = 3
"""Lines shown before and after a decision of which an outcome was not reached; one where all were."""
_LARGEST = 2_000_000
"""Bytes of a source file that is still read."""
_MOST = 60
"""Decisions that are shown; of more, those that miss an outcome first."""
_LONGEST = 300


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file, and the decisions that stand on it."""

    number: int
    text: str
    decisions: tuple[dict[str, Any], ...]
    missed: bool


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Lines that follow one another in a file. `known` is False where the file is not there, or was changed."""

    file: str
    lines: tuple[Line, ...]
    known: bool


@dataclass(frozen=True, slots=True)
class Coverage:
    """The excerpts that show a test's decisions, in the order of files and lines; `left_out` are not shown."""

    excerpts: tuple[Excerpt, ...]
    left_out: int


class Sources:
    """The files that the decisions of a report stand in; each is read once."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[str, ...]] = {}

    def coverage(self, decisions: Sequence[dict[str, Any]]) -> Coverage:
        """The source around decisions: as the file is now, if it still has the lines that were recorded."""
        shown = sorted(decisions, key=lambda one: not missed(one))[:_MOST]
        files: dict[str, dict[int, list[dict[str, Any]]]] = {}
        for decision in shown:
            where = decision["location"]
            files.setdefault(where["file"], {}).setdefault(where["line"], []).append(decision)
        excerpts = []
        for file in sorted(files):
            if file not in self._files:
                self._files[file] = _lines(file)
            excerpts += _excerpts(file, self._files[file], dict(sorted(files[file].items())))
        return Coverage(tuple(excerpts), len(decisions) - len(shown))


def missed(decision: dict[str, Any]) -> bool:
    """Whether an outcome that counts was not reached."""
    return not decision["excluded"] and any(not one["reached_by"] for one in decision["outcomes"])


def _excerpts(file: str, lines: Sequence[str], found: dict[int, list[dict[str, Any]]]) -> list[Excerpt]:
    texts = {line: ones[0]["location"]["source"] for line, ones in found.items()}
    known = bool(lines) and all(
        0 < line <= len(lines) and (not text or text.strip() == lines[line - 1].strip()) for line, text in texts.items()
    )
    if not known:
        return [Excerpt(file, tuple(_line(line, texts[line], ones) for line, ones in found.items()), known=False)]
    wanted: set[int] = set()
    for line, ones in found.items():
        around = _AROUND if any(map(missed, ones)) else 1
        wanted |= set(range(max(1, line - around), min(len(lines), line + around) + 1))
    wanted -= {line for line in wanted if not lines[line - 1].strip()}
    groups: list[list[int]] = []
    for line in sorted(wanted):
        if groups and line <= groups[-1][-1] + 2:  # a gap of one line is closed
            groups[-1] += range(groups[-1][-1] + 1, line + 1)
        else:
            groups.append([line])
    return [
        Excerpt(
            file, tuple(_line(line, text, found.get(line, [])) for line, text in _dedented(lines, group)), known=True
        )
        for group in groups
    ]


def _line(number: int, text: str, decisions: list[dict[str, Any]]) -> Line:
    return Line(number, text[:_LONGEST], tuple(decisions), any(map(missed, decisions)))


def _dedented(lines: Sequence[str], group: Sequence[int]) -> list[tuple[int, str]]:
    texts = [lines[line - 1].expandtabs(4).rstrip() for line in group]
    margin = min((len(text) - len(text.lstrip()) for text in texts if text), default=0)
    return [(line, text[margin:]) for line, text in zip(group, texts, strict=True)]


def _lines(file: str) -> tuple[str, ...]:
    """The lines of a Python file, in the encoding that it declares; none where it cannot be read."""
    path = Path(file)
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            return ()
        content = path.read_bytes()
    except (OSError, ValueError):
        return ()
    try:
        encoding = tokenize.detect_encoding(io.BytesIO(content).readline)[0]
    except SyntaxError:
        encoding = "utf-8"
    text = content.decode(encoding, errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    return tuple(text.split("\n"))  # not splitlines: a form feed ends no line of Python
