"""The hooks for users, by the examples in their docstrings."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import pytest

from pytest_torchexport.plugin import hookspecs

if TYPE_CHECKING:
    from tests.plugin.conftest import Project

HOOKS = [name for name in vars(hookspecs) if name.startswith("pytest_torchexport_")]


def example(name: str) -> str:
    """The code in a hook's docstring."""
    text = getattr(hookspecs, name).__doc__
    code = textwrap.dedent(text.partition("Example::")[2])
    assert f"def {name}(" in code
    return code


ONE = """
@pytest.mark.export_equivalent(backends="trace", n_inputs=1)
def test_one(export_check):
    assert export_check(linear(), X).tolerance == "calibrated"
"""


@pytest.mark.parametrize("name", HOOKS)
def test_each_example_runs(project: Project, name: str) -> None:
    project.conftest(example(name))
    project.test(ONE)
    project.run().assert_outcomes(passed=1)


def test_register_backends(project: Project) -> None:
    project.conftest(example("pytest_torchexport_register_backends"))
    project.test("""
    def test_one(export_check):
        assert export_check(linear(), X).test.endswith("[trace-again-cpu]")
    """)
    project.run("--export-backends=trace-again", "-m", "export_backend_trace_again").assert_outcomes(passed=1)


def test_tolerance_the_first_answer_counts(project: Project) -> None:
    project.conftest("""
    from pytest_torchexport import Tolerance

    def pytest_torchexport_tolerance(item, backend, device, tolerance):
        assert (backend, device) == ("trace", "cpu")
        if item.name.startswith("test_loose"):
            assert tolerance == Tolerance(rtol=0, atol=0)
            return Tolerance(rtol=0, atol=5)
    """)
    project.test("""
    from pytest_torchexport import Tolerance

    mark = pytest.mark.export_equivalent(backends="trace", tolerance=Tolerance(rtol=0, atol=0))

    @mark
    def test_loose(export_check):
        export_check(Gate().eval(), X)
    @mark
    def test_exact(export_check):
        export_check(Gate().eval(), X)
    """)
    project.run().assert_outcomes(passed=1, failed=1)


def test_domains(project: Project) -> None:
    project.conftest("""
    from pytest_torchexport import floats

    def pytest_torchexport_domains(item, domains):
        if item.name.startswith("test_positive"):
            return {"x": floats(1.0, 2.0), **domains}
    """)
    project.test("""
    from pytest_torchexport import floats

    @pytest.mark.export_equivalent(backends="trace")
    class TestGate:
        def test_positive(self, export_check):
            export_check(Gate().eval(), X)
        def test_positive_but_said_otherwise(self, export_check):
            export_check(Gate().eval(), X, inputs={"x": floats(-2.0, -1.0)})
        def test_any(self, export_check):
            export_check(Gate().eval(), X)
    """)
    project.run().assert_outcomes(passed=1, failed=2)


@pytest.mark.parametrize("args", [(), ("-n1",)], ids=["one process", "xdist"])
def test_outcome(project: Project, args: tuple[str, ...]) -> None:
    project.conftest(example("pytest_torchexport_outcome"))
    project.test(ONE)
    (project.run_apart if args else project.run)(*args).assert_outcomes(passed=1)
    assert (project.path / "slow-exports.txt").read_text(encoding="utf-8").splitlines() == [
        "test_models.py::test_one[trace-cpu] equivalent"
    ]


def test_machine(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_NAME", "runner-7")
    project.conftest(example("pytest_torchexport_machine"))
    project.test(ONE)
    project.run().assert_outcomes(passed=1)
    assert project.report()["machine"]["runner"] == "runner-7"


@pytest.mark.parametrize("name", ["pytest_torchexport_outcome", "pytest_torchexport_machine"])
def test_a_hook_that_fails_while_reporting_changes_no_verdict(project: Project, name: str) -> None:
    project.conftest(f"""
    def {name}():
        raise RuntimeError("no network")
    """)
    project.test(ONE)
    result = project.run()
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines([f"*the hook {name} failed*no network*"])
    assert len(project.report()["outcomes"]) == 1
