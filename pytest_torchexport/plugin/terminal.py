"""The terminal summary: a table of tests x backends, and totals. Made from the records alone."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from pytest_torchexport.backends.registry import backend_names
from pytest_torchexport.diagnose.coverage import branches_ledger
from pytest_torchexport.plugin import branches, speeds
from pytest_torchexport.plugin.cell import Cell
from pytest_torchexport.plugin.transport import cell_of, origin_of
from pytest_torchexport.report import summary
from pytest_torchexport.report.text import count

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pytest

Record = dict[str, Any]
Line = list[tuple[str, str]]
"""Pieces of text with their colour; empty for none."""

MAX_ROWS = 30
"""Without -v, a longer table leaves out the tests whose cells are all fine."""

_COLORS = {"ok": "green", "bad": "red"}


def write_summary(reporter: pytest.TerminalReporter, records: Sequence[Record]) -> None:
    """Print the table and the totals; with -q the totals only, with -qq nothing, with -v each check."""
    verbosity = reporter.config.get_verbosity()
    if not records or verbosity < -1:
        return
    if verbosity == -1:
        reporter.write_line(f"export equivalence: {totals(records)}")
        return
    reporter.section("export equivalence", sep="=")
    width = reporter.config.get_terminal_writer().fullwidth
    rows = summary.by_test(records)
    shown = rows
    if verbosity == 0 and len(rows) > MAX_ROWS:
        shown = {name: row for name, row in rows.items() if not summary.is_fine(row)}
    _write(reporter, table(shown, width - 1))
    if len(shown) < len(rows):
        reporter.write_line(f"... and {len(rows) - len(shown)} tests with nothing but ok (-v shows them)")
    timed = speeds.measured(records)
    if timed:
        reporter.write("\n")
        labels = _labels([record["test"] for record in timed])
        _write(reporter, speeds.section(timed, labels, width - 1, everything=verbosity > 0))
        reporter.write("\n")
    for reason in speeds.left_out(records):
        reporter.write_line(reason, yellow=True)
    if verbosity > 0:
        for detail in details(records) + _branch_details(reporter, rows):
            reporter.write_line(detail)
    reporter.write_line(totals(records))


def _write(reporter: pytest.TerminalReporter, lines: Iterable[Line]) -> None:
    for line in lines:
        for text, color in line:
            reporter.write(text, **({color: True} if color else {}))
        reporter.write("\n")


def collected(items: Iterable[pytest.Item]) -> list[str]:
    """`export equivalence: 8 checks of 2 tests on trace-cpu, onnx-cpu`; nothing where no item is a check."""
    cells = [(origin_of(item), cell.id) for item in items if isinstance(cell := cell_of(item), Cell)]
    if not cells:
        return []
    where = ", ".join(dict.fromkeys(cell for _, cell in cells))
    tests = len({origin for origin, _ in cells})
    return [f"export equivalence: {count(len(cells), 'check')} of {count(tests, 'test')} on {where}"]


def cell_text(record: Record) -> tuple[str, str]:
    """What stands in a cell, and its colour."""
    return summary.word(record), _COLORS.get(summary.tone(record), "yellow")


def table(rows: dict[str, list[Record]], width: int) -> list[Line]:
    """The table, as lines of coloured pieces. Columns that do not fit are continued below.

    Args:
        rows: the checks of each test.
        width: columns of the terminal.
    """
    columns = summary.columns([record for row in rows.values() for record in row], backend_names())
    columns.pop("", None)  # what belongs to no backend has a line of its own
    labels = _labels(list(rows))
    label_width = min(max(map(len, labels), default=0), max(20, width // 2))
    cells = [{key: _cell([r for r in row if summary.column_of(r) == key]) for key in columns} for row in rows.values()]
    covered = [branches.cell_text(row) for row in rows.values()]
    if any(text for text, _ in covered):
        columns[_BRANCHES] = "branches"
        cells = [cell | {_BRANCHES: own} for cell, own in zip(cells, covered, strict=True)]
    widths = {key: max(len(title), *(len(row[key][0]) for row in cells)) for key, title in columns.items()}
    lines: list[Line] = []
    for block in _blocks(widths, width - label_width):
        lines.append([(" " * label_width, "")] + [("  " + columns[key].ljust(widths[key]), "bold") for key in block])
        for label, row in zip(labels, cells, strict=True):
            if all(row[key] in (_NO_CELL, ("", "")) for key in block):
                continue
            line: Line = [(_cut(label, label_width).ljust(label_width), "")]
            line += [("  " + row[key][0].ljust(widths[key]), row[key][1]) for key in block]
            lines.append(line)
    for label, records in zip(labels, rows.values(), strict=True):
        for record in records:
            if not record["backend"]:
                text, color = cell_text(record)
                lines.append([(f"{_cut(label, label_width).ljust(label_width)}  ", ""), (text, color)])
                lines[-1].append((f": {record['message'].splitlines()[0]}"[: width - label_width - len(text) - 2], ""))
    return lines


_NO_CELL = ("-", "")
_BRANCHES = "/"
"""Key of the column of branches; no backend has this name."""


def _cell(records: Sequence[Record]) -> tuple[str, str]:
    """What stands in one column of a test: a backend with several sets of options has several checks there."""
    if not records:
        return _NO_CELL
    found = Counter(cell_text(record) for record in records)
    colors = [color for _, color in found]
    color = next((one for one in ("red", "yellow") if one in colors), colors[0])
    if len(records) == 1:
        return cell_text(records[0])
    return ", ".join(f"{amount} {text}" for (text, _), amount in found.items()), color


def totals(records: Sequence[Record]) -> str:
    """`8 checks of 2 tests: 6 equivalent, 2 mismatch; 80 inputs compared; 3 things not checked (-v lists them)`."""
    parts = [summary.totals(records)]
    set_by_hand = sum(record["tolerance"].startswith("set") for record in records)
    if set_by_hand:
        parts.append(f"tolerance set by hand in {count(set_by_hand, 'check')}")
    not_checked = sum(summary.ledger(records).values())
    if not_checked:
        parts.append(f"{count(not_checked, 'thing')} not checked (-v lists them)")
    return "; ".join(parts)


def details(records: Iterable[Record]) -> list[str]:
    """For -v: inputs by kind, durations, a tolerance that is set, speed and the not-checked ledger of each check."""
    lines: list[str] = []
    for record in records:
        if record["durations"]:
            inputs = ", ".join(f"{amount} {kind}" for kind, amount in record["inputs_by_kind"].items()) or "none"
            dropped = sum(record["dropped"].values())
            stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in record["durations"].items())
            lines.append(
                f"{record['test']}: inputs: {inputs}{f' ({dropped} dropped)' if dropped else ''}; "
                f"{sum(record['durations'].values()):.2f} s ({stages})"
            )
        else:
            lines.append(f"{record['test']}: {record['message'].splitlines()[0]}")
        if record["tolerance"].startswith("set"):
            lines.append(f"  tolerance set by hand: {record['tolerance'].removeprefix('set: ')}")
        lines += speeds.details(record)
        # Branches are those of the test, not of one backend: `branches.details` shows them once.
        own = {(entry.what, entry.why) for entry in branches_ledger(branches.coverage_of(record))}
        counted = Counter((entry["what"], entry["why"]) for entry in record["not_checked"])
        counted = Counter({entry: amount for entry, amount in counted.items() if entry not in own})
        for (what, why), amount in counted.items():
            lines.append(f"  not checked: {what}: {why}{f' ({amount} times)' if amount > 1 else ''}")
    return lines


def _branch_details(reporter: pytest.TerminalReporter, rows: dict[str, list[Record]]) -> list[str]:
    everything = reporter.config.get_verbosity() > 1
    folder = reporter.config.invocation_params.dir
    return [line for name, row in rows.items() for line in branches.details(name, row, folder, everything=everything)]


def _labels(origins: Sequence[str]) -> list[str]:
    """The tests' names; with their files, less the folder that all have in common, where names alone are not enough."""
    names = [origin.partition("::")[2] or origin for origin in origins]
    if len(set(names)) == len(names):
        return names
    folders = {origin.partition("::")[0].rpartition("/")[0] for origin in origins}
    common = len(folders.pop()) + 1 if len(folders) == 1 and "" not in folders else 0
    return [origin[common:] for origin in origins]


def _cut(label: str, width: int) -> str:
    """The end of a label that is too long: names of tests differ there."""
    return label if len(label) <= width else "…" + label[-width + 1 :]


def _blocks(widths: dict[str, int], room: int) -> list[list[str]]:
    """The columns in groups that fit side by side."""
    blocks: list[list[str]] = []
    left = 0
    for key, width in widths.items():
        if not blocks or left < width + 2:
            blocks.append([])
            left = room
        blocks[-1].append(key)
        left -= width + 2
    return blocks
