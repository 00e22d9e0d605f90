"""Branch coverage in the terminal: a cell of the table for each test, and what -v and -vv say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_torchexport.diagnose.coverage import condition, how_reached, summary, tried
from pytest_torchexport.outcome import BranchCoverage, Decision, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable

    Record = dict[str, Any]


def coverage_of(record: Record) -> BranchCoverage | None:
    """The branch coverage of a record; None where branches were not observed."""
    return Outcome.from_dict(record).branches if record["branches"] else None


def cell_text(records: Iterable[Record]) -> tuple[str, str]:
    """What stands in the column of branches, and its colour: `7/8`, the least of a test's checks; empty for none."""
    found = [coverage for record in records if (coverage := coverage_of(record)) is not None and coverage.known]
    if not found:
        return "", ""
    least = min(found, key=lambda coverage: coverage.ratio)
    return f"{least.reached}/{least.known}", "green" if least.reached == least.known else ""


def details(test: str, records: Iterable[Record], folder: Path, *, everything: bool) -> list[str]:
    """The outcomes of a test's decisions that no input took.

    Args:
        test: id of the test, without the backend.
        records: its checks. They mostly agree on the branches, which are then shown once.
        folder: files below it are named relative to it.
        everything: also what reached the others.
    """
    lines: list[str] = []
    shown: list[BranchCoverage] = []
    for record in records:
        coverage = coverage_of(record)
        if coverage is None or not coverage.decisions or coverage in shown:
            continue
        lines.append(f"{record['test'] if shown else test}: branches: {summary(coverage)}")
        shown.append(coverage)
        for decision in coverage.decisions:
            lines += _lines(decision, folder, everything=everything)
    return lines


def _lines(decision: Decision, folder: Path, *, everything: bool) -> list[str]:
    file = Path(decision.location.file)
    place = f"{file.relative_to(folder) if file.is_relative_to(folder) else file}:{decision.location.line}"
    what = f"{place}: {condition(decision)}"
    missing = [] if decision.excluded else [one for one in decision.outcomes if not one.reached_by]
    if not everything:
        return [f"  not reached: {what}: {one.outcome} ({tried(one)})" for one in missing]
    excluded = " (excluded)" if decision.excluded else ""
    first = f"  {what}: {how_reached(decision.outcomes)}{excluded}"
    return [first, *(f"    {one.outcome}: {tried(one)}" for one in missing)]
