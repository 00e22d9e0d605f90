"""Latency in the summary."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchexport.measured import ColdStart, Judged, Paired, PeakMemory, Performance, Standing, Times
from pytest_torchexport.outcome import Outcome, Stage, Verdict
from pytest_torchexport.plugin import speeds
from pytest_torchexport.plugin.terminal import cell_text, details, totals
from pytest_torchexport.report import junit

if TYPE_CHECKING:
    from tests.plugin.conftest import Project

WITHIN, OVER, UNSURE = Standing.WITHIN, Standing.OVER, Standing.INCONCLUSIVE


def times(median: float) -> Times:
    return Times(median, 0.9 * median, math.inf, None, 200, 0.04)


def paired(ratio: float = 1.3, label: str = "example") -> Paired:
    return Paired(label, times(1e-4), times(ratio * 1e-4), ratio, ratio - 0.02, ratio + 0.02, 80, 1, 5, True, 0.5)


def judged(standing: Standing = WITHIN, name: str = "ratio", budget: str = "1.5x", **more: Any) -> Judged:
    return Judged(name, budget, "1.30x (1.28x to 1.32x)", standing, **more)


def performance(*judged: Judged, pairs: tuple[Paired, ...] = (paired(),), **more: Any) -> Performance:
    starts = (
        ColdStart(0.2, 0.003, (2.0, 0.1), 1),
        ColdStart(0.2, None, (1.0, 0.1), None, variant="profiling=False"),
    )
    memory = PeakMemory(host=2_500_000, host_eager=1_000_000)
    return Performance(paired=pairs, cold_starts=starts, memory=memory, judged=judged, **more)


def record(name: str = "test_a", verdict: Verdict = Verdict.EQUIVALENT, **more: Any) -> dict[str, Any]:
    found = more.pop("performance", performance())
    outcome = Outcome(verdict, Stage.LATENCY, "trace", "cpu", "message", performance=found, test=name, **more)
    result = "failed" if outcome.failed else "passed"
    return outcome.to_dict() | {"origin": f"a.py::{name}", "cell": "trace-cpu", "result": result}


def lines(*records: dict[str, Any], width: int = 120, everything: bool = False) -> list[str]:
    found = speeds.section(records, [str(one["test"]) for one in records], width, everything=everything)
    return ["".join(text for text, _ in line) for line in found]


def colors(one: dict[str, Any]) -> str:
    return speeds.section([one], ["a"], 80, everything=False)[1][-1][1]


def test_a_line_for_each_check_that_was_measured() -> None:
    found = lines(
        record(performance=performance(judged(), judged(name="first_call", budget="9 s"))),
        record("test_slow", Verdict.OVER_BUDGET, performance=performance(judged(), judged(OVER, "median", "0.1 ms"))),
        record("test_free"),
    )
    assert found == [
        "latency    eager   exported  ratio               first call  budget",
        "test_a     100 us  130 us    1.30x [1.28..1.32]  2.00 s      within: 1.5x, first call 9 s",
        "test_slow  100 us  130 us    1.30x [1.28..1.32]  2.00 s      over: median 0.1 ms",
        "test_free  100 us  130 us    1.30x [1.28..1.32]  2.00 s    ",
    ]


def test_further_inputs_have_a_line_of_their_own() -> None:
    found = lines(record(performance=performance(judged(), pairs=(paired(), paired(2.0, "extra_inputs[0]")))))
    assert [line.split("  ")[0] for line in found[1:2]] == ["test_a"]
    assert found[2] == "  and on extra_inputs[0]  100 us  200 us    2.00x [1.98..2.02]            "
    only = lines(record(performance=performance(pairs=(paired(2.0, "extra_inputs[0]"),))))
    assert only[1].startswith("test_a on extra_inputs[0]  100 us")


@pytest.mark.parametrize(
    ("found", "color"),
    [
        (performance(), ""),
        (performance(judged()), "green"),
        (performance(judged(), judged(Standing.NOT_CHECKED)), "yellow"),
        (performance(judged(), judged(UNSURE)), "yellow"),
        (performance(judged(UNSURE), judged(OVER)), "red"),
        (performance(judged(OVER), enforced=False), "yellow"),
    ],
)
def test_the_worst_figure_gives_the_colour(found: Performance, color: str) -> None:
    assert colors(record(performance=found)) == color


def test_what_is_not_enforced_is_said_to_be() -> None:
    found = lines(record(performance=performance(judged(OVER), enforced=False)))
    assert found[0].endswith("  budget (not enforced)")
    assert found[1].endswith("  over: 1.5x")
    assert not lines(record())[0].rstrip().endswith("budget")


def test_a_narrow_terminal_cuts_names_only() -> None:
    name = "test_" + "x" * 100
    found = lines(record(name, performance=performance(judged())), width=80)
    assert found[1].startswith("…xxx")
    assert found[1].endswith("within: 1.5x")
    assert len(found[0]) <= 80 + len("budget")


def test_of_many_those_that_matter_are_shown() -> None:
    many = [record(f"test_{n}", performance=performance(pairs=(paired(1 + n / 1e5),))) for n in range(10_000)]
    many[17] = record("test_17", performance=performance(judged(UNSURE), pairs=(paired(0.5),)))
    many[4] = record("test_4", performance=performance(judged(OVER), pairs=(paired(0.5),)))
    found = lines(*many)
    assert [line.split()[0] for line in found[1:4]] == ["test_4", "test_17", "test_9972"]
    assert found[-2].startswith("test_9999 ")
    assert found[-1] == "... and 9970 more that were measured (-v shows them)"
    assert len(found) == speeds.MAX_ROWS + 2
    assert len(lines(*many, everything=True)) == 10_001


def test_verbose_says_how_it_was_measured() -> None:
    why = judged(UNSURE, "median", "1 ms", input="example", why="too noisy")
    found = details([record(performance=performance(judged(), why, recompiles=2), durations={"latency": 1.0})])
    timed, started, held = found[1:]
    assert timed == (
        "  latency: eager 100 us ±4%, exported 130 us ±4%, ratio 1.30x [1.28..1.32] from 80 pairs in random turns "
        "(inference mode)"
    )
    assert started == (
        "  cold start: export 200 ms, load 3.00 ms, first call 2.00 s, settled after 1 calls; profiling=False: first "
        "call 1.00 s, not settled in 2 calls; recompiled 2 times; peak on host 2.50 MB (eager 1.00 MB)"
    )
    assert held == (
        "  budget: ratio 1.30x (1.28x to 1.32x) of 1.5x: within; median on example 1.30x (1.28x to 1.32x) of 1 ms: "
        "inconclusive (too noisy)"
    )
    assert details([record(performance=None, durations={"run": 1.0})])[1:] == []


def test_cells_and_totals() -> None:
    records = [record(verdict=one) for one in (Verdict.OVER_BUDGET, Verdict.INCONCLUSIVE, Verdict.OVER_BUDGET)]
    assert [cell_text(one) for one in records[:2]] == [("over-budget", "red"), ("inconclusive", "yellow")]
    assert totals(records) == "3 checks of 1 test: 2 over-budget, 1 inconclusive; 0 inputs compared"


def test_flat_properties() -> None:
    found = dict(junit.properties(record()))
    assert found["torchexport.latency_ratio"] == pytest.approx(1.3)
    assert found["torchexport.latency_median_s"] == pytest.approx(1.3e-4)
    assert found["torchexport.first_call_s"] == 2.0
    bare = dict(junit.properties(record(performance=None)))
    assert not [name for name in bare if re.search("latency|first_call", name)]


def test_it_survives_the_way_through_json() -> None:
    found = Outcome.from_dict(record(performance=performance(judged())))
    assert found.performance == performance(judged())


MEASURED = """
@pytest.mark.export_equivalent(backends="trace", latency={latency!r}, n_inputs=0)
def test_one(export_check):
    export_check(linear(), X)

@pytest.mark.export_equivalent(backends="trace", n_inputs=0)
def test_free(export_check):
    export_check(linear(), X)
"""


def test_an_excess_fails_and_is_shown(project: Project) -> None:
    project.test(MEASURED.format(latency="0.001x first_call=1min"))
    result = project.run("--color=no")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        [
            "*NotEquivalent: *over-budget: ratio *, the budget is 0.001x",
            "test_one   over-budget*",
            "latency              eager *exported *ratio *first call *budget*",
            "test_one[[]trace-cpu[]]  * us  * us * *x [[]*..*[]]  *s *over: 0.001x",
            "2 checks of 2 tests: 1 equivalent, 1 over-budget; 2 inputs compared",
        ]
    )
    result.stdout.no_fnmatch_line("test_free[[]trace-cpu[]]*")
    assert project.outcomes()["test_free[trace-cpu]"]["performance"] is None, "without a budget nothing is measured"


def test_reported_only(project: Project) -> None:
    project.test(MEASURED.format(latency="0.001x"))
    result = project.run("--color=no", "--export-latency=report")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        [
            "latency * budget (not enforced)",
            "test_one[[]trace-cpu[]] *  over: 0.001x",
            "test_free[[]trace-cpu[]] *[[]*..*[]]*",
            "2 checks of 2 tests: 2 equivalent; 2 inputs compared",
        ]
    )
