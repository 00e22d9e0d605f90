"""What a long check is doing, shown on a terminal behind what pytest has written, and gone when the check ends.

While a test runs, pytest has put a file in the place of stdout, so the text goes to the terminal by a descriptor of its
own. Nothing else writes to the terminal meanwhile: where something may (`-s`, live logs, a debugger), nothing is shown.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import pytest

from pytest_torchexport.outcome import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DELAY_S = 1.0
"""A shorter check shows nothing."""
TICK_S = 0.5
LEAST_ROOM = 20
"""Columns; with less room behind what pytest has written, nothing is shown."""

_TIMING = "timing"
_WORDS = {
    Stage.REFERENCE: "eager",
    # Two stages that take turns for each input.
    Stage.RUN: "run and comparison",
    Stage.COMPARE: "run and comparison",
    Stage.LATENCY: _TIMING,
}
_SEARCH = "eager and branch search"
_SAVE, _ERASE, _RESTORE = "\x1b7", "\x1b[K", "\x1b8"


class Screen(Protocol):
    """Where the text goes."""

    def write(self, text: str) -> None:
        """Write at the cursor."""

    def columns(self) -> int:
        """The width."""

    def is_ours(self) -> bool:
        """Whether nobody else writes to it."""


class Terminal:
    """The terminal that stdout is now, also when stdout is something else later."""

    def __init__(self) -> None:
        self._fd = os.dup(sys.stdout.fileno())
        self._identity = _identity(self._fd)

    def write(self, text: str) -> None:
        """Write at the cursor; what is not ASCII becomes `?`, because nobody knows how wide it would be."""
        os.write(self._fd, text.encode("ascii", "replace"))

    def columns(self) -> int:
        """The width, as it is at the moment."""
        return os.get_terminal_size(self._fd).columns

    def is_ours(self) -> bool:
        """Whether pytest captures stdout, so that neither it nor the user's code writes to the terminal."""
        return _identity(1) != self._identity

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)


def _identity(descriptor: int) -> tuple[int, int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino, found.st_rdev


class Progress:
    """The text of one check after another. Also a plugin object: a debugger takes the terminal."""

    def __init__(self, screen: Screen, clock: Callable[[], float] = time.monotonic) -> None:
        self._screen = screen
        self._clock = clock
        self._changed = threading.Condition()
        self._running = False
        self._shown = ""
        self._broken = False
        self._searches = False
        self._name = self._word = ""
        self._column = 0
        self._begun = self._since = 0.0

    @contextmanager
    def during(self, name: str, column: int, *, searches: bool) -> Iterator[None]:
        """Around one check.

        Args:
            name: of the cell, `onnx-cpu`.
            column: where the cursor is, from 0.
            searches: whether inputs for other branches are searched for.
        """
        self.begin(name, column, searches=searches)
        watcher = threading.Thread(target=self._watch, name="torchexport-progress", daemon=True)
        try:
            watcher.start()
        except RuntimeError:  # no more threads
            self._running = False
            yield
            return
        try:
            yield
        finally:
            self.end()
            watcher.join()

    def begin(self, name: str, column: int, *, searches: bool) -> None:
        """A check begins; nothing is shown yet."""
        with self._changed:
            self._searches = searches
            self._name, self._word, self._column = name, "", column
            self._begun = self._since = self._clock()
            self._running = not self._broken

    def enter(self, stage: Stage) -> None:
        """The check comes to a stage."""
        word = _SEARCH if stage is Stage.REFERENCE and self._searches else _WORDS.get(stage, stage.value)
        with self._changed:
            if self._running and word != self._word:
                if _TIMING in (word, self._word):
                    self._changed.notify()  # else the next tick shows it, and not what is over in a moment
                self._word, self._since = word, self._clock()

    def update(self) -> float | None:
        """Show what there is to show.

        Returns:
            Seconds until it will be something else; None for not before the next stage.
        """
        with self._changed:
            now = self._clock()
            early = self._begun + DELAY_S - now
            if early > 0:
                return early
            if self._word:
                self._draw(now)
            # What is timed has the processor for itself: no thread wakes up to count its seconds.
            return None if self._word == _TIMING else TICK_S

    def end(self) -> None:
        """The check is over: the line is as it was."""
        with self._changed:
            self._running = False
            self._changed.notify()
            if self._shown:
                self._shown = ""
                self._write(_ERASE)

    def pytest_enter_pdb(self) -> None:
        """Leave the terminal to the debugger, for the rest of this check."""
        self.end()

    def _watch(self) -> None:
        wait: float | None = DELAY_S
        with self._changed:
            while self._running:
                self._changed.wait(wait)
                if self._running:
                    wait = self.update()

    def _draw(self, now: float) -> None:
        try:
            room = self._screen.columns() - self._column - 1 if self._screen.is_ours() else 0
        except OSError:
            room = 0
        if room < LEAST_ROOM:
            # Whoever else writes has the cursor elsewhere by now: what is shown stays.
            return
        text = self._text(now, room - 1)
        if text != self._shown:
            self._shown = text
            self._write(f"{_SAVE} {text}{_ERASE}{_RESTORE}")

    def _text(self, now: float, room: int) -> str:
        """`[onnx-cpu: export 12 s]`, without the cell's name where there is no room for it."""
        doing = self._word if self._word == _TIMING else f"{self._word} {now - self._since:.0f} s"
        for text in (f"[{self._name}: {doing}]", f"[{doing}]"):
            if len(text) <= room:
                return text
        return text[:room]

    def _write(self, text: str) -> None:
        try:
            self._screen.write(text)
        except OSError:  # the terminal is gone, which is no matter of the tests
            self._broken, self._running = True, False


def open_progress(config: pytest.Config) -> Progress | None:
    """The text for this run; None where it would disturb, or nobody would see it.

    It is called while stdout is the terminal: between tests, pytest captures nothing.
    """
    if not _is_wanted(config):
        return None
    try:
        terminal = Terminal()
    except (OSError, ValueError):
        return None
    config.add_cleanup(terminal.close)
    progress = Progress(terminal)
    config.pluginmanager.register(progress, "torchexport-progress")
    return progress


def _is_wanted(config: pytest.Config) -> bool:
    if os.name != "posix" or not sys.stdout.isatty():
        return False
    if os.environ.get("TERM", "dumb") == "dumb" or os.environ.get("CI") or os.environ.get("BUILD_NUMBER"):
        return False
    # Another reporter has its own ideas of the terminal; without markup, it may be none that understands sequences.
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if type(reporter) is not pytest.TerminalReporter or not config.get_terminal_writer().hasmarkup:
        return False
    live_logs = config.getini("log_cli") or config.getoption("log_cli_level", default=None) is not None
    return config.getoption("capture") == "fd" and config.get_verbosity() >= 0 and not live_logs


def column(config: pytest.Config) -> int:
    """Where the cursor is on its line, from 0. Behind a line that was wrapped, it is beyond every screen."""
    width: int = config.get_terminal_writer().width_of_current_line
    return width if width >= 0 else sys.maxsize  # below 0: it has characters without a width
