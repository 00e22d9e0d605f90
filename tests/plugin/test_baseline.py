"""The file of --export-baseline: written once, compared from then on, and never lost."""

from __future__ import annotations

import json
import os
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchexport.latency.trend import Change
from pytest_torchexport.plugin.baseline import Baseline, entries_of
from pytest_torchexport.plugin.options import BASELINE
from pytest_torchexport.plugin.trends import fingerprint
from pytest_torchexport.report import changes

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_torchexport.latency.trend import Entry
    from tests.plugin.conftest import Project

MEASURED = """
import importlib
import pytest
from pytest_torchexport import Outcome, Stage, Verdict
from pytest_torchexport.measured import Paired, Performance, Times

RATIOS, HALF, LABELS, SETTLED = {ratios}, {half}, {labels}, {settled}
MACHINE = {machine}
TORCH = {torch!r}

def paired(ratio, label):
    eager, exported = (Times(t, t, t, t, 100, 0.01) for t in (1e-3, ratio * 1e-3))
    return Paired(label, eager, exported, ratio, ratio / (1 + HALF), ratio * (1 + HALF), 50, 1, 10, SETTLED, 0.5)

@pytest.fixture(autouse=True)
def measured(monkeypatch):
    def run(subject, policy, surroundings):
        ratio = RATIOS.get(policy.backend)
        performance = ratio and Performance(paired=tuple(paired(ratio, one) for one in LABELS), machine=MACHINE)
        return Outcome(
            Verdict.EQUIVALENT, Stage.LATENCY, policy.backend, policy.device, "fine",
            test=surroundings.test, compared=1,
            environment={{"versions": {{"torch": TORCH, "python": "3.11.7", "onnxruntime": "1.22"}}}},
            performance=performance,
        )
    monkeypatch.setattr(importlib.import_module("pytest_torchexport.check"), "run", run)
"""
TESTS = """
@pytest.mark.export_equivalent(backends=["trace", "script"])
def test_cell(export_check):
    export_check(linear(), X)
"""
SMALL = {"cpu": "A CPU", "cpus": 2, "threads": 1}
LARGE = {"cpu": "B CPU", "cpus": 64, "threads": 1}


class Runs:
    """Runs of one project on one baseline, whose measurements are made up."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.file = project.path / "base.json"
        project.test(TESTS)

    def __call__(
        self,
        *args: str,
        trace: float | None = 1.0,
        script: float | None = 2.0,
        half: float = 0.01,
        labels: tuple[str, ...] = ("example",),
        settled: bool = True,
        machine: dict[str, Any] = SMALL,
        torch: str = "2.13.0",
        option: bool = True,
    ) -> pytest.RunResult:
        values = {"ratios": {"trace": trace, "script": script}, "half": half, "labels": labels, "settled": settled}
        self.project.conftest(MEASURED.format(**values, machine=machine, torch=torch))
        result = self.project.run(*(["--export-baseline=base.json"] if option else []), *args)
        assert result.ret in (0, 4, 5)
        return result

    @property
    def kept(self) -> dict[tuple[str, str, str, str], Entry]:
        return entries_of(self.file.read_text(encoding="utf-8"))

    @property
    def trend(self) -> dict[str, dict[str, Any]]:
        """The report's trend by cell."""
        return {one["cell"]: one for one in self.project.report()["trend"]}


@pytest.fixture
def runs(project: Project) -> Runs:
    """A project with one test on two backends."""
    return Runs(project)


def test_the_first_run_is_kept(runs: Runs) -> None:
    result = runs()
    result.stdout.fnmatch_lines(["latency against base.json: 0 compared; 2 new"])
    assert {key[:3]: entry.ratio for key, entry in runs.kept.items()} == {
        ("A CPU, 2 CPUs", "test_models.py::test_cell", "trace-cpu"): 1.0,
        ("A CPU, 2 CPUs", "test_models.py::test_cell", "script-cpu"): 2.0,
    }
    (entry,) = (entry for key, entry in runs.kept.items() if key[2] == "trace-cpu")
    assert [entry.low, entry.high] == pytest.approx([1 / 1.01, 1.01])
    assert entry.pairs == 50
    assert entry.conditions == {"torch": "2.13.0", "python": "3.11", "threads": "1", "mode": "inference mode"}
    assert runs.trend["trace-cpu"]["change"] == "new"


def test_changes_are_named_and_fail_nothing(runs: Runs) -> None:
    runs()
    before = runs.file.read_bytes()
    result = runs(trace=1.21, script=1.6, torch="2.14.0")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        [
            "latency changed: *::test_cell[[]trace-cpu]: 1.00x -> 1.21x of eager (+21 %, *%); torch 2.13.0 -> 2.14.0",
            "latency changed: *::test_cell[[]script-cpu]: 2.00x -> 1.60x of eager (-20 %, interval -21..-19 %); *",
            "latency against base.json: 2 compared: 1 slower, 1 faster",
        ]
    )
    assert runs.file.read_bytes() == before, "else a slow drift would never show"
    found = runs.trend["trace-cpu"]
    assert (found["change"], found["ratio"], found["baseline"]) == ("slower", 1.21, 1.0)
    assert found["conditions"] == ["torch 2.13.0 -> 2.14.0"]


def test_a_slow_drift_shows(runs: Runs) -> None:
    runs(script=None)
    runs(trace=1.04, script=None).stdout.fnmatch_lines(["latency against base.json: 1 compared: 1 steady"])
    runs(trace=1.08, script=None).stdout.fnmatch_lines(["latency against base.json: 1 compared: 1 slower"])


def test_what_is_new_is_added(runs: Runs) -> None:
    runs(script=None)
    result = runs(trace=1.5, labels=("example", "extra_inputs[0]"))
    result.stdout.fnmatch_lines(["latency against base.json: 1 compared: 1 slower; 3 new"])
    assert {(cell, label): entry.ratio for (_, _, cell, label), entry in runs.kept.items()} == {
        ("trace-cpu", "example"): 1.0,
        ("trace-cpu", "extra_inputs[0]"): 1.5,
        ("script-cpu", "example"): 2.0,
        ("script-cpu", "extra_inputs[0]"): 2.0,
    }
    runs(trace=2.0, labels=("extra_inputs[0]",)).stdout.fnmatch_lines(
        ["latency changed: *[[]trace-cpu], input extra_inputs[[]0]: 1.50x -> 2.00x*"]
    )


def test_another_machine_is_another_baseline(runs: Runs) -> None:
    runs()
    result = runs(trace=3.0, machine=LARGE)
    result.stdout.fnmatch_lines(
        ["*2 ratios of another machine only: not compared with this one (B CPU, 64 CPUs)", "*0 compared; 2 new"]
    )
    result.stdout.no_fnmatch_line("latency changed*")
    runs(trace=1.0, machine=SMALL).stdout.fnmatch_lines(["*2 compared: 2 steady"])
    runs(trace=3.0, machine=LARGE).stdout.fnmatch_lines(["*2 compared: 2 steady"])


def test_times_that_did_not_settle_are_not_used(runs: Runs) -> None:
    line = "latency against base.json: 0 compared; 2 not used, because the times did not settle"
    runs(settled=False).stdout.fnmatch_lines([line])
    assert not runs.file.exists()
    runs()
    runs(trace=9.0, settled=False).stdout.fnmatch_lines([line])


def test_a_wide_interval_is_unclear(runs: Runs) -> None:
    runs()
    result = runs("-v", half=0.5)
    result.stdout.fnmatch_lines(
        ["latency unclear: *trace-cpu]: 1.00x -> 1.00x of eager (+0 %, interval -33..+50 %)", "*2 compared: 2 unclear"]
    )


def test_reports_know_every_change() -> None:
    for one in [*Change, "new", "unsettled"]:
        assert f"1 {'not used' if one == 'unsettled' else one}" in changes.totals([{"change": str(one)}])
    assert set(changes.CHANGED) < {str(one) for one in Change}


def test_nothing_measured(runs: Runs) -> None:
    result = runs(trace=None, script=None)
    result.stdout.fnmatch_lines(["--export-baseline=*base.json: no speed was measured in this run, *"])
    assert not runs.file.exists()
    assert runs.project.report()["trend"] == []


def test_what_was_measured_before_stays_when_nothing_is(runs: Runs) -> None:
    runs()
    before = runs.file.read_bytes()
    runs(trace=None, script=None)
    assert runs.file.read_bytes() == before


def test_the_ini_file_names_one_too(runs: Runs) -> None:
    runs.project.ini("export_baseline = kept/base.json")
    runs(option=False)
    assert (runs.project.path / "kept" / "base.json").exists()
    runs("-k", "nothing", option=False).stdout.no_fnmatch_line("*no speed was measured*")


def test_verbosity(runs: Runs) -> None:
    runs("-q").stdout.fnmatch_lines(["latency against *"])
    runs("-qq", trace=2.0).stdout.no_fnmatch_line("*latency*")
    runs("-v").stdout.fnmatch_lines(["latency steady: *trace-cpu]: 1.00x -> 1.00x of eager (+0 %, interval -1..+1 %)"])


def test_nothing_happens_when_tests_are_only_collected(runs: Runs) -> None:
    runs("--collect-only").stdout.no_fnmatch_line("*no speed was measured*")
    assert not runs.file.exists()


# --- files that cannot be used ---

GOOD = {"kind": "pytest-torchexport baseline", "schema": 1, "machines": {}}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty"),
        ('{"kind": "pytest-torch', "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("[]", 'it has not "kind"'),
        ('{"schema": 1, "outcomes": []}', 'it has not "kind"'),
        (json.dumps(GOOD | {"schema": 2}), "it has schema 2, this version of the plugin reads 1"),
        (json.dumps(GOOD | {"machines": []}), "machines is no object"),
        (json.dumps(GOOD | {"machines": {"A": {"a.py::b": {"trace-cpu": {"example": 1.2}}}}}), "an entry has ratio"),
        ("\udcff", "cannot be read: 'utf-8' codec"),
    ],
    ids=["empty", "cut off", "deep", "a list", "a report", "later", "no machines", "no entry", "no text"],
)
def test_a_foreign_or_damaged_file_stops_the_run_and_stays(runs: Runs, text: str, why: str) -> None:
    content = text.encode(errors="surrogateescape")
    runs.file.write_bytes(content)
    result = runs()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--export-baseline=*base.json *{why}*"])
    assert runs.file.read_bytes() == content


def test_a_folder_is_no_file(runs: Runs) -> None:
    runs.file.mkdir()
    runs().stderr.fnmatch_lines(["*--export-baseline=*base.json: * is a directory; give a file that can be written"])


def test_a_place_where_nothing_can_be_made(runs: Runs) -> None:
    (runs.project.path / "taken").touch()
    result = runs("--export-baseline=taken/base.json")
    result.stderr.fnmatch_lines(["*taken is not a directory; give a file that can be written"])


def test_a_file_that_cannot_be_written(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.file.write_text(json.dumps(GOOD))
    access = os.access
    # An administrator, as whom tests may run, can write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK | os.W_OK and access(path, mode))
    runs().stderr.fnmatch_lines(["*base.json cannot be read and written; give a file that can be written"])


def test_the_file_of_a_report(runs: Runs) -> None:
    result = runs("--export-baseline=report.json")
    result.stderr.fnmatch_lines(["*--export-baseline: 'report.json' is the file of a report too, which would *"])


def test_a_full_disk(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    runs(script=None)
    before = runs.file.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pytest_torchexport.plugin.baseline.json.dump", full)
    result = runs("-qq", "--export-report=more.md")
    result.stdout.fnmatch_lines(["--export-baseline=*base.json was not written: No space left on device"])
    assert runs.file.read_bytes() == before


def _record(cell: str) -> dict[str, Any]:
    paired = {"input": "example", "ratio": 1.0, "low": 0.9, "high": 1.1, "pairs": 9, "settled": True}
    performance = {"paired": [paired], "machine": SMALL, "mode": "inference mode", "copies": ""}
    own = {"test": f"a.py::b[{cell}]", "origin": "a.py::b", "cell": cell, "backend": "trace", "device": "cpu"}
    return own | {"performance": performance, "environment": {"versions": {}}}


def test_what_another_run_wrote_meanwhile_stays(tmp_path: Path) -> None:
    one, other = (Baseline(tmp_path / "base.json", BASELINE.flag) for _ in range(2))
    one.take([_record("trace-cpu")])
    other.take([_record("script-cpu")])
    assert {key[2] for key in entries_of((tmp_path / "base.json").read_text())} == {"trace-cpu", "script-cpu"}


def test_damage_in_the_meantime_is_not_written_over(tmp_path: Path) -> None:
    baseline = Baseline(tmp_path / "base.json", BASELINE.flag)
    (tmp_path / "base.json").write_text("{")
    baseline.take([_record("trace-cpu")])
    assert (tmp_path / "base.json").read_text() == "{"
    assert any("is no baseline that can be read" in text for text, _ in baseline.lines(-2))


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "base.json").symlink_to(tmp_path / "shared.json")
    Baseline(tmp_path / "base.json", BASELINE.flag).take([_record("trace-cpu")])
    assert (tmp_path / "base.json").is_symlink()
    assert entries_of((tmp_path / "shared.json").read_text())


@pytest.mark.parametrize("ratio", ["nan", "inf", 0.0])
def test_a_number_that_is_none_is_not_kept(tmp_path: Path, ratio: object) -> None:
    record = _record("trace-cpu")
    record["performance"]["paired"][0]["ratio"] = ratio
    baseline = Baseline(tmp_path / "base.json", BASELINE.flag)
    baseline.take([record])
    assert not (tmp_path / "base.json").exists()
    assert baseline.to_list()[0]["change"] == "unsettled"


# --- what a machine is called ---

GPUS = {"cpu": "A CPU", "cpus": 1, "gpus": ["G0", "G1"]}


@pytest.mark.parametrize(
    ("machine", "device", "name"),
    [
        (GPUS, "cpu", "A CPU, 1 CPU"),
        (GPUS, "cuda", "A CPU, 1 CPU, G0"),
        (GPUS, "cuda:1", "A CPU, 1 CPU, G1"),
        (SMALL, "cuda", "A CPU, 2 CPUs, cuda"),
        (SMALL, "mps", "A CPU, 2 CPUs, mps"),
    ],
)
def test_name_of_a_machine(machine: dict[str, Any], device: str, name: str) -> None:
    assert fingerprint(machine, device) == name


@pytest.mark.slow
def test_with_workers_only_one_process_writes(runs: Runs) -> None:
    runs.project.conftest(
        textwrap.dedent(
            MEASURED.format(
                ratios={"trace": 1.0, "script": 2.0},
                half=0.01,
                labels=("example",),
                settled=True,
                machine=SMALL,
                torch="2",
            )
        )
    )
    runs.project.run_apart("-n2", "--export-baseline=base.json").assert_outcomes(passed=2)
    assert len(runs.kept) == 2
    result = runs.project.run_apart("-n2", "--export-baseline=base.json")
    result.stdout.fnmatch_lines(["latency against base.json: 2 compared: 2 steady"])
