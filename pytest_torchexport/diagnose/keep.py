"""What is kept of a check for a person to look at: outcome, artifact, the failing input and both outputs."""

from __future__ import annotations

import dataclasses
import json
import re
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
    tensors, whose keys are the paths of the leaves, `[0]['x']` as `0.x`. A dtype that numpy does not have (bfloat16,
    float8) is written as float32, which holds each of its values; `dtypes.json` has the original ones. What is no
    array of numbers is left out.

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
        return _write(outcome, folder, artifact, tensors)
    except Exception as error:  # noqa: BLE001 whatever goes wrong here is no news of the model
        why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        return dataclasses.replace(outcome, message=f"{outcome.message}\n  not kept: {folder}: {why}")


def _write(outcome: Outcome, folder: Path, artifact: Path | None, tensors: Mapping[str, Any]) -> Outcome:
    folder.mkdir(parents=True, exist_ok=True)
    dtypes: dict[str, dict[str, str]] = {}
    for name, value in tensors.items():
        arrays, dtypes[name] = _arrays(value)
        np.savez(folder / f"{name}.npz", **arrays)
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
        array = _array(leaf)
        if array is not None:
            name = _unused(_readable(path), arrays)
            arrays[name] = array
            dtypes[name] = _kind(leaf)
    return arrays, dtypes


def _readable(path: str) -> str:
    """A leaf's path as the name of a file in the archive: `[0]['x'].y` is `0.x.y`."""
    steps = re.findall(r"\[(?:'([^']*)'|\"([^\"]*)\"|([^\]]*))\]|([^.\[\]]+)", path)
    plain = ".".join("".join(step) for step in steps)
    # A slash would be a folder in the archive.
    return re.sub(r"[/\\\0]", "_", plain) or "value"


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    """The name, or with a number behind it: the keys 1 and '1' of a dict look alike."""
    number, free = 1, name
    while free in taken or free in _ARGUMENTS_OF_SAVEZ:
        number += 1
        free = f"{name}#{number}"
    return free


_ARGUMENTS_OF_SAVEZ = ("file", "allow_pickle")


def _kind(leaf: Any) -> str:
    return str(leaf.dtype).removeprefix("torch.") if hasattr(leaf, "dtype") else type(leaf).__name__


def _array(leaf: Any) -> Any:
    """The leaf as an array of numbers; None for one that is none, or that cannot be read."""
    try:
        array = _from_tensor(leaf.detach()) if isinstance(leaf, torch.Tensor) else _from_python(leaf)
    except Exception:  # noqa: BLE001 of some tensors (nested, on the meta device) there are no elements to be had
        return None
    return array


def _from_python(leaf: Any) -> Any:
    known = isinstance(leaf, (bool, int, float, complex, np.ndarray, np.generic))
    array = np.asarray(leaf) if known else None
    return None if array is None or array.dtype.hasobject else array


def _from_tensor(tensor: torch.Tensor) -> Any:
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    tensor = tensor.to_dense().cpu() if tensor.layout is not torch.strided else tensor.cpu()
    try:
        return tensor.resolve_conj().resolve_neg().numpy()
    except TypeError:
        return tensor.to(torch.float32).numpy()
