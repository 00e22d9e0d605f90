"""The summary in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchexport.outcome import Cause, Input, NotChecked, Outcome, Stage, Verdict
from pytest_torchexport.plugin.terminal import MAX_ROWS, cell_text, table, totals

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
            "3 checks: 2 equivalent, 1 mismatch; 9 inputs compared",
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
    result.stdout.fnmatch_lines(["export equivalence: 3 checks: 2 equivalent, 1 mismatch; 9 inputs compared"])
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
        (Verdict.MISMATCH, "xfailed", {"cause": Cause.LOST_STATE}, ("xfail", "yellow")),
        (Verdict.FAILED, "failed", {"stage": Stage.LOAD}, ("failed: load", "red")),
        (Verdict.REFUSED, "failed", {}, ("refused", "red")),
        (Verdict.INVALID, "failed", {}, ("invalid", "red")),
        (Verdict.SKIPPED, "skipped", {}, ("skipped", "yellow")),
        (Verdict.SKIPPED, "failed", {}, ("missing", "red")),
    ],
)
def test_cells(verdict: Verdict, result: str, more: dict[str, Any], expected: tuple[str, str]) -> None:
    assert cell_text(record("test_a", "trace", verdict, result, **more)) == expected


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
        "3 checks: 1 equivalent, 1 mismatch, 1 skipped (1 expected); 2 inputs compared; "
        "1 thing not checked (-v lists them)"
    )
