"""The state of a model: what running it may change. Snapshot, restore, read by name, fingerprint.

State is everything that forward could rebind or write in place, except the parameters: buffers, tensors and Python
values held by the modules, and whatever mutable objects they lead to. Parameters are never copied; a forward that
writes to one is noticed by `parameter_marks`.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import random
import re
import types
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pytest_torchexport.subject import containers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_MODULE_MACHINERY = frozenset(vars(torch.nn.Module())) - {"training", "_parameters", "_buffers", "_modules"}
"""Attributes that every module has for torch's own use (hooks and the like)."""

_OPAQUE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, torch.dtype, torch.device, enum.Enum)


class Snapshot:
    """The state of a model at one moment, and the way back to it.

    `restore` puts every mutable object back in place: the same tensor, list or dict object gets its old contents, so
    that an exported program which shares them with the model starts from the old state as well.

    Args:
        model: the user's module or function.
    """

    def __init__(self, model: object) -> None:
        self.model = model
        self._undo: list[Callable[[], None]] = []
        self._seen: dict[int, object] = {}
        self._visit(_root(model))
        self.values = read(model)

    def restore(self) -> None:
        """Put the model back into the state of the snapshot."""
        for undo in self._undo:
            undo()

    def changes(self) -> dict[str, Any]:
        """The entries of the state that differ from the snapshot now, by name, as copies; None for a vanished one."""
        now = _entries(self.model)
        names = dict.fromkeys([*self.values, *now])
        return {
            name: containers.clone(now.get(name))
            for name in names
            if name not in now or name not in self.values or not identical(self.values[name], now[name])
        }

    def tensors(self) -> list[torch.Tensor]:
        """The live tensors of the model's state."""
        return [value for value in _entries(self.model).values() if isinstance(value, torch.Tensor)]

    def _visit(self, value: Any) -> None:
        """Note how to undo changes of this object and of all that it leads to."""
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes, *_OPAQUE)):
            return
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, torch.nn.Module):
            self._visit_module(value)
            return
        if undo := _undo(value):
            self._undo.append(undo)
        self._visit_all(_parts(value))

    def _visit_all(self, values: Any) -> None:
        for value in list(values):
            self._visit(value)

    def _visit_module(self, module: torch.nn.Module) -> None:
        if isinstance(module, torch.jit.ScriptModule):
            self._undo.append(_undo_script_attributes(module))
            self._visit_all(module.buffers())
            return
        own = vars(module)
        self._undo.append(_undo_dict(own))
        self._visit_all(item for name, item in own.items() if name not in _MODULE_MACHINERY)


def _root(model: object) -> object:
    """What holds the state of a callable: the module itself, or what a function closes over."""
    if isinstance(model, types.FunctionType):
        cells = model.__closure__ or ()
        return [_cell(cell) for cell in cells]
    return model


def _cell(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _undo(value: Any) -> Callable[[], None] | None:
    """The way back for one mutable object; None for one that cannot change."""
    if isinstance(value, torch.Tensor):
        return None if isinstance(value, torch.nn.Parameter) else _undo_tensor(value)
    if isinstance(value, dict):
        return _undo_dict(value)
    if isinstance(value, (list, deque)):
        return _undo_list(value)
    if isinstance(value, set):
        return _undo_set(value)
    if isinstance(value, np.ndarray):
        return functools.partial(np.copyto, value, value.copy())
    return _undo_generator(value)


def _parts(value: Any) -> list[Any]:
    """What an object leads to."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple, deque, frozenset)):
        return list(value)
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if isinstance(value, torch.Tensor):
        return []
    return [vars(value)] if isinstance(getattr(value, "__dict__", None), dict) else []


def _undo_tensor(tensor: torch.Tensor) -> Callable[[], None]:
    saved = containers.clone_tensor(tensor)

    def undo() -> None:
        with torch.no_grad():
            if tensor.shape != saved.shape or tensor.dtype != saved.dtype or tensor.layout != saved.layout:
                tensor.data = containers.clone_tensor(saved.detach())
            elif not identical(tensor, saved):
                tensor.copy_(saved)

    return undo


def _undo_dict(live: dict[Any, Any]) -> Callable[[], None]:
    saved = dict(live)

    def undo() -> None:
        if live.keys() == saved.keys() and all(live[key] is saved[key] for key in saved):
            return
        live.clear()
        live.update(saved)

    return undo


def _undo_list(live: list[Any] | deque[Any]) -> Callable[[], None]:
    saved = list(live)

    def undo() -> None:
        live.clear()
        live.extend(saved)

    return undo


def _undo_set(live: set[Any]) -> Callable[[], None]:
    saved = set(live)

    def undo() -> None:
        live.clear()
        live.update(saved)

    return undo


def _undo_generator(value: object) -> Callable[[], None] | None:
    """The way back for a module's own random generator."""
    if isinstance(value, torch.Generator):
        return _undo_torch_generator(value)
    if isinstance(value, random.Random):
        return functools.partial(value.setstate, value.getstate())
    if isinstance(value, np.random.Generator):
        return functools.partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    return None


def _undo_torch_generator(generator: torch.Generator) -> Callable[[], None]:
    saved = generator.get_state().clone()

    def undo() -> None:
        generator.set_state(saved)

    return undo


def _undo_script_attributes(module: torch.jit.ScriptModule) -> Callable[[], None]:
    saved = containers.clone(script_attributes(module))

    def undo() -> None:
        write_script_attributes(module, saved)

    return undo


def script_attributes(module: torch.jit.ScriptModule) -> dict[str, Any]:
    """The attributes of a TorchScript module and its submodules, beside buffers, by qualified name.

    Tensors are live; lists and dicts are copies, TorchScript hands out nothing else.
    """
    found: dict[str, Any] = {}
    for prefix, part in module.named_modules():
        handle = getattr(part, "_c", None)
        if handle is None:
            continue
        for name in _attribute_names(handle):
            value = handle.getattr(name)
            if isinstance(value, (torch.Tensor, bool, int, float, str, list, dict, tuple, complex)):
                found[f"{prefix}.{name}" if prefix else name] = value
    return found


def _attribute_names(handle: Any) -> list[str]:
    """The module's own attributes; a loaded module lists them nowhere but in its dump."""
    text = handle.dump_to_str(code=False, attrs=True, params=False)
    block = re.search(r"^  attributes \{\n(.*?)^  \}", text, re.MULTILINE | re.DOTALL)
    names = re.findall(r"^    (\w+) = ", block.group(1), re.MULTILINE) if block else []
    return [name for name in names if name not in ("training", "_is_full_backward_hook") and handle.hasattr(name)]


def write_script_attributes(module: torch.jit.ScriptModule, values: Mapping[str, Any]) -> None:
    """Set attributes that `script_attributes` returned earlier; one that cannot be set (a constant) is left."""
    now = script_attributes(module)
    parts = dict(module.named_modules())
    for name, value in values.items():
        if name in now and not identical(now[name], value):
            owner, _, attribute = name.rpartition(".")
            parts[owner]._c.setattr(attribute, value)


def _entries(model: object) -> dict[str, Any]:
    """The live leaves of the model's state by name: `bn.running_mean`, `history[0]`, `cache['k']`."""
    return {
        path: leaf
        for root in _roots(model)
        for prefix, module in root.named_modules()
        for name, value in _own_state(module)
        for path, leaf in _state_leaves(value, f"{prefix}.{name}" if prefix else name, set())
    }


def _roots(model: object) -> Iterator[torch.nn.Module]:
    """The modules that hold a callable's state."""
    if isinstance(model, torch.nn.Module):
        yield model
    elif isinstance(model, functools.partial):
        yield from _roots(model.func)
    elif isinstance(model, types.MethodType):
        yield from _roots(model.__self__)
    elif isinstance(model, types.FunctionType):
        for cell in model.__closure__ or ():
            yield from _roots(_cell(cell))


def _own_state(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    if isinstance(module, torch.jit.ScriptModule):
        yield from module.named_buffers(recurse=False)
        yield from (item for item in script_attributes(module).items() if "." not in item[0])
        return
    yield from module._buffers.items()
    skip = _MODULE_MACHINERY | {"_parameters", "_buffers", "_modules", "training"}
    yield from ((name, value) for name, value in vars(module).items() if name not in skip)


def _state_leaves(value: Any, path: str, above: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (torch.nn.Module, torch.nn.Parameter, *_OPAQUE)) or id(value) in above:
        return
    if isinstance(value, (torch.Tensor, np.ndarray, bool, int, float, complex, str, bytes, type(None))):
        yield path, value
        return
    parts = containers.children(value) if not callable(value) else None
    for step, part in parts or ():
        yield from _state_leaves(part, path + step, above | {id(value)})


def read(model: object) -> dict[str, Any]:
    """The state by name as copies: buffers, and Python attributes taken apart to their leaves."""
    return {name: containers.clone(value) for name, value in _entries(model).items()}


def identical(one: Any, other: Any) -> bool:
    """Whether two leaves have the same type, dtype, shape and bits (every NaN counts as the same)."""
    if one is other:
        return True
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return _identical_tensors(one.detach(), other.detach())
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    if type(one) is not type(other):
        return False
    if containers.is_leaf(one):
        return bool(one == other) or (one != one and other != other)  # noqa: PLR0124 NaN differs from itself
    ours, theirs = list(containers.leaves(one)), list(containers.leaves(other))
    return len(ours) == len(theirs) and all(
        path == path2 and identical(leaf, leaf2) for (path, leaf), (path2, leaf2) in zip(ours, theirs, strict=True)
    )


def _identical_tensors(one: torch.Tensor, other: torch.Tensor) -> bool:
    kind = (one.dtype, one.shape, one.layout, one.device)
    if kind != (other.dtype, other.shape, other.layout, other.device):
        return False
    if one.layout is not torch.strided:
        return bool(torch.equal(one.to_dense(), other.to_dense()))
    if torch.equal(one, other):
        return True
    has_nan = one.is_floating_point() or one.is_complex()
    return has_nan and bool(((one == other) | (one.isnan() & other.isnan())).all())


def parameter_marks(model: object) -> dict[str, tuple[int, float, int]]:
    """A mark for each parameter that changes when its values do: version counter, sum, checksum of the bits."""
    return {
        name: (parameter._version, *_checksum(parameter.detach()))
        for root in _roots(model)
        for name, parameter in root.named_parameters()
    }


def _checksum(tensor: torch.Tensor) -> tuple[float, int]:
    """Sum and checksum, on the tensor's device and without a copy; zeros for a layout that has none.

    The checksum is an exclusive or: alone it would not see every element of a constant tensor change alike.
    """
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or not tensor.numel():
        return 0.0, 0
    number = tensor.abs() if tensor.is_complex() else tensor
    total = float(number.sum()) if number.dtype is not torch.bool else float(number.count_nonzero())
    checksum = int(torch.hash_tensor(tensor).view(torch.int64)) if hasattr(torch, "hash_tensor") else 0
    return (0.0 if total != total else total), checksum  # noqa: PLR0124 NaN is not equal to itself


def fingerprint(model: object, *extra: Any) -> str | None:
    """A digest of everything that decides what the model computes: classes, parameters, buffers, attributes.

    Args:
        model: the user's module or function.
        extra: further values (the example's arguments) that go into the digest.

    Returns:
        Hex digits; None if something that the model holds cannot be digested, so that no two models may be taken
        for equal.
    """
    digest = hashlib.sha1(usedforsecurity=False)
    try:
        _digest(digest.update, model, set())
        for value in extra:
            _digest(digest.update, value, set())
    except _Opaque:
        return None
    return digest.hexdigest()


class _Opaque(Exception):
    """Something has no digest."""


_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, enum.Enum)


def _digest(update: Callable[[bytes | memoryview], None], value: Any, above: set[int]) -> None:
    """Feed a value into a digest; `above` holds the ids of the objects on the way to it."""
    if isinstance(value, _PLAIN):
        update(f"{type(value).__name__}:{value!r};".encode())
    elif isinstance(value, torch.Tensor):
        _digest_tensor(update, value.detach())
    elif isinstance(value, np.ndarray) and value.dtype != object:
        update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif id(value) in above:
        update(b"cycle;")
    else:
        head, parts = _takes_apart(value)
        update(f"{head};".encode())
        for part in parts:
            _digest(update, part, above | {id(value)})


def _takes_apart(value: Any) -> tuple[str, list[Any]]:  # noqa: C901, PLR0911 a line for each kind of object
    """What an object is, in words that hold in this process, and the values that make up the rest of it."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}@{id(type(value))}"
    if isinstance(value, torch.jit.ScriptModule):
        parts = [getattr(value, "code", None), dict(value.state_dict(keep_vars=True)), script_attributes(value)]
        return f"{value.original_name}{value.training}", parts
    if isinstance(value, torch.nn.Module):
        own = {n: item for n, item in vars(value).items() if n not in _MODULE_MACHINERY or n.endswith("_hooks")}
        return kind, [own]
    if isinstance(value, dict):
        return f"{kind}{len(value)}", [part for item in value.items() for part in item]
    if isinstance(value, (list, tuple, deque)):
        return f"{kind}{len(value)}", list(value)
    if isinstance(value, (set, frozenset)):
        return f"{kind}{sorted(map(repr, value))}", []
    if isinstance(value, types.FunctionType):
        code = value.__code__
        constants = [constant for constant in code.co_consts if isinstance(constant, _PLAIN)]
        cells = [_cell(cell) for cell in value.__closure__ or ()]
        head = f"{value.__module__}.{value.__qualname__}{code.co_code.hex()}{code.co_names}"
        return head, [constants, value.__defaults__, value.__kwdefaults__, cells]
    if isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType, types.MethodDescriptorType)):
        return f"{value!r}@{id(value)}", []
    if isinstance(value, functools.partial):
        return kind, [value.func, value.args, value.keywords]
    if isinstance(value, types.MethodType):
        return kind, [value.__func__, value.__self__]
    if isinstance(getattr(value, "__dict__", None), dict) and not hasattr(type(value), "__slots__"):
        return kind, [vars(value)]
    raise _Opaque


def _digest_tensor(update: Callable[[bytes | memoryview], None], tensor: torch.Tensor) -> None:
    head = (tensor.dtype, tuple(tensor.shape), tensor.layout, str(tensor.device), tensor.requires_grad)
    update(f"{head};".encode())
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        raise _Opaque
    if tensor.numel():
        update(tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data)
