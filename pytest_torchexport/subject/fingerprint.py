"""A digest of everything that decides what a model computes, so that equal models share eager's results."""

from __future__ import annotations

import decimal
import enum
import fractions
import functools
import hashlib
import logging
import pathlib
import re
import types
from collections import deque
from typing import Any

import numpy as np
import torch

from pytest_torchexport.subject import objects, walk
from pytest_torchexport.subject.script_attributes import script_attributes

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.layout, enum.Enum)
_NUMBERS = (range, slice, type(...), fractions.Fraction, decimal.Decimal)
_BY_REPR = (*_NUMBERS, pathlib.PurePath, re.Pattern, logging.Logger)
_METHODS = (classmethod, staticmethod)


def fingerprint(model: object, *extra: Any) -> str | None:
    """A digest of everything that decides what the model computes: code, parameters, buffers, attributes.

    Args:
        model: the user's module or function.
        extra: further values (the example's arguments) that go into the digest.

    Returns:
        Hex digits; None if something that the model holds cannot be digested, so that no two models may be taken
        for equal.
    """
    digest = _Digest()
    try:
        for value in (model, *extra):
            digest.add(value)
    except _Opaque:
        return None
    return digest.hexdigest()


class _Opaque(Exception):
    """Something has no digest."""


class _Digest:
    """A digest in the making; it knows which objects it has seen, so that sharing and cycles count too."""

    def __init__(self) -> None:
        self._hash = hashlib.sha1(usedforsecurity=False)
        self._seen: dict[int, tuple[int, Any]] = {}
        self._storages: dict[int, int] = {}

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def add(self, value: Any) -> None:
        """Feed a value into the digest."""
        if isinstance(value, (*_PLAIN, *_BY_REPR)):
            self._say(f"{type(value).__name__}:{value!r}")
        elif isinstance(value, (tuple, frozenset)):
            self._take_apart(value)  # Python shares equal constants as it likes
        elif id(value) in self._seen:
            self._say(f"again:{self._seen[id(value)][0]}")
        else:
            self._seen[id(value)] = (len(self._seen), value)
            if isinstance(value, torch.Tensor):
                self._add_tensor(value.detach())
            elif isinstance(value, np.ndarray) and value.dtype != object:
                self._say(f"{value.dtype}{value.shape}{value.strides}")
                self._hash.update(value.tobytes())
            else:
                self._take_apart(value)

    def _say(self, text: str) -> None:
        self._hash.update(f"{text};".encode())

    def _take_apart(self, value: Any) -> None:
        head, parts = _takes_apart(value)
        self._say(head)
        for part in parts:
            self.add(part)

    def _add_tensor(self, tensor: torch.Tensor) -> None:
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
            raise _Opaque
        storage = self._storages.setdefault(tensor.untyped_storage().data_ptr(), len(self._storages))
        shape = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset())
        self._say(f"{tensor.dtype}{shape}{tensor.device}{tensor.requires_grad}{storage}")
        if tensor.numel():
            bits = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
            self._hash.update(bits.cpu().numpy().data)


def _takes_apart(value: Any) -> tuple[str, list[Any]]:  # noqa: C901, PLR0911, PLR0912 a line for each kind of object
    """What an object is, in words that hold in this process, and the values that make up the rest of it."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}@{id(type(value))}"
    if isinstance(value, torch.jit.ScriptModule):
        parts = [getattr(value, "code", None), dict(value.state_dict(keep_vars=True)), script_attributes(value)]
        return f"{value.original_name}{value.training}", parts
    if isinstance(value, torch.nn.Module):
        hidden = walk.MODULE_MACHINERY - {"training", "_parameters", "_buffers", "_modules"}
        own = {name: item for name, item in vars(value).items() if name not in hidden or name.endswith("_hooks")}
        return kind, [type(value), own]
    if isinstance(value, (dict, types.MappingProxyType)):
        return f"{kind}{len(value)}", [part for item in value.items() for part in item]
    if isinstance(value, (list, tuple, deque)):
        return f"{kind}{len(value)}", list(value)
    if isinstance(value, (set, frozenset)):
        return f"{kind}{sorted(map(repr, value))}", []
    if isinstance(value, types.CodeType):
        return f"{value.co_name}{value.co_code.hex()}{value.co_names}{value.co_varnames}", [value.co_consts]
    if isinstance(value, types.FunctionType):
        return _function(value)
    if isinstance(value, functools.partial):
        return kind, [value.func, value.args, value.keywords]
    if isinstance(value, types.MethodType):
        return kind, [value.__func__, value.__self__]
    if isinstance(value, _METHODS):
        return kind, [value.__func__]
    if isinstance(value, property):
        return kind, [value.fget, value.fset]
    if isinstance(value, type):
        return f"{value!r}@{id(value)}", _class_attributes(value)
    if isinstance(value, (types.ModuleType, types.BuiltinFunctionType, types.MethodDescriptorType)):
        return f"{value!r}@{id(value)}", []
    if objects.has_attributes(value) and not objects.is_standard(value):
        return kind, [type(value), objects.attributes(value)]
    raise _Opaque


def _function(function: types.FunctionType) -> tuple[str, list[Any]]:
    cells = [cell.cell_contents for cell in walk.filled(function).values()]
    names = function.__code__.co_names
    # A constant of the module that the function is in; of other globals only which objects they are.
    read = {name: function.__globals__[name] for name in names if name in function.__globals__}
    constants = {name: item for name, item in read.items() if isinstance(item, _PLAIN)}
    others = [id(item) for item in read.values() if not isinstance(item, _PLAIN)]
    head = f"{function.__module__}.{function.__qualname__}{others}"
    return head, [function.__code__, constants, function.__defaults__, function.__kwdefaults__, cells]


def _class_attributes(kind: type) -> list[Any]:
    """What the user wrote into a class and its bases. Classes of Python and torch are known by their identity."""
    found: list[Any] = []
    for one in kind.__mro__:
        if objects.is_users_class(one):
            found += [(name, item) for name, item in vars(one).items() if _counts(name, item)]
    return found


def _counts(name: str, item: Any) -> bool:
    """Whether a class attribute is digested: values and methods are, machinery (`__slots__`, ABC caches) is not."""
    if isinstance(item, (types.FunctionType, *_METHODS, property)):
        return True
    values = (*_PLAIN, torch.Tensor, np.ndarray, list, tuple, dict, set, frozenset)
    return isinstance(item, values) and not (name.startswith("__") and name.endswith("__"))
