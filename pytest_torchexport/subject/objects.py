"""Python objects as holders of values: which ones are the user's, and their attributes with or without a `__dict__`."""

from __future__ import annotations

import argparse
import sys
import types
from typing import Any

from pytest_torchexport.subject.source import MACHINERY

_RECORDS = (types.SimpleNamespace, argparse.Namespace)
"""Types of the standard library that are nothing but the attributes the user gave them."""

_TORCH_RECORDS = ("torch.nn", "torch.distributions")
"""Where torch has plain classes whose objects hold the user's tensors."""


def is_standard(value: object) -> bool:
    """Whether the value's type is Python's own, and no container or record: a logger, a lock, a path."""
    package = str(type(value).__module__).partition(".")[0]
    return _is_standard_package(package) and type(value) not in _RECORDS


def _is_standard_package(package: str) -> bool:
    return package in sys.stdlib_module_names and package != "collections"


def is_foreign(value: object) -> bool:
    """Whether the value belongs to Python, pytest, torch or this package, whose objects are not taken apart."""
    module = str(type(value).__module__)
    package = module.partition(".")[0]
    if package == "torch":
        return not module.startswith(_TORCH_RECORDS)
    return package in MACHINERY or package == __name__.partition(".")[0] or is_standard(value)


def is_users_class(kind: type) -> bool:
    """Whether the class is written neither in Python's library nor in an installed package that exports or tests."""
    return is_users_module(str(kind.__module__))


def is_users_module(name: str | None) -> bool:
    """Whether a module is neither of Python's library nor of an installed package that exports or tests."""
    package = str(name).partition(".")[0]
    return not (package in MACHINERY or package in sys.stdlib_module_names)


def is_python_made(kind: type) -> bool:
    """Whether all that an object of the class holds is in its attributes: no base of it is written in C."""
    if kind.__base__ is None:
        return False
    while kind.__base__ is not object:
        kind = kind.__base__  # of several bases the one that decides on the memory
    # Python gives a class one of these; a class that is written in C has neither, or a dict alone.
    return "__slots__" in vars(kind) or {"__dict__", "__weakref__"} <= vars(kind).keys()


def attributes(value: object) -> dict[str, Any]:
    """The object's own attributes by name: those in its `__dict__` and those in slots."""
    found: dict[str, Any] = {}
    for name in slots(value):
        try:
            found[name] = object.__getattribute__(value, name)
        except AttributeError:
            continue
    own = getattr(value, "__dict__", None)
    return found | own if isinstance(own, dict) else found


def slots(value: object) -> list[str]:
    """Names of the slots of the object's class and its bases, as `getattr` takes them."""
    names: list[str] = []
    for one in type(value).__mro__:
        given = vars(one).get("__slots__", ())
        for name in (given,) if isinstance(given, str) else tuple(given):
            hidden = name.startswith("__") and not name.endswith("__")
            names.append(f"_{one.__name__.lstrip('_')}{name}" if hidden else name)
    return [name for name in dict.fromkeys(names) if name not in ("__dict__", "__weakref__")]


def has_attributes(value: object) -> bool:
    """Whether the object can hold attributes of its own."""
    return isinstance(getattr(value, "__dict__", None), dict) or bool(slots(value))


def blank(value: object) -> Any:
    """A new object of the value's class without attributes; `__init__` is not called."""
    kind = type(value)
    return kind.__new__(kind) if isinstance(value, types.SimpleNamespace) else object.__new__(kind)


def fill(value: Any, given: dict[str, Any]) -> Any:
    """The object with the attributes set, past the guard of a frozen class."""
    for name, item in given.items():
        object.__setattr__(value, name, item)
    return value
