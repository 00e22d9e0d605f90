"""Tolerances from marker, ini file and hook, for all results or by name; what is set by hand is said so."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchexport import Tolerance
from pytest_torchexport.plugin.tolerances import tolerance_of

if TYPE_CHECKING:
    from tests.plugin.conftest import Project

TWICE = """
from pytest_torchexport import Tolerance

class Off(torch.nn.Module):
    # Wrong under trace, by one part in a thousand.
    def forward(self, x):
        y = torch.tanh(x)
        return {"main": y * 1.001 if torch.jit.is_tracing() else y, "aux": x + 1}

def checked(export_check):
    return export_check(Off(), (torch.rand(3, 4),))
"""


def outcomes(project: Project, *args: str) -> dict[str, Any]:
    project.run("--export-report=out.json", *args)
    found = json.loads((project.pytester.path / "out.json").read_text(encoding="utf-8"))["outcomes"]
    return {one["test"].partition("::")[2]: one for one in found}


def test_tolerances_on_the_marker(project: Project) -> None:
    project.test(
        TWICE
        + """
@pytest.mark.export_equivalent(backends="trace:strict=false")
def test_default(export_check): checked(export_check)

@pytest.mark.export_equivalent(backends="trace:strict=false", tolerance=Tolerance(rtol=0.01, atol=0))
def test_fixed(export_check): checked(export_check)

@pytest.mark.export_equivalent(backends="trace:strict=false", tolerance=Tolerance(k=1e6))
def test_k(export_check): checked(export_check)

@pytest.mark.export_equivalent(backends="trace:strict=false", tolerance=Tolerance(precision="bf16"))
def test_precision(export_check): checked(export_check)

@pytest.mark.export_equivalent(backends="trace:strict=false", tolerance={"main": Tolerance(rtol=0.01, atol=0)})
def test_named(export_check): checked(export_check)

@pytest.mark.export_equivalent(backends="trace:strict=false", tolerance={"aux": Tolerance(rtol=0.01, atol=0)})
def test_other(export_check): checked(export_check)

@pytest.mark.export_equivalent(backends="trace:strict=false", tolerance={"main": Tolerance(compare="ignore")})
def test_ignored(export_check): checked(export_check)

@pytest.mark.export_equivalent(backends="trace:strict=false", tolerance=Tolerance(compare="ignore"))
def test_nothing(export_check): checked(export_check)
"""
    )
    found = outcomes(project)
    verdicts = {name.removeprefix("test_").partition("[")[0]: one["verdict"] for name, one in found.items()}
    assert verdicts == {
        "default": "mismatch",
        "fixed": "equivalent",
        "k": "equivalent",
        "precision": "equivalent",
        "named": "equivalent",
        "other": "mismatch",
        "ignored": "equivalent",
        "nothing": "invalid",
    }
    assert found["test_default[trace:strict=false-cpu]"]["tolerance"] == "calibrated"
    assert found["test_named[trace:strict=false-cpu]"]["tolerance"] == "set: main: rtol=0.01, atol=0"
    assert found["test_k[trace:strict=false-cpu]"]["worst"]["rule"] == "set: k=1e+06"
    ledger = found["test_ignored[trace:strict=false-cpu]"]["not_checked"]
    assert [entry["what"] for entry in ledger] == ["output['main']"]


def test_a_name_that_no_result_has_is_an_error_that_lists_them(project: Project) -> None:
    project.test(
        TWICE
        + """
@pytest.mark.export_equivalent(backends="trace:strict=false", tolerance={"mian": Tolerance(k=10)})
def test_one(export_check): checked(export_check)
"""
    )
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*tolerance names 'mian'*output?'main'?*output?'aux'?*"])


def test_tolerances_in_the_ini_file(project: Project) -> None:
    project.ini("export_tolerance =\n    script: k=7\n    trace-cpu: rtol=0.01 atol=0\n    *: k=8")
    project.test(
        TWICE
        + """
def test_one(export_check): checked(export_check)

@pytest.mark.export_equivalent(tolerance=Tolerance(k=9))
def test_marked(export_check): checked(export_check)
"""
    )
    found = outcomes(project, "--export-backends=trace:strict=false,compile:backend=eager")
    assert {name: one["tolerance"] for name, one in found.items()} == {
        "test_one[trace:strict=false-cpu]": "set: rtol=0.01, atol=0",
        "test_one[compile:backend=eager-cpu]": "set: k=8",
        "test_marked[trace:strict=false-cpu]": "set: k=9",
        "test_marked[compile:backend=eager-cpu]": "set: k=9",
    }
    assert found["test_one[trace:strict=false-cpu]"]["verdict"] == "equivalent"


def test_the_summary_says_what_is_set_by_hand(project: Project) -> None:
    project.test(
        """
from pytest_torchexport import Tolerance

@pytest.mark.export_equivalent(backends="trace", tolerance=Tolerance(k=9))
def test_set(export_check): export_check(linear(), X)

@pytest.mark.export_equivalent(backends="trace")
def test_free(export_check): export_check(linear(), X)
"""
    )
    project.run("-v").stdout.fnmatch_lines(
        ["*test_set[[]trace-cpu]: inputs: *", "  tolerance set by hand: k=9", "*tolerance set by hand in 1 check*"]
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("k=10", "write `onnx: k=10`"),
        ("onxx: k=10", "'onxx' names no backend, device or dtype"),
        ("onnx-int8: k=10", "'onnx-int8' names no backend, device or dtype"),
        ("onnx: tol=3", "'tol=3' is not accepted"),
        ("cuda: rtol=1e-3", "atol is missing"),
    ],
)
def test_a_wrong_line_is_an_error_at_the_start(project: Project, line: str, said: str) -> None:
    project.ini(f"export_tolerance = {line}")
    project.test(TWICE + "\ndef test_one(export_check): checked(export_check)\n")
    result = project.pytester.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*ini setting export_tolerance: *{said}*"])


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("onnx", True),
        ("onnx:optimize=false", True),
        ("onnx-cuda", True),
        ("onnx-cuda:1", True),
        ("cuda", True),
        ("cuda-float16", True),
        ("float16", True),
        ("onnx-float16", True),
        ("*-float16", True),
        ("onnx:optimize=false-cuda:1-float16", True),
        ("cpu", False),
        ("trace", False),
        ("onnx-cuda:0", False),
        ("float32", False),
    ],
)
def test_a_line_fits_items_by_any_of_their_names(pattern: str, *, fits: bool) -> None:
    mine = Tolerance(k=9)
    found = tolerance_of(((pattern, mine),), "onnx", "onnx:optimize=false", "cuda:1", "float16")
    assert (found == mine) is fits
