"""The state of a model: what running it may change. Snapshot, restore, read by name.

State is everything that forward could rebind or write in place, except the parameters' values: buffers, tensors and
Python values held by modules, closures and objects, and whatever mutable objects these lead to. Parameters are never
copied; a forward that writes to one is noticed by `parameter_marks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pytest_torchexport.subject import containers
from pytest_torchexport.subject.equality import identical
from pytest_torchexport.subject.fingerprint import fingerprint
from pytest_torchexport.subject.script_attributes import script_attributes, write_script_attributes
from pytest_torchexport.subject.undo import Way, is_as_saved, of_tensor, restore, ways_back
from pytest_torchexport.subject.walk import parameters_in, walk

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "Snapshot",
    "buffer_names",
    "fingerprint",
    "identical",
    "parameter_marks",
    "parameters",
    "read",
    "script_attributes",
    "write_script_attributes",
]


class Snapshot:
    """The state of a model at one moment, and the way back to it.

    `restore` puts every mutable object back in place: the same tensor, list or dict object gets its old contents, so
    that an exported program which shares them with the model starts from the old state as well.

    Args:
        model: the user's module or function.

    Attributes:
        values: the state by name, as copies.
    """

    def __init__(self, model: object) -> None:
        self.model = model
        self._ways: list[Way] = []
        self._tensors: dict[int, torch.Tensor] = {}
        found = list(walk(model))
        weights = {id(one) for one in parameters_in(found).values()}
        copies: dict[int, torch.Tensor] = {}
        for _, value in found:
            if not isinstance(value, torch.Tensor):
                self._ways += ways_back(value)
            elif id(value) in weights:
                self._ways.append(of_tensor(value, None))
            elif id(value) not in copies:
                copies[id(value)] = containers.clone_tensor(value)
                self._tensors[id(value)] = value
                self._ways.append(of_tensor(value, copies[id(value)]))
        self.values = {
            path: copies[id(value)] if isinstance(value, torch.Tensor) else containers.clone(value)
            for path, value in _entries_in(found).items()
        }

    def restore(self) -> None:
        """Put the model back into the state of the snapshot."""
        restore(self._ways)

    def changes(self) -> dict[str, Any]:
        """The entries of the state that differ from the snapshot now, by name, as copies; None for a vanished one."""
        if is_as_saved(self._ways):  # much quicker than to read all of it
            return {}
        now = _entries(self.model)
        names = dict.fromkeys([*self.values, *now])
        return {
            name: containers.clone(now.get(name))
            for name in names
            if name not in now or name not in self.values or not identical(self.values[name], now[name])
        }

    def live(self) -> dict[str, torch.Tensor]:
        """The tensors of the state by name, as they are now, not copies."""
        return {name: value for name, value in _entries(self.model).items() if isinstance(value, torch.Tensor)}

    def tensors(self) -> list[torch.Tensor]:
        """The live tensors that `restore` writes to: an output which shares memory with one has to be copied."""
        return list(self._tensors.values())


def _entries(model: object) -> dict[str, Any]:
    """The live leaves of the model's state by name: `bn.running_mean`, `history[0]`, `cache['k']`."""
    return _entries_in(walk(model))


_VALUES = (torch.Tensor, np.ndarray, np.generic, *containers.SCALARS)


def _entries_in(found: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found = list(found)
    weights = {id(one) for one in parameters_in(found).values()}
    entries: dict[str, Any] = {}
    for path, value in found:
        if isinstance(value, _VALUES) and id(value) not in weights:
            entries.setdefault(path, value)
    return entries


def read(model: object) -> dict[str, Any]:
    """The state by name as copies: buffers, and Python attributes taken apart to their leaves."""
    return {name: containers.clone(value) for name, value in _entries(model).items()}


def parameters(model: object) -> dict[str, torch.nn.Parameter]:
    """The parameters of all modules that a callable leads to, by qualified name; a shared one by its first."""
    return parameters_in(walk(model))


def buffer_names(model: object) -> frozenset[str]:
    """The names in the state that are registered buffers, of all modules that a callable leads to."""
    buffers: dict[int, torch.Tensor] = {}
    names: list[str] = []
    for path, value in walk(model):
        if isinstance(value, torch.nn.Module):
            for name, buffer in value.named_buffers(recurse=False):
                if id(buffer) not in buffers:
                    buffers[id(buffer)] = buffer
                    names.append(f"{path}.{name}" if path else name)
    return frozenset(names)


def parameter_marks(model: object) -> dict[str, tuple[int, float, int]]:
    """A mark for each parameter that changes when its values do: version counter, sum, checksum of the bits."""
    return {name: (_version(one), *_checksum(one.detach())) for name, one in parameters(model).items()}


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers of a size: every dtype can be read as one of them, few operators are there for every dtype."""


def _checksum(tensor: torch.Tensor) -> tuple[float, int]:
    """Sum and checksum, on the tensor's device and without a copy; zeros for a layout that has none.

    The checksum is an exclusive or: alone it would not see every element of a constant tensor change alike.
    """
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or not tensor.numel():
        return 0.0, 0
    number = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    word = _WORDS.get(number.element_size(), number.dtype)
    bits = number.resolve_neg().view(word)
    checksum = int(torch.hash_tensor(bits).view(torch.int64)) if hasattr(torch, "hash_tensor") else 0
    simple = number.dtype.is_floating_point and number.element_size() > 1
    total = float(number.sum() if simple else bits.sum(dtype=torch.int64))
    return (0.0 if total != total else total), checksum  # noqa: PLR0124 NaN is not equal to itself
