"""Which sizes may vary, and to what: torch.export's `dynamic_shapes` read by argument name, and sizes drawn from it.

What torch.export makes of a declared dimension (2.13): `Dim("b")` has the range [0, inf) and the exported program
accepts any size in it, although the traced code took the way of sizes of at least 2; where the model treats a size of
1 specially the program is silently wrong. `Dim.AUTO` and `Dim.DYNAMIC` have the range [2, inf) unless given bounds.
So a size of 1 is drawn for a named `Dim` whose minimum allows it. `Dim("b")` and `Dim("b", min=0)` are the same
object, and nobody who leaves the minimum out means the empty input: a size of 0 is drawn only for a hint with
`min=0`, which can be told apart.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import Dim

from pytest_torchexport.errors import UsageError
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.call import Call, bind, forward_of, signature_of

_HINT = type(Dim.AUTO)
_WHERE = "dynamic_shapes"
_ACCEPTED = "a Dim, Dim.AUTO, Dim.DYNAMIC, Dim.STATIC, None or the example's own size"


def normalise(model: Callable[..., Any], example: Call, dynamic_shapes: Any) -> dict[str, Any] | None:
    """torch.export's `dynamic_shapes` by argument name, complete and in one form.

    Args:
        model: the model whose `forward` names the arguments.
        example: the example call.
        dynamic_shapes: a dict by argument name, or a tuple or list in the order of the arguments; for each argument a
            dict by dimension, a tuple or list with an entry per dimension, a container of those, or None. Objects
            such as `torch.export.ShapesCollection` are accepted too.

    Returns:
        For every argument of the example (named as `bind` names them): for a tensor `{dimension: Dim or hint}` with
        the varying dimensions only, for an int a hint, for a container the same structure, else None. None if
        nothing varies.

    Raises:
        UsageError: an unknown argument, a dimension that the tensor does not have, an entry that is no dimension, or
            a size of the example outside the declared range.
    """
    if dynamic_shapes is None:
        return None
    if callable(build := getattr(dynamic_shapes, "dynamic_shapes", None)):
        dynamic_shapes = build(forward_of(model), example.args, dict(example.kwargs))
    named = bind(model, example)
    specs = _by_name(model, example, named, dynamic_shapes)
    found = {name: _normal(value, specs.get(name), name) for name, value in named.items()}
    if not any(spec is not None for _, _, spec in _walk(named, found)):
        return None
    _agree(named, found)
    return found


def _by_name(model: Callable[..., Any], example: Call, named: dict[str, Any], spec: Any) -> dict[str, Any]:
    groups = _groups(model, example)
    if isinstance(spec, (tuple, list)):
        for names in (list(groups), list(named)):
            if len(spec) == len(names):
                spec = dict(zip(names, spec, strict=True))
                break
        else:
            msg = (
                f"{_WHERE} has {len(spec)} entries, the example has {len(named)} arguments ({', '.join(named)}): "
                "give one entry for each, None for one whose shape is fixed"
            )
            raise UsageError(msg)
    if not isinstance(spec, Mapping):
        msg = f"{_WHERE} is {type(spec).__name__}: pass a dict by argument name, such as {{'x': {{0: Dim('batch')}}}}"
        raise UsageError(msg)
    flat: dict[str, Any] = {}
    for name, entry in spec.items():
        parts = groups.get(name, [])
        if name in named:
            flat[name] = entry
        elif not parts and name not in groups:
            listed = ", ".join(named)
            msg = f"{_WHERE} names the argument {name!r}, which the example does not pass. Accepted: {listed}."
            raise UsageError(msg)
        elif isinstance(entry, Mapping):
            flat.update(_by_name_in_group(name, entry, parts))
        elif entry is not None:
            _same_length(name, entry, len(parts))
            flat.update(zip(parts, entry, strict=True))
    return flat


def _groups(model: Callable[..., Any], example: Call) -> dict[str, list[str]]:
    """The parameters of forward in order, each with the arguments it takes: several for `*args` and `**kwargs`."""
    signature = signature_of(model)
    if signature is None:
        return {}
    bound = signature.bind(*example.args, **example.kwargs).arguments
    groups: dict[str, list[str]] = {}
    for name, value in bound.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            groups[name] = [f"{name}_{index}" for index in range(len(value))]
        elif kind is inspect.Parameter.VAR_KEYWORD:
            groups[name] = list(value)
        else:
            groups[name] = [name]
    return groups


def _by_name_in_group(name: str, entry: Mapping[Any, Any], parts: list[str]) -> dict[str, Any]:
    for key in entry:
        if key not in parts:
            msg = f"{_WHERE}[{name!r}] names {key!r}, which the example does not pass. Accepted: {', '.join(parts)}."
            raise UsageError(msg)
    return dict(entry)


def _same_length(where: str, entry: Any, count: int) -> None:
    if not isinstance(entry, (tuple, list)) or len(entry) != count:
        found = f"{len(entry)} entries" if isinstance(entry, (tuple, list)) else repr(entry)
        msg = f"{_WHERE} of {where} is {found}, the example has {count} there: give one entry for each"
        raise UsageError(msg)


def _normal(value: Any, spec: Any, path: str) -> Any:
    if isinstance(value, torch.Tensor):
        return _dimensions(value, spec, path) or None
    parts = containers.children(value)
    if parts is None:
        if isinstance(spec, _HINT) and isinstance(value, int) and not isinstance(value, bool):
            return None if spec.type is Dim.STATIC.type else spec
        if spec is None or spec == value or _is_static(spec):
            return None
        msg = f"{_WHERE} of {path} is {spec!r}, the example's {path} is {value!r}: only tensors and ints can vary"
        raise UsageError(msg)
    inside = [_normal(part, sub, path + step) for step, part, sub in _pair(value, parts, spec, path)]
    if isinstance(value, Mapping):
        return dict(zip(value, inside, strict=True))
    if containers.is_namedtuple(value):
        return type(value)(*inside)
    return tuple(inside) if isinstance(value, tuple) else inside


def _pair(value: Any, parts: list[tuple[str, Any]], spec: Any, path: str) -> list[tuple[str, Any, Any]]:
    """Every part of a container with its step and its spec."""
    if spec is None:
        return [(step, part, None) for step, part in parts]
    if isinstance(spec, Mapping):
        keys = list(value) if isinstance(value, Mapping) else [step.lstrip(".") for step, _ in parts]
        for key in spec:
            if key not in keys:
                msg = f"{_WHERE} of {path} names {key!r}, which the example does not have. Accepted: {keys}."
                raise UsageError(msg)
        return [(step, part, spec.get(key)) for key, (step, part) in zip(keys, parts, strict=True)]
    _same_length(path, spec, len(parts))
    return [(step, part, sub) for (step, part), sub in zip(parts, spec, strict=True)]


def _is_static(entry: Any) -> bool:
    return isinstance(entry, _HINT) and entry.type is Dim.STATIC.type


def _dimensions(tensor: torch.Tensor, spec: Any, path: str) -> dict[int, Any]:
    rank = tensor.dim()
    if spec is None or _is_static(spec):
        return {}
    if isinstance(spec, (tuple, list)):
        _same_length(path, spec, rank)
        spec = dict(enumerate(spec))
    if not isinstance(spec, Mapping):
        msg = f"{_WHERE} of {path} is {spec!r}: give a dict by dimension, such as {{0: Dim('batch')}}"
        raise UsageError(msg)
    found: dict[int, Any] = {}
    for index, entry in spec.items():
        if not isinstance(index, int) or not -rank <= index < rank:
            msg = f"{_WHERE} of {path} names dimension {index!r}, the example's {path} has {rank} (0 to {rank - 1})"
            raise UsageError(msg)
        size = tensor.shape[index]
        if isinstance(entry, int) and entry != size:
            msg = f"{_WHERE} of {path} fixes dimension {index} to {entry}, the example has size {size} there"
            raise UsageError(msg)
        if entry is None or isinstance(entry, int) or _is_static(entry):
            continue
        if not isinstance(entry, (Dim, _HINT)):
            msg = f"{_WHERE} of {path} has {entry!r} for dimension {index}. Accepted: {_ACCEPTED}."
            raise UsageError(msg)
        _inside(path, index, size, entry)
        found[index % rank] = entry
    return found


def _inside(path: str, index: int, size: int, entry: Any) -> None:
    low = entry.min or 0
    high = entry.max if isinstance(entry.max, int) else None
    if size < low or (high is not None and size > high):
        span = f"{low} to {high}" if high is not None else f"at least {low}"
        msg = (
            f"the example's {path} has size {size} in dimension {index}, outside the range of {entry!r} ({span}): "
            "widen the Dim, or pass an example inside it"
        )
        raise UsageError(msg)


def root_of(dim: Any, size: int) -> tuple[Any, int] | None:
    """The plain `Dim` under a derived one (`2*b + 1`) and its size where the derived one has `size`; None if none."""
    root = getattr(dim, "root", None)
    if root is None:
        return dim, size
    offset = int(dim.fn(0))
    step = int(dim.fn(1)) - offset
    value, rest = divmod(size - offset, step)
    return None if rest or value < 0 else (root, value)


def _agree(named: dict[str, Any], found: dict[str, Any]) -> None:
    """The example's own sizes fit together: one size for each `Dim`."""
    sizes: dict[str, tuple[int, str]] = {}
    for path, tensor, spec in _walk(named, found):
        if not isinstance(tensor, torch.Tensor) or not spec:
            continue
        for index, entry in spec.items():
            if isinstance(entry, _HINT):
                continue
            size = tensor.shape[index]
            if (root := root_of(entry, size)) is None:
                msg = f"the example's {path} has size {size} in dimension {index}, which {entry!r} can never be"
                raise UsageError(msg)
            name, value, place = root[0].__name__, root[1], f"dimension {index} of {path}"
            known, first = sizes.setdefault(name, (value, place))
            if known != value:
                msg = f"Dim {name!r} is {known} by {first} but {value} by {place} of the example: use two Dims"
                raise UsageError(msg)


def _walk(value: Any, spec: Any, path: str | None = None) -> Iterator[tuple[str, Any, Any]]:
    """Every leaf of the arguments with its path and its normalised spec."""
    parts = containers.children(value)
    if parts is None:
        yield path or "", value, spec
        return
    subs = list(spec.values()) if isinstance(spec, Mapping) else list(spec)
    for (step, part), sub in zip(parts, subs, strict=True):
        yield from _walk(part, sub, step[2:-2] if path is None else path + step)


@dataclass(frozen=True)
class Varying:
    """A dimension that varies (`index`), or an int argument (`index` None), with the symbol that gives its size."""

    path: str
    index: int | None
    symbol: str
    entry: Any

    def size(self, value: int) -> int:
        """The size where the symbol has the value."""
        return int(self.entry.fn(value)) if hasattr(self.entry, "fn") else value


def varying(named: Mapping[str, Any], normalised: Mapping[str, Any]) -> list[tuple[Varying, Any]]:
    """Everything that varies, each with the leaf of the example it belongs to.

    A hint is a symbol of its own. One that stands at a size of 0 or 1 does not vary: torch.export takes these sizes
    of the example for constants.
    """
    found: list[tuple[Varying, Any]] = []
    for path, leaf, spec in _walk(dict(named), dict(normalised)):
        if isinstance(spec, _HINT):
            found.append((Varying(path, None, path, spec), leaf))
        for index, entry in spec.items() if isinstance(spec, Mapping) else ():
            if not isinstance(entry, _HINT):
                root = root_of(entry, leaf.shape[index])
                assert root is not None, "normalise() lets no such size through"
                found.append((Varying(path, index, root[0].__name__, entry), leaf))
            elif leaf.shape[index] > 1:
                found.append((Varying(path, index, f"{path}.shape[{index}]", entry), leaf))
    return found
