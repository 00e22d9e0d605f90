"""What an object is made of, kind by kind: words for itself, values that make up the rest, and what only is itself.

Two objects whose ingredients are equal, all the way down, compute the same. An object whose ingredients cannot be seen
(a file, an object of a C extension, a generator in the middle of its work) has none.
"""

from __future__ import annotations

import collections
import contextvars
import decimal
import enum
import fractions
import functools
import inspect
import logging
import pathlib
import re
import sys
import threading
import types
import typing
import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch._ops
import torch.fx

from pytest_torchexport.subject import objects, script_attributes, source, walk

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Ingredients:
    """What an object is made of.

    Attributes:
        words: what it is, in words that hold in this process.
        parts: values that make up the rest.
        identities: objects that stand for themselves: only the same object is equal.
        optional: values that are taken apart where that is possible, and stand for themselves where it is not: what
            belongs to a class or a module of Python, of which there is one.
    """

    words: str
    parts: tuple[Any, ...] = ()
    identities: tuple[Any, ...] = ()
    optional: tuple[Any, ...] = ()


class Opaque(Exception):
    """An object whose ingredients cannot be seen."""


EXACT = frozenset((bool, int, float, complex, str, bytes, types.NoneType, types.EllipsisType, range))
"""Types whose `repr` is the whole value. Objects of classes derived from them may hold more."""

_BY_REPR = (torch.dtype, torch.device, torch.layout, torch.memory_format, torch.finfo, torch.iinfo, np.dtype)
_LIBRARY_BY_REPR = (fractions.Fraction, decimal.Decimal, pathlib.PurePath, re.Pattern)
_SINGLE = (
    *(types.ModuleType, types.MethodDescriptorType, types.WrapperDescriptorType, types.ClassMethodDescriptorType),
    *(types.GetSetDescriptorType, types.MemberDescriptorType, torch._ops.OperatorBase, torch._ops.OpOverloadPacket),
)
"""Objects that are entries of a module or class, one of each in a process."""

_HOLDERS = ("PyCapsule", "pybind11_detail_function_record")
"""What functions of C extensions are bound to, where they are bound to nothing."""
_LOCKS = (type(threading.Lock()), type(threading.RLock()))
_ALIASES = (types.GenericAlias, types.UnionType, typing._GenericAlias)  # type: ignore[attr-defined] # no public name
_CONSTANT_CONTAINERS = (dict, list, tuple, set, frozenset)
_MANGLED = re.compile(r"___torch_mangle_\d+\.|\s+# .*$", re.MULTILINE)
"""What differs between two compilations of the same TorchScript: numbers in names, and comments."""


def ingredients(value: Any) -> Ingredients:  # noqa: C901, PLR0911 a line for each kind of object
    """What an object is made of; not for tensors and arrays of numbers.

    Raises:
        Opaque: that cannot be seen.
    """
    kind = type(value)
    if kind in EXACT or is_named(value):
        return Ingredients(f"{kind.__qualname__}:{value!r}", identities=() if kind in EXACT else (kind,))
    if isinstance(value, enum.Enum):
        return Ingredients(f"enum:{value.name}", (value.value,), (kind,))
    if isinstance(value, type):
        return _class(value)
    if isinstance(value, torch.jit.ScriptModule):
        return _script_module(value)
    if isinstance(value, torch.jit.ScriptFunction):
        return _script_function(value)
    if isinstance(value, torch.nn.Module):
        return _module(value)
    if isinstance(value, (dict, list, tuple, set, frozenset, deque, types.MappingProxyType)):
        return _container(value)
    if isinstance(value, (int, float, complex, str, bytes)):
        base: Any = next(one for one in kind.__mro__ if one in EXACT)
        return Ingredients("derived", (kind, base.__repr__(value), objects.attributes(value)))
    if isinstance(value, types.CodeType):
        return _code(value)
    if isinstance(value, types.FunctionType):
        return _function(value)
    if isinstance(value, _SINGLE) or kind is object:
        return Ingredients("itself", identities=(value,))
    return _object(value)


def is_named(value: Any) -> bool:
    """Whether a value is one of the kinds, of torch, numpy or Python, that its `repr` describes completely."""
    if isinstance(value, _BY_REPR):
        return True
    # A logger is found by its name, and writes what others computed. A class derived from the others may hold more.
    return isinstance(value, logging.Logger) or (isinstance(value, _LIBRARY_BY_REPR) and objects.is_standard(value))


def _of_class(words: str, value: Any, *parts: Any) -> Ingredients:
    """Those of an object that is made of its class, its own attributes and some parts more."""
    own = objects.attributes(value)
    return Ingredients(words, (type(value), *parts, *([own] if own else [])))


def _container(value: Any) -> Ingredients:
    if isinstance(value, (set, frozenset)):
        return _of_class(f"set:{len(value)}", value, *_in_any_order(value))
    if isinstance(value, (dict, types.MappingProxyType)):
        factory = getattr(value, "default_factory", None) if isinstance(value, collections.defaultdict) else None
        return _of_class(f"dict:{len(value)}", value, factory, *(part for item in value.items() for part in item))
    return _of_class(f"{len(value)}", value, getattr(value, "maxlen", None), *value)


def _in_any_order(values: Any) -> list[Any]:
    """The elements of a set in an order that is the same for equal sets."""
    return list(values) if len(values) == 1 else sorted(values, key=_rank)


def _rank(value: Any) -> tuple[int, str]:
    if isinstance(value, enum.Enum):
        return id(type(value)), value.name
    if isinstance(value, type):
        return id(value), ""
    if type(value) in EXACT or is_named(value) or (type(value) is tuple and all(type(one) in EXACT for one in value)):
        return id(type(value)), repr(value)
    raise Opaque


# --- modules ---


def _module(module: torch.nn.Module) -> Ingredients:
    own = objects.attributes(module)
    hidden = walk.MODULE_MACHINERY - {"training", "_parameters", "_buffers", "_modules"}
    attributes = {name: item for name, item in own.items() if name not in hidden}
    hooks = {name: item for name, item in own.items() if name in hidden and "_hooks" in name and item}
    return Ingredients("module", (type(module), attributes, _by_rank(hooks)))


def _by_rank(hooks: dict[str, Any]) -> dict[str, Any]:
    """A module's hooks, numbered from the first; torch numbers those of the whole process."""
    numbers = sorted({key for each in hooks.values() if isinstance(each, dict) for key in each})
    rank = {number: index for index, number in enumerate(numbers)}
    return {
        name: {rank[key]: hook for key, hook in each.items()} if isinstance(each, dict) else each
        for name, each in hooks.items()
    }


def _script_module(module: torch.jit.ScriptModule) -> Ingredients:
    parts: list[Any] = []
    for name, one in module.named_modules():
        handle: Any = getattr(one, "_c", None)
        if handle is None:
            parts += [name, one]
            continue
        parts += [name, one.original_name, one.training]
        for method in handle._method_names():
            code, constants = handle._get_method(method).code_with_constants
            parts += [method, code, dict(constants)]
    forward = getattr(module, "inlined_graph", None)
    parts += [dict(module.state_dict(keep_vars=True)), script_attributes.script_attributes(module)]
    return Ingredients(f"script:{_MANGLED.sub('', str(forward))}", tuple(parts))


def _script_function(function: Any) -> Ingredients:
    if "CONSTANTS" in function.code:
        raise Opaque
    return Ingredients(f"script:{function.code}{_MANGLED.sub('', str(function.inlined_graph))}")


# --- classes ---


def _class(kind: type) -> Ingredients:
    """A class of Python or torch is itself; one of the user's is also what is written in it, which may be replaced.

    In an installed library's class it counts which methods it has, not what these are made of. A class of modules that
    is made anew in each run of a test's body is what is written in it and nothing else; other classes are themselves,
    since a result's type counts where results are compared.
    """
    name = f"class:{kind.__module__}.{kind.__qualname__}"
    local = issubclass(kind, torch.nn.Module) and not _is_entry(kind)
    identities = () if local else (kind,)
    if not local and not objects.is_users_class(kind):
        return Ingredients(name, identities=identities)
    written = {key: item for key, item in vars(kind).items() if _is_written(key, item)}
    if not local and _is_installed(kind.__module__):
        constants = {key: item for key, item in written.items() if _is_constant(item)}
        others = tuple(item for key, item in written.items() if key not in constants)
        return Ingredients(name, (constants, *kind.__bases__), (*identities, *others))
    return Ingredients(name, (tuple(written), type(kind), *kind.__bases__), identities, tuple(written.values()))


def _is_written(name: str, item: Any) -> bool:
    """Whether a class attribute counts: values and methods do, machinery (`__slots__`, ABC caches) does not."""
    if isinstance(item, (types.FunctionType, classmethod, staticmethod, property)):
        return True
    return name != "_abc_impl" and not (name.startswith("__") and name.endswith("__"))


def _is_users_code(module: str) -> bool:
    """Whether a module is the user's own, no part of Python, torch or an installed library."""
    return objects.is_users_module(module) and not _is_installed(module)


@functools.cache
def _is_installed(module: str) -> bool:
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and source.is_installed(file)


def _is_entry(value: Any) -> bool:
    """Whether a class or function can be imported: then there is one of it."""
    found: Any = sys.modules.get(getattr(value, "__module__", None) or "")
    for name in getattr(value, "__qualname__", "<unknown>").split("."):
        found = inspect.getattr_static(found, name, None) if found is not None else None
    return found is value


# --- code ---


def without_notes(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a tensor or function without what torch.compile notes there for itself; eager reads none."""
    return {name: item for name, item in attributes.items() if not name.startswith(("_dynamo_", "_torchdynamo_"))}


def _code(code: types.CodeType) -> Ingredients:
    variables = (code.co_varnames, code.co_freevars, code.co_cellvars, code.co_flags, code.co_argcount)
    place = (code.co_filename, code.co_firstlineno)  # what is told of a decision is the line that it is in
    more = (code.co_posonlyargcount, code.co_kwonlyargcount, code.co_exceptiontable)
    words = f"code:{code.co_name}{code.co_code.hex()}"
    return Ingredients(words, (code.co_names, variables, place, more, code.co_consts))


def _function(function: types.FunctionType) -> Ingredients:
    name = f"function:{function.__module__}.{function.__qualname__}"
    if _is_entry(function) and not _is_users_code(function.__module__):
        return Ingredients(name, identities=(function,))
    cells = {name: cell.cell_contents for name, cell in walk.filled(function).items()}
    constants, identities = _read_by(function)
    own = {key: item for key, item in without_notes(vars(function)).items() if key != "__wrapped__"}
    parts = (function.__code__, constants, function.__defaults__, function.__kwdefaults__, cells, own)
    return Ingredients(name, parts, identities)


def _read_by(function: types.FunctionType) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """What a function reads by name: constants, of its module and of others of the user's, and objects that are there.

    Of what is no constant it counts which object it is.
    """
    names = _names(function.__code__)
    imported = {name: sys.modules[name] for name in names if name in sys.modules}  # by an import inside of it
    read = _looked_up(imported | function.__globals__, names, set())
    constants = {name: item for name, item in read.items() if _is_constant(item)}
    return constants, tuple(item for name, item in read.items() if name not in constants)


def _looked_up(space: dict[str, Any], names: list[str], seen: set[int], path: str = "") -> dict[str, Any]:
    """What has one of the names in a namespace, or in a module of the user's that is found there, by its path."""
    found: dict[str, Any] = {}
    for name in (one for one in names if one in space):
        item = found[path + name] = space[name]
        if isinstance(item, types.ModuleType) and objects.is_users_module(item.__name__) and id(item) not in seen:
            seen.add(id(item))
            found |= _looked_up(vars(item), names, seen, f"{path}{name}.")
    return found


def _names(code: types.CodeType) -> list[str]:
    """The names that a function and those inside of it use."""
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _names(part)]
    return list(dict.fromkeys([*code.co_names, *inner]))


def _is_constant(value: Any) -> bool:
    """Whether a value is a number, a text, a tensor, or a container of such."""
    if type(value) in EXACT or is_named(value) or isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return True
    if type(value) not in _CONSTANT_CONTAINERS:
        return False
    return all(map(_is_constant, value)) and (not isinstance(value, dict) or all(map(_is_constant, value.values())))


# --- everything else ---


def _object(value: Any) -> Ingredients:
    kind = type(value)
    for kinds, made_of in _KINDS:
        if isinstance(value, kinds):
            return made_of(value)
    if objects.is_python_made(kind):
        return _of_class("object", value)
    if hasattr(kind, "__members__"):  # an enumeration of pybind11
        return Ingredients(f"{value!r}", identities=(kind,))
    if _is_entry(value):
        return Ingredients("itself", identities=(value,))
    return _reduced(value)


def _builtin(function: Any) -> Ingredients:
    bound = function.__self__
    free = bound is None or isinstance(bound, (type, types.ModuleType)) or type(bound).__name__.startswith(_HOLDERS)
    return Ingredients("itself", identities=(function,)) if free else Ingredients(function.__name__, (bound,))


def _array_of_objects(array: Any) -> Ingredients:
    if array.dtype != object:
        raise Opaque
    return _of_class(f"array:{array.shape}", array, *array.flat)


def _graph(graph: torch.fx.Graph) -> Ingredients:
    code = graph.python_code("self")
    return Ingredients(f"graph:{code.src}", (code.globals,))


def _generator(generator: types.GeneratorType[Any, Any, Any]) -> Ingredients:
    """A generator that has not begun, or that is done; in between it has values that cannot be seen."""
    state = inspect.getgeneratorstate(generator)
    if state == inspect.GEN_CREATED and generator.gi_frame is not None:
        frame = generator.gi_frame
        return Ingredients(state, (generator.gi_code, dict(frame.f_locals)), (frame.f_globals,))
    if state == inspect.GEN_CLOSED:
        return Ingredients(state, (generator.gi_code,))
    raise Opaque


def _reduced(value: Any) -> Ingredients:
    """What pickle stores of an object that Python's library or numpy wrote in C."""
    owner = next(one for one in type(value).__mro__ if {"__reduce__", "__reduce_ex__"} & vars(one).keys())
    package = str(owner.__module__).partition(".")[0]
    if package in ("builtins", "itertools") or not (package == "numpy" or package in sys.stdlib_module_names):
        raise Opaque
    try:
        reduced = value.__reduce_ex__(4)
    except Exception as error:  # what cannot be pickled says so in many ways
        raise Opaque from error
    if isinstance(reduced, str):
        return Ingredients(reduced, identities=(value,))
    listed = [one if index < 3 or one is None else list(one) for index, one in enumerate(reduced[:5])]
    return _of_class("reduced", value, *listed)


_KINDS: tuple[tuple[Any, Callable[[Any], Ingredients]], ...] = (
    (functools.partial, lambda it: _of_class("partial", it, it.func, it.args, it.keywords)),
    (types.MethodType, lambda it: Ingredients("method", (it.__func__, it.__self__))),
    ((types.BuiltinFunctionType, types.MethodWrapperType), _builtin),
    ((classmethod, staticmethod), lambda it: Ingredients(type(it).__name__, (it.__func__,))),
    (property, lambda it: _of_class("property", it, it.fget, it.fset, it.fdel)),
    (slice, lambda it: Ingredients("slice", (it.start, it.stop, it.step))),
    (np.generic, lambda it: Ingredients(f"{it.dtype}", (it.tobytes(),))),
    (np.ndarray, _array_of_objects),
    (weakref.ReferenceType, lambda it: _of_class("weak", it, it(), it.__callback__)),
    (types.GeneratorType, _generator),
    (torch.Generator, lambda it: _of_class(f"random:{it.device}", it, it.get_state())),
    (torch.fx.Graph, _graph),
    (contextvars.ContextVar, lambda it: Ingredients("variable", (it.get(Ellipsis),), (it,))),
    (_ALIASES, lambda it: Ingredients("alias", (typing.get_origin(it), *typing.get_args(it)))),
    # A lock decides when threads go on, and nothing that they compute.
    (_LOCKS, lambda _: Ingredients("lock")),
)
