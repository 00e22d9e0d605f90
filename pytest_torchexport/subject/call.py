"""A call of the model: arguments by name, and the model behind whatever callable the user gave."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.errors import UsageError
from pytest_torchexport.subject import containers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, eq=False)
class Call:
    """One call `model(*args, **kwargs)`, with where it comes from.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        kind: `example`, `extra`, `special` or `random`.
        label: what is particular about it, for a person: `x = zeros`.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "example"
    label: str = ""

    def clone(self) -> Call:
        """A call with its own copy of every tensor; one that stands in two arguments still does."""
        args, kwargs = containers.clone((self.args, dict(self.kwargs)))
        return Call(args, kwargs, self.kind, self.label)

    def place(self, device: torch.device, dtype: torch.dtype | None = None) -> Call:
        """The call with its tensors on the device, floating ones in the dtype if one is given."""
        args, kwargs = containers.place((self.args, dict(self.kwargs)), device, dtype)
        return Call(args, kwargs, self.kind, self.label)

    def describe(self) -> str:
        """The call's arguments in one line."""
        parts = [containers.describe(arg) for arg in self.args]
        parts += [f"{name}={containers.describe(arg)}" for name, arg in self.kwargs.items()]
        return ", ".join(parts)


def forward_of(model: Callable[..., Any]) -> Callable[..., Any]:
    """The function whose signature the user's arguments follow: a module's `forward`, else the callable itself."""
    return model.forward if isinstance(model, torch.nn.Module) else model


def signature_of(model: Callable[..., Any]) -> inspect.Signature | None:
    """The signature of the model's forward, or None where Python cannot tell (builtins, scripted functions)."""
    if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        return _script_signature(model)
    try:
        return inspect.signature(forward_of(model))
    except (TypeError, ValueError):
        return None


def _script_signature(model: Any) -> inspect.Signature | None:
    schema = getattr(getattr(model, "forward", model), "schema", None)
    if schema is None:
        return None
    arguments = [a for a in schema.arguments if a.name != "self"]
    kinds = inspect.Parameter
    return inspect.Signature(
        [
            kinds(
                a.name, kinds.POSITIONAL_OR_KEYWORD, default=a.default_value if a.has_default_value() else kinds.empty
            )
            for a in arguments
        ]
    )


def bind(model: Callable[..., Any], call: Call) -> dict[str, Any]:
    """The call's arguments by name, in the order of the signature; those left to their default are absent.

    The parts of `*args` are named as torch.export names them, `args_0`, `args_1`, and those of `**kwargs` by key.

    Raises:
        UsageError: the arguments do not fit the model's `forward`.
    """
    signature = signature_of(model)
    if signature is None:
        return {f"args_{index}": arg for index, arg in enumerate(call.args)} | dict(call.kwargs)
    try:
        bound = signature.bind(*call.args, **call.kwargs)
    except TypeError as error:
        wanted = ", ".join(str(p) for p in signature.parameters.values())
        msg = (
            f"the arguments do not fit {name_of(model)}.forward({wanted}): {error}. "
            "Pass positional arguments as a tuple, args=(x, y), and keyword arguments as a dict, kwargs={'mask': m}."
        )
        raise UsageError(msg) from None
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            named.update({f"{name}_{index}": part for index, part in enumerate(value)})
        elif kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        else:
            named[name] = value
    return named


def positional_names(model: Callable[..., Any], call: Call) -> list[str]:
    """The names of the call's positional arguments, as `bind` names them."""
    signature = signature_of(model)
    if signature is None:
        return [f"args_{index}" for index in range(len(call.args))]
    names: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{index}" for index in range(len(call.args) - len(names))]
        elif parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
    return names[: len(call.args)]


def rebind(model: Callable[..., Any], example: Call, named: Mapping[str, Any], kind: str, label: str) -> Call:
    """A call like the example, the same arguments by position and by keyword, with the values in `named`.

    A name that the example does not pass is added as a keyword argument.
    """
    names = positional_names(model, example)
    args = tuple(named.get(name, arg) for name, arg in zip(names, example.args, strict=True))
    kwargs = dict(example.kwargs) | {name: value for name, value in named.items() if name not in names}
    return Call(args, kwargs, kind, label)


def name_of(model: object) -> str:
    """The model's name for messages: a module's class, a function's name."""
    if isinstance(model, functools.partial):
        return name_of(model.func)
    if isinstance(model, torch.nn.Module):
        return getattr(model, "original_name", None) or type(model).__name__
    if inspect.isbuiltin(model):  # torch.sin's qualified name is that of a private class
        return model.__name__
    return getattr(model, "__qualname__", None) or getattr(model, "name", None) or type(model).__name__


class FunctionModule(torch.nn.Module):
    """A function as a module, for exporters that take modules only. `forward` keeps the function's signature."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        owner = getattr(function, "__self__", None)
        if isinstance(owner, torch.nn.Module):
            self.owner = owner
        self._function = function
        signature = signature_of(function)
        if signature is not None:
            self.forward = _with_signature(function, signature)  # type: ignore[method-assign]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self._function(*args, **kwargs)


def _with_signature(function: Callable[..., Any], signature: inspect.Signature) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    forward.__signature__ = signature  # type: ignore[attr-defined]
    return forward


def as_module(model: Callable[..., Any]) -> torch.nn.Module:
    """The model itself if it is a module, else a module around the function."""
    return model if isinstance(model, torch.nn.Module) else FunctionModule(model)


def check_callable(model: object) -> None:
    """Raise a `UsageError` unless the model can be called."""
    if isinstance(model, type):
        msg = f"the model is the class {model.__name__}, not an instance: pass {model.__name__}()"
        raise UsageError(msg)
    if not callable(model):
        msg = f"the model is {describe_type(model)}, not a torch.nn.Module or a function"
        raise UsageError(msg)


def describe_type(value: object) -> str:
    """`a list`, `an int`: the value's type with its article."""
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
