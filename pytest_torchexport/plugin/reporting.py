"""The process that reports: receives outcomes, writes the files, prints the summary. Not registered in workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchexport.outcome import Outcome, Verdict
from pytest_torchexport.plugin import terminal, transport
from pytest_torchexport.plugin.matrix import NO_BACKEND, Cell
from pytest_torchexport.plugin.names import device_kind
from pytest_torchexport.plugin.options import REPORT, REQUIRE

if TYPE_CHECKING:
    from pytest_torchexport.plugin.stash import Run

_UNCHECKED = (Verdict.SKIPPED, Verdict.INVALID)


class Reporter:
    """Plugin object of the controller, or of the only process."""

    def __init__(self, config: pytest.Config, run: Run) -> None:
        self._config = config
        self._run = run
        self._records: dict[str, dict[str, Any]] = {}
        self._problems: list[str] = []

    def pytest_report_collectionfinish(self, items: list[pytest.Item]) -> list[str]:
        """One line with the number of checks, if there are any."""
        cells = [(transport.origin_of(item), transport.cell_of(item)) for item in items]
        ours = [(origin, cell) for origin, cell in cells if isinstance(cell, Cell)]
        if not ours or self._config.get_verbosity() < 0:
            return []
        tests = len({origin for origin, _ in ours})
        where = list(dict.fromkeys(cell.id for _, cell in ours))
        return [f"export equivalence: {len(ours)} checks, {tests} test(s) on {', '.join(where)}"]

    @pytest.hookimpl(tryfirst=True)  # before JUnit and other writers see the full record
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the outcome out of the report of the phase that has it."""
        record = transport.take(report) or transport.crash_record(report, self._run)
        known = self._records.get(report.nodeid)
        if report.when == "teardown":
            if known is not None and report.failed:
                known["result"] = "error"
            return
        if record is None:
            return
        record["result"] = transport.result_of(report)
        self._records[report.nodeid] = record
        try:
            self._config.hook.pytest_torchexport_outcome(config=self._config, outcome=Outcome.from_dict(record))
        except Exception as error:  # noqa: BLE001 - a user's hook must not take the verdicts with it
            self._problems.append(f"the hook pytest_torchexport_outcome failed on {record['test']}: {error!r}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the reports, and fail a run in which something required was not checked."""
        if self._config.option.collectonly:
            return
        self._write()
        records = list(self._records.values())
        if session.exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            return
        if records and all(record["cell"] == NO_BACKEND for record in records):
            # Without workers this is found when the tests are collected.
            self._problems.append(f"no backend is left in this run: {records[0]['message']}")
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
        for name in self._required():
            if not any(_checked(name, record) for record in records):
                self._problems.append(f"{REQUIRE.flag}={name}: nothing in this run was checked on it")
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print tests x backends, if any was checked."""
        terminal.write_summary(terminalreporter, list(self._records.values()))
        for problem in self._problems:
            terminalreporter.write_line(f"export equivalence: {problem}", red=True)

    def _required(self) -> tuple[str, ...]:
        """What the run has to check. The ini file asks only runs that have marked tests."""
        require = self._run.settings.require
        return require.command_line or (require.ini if self._records else None) or ()

    def _write(self) -> None:
        reports = self._run.settings.reports
        if not reports:
            return
        from pytest_torchexport.report import json as json_report  # noqa: PLC0415 - not needed at each start

        machine = json_report.machine()
        try:
            self._config.hook.pytest_torchexport_machine(config=self._config, machine=machine)
        except Exception as error:  # noqa: BLE001 - a user's hook must not take the verdicts with it
            self._problems.append(f"the hook pytest_torchexport_machine failed: {error!r}")
        document = json_report.document(list(self._records.values()), machine)
        for path in reports:
            try:
                json_report.write(path, document)
            except OSError as error:
                self._problems.append(f"{REPORT.flag}={path} was not written: {error.strerror or error}")


def _checked(name: str, record: dict[str, Any]) -> bool:
    """Whether a record is a check on the backend or device."""
    backend, device = record["backend"], record["device"]
    serves = name in (backend, backend.partition(":")[0], device, device_kind(device))
    return serves and record["verdict"] not in _UNCHECKED
