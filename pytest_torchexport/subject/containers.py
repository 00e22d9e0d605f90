"""Nested containers of tensors: read with paths, copy with aliasing kept. The one place that touches pytrees.

A value is taken apart by torch's own pytree registry, so that a type which the user registered for
torch.export is understood here too. Beyond the registry, dataclasses, mappings and plain objects are
taken apart by field, item and attribute.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from pytest_torchexport.subject import objects

Path = str
"""Where a leaf stands, as Python would write it behind the root's name: `[0]['logits'].mask`."""

SCALARS = (bool, int, float, complex, str, bytes, type(None), enum.Enum, torch.dtype, torch.device, torch.layout)
"""Python values that are compared as they are."""


def is_namedtuple(value: object) -> bool:
    """Whether the value's type came from `namedtuple` or `NamedTuple`, or is a structseq of torch."""
    return isinstance(value, tuple) and type(value) is not tuple and hasattr(value, "_fields")


def is_leaf(value: object) -> bool:
    """Whether the value holds no further values: a tensor, an array, a scalar, or something opaque."""
    return children(value) is None


def children(value: Any) -> list[tuple[Path, Any]] | None:
    """The value's direct parts with the path step to each, in order; None for a leaf."""
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic, *SCALARS)):
        return None
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", item) for key, item in value.items()]
    if is_namedtuple(value):
        return [(f".{name}", getattr(value, name)) for name in value._fields]
    if isinstance(value, (list, tuple, deque)):
        return [(f"[{index}]", item) for index, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f".{f.name}", getattr(value, f.name)) for f in dataclasses.fields(value) if hasattr(value, f.name)]
    if not pytree.tree_is_leaf(value):
        keyed, _ = pytree.tree_flatten_with_path(value, is_leaf=lambda part: part is not value)
        return [(pytree.keystr(path), part) for path, part in keyed]
    if _is_plain_object(value):
        return [(f".{name}", item) for name, item in objects.attributes(value).items()]
    return None


def leaves(value: Any, root: Path = "", above: frozenset[int] = frozenset()) -> Iterator[tuple[Path, Any]]:
    """Every leaf below the value with its full path, depth first, in the containers' own order.

    Where a container holds one that it is in itself (`above`, by id), that one counts as a leaf.
    """
    parts = None if id(value) in above else children(value)
    if parts is None:
        yield root, value
        return
    for step, part in parts:
        yield from leaves(part, root + step, above | {id(value)})


def tensors(value: Any, root: Path = "") -> Iterator[tuple[Path, torch.Tensor]]:
    """Every tensor below the value with its full path."""
    return ((path, leaf) for path, leaf in leaves(value, root) if isinstance(leaf, torch.Tensor))


def rebuild(value: Any, change: Callable[[Any], Any], memo: dict[int, tuple[Any, Any]] | None = None) -> Any:
    """A copy of the containers in which every leaf is `change(leaf)`.

    A container or tensor that stands in two places stands in two places of the copy as well, and a list, dict or object
    that holds itself has a copy that holds itself.
    """
    memo = {} if memo is None else memo
    if id(value) in memo:
        return memo[id(value)][1]
    parts = children(value)
    shell = value if parts is None else _shell(value)
    # The original is kept beside its copy: a part that was made on the fly must not leave its id to another one.
    memo[id(value)] = (value, shell)
    if parts is None:
        made = change(value)
    else:
        made = _rebuild(value, [rebuild(part, change, memo) for _, part in parts], shell)
    memo[id(value)] = (value, made)
    return made


def _shell(value: Any) -> Any:
    """What the copy of a container will be, still empty; the container itself if its copy cannot be made empty."""
    if type(value) in (list, dict):
        return type(value)()
    return objects.blank(value) if _is_record(value) else value


def replace(value: Any, at: Mapping[Path, Any], root: Path = "", above: frozenset[int] = frozenset()) -> Any:
    """The value with what stands at the given full paths replaced; what is not touched is shared, not copied."""
    if root in at:
        return at[root]
    parts = None if id(value) in above else children(value)
    if parts is None:
        return value
    replaced = [replace(part, at, root + step, above | {id(value)}) for step, part in parts]
    if all(new is part for new, (_, part) in zip(replaced, parts, strict=True)):
        return value
    return _rebuild(value, replaced)


def _is_record(value: Any) -> bool:
    """Whether a container is made of attributes: a dataclass or a plain object that torch's registry does not know."""
    known = isinstance(value, (Mapping, list, tuple, deque)) or not pytree.tree_is_leaf(value)
    return not known and objects.has_attributes(value)


def _rebuild(value: Any, parts: list[Any], shell: Any = None) -> Any:
    """The container with other parts; made in the shell where there is one."""
    if isinstance(shell, list) and shell is not value:
        shell.extend(parts)
        return shell
    if isinstance(shell, dict) and shell is not value:
        shell.update(zip(value, parts, strict=True))
        return shell
    if isinstance(value, Mapping) and pytree.tree_is_leaf(value):
        return type(value)(zip(value, parts, strict=True))  # type: ignore[call-arg]
    if not pytree.tree_is_leaf(value):
        _, spec = pytree.tree_flatten(value, is_leaf=lambda part: part is not value)
        return pytree.tree_unflatten(parts, spec)
    if is_namedtuple(value):
        return type(value)(*parts)
    if isinstance(value, (list, tuple)):
        return type(value)(parts)
    names = [step[1:] for step, _ in children(value) or []]
    copied = objects.blank(value) if shell is None else shell
    return objects.fill(copied, objects.attributes(value) | dict(zip(names, parts, strict=True)))


def clone_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A detached copy with the same values, strides and `requires_grad`; overlapping views stay overlapping."""
    source = tensor.detach()
    if source.layout is not torch.strided or source.is_quantized or source.is_nested or source.numel() == 0:
        return source.clone().requires_grad_(tensor.requires_grad)
    made = source.clone(memory_format=torch.preserve_format)
    if made.stride() != source.stride():
        extent = 1 + sum((size - 1) * stride for size, stride in zip(source.shape, source.stride(), strict=True))
        storage = source.as_strided((extent,), (1,)).clone()
        made = storage.as_strided(source.shape, source.stride())
    return made.requires_grad_(tensor.requires_grad)


def clone(value: Any) -> Any:
    """A copy of the value in which no tensor, array, set or byte array is the original's."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return clone_tensor(leaf)
        if isinstance(leaf, np.ndarray):
            return leaf.copy()
        return copy.copy(leaf) if isinstance(leaf, (set, bytearray)) else leaf

    return rebuild(value, one)


def place(value: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """The value with every tensor on the device, and every floating tensor in the dtype if one is given.

    Complex tensors get the complex type that belongs to the dtype. A tensor that is right already is not copied.
    """

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        wanted = leaf.dtype
        if dtype is not None and leaf.is_floating_point():
            wanted = dtype
        elif dtype is not None and leaf.is_complex():
            wanted = dtype.to_complex()
        if leaf.device == device and leaf.dtype == wanted:
            return leaf
        return leaf.detach().to(device, wanted).requires_grad_(leaf.requires_grad)

    return rebuild(value, one)


def describe(value: Any, limit: int = 200) -> str:
    """One line for a person: tensors by dtype and shape (small ones by value), containers by their parts."""
    text = _describe(value, frozenset())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _describe(value: Any, above: frozenset[int]) -> str:
    if isinstance(value, torch.Tensor):
        return describe_tensor(value)
    if isinstance(value, np.ndarray):
        return f"ndarray({value.dtype}, {list(value.shape)})"
    if id(value) in above:
        return "..."
    parts = children(value)
    if parts is None:
        return repr(value)
    inside = [_describe(part, above | {id(value)}) for _, part in parts]
    if isinstance(value, Mapping):
        inside = [f"{key!r}: {part}" for key, part in zip(value, inside, strict=True)]
        return "{" + ", ".join(inside) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(inside) + "]"
    if type(value) is tuple:
        return "(" + ", ".join(inside) + ("," if len(inside) == 1 else "") + ")"
    names = [step.lstrip(".") + "=" if step.startswith(".") else "" for step, _ in parts]
    return type(value).__name__ + "(" + ", ".join(n + p for n, p in zip(names, inside, strict=True)) + ")"


def describe_tensor(tensor: torch.Tensor) -> str:
    """Dtype and shape; the values too where there are at most eight."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout is torch.strided and not tensor.is_quantized and 0 < tensor.numel() <= 8:
        return f"tensor({tensor.tolist()}, {dtype})"
    return f"tensor({dtype}, {list(tensor.shape)})"


def _is_plain_object(value: object) -> bool:
    """Whether the value is a user's record-like object: attributes, and it cannot be called or iterated."""
    if isinstance(value, (type, torch.nn.Module)) or callable(value) or hasattr(value, "__next__"):
        return False
    return objects.has_attributes(value) and not objects.is_foreign(value)
