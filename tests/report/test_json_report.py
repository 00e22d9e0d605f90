"""The JSON report: its schema, and a writer that fails."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import jsonschema
import pytest

from pytest_torchexport.branches.sites import Kind
from pytest_torchexport.outcome import (
    SCHEMA,
    BranchCoverage,
    BranchOutcome,
    Cause,
    Decision,
    Divergence,
    Evidence,
    Input,
    Leaf,
    Location,
    NotChecked,
    Outcome,
    Stage,
    Verdict,
)
from pytest_torchexport.report import json as json_report
from pytest_torchexport.report.junit import properties

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

EXTRA = {"result": "failed", "cell": "trace-cpu", "origin": "a.py::test_a"}


def full() -> dict[str, Any]:
    """A record with every field set."""
    where = Location("model.py", 3, "if x > 0:")
    leaf = Leaf(
        "output", agrees=False, cause=Cause.NUMERIC, shape=(2, 3), index=(0, 1), max_abs=float("nan"), allowed=0.1
    )
    taken, missing = BranchOutcome("true", "example", "example"), BranchOutcome("false", tried="80 steps")
    decision = Decision("condition", "x > 0", where, (taken, missing))
    outcome = Outcome(
        verdict=Verdict.MISMATCH,
        stage=Stage.COMPARE,
        backend="trace",
        device="cpu",
        message="headline\nmore",
        model="Gate",
        dtype="float32",
        test="a.py::test_a[trace-cpu]",
        cause=Cause.BAKED_BRANCH,
        location=where,
        evidence=(Evidence("why", where), Evidence("also")),
        worst=leaf,
        leaves=(leaf,),
        compared=4,
        inputs=(Input("example", "example"), Input("random", "1", 2, agrees=False)),
        dropped={"random: rejected": 2},
        failing_input="x=1",
        paste="extra_inputs=[(1,)]",
        not_checked=(NotChecked("what", "why"),),
        durations={"export": 0.5, "run": 0.25},
        artifact="model.pt",
        artifact_bytes=10,
        kept_in="kept",
        branches=BranchCoverage("search", (decision,), 90),
        divergence=Divergence("layer1", "aten.mul.Tensor", "aten.mul", "mul_1", where, 40.0, 0.5, ("aten.add.Tensor",)),
        reproduction="kept/repro.py",
        details={"graphs": 1},
        environment={"torch": "2"},
    )
    return outcome.to_dict() | EXTRA


def validate(document: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(json_report.schema()).validate(document)


def test_the_schema_itself_is_valid_and_has_the_number() -> None:
    schema = json_report.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"]["schema"]["const"] == SCHEMA


def test_a_report_follows_its_schema(tmp_path: Path) -> None:
    bare = Outcome(Verdict.SKIPPED, Stage.REFERENCE, "trace", "cpu", "no").to_dict() | EXTRA
    json_report.write(tmp_path / "new" / "report.json", json_report.document([full(), bare], json_report.machine()))
    document = json.loads((tmp_path / "new" / "report.json").read_text(encoding="utf-8"))
    validate(document)
    assert document["outcomes"][0]["worst"]["max_abs"] == "nan"
    assert document["versions"]["torch"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.json"], "no unfinished file stays"


@pytest.mark.parametrize(
    "fault",
    [
        {"verdict": "fine"},
        {"cause": "?"},
        {"seed": "0"},
        {"location": {}},
        {"durations": {"run": -1}},
        {"result": 1},
        {"branches": {"mode": "search"}},
        {"branches": full()["branches"] | {"mode": "off"}},
        {"branches": full()["branches"] | {"decisions": [{"kind": "condition"}]}},
    ],
)
def test_the_schema_rejects(fault: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate(json_report.document([full() | fault], json_report.machine()))


def test_the_schema_knows_every_key_and_word() -> None:
    described = json_report.schema()["$defs"]
    assert set(described["outcome"]["required"]) == set(described["outcome"]["properties"]) == set(full())
    assert set(described["leaf"]["required"]) == set(full()["worst"])
    found = full()["branches"]
    decision = found["decisions"][0]
    for name, one in (
        ("divergence", full()["divergence"]),
        ("branches", found),
        ("decision", decision),
        ("branch_outcome", decision["outcomes"][0]),
    ):
        assert set(described[name]["required"]) == set(described[name]["properties"]) == set(one)
    assert described["decision"]["properties"]["kind"]["enum"] == [one.value for one in Kind]
    assert described["outcome"]["properties"]["verdict"]["enum"] == [one.value for one in Verdict]
    assert described["outcome"]["properties"]["stage"]["enum"] == [one.value for one in Stage]
    assert described["cause"]["enum"] == [*(one.value for one in Cause), None]


def test_an_outcome_comes_back_from_its_record() -> None:
    record = full()
    again = Outcome.from_dict(json.loads(json.dumps(record)))
    assert again.to_dict() | EXTRA == record
    assert again.branches is not None
    assert (again.branches.known, again.branches.reached, again.branches.ratio) == (2, 1, 0.5)
    assert [(one.location.line, missing.tried) for one, missing in again.branches.unreached] == [(3, "80 steps")]


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text("old", encoding="utf-8")
    circular: dict[str, Any] = {}
    circular["self"] = circular
    with pytest.raises(ValueError, match="Circular"):
        json_report.write(file, circular)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert file.read_text(encoding="utf-8") == "old"


def test_flat_properties() -> None:
    assert dict(properties(full())) == {
        "torchexport.verdict": "mismatch",
        "torchexport.stage": "compare",
        "torchexport.cause": "baked branch",
        "torchexport.backend": "trace",
        "torchexport.device": "cpu",
        "torchexport.max_abs": "nan",
        "torchexport.max_rel": 0.0,
        "torchexport.inputs": 2,
        "torchexport.branches_known": 2,
        "torchexport.branches_reached": 1,
        "torchexport.duration_s": 0.75,
    }
