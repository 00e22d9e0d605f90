"""What the reports cost: time and size, and no more than in proportion to the number of checks."""

from __future__ import annotations

import gc
import math
import random
import time
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchexport.measured import ColdStart, Judged, Paired, PeakMemory, Performance, Standing, Times
from pytest_torchexport.outcome import (
    BranchCoverage,
    BranchOutcome,
    Cause,
    Decision,
    Input,
    Leaf,
    Location,
    NotChecked,
    Outcome,
    Stage,
    Verdict,
)
from pytest_torchexport.report import formats
from pytest_torchexport.report import json as json_report

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.benchmark
BACKENDS = ("trace", "script", "compile", "onnx")


def _times(median: float, dice: random.Random) -> Times:
    quantiles = tuple(sorted(median * math.exp(dice.gauss(0, 0.1)) for _ in range(101)))
    return Times(median, median * 0.99, median * 1.01, quantiles[99], 500, 0.05, quantiles)


def _performance(dice: random.Random) -> Performance:
    eager, ratio = 10 ** dice.uniform(-5, -2), dice.uniform(0.3, 1.5)
    pair = Paired(
        "example", _times(eager, dice), _times(eager * ratio, dice), ratio, ratio, ratio, 500, 4, 30, True, 1.0
    )
    calls = tuple(eager * ratio * (300 if place < 2 else 1) for place in range(20))
    starts = (ColdStart(1.0, 0.1, calls, 2), ColdStart(1.0, 0.1, calls, 2, variant="profiling=False"))
    judged = (Judged("ratio", "1.6x", f"{ratio:.2f}x", Standing.WITHIN, "example"),)
    return Performance("inference mode", (pair,), starts, PeakMemory(10**7, 10**7), 0, judged, machine={"cpu": "x"})


def _records(amount: int, *, timed: bool) -> list[dict[str, Any]]:
    """Checks of tests with four backends each; one in twenty fails."""
    dice = random.Random(0)
    found = []
    for number in range(amount):
        backend, origin = BACKENDS[number % 4], f"tests/test_{number // 40}.py::test_model[{number // 4}]"
        fails = number % 20 == 0
        place = Location(__file__, 50, "def _performance(dice: random.Random) -> Performance:")
        decision = Decision("condition", "x > 0", place, (BranchOutcome("true", "example", "example"),))
        leaf = Leaf(
            "output", agrees=not fails, cause=Cause.NUMERIC, dtype="float32", shape=(8, 8), score=3.0, limit=6.0
        )
        outcome = Outcome(
            Verdict.MISMATCH if fails else Verdict.EQUIVALENT,
            Stage.COMPARE,
            backend,
            "cpu",
            "Model on trace (cpu): mismatch" + "\n  a line of the explanation of what went wrong" * 20 * fails,
            model="Model",
            test=f"{origin[:-1]}-{backend}-cpu]",
            cause=Cause.NUMERIC if fails else None,
            worst=leaf,
            leaves=(leaf,) * 3 * fails,
            compared=22,
            inputs=tuple(Input("random", f"input {place}") for place in range(11)),
            not_checked=(NotChecked("one thing", "a reason"),),
            branches=BranchCoverage("search", (decision,), 4),
            performance=_performance(dice) if timed else None,
            durations={"reference": 0.1, "export": 0.2, "run": 0.1, "compare": 0.1},
        )
        result = "failed" if fails else "passed"
        found.append(outcome.to_dict() | {"result": result, "cell": f"{backend}-cpu", "origin": origin})
    return found


@pytest.mark.parametrize("timed", [False, True], ids=["untimed", "timed"])
@pytest.mark.parametrize("suffix", [*formats.MODULES])
def test_cost_grows_in_proportion(suffix: str, timed: bool, tmp_path: Path) -> None:
    costs: dict[int, tuple[float, int]] = {}
    path = tmp_path / f"report{suffix}"
    for amount in (40, 2_000, 10_000):
        document = json_report.document(_records(amount, timed=timed), json_report.machine())
        gc.collect()
        start = time.perf_counter()
        formats.write(path, document)
        costs[amount] = time.perf_counter() - start, path.stat().st_size
        seconds, size = costs[amount]
        print(
            f"\n{suffix} {'timed' if timed else 'untimed'}: {amount:6,} checks: {seconds:6.2f} s, "
            f"{size / 1e6:6.2f} MB; each {seconds / amount * 1e3:.2f} ms, {size / amount / 1e3:.2f} kB",
            end="",
        )
    assert costs[10_000][0] < 8 * costs[2_000][0] + 0.5
    assert costs[10_000][1] < 6 * costs[2_000][1]
    assert costs[2_000][1] / 2_000 < 20_000
