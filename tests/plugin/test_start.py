"""What the plugin costs a user who has it installed."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.plugin.conftest import Project

IMPORT = """
import sys, time
import pytest
start = time.process_time()
import pytest_torchexport.plugin
seconds = time.process_time() - start
assert not {"torch", "numpy", "onnx", "onnxruntime"} & set(sys.modules)
print(seconds)
"""


def test_importing_the_plugin_is_quick_and_loads_nothing_heavy() -> None:
    # Processor time, and the fastest of several: the machine may be doing other things.
    seconds = []
    for _ in range(7):
        run = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        seconds.append(float(run.stdout))
    assert min(seconds) <= 0.015


def test_a_run_without_marked_tests_loads_nothing_and_leaves_nothing(project: Project) -> None:
    project.pytester.makepyfile(
        test_plain="""
        import sys

        def test_nothing_heavy():
            assert not {"torch", "numpy", "onnx"} & set(sys.modules)
        """
    )
    before = {path.name for path in project.path.iterdir()}
    result = project.pytester.runpytest_subprocess(
        "-p", "no:anyio", "-v", "--export-backends=trace,onnx", "-p", "no:cov"
    )
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*export equivalence*")
    of_pytester = {"__pycache__", "stdout", "stderr", "runpytest-0", "runpytest-current"}
    assert {path.name for path in project.path.iterdir()} - before <= of_pytester


def test_collecting_by_name_loads_nothing(project: Project) -> None:
    project.pytester.makepyfile(
        test_named="""
        import sys, pytest

        @pytest.mark.export_equivalent(backends=["trace", "onnx"], devices=["cpu", "cuda:1"], xfail={"trace": "why"})
        def test_one(export_check): ...

        def test_nothing_heavy():
            assert not {"torch", "numpy", "onnx"} & set(sys.modules)
        """
    )
    project.run_apart("-k", "heavy").assert_outcomes(passed=1, deselected=4)


def test_without_the_plugin_nothing_passes_silently(project: Project) -> None:
    project.pytester.makeini("[pytest]")
    project.test("""
    @pytest.mark.export_equivalent(backends="trace")
    def test_one(export_check): ...
    """)
    result = project.pytester.runpytest_inprocess("-p", "no:torchexport")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'export_check' not found*"])


def test_help_marks_and_fixtures(project: Project) -> None:
    project.pytester.runpytest_inprocess("--help").stdout.fnmatch_lines(["export equivalence:", "  --export-backends*"])
    project.pytester.runpytest_inprocess("--markers").stdout.fnmatch_lines(
        [
            "@pytest.mark.export_equivalent([*], backends=None, *): check the model *",
            "@pytest.mark.export_backend_trace: *",
            "@pytest.mark.export_device_cuda: *",
        ]
    )
    fixtures = project.pytester.runpytest_inprocess("--fixtures", "-q")
    fixtures.stdout.fnmatch_lines(["export_check -- *", "    Check that the exported form of a model is equivalent*"])
    fixtures.stdout.no_fnmatch_line("*export_cell*")


@pytest.mark.parametrize("mode", ["--collect-only", "--setup-plan"])
def test_modes_in_which_no_test_runs(project: Project, mode: str) -> None:
    project.test("""
    @pytest.mark.export_equivalent(backends="trace")
    def test_one(export_check):
        export_check(linear(), X)
    """)
    result = project.run(mode, "--export-require=trace")
    result.stdout.no_fnmatch_line("*nothing in this run*")
    assert result.ret == 0
