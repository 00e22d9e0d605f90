"""The file of `--export-baseline`: read at the start, compared and completed at the end, shown in the summary."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from pytest_torchexport.errors import UsageError
from pytest_torchexport.latency.trend import Change, Entry
from pytest_torchexport.measured import change, multiple
from pytest_torchexport.plugin.options import BASELINE
from pytest_torchexport.plugin.settings import not_writable
from pytest_torchexport.plugin.trends import trends
from pytest_torchexport.report import changes
from pytest_torchexport.report.files import whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pytest

    from pytest_torchexport.latency.trend import Comparison
    from pytest_torchexport.plugin.trends import Key, Record, Trend

KIND = "pytest-torchexport baseline"
SCHEMA = 1
"""Number of the file's format; raised when a key changes its meaning or goes away."""
MAX_LINES = 30
"""Without -v, the largest changes only."""

Line = tuple[str, str]
"""Text and its colour; empty for none."""


class Baseline:
    """The file of one run, in the process that reports."""

    def __init__(self, path: Path, where: str) -> None:
        """Read the file, if there is one.

        Args:
            path: the file.
            where: the option or setting that names it, for messages.

        Raises:
            UsageError: the file cannot be read or written, or is none of ours; it is left as it is.
        """
        self._path = path.resolve()  # a link stays one
        self._where = f"{where}={path}"
        # The ini file speaks to every run, also to one without a check.
        self._asked = where == BASELINE.flag
        self._problem = ""
        self.trends: list[Trend] | None = None
        reason = _unusable(self._path)
        if reason:
            msg = f"{self._where}: {reason}; give a file that can be written"
            raise UsageError(msg)
        self._entries = self._read()

    def take(self, records: Sequence[Record]) -> None:
        """Compare what was timed in this run, and add to the file what it does not have."""
        if not records and not self._asked:
            return
        self.trends = trends(records, self._entries)
        new = {one.key: one.now for one in self.trends if one.now is not None and one.then is None}
        if not new:
            return
        try:
            # Another run may have written since the start. What it wrote stays.
            self._write(new | self._read())
        except UsageError as error:
            self._problem = str(error)
        except OSError as error:
            self._problem = f"{self._where} was not written: {error.strerror or error}"

    def lines(self, verbosity: int) -> list[Line]:
        """What the terminal shows: each change, and one line for the rest; with -v each ratio, with -qq nothing."""
        if self.trends is None:
            return []
        problem = [(self._problem, "red")] if self._problem else []
        if verbosity < -1:
            return problem
        if not self.trends:
            return [(f"{self._where}: {NOTHING}", "")]
        found = list(_changes(self.trends, verbosity))
        found += _elsewhere(self.trends)
        found.append((f"latency against {self._path.name}: {changes.totals(self.to_list())}", ""))
        return found + problem

    def write_summary(self, reporter: pytest.TerminalReporter) -> None:
        """Print the lines below the table."""
        for text, color in self.lines(reporter.config.get_verbosity()):
            reporter.write_line(text, **({color: True} if color else {}))

    def to_list(self) -> list[dict[str, Any]]:
        """The trends as plain data, for the report."""
        return [one.to_dict() for one in self.trends or ()]

    def _read(self) -> dict[Key, Entry]:
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            msg = f"{self._where} cannot be read: {error}"
            raise UsageError(msg) from None
        try:
            return entries_of(text)
        except ValueError as error:
            msg = f"{self._where} is no baseline that can be read: {error}. It was left as it is: {_REMEDY}"
            raise UsageError(msg) from None

    def _write(self, entries: dict[Key, Entry]) -> None:
        machines: dict[str, Any] = {}
        for (machine, origin, cell, label), entry in sorted(entries.items()):
            cells = machines.setdefault(machine, {}).setdefault(origin, {})
            cells.setdefault(cell, {})[label] = entry.to_dict()
        with whole(self._path) as file:
            json.dump({"kind": KIND, "schema": SCHEMA, "machines": machines}, file, indent=1)
            file.write("\n")


NOTHING = (
    "no speed was measured in this run, so nothing was compared or kept; give the tests budgets, or measure all of "
    "them with --export-latency=report"
)
_REMEDY = "name another file, or delete this one to start anew"


def entries_of(text: str) -> dict[Key, Entry]:
    """What a baseline's file holds.

    Raises:
        ValueError: it is none, is damaged, or is of a later version.
    """
    if not text.strip():
        msg = "it is empty"
        raise ValueError(msg)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"it is not JSON ({error})"
        raise ValueError(msg) from None
    if not isinstance(data, dict) or data.get("kind") != KIND:
        msg = f'it has not "kind": "{KIND}"'
        raise ValueError(msg)
    if data.get("schema") != SCHEMA:
        msg = f"it has schema {data.get('schema')!r}, this version of the plugin reads {SCHEMA}"
        raise ValueError(msg)
    found: dict[Key, Entry] = {}
    for machine, tests in _items(data.get("machines"), "machines"):
        for origin, cells in _items(tests, machine):
            for cell, inputs in _items(cells, origin):
                for label, entry in _items(inputs, f"{origin}, {cell}"):
                    try:
                        found[machine, origin, cell, label] = Entry.from_dict(entry)
                    except ValueError as error:
                        msg = f"{origin}, {cell}, {label}: {error}"
                        raise ValueError(msg) from None
    return found


def _changes(found: Sequence[Trend], verbosity: int) -> Iterator[Line]:
    compared = [(one, one.comparison) for one in found if one.comparison is not None]
    changed = [pair for pair in compared if pair[1].change in _COLORS]
    changed.sort(key=lambda pair: -abs(pair[1].effect))
    shown = changed if verbosity > 0 else changed[:MAX_LINES]
    for one, comparison in shown:
        yield f"latency changed: {_text(one, comparison)}", _COLORS[comparison.change]
    if len(shown) < len(changed):
        yield f"... and {len(changed) - len(shown)} smaller changes (-v shows them)", ""
    if verbosity > 0:
        for one, comparison in compared:
            if comparison.change not in _COLORS:
                yield f"latency {comparison.change}: {_text(one, comparison)}", ""


_COLORS = {Change.SLOWER: "yellow", Change.FASTER: "green"}


def _text(one: Trend, comparison: Comparison) -> str:
    """`test_cell[compile-cpu]: 0.61x -> 0.74x of eager (+21 %, interval +15..+28 %); torch 2.12.0 -> 2.13.0`."""
    then, now = (multiple(entry.ratio) for entry in (one.then, one.now) if entry is not None)
    label = "" if one.key[-1] == "example" else f", input {one.key[-1]}"
    interval = f"{change(comparison.low).removesuffix(' %')}..{change(comparison.high)}"
    figures = f"{then} -> {now} of eager ({change(comparison.effect)}, interval {interval})"
    return "; ".join([f"{one.test}{label}: {figures}", *comparison.conditions])


def _elsewhere(found: Sequence[Trend]) -> list[Line]:
    others = [one for one in found if one.change == "new" and one.elsewhere]
    if not others:
        return []
    machines = "; ".join(dict.fromkeys(one.key[0] for one in others))
    what = "a ratio" if len(others) == 1 else f"{len(others)} ratios"
    return [(f"the baseline has {what} of another machine only: not compared with this one ({machines})", "")]


def _items(data: Any, where: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(data, dict):
        msg = f"{where} is no object"
        raise ValueError(msg)  # noqa: TRY004 - all that is wrong with the file is one kind of error
    return iter(data.items())


def _unusable(path: Path) -> str | None:
    """Why the file cannot be read and written; None if it can. Makes nothing."""
    if path.is_dir():
        return f"{path} is a directory"
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        return f"{path} cannot be read and written"
    return not_writable(path.parent)
