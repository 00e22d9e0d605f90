"""The twins of the user's functions in their places, for as long as one instrumented run lasts."""

from __future__ import annotations

import functools
import types
from typing import TYPE_CHECKING, Any, Self

import torch

from pytest_torchexport.branches.instrument import RELAY, Runtime, twin_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Twins:
    """Puts twins in the place of the user's functions, and the functions' own code back at exit.

    Args:
        runtime: told of every condition, call and loop.
        is_users: whether the code of a file counts as the user's.
    """

    def __init__(self, runtime: Runtime, is_users: Callable[[str], bool]) -> None:
        self._runtime, self._is_users = runtime, is_users
        self._swapped: dict[types.FunctionType, types.CodeType] = {}
        self._seen: set[int] = set()
        self._kept: list[Any] = []

    def __enter__(self) -> Self:
        self._outer = RELAY.target
        RELAY.target = self._runtime
        return self

    def __exit__(self, *_: object) -> None:
        for function, code in self._swapped.items():
            function.__code__ = code
        self._swapped.clear()
        RELAY.target = self._outer

    def codes(self) -> list[types.CodeType]:
        """The code of the functions that have a twin now."""
        return list(self._swapped.values())

    def cover(self, model: Any) -> None:
        """Swap the functions of a model: of every module in it, since torch calls those by itself."""
        self.add(model)
        if isinstance(model, torch.nn.Module):
            for module in model.modules():
                self.add(module)
                for hooks in (module._forward_pre_hooks, module._forward_hooks):
                    for hook in hooks.values():
                        self.add(hook)

    def add(self, called: Any) -> None:
        """Swap what runs when this is called, if it is the user's and not swapped yet."""
        key = called if isinstance(called, (types.FunctionType, type)) else type(called)
        if isinstance(called, types.MethodType):
            self.add(called.__func__)
            return
        if isinstance(called, functools.partial):
            self.add(called.func)
            return
        if id(key) in self._seen and not isinstance(called, torch.nn.Module):
            return
        self._seen.add(id(key))
        self._kept.append(key)  # an id is only its own as long as the object lives
        if isinstance(called, types.FunctionType):
            self._swap(called)
        elif isinstance(called, type):
            self._methods(called)
        else:
            self._methods(type(called))
            own = getattr(called, "__dict__", {}).get("forward")  # a forward that was set on the instance
            if own is not None:
                self.add(own)

    def _methods(self, kind: type) -> None:
        for base in kind.__mro__:
            if id(base) in self._seen and base is not kind:
                continue
            self._seen.add(id(base))
            self._kept.append(base)
            if base.__module__ in ("builtins", "typing", "abc", "enum") or base.__module__.startswith("torch."):
                continue
            for name, value in vars(base).items():
                # Other methods are swapped when a twin calls them: a library class has hundreds.
                if name == "forward" or name.startswith("__") or isinstance(value, property):
                    for function in _functions(value):
                        self._swap(function)

    def _swap(self, function: types.FunctionType) -> None:
        for one in _layers(function):
            if one in self._swapped or not self._is_users(one.__code__.co_filename):
                continue
            twin = twin_of(one.__code__)
            if twin is not None:
                self._swapped[one] = one.__code__
                one.__code__ = twin


def _functions(value: Any) -> Iterator[types.FunctionType]:
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    parts = (value.fget,) if isinstance(value, property) else (value,)
    yield from (part for part in parts if isinstance(part, types.FunctionType))


def _layers(function: types.FunctionType) -> Iterator[types.FunctionType]:
    """The function, and those that its decorators wrapped."""
    seen: set[int] = set()
    current: Any = function
    while isinstance(current, types.FunctionType) and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = getattr(current, "__wrapped__", None)
