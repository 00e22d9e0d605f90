"""Flags, ini twins, and which of them counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_torchexport.branches.explorer import BUDGET
from pytest_torchexport.plan import BRANCH_MODES, Policy
from pytest_torchexport.plugin import options
from pytest_torchexport.plugin.names import split_list
from pytest_torchexport.plugin.options import OPTIONS
from pytest_torchexport.plugin.settings import Setting

if TYPE_CHECKING:
    from tests.plugin.conftest import Project

ONE = """
def test_one(export_check):
    outcome = export_check(linear(), X)
    print("SEED", outcome.seed, "INPUTS", len(outcome.inputs))
"""


def test_each_flag_has_an_ini_twin_and_a_help_text(project: Project) -> None:
    text = " ".join(project.pytester.runpytest_inprocess("--help").outlines)
    for option in OPTIONS:
        assert option.flag in text
        assert f"{option.key} (string)" in text
        assert option.help[0].isupper()


def test_a_backend_from_the_ini_file(project: Project) -> None:
    project.ini("export_backends = script")
    project.test(ONE)
    assert project.items() == ["test_one[script-cpu]"]


def test_the_command_line_goes_before_the_ini_file(project: Project) -> None:
    project.ini("export_backends = script\nexport_devices = cuda\nexport_dtypes = float64")
    project.test(ONE)
    args = ("--export-backends=trace", "--export-devices=cpu", "--export-dtypes=float32")
    assert project.items(*args) == ["test_one[trace-cpu-float32]"]


def test_the_command_line_selects_among_what_a_marker_lists(project: Project) -> None:
    project.test("""
    @pytest.mark.export_equivalent(backends=["script", "trace", "compile:mode=max-autotune"], devices=["cpu", "cuda"])
    def test_listed(export_check): ...
    def test_open(export_check): ...
    """)
    assert project.items("--export-backends=compile,trace,onnx", "--export-devices=cpu") == [
        "test_listed[trace-cpu]",
        "test_listed[compile:mode=max-autotune-cpu]",
        "test_open[compile-cpu]",
        "test_open[trace-cpu]",
        "test_open[onnx-cpu]",
    ]


def test_marker_goes_before_ini_for_dtypes_inputs_and_seed(project: Project) -> None:
    project.ini("export_dtypes = float32\nexport_inputs = 7\nexport_seed = 5")
    project.test("""
    @pytest.mark.export_equivalent(backends="trace", dtypes="float64", n_inputs=2, seed=3)
    def test_marked(export_check):
        export_check(linear(), X)
    @pytest.mark.export_equivalent(backends="trace")
    def test_bare(export_check):
        export_check(linear(), X)
    """)
    assert project.run().ret == 0
    outcomes = project.outcomes()
    assert {key: (one["dtype"], one["seed"]) for key, one in outcomes.items()} == {
        "test_marked[trace-cpu-float64]": ("float64", 3),
        "test_bare[trace-cpu-float32]": ("float32", 5),
    }
    generated = {key: len(one["inputs"]) - 1 for key, one in outcomes.items()}
    assert generated == {"test_marked[trace-cpu-float64]": 2, "test_bare[trace-cpu-float32]": 7}
    assert project.run("--export-seed=8", "--export-inputs=1").ret == 0
    assert {(one["seed"], len(one["inputs"])) for one in project.outcomes().values()} == {(8, 2)}


def test_order_of_sources() -> None:
    assert Setting(1, 2).resolve(3, 4) == 1
    assert Setting(None, 2).resolve(3, 4) == 3
    assert Setting(None, 2).resolve(None, 4) == 2
    assert Setting[int]().resolve(None, 4) == 4
    assert Setting(0, 2).resolve(3, 4) == 0, "zero is a value"


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("trace,script", ["trace", "script"]),
        ("trace script\n onnx", ["trace", "script", "onnx"]),
        ("trace,compile:mode=default,fullgraph=true,onnx", ["trace", "compile:mode=default,fullgraph=true", "onnx"]),
        ("cpu,cuda:1", ["cpu", "cuda:1"]),
    ],
)
def test_lists(text: str, entries: list[str]) -> None:
    assert split_list(text) == entries


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--export-backends=tarce",
            "*--export-backends: unknown backend 'tarce'. Did you mean 'trace'? Accepted: *",
        ),
        ("--export-backends=", "*--export-backends: the list is empty*"),
        (
            "--export-devices=gpu",
            "*--export-devices: unknown device 'gpu'*Accepted: cpu, *, available*",
        ),
        ("--export-dtypes=int8", "*--export-dtypes: unknown dtype 'int8'*Accepted: float64, *"),
        ("--export-require=gpu", "*--export-require: unknown backend 'gpu'*trace*Devices: cpu, cuda*"),
        ("--export-inputs=-1", "*--export-inputs: '-1' is not accepted: give an integer of 0 or more*"),
        ("--export-seed=x", "*--export-seed: 'x' is not accepted: give an integer of 0 or more*"),
        ("--export-branches=on", "*--export-branches: 'on' is not accepted: choose one of search, observe, off*"),
        ("--export-search-budget=-1", "*--export-search-budget: '-1' is not accepted: give an integer of 0 or more*"),
        ("--export-user-code=a-b", "*--export-user-code: user_code holds 'a-b': give the name of a package*a glob*"),
        ("--export-user-code=,", "*--export-user-code: the list is empty*"),
        ("--export-artifacts=always", "*--export-artifacts: 'always' is not accepted*on, off, retain-on-failure*"),
        ("--export-report=x.pdf", "*--export-report: 'x.pdf'*suffix is one of .json, .html, .md*"),
        ("--export-output=test_models.py/x", "*--export-output: *test_models.py is not a directory*"),
    ],
)
def test_a_wrong_value_stops_pytest_at_its_start(project: Project, flag: str, message: str) -> None:
    project.test(ONE)
    result = project.pytester.runpytest_inprocess(flag)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


def test_a_wrong_ini_value_is_named_as_such(project: Project) -> None:
    project.ini("export_devices = cpu, gpu")
    project.test(ONE)
    result = project.pytester.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*ini setting export_devices: unknown device 'gpu'*"])


def test_an_unknown_option_of_a_backend_is_named(project: Project) -> None:
    project.test(ONE)
    result = project.run("--export-backends=trace:speed=9")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*test_one*unknown option of backend 'trace' 'speed'*Accepted: *"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_the_words_for_branches_are_those_of_the_engine() -> None:
    assert options.BRANCH_MODES == BRANCH_MODES
    assert Policy().branches == options.DEFAULT_BRANCHES
    assert options.DEFAULT_SEARCH_BUDGET == BUDGET


POLICIES = """
import importlib

@pytest.fixture(autouse=True)
def policy(monkeypatch):
    seen = []
    engine = importlib.import_module("pytest_torchexport.check")
    run = engine.run
    def spy(subject, policy, surroundings):
        seen.append(policy)
        return run(subject, policy, surroundings)
    monkeypatch.setattr(engine, "run", spy)
    yield
    one = seen[0]
    print("POLICY", one.branches, one.search_budget, one.min_coverage, one.user_code)

@pytest.mark.export_equivalent(backends="trace", n_inputs=0, branches="observe", search_budget=7, min_coverage=0)
def test_marked(export_check):
    export_check(linear(), X)

@pytest.mark.export_equivalent(backends="trace", n_inputs=0)
def test_bare(export_check):
    export_check(linear(), X)
"""


@pytest.mark.parametrize(
    ("ini", "args", "marked", "bare"),
    [
        ("", (), "observe 7 0.0 ()", "search None None ()"),
        (
            "export_branches = off\nexport_search_budget = 5\nexport_user_code = -timm, src/*.py",
            (),
            "observe 7 0.0 ('-timm', 'src/*.py')",
            "off 5 None ('-timm', 'src/*.py')",
        ),
        (
            "export_branches = off\nexport_search_budget = 5\nexport_user_code = -timm",
            ("--export-branches=search", "--export-search-budget=0", "--export-user-code=-a", "--export-user-code=b.c"),
            "search 0 0.0 ('-a', 'b.c')",
            "search 0 None ('-a', 'b.c')",
        ),
    ],
)
def test_branch_settings(project: Project, ini: str, args: tuple[str, ...], marked: str, bare: str) -> None:
    project.ini(ini)
    project.test(POLICIES)
    result = project.run("-s", *args)
    result.assert_outcomes(passed=2)
    assert [line.partition("POLICY ")[2] for line in result.outlines if "POLICY" in line] == [marked, bare]
