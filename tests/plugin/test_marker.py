"""The marker: its closed set of keywords, who sets which, and expected failures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.plugin.conftest import Project


WRONG = (
    (
        "backend=['trace']",
        "unknown keyword 'backend'. Did you mean 'backends'? Accepted: backends, *xfail.",
    ),
    ("['trace']", "takes keyword arguments only, got *'trace'*write export_equivalent(backends=[[]...[]])"),
    ("backends=['tarce']", "unknown backend 'tarce'. Did you mean 'trace'? Accepted: trace, script, *"),
    ("backends=[]", "backends=[[][]] is empty*"),
    ("backends=3", "3 is not a backend: give a name (trace, *) or an instance such as Compile()"),
    ("backends=['trace', 'trace']", "backends lists 'trace' twice"),
    ("backends='trace:speed=1'", "unknown option of backend 'trace' 'speed'.*Accepted: *"),
    ("devices=['gpu']", "unknown device 'gpu'.*Accepted: cpu, cuda, mps, xpu, cuda:1, available."),
    ("devices=['cuda:x']", "unknown device 'cuda:x'.*"),
    ("dtypes=[torch.int8]", "unknown dtype 'torch.int8'.*Accepted: float64, float32, float16, bfloat16."),
    ("tolerance=1e-3", "tolerance=0.001 is not accepted: give Tolerance(rtol=1e-4, atol=1e-5) for fixed bounds*"),
    ("branches='on'", "branches='on' is not accepted: choose one of search, observe, off"),
    ("branches=True", "branches=True is not accepted: choose one of search, observe, off"),
    ("search_budget=-1", "search_budget=-1 is not accepted: give an integer of 0 or more"),
    ("min_coverage=95", "min_coverage=95 is not accepted: give a fraction from 0 to 1, such as 0.9 for 90 %"),
    ("min_coverage=True", "min_coverage=True is not accepted: give a fraction from 0 to 1, *"),
    ("branches='off', min_coverage=1", "min_coverage=1.0 with branches='off': nothing is observed then; leave one out"),
    ("latency=1.2", 'latency=1.2: 1.2 is not a budget: give "1.2x" (times eager), "5ms" (median), or several *'),
    ("latency='5'", "latency='5': '5' has no unit: write 5x for a multiple of eager's time, or a time such as 5ms"),
    ("latency='-5ms'", "latency='-5ms': Budget median='-5ms' can never be kept: *"),
    ("latency='speed=5ms'", "latency=*unknown keyword of Budget 'speed'.*Accepted: ratio, median, p99, first_call, *"),
    ("latency={'compile': '5'}", "latency=*'compile': '5' has no unit*"),
    ("latency={'tarce': '2x'}", "latency has the key 'tarce', which is none of this test's items. Accepted: trace, *"),
    ("backends='script', latency={'trace': '2x'}", "latency has the key 'trace', *Accepted: script, *script-cpu."),
    ("backends='script', latency={'onnx-*': '2x'}", "latency has the key 'onnx-[*]', *Accepted: script, *"),
    ("devices='cpu', latency={'*-cuda': '2x'}", "latency has the key '[*]-cuda', *"),
    ("latency={'compile-cpu-int8': '2x'}", "latency has the key 'compile-cpu-int8', *"),
    ("backends='trace', latency='recompiles=0'", "latency: recompiles=0 is for torch.compile, and 'trace' compiles *"),
    ("n_inputs=True", "n_inputs=True is not accepted: give an integer of 0 or more"),
    ("seed=-1", "seed=-1 is not accepted: give an integer of 0 or more"),
    ("grad=1", "grad=1 is not accepted: give True or False"),
    ("require='gpu'", "unknown backend 'gpu'.*Devices: cpu, cuda, mps, xpu, cuda:1."),
    ("xfail=['trace']", "xfail=[[]'trace'[]] is not accepted: give a dict of reasons*"),
    ("xfail={'trace': ''}", "xfail=*'trace' needs a reason, a string that is not empty"),
    ("xfail={'tarce': 'why'}", "xfail has the key 'tarce', which is none of this test's items. Accepted: trace, *"),
    ("backends='script', xfail={'trace': 'why'}", "xfail has the key 'trace', *Accepted: script, *script-cpu."),
    ("devices='cpu', xfail={'trace-cuda': 'why'}", "xfail has the key 'trace-cuda', *"),
    ("xfail={'trace-cpu-int8': 'why'}", "xfail has the key 'trace-cpu-int8', *"),
)


def test_a_wrong_mark_is_an_error_of_its_file(project: Project) -> None:
    for number, (arguments, _) in enumerate(WRONG):
        project.test(
            f"""
            @pytest.mark.export_equivalent({arguments})
            def test_wrong(export_check): ...
            """,
            name=f"test_{number:02}",
        )
    result = project.run()
    result.assert_outcomes(errors=len(WRONG))
    result.stdout.fnmatch_lines(
        [
            f"*test_{number:02}.py::test_wrong: @pytest.mark.export_equivalent: {message}"
            for number, (_, message) in enumerate(WRONG)
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*pytest_torchexport/plugin*")


def test_a_wrong_mark_is_found_without_the_fixture(project: Project) -> None:
    project.test("""
    @pytest.mark.export_equivalent(speed="1.2x")
    def test_wrong(): ...
    """)
    project.run().stdout.fnmatch_lines(["*test_wrong: *unknown keyword 'speed'*"])


def test_the_closest_mark_sets_a_keyword(project: Project) -> None:
    project.test("""
    pytestmark = pytest.mark.export_equivalent(backends="trace", seed=1, n_inputs=0)

    @pytest.mark.export_equivalent(backends="script", seed=2)
    class TestClass:
        @pytest.mark.export_equivalent(seed=3)
        def test_method(self, export_check):
            assert export_check(linear(), X).seed == 3
        def test_bare(self, export_check):
            assert export_check(linear(), X).seed == 2

    def test_function(export_check):
        assert export_check(linear(), X).seed == 1
    """)
    project.run().assert_outcomes(passed=3)
    assert {test: len(one["inputs"]) for test, one in project.outcomes().items()} == {
        "TestClass::test_method[script-cpu]": 1,
        "TestClass::test_bare[script-cpu]": 1,
        "test_function[trace-cpu]": 1,
    }


def test_a_test_without_the_mark_gets_it(project: Project) -> None:
    project.test("""
    def test_checks(export_check): ...
    def test_other(): ...
    """)
    assert project.items("-m", "export_equivalent", "--export-backends=trace") == ["test_checks[trace-cpu]"]
    assert project.items("-m", "not export_equivalent") == ["test_other"]


def test_strict_marks_know_backends_and_devices(project: Project) -> None:
    project.test("""
    @pytest.mark.export_equivalent(backends=["trace", "onnx-torchscript"], devices=["cpu", "cuda:1"])
    def test_checks(export_check): ...
    """)
    assert project.items("-m", "export_backend_onnx_torchscript and export_device_cuda") == [
        "test_checks[onnx-torchscript-cuda:1]"
    ]
    assert project.items("-m", "export_backend_aoti or export_device_mps") == []


def test_an_expected_mismatch(project: Project) -> None:
    project.test("""
    @pytest.mark.export_equivalent(backends=["trace", "script"], xfail={"trace-cpu": "keeps one branch"})
    def test_gate(export_check):
        export_check(Gate().eval(), X)
    """)
    result = project.run("-rx", "--export-output=kept")
    result.assert_outcomes(xfailed=1, passed=1)
    result.stdout.fnmatch_lines(["*(1 expected to fail)*", "XFAIL *test_gate[[]trace-cpu[]] - keeps one branch"])
    assert project.outcomes()["test_gate[trace-cpu]"]["result"] == "xfailed"
    assert not (project.path / "kept").exists(), "an expected failure is none, and keeps nothing"


def test_an_expected_mismatch_that_does_not_come(project: Project) -> None:
    project.test("""
    @pytest.mark.export_equivalent(backends=["trace"], xfail={"trace": "expected wrongly"})
    def test_fine(export_check):
        export_check(linear(), X)
    """)
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*XPASS(strict)*expected wrongly*"])
    assert project.outcomes()["test_fine[trace-cpu]"]["result"] == "xpassed"


@pytest.mark.parametrize(
    "body",
    [
        "export_check(nn.Dropout().train(), X)",  # invalid: the reference disagrees with itself
        "export_check(linear(), (X,))",  # the reference raises
        "export_check(linear(), 3)",  # a wrong call
        "pass",  # nothing is checked
        "raise ValueError('the test itself')",
    ],
)
def test_an_expected_mismatch_covers_no_other_failure(project: Project, body: str) -> None:
    project.test(f"""
    @pytest.mark.export_equivalent(backends=["trace"], xfail={{"trace": "keeps one branch"}})
    def test_broken(export_check):
        {body}
    """)
    project.run().assert_outcomes(failed=1)


def test_the_most_precise_reason_counts(project: Project) -> None:
    project.test("""
    @pytest.mark.export_equivalent(backends=["trace"], xfail={"trace": "any", "trace-cpu": "on the CPU"})
    def test_gate(export_check):
        export_check(Gate().eval(), X)
    """)
    project.run("-rx").stdout.fnmatch_lines(["XFAIL *- on the CPU"])
