"""The summary in the terminal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchexport.backends.registry import backend_names
from pytest_torchexport.diagnose.coverage import branches_ledger
from pytest_torchexport.outcome import (
    BranchCoverage,
    BranchOutcome,
    Cause,
    Decision,
    Input,
    Location,
    NotChecked,
    Outcome,
    Stage,
    Verdict,
)
from pytest_torchexport.plugin import branches
from pytest_torchexport.plugin.terminal import MAX_ROWS, cell_text, details, table, totals
from pytest_torchexport.report import markdown
from pytest_torchexport.report.json import document

if TYPE_CHECKING:
    from tests.plugin.conftest import Project

TESTS = """
@pytest.mark.export_equivalent(backends=["trace", "script"], n_inputs=2)
def test_gate(export_check):
    export_check(Gate().eval(), X)

@pytest.mark.export_equivalent(backends=["script"], n_inputs=2)
def test_linear(export_check):
    export_check(linear(), X)

def test_unrelated(): ...
"""


def record(test: str, backend: str, verdict: Verdict = Verdict.EQUIVALENT, result: str = "passed", **more: Any) -> Any:
    outcome = Outcome(verdict, more.pop("stage", Stage.COMPARE), backend, more.pop("device", "cpu"), "message", **more)
    plain = outcome.to_dict()
    return plain | {"origin": f"a.py::{test}", "cell": f"{backend}-{outcome.device}", "result": result}


def lines(records: list[Any], width: int = 80) -> list[str]:
    rows: dict[str, list[Any]] = {}
    for one in records:
        rows.setdefault(one["origin"], []).append(one)
    return ["".join(text for text, _ in line).rstrip() for line in table(rows, width)]


def test_default(project: Project) -> None:
    project.test(TESTS)
    result = project.run("--color=no")
    result.stdout.fnmatch_lines(
        [
            "export equivalence: 3 checks of 2 tests on trace-cpu, script-cpu",
            "=* export equivalence =*",
            "             trace         script*",
            "test_gate    baked branch  ok*",
            "test_linear  -             ok*",
            "3 checks of 2 tests: 2 equivalent, 1 mismatch; 9 inputs compared",
            "=* short test summary info =*",
        ],
        consecutive=False,
    )
    result.stdout.no_fnmatch_line("*seconds*")


def test_colour(project: Project) -> None:
    project.test(TESTS)
    text = project.run("--color=yes").stdout.str()
    assert "\x1b[31m  baked branch" in text
    assert "\x1b[32m  ok" in text


def test_quiet(project: Project) -> None:
    project.test(TESTS)
    result = project.run("-q")
    result.stdout.fnmatch_lines(
        ["export equivalence: 3 checks of 2 tests: 2 equivalent, 1 mismatch; 9 inputs compared"]
    )
    result.stdout.no_fnmatch_line("test_gate *ok*")
    project.run("-qq").stdout.no_fnmatch_line("*export equivalence*")


def test_verbose(project: Project) -> None:
    project.test(TESTS)
    result = project.run("-v")
    result.stdout.fnmatch_lines(
        ["test_models.py::test_gate[[]trace-cpu[]]: inputs: 1 example, *; * s (reference *, export *, run *)"]
    )


def test_nothing_without_marked_tests(project: Project) -> None:
    project.test("def test_unrelated(): ...")
    project.run("-v").stdout.no_fnmatch_line("*export equivalence*")


@pytest.mark.parametrize(
    ("verdict", "result", "more", "expected"),
    [
        (Verdict.EQUIVALENT, "passed", {}, ("ok", "green")),
        (Verdict.EQUIVALENT, "failed", {}, ("test failed", "red")),
        (Verdict.EQUIVALENT, "error", {}, ("test failed", "red")),
        (Verdict.EQUIVALENT, "xpassed", {}, ("xpass", "red")),
        (Verdict.INCONCLUSIVE, "passed", {}, ("inconclusive", "yellow")),
        (Verdict.MISMATCH, "failed", {"cause": Cause.LOST_STATE}, ("lost state", "red")),
        (Verdict.MISMATCH, "xfailed", {"cause": Cause.LOST_STATE}, ("xfail: lost state", "yellow")),
        (Verdict.FAILED, "failed", {"stage": Stage.LOAD}, ("failed: load", "red")),
        (Verdict.REFUSED, "failed", {}, ("refused", "red")),
        (Verdict.INVALID, "failed", {}, ("invalid", "red")),
        (Verdict.SKIPPED, "skipped", {}, ("skipped", "yellow")),
        (Verdict.SKIPPED, "failed", {}, ("missing", "red")),
    ],
)
def test_cells(verdict: Verdict, result: str, more: dict[str, Any], expected: tuple[str, str]) -> None:
    assert cell_text(record("test_a", "trace", verdict, result, **more)) == expected


def test_terminal_and_reports_say_the_same() -> None:
    records = [
        record(f"test_{verdict}", backend, verdict, result)
        for verdict in Verdict
        for backend, result in zip(
            ("own", "onnx", "trace", "aoti", "script", "export"),
            ("passed", "failed", "error", "skipped", "xfailed", "xpassed"),
            strict=True,
        )
    ]
    report = document(records, {}, (), backend_names())
    said = [re.split(r" {2,}", line) for line in lines(records, 500)]
    rows = [line.strip("| ").split(" | ") for line in markdown.report(report).splitlines() if line.startswith("| ")]
    assert said[0][1:] == rows[0][1:] == ["trace", "script", "export", "aoti", "onnx", "own"]
    for mine, theirs in zip(said[1:], rows[2:], strict=True):
        assert mine[1:] == [cell.partition(" ")[2].replace("\\", "") for cell in theirs[1:]]
    assert totals(records) in markdown.report(report)


def test_columns_are_in_the_order_of_the_backends() -> None:
    assert lines([record("test_a", name) for name in ("onnx", "own", "trace")]) == [
        "        trace  onnx  own",
        "test_a  ok     ok    ok",
    ]


def test_devices_are_named_where_there_are_several() -> None:
    assert lines([record("test_a", "trace"), record("test_a", "trace", device="cuda")])[0].split() == [
        "trace-cpu",
        "trace-cuda",
    ]


def test_a_narrow_terminal() -> None:
    records = [record("test_with_a_long_name", name) for name in ("trace", "script", "compile", "onnx", "export")]
    found = lines(records, width=40)
    assert all(len(line) <= 40 for line in found)
    assert " ".join(found).split().count("ok") == 5
    assert len(found) > 2, "columns go on below"
    assert all(len(line) <= 30 for line in lines([record("test_" + "x" * 100, "trace")], width=30))


def test_files_are_named_where_names_alone_are_not_enough() -> None:
    other = record("test_b", "trace") | {"origin": "b.py::test_b"}
    same = record("test_a", "trace") | {"origin": "b.py::test_a"}
    for second, shown in [(other, ["test_a", "test_b"]), (same, ["a.py::test_a", "b.py::test_a"])]:
        assert [line.split()[0] for line in lines([record("test_a", "trace"), second])] == ["trace", *shown]


def test_many_tests(project: Project) -> None:
    project.test(f"""
    @pytest.mark.export_equivalent(backends="trace", n_inputs=0)
    @pytest.mark.parametrize("number", range({MAX_ROWS + 1}))
    def test_model(number, export_check):
        export_check(linear() if number else Gate().eval(), X if number else (X[0] * -1,), extra_inputs=[X])
    """)
    result = project.run()
    result.assert_outcomes(passed=MAX_ROWS, failed=1)
    result.stdout.fnmatch_lines(
        ["test_model[[]0[]]  baked branch*", f"... and {MAX_ROWS} tests with nothing but ok (-v shows them)"]
    )
    result.stdout.no_fnmatch_line("test_model[[]1[]]  ok*")


def test_totals() -> None:
    records = [
        record(
            "test_a", "trace", inputs=(Input("example", ""), Input("random", "")), not_checked=(NotChecked("a", "b"),)
        ),
        record("test_a", "script", Verdict.MISMATCH, "xfailed", cause=Cause.NUMERIC),
        record("test_b", "script", Verdict.SKIPPED, "skipped"),
    ]
    assert totals(records) == (
        "3 checks of 2 tests: 1 equivalent, 1 mismatch, 1 skipped (1 expected to fail); 2 inputs compared; "
        "1 thing not checked (-v lists them)"
    )


FOLDER = Path("/home/me")
TAKEN, FOUND = BranchOutcome("true", "example", "example"), BranchOutcome("false", "search", "branch 1")
MISSING = BranchOutcome("false", tried="80 steps")


def coverage(*outcomes: BranchOutcome, excluded: bool = False) -> BranchCoverage:
    where = Location("/home/me/src/gate.py", 8, "if x.sum() > 0:")
    return BranchCoverage("search", (Decision("condition", "x.sum() > 0", where, outcomes, excluded),), 90)


def test_the_column_of_branches() -> None:
    found = [
        record("test_a", "trace", branches=coverage(TAKEN, MISSING)),
        record("test_a", "script", branches=coverage(TAKEN, MISSING)),
        record("test_b", "trace", branches=coverage(TAKEN, FOUND)),
        record("test_none", "trace", branches=BranchCoverage("search")),
        record("test_out", "trace", branches=coverage(TAKEN, MISSING, excluded=True)),
        record("test_off", "trace"),
    ]
    assert lines(found) == [
        "           trace  script  branches",
        "test_a     ok     ok      1/2",
        "test_b     ok     -       2/2",
        "test_none  ok     -",
        "test_out   ok     -",
        "test_off   ok     -",
    ]


def test_the_least_of_a_tests_checks_is_shown() -> None:
    pair = [
        record("test_a", "trace", branches=coverage(TAKEN, FOUND)),
        record("test_a", "trace", device="cuda", branches=coverage(TAKEN, MISSING)),
    ]
    assert lines(pair)[1].split() == ["test_a", "ok", "ok", "1/2"]


def test_no_column_without_decisions() -> None:
    for none in (None, BranchCoverage("search"), coverage(TAKEN, MISSING, excluded=True)):
        assert lines([record("test_a", "trace", branches=none)]) == ["        trace", "test_a  ok"]


def test_the_column_of_branches_goes_on_below_in_a_narrow_terminal() -> None:
    found = [record("test_with_a_long_name", name, branches=coverage(TAKEN, FOUND)) for name in ("trace", "script")]
    found.append(record("test_without", "trace"))
    shown = lines(found, width=36)
    assert all(len(line) <= 36 for line in shown)
    assert [line.split()[-1] for line in shown[-2:]] == ["branches", "2/2"], "no row without branches there"


def test_unreached_outcomes_are_listed_once_for_a_test() -> None:
    row = [record("test_a", name, branches=coverage(TAKEN, MISSING)) for name in ("trace", "script")]
    assert branches.details("a.py::test_a", row, FOLDER, everything=False) == [
        "a.py::test_a: branches: 1 of 2 outcomes reached (1 by example); 90 eager runs",
        "  not reached: src/gate.py:8: x.sum() > 0: false (tried: 80 steps)",
    ]
    elsewhere = branches.details("a.py::test_a", row, Path("/home/you"), everything=False)
    assert elsewhere[1].startswith("  not reached: /home/me/src/gate.py:8: ")


def test_all_decisions_with_vv() -> None:
    row = [record("test_a", "trace", branches=coverage(TAKEN, FOUND))]
    assert branches.details("test_a", row, FOLDER, everything=False)[1:] == []
    assert branches.details("test_a", row, FOLDER, everything=True)[1:] == [
        "  src/gate.py:8: x.sum() > 0: true by example, false by search (branch 1)"
    ]
    missing = [record("test_a", "trace", branches=coverage(TAKEN, MISSING))]
    assert branches.details("test_a", missing, FOLDER, everything=True)[1:] == [
        "  src/gate.py:8: x.sum() > 0: true by example, false not reached",
        "    false: tried: 80 steps",
    ]
    out = [record("test_a", "trace", branches=coverage(TAKEN, MISSING, excluded=True))]
    assert branches.details("test_a", out, FOLDER, everything=True)[1:] == [
        "  src/gate.py:8: x.sum() > 0: true by example, false not reached (excluded)"
    ]


def test_checks_of_a_test_that_took_different_branches_are_told_apart() -> None:
    row = [
        record("test_a", "trace", branches=coverage(TAKEN, FOUND)) | {"test": "test_a[trace-cpu]"},
        record("test_a", "script", branches=coverage(TAKEN, MISSING)) | {"test": "test_a[script-cpu]"},
    ]
    assert [line.partition(": ")[0] for line in branches.details("test_a", row, FOLDER, everything=False)[:2]] == [
        "test_a",
        "test_a[script-cpu]",
    ]


def test_branches_are_not_repeated_in_the_ledger_of_each_check() -> None:
    own = coverage(TAKEN, MISSING)
    ledger = (*branches_ledger(own), NotChecked("what", "why"))
    one = record("test_a", "trace", branches=own, not_checked=ledger, durations={"run": 1.0})
    assert details([one])[1:] == ["  not checked: what: why"]
    assert "2 things not checked" in totals([one])


def test_branches_in_a_run(project: Project) -> None:
    project.fabricate_branches()
    project.test("""
    @pytest.mark.export_equivalent(backends=["trace", "script"], n_inputs=0)
    def test_gate(export_check):
        export_check(linear(), X)
    """)
    project.run().stdout.fnmatch_lines(["           trace  script  branches", "test_gate  ok     ok      1/2*"])
    result = project.run("-v")
    assert [line for line in result.outlines if "not reached" in line] == [
        "  not reached: test_models.py:8: x.sum() > 0: false (tried: 80 steps)"
    ]
    result.stdout.fnmatch_lines(["test_models.py::test_gate: branches: 1 of 2 outcomes reached (1 by example)*"])
    project.run("-vv").stdout.fnmatch_lines(["  test_models.py:8: x.sum() > 0: true by example, false not reached"])
