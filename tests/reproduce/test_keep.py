from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from pytest_torchexport.outcome import Outcome, Stage, Verdict
from pytest_torchexport.reproduce.keep import keep

if TYPE_CHECKING:
    from pathlib import Path

OUTCOME = Outcome(
    verdict=Verdict.MISMATCH, stage=Stage.COMPARE, backend="trace", device="cpu", message="it differs", model="M"
)


@dataclass
class Pair:
    one: torch.Tensor
    two: list[torch.Tensor]


def arrays(folder: Path, value: Any) -> dict[str, Any]:
    keep(OUTCOME, folder, None, {"eager": value})
    return dict(np.load(folder / "eager.npz"))


def test_the_folder_holds_outcome_report_tensors_and_artifact(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / "made" / name).write_text(name)
    folder = tmp_path / "kept" / "here"
    kept = keep(OUTCOME, folder, tmp_path / "made" / "model.onnx", {"eager": [torch.ones(2)], "exported": [None]})
    assert kept.verdict is Verdict.MISMATCH
    assert kept.kept_in == str(folder)
    assert kept.artifact == str(folder / "artifact" / "model.onnx")
    assert (folder / "artifact" / "model.onnx.data").read_text() == "model.onnx.data"
    assert json.loads((folder / "outcome.json").read_text()) == kept.to_dict()
    assert (folder / "report.txt").read_text() == f"it differs\n  kept in: {folder}\n"
    assert np.load(folder / "eager.npz")["0"].tolist() == [1, 1]
    assert list(np.load(folder / "exported.npz")) == []


@pytest.mark.parametrize(
    ("value", "keys"),
    [
        (torch.ones(1), ["value"]),
        ([{"x": torch.ones(1)}, (torch.ones(1), 2.0)], ["0.x", "1.0", "1.1"]),
        ([Pair(torch.ones(1), [torch.ones(1)])], ["0.one", "0.two.0"]),
        ([{1: torch.ones(1), "1": torch.zeros(1)}], ["0.1", "0.1#2"]),
        ({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, ["a.b", "a.b#2"]),
        ({"it's": 1, "a]b": 2, "../up/there": 3}, ["it's", "a]b", ".._up_there"]),
        ({"file": 1, "allow_pickle": 2}, ["file", "allow_pickle"]),
    ],
)
def test_keys_are_readable_paths_and_no_two_are_alike(value: Any, keys: list[str], tmp_path: Path) -> None:
    assert list(arrays(tmp_path, value)) == keys


def test_a_dtype_that_numpy_does_not_have_keeps_its_values(tmp_path: Path) -> None:
    value = {"half": torch.tensor([1.5], dtype=torch.bfloat16), "sparse": torch.eye(2).to_sparse(), "n": 3}
    found = arrays(tmp_path, value)
    assert found["half"].tolist() == [1.5]
    assert found["sparse"].tolist() == [[1, 0], [0, 1]]
    dtypes = json.loads((tmp_path / "dtypes.json").read_text())["eager"]
    assert dtypes == {"half": "bfloat16", "sparse": "float32", "n": "int"}


@pytest.mark.parametrize(
    "leaf",
    [np.array([None, "x"], dtype=object), torch.ones(2, device="meta"), "text", None, 10**40],
    ids=["object array", "meta tensor", "string", "None", "large number"],
)
def test_what_is_no_array_of_numbers_is_left_out(leaf: Any, tmp_path: Path) -> None:
    assert list(arrays(tmp_path, [leaf, torch.ones(1)])) == ["1"]


def test_what_cannot_be_kept_never_changes_the_verdict(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    kept = keep(OUTCOME, tmp_path / "file" / "folder", None, {})
    assert kept.verdict is Verdict.MISMATCH
    assert kept.kept_in is None
    assert kept.message.startswith("it differs\n  not kept: ")
    cyclic: list[Any] = []
    cyclic.append({"again": cyclic})
    assert keep(OUTCOME, tmp_path / "other", None, {"eager": cyclic}).verdict is Verdict.MISMATCH
