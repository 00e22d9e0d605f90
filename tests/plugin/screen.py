"""The few things that a terminal does with what pytest and its plugins write, for tests of what is on it."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b\[[0-9;?]*[A-Za-z]|\x1b[78]|[\r\n\t\b]|[^\x1b\r\n\t\b]")


class Emulator:
    """Lines of text with a cursor; colours and titles are left out.

    Raises:
        AssertionError: a sequence that it does not know.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._cells: list[list[str]] = [[]]
        self._row = self._column = 0
        self._saved = (0, 0)
        self.moments: list[str] = []
        """The cursor's line after each restored cursor: what was shown for a while."""

    @property
    def lines(self) -> list[str]:
        """What is on the screen and above it."""
        return ["".join(cells).rstrip() for cells in self._cells]

    def feed(self, text: str) -> None:
        """Do what the text says."""
        end = 0
        for found in _TOKEN.finditer(text):
            assert found.start() == end, f"unknown sequence: {text[end : end + 8]!r}"
            end = found.end()
            self._do(found[0])
        assert end == len(text), f"unknown sequence: {text[end : end + 8]!r}"

    def _do(self, token: str) -> None:
        if token == "\n":
            self._row, self._column = self._row + 1, 0
            self._grow()
        elif token == "\r":
            self._column = 0
        elif token == "\x1b7":
            self._saved = (self._row, self._column)
        elif token == "\x1b8":
            self.moments.append(self.lines[self._row])
            self._row, self._column = self._saved
        elif token == "\x1b[K":
            del self._cells[self._row][self._column :]
        elif token.startswith("\x1b]") or re.fullmatch(r"\x1b\[[0-9;]*m", token):
            return
        else:
            assert len(token) == 1, f"unknown sequence: {token!r}"
            self._put(token)

    def _put(self, character: str) -> None:
        if self._column == self._columns:
            self._row, self._column = self._row + 1, 0
            self._grow()
        line = self._cells[self._row]
        line.extend(" " * (self._column + 1 - len(line)))
        line[self._column] = character
        self._column += 1

    def _grow(self) -> None:
        while len(self._cells) <= self._row:
            self._cells.append([])
