"""Counterexamples kept from one run to the next, in a folder with a file for each.

A file holds only tensors, numbers, strings and plain containers, so that it can be read without running code from it.
What a call shares with the example's structure (named tuples, dataclasses, opaque objects) is not in the file: it is
taken from the example again.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.errors import UsageError
from pytest_torchexport.inputs.values import can_vary
from pytest_torchexport.inputs.variables import digest, nodes_of
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.call import Call, bind, positional_names, rebind, signature_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

KEPT = 5
"""So many inputs are kept for a key; the oldest goes first."""

_SCHEMA = 1

_LARGEST = 2**26
"""Bytes: an input that is larger is not kept."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype)


@dataclass(frozen=True)
class Remembered:
    """What was kept: the inputs that fit the example, the latest first, and the number of those that do not."""

    inputs: tuple[tuple[Call, ...], ...] = ()
    dropped: int = 0


class _CannotKeepError(Exception):
    """A value that no file holds, or one from a file that does not fit the example."""


def save(folder: Path, key: str, inputs: Iterable[Sequence[Call]], model: Callable[..., Any], example: Call) -> int:
    """Keep inputs beside those that are there already. Several processes may do so at the same time.

    Args:
        folder: where the files are; made if it does not exist.
        key: whose inputs they are; any text.
        inputs: sequences of calls.
        model: the model whose `forward` names the arguments.
        example: the example call, whose structure is not written.

    Returns:
        How many are kept now that were given. An input is left out if it holds what no file can or is larger than
        64 MiB, and all are where the folder cannot be written.
    """
    kept = 0
    place = _place(folder, key)
    known = nodes_of(bind(model, example))
    for calls in reversed(list(inputs)):  # the first one given is the latest
        try:
            plain = {"schema": _SCHEMA, "calls": [_packed(model, call, known) for call in calls]}
            name = hashlib.blake2b(b"".join(digest((c.args, dict(c.kwargs))) for c in calls), digest_size=12)
            _write(place, f"{name.hexdigest()}.pt", plain)
        except (_CannotKeepError, OSError):
            continue
        kept += 1
    for path in _listed(place)[KEPT:]:
        with contextlib.suppress(OSError):
            path.unlink()
    return kept


def load(folder: Path, key: str, model: Callable[..., Any], example: Call) -> Remembered:
    """The inputs kept for the key, on the example's device, as calls of kind `remembered`.

    What cannot be read, and what no longer fits the example (an argument of another name, another dtype), is counted
    and left out.

    Args:
        folder: where the files are; it need not exist.
        key: whose inputs are wanted.
        model: the model whose `forward` names the arguments.
        example: the example call.
    """
    found: list[tuple[Call, ...]] = []
    dropped = 0
    for path in _listed(_place(folder, key)):
        try:
            found.append(_read(path, model, example))
        except Exception:  # noqa: BLE001 - a damaged file may raise anything
            dropped += 1
    return Remembered(tuple(found), dropped)


def _read(path: Path, model: Callable[..., Any], example: Call) -> tuple[Call, ...]:
    plain = torch.load(path, map_location="cpu", weights_only=True)
    if plain["schema"] != _SCHEMA:
        raise _CannotKeepError
    return tuple(_unpacked(model, one, example) for one in plain["calls"])


def _place(folder: Path, key: str) -> Path:
    return folder / hashlib.blake2b(key.encode(), digest_size=12).hexdigest()


def _listed(place: Path) -> list[Path]:
    """The files, the latest first."""
    found = []
    for path in place.glob("*.pt"):
        with contextlib.suppress(OSError):  # another process may have removed it
            found.append((-path.stat().st_mtime_ns, path.name, path))
    return [path for _, _, path in sorted(found)]


def _write(place: Path, name: str, plain: Any) -> None:
    place.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=place, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(plain, file)
        now = time.time_ns()  # finer than the clock of some file systems
        os.utime(temporary, ns=(now, now))
        Path(temporary).replace(place / name)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


# --- from a call to plain data --------------------------------------------------------------------------------------


def _packed(model: Callable[..., Any], call: Call, known: dict[str, Any]) -> dict[str, Any]:
    """The call's arguments by name: the leaves by path where the structure is the example's, else the whole value."""
    copies: dict[int, Any] = {}
    arguments: dict[str, Any] = {}
    for name, value in bind(model, call).items():
        leaves = dict(containers.leaves(value, name))
        if name in known and _same_structure(value, known[name]):
            kept = {path: leaf for path, leaf in leaves.items() if _can_keep(leaf) or leaf is not known.get(path)}
            arguments[name] = {"leaves": {path: _plain(leaf, copies) for path, leaf in kept.items()}}
        else:
            arguments[name] = {"value": _plain(value, copies)}
    bytes_held = sum(copy.nbytes for copy in copies.values() if copy.layout is torch.strided)
    if bytes_held > _LARGEST:
        raise _CannotKeepError
    return {"label": call.label, "arguments": arguments}


def _same_structure(value: Any, other: Any) -> bool:
    ours, theirs = containers.children(value), containers.children(other)
    if ours is None or theirs is None:
        return ours is None and theirs is None
    if type(value) is not type(other) or [step for step, _ in ours] != [step for step, _ in theirs]:
        return False
    return all(_same_structure(one, two) for (_, one), (_, two) in zip(ours, theirs, strict=True))


def _can_keep(leaf: Any) -> bool:
    return isinstance(leaf, enum.Enum) or type(leaf) in _PLAIN or can_vary(leaf)


def _plain(value: Any, copies: dict[int, Any]) -> Any:
    if isinstance(value, enum.Enum):
        return {"member": value.name}
    if type(value) in _PLAIN:
        return {"scalar": value}
    if isinstance(value, torch.Tensor):
        if not can_vary(value):
            raise _CannotKeepError
        if id(value) not in copies:
            copies[id(value)] = containers.clone_tensor(value).detach().cpu().requires_grad_(value.requires_grad)
        return {"tensor": copies[id(value)]}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_plain(part, copies) for part in value]}
    if type(value) is dict and all(type(key) in (bool, int, str) for key in value):
        return {"dict": {key: _plain(part, copies) for key, part in value.items()}}
    raise _CannotKeepError


# --- and back -------------------------------------------------------------------------------------------------------


def _unpacked(model: Callable[..., Any], plain: dict[str, Any], example: Call) -> Call:
    signature = signature_of(model)
    parameters = dict(signature.parameters) if signature else {}
    named = bind(model, example)
    nodes = nodes_of(named)
    reader = _Reader(nodes)
    made: dict[str, Any] = {}
    for name, argument in plain["arguments"].items():
        if name not in named and name not in parameters:
            raise _CannotKeepError
        if "leaves" in argument:
            at = {path: reader.read(leaf, path) for path, leaf in argument["leaves"].items()}
            if any(path not in nodes for path in at):
                raise _CannotKeepError
            made[name] = containers.replace(named[name], at, name)
        else:
            default = parameters[name].default if name in parameters else None
            made[name] = reader.read(argument["value"], name, default)
    names = positional_names(model, example)
    given = next((index for index, name in enumerate(names) if name not in made), len(names))
    pattern = Call(example.args[:given], {name: value for name, value in example.kwargs.items() if name in made})
    call = rebind(model, pattern, made, "remembered", plain["label"])
    with contextlib.suppress(UsageError):
        bind(model, call)
        return call
    raise _CannotKeepError


class _Reader:
    """Values from plain data, in the place of the example's."""

    def __init__(self, nodes: dict[str, Any]) -> None:
        self.nodes = nodes
        self.device = next((node.device for node in nodes.values() if isinstance(node, torch.Tensor)), None)
        self.moved: dict[int, torch.Tensor] = {}

    def read(self, plain: dict[str, Any], path: str, default: Any = None) -> Any:
        """The value; it must be of the kind of what stands at the path of the example."""
        now = self.nodes.get(path, default)
        ((kind, value),) = plain.items()
        if kind == "tensor":
            return self._tensor(value, now)
        if kind == "scalar":
            if not (now is None or value is None or type(now) is type(value) or isinstance(now, torch.Tensor)):
                raise _CannotKeepError
            return value
        if kind == "member":
            return type(now)[value]
        if kind == "dict":
            return {key: self.read(part, f"{path}[{key!r}]") for key, part in value.items()}
        parts = [self.read(part, f"{path}[{index}]") for index, part in enumerate(value)]
        return parts if kind == "list" else tuple(parts)

    def _tensor(self, value: torch.Tensor, now: Any) -> torch.Tensor:
        if isinstance(now, torch.Tensor):
            if (now.dtype, now.layout, now.dim()) != (value.dtype, value.layout, value.dim()):
                raise _CannotKeepError
        elif now is not None:
            raise _CannotKeepError
        if id(value) not in self.moved:
            device = now.device if isinstance(now, torch.Tensor) else self.device
            moved = value.detach().to(device) if device is not None else value
            self.moved[id(value)] = moved.requires_grad_(value.requires_grad)
        return self.moved[id(value)]
