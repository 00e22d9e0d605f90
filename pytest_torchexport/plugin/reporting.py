"""The process that reports: receives outcomes, writes the files, prints the summary. Not registered in workers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchexport.plugin import marks, options
from pytest_torchexport.plugin.options import REPORT, REQUIRE
from pytest_torchexport.plugin.stash import PROPERTY, WORKERINPUT, Run

# ruff: noqa: PLC0415 - what a hook needs is loaded when it has something to do

if TYPE_CHECKING:
    from collections.abc import Sequence

_PHASES = ("setup", "call", "teardown")
_UNCHECKED = ("skipped", "invalid")
_NO_RUN = ("collectonly", "setupplan", "setuponly")
"""Modes of pytest in which no test's body runs."""


class XdistHooks:
    """Plugin object of the controller of pytest-xdist."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def pytest_configure_node(self, node: Any) -> None:
        """Tell each worker where to note its stages, and what the controller found at the start."""
        node.workerinput[WORKERINPUT] = self._run.for_workers()


class Reporter:
    """Plugin object of the controller, or of the only process."""

    def __init__(self, config: pytest.Config, run: Run) -> None:
        self._config = config
        self._run = run
        self._records: dict[str, dict[str, Any]] = {}
        self._places: dict[str, tuple[str, int]] = {}
        self._problems: list[str] = []

    def pytest_report_collectionfinish(self, items: Sequence[pytest.Item]) -> list[str]:
        """One line with the number of checks, if there are any."""
        ours = [item for item in items if marks.is_marked(item)]
        if not ours or self._config.get_verbosity() < 0:
            return []
        from pytest_torchexport.plugin import terminal

        return terminal.collected(ours)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Make ready to show what a long check is doing, if somebody looks at a terminal."""
        if sys.stdout.isatty() and any(marks.is_marked(item) for item in session.items):
            from pytest_torchexport.plugin.progress import open_progress

            self._run.progress = open_progress(self._config)

    @pytest.hookimpl(tryfirst=True)  # before JUnit and other writers see the full record
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the outcome out of the report of the phase that has it."""
        carries = any(name == PROPERTY for name, _ in report.user_properties)
        if not carries and report.when in _PHASES:
            return
        from pytest_torchexport.plugin import transport

        record = transport.take(report) or transport.crash_record(report, self._run.stages)
        known = self._records.get(report.nodeid)
        if report.when == "teardown":
            if known is not None and report.failed:
                known["result"] = "error"
        elif record is not None:
            record["result"] = transport.result_of(report)
            self._records[report.nodeid] = record
            self._places[report.nodeid] = (report.location[0], report.location[1] or 0)
            self._show(record)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the reports, and fail a run in which something required was not checked."""
        unused = not self._records and not options.any_given(self._config)
        if unused or any(self._config.getoption(mode, default=False) for mode in _NO_RUN):
            return
        if self._run.baseline is not None:
            self._run.baseline.take(self._in_order())
        if self._run.settings.reports:
            self._write()
        if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            self._demand(session)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print tests x backends, if any was checked."""
        if self._records:
            from pytest_torchexport.plugin import terminal

            terminal.write_summary(terminalreporter, self._in_order())
        if self._run.baseline is not None:
            self._run.baseline.write_summary(terminalreporter)
        for problem in self._problems:
            terminalreporter.write_line(f"export equivalence: {problem}", red=True)

    def _in_order(self) -> list[dict[str, Any]]:
        """The records by file and line of their tests: workers hand them in as they finish."""
        return [self._records[test] for test in sorted(self._records, key=lambda test: self._places[test])]

    def _show(self, record: dict[str, Any]) -> None:
        from pytest_torchexport.outcome import Outcome

        try:
            self._config.hook.pytest_torchexport_outcome(config=self._config, outcome=Outcome.from_dict(record))
        except Exception as error:  # noqa: BLE001 - a user's hook must not take the verdicts with it
            self._problems.append(f"the hook pytest_torchexport_outcome failed on {record['test']}: {error!r}")

    def _demand(self, session: pytest.Session) -> None:
        """Fail a run that is green without what it was to check."""
        records = list(self._records.values())
        if records and all(record["cell"] == marks.NO_BACKEND for record in records):
            # Without workers this is found when the tests are collected.
            self._problems.append(f"no backend is left in this run: {records[0]['message']}")
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
        require = self._run.settings.require
        # The ini file asks only runs that have marked tests.
        for name in require.command_line or (require.ini if records else None) or ():
            if not any(_checked(name, record) for record in records):
                self._problems.append(f"{REQUIRE.flag}={name}: nothing in this run was checked on it")
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _write(self) -> None:
        from pytest_torchexport.backends.registry import backend_names
        from pytest_torchexport.report import formats
        from pytest_torchexport.report import json as json_report

        machine = json_report.machine()
        try:
            self._config.hook.pytest_torchexport_machine(config=self._config, machine=machine)
        except Exception as error:  # noqa: BLE001 - a user's hook must not take the verdicts with it
            self._problems.append(f"the hook pytest_torchexport_machine failed: {error!r}")
        baseline = self._run.baseline
        trend = baseline.to_list() if baseline else ()
        document = json_report.document(self._in_order(), machine, trend, backend_names())
        for path in self._run.settings.reports:
            try:
                formats.write(path, document)
            except OSError as error:
                self._problems.append(f"{REPORT.flag}={path} was not written: {error.strerror or error}")


def _checked(name: str, record: dict[str, Any]) -> bool:
    """Whether a record is a check on the backend or device."""
    backend, device = record["backend"], record["device"]
    serves = name in (backend, backend.partition(":")[0], device, marks.device_kind(device))
    return serves and record["verdict"] not in _UNCHECKED
