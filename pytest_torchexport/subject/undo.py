"""Ways back: for each kind of object that forward may change, a function that puts its contents back in place."""

from __future__ import annotations

import functools
import random
import types
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pytest_torchexport.subject import containers, objects
from pytest_torchexport.subject.equality import identical
from pytest_torchexport.subject.script_attributes import own_attributes, write_script_attributes
from pytest_torchexport.subject.walk import MODULE_MACHINERY, cells

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Undo = Callable[[], None]


def ways_back(value: Any) -> Iterator[Undo]:
    """How to put back everything that one object holds itself; nothing for one that cannot change.

    Args:
        value: anything but a tensor, see `undo_tensor`.
    """
    if isinstance(value, torch.nn.Module):
        yield from _undo_module(value)
        return
    if isinstance(value, types.FunctionType):
        yield from (_undo_cell(cell) for cell in cells(value).values())
        return
    contents = _undo_contents(value)
    if contents is not None:
        yield contents
    elif not objects.is_foreign(value) and objects.slots(value):
        yield _undo_slots(value)
    own = getattr(value, "__dict__", None)
    if isinstance(own, dict) and not objects.is_foreign(value):
        yield _undo_dict(own)


def undo_tensor(tensor: torch.Tensor, saved: torch.Tensor | None) -> Undo:
    """The way back for a tensor: its values, and what autograd knows of it.

    Args:
        tensor: the live tensor.
        saved: a copy of its values; None leaves them (a parameter's).
    """
    is_leaf, wants, grad = tensor.is_leaf, tensor.requires_grad, tensor.grad if tensor.is_leaf else None

    def undo() -> None:
        # A tensor made under inference_mode can be written only there.
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            if saved is not None and not identical(tensor, saved):
                if _kind(tensor) == _kind(saved):
                    tensor.copy_(saved)
                else:
                    tensor.data = containers.clone_tensor(saved.detach())
            if is_leaf and not tensor.is_leaf and not tensor._is_view():
                tensor.detach_()
            if is_leaf and tensor.is_leaf:
                if tensor.requires_grad != wants:
                    tensor.requires_grad_(wants)
                if tensor.grad is not grad:
                    tensor.grad = grad

    return undo


def _kind(tensor: torch.Tensor) -> tuple[Any, ...]:
    return (tensor.dtype, tensor.layout, tensor.is_nested or tensor.shape)


def _undo_module(module: torch.nn.Module) -> Iterator[Undo]:
    if isinstance(module, torch.jit.ScriptModule):
        yield _undo_script_attributes(module)
        return
    own = vars(module)
    yield _undo_dict(own)
    for name in MODULE_MACHINERY & own.keys():
        registered = own[name]
        if isinstance(registered, dict):
            yield _undo_dict(registered)
        elif isinstance(registered, set):
            yield _undo_set(registered)


def _undo_script_attributes(module: torch.jit.ScriptModule) -> Undo:
    saved = containers.clone(own_attributes(module))
    return lambda: write_script_attributes(module, saved)


def _undo_cell(cell: types.CellType) -> Undo:
    saved = cell.cell_contents

    def undo() -> None:
        cell.cell_contents = saved

    return undo


def _undo_slots(value: object) -> Undo:
    names = objects.slots(value)
    saved = {name: item for name, item in objects.attributes(value).items() if name in names}

    def undo() -> None:
        now = objects.attributes(value)
        for name in names:
            if name in saved and (name not in now or now[name] is not saved[name]):
                object.__setattr__(value, name, saved[name])
            elif name in now and name not in saved:
                object.__delattr__(value, name)

    return undo


def _undo_contents(value: Any) -> Undo | None:
    if isinstance(value, dict):
        return _undo_dict(value)
    if isinstance(value, (list, deque)):
        return _undo_list(value)
    if isinstance(value, set):
        return _undo_set(value)
    if isinstance(value, np.ndarray):
        return functools.partial(np.copyto, value, value.copy()) if value.flags.writeable else None
    return _undo_generator(value)


def _undo_dict(live: dict[Any, Any]) -> Undo:
    saved = dict(live)

    def undo() -> None:
        if list(live) == list(saved) and all(live[key] is saved[key] for key in saved):
            return
        live.clear()
        live.update(saved)

    return undo


def _undo_list(live: list[Any] | deque[Any]) -> Undo:
    saved = list(live)

    def undo() -> None:
        live.clear()
        live.extend(saved)

    return undo


def _undo_set(live: set[Any]) -> Undo:
    saved = set(live)

    def undo() -> None:
        live.clear()
        live.update(saved)

    return undo


def _undo_torch_generator(generator: torch.Generator) -> Undo:
    saved = generator.get_state().clone()

    def undo() -> None:
        generator.set_state(saved)

    return undo


def _undo_generator(value: object) -> Undo | None:
    """The way back for a random generator of the model's own."""
    if isinstance(value, torch.Generator):
        return _undo_torch_generator(value)
    if isinstance(value, random.Random):
        return functools.partial(value.setstate, value.getstate())
    if isinstance(value, np.random.RandomState):
        return functools.partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        return functools.partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    return None
