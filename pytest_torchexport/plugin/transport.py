"""How outcomes reach the process that reports: from item to report, from worker to controller, over a crash.

What crosses a process is a plain dict. `user_properties` carry it, because they arrive with each test and are not lost
when the worker dies later.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pytest_torchexport.outcome import NotChecked, Outcome, Stage, Verdict
from pytest_torchexport.plugin.cell import Cell, NoCell
from pytest_torchexport.plugin.marks import PARAMETER
from pytest_torchexport.plugin.stash import PROPERTY, RUN
from pytest_torchexport.report.junit import properties

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def cell_of(item: pytest.Item) -> Cell | NoCell | None:
    """The cell of an item; None for an item that is not ours."""
    callspec = getattr(item, "callspec", None)
    cell = callspec.params.get(PARAMETER) if callspec else None
    return cell if isinstance(cell, (Cell, NoCell)) else None


def record_of(item: pytest.Item, outcome: Outcome) -> dict[str, Any]:
    """The outcome as plain data, with the cell's id and the id of the test function that it belongs to."""
    cell = cell_of(item)
    return {
        **outcome.to_dict(),
        "cell": cell.id if cell else "",
        "origin": origin_of(item),
    }


def origin_of(item: pytest.Item) -> str:
    """The item's id without what this plugin put into it; the user's own parameters stay."""
    nodeid = test_id(item)
    cell = cell_of(item)
    head, bracket, inside = nodeid.partition("[")
    if cell is None or not bracket:
        return nodeid
    inside = inside.removesuffix("]")
    # Ours is the last parameter, unless another plugin adds its own after it.
    before, _, after = f"-{inside}-".rpartition(f"-{cell.id}-")
    kept = "-".join(filter(None, (before[1:], after[:-1])))
    return f"{head}[{kept}]" if kept else head


def test_id(item: pytest.Item) -> str:
    """The item's id, without the group that pytest-xdist appends to it."""
    before, bracket, after = item.nodeid.rpartition("]")
    return before + bracket if bracket and after.startswith("@") else item.nodeid


def unchecked(item: pytest.Item, verdict: Verdict, message: str) -> dict[str, Any]:
    """The record of an item that came to no comparison: the test was skipped, or raised before it."""
    cell = cell_of(item)
    known = isinstance(cell, Cell)
    outcome = Outcome(
        verdict=verdict,
        stage=Stage.REFERENCE,
        backend=cell.backend_id if isinstance(cell, Cell) else "",
        device=cell.device if isinstance(cell, Cell) else "",
        dtype=cell.dtype if isinstance(cell, Cell) else None,
        seed=cell.seed if isinstance(cell, Cell) else 0,
        message=message,
        test=test_id(item),
        not_checked=(NotChecked("the model" if known else "every backend", message.split("\n", 1)[0]),),
    )
    return record_of(item, outcome)


def attach(item: pytest.Item, record: dict[str, Any]) -> None:
    """Give the item its record: in full for the process that reports, and flat for JUnit."""
    item.user_properties.append((PROPERTY, record))
    item.user_properties.extend(properties(record))


def detach(item: pytest.Item) -> None:
    """Take away what an earlier run of the same item left (reruns)."""
    item.user_properties[:] = [pair for pair in item.user_properties if not pair[0].startswith(PROPERTY)]


def take(report: pytest.TestReport) -> dict[str, Any] | None:
    """Take the full record out of a report, before a writer of JUnit sees it."""
    found = [value for name, value in report.user_properties if name == PROPERTY]
    report.user_properties = [pair for pair in report.user_properties if pair[0] != PROPERTY]
    record = found[-1] if found else None
    return record if isinstance(record, dict) else None


def result_of(report: pytest.TestReport) -> str:
    """What became of the test: `passed`, `failed`, `skipped`, `xfailed`, `xpassed` or `error`."""
    if hasattr(report, "wasxfail"):
        return "xfailed" if report.skipped else "xpassed"
    if report.failed and report.when in ("setup", "teardown"):
        return "error"
    if report.failed and isinstance(report.longrepr, str) and report.longrepr.startswith("[XPASS"):
        return "xpassed"
    return report.outcome


# --- crashes ---


class StageNote:
    """A small file in which a worker notes what it is about to do, so that a crash has a stage."""

    def __init__(self, folder: Path, worker: str) -> None:
        self._file = folder / f"{worker}.json"

    def write(self, record: dict[str, Any]) -> None:
        """Replace the note."""
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file.write_text(json.dumps(record), encoding="utf-8")

    def read(self, nodeid: str) -> dict[str, Any] | None:
        """The note, if it is about this test; None for another one, and where the worker's disk is not ours."""
        try:
            record: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record if nodeid.startswith(record["test"]) else None


def note_stage(item: pytest.Item, stage: Stage) -> None:
    """Note the stage that an item enters. Only workers do: without pytest-xdist nobody would be left to read it."""
    run = item.config.stash[RUN]
    if run.worker:
        record = unchecked(item, Verdict.FAILED, f"the process died in stage {stage}") | {"stage": stage.value}
        StageNote(run.stages, run.worker).write(record)


def crash_record(report: pytest.TestReport, stages: Path) -> dict[str, Any] | None:
    """The record of a test whose worker died: pytest-xdist reports it without a phase and without properties."""
    node = getattr(report, "node", None)
    if node is None or report.when in ("setup", "call", "teardown"):
        return None
    record = StageNote(stages, node.gateway.id).read(report.nodeid)
    if record is not None:
        where = f"{record['backend']} on {record['device']}"
        record["message"] = f"{where}: the process died in stage {record['stage']}"
        report.longrepr = f"{report.longrepr}\n{record['message']}"
        report.user_properties = [*report.user_properties, *properties(record)]
    return record
