"""What is kept of a check for a person to look at: outcome, artifact, the failing input and both outputs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pytest_torchexport.subject import containers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from pytest_torchexport.outcome import Outcome


class Leaves(list[tuple[str, Any]]):
    """A group that is taken apart already: path and value of each leaf."""


@dataclass
class Kept:
    """A folder as far as it is written.

    Attributes:
        folder: where.
        artifact: the exported file in it, if there is one.
        keys: by group and path of the leaf, the key under which it is in the group's archive.
        dtypes: by group and key, the original dtype.
    """

    folder: Path
    artifact: Path | None = None
    keys: dict[str, dict[str, str]] = field(default_factory=dict)
    dtypes: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, group: str, leaves: Iterable[tuple[str, Any]]) -> None:
        """Write `GROUP.npz`, one array after the other; what is no array of numbers is left out.

        A tensor that stands at several paths is written once.

        Args:
            group: its name.
            leaves: path and value. The key is the path's readable form; a path without brackets and dots is its key.
        """
        keys, dtypes = self.keys.setdefault(group, {}), self.dtypes.setdefault(group, {})
        written: dict[int, tuple[str, Any]] = {}
        with zipfile.ZipFile(self.folder / f"{group}.npz", "w", allowZip64=True) as archive:
            for path, leaf in leaves:
                name = _unused(_readable(path), dtypes)
                if id(leaf) in written and isinstance(leaf, torch.Tensor):
                    keys[path] = written[id(leaf)][0]
                    dtypes[name] = f"the same tensor as {keys[path]}"
                    continue
                array = _array(leaf)
                if array is None:
                    continue
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
                keys[path], dtypes[name] = name, _kind(leaf)
                written[id(leaf)] = (name, leaf)

    def finish(self) -> None:
        """Write `dtypes.json`, once all groups are there."""
        if self.dtypes:
            (self.folder / "dtypes.json").write_text(json.dumps(self.dtypes, indent=2) + "\n", encoding="utf-8")


def keep(
    outcome: Outcome,
    folder: Path,
    artifact: Path | None,
    tensors: Mapping[str, Any],
    writers: Iterable[Callable[[Kept], dict[str, Any]]] = (),
    *,
    move: bool = False,
) -> Outcome:
    """Write the folder of one check.

    It holds `outcome.json`, `report.txt`, the artifact with its side files, and one `NAME.npz` for each group of
    tensors, whose keys are the paths of the leaves, `[0]['x']` as `0.x`. A dtype that numpy does not have (bfloat16,
    float8) is written as float32, which holds each of its values; `dtypes.json` has the original ones. What is no
    array of numbers is left out.

    Args:
        outcome: what was found.
        folder: where to; made if it does not exist. Files of an earlier run of the same test are replaced.
        artifact: the exported file, if the backend made one. Everything beside it is taken along.
        tensors: the groups: `input`, `eager`, `exported`; each a value, or the `Leaves` of one.
        writers: write more into the folder; each gives the outcome's fields that change, and with `message` a line that
            is added to it.
        move: the artifact may be moved: its folder is needed no more.

    Returns:
        The outcome with `kept_in` and `artifact` set. If the folder cannot be written, the outcome as it was, with the
        reason in its message: what cannot be kept never changes a verdict.
    """
    try:
        return _write(outcome, folder, artifact, tensors, writers, move=move)
    except Exception as error:  # noqa: BLE001 whatever goes wrong here is no news of the model
        return dataclasses.replace(outcome, message=f"{outcome.message}\n  not kept: {folder}: {_why(error)}")


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}".split("\n", 1)[0]


def _write(
    outcome: Outcome,
    folder: Path,
    artifact: Path | None,
    tensors: Mapping[str, Any],
    writers: Iterable[Callable[[Kept], dict[str, Any]]],
    *,
    move: bool,
) -> Outcome:
    folder.mkdir(parents=True, exist_ok=True)
    kept = Kept(folder, None if artifact is None else folder / "artifact" / artifact.name)
    if artifact is not None:
        _take(artifact.parent, folder / "artifact", move=move)
        outcome = dataclasses.replace(outcome, artifact=str(kept.artifact))
    for name, value in tensors.items():
        kept.add(name, value if isinstance(value, Leaves) else containers.leaves(value))
    lines = []
    for write in writers:
        try:
            changed = write(kept)
        except Exception as error:  # noqa: BLE001 without it the folder still holds the rest
            changed = {"message": f"no script: {_why(error)}"}
        lines += [f"  {line}" for line in changed.pop("message", "").splitlines()]
        outcome = dataclasses.replace(outcome, **changed)
    kept.finish()
    text = "\n".join([outcome.message, *lines, f"  kept in: {folder}"])
    outcome = dataclasses.replace(outcome, kept_in=str(folder), message=text)
    (folder / "outcome.json").write_text(json.dumps(outcome.to_dict(), indent=2) + "\n", encoding="utf-8")
    (folder / "report.txt").write_text(outcome.message + "\n", encoding="utf-8")
    return outcome


def _take(source: Path, target: Path, *, move: bool) -> None:
    """Move or copy a folder's files: large ones should not be written twice."""
    if move:
        # What is still open, or on another disk, is copied instead.
        with contextlib.suppress(OSError):
            if not target.exists():
                source.rename(target)
                source.mkdir()  # whoever made it removes it
                return
    shutil.copytree(source, target, dirs_exist_ok=True)


def _readable(path: str) -> str:
    """A leaf's path as the name of a file in the archive: `[0]['x'].y` is `0.x.y`."""
    steps = re.findall(r"\[(?:'([^']*)'|\"([^\"]*)\"|([^\]]*))\]|([^.\[\]]+)", path)
    plain = ".".join("".join(step) for step in steps)
    # A slash would be a folder in the archive.
    return re.sub(r"[/\\\0]", "_", plain) or "value"


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    """The name, or with a number behind it: the keys 1 and '1' of a dict look alike."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}#{number}"
    return free


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
    tensor = tensor.resolve_conj().resolve_neg()
    try:
        return tensor.numpy()
    except TypeError:
        return tensor.to(torch.complex64 if tensor.is_complex() else torch.float32).numpy()
