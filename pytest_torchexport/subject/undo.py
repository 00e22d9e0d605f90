"""Ways back: for each kind of object that forward may change, whether it did, and what puts its contents back."""

from __future__ import annotations

import functools
import operator
import random
import types
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pytest_torchexport.subject import containers, objects
from pytest_torchexport.subject.equality import identical
from pytest_torchexport.subject.script_attributes import own_attributes, write_script_attributes
from pytest_torchexport.subject.walk import MODULE_MACHINERY, cells

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


@dataclass(frozen=True, slots=True)
class Way:
    """The way back for one object.

    Attributes:
        is_as_saved: whether everything that `walk` finds in the object itself is as it was; it may err on the side of
            no. None where that is not told without reading it all.
        put_back: makes it so.
    """

    is_as_saved: Callable[[], bool] | None
    put_back: Callable[[], None]


def restore(ways: Iterable[Way]) -> None:
    """Put everything back that is not as it was: after most runs that is nothing."""
    for way in ways:
        if way.is_as_saved is None or not way.is_as_saved():
            way.put_back()


def is_as_saved(ways: Iterable[Way]) -> bool:
    """Whether all objects are as they were for certain."""
    return all(way.is_as_saved is not None and way.is_as_saved() for way in ways)


def ways_back(value: Any) -> Iterator[Way]:
    """How to put back everything that one object holds itself; nothing for one that cannot change.

    Args:
        value: anything but a tensor, see `of_tensor`.
    """
    if isinstance(value, torch.nn.Module):
        yield from _of_module(value)
        return
    if isinstance(value, types.FunctionType):
        yield from (_of_cell(cell) for cell in cells(value).values())
        yield _of_defaults(value)
        return
    if isinstance(value, functools.partial):
        yield _of_dict(value.keywords)
        return
    contents = _of_contents(value)
    if contents is not None:
        yield contents
    if not objects.is_foreign(value) and objects.slots(value):
        yield _of_slots(value)
    own = getattr(value, "__dict__", None)
    if isinstance(own, dict) and not objects.is_foreign(value):
        yield _of_dict(own)


def of_tensor(tensor: torch.Tensor, saved: torch.Tensor | None) -> Way:
    """The way back for a tensor: its values, and what autograd knows of it.

    Args:
        tensor: the live tensor.
        saved: a copy of its values; None leaves them (a parameter's).
    """
    is_leaf, wants, grad = tensor.is_leaf, tensor.requires_grad, tensor.grad if tensor.is_leaf else None

    def same() -> bool:
        if tensor.is_leaf is not is_leaf or (
            is_leaf and (tensor.requires_grad is not wants or tensor.grad is not grad)
        ):
            return False
        return saved is None or identical(tensor, saved)

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

    return Way(same, undo)


def _kind(tensor: torch.Tensor) -> tuple[Any, ...]:
    return (tensor.dtype, tensor.layout, tensor.is_nested or tensor.shape)


def _of_module(module: torch.nn.Module) -> Iterator[Way]:
    if isinstance(module, torch.jit.ScriptModule):
        saved = containers.clone(own_attributes(module))
        yield Way(None, lambda: write_script_attributes(module, saved))
        return
    own = vars(module)
    yield _of_dict(own)
    registered = [own[name] for name in MODULE_MACHINERY & own.keys() if isinstance(own[name], (dict, set))]
    for one in filter(None, registered):
        yield _of_dict(one) if isinstance(one, dict) else _of_set(one)
    yield _of_empty([one for one in registered if not one])


def _of_empty(empty: list[Any]) -> Way:
    """The way back for containers that hold nothing, as most of a module's own do."""

    def undo() -> None:
        for one in empty:
            one.clear()

    return Way(lambda: not any(empty), undo)


def _of_cell(cell: types.CellType) -> Way:
    saved = cell.cell_contents

    def same() -> bool:
        try:
            return cell.cell_contents is saved
        except ValueError:  # `del` empties a cell
            return False

    def undo() -> None:
        cell.cell_contents = saved

    return Way(same, undo)


def _of_defaults(function: types.FunctionType) -> Way:
    positional, named = function.__defaults__, function.__kwdefaults__
    kept = _of_dict(named or {})

    def same() -> bool:
        unchanged = function.__defaults__ is positional and function.__kwdefaults__ is named
        return unchanged and kept.is_as_saved is not None and kept.is_as_saved()

    def undo() -> None:
        function.__defaults__, function.__kwdefaults__ = positional, named
        kept.put_back()

    return Way(same, undo)


def _of_slots(value: object) -> Way:
    names = objects.slots(value)
    saved = _in_slots(value, names)

    def same() -> bool:
        now = _in_slots(value, names)
        return now.keys() == saved.keys() and all(now[name] is saved[name] for name in saved)

    def undo() -> None:
        now = _in_slots(value, names)
        for name in names:
            if name in saved and (name not in now or now[name] is not saved[name]):
                object.__setattr__(value, name, saved[name])
            elif name in now and name not in saved:
                object.__delattr__(value, name)

    return Way(same, undo)


def _in_slots(value: object, names: list[str]) -> dict[str, Any]:
    return {name: item for name, item in objects.attributes(value).items() if name in names}


def _of_contents(value: Any) -> Way | None:
    if isinstance(value, dict):
        return _of_dict(value)
    if isinstance(value, (list, deque)):
        return _of_list(value)
    if isinstance(value, set):
        return _of_set(value)
    if isinstance(value, np.ndarray):
        saved = value.copy()
        put_back = functools.partial(np.copyto, value, saved) if value.flags.writeable else _leave
        return Way(lambda: identical(value, saved), put_back)
    return _of_generator(value)


def _of_dict(live: dict[Any, Any]) -> Way:
    saved = dict(live)
    keys, values = list(saved), list(saved.values())

    def same() -> bool:
        return len(live) == len(keys) and all(map(operator.is_, live.values(), values)) and list(live) == keys

    def undo() -> None:
        live.clear()
        live.update(saved)

    return Way(same, undo)


def _of_list(live: list[Any] | deque[Any]) -> Way:
    saved = list(live)

    def undo() -> None:
        live.clear()
        live.extend(saved)

    return Way(lambda: len(live) == len(saved) and all(map(operator.is_, live, saved)), undo)


def _of_set(live: set[Any]) -> Way:
    saved = list(live)

    def undo() -> None:
        live.clear()
        live.update(saved)

    return Way(lambda: len(live) == len(saved) and all(map(operator.is_, live, saved)), undo)


def _of_generator(value: object) -> Way | None:
    """The way back for a random generator of the model's own."""
    if isinstance(value, torch.Generator):
        state = value.get_state().clone()
        return Way(lambda: torch.equal(value.get_state(), state), functools.partial(_set_state, value, state))
    if isinstance(value, random.Random):
        return Way(None, functools.partial(value.setstate, value.getstate()))
    if isinstance(value, np.random.RandomState):
        return Way(None, functools.partial(value.set_state, value.get_state()))
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        return Way(None, functools.partial(setattr, bits, "state", bits.state))
    return None


def _set_state(generator: torch.Generator, state: torch.Tensor) -> None:
    generator.set_state(state)


def _leave() -> None:
    """For what cannot be written to: only what it is a view of can."""
