"""Records as a run makes them, to report on."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchexport.measured import ColdStart, Judged, Paired, PeakMemory, Performance, Standing, Times
from pytest_torchexport.outcome import (
    BranchCoverage,
    BranchOutcome,
    Cause,
    Decision,
    Evidence,
    Input,
    Leaf,
    Location,
    NotChecked,
    Outcome,
    Stage,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def times(median: float, spread: float = 0.1) -> Times:
    """Times whose logarithm is spread evenly around that of the median."""
    quantiles = tuple(median * math.exp(spread * (place - 50) / 50) for place in range(101))
    return Times(median, median * 0.98, median * 1.02, quantiles[99], 400, spread / 2, quantiles)


def measured(ratio: float = 0.5, budget: str = "1.2x", text: str = "example") -> Performance:
    """An exported program of which each call takes `ratio` times 1 ms."""
    paired = Paired(text, times(1e-3), times(1e-3 * ratio), ratio, ratio * 0.98, ratio * 1.02, 400, 4, 30, True, 0.5)
    calls = (0.4, 0.2, *[1e-3 * ratio] * 18)
    return Performance(
        paired=(paired,),
        cold_starts=(
            ColdStart(1.5, 0.02, calls, 2, note=text),
            ColdStart(1.5, 0.02, tuple(2e-3 for _ in calls), 0, variant="profiling=False"),
        ),
        memory=PeakMemory(12_000_000, 9_000_000, note=text),
        recompiles=0,
        judged=(Judged("ratio", budget, f"{ratio}x", Standing.WITHIN, text, text),),
        machine={"cpu": text, "threads": 1},
    )


@pytest.fixture
def record() -> Callable[..., dict[str, Any]]:
    """Makes a record: an equivalent one by default, with a user's text in every place where `text` is given."""

    def make(
        origin: str = "a.py::test_a", backend: str = "trace", result: str = "passed", **more: Any
    ) -> dict[str, Any]:
        text = more.pop("text", "plain")
        place = Location(f"{text}.py", 3, f"if {text}:")
        outcomes = (BranchOutcome("true", "example", text), BranchOutcome(f"false {text}", tried=text))
        decision = Decision("condition", text, place, outcomes)
        leaf = Leaf(f"output[{text!r}]", agrees=True, dtype="float32", shape=(2, 3), elements=6, score=3.0, limit=6.0)
        wrong = Leaf(text, agrees=False, cause=Cause.NUMERIC, reason=text, score=60.0, limit=6.0, where=text, rule=text)
        fields: dict[str, Any] = {
            "verdict": Verdict.EQUIVALENT,
            "stage": Stage.COMPARE,
            "backend": backend,
            "device": "cpu",
            "message": f"{text}: first line\n  second {text}",
            "model": text,
            "test": f"{origin}[{backend}-cpu]",
            "cause": None,
            "location": place,
            "evidence": (Evidence(text, Location(text, 1, text)), Evidence(text)),
            "worst": leaf,
            "leaves": (wrong,),
            "compared": 2,
            "inputs": (Input("example", text), Input("random", text, agrees=False)),
            "dropped": {text: 2},
            "failing_input": text,
            "not_checked": (NotChecked(text, text),),
            "tolerance": text,
            "durations": {"export": 0.5, text: 0.25},
            "artifact_bytes": 5864,
            "kept_in": text,
            "reproduction": text,
            "branches": BranchCoverage("search", (decision,), 90),
            "performance": measured(text=text),
            "details": {text: text, "list": [text]},
        }
        found = Outcome(**(fields | more)).to_dict()
        return found | {"result": result, "cell": f"{backend}-cpu", "origin": origin}

    return make


@pytest.fixture
def bare() -> Callable[..., dict[str, Any]]:
    """Makes the record of a test that came to no comparison."""

    def make(verdict: Verdict = Verdict.SKIPPED, result: str = "skipped", **more: Any) -> dict[str, Any]:
        found = Outcome(verdict, Stage.REFERENCE, more.pop("backend", ""), "", "no device", **more).to_dict()
        return found | {"result": result, "cell": "", "origin": "a.py::test_bare"}

    return make


@pytest.fixture
def document() -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Makes the report of records, on a machine that is always the same."""

    def make(records: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "schema": 1,
            "tool": {"name": "pytest-torchexport", "version": "1"},
            "versions": {"python": "3.12.0", "torch": "2.13.0"},
            "written": "2030-01-01T00:00:00+00:00",
            "machine": {"platform": "any", "cpus": 2},
            "backends": ["trace", "script", "compile", "onnx"],
            "outcomes": records,
        }

    return make


@pytest.fixture
def trend() -> Callable[..., dict[str, Any]]:
    """Makes an entry of the trend: the ratio of a record that is a fifth above the baseline's, by default."""

    def make(record: dict[str, Any], change: str = "slower", effect: float = 0.21, text: str = "x") -> dict[str, Any]:
        compared = change not in ("new", "unsettled")
        return {
            "test": record["test"],
            "origin": record["origin"],
            "cell": record["cell"],
            "input": text,
            "machine": text,
            "change": change,
            "ratio": None if change == "unsettled" else 0.61 * (1 + effect),
            "baseline": 0.61 if compared else None,
            "since": text if compared else None,
            "effect": effect if compared else None,
            "low": effect - 0.06 if compared else None,
            "high": effect + 0.07 if compared else None,
            "conditions": [text, text] if compared else [],
        }

    return make


@pytest.fixture
def performance() -> Callable[..., dict[str, Any]]:
    """Makes measurements, as a record holds them."""
    return lambda *args, **kwargs: asdict(measured(*args, **kwargs))
