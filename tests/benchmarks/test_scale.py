"""Collection of a thousand tests, ten thousand outcomes: the time, and that it grows as their number does.

Times are the processor's, the least of several rounds. Twice as much may take 2.5 times as long: growth with the square
would be 4 times.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchexport.outcome import (
    BranchCoverage,
    BranchOutcome,
    Decision,
    Input,
    Location,
    NotChecked,
    Outcome,
    Stage,
    Verdict,
)
from pytest_torchexport.plugin import terminal
from pytest_torchexport.report import json as json_report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.benchmark
ROUNDS = 3
BACKENDS = ("trace", "script", "compile", "onnx")
MARK = f"@pytest.mark.export_equivalent(backends={list(BACKENDS)})"
PLAIN = f"@pytest.mark.parametrize('cell', {[f'{name}-cpu' for name in BACKENDS]})"

TIMES = """
import time
import pytest

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection(session):
    start = time.process_time()
    try:
        return (yield)
    finally:
        print(f"\\ntook {len(session.items)} {time.process_time() - start}")

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop(session):
    start = time.process_time()
    try:
        return (yield)
    finally:
        print(f"\\ntook {len(session.items)} {time.process_time() - start}")
"""
"""A conftest that tells how long collection and the tests took."""

MADE_UP = """
import importlib
import pytest

@pytest.fixture(autouse=True, scope="session")
def made_up():
    from pytest_torchexport import Input, NotChecked, Outcome, Stage, Verdict
    importlib.import_module("pytest_torchexport.check")
    inputs = tuple(Input("random", f"input {place}") for place in range(11))

    def run(subject, policy, surroundings):
        durations = {"reference": 0.1, "export": 0.2, "run": 0.1, "compare": 0.1}
        ledger = (NotChecked("one thing", "a reason"),)
        place = (policy.backend, policy.device, "fine")
        return Outcome(Verdict.EQUIVALENT, Stage.COMPARE, *place, test=surroundings.test, inputs=inputs,
                       compared=22, not_checked=ledger, durations=durations)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("pytest_torchexport.check"), "run", run)
        yield
"""
"""A conftest in whose tests the engine does nothing, so that what is left is the plugin."""


def _project(folder: Path, tests: int, mark: str, argument: str, body: str = "...") -> Path:
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (folder / "conftest.py").write_text(TIMES + MADE_UP, encoding="utf-8")
    functions = "".join(f"\n{mark}\ndef test_{number}({argument}): {body}\n" for number in range(tests))
    (folder / "test_it.py").write_text(f"import pytest\n{functions}", encoding="utf-8")
    return folder


def _took(folder: Path, *options: str) -> list[float]:
    """What the conftest tells, in seconds; bytecode is cached."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [float(line.split()[2]) for line in done.stdout.splitlines() if line.startswith("took ")]


def test_collection(tmp_path: Path) -> None:
    """Marked tests on four backends each, beside tests with four parameters that are nothing to the plugin."""
    small = _took(_project(tmp_path / "one", 1, MARK, "export_check"), "--collect-only")[0]
    times: dict[tuple[str, int], float] = {}
    for name, mark, argument in (("marked", MARK, "export_check"), ("plain", PLAIN, "cell")):
        for tests in (1_000, 2_000):
            folder = _project(tmp_path / f"{name}{tests}", tests, mark, argument)
            times[name, tests] = min(_took(folder, "--collect-only")[0] for _ in range(ROUNDS))
    for (name, tests), seconds in times.items():
        print(f"\n{name}: {tests:,} tests, {4 * tests:,} items: {seconds:.2f} s", end="")
    added = times["marked", 1_000] - times["plain", 1_000]
    print(f"\nthe plugin's part of 1,000 tests: {added:.2f} s; a file with one marked test: {small:.2f} s")
    assert times["marked", 1_000] < 1
    assert times["marked", 2_000] < 2.5 * times["marked", 1_000]


def test_items_of_which_the_engine_does_nothing(tmp_path: Path) -> None:
    """The plugin's own work for an item, with fixtures, seeding, outcome, hooks, summary and report."""
    times: dict[tuple[str, int], float] = {}
    for name, mark, argument, body in (
        ("marked", MARK, "export_check", "export_check(len, ((),))"),
        ("plain", PLAIN, "cell", "..."),
    ):
        for tests in (500, 1_000):
            folder = _project(tmp_path / f"{name}{tests}", tests, mark, argument, body)
            options = ["--export-report=report.json"] if name == "marked" else []
            times[name, tests] = min(_took(folder, *options)[1] for _ in range(ROUNDS))
    for (name, tests), seconds in times.items():
        print(f"\n{name}: {4 * tests:,} items: {seconds:.2f} s, {seconds / tests / 4 * 1e3:.2f} ms each", end="")
    again = {name: times[name, 1_000] - times[name, 500] for name in ("marked", "plain")}
    print(f"\nthe plugin's part of an item: {(again['marked'] - again['plain']) / 2_000 * 1e3:.2f} ms")
    assert times["marked", 1_000] < 2.5 * times["marked", 500]
    assert again["marked"] - again["plain"] < 2_000 * 0.005


# --- what is told of ten thousand outcomes ---


def _records(amount: int, *, failing: bool) -> list[dict[str, Any]]:
    decision = Decision("condition", "x > 0", Location(__file__, 3, "x > 0"), (BranchOutcome("true", "example", "e"),))
    found = []
    for number in range(amount):
        backend, origin = BACKENDS[number % 4], f"tests/test_{number // 40}.py::test_model[{number // 4}]"
        fails = failing and number % 4 == 0
        outcome = Outcome(
            Verdict.MISMATCH if fails else Verdict.EQUIVALENT,
            Stage.COMPARE,
            backend,
            "cpu",
            "Model: mismatch\n  and why" if fails else "Model: equivalent",
            test=f"{origin[:-1]}-{backend}-cpu]",
            compared=22,
            inputs=tuple(Input("random", f"input {place}") for place in range(11)),
            not_checked=(NotChecked("one thing", "a reason"),),
            branches=BranchCoverage("search", (decision,), 4),
            durations={"reference": 0.1, "export": 0.2, "run": 0.1, "compare": 0.1},
        )
        result = "failed" if fails else "passed"
        found.append(outcome.to_dict() | {"result": result, "cell": f"{backend}-cpu", "origin": origin})
    return found


def _least(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


@pytest.fixture
def silent(pytestconfig: pytest.Config, tmp_path: Path) -> Iterator[Callable[[int], pytest.TerminalReporter]]:
    """Makes terminal reporters of a verbosity that write to a file."""
    before = pytestconfig.option.verbose
    with (tmp_path / "terminal").open("w", encoding="utf-8") as file:

        def make(verbosity: int) -> pytest.TerminalReporter:
            pytestconfig.option.verbose = verbosity
            return pytest.TerminalReporter(pytestconfig, file)

        yield make
    pytestconfig.option.verbose = before


@pytest.mark.parametrize("verbosity", [0, 1, 2])
def test_the_summary_of_ten_thousand_outcomes(silent: Callable[[int], pytest.TerminalReporter], verbosity: int) -> None:
    half, whole = _records(5_000, failing=True), _records(10_000, failing=True)
    reporter = silent(verbosity)
    times = [_least(functools.partial(terminal.write_summary, reporter, records)) for records in (half, whole)]
    print(f"\nsummary with {'-' + 'v' * verbosity if verbosity else 'no -v'}: {times[0]:.2f} s, {times[1]:.2f} s")
    assert times[1] < 2.5 * times[0]
    assert times[1] < 10


def test_the_json_report_of_ten_thousand_outcomes(tmp_path: Path) -> None:
    times = []
    for amount in (5_000, 10_000):
        document = json_report.document(_records(amount, failing=True), json_report.machine())
        times.append(_least(lambda document=document: json_report.write(tmp_path / "report.json", document)))  # type: ignore[misc]
    print(f"\nJSON: {times[0]:.2f} s, {times[1]:.2f} s, {(tmp_path / 'report.json').stat().st_size / 1e6:.1f} MB")
    assert times[1] < 2.5 * times[0]
