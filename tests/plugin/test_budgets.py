"""Budgets from marker, ini file and command line, up to what the engine is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.plugin.conftest import Project

ONE = """
@pytest.mark.export_equivalent(backends=["trace", "script"], n_inputs=0{more})
def test_one(export_check):
    export_check(linear(), X)
"""


def budgets(project: Project, *args: str) -> dict[str, str | None]:
    """The budget that the engine is told of each item; `measured` for an empty one."""
    return {test: one["latency"] for test, one in project.told(*args).items()}


def test_a_budget_for_all_items(project: Project) -> None:
    project.test(ONE.format(more=", latency='1.5x first_call=2s'"))
    assert budgets(project) == dict.fromkeys(["test_one[trace-cpu]", "test_one[script-cpu]"], "1.5x first_call=2s")


def test_budgets_by_backend_and_device(project: Project) -> None:
    project.test("""
    from pytest_torchexport import Budget

    limits = {"*": "9x", "script": Budget("2x"), "trace:strict=false": "3x", "trace-cpu": Budget(median="4s")}

    @pytest.mark.export_equivalent(
        backends=["trace", "trace:strict=false", "script", "compile:backend=eager"], n_inputs=0, latency=limits
    )
    def test_one(export_check):
        export_check(linear(), X)
    """)
    assert budgets(project) == {
        "test_one[trace-cpu]": "4s",
        "test_one[trace:strict=false-cpu]": "3x",
        "test_one[script-cpu]": "2x",
        "test_one[compile:backend=eager-cpu]": "9x",
    }


def test_an_item_without_a_budget_is_not_measured(project: Project) -> None:
    project.test(ONE.format(more=", latency={'script': '2x'}"))
    found = project.told()
    assert found["test_one[trace-cpu]"] == {
        "latency": None,
        "enforce": True,
        "crowd": 0,
        "left_out": "",
        "worker": None,
    }
    assert found["test_one[script-cpu]"]["latency"] == "2x"


def test_the_marker_goes_before_the_ini_file_and_its_first_line_that_fits_counts(project: Project) -> None:
    project.ini("export_budget =\n    script: 3x first_call=2s\n    *-cpu: 4x\n    script-cpu: 5x")
    project.test(
        ONE.format(more="")
        + ONE.format(more=", latency='2x'").replace("one", "marked")
        + ONE.format(more=", latency={'trace': '2x'}").replace("one", "half")
    )
    assert budgets(project) == {
        "test_one[trace-cpu]": "4x",
        "test_one[script-cpu]": "3x first_call=2s",
        "test_marked[trace-cpu]": "2x",
        "test_marked[script-cpu]": "2x",
        "test_half[trace-cpu]": "2x",
        "test_half[script-cpu]": "3x first_call=2s",
    }


def test_a_selection_leaves_budgets_of_other_backends_alone(project: Project) -> None:
    project.test(ONE.format(more=", latency={'script': '2x', 'trace-cpu': '3x'}"))
    assert budgets(project, "--export-backends=trace") == {"test_one[trace-cpu]": "3x"}


@pytest.mark.parametrize("ini", ["", "export_latency = off"])
def test_report_measures_everything_and_enforces_nothing(project: Project, ini: str) -> None:
    project.ini(ini)
    project.test(ONE.format(more=", latency={'script': '2x'}"))
    found = project.told("--export-latency=report")
    assert {test: (one["latency"], one["enforce"], one["left_out"]) for test, one in found.items()} == {
        "test_one[trace-cpu]": ("no limit", False, ""),
        "test_one[script-cpu]": ("2x", False, ""),
    }


@pytest.mark.parametrize(("ini", "args"), [("", ("--export-latency=off",)), ("export_latency = off", ())])
def test_off_measures_nothing_and_says_so(project: Project, ini: str, args: tuple[str, ...]) -> None:
    project.ini(ini)
    project.test(ONE.format(more=", latency={'script': '2x'}"))
    found = project.told(*args)
    assert {test: (one["latency"], one["left_out"]) for test, one in found.items()} == {
        "test_one[trace-cpu]": (None, ""),
        "test_one[script-cpu]": (None, "--export-latency=off (budget: 2x)"),
    }


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1.2x", "write `compile: 1.2x`, `onnx: 5ms` or `[*]-cuda: median=5ms first_call=2s`"),
        ("complie: 1.2x", "'complie' names no backend, device or dtype"),
        ("complie*: 1.2x", "'complie[*]' names no backend, device or dtype"),
        ("compile: 1.2", "'1.2' has no unit: write 1.2x"),
        ("compile: speed=2", "unknown keyword of Budget 'speed'"),
        ("compile: median=5ms median=6ms", "sets median twice"),
    ],
)
def test_a_wrong_line_is_an_error_at_the_start(project: Project, line: str, said: str) -> None:
    project.ini(f"export_budget = {line}")
    project.test(ONE.format(more=""))
    result = project.pytester.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*ini setting export_budget: *{said}*"])


def test_recompiles_are_for_compile(project: Project) -> None:
    project.conftest("""
    from pytest_torchexport import Compile

    class Mine(Compile):
        name = "mine"

    def pytest_torchexport_register_backends(register):
        register("mine", Mine)
    """)
    project.test("""
    @pytest.mark.export_equivalent(backends=["compile", "mine", "trace"], latency={"compile": "recompiles=0"})
    def test_named(export_check): ...

    @pytest.mark.export_equivalent(backends=["compile", "mine"], latency="recompiles=0")
    def test_derived(export_check): ...
    """)
    assert len(project.items()) == 5
    project.ini("export_budget = *: recompiles=0")
    project.test("def test_one(export_check): ...")
    result = project.run("--export-backends=compile,trace")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*ini setting export_budget: recompiles=0 is for torch.compile, and 'trace' *"])
    assert project.items("--export-backends=compile") == ["test_one[compile-cpu]"]


def test_an_expected_excess_that_is_inconclusive_is_no_unexpected_pass(project: Project) -> None:
    project.conftest("""
    import pytest

    @pytest.fixture(autouse=True)
    def hurried(monkeypatch):
        monkeypatch.setattr("pytest_torchexport.performance.judging.LONGEST_S", -1.0)
    """)
    project.test("""
    @pytest.mark.export_equivalent(backends="trace", latency="first_call=1ns", xfail={"trace": "slow to start"})
    def test_expected(export_check):
        export_check(linear(), X)

    @pytest.mark.export_equivalent(backends="trace", latency="first_call=1ns")
    def test_other(export_check):
        export_check(linear(), X)
    """)
    project.run("-rx").assert_outcomes(xfailed=1, passed=1)
    assert {one["verdict"] for one in project.outcomes().values()} == {"inconclusive"}


def test_a_mark_on_a_single_parameter_is_no_budget_that_is_silently_ignored(project: Project) -> None:
    project.test("""
    slow = pytest.param(3, marks=pytest.mark.export_equivalent(backends=["trace"], latency="1.5x"))

    @pytest.mark.export_equivalent(backends=["trace"])
    @pytest.mark.parametrize("size", [2, slow])
    def test_sizes(export_check, size):
        export_check(linear(), X)
    """)
    result = project.run()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*a mark export_equivalent with keywords is on this item alone (backends, latency)*"])


def test_a_mark_that_is_added_to_an_item_is_no_budget_that_is_silently_ignored(project: Project) -> None:
    project.conftest("""
    import pytest

    def pytest_collection_modifyitems(items):
        for item in items:
            item.add_marker(pytest.mark.export_equivalent(latency="1.5x"))
    """)
    project.test("""
    @pytest.mark.export_equivalent(backends=["trace"])
    def test_one(export_check):
        export_check(linear(), X)
    """)
    project.run().assert_outcomes(errors=1)
