"""How outcomes reach reports: JUnit, JSON, xdist, crashes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from pytest_torchexport.plugin.transport import StageNote

if TYPE_CHECKING:
    from pathlib import Path

    from tests.plugin.conftest import Project

TESTS = """
@pytest.mark.export_equivalent(backends=["trace", "script"], n_inputs=2)
def test_gate(export_check):
    export_check(Gate().eval(), X)

@pytest.mark.export_equivalent(backends=["trace"], n_inputs=2)
@pytest.mark.parametrize("size", [1, 2])
def test_linear(size, export_check):
    export_check(linear(), X)

def test_unrelated(): ...
"""


def _properties(file: Path) -> dict[str, dict[str, str]]:
    cases = ET.parse(file).iter("testcase")
    return {
        str(case.get("name")): {str(one.get("name")): str(one.get("value")) for one in case.iter("property")}
        for case in cases
    }


def test_junit_properties_are_flat(project: Project) -> None:
    project.test(TESTS)
    project.run("--junitxml=junit.xml").assert_outcomes(passed=4, failed=1)
    cases = _properties(project.path / "junit.xml")
    assert cases["test_unrelated"] == {}
    failed, passed = cases["test_gate[trace-cpu]"], cases["test_gate[script-cpu]"]
    assert failed.pop("torchexport.cause") == "baked branch"
    assert set(failed) == set(passed)
    assert (passed["torchexport.verdict"], failed["torchexport.verdict"]) == ("equivalent", "mismatch")
    assert (passed["torchexport.backend"], passed["torchexport.device"]) == ("script", "cpu")
    assert float(failed["torchexport.max_abs"]) == pytest.approx(2.0)
    assert int(passed["torchexport.inputs"]) == 3
    assert float(passed["torchexport.duration_s"]) > 0
    assert passed["torchexport.stage"] == "compare"
    assert not any("{" in value for case in cases.values() for value in case.values()), "no dict in a property"


@pytest.mark.parametrize("args", [("-n2",), ("-n2", "--dist=loadgroup"), ("-n0",), ("-p", "no:xdist")], ids=" ".join)
def test_everything_arrives_with_xdist_and_without(project: Project, args: tuple[str, ...]) -> None:
    project.test(TESTS)
    result = project.run_apart("--junitxml=junit.xml", *args)
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*= export equivalence =*",
            "test_gate *baked branch*ok*",
            "4 checks of * test*: 3 equivalent, 1 mismatch; 12 inputs*",
        ]
    )
    outcomes = project.outcomes()
    assert {test: (one["verdict"], one["origin"]) for test, one in outcomes.items()} == {
        "test_gate[trace-cpu]": ("mismatch", "test_models.py::test_gate"),
        "test_gate[script-cpu]": ("equivalent", "test_models.py::test_gate"),
        "test_linear[1-trace-cpu]": ("equivalent", "test_models.py::test_linear[1]"),
        "test_linear[2-trace-cpu]": ("equivalent", "test_models.py::test_linear[2]"),
    }
    assert outcomes["test_gate[trace-cpu]"]["kept_in"]
    assert (project.path / "export-output" / ".gitignore").exists()
    assert _properties(project.path / "junit.xml")["test_gate[trace-cpu]"]["torchexport.verdict"] == "mismatch"


def test_a_worker_that_crashes(project: Project) -> None:
    project.conftest("""
    import os
    from pytest_torchexport import Trace

    class Crash(Trace):
        name = "crash"
        def load(self, program, path, request):
            os._exit(3)

    def pytest_torchexport_register_backends(register):
        register("crash", Crash)
    """)
    project.test("""
    import os

    @pytest.mark.export_equivalent(backends=["trace", "crash"], n_inputs=1)
    def test_linear(export_check):
        export_check(linear(), X)

    @pytest.mark.export_equivalent(backends=["script"])
    def test_body(export_check):
        os._exit(3)

    def test_unrelated():
        os._exit(3)
    """)
    result = project.run_apart("-n1", "--junitxml=junit.xml")
    result.assert_outcomes(passed=1, failed=3)
    result.stdout.fnmatch_lines(["*crash on cpu: the process died in stage load", "test_linear *failed: load*"])
    found = {test: (one["verdict"], one["stage"], one["result"]) for test, one in project.outcomes().items()}
    assert found == {
        "test_linear[trace-cpu]": ("equivalent", "compare", "passed"),
        "test_linear[crash-cpu]": ("failed", "load", "failed"),
        "test_body[script-cpu]": ("failed", "reference", "failed"),
    }


def test_notes_of_stages_are_for_workers_only(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = project.path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    project.test(TESTS)
    for args in ((), ("-n1",)):
        project.run_apart("--basetemp=base", *args).assert_outcomes(passed=4, failed=1)
        assert list(folder.glob("pytest-torchexport-*")) == [], "the folder of notes is gone"


def test_a_note_is_about_one_test(tmp_path: Path) -> None:
    note = StageNote(tmp_path / "notes", "gw0")
    assert note.read("a.py::test") is None
    note.write({"test": "a.py::test[trace-cpu]", "stage": "load"})
    assert note.read("a.py::test[trace-cpu]") == {"test": "a.py::test[trace-cpu]", "stage": "load"}
    assert note.read("a.py::test[trace-cpu]@group") is not None
    assert note.read("a.py::test[script-cpu]") is None
    (tmp_path / "notes" / "gw0.json").write_text("{", encoding="utf-8")
    assert note.read("a.py::test[trace-cpu]") is None


def test_the_selection_leaves_nothing_with_xdist(project: Project) -> None:
    project.test(TESTS)
    result = project.run_apart("-n1", "--export-backends=onnx")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["*no backend is left in this run: --export-backends=onnx leaves none*"])


def test_a_usage_error_with_xdist(project: Project) -> None:
    project.test(TESTS)
    result = project.run_apart("-n1", "--export-backends=onxn")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unknown backend 'onxn'. Did you mean 'onnx'?*"])


def test_groups_of_xdist(project: Project) -> None:
    project.conftest("""
    def pytest_collection_modifyitems(config, items):
        for item in items:
            print("GROUP", item.name, [mark.args for mark in item.iter_markers("xdist_group")])

    def pytest_configure(config):
        config.option.loadgroup = config.getoption("dist", "no") == "loadgroup"
    """)
    project.test("""
    @pytest.mark.export_equivalent(backends="trace", devices=["cpu", "cuda:1", "mps"])
    def test_one(export_check): ...
    """)
    groups = [line for line in project.run("-s", "--co", "--dist=loadgroup").outlines if line.startswith("GROUP")]
    assert [line.partition("] ")[2] for line in groups] == ["[]", "[('export-cuda:1',)]", "[('export-mps',)]"]
    groups = [line for line in project.run("-s", "--co").outlines if line.startswith("GROUP")]
    assert [line.partition("] ")[2] for line in groups] == ["[]", "[]", "[]"], "only --dist loadgroup reads them"


def test_reruns_leave_one_outcome(project: Project) -> None:
    project.conftest("""
    from _pytest.runner import runtestprotocol

    def pytest_runtest_protocol(item, nextitem):
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        runtestprotocol(item, nextitem=None, log=False)
        for report in runtestprotocol(item, nextitem=nextitem, log=False):
            item.ihook.pytest_runtest_logreport(report=report)
        return True
    """)
    project.test("""
    runs = []
    @pytest.mark.export_equivalent(backends="trace", n_inputs=1)
    def test_flaky(export_check):
        runs.append(1)
        export_check(Gate().eval() if len(runs) == 1 else linear(), X)
    """)
    project.run("--junitxml=junit.xml").assert_outcomes(passed=1)
    assert [one["verdict"] for one in project.report()["outcomes"]] == ["equivalent"]
    case = ET.parse(project.path / "junit.xml").find(".//testcase")
    assert case is not None
    names = [one.get("name") for one in case.iter("property")]
    assert names.count("torchexport.verdict") == 1


def test_values_of_a_record_are_plain(project: Project) -> None:
    project.conftest("""
    import json
    def pytest_runtest_logreport(report):
        for name, value in report.user_properties:
            assert name != "torchexport", "taken out before other hooks see it"
            json.dumps(value)
    """)
    project.test(TESTS)
    project.run().assert_outcomes(passed=4, failed=1)
    json.dumps(project.report(), allow_nan=False)


@pytest.mark.parametrize("args", [("-n2",), ("-n0",)], ids=" ".join)
def test_branches_arrive_with_xdist_and_without(project: Project, args: tuple[str, ...]) -> None:
    project.fabricate_branches()
    project.test(TESTS)
    project.run_apart("--junitxml=junit.xml", *args).stdout.fnmatch_lines(["test_linear[[]1[]] *ok *1/2*"])
    found = project.outcomes()["test_linear[1-trace-cpu]"]["branches"]
    assert (found["known"], found["reached"], found["by_kind"], found["eager_runs"]) == (2, 1, {"example": 1}, 90)
    assert [one["outcome"] for one in found["decisions"][0]["outcomes"]] == ["true", "false"]
    case = _properties(project.path / "junit.xml")["test_linear[1-trace-cpu]"]
    assert (case["torchexport.branches_known"], case["torchexport.branches_reached"]) == ("2", "1")


MEMORY = """
import importlib
import pytest

@pytest.fixture(autouse=True)
def memory(monkeypatch):
    engine = importlib.import_module("pytest_torchexport.check")
    run = engine.run
    def remember(subject, policy, surroundings):
        folder = surroundings.memory
        if folder is None:
            print("MEMORY none")
        else:
            print("MEMORY", sorted(file.name for file in folder.iterdir()))
            (folder / "note").touch()
        return run(subject, policy, surroundings)
    monkeypatch.setattr(engine, "run", remember)
"""


def test_the_folder_that_is_remembered_from_run_to_run(project: Project) -> None:
    project.conftest(MEMORY)
    project.test("""
    @pytest.mark.export_equivalent(backends="trace", n_inputs=0)
    def test_linear(export_check):
        export_check(linear(), X)
    """)

    def run(*args: str) -> str:
        result = project.run_apart("-rP", *args)
        result.assert_outcomes(passed=1)
        return next(line for line in result.outlines if line.startswith("MEMORY"))

    assert run() == "MEMORY none", "the projects of these tests have no cache"
    project.pytester.makeini("[pytest]\n")
    assert run() == "MEMORY []"
    assert run("-n1") == "MEMORY ['note']", "a worker has the same folder"
    assert run("--cache-clear") == "MEMORY []"
    assert run("-n1", "--cache-clear") == "MEMORY []"
    assert run() == "MEMORY ['note']"
    (folder,) = project.path.glob(".pytest_cache/d/torchexport")
    assert folder.is_dir()


def test_a_cache_that_cannot_be_written(project: Project) -> None:
    project.conftest(MEMORY)
    project.test("""
    @pytest.mark.export_equivalent(backends="trace", n_inputs=0)
    def test_linear(export_check):
        export_check(linear(), X)
    """)
    (project.path / "file").touch()
    project.pytester.makeini("[pytest]\ncache_dir = file\n")
    result = project.run_apart("-rP")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["MEMORY none"])
