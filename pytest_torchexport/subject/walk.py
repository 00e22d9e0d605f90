"""The one walk through all that a callable may keep between calls, so that what is restored is also compared.

It leads through modules, functions (closures, defaults), partials, bound methods, hooks, containers and the attributes
of the user's own objects. Objects of Python, pytest and torch are not entered: they are not the model's.
"""

from __future__ import annotations

import functools
import types
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pytest_torchexport.subject import containers, objects, script_attributes, source

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MODULE_MACHINERY = frozenset(vars(torch.nn.Module()))
"""Attributes that every module has for torch's own use; of these only hooks lead to something of the user's."""

Part = tuple[str, Any]
"""A step, as Python would write it (`.name`, `[0]`), and the value that it leads to."""


def walk(root: object) -> Iterator[tuple[str, Any]]:
    """Everything that a value leads to, itself first, with its name: `bn.running_mean`, `cache['k']`, `history[0]`.

    An object that can be reached in several ways comes once, by the shortest; a submodule has its registered name.
    Scalars and tensors come each time.
    """
    # What has been seen is held, so that a value which was made on the fly cannot leave its id to another one.
    seen: dict[int, object] = {}
    pending: deque[tuple[str, Any]] = deque([("", root)])
    while pending:
        path, value = pending.popleft()
        if isinstance(value, (torch.Tensor, np.generic, *containers.SCALARS)):
            yield path, value
            continue
        if id(value) in seen:
            continue
        seen[id(value)] = value
        yield path, value
        pending.extend((_join(path, step), part) for step, part in parts(value))
        if isinstance(value, torch.nn.Module):
            for name, module in value.named_modules():
                if id(module) not in seen:
                    seen[id(module)] = module
                    prefix = _join(path, f".{name}")
                    yield prefix, module
                    pending.extend((_join(prefix, step), part) for step, part in parts(module))


def parameters_in(found: Iterable[tuple[str, Any]]) -> dict[str, torch.nn.Parameter]:
    """The parameters in what a walk found, by name, a shared one by its first.

    A loaded TorchScript module knows its parameters, though their class is that of plain tensors.
    """
    found = list(found)
    modules = [value for _, value in found if isinstance(value, torch.nn.Module)]
    own = {id(one): one for module in modules for one in module.parameters(recurse=False)}
    named: dict[int, tuple[str, torch.nn.Parameter]] = {}
    for path, value in found:
        if id(value) in own or isinstance(value, torch.nn.Parameter):
            named.setdefault(id(value), (path, value))
    return dict(named.values())


def _join(path: str, step: str) -> str:
    return path + step if path else step.removeprefix(".")


def parts(value: Any) -> list[Part]:
    """What an object leads to directly; a module's registered submodules are left to `walk`."""
    if isinstance(value, (*containers.SCALARS, torch.Tensor, np.ndarray, type, types.ModuleType)):
        return []
    if isinstance(value, torch.nn.Module):
        return _module_parts(value)
    if isinstance(value, functools.partial):
        arguments = [(f".args[{index}]", arg) for index, arg in enumerate(value.args)]
        return [("", value.func), *arguments, *_named(value.keywords)]
    if isinstance(value, types.MethodType):
        return [("", value.__self__)]
    if isinstance(value, types.FunctionType):
        return _function_parts(value)
    found = _items(value)
    return found if objects.is_foreign(value) else found + _named(objects.attributes(value))


def _named(values: dict[str, Any]) -> list[Part]:
    return [(f".{name}", item) for name, item in values.items()]


def _items(value: Any) -> list[Part]:
    if isinstance(value, dict):
        return [(f"[{key!r}]", item) for key, item in value.items()]
    if containers.is_namedtuple(value):
        return [(f".{name}", getattr(value, name)) for name in value._fields]
    if isinstance(value, (list, tuple, deque)):
        return [(f"[{index}]", item) for index, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        scalars = containers.SCALARS
        return [
            (f"{{{item!r}}}" if isinstance(item, scalars) else f"{{{type(item).__name__}}}", item) for item in value
        ]
    return []


def _module_parts(module: torch.nn.Module) -> list[Part]:
    if isinstance(module, torch.jit.ScriptModule):
        registered = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        return _named(script_attributes.own_attributes(module) | dict(registered))
    own = vars(module)
    attributes = {name: item for name, item in own.items() if name not in MODULE_MACHINERY}
    hooks = [
        (f".{name}[{index}]", hook)
        for name, registered in own.items()
        if name in MODULE_MACHINERY and name.endswith("_hooks") and isinstance(registered, dict)
        for index, hook in enumerate(registered.values())
    ]
    return [*_named(own["_parameters"]), *_named(own["_buffers"]), *_named(attributes), *hooks]


def cells(function: types.FunctionType) -> dict[str, types.CellType]:
    """The cells of a function's closure that may lead to the user's state.

    Of a function of torch or Python (`torch.no_grad()` around the user's one) only those that lead to a callable.
    """
    users = not source.is_machinery(function.__code__.co_filename)
    return {name: cell for name, cell in filled(function).items() if users or callable(cell.cell_contents)}


def filled(function: types.FunctionType) -> dict[str, types.CellType]:
    """All filled cells of a function's closure by the name of the variable."""
    found = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell for name, cell in found if _is_filled(cell)}


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 an empty cell raises
    except ValueError:
        return False
    return True


def _function_parts(function: types.FunctionType) -> list[Part]:
    closed = {name: cell.cell_contents for name, cell in cells(function).items()}
    if source.is_machinery(function.__code__.co_filename):
        # A wrapper; the user's function behind it keeps its own names.
        return [("", item) for item in closed.values()]
    positional = function.__code__.co_varnames[: function.__code__.co_argcount]
    defaults = function.__defaults__ or ()
    given = dict(zip(positional[len(positional) - len(defaults) :], defaults, strict=True))
    return _named(closed | given | (function.__kwdefaults__ or {}))
