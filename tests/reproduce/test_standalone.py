"""What is copied into the scripts, on its own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from pytest_torchexport.reproduce import standalone

if TYPE_CHECKING:
    from pathlib import Path


def test_a_key_of_the_users_may_hold_the_word_example(tmp_path: Path) -> None:
    inside = {"input": {"0.d.example:x": "float32"}, "example": {"example:x": "float32"}}
    (tmp_path / "dtypes.json").write_text(json.dumps(inside), encoding="utf-8")
    for number, (name, keys) in enumerate(inside.items()):
        np.savez(tmp_path / f"{name}.npz", **{key: np.full(1, number, np.float32) for key in keys})  # type: ignore[arg-type]
    archives = standalone.Archives(tmp_path)
    assert archives("0.d.example:x").tolist() == [0]
    assert archives("example:example:x").tolist() == [1]
    assert archives.array("0.d.example:x").tolist() == [0]
