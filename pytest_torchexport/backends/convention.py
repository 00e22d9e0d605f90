"""How a call of the model becomes a call of a program that was exported for one form of the call.

An export keeps the form of the example: which arguments were given by position and which by keyword, the containers
they stand in, and the value of everything that is no tensor. A program called in another form fails, or worse, takes
no notice: torch.export checks most constants, AOTInductor none.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.errors import ConventionError
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.call import Call, bind, positional_names, signature_of
from pytest_torchexport.subject.state import identical

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class Convention:
    """The form of the example call.

    Args:
        model: the user's module or function, for its signature.
        example: the call that the program was exported for. Only values that are no tensors are kept of it.
        dynamic: which of the example's leaves, counted in the order of `containers.leaves`, are no tensors and may
            vary all the same (an int that was exported as a symbol).
        sizes: the sizes of tensors that the program takes for granted, counted in the same way; None for one that
            may vary. For a program that checks its inputs itself there is no need to know.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        example: Call,
        dynamic: frozenset[int] = frozenset(),
        sizes: Mapping[int, Sequence[int | None]] | None = None,
    ) -> None:
        self._model = model
        self._positional = positional_names(model, example)
        self._keywords = list(example.kwargs)
        self._leaves: dict[str, dict[str, Any]] = {}
        self._dynamic: set[str] = set()
        self._tensors: dict[str, tuple[torch.dtype, Sequence[int | None]]] = {}
        named = bind(model, example)
        for index, (path, name, leaf) in enumerate(_flat(self._positional + self._keywords, named)):
            self._leaves.setdefault(name, {})[path] = _TENSOR if isinstance(leaf, torch.Tensor) else leaf
            if index in dynamic:
                self._dynamic.add(path)
            if sizes is not None and index in sizes and isinstance(leaf, torch.Tensor):
                self._tensors[path] = (leaf.dtype, sizes[index])
        for name in named:
            self._leaves.setdefault(name, {})

    def arrange(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, checked: bool = True
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments in the form of the example; one that it gives and the call leaves out gets its default.

        Args:
            args: positional arguments of a call of the model.
            kwargs: keyword arguments of it.
            checked: whether to look at values that the export fixed; else the program is called all the same.

        Returns:
            Positional and keyword arguments for the program.

        Raises:
            ConventionError: an argument has another value than the export fixed.
        """
        named = bind(self._model, Call(args, kwargs))
        defaults = _defaults(self._model)
        for name, value in named.items():
            if checked and name not in self._leaves and not (name in defaults and identical(defaults[name], value)):
                default = f", which is {defaults[name]!r}" if name in defaults else ""
                reason = f"the example leaves {name} to its default{default}, and the export fixed that: {_is(value)}"
                raise ConventionError(name, reason)
        for name, leaves in self._leaves.items():
            if name not in named and name not in defaults:
                raise ConventionError(name, f"the example passes {name}, and the exported program cannot do without")
            named.setdefault(name, defaults.get(name))
            if checked:
                self._check(name, leaves, named[name])
        return tuple(named[name] for name in self._positional), {name: named[name] for name in self._keywords}

    def _check(self, name: str, fixed: Mapping[str, Any], value: Any) -> None:
        now = dict(containers.leaves(value, name))
        if now.keys() != fixed.keys():
            reason = f"the export fixed the structure of {name} to {', '.join(fixed) or 'nothing'}: {_is(value)}"
            raise ConventionError(name, reason)
        for path, kept in fixed.items():
            if kept is _TENSOR:
                if not isinstance(now[path], torch.Tensor):
                    raise ConventionError(name, f"{path} is a tensor in the example: {_is(now[path])}")
                self._check_tensor(name, path, now[path])
            elif path in self._dynamic:
                if isinstance(now[path], bool) or type(now[path]) is not type(kept):
                    raise ConventionError(name, f"{path} is of type {type(kept).__name__}: {_is(now[path])}")
            elif isinstance(now[path], torch.Tensor) or not identical(now[path], kept):
                raise ConventionError(name, f"the export fixed {path} to {kept!r}: {_is(now[path])}")

    def _check_tensor(self, name: str, path: str, tensor: torch.Tensor) -> None:
        dtype, sizes = self._tensors.get(path, (tensor.dtype, tensor.shape))
        same = len(sizes) == tensor.dim() and all(a in (None, b) for a, b in zip(sizes, tensor.shape, strict=True))
        if not same or tensor.dtype != dtype:
            shown = ", ".join("any" if size is None else str(size) for size in sizes)
            kind = str(dtype).removeprefix("torch.")
            raise ConventionError(name, f"the export fixed {path} to tensor({kind}, [{shown}]): {_is(tensor)}")


_TENSOR = object()
"""Stands for a tensor among the example's leaves, so that none is kept alive."""


def _is(value: Any) -> str:
    return f"it cannot be {containers.describe(value, 80)}"


def _flat(names: list[str], named: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    return [(path, name, leaf) for name in names for path, leaf in containers.leaves(named[name], name)]


def _defaults(model: Callable[..., Any]) -> dict[str, Any]:
    signature = signature_of(model)
    parameters = signature.parameters if signature is not None else {}
    return {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}


def grouped_shapes(model: Callable[..., Any], example: Call, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """`dynamic_shapes` as torch.export wants them: every parameter of forward, `*args` and `**kwargs` as one entry.

    Args:
        model: the user's module or function.
        example: the example call.
        shapes: by argument name, the parts of `*args` one by one, as `bind` names them.
    """
    signature = signature_of(model)
    if signature is None:
        return dict(shapes)
    grouped: dict[str, Any] = {}
    for name, value in signature.bind(*example.args, **example.kwargs).arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            grouped[name] = tuple(shapes.get(f"{name}_{index}") for index in range(len(value)))
        elif kind is inspect.Parameter.VAR_KEYWORD:
            grouped[name] = {key: shapes.get(key) for key in value}
        else:
            grouped[name] = shapes.get(name)
    return grouped
