"""What is kept of a check for a person to look at: outcome, artifact, the failing input and both outputs."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pytest_torchexport.subject import containers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pytest_torchexport.outcome import Outcome


def keep(outcome: Outcome, folder: Path, artifact: Path | None, tensors: Mapping[str, Any]) -> Outcome:
    """Write the folder of one check.

    It holds `outcome.json`, `report.txt`, the artifact with its side files, and one `NAME.npz` for each group of
    tensors, whose keys are the paths of the leaves. A dtype that numpy does not have (bfloat16, float8) is written as
    float32, which holds each of its values; `dtypes.json` has the original ones.

    Args:
        outcome: what was found.
        folder: where to; made if it does not exist. Files of an earlier run of the same test are replaced.
        artifact: the exported file, if the backend made one. Everything beside it is taken along.
        tensors: the groups: `input`, `eager`, `exported`.

    Returns:
        The outcome with `kept_in` and `artifact` set. If the folder cannot be written, the outcome as it was, with the
        reason in its message: what cannot be kept never changes a verdict.
    """
    try:
        kept = _write(outcome, folder, artifact, tensors)
    except OSError as error:
        why = f"  not kept: {folder}: {error.strerror or error}"
        return dataclasses.replace(outcome, message=f"{outcome.message}\n{why}")
    return kept


def _write(outcome: Outcome, folder: Path, artifact: Path | None, tensors: Mapping[str, Any]) -> Outcome:
    folder.mkdir(parents=True, exist_ok=True)
    dtypes: dict[str, dict[str, str]] = {}
    for name, value in tensors.items():
        arrays, dtypes[name] = _arrays(value)
        np.savez(folder / f"{name}.npz", allow_pickle=False, **arrays)
    if dtypes:
        (folder / "dtypes.json").write_text(json.dumps(dtypes, indent=2) + "\n", encoding="utf-8")
    place = outcome.artifact
    if artifact is not None:
        shutil.copytree(artifact.parent, folder / "artifact", dirs_exist_ok=True)
        place = str(folder / "artifact" / artifact.name)
    text = f"{outcome.message}\n  kept in: {folder}"
    kept = dataclasses.replace(outcome, kept_in=str(folder), artifact=place, message=text)
    (folder / "outcome.json").write_text(json.dumps(kept.to_dict(), indent=2) + "\n", encoding="utf-8")
    (folder / "report.txt").write_text(kept.message + "\n", encoding="utf-8")
    return kept


def _arrays(value: Any) -> tuple[dict[str, Any], dict[str, str]]:
    arrays: dict[str, Any] = {}
    dtypes: dict[str, str] = {}
    for path, leaf in containers.leaves(value):
        name = path.strip(".[]'\"") or "value"
        if isinstance(leaf, torch.Tensor):
            arrays[name] = _array(leaf.detach())
            dtypes[name] = str(leaf.dtype).removeprefix("torch.")
        elif isinstance(leaf, (bool, int, float, complex, np.ndarray)):
            arrays[name] = np.asarray(leaf)
            dtypes[name] = type(leaf).__name__
    return arrays, dtypes


def _array(tensor: torch.Tensor) -> Any:
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    tensor = tensor.to_dense().cpu() if tensor.layout is not torch.strided else tensor.cpu()
    try:
        return tensor.resolve_conj().resolve_neg().numpy()
    except TypeError:
        return tensor.to(torch.float32).numpy()
