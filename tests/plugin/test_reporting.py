"""The files of --export-report, written by a run."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

import jsonschema
import pytest

from pytest_torchexport.report.json import schema

if TYPE_CHECKING:
    from tests.plugin.conftest import Project

TESTS = """
@pytest.mark.export_equivalent(backends=["trace", "script"], n_inputs=2)
def test_gate(export_check):
    export_check(Gate().eval(), X)

@pytest.mark.export_equivalent(backends=["script"])
def test_never(export_check): ...
"""


def test_a_report_of_a_run_follows_the_schema(project: Project) -> None:
    project.test(TESTS)
    project.run("--export-report=more/second.json").assert_outcomes(passed=1, failed=2)
    report = project.report()
    jsonschema.Draft202012Validator(schema()).validate(report)
    assert len(report["outcomes"]) == 3
    assert json.loads((project.path / "more" / "second.json").read_text(encoding="utf-8")) == report


def test_files_of_the_ini_file_are_in_the_root_directory(project: Project) -> None:
    project.ini("export_report =\n    out/first.json\n    second.json")
    project.test(TESTS)
    project.pytester.runpytest_inprocess()
    assert (project.path / "out" / "first.json").exists()
    assert (project.path / "second.json").exists()


def test_a_run_without_marked_tests_has_an_empty_report(project: Project) -> None:
    project.test("def test_unrelated(): ...")
    assert project.run().ret == 0
    assert project.report()["outcomes"] == []


def test_a_report_that_cannot_be_written_changes_no_verdict(project: Project) -> None:
    project.test("""
    @pytest.mark.export_equivalent(backends="trace", n_inputs=1)
    def test_one(export_check):
        export_check(linear(), X)
    """)
    (project.path / "file").touch()
    result = project.run("--export-report=file/x.json", "-qq")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*--export-report=*x.json was not written: *"])
    assert len(project.report()["outcomes"]) == 1, "the other file is there"


def test_a_full_disk(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target.name == "report.json":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    project.test(TESTS)
    result = project.run()
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*report.json was not written: No space left on device"])
    assert not list(project.path.glob(".report.json*"))


def test_nothing_is_written_when_tests_are_only_collected(project: Project) -> None:
    project.test(TESTS)
    project.run("--collect-only")
    assert not (project.path / "report.json").exists()


def test_each_format_by_its_suffix(project: Project) -> None:
    project.test(TESTS)
    project.run("--export-report=a/x.html", "--export-report=x.MD").assert_outcomes(passed=1, failed=2)
    page = (project.path / "a" / "x.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "baked branch" in page
    assert "baked branch" in (project.path / "x.MD").read_text(encoding="utf-8")
    assert len(project.report()["outcomes"]) == 3


def test_an_html_report_without_jinja2_stops_pytest_at_its_start(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "jinja2" else find(name, *rest)
    )
    project.test(TESTS)
    result = project.run("--export-report=x.html")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--export-report: 'x.html': *jinja2: pip install 'pytest-torchexport[[]html]'*"])
    assert not (project.path / "x.html").exists()
    project.run("--export-report=x.md").assert_outcomes(passed=1, failed=2)
