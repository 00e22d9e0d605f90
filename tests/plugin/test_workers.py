"""Latency beside other workers of pytest-xdist: grouped, judged with care, or not measured, and said to be."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from pytest_torchexport import Budget
from pytest_torchexport.plugin import workers
from pytest_torchexport.plugin.cell import Cell
from pytest_torchexport.plugin.stash import RUN
from pytest_torchexport.plugin.workers import Measuring, group, measuring, turn

if TYPE_CHECKING:
    from pathlib import Path

    from tests.plugin.conftest import Project

BUDGET = Budget("1.2x")


def cell(device: str = "cpu", latency: Budget | None = BUDGET, mode: str = "enforce") -> Cell:
    return Cell("trace", "trace", "trace", device, latency=latency, latency_mode=mode)


def config(*, count: int = 4, grouped: bool = False) -> Any:
    return SimpleNamespace(option=SimpleNamespace(loadgroup=grouped), stash={RUN: SimpleNamespace(workers=count)})


def item(own: Any, *groups: str) -> Any:
    marks = [pytest.mark.xdist_group(name).mark for name in groups]
    return SimpleNamespace(config=own, iter_markers=lambda _: marks)


@pytest.mark.parametrize(
    ("device", "gpus", "measured", "expected"),
    [
        ("cpu", 0, True, "export-latency-cpu"),
        ("cpu", 0, False, None),
        ("mps", 0, True, "export-mps"),
        ("cuda", 1, True, "export-cuda"),
        ("cuda", 1, False, "export-cuda"),
        ("cuda:0", 1, True, "export-cuda"),
        ("cuda:0", 2, True, "export-cuda:0"),
        ("cuda:1", 2, False, "export-cuda:1"),
        ("cuda", 2, False, None),
        ("cuda", 2, True, "export-latency-cuda"),
    ],
)
def test_one_group_for_each_device(
    device: str, gpus: int, *, measured: bool, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "device_count", lambda kind: gpus if kind == "cuda" else 1)
    own = cell(device, BUDGET if measured else None)
    assert group(config(grouped=True), own) == expected
    assert group(config(), own) is None, "only --dist loadgroup reads groups"


def test_alone_it_is_measured() -> None:
    for own in (config(count=1), config(count=1, grouped=True)):
        assert measuring(item(own, "mine"), cell()) == Measuring(BUDGET)
        assert measuring(item(own), cell(latency=None)) == Measuring()
        assert measuring(item(own), cell(latency=None, mode="report")) == Measuring(Budget(), enforce=False)


def test_beside_others_it_is_measured_in_its_group_only() -> None:
    grouped = config(grouped=True)
    assert measuring(item(grouped, "export-latency-cpu"), cell()) == Measuring(BUDGET, crowd=3)
    assert measuring(item(grouped, "mine", "export-latency-cpu"), cell()).left_out == (
        "its xdist_group 'mine' may run beside other checks that are measured: -n0 or -n1 measure it (budget: 1.2x)"
    )
    for mode, latency, said in (("enforce", BUDGET, " (budget: 1.2x)"), ("report", None, "")):
        found = measuring(item(config()), cell(latency=latency, mode=mode))
        why = "4 workers of pytest-xdist run side by side: -n0, -n1 or --dist loadgroup measure it"
        assert found == Measuring(left_out=why + said)
    assert measuring(item(config()), cell(latency=None)) == Measuring(), "there was nothing to measure"
    assert measuring(item(config()), cell(mode="off")).left_out == "--export-latency=off (budget: 1.2x)"


HOLD = """
import sys
from types import SimpleNamespace
from pathlib import Path
from pytest_torchexport.plugin.workers import turn

with turn(SimpleNamespace(workers=2, stages=Path(sys.argv[1])), "cpu"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.slow
def test_two_processes_measure_one_after_the_other(tmp_path: Path) -> None:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], **pipes) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], **pipes) as second:
            assert second.stdout is not None
            with pytest.raises(subprocess.TimeoutExpired):
                second.wait(timeout=2)
            with (tmp_path / "measuring-cpu").open() as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            assert first.communicate("go on\n")[0] == ""
            assert second.stdout.readline() == "held\n"
            second.communicate("go on\n")


def test_a_single_process_waits_for_nobody(tmp_path: Path) -> None:
    with turn(cast("Any", SimpleNamespace(workers=1, stages=tmp_path / "none")), "cpu"):
        assert not (tmp_path / "none").exists()


TESTS = """
@pytest.mark.export_equivalent(backends=["trace", "script"], n_inputs=0, latency={"trace": "9x"})
@pytest.mark.parametrize("number", range(3))
def test_one(number, export_check):
    export_check(linear(), X)

@pytest.mark.xdist_group("mine")
@pytest.mark.export_equivalent(backends="trace", n_inputs=0, latency="9x")
def test_own(export_check):
    export_check(linear(), X)
"""


@pytest.mark.slow
def test_groups_in_a_real_run(project: Project) -> None:
    project.test(TESTS)
    found = project.told("-n2", "--dist=loadgroup", apart=True)
    timed = {test: one for test, one in found.items() if one["latency"]}
    assert set(timed) == {f"test_one[{number}-trace-cpu]" for number in range(3)}
    assert {one["crowd"] for one in timed.values()} == {1}
    assert "xdist_group 'mine'" in found["test_own[trace-cpu]"]["left_out"]


@pytest.mark.slow
def test_without_groups_nothing_is_measured_and_the_summary_says_so(project: Project) -> None:
    project.test(TESTS)
    result = project.run_apart("-n2")
    result.assert_outcomes(passed=7)
    result.stdout.fnmatch_lines(
        [
            "latency of 4 checks was not measured: 2 workers of pytest-xdist run side by side: -n0, -n1 or --dist *",
            "7 checks of * tests: 7 equivalent; 7 inputs compared; 4 things not checked (-v lists them)",
        ]
    )
    assert all(one["performance"] is None for one in project.outcomes().values())


@pytest.mark.slow
def test_one_worker_measures(project: Project) -> None:
    project.test(TESTS)
    found = project.told("-n1", apart=True)
    assert {test for test, one in found.items() if one["latency"]} == {
        *(f"test_one[{number}-trace-cpu]" for number in range(3)),
        "test_own[trace-cpu]",
    }
    assert {one["crowd"] for one in found.values()} == {0}
