"""A small project of a user, on which the tests run pytest."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchexport.backends import registry

if TYPE_CHECKING:
    from pathlib import Path

HEADER = """
import pytest
import torch
from torch import nn

class Gate(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x - 1

def linear():
    return nn.Linear(3, 2).eval()

X = (torch.ones(4, 3),)
"""

FABRICATED = """
import dataclasses
import importlib
import pathlib
import pytest
from pytest_torchexport import BranchCoverage, BranchOutcome, Decision, Location

WHERE = Location(str(pathlib.Path(__file__).with_name("test_models.py")), 8, "if x.sum() > 0:")
OUTCOMES = (BranchOutcome("true", "example", "example"), BranchOutcome("false", tried="80 steps"))
COVERAGE = BranchCoverage("search", (Decision("condition", "x.sum() > 0", WHERE, OUTCOMES),), 90)

@pytest.fixture(autouse=True)
def fabricated(monkeypatch):
    engine = importlib.import_module("pytest_torchexport.check")
    run = engine.run
    def with_branches(*args):
        return dataclasses.replace(run(*args), branches=COVERAGE)
    monkeypatch.setattr(engine, "run", with_branches)
"""
"""A conftest that gives each outcome the branch coverage of a gate."""


LISTENING = """
import dataclasses
import importlib
import json
import pathlib
import pytest

@pytest.fixture(autouse=True)
def listening(monkeypatch, request):
    engine = importlib.import_module("pytest_torchexport.check")
    run = engine.run
    def listen(subject, policy, surroundings):
        told = {
            "latency": None if policy.latency is None else str(policy.latency),
            "enforce": policy.enforce,
            "crowd": policy.crowd,
            "left_out": policy.latency_left_out,
            "worker": request.config.workerinput["workerid"] if hasattr(request.config, "workerinput") else None,
        }
        with pathlib.Path(__file__).with_name("told.jsonl").open("a") as file:
            print(json.dumps({surroundings.test.partition("::")[2]: told}), file=file)
        return run(subject, dataclasses.replace(policy, latency=None), surroundings)
    monkeypatch.setattr(engine, "run", listen)
"""
"""A conftest that notes what the engine is told of latency, and measures nothing."""


class Project:
    """A folder with tests; `run` runs pytest on it."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.path = pytester.path
        self.ini("")

    def ini(self, text: str) -> None:
        """Write the ini file; warnings are errors and marks are strict, whatever the text says."""
        strict = "[pytest]\naddopts = --strict-markers -p no:cacheprovider\nfilterwarnings = error\n"
        self.pytester.makeini(strict + textwrap.dedent(text))

    def test(self, source: str, name: str = "test_models") -> Path:
        """Write a test file behind the usual imports."""
        return self.pytester.makepyfile(**{name: HEADER + textwrap.dedent(source)})

    def conftest(self, source: str) -> None:
        """Write the conftest file."""
        self.pytester.makeconftest(textwrap.dedent(source))

    def fabricate_branches(self) -> None:
        """Write a conftest file by which each outcome has the branch coverage of a gate."""
        self.pytester.makeconftest(FABRICATED)

    def run(self, *args: str) -> pytest.RunResult:
        """Run pytest in this process, with a JSON report."""
        return self.pytester.runpytest_inprocess("--export-report=report.json", *args)

    def run_apart(self, *args: str) -> pytest.RunResult:
        """Run pytest in a process of its own, with a JSON report."""
        return self.pytester.runpytest_subprocess("--export-report=report.json", *args)

    def told(self, *args: str, apart: bool = False) -> dict[str, dict[str, Any]]:
        """Run pytest; return what the engine is told of latency, by what follows `::` in each test's id."""
        self.conftest(LISTENING)
        notes = self.path / "told.jsonl"
        notes.unlink(missing_ok=True)
        result = (self.run_apart if apart else self.run)(*args)
        assert result.ret == 0, result.stdout.str()
        found: dict[str, dict[str, Any]] = {}
        for line in notes.read_text(encoding="utf-8").splitlines():
            found |= json.loads(line)
        return found

    def report(self) -> dict[str, Any]:
        """The JSON report of the last run."""
        found: dict[str, Any] = json.loads((self.path / "report.json").read_text(encoding="utf-8"))
        return found

    def outcomes(self) -> dict[str, dict[str, Any]]:
        """The outcomes of the last run, by what follows `::` in the test's id."""
        return {one["test"].partition("::")[2]: one for one in self.report()["outcomes"]}

    def items(self, *args: str) -> list[str]:
        """What pytest collects, without the files' names."""
        result = self.pytester.runpytest_inprocess("--collect-only", "-q", *args)
        return [line.partition("::")[2] for line in result.outlines if "::" in line]


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    """An empty project; backends that its conftest registers are forgotten afterwards."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return Project(pytester)
