"""From names to items: ids, order, selection, availability."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_torchexport.plugin.workers import own_device

if TYPE_CHECKING:
    from tests.plugin.conftest import Project

CUDA_TEST = """
@pytest.mark.export_equivalent(backends="trace", devices=["cpu", "cuda"])
def test_one(export_check):
    export_check(linear(), X)
"""

no_cuda = pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="is about a machine without CUDA")


def test_default_backends(project: Project) -> None:
    project.test("def test_one(export_check): ...")
    assert project.items() == [f"test_one[{name}-cpu]" for name in ("trace", "script", "compile", "onnx")]


def test_ids_with_devices_dtypes_and_options(project: Project) -> None:
    project.test("""
    from pytest_torchexport import Trace

    @pytest.mark.export_equivalent(
        backends=["compile:mode=max-autotune", Trace(strict=False)], devices=["cpu", torch.device("cuda", 1)],
        dtypes=[torch.float64, "float16"],
    )
    def test_one(export_check): ...
    """)
    assert project.items() == [
        f"test_one[{backend}-{device}-{dtype}]"
        for backend in ("compile:mode=max-autotune", "trace:strict=false")
        for device in ("cpu", "cuda:1")
        for dtype in ("float64", "float16")
    ]


def test_with_the_users_own_parameters_and_classes(project: Project) -> None:
    project.test("""
    @pytest.mark.export_equivalent(backends=["trace", "script"])
    class TestModels:
        @pytest.mark.parametrize("size", [3, -1])
        def test_size(self, size, export_check): ...
    """)
    assert project.items() == [
        "TestModels::test_size[3-trace-cpu]",
        "TestModels::test_size[3-script-cpu]",
        "TestModels::test_size[-1-trace-cpu]",
        "TestModels::test_size[-1-script-cpu]",
    ]
    assert project.items("-k", "3 and script") == ["TestModels::test_size[3-script-cpu]"]


def test_strict_parametrization_ids(project: Project) -> None:
    if tuple(int(part) for part in pytest.__version__.split(".")[:2]) < (9, 0):
        pytest.skip("strict_parametrization_ids is new in pytest 9.0")
    project.ini("strict_parametrization_ids = true")
    project.test("def test_one(export_check): ...")
    assert len(project.items()) == 4


def test_selection_by_keyword_and_last_failed(project: Project) -> None:
    project.pytester.makeini("[pytest]")
    project.test("""
    @pytest.mark.export_equivalent(backends=["trace", "script"])
    def test_gate(export_check):
        export_check(Gate().eval(), X)
    """)
    assert project.items("-k", "script and cpu") == ["test_gate[script-cpu]"]
    project.run().assert_outcomes(failed=1, passed=1)
    assert project.items("--lf") == ["test_gate[trace-cpu]"]


def test_nothing_is_left_of_one_test(project: Project) -> None:
    project.test("""
    @pytest.mark.export_equivalent(backends=["script"])
    def test_script_only(export_check):
        export_check(linear(), X)

    @pytest.mark.export_equivalent(backends=["trace"])
    def test_traced(export_check):
        export_check(linear(), X)
    """)
    result = project.run("--export-backends=trace", "-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*--export-backends=trace leaves none of this test's backends (script)"])
    empty = project.outcomes()["test_script_only[no-backend]"]
    assert (empty["verdict"], empty["result"], empty["backend"]) == ("skipped", "skipped", "")
    assert empty["not_checked"], "it is in the ledger"


@pytest.mark.parametrize("flag", ["--export-backends=trace", "--export-devices=cpu"])
def test_nothing_is_left_of_the_whole_run(project: Project, flag: str) -> None:
    project.test("""
    @pytest.mark.export_equivalent(backends=["script"], devices=["cuda"])
    def test_one(export_check): ...
    def test_unrelated(): ...
    """)
    result = project.run(flag)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: no backend is left in this run: {flag} leaves none of this test's*"])


def test_selection_without_marked_tests_is_no_error(project: Project) -> None:
    project.test("def test_unrelated(): ...")
    project.run("--export-backends=trace").assert_outcomes(passed=1)


def test_cuda_stands_for_any_gpu(project: Project) -> None:
    project.test(CUDA_TEST)
    assert project.items("--export-devices=cuda:1") == ["test_one[trace-cuda:1]"]
    assert project.items("--export-devices=cuda,cpu") == ["test_one[trace-cpu]", "test_one[trace-cuda]"]


@no_cuda
def test_a_device_of_the_marker_that_is_not_here_is_skipped(project: Project) -> None:
    project.test(CUDA_TEST)
    result = project.run("-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*device cuda is not available*"])
    missing = project.outcomes()["test_one[trace-cuda]"]
    assert (missing["verdict"], missing["result"]) == ("skipped", "skipped")
    assert missing["not_checked"]


@no_cuda
@pytest.mark.parametrize("flag", ["--export-devices=cuda,cpu", "--export-require=cuda"])
def test_a_device_that_was_asked_for_by_name_fails(project: Project, flag: str) -> None:
    project.test(CUDA_TEST)
    result = project.run(flag)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*device cuda is not available*", "test_one*missing*"])


@no_cuda
def test_available_leaves_out_what_is_not_here(project: Project) -> None:
    project.test(CUDA_TEST + "def test_open(export_check): ...")
    args = ("--export-devices=available", "--export-backends=trace")
    assert project.items(*args) == ["test_one[trace-cpu]", "test_open[trace-cpu]"]


@no_cuda
def test_available_leaves_nothing(project: Project) -> None:
    project.test("""
    @pytest.mark.export_equivalent(backends="trace", devices=["cuda"])
    def test_one(export_check): ...
    """)
    result = project.run("--export-devices=available")
    result.assert_outcomes(skipped=1)
    assert result.ret == 0
    assert "test_one[no-device]" in project.outcomes()
    assert project.run("--export-devices=available", "--export-require=cuda").ret == pytest.ExitCode.TESTS_FAILED


MISSING = """
from pytest_torchexport import Trace

class Missing(Trace):
    name = "missing"
    def unavailable(self, device):
        return "the package 'missing' is not installed: pip install missing"

def pytest_torchexport_register_backends(register):
    register("missing", Missing)
"""


@pytest.mark.parametrize(
    ("marker", "args", "ini"),
    [
        ("(backends=['trace', 'missing'])", (), ""),
        ("", ("--export-backends=trace,missing",), ""),
        ("", (), "export_backends = trace missing"),
    ],
)
def test_a_backend_that_was_asked_for_by_name_fails(
    project: Project, marker: str, args: tuple[str, ...], ini: str
) -> None:
    project.ini(ini)
    project.conftest(MISSING)
    project.test(f"""
    @pytest.mark.export_equivalent{marker}
    def test_one(export_check):
        export_check(linear(), X)
    """)
    result = project.run(*args)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*pip install missing*", "*Backend 'missing' was asked for by *"])


@pytest.mark.parametrize(("require", "expected"), [((), {"skipped": 1}), (("--export-require=trace",), {"failed": 1})])
def test_a_default_backend_that_is_missing(
    project: Project, require: tuple[str, ...], expected: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    project.conftest(MISSING.replace('register("missing"', 'register("trace"'))
    monkeypatch.setattr("pytest_torchexport.plugin.matrix.DEFAULT_BACKENDS", ("trace", "script"))
    project.test("""
    def test_one(export_check):
        export_check(linear(), X)
    """)
    result = project.run("-rs", *require)
    result.assert_outcomes(passed=1, **expected)
    result.stdout.fnmatch_lines(["*pip install missing*"])


@pytest.mark.parametrize("required", ["onnx", "mps"])
def test_what_is_required_and_not_used_fails_the_run(project: Project, required: str) -> None:
    project.test("""
    @pytest.mark.export_equivalent(backends="trace")
    def test_one(export_check):
        export_check(linear(), X)
    """)
    result = project.run(f"--export-require={required},trace")
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([f"*--export-require={required}: nothing in this run was checked on it"])
    assert project.run("--export-require=trace,cpu").ret == 0


def test_required_on_the_command_line_without_any_marked_test(project: Project) -> None:
    project.test("def test_unrelated(): ...")
    assert project.run("--export-require=cuda").ret == pytest.ExitCode.TESTS_FAILED
    project.ini("export_require = cuda")
    assert project.run().ret == 0, "the ini file asks only runs that have marked tests"


def test_required_by_the_marker(project: Project) -> None:
    project.conftest(MISSING)
    project.test("""
    @pytest.mark.export_equivalent(backends=["trace"], devices=["cpu", "mps"], require="mps")
    def test_one(export_check):
        export_check(linear(), X)
    """)
    if __import__("torch").backends.mps.is_available():
        pytest.skip("is about a machine without MPS")
    project.run().assert_outcomes(passed=1, failed=1)


@pytest.mark.parametrize(
    ("device", "worker", "count", "expected"),
    [
        ("cuda", "gw0", 4, "cuda:0"),
        ("cuda", "gw5", 4, "cuda:1"),
        ("xpu", "gw3", 2, "xpu:1"),
        ("cuda", None, 4, "cuda"),
        ("cuda", "gw3", 1, "cuda"),
        ("cuda", "gw3", 0, "cuda"),
        ("cuda:1", "gw3", 4, "cuda:1"),
        ("cpu", "gw3", 4, "cpu"),
        ("mps", "gw3", 4, "mps"),
    ],
)
def test_each_worker_has_its_own_gpu(device: str, worker: str | None, count: int, expected: str) -> None:
    assert own_device(device, worker, count) == expected
