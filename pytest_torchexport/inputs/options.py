"""What a call may hold instead, where the values are few: flags, members, listed values, None, nothing at all."""

from __future__ import annotations

import enum
import inspect
import typing
from typing import TYPE_CHECKING, Any, Final, Literal

import torch

from pytest_torchexport.inputs.derive import annotated, may_be_none
from pytest_torchexport.inputs.variables import Variables, below, nodes_of
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.call import Call, bind, signature_of
from pytest_torchexport.subject.equality import identical

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


class _LeftOut(enum.Enum):
    LEFT_OUT = "left out"

    def __repr__(self) -> str:
        return "left out"


LEFT_OUT: Final = _LeftOut.LEFT_OUT
"""An option that is no value: the argument is not passed, the dict has no such key."""

Option = tuple[str, Any, Any]
"""A path, another value for it, and the example's."""


def options(model: Callable[..., Any], example: Call, variables: Variables) -> dict[str, list[Any]]:
    """Other values than the example's of what takes a few, by path; each list without repetitions."""
    found: dict[str, list[Any]] = {}
    for source in (_of_domains(variables), _of_signature(model, example, variables), _of_parts(model, variables)):
        for path, value, now in source:
            values = found.setdefault(path, [])
            if not any(_same(value, known) for known in [now, *values]):
                values.append(value)
    return {path: values for path, values in found.items() if values}


def _of_domains(variables: Variables) -> Iterator[Option]:
    for item in variables.items:
        for value in item.domain.listed(item.pattern):
            yield item.name, item.fit(value), item.example
    nodes = nodes_of(variables.named)
    for path in variables.absent:
        if nodes.get(path) is not None:
            yield path, None, nodes[path]


def _of_signature(model: Callable[..., Any], example: Call, variables: Variables) -> Iterator[Option]:
    """What defaults and annotations tell: None where it is the default, and values of what the example leaves out."""
    signature = signature_of(model)
    hints, passed = annotated(model), bind(model, example)
    for name, parameter in (signature.parameters if signature else {}).items():
        default = parameter.default
        if default is inspect.Parameter.empty or parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            continue
        if name not in variables.named:
            yield from ((name, value, default) for value in _told(hints.get(name), default))
        elif name in passed and default is None and not _is_declared(name, variables):
            yield name, None, passed[name]


def _is_declared(path: str, variables: Variables) -> bool:
    places = [place for item in variables.items if item.declared for place in item.paths]
    places += [place for place, told in variables.absent.items() if told]
    return any(below(place, path) for place in places)


def _of_parts(model: Callable[..., Any], variables: Variables) -> Iterator[Option]:
    """What containers tell of their parts: keys that a dict may lack, fields that may be None or list their values."""
    hints = annotated(model)
    for path, value in nodes_of(variables.named).items():
        if isinstance(value, dict):
            yield from _of_keys(path, value, hints.get(path), variables)
        elif containers.children(value) and type(value) not in (list, tuple):
            yield from _of_fields(path, value, variables)


def _of_keys(path: str, value: dict[Any, Any], hint: Any, variables: Variables) -> Iterator[Option]:
    free = _optional_keys(hint)
    for (step, part), key in zip(containers.children(value) or [], value, strict=True):
        if key in free or variables.absent.get(path + step):
            yield path + step, LEFT_OUT, part


def _optional_keys(hint: Any) -> set[str]:
    """The keys that a `TypedDict` need not have; `__optional_keys__` misses those of annotations that are strings."""
    if not typing.is_typeddict(hint):
        return set()
    told = _field_hints(hint, extras=True)
    every = {name: typing.get_origin(one) for name, one in told.items()}
    marked = {name for name, origin in every.items() if origin is typing.NotRequired}
    needed = {name for name, origin in every.items() if origin is typing.Required}
    return (marked | set(hint.__optional_keys__)) - needed


def _of_fields(path: str, value: Any, variables: Variables) -> Iterator[Option]:
    hints = _field_hints(type(value))
    for step, part in containers.children(value) or []:
        hint = hints.get(step.removeprefix("."))
        if hint is None or _is_declared(path + step, variables):
            continue
        if may_be_none(hint):
            yield path + step, None, part
        if not isinstance(part, torch.Tensor):
            yield from ((path + step, other, part) for other in _told(hint, part))


def _told(annotation: Any, default: Any) -> list[Any]:
    """The values that an annotation lists; else those of the default, where it is a flag or a member."""
    found: list[Any] = []
    for member in typing.get_args(annotation) if may_be_none(annotation) else (annotation,):
        if typing.get_origin(member) is Literal:
            found += typing.get_args(member)
        elif member is bool:
            found += [True, False]
        elif isinstance(member, enum.EnumType):
            found += list(member)
    if not found and isinstance(default, bool):
        found = [True, False]
    if not found and isinstance(default, enum.Enum):
        found = list(type(default))
    return found


def with_key(nodes: Mapping[str, Any], path: str, value: Any, usual: Mapping[str, Any]) -> dict[str, Any]:
    """The dict that lacks the path, by its own path, with the key and the order that the example has; empty if none."""
    for place, pattern in usual.items():
        lacking = nodes.get(place)
        if isinstance(pattern, dict) and isinstance(lacking, dict):
            for (step, _), key in zip(containers.children(pattern) or [], pattern, strict=True):
                if place + step == path:
                    made = lacking | {key: value}
                    ordered = [one for one in pattern if one in made]
                    return {place: {one: made[one] for one in dict.fromkeys([*ordered, *made])}}
    return {}


def without_key(nodes: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The dict that holds the path, by its own path, without the key; empty if none does."""
    for place, value in nodes.items():
        if isinstance(value, dict):
            for (step, _), key in zip(containers.children(value) or [], value, strict=True):
                if place + step == path:
                    return {place: {one: part for one, part in value.items() if one != key}}
    return {}


def _field_hints(kind: type, *, extras: bool = False) -> Mapping[str, Any]:
    """The annotations of a container's fields; none if one cannot be resolved."""
    try:
        return typing.get_type_hints(kind, include_extras=extras)
    except Exception:  # noqa: BLE001 - whatever a user's annotation raises, it only costs the hint
        return {}


def _same(one: Any, other: Any) -> bool:
    try:
        return identical(one, other)
    except Exception:  # noqa: BLE001 - a user's value may refuse to be compared
        return one is other
