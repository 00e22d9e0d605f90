"""The output directory: what is kept, for how long, and what is never deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_torchexport.plugin.output import slug

if TYPE_CHECKING:
    from pathlib import Path

    from tests.plugin.conftest import Project

TESTS = """
@pytest.mark.export_equivalent(backends=["trace", "script"])
def test_gate(export_check):
    export_check(Gate().eval(), X)
"""


def _folders(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_dir()) if directory.exists() else []


@pytest.mark.parametrize(("when", "kept"), [("off", []), ("retain-on-failure", ["trace"]), ("on", ["script", "trace"])])
def test_what_is_kept(project: Project, when: str, kept: list[str]) -> None:
    project.test(TESTS)
    project.run(f"--export-artifacts={when}").assert_outcomes(failed=1, passed=1)
    folders = _folders(project.path / "export-output")
    assert [name.split("-")[-3] for name in folders] == kept
    outcome = project.outcomes()["test_gate[trace-cpu]"]
    assert (outcome["kept_in"] is not None) == ("trace" in kept)


def test_a_directory_that_the_plugin_made_is_ignored_and_kept_fresh(project: Project) -> None:
    project.test(TESTS)
    project.run("--export-output=out/kept")
    kept = project.path / "out" / "kept"
    assert (kept / ".gitignore").read_text(encoding="utf-8").endswith("*\n")
    (folder,) = _folders(kept)
    (kept / folder / "stale.txt").touch()
    (kept / "other").mkdir()
    project.run("--export-output=out/kept")
    assert not (kept / folder / "stale.txt").exists(), "of an earlier run of the same test"
    assert _folders(kept) == sorted([folder, "other"])


def test_the_test_that_a_failure_leaves_runs_where_it_is_asked_for(project: Project) -> None:
    project.test(TESTS)
    project.run().assert_outcomes(failed=1, passed=1)
    output = project.path / "export-output"
    (folder,) = _folders(output)
    assert (output / folder / "test_repro.py").exists()
    assert (output / folder / "repro.py").exists()
    project.run().assert_outcomes(failed=1, passed=1)
    project.run(".").assert_outcomes(failed=1, passed=1)
    for asked_for in (f"export-output/{folder}/test_repro.py", f"export-output/{folder}"):
        project.run(asked_for).assert_outcomes(failed=1)
    assert folder in _folders(output)


def test_a_test_of_the_users_with_that_name_runs(project: Project) -> None:
    (project.path / "test_repro.py").write_text("def test_mine():\n    pass\n", encoding="utf-8")
    project.run().assert_outcomes(passed=1)


def test_a_directory_of_the_user_is_left_as_it_is(project: Project) -> None:
    project.test(TESTS)
    mine = project.path / "mine"
    mine.mkdir()
    project.run("--export-output=mine")
    (folder,) = _folders(mine)
    (mine / folder / "note.txt").touch()
    project.run("--export-output=mine")
    assert (mine / folder / "note.txt").exists()
    assert not (mine / ".gitignore").exists()


def test_nothing_is_made_where_nothing_is_kept(project: Project) -> None:
    project.test("""
    @pytest.mark.export_equivalent(backends="trace")
    def test_one(export_check):
        export_check(linear(), X)
    """)
    project.run().assert_outcomes(passed=1)
    assert not (project.path / "export-output").exists()


def test_a_default_directory_that_cannot_be_made(project: Project) -> None:
    project.test(TESTS)
    (project.path / "export-output").touch()
    project.run().assert_outcomes(failed=1, passed=1)
    assert project.outcomes()["test_gate[trace-cpu]"]["kept_in"] is None


def test_names_of_folders() -> None:
    test = "tests/test_a.py::TestB::test_c[" + "x" * 200 + "-compile:mode=max-autotune-cpu]"
    assert slug(test) == slug(test)
    assert len(slug(test)) <= 100
    assert set(slug(test)).isdisjoint(':/\\[]="')
    assert slug(test) != slug(test.replace(":", ";"))
    assert slug("a.py::test_b[trace-cpu]").startswith("a.py--test_b-trace-cpu-")
