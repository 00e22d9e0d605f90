"""What the values of a TorchScript graph are called while it runs, seen through lists, tuples and in-place operators.

A step reads tensors. In the graph it reads values: a list that was built of tensors, an element of it, a tensor that
another operator has overwritten since it was computed.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_torchexport.backends.torchscript_graph import FlatGraph

_PLUMBING = frozenset(
    (
        *("prim::ListConstruct", "prim::ListUnpack", "prim::TupleConstruct", "prim::TupleUnpack", "prim::TupleIndex"),
        *("prim::TupleSlice", "prim::DictConstruct", "prim::unchecked_cast", "prim::unchecked_unwrap_optional"),
        *("aten::_unwrap_optional", "prim::CreateObject"),
    )
)
_OF_CONTAINERS = frozenset(
    f"aten::{name}"
    for name in (
        *("__getitem__", "_set_item", "append", "extend", "insert", "pop", "popitem", "clear", "remove", "Delete"),
        *("get", "setdefault", "update", "keys", "values", "items", "list", "dict", "copy", "slice", "reverse"),
        *("add", "add_", "mul", "mul_", "len", "__contains__"),
    )
)
_OF_SHAPES = frozenset(
    (
        *("aten::size", "aten::sym_size", "aten::dim", "aten::len", "aten::numel", "aten::is_floating_point"),
        *("aten::stride", "aten::__is__", "aten::__isnot__", "aten::is_complex", "prim::device", "prim::dtype"),
        *("prim::layout", "prim::is_cuda", "prim::is_mkldnn", "prim::requires_grad", "aten::format"),
    )
)


def is_tensor(value: Any) -> bool:
    """Whether a value of the graph is a tensor, or a tensor or None."""
    kind = value.type()
    return bool(kind.kind() == "TensorType" or _inside(kind, "OptionalType"))


def is_list(value: Any) -> bool:
    """Whether a value of the graph is a list of tensors."""
    return _inside(value.type(), "ListType")


def _holds_tensors(value: Any) -> bool:
    kind = value.type()
    return kind.kind() in ("ClassType", "InterfaceType", "AnyType") or "Tensor" in str(kind)


def _inside(kind: Any, container: str) -> bool:
    return bool(kind.kind() == container and kind.getElementType().kind() == "TensorType")


def is_handed_on(node: Any) -> bool:
    """Whether a node computes nothing: it puts values into a container or takes them out."""
    if node.kind() in _PLUMBING:
        return True
    kinds = ("ListType", "DictType", "TupleType")
    return node.kind() in _OF_CONTAINERS and next(node.inputs()).type().kind() in kinds


_NOWHERE: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Memory:
    """For each argument and each result of an operator the sets of memory that it may be in, and what it writes to."""

    arguments: tuple[frozenset[str], ...] = ()
    results: tuple[frozenset[str], ...] = ()
    written: tuple[bool, ...] = ()


@functools.cache
def _memory(schema: str) -> _Memory:
    try:
        parsed = torch._C.parse_schema(schema)
    except RuntimeError:
        # A type of its own, or none.
        return _Memory()
    arguments, results = (tuple(_sets(one) for one in many) for many in (parsed.arguments, parsed.returns))
    return _Memory(arguments, results, tuple(one.is_write for one in parsed.arguments))


def _sets(argument: Any) -> frozenset[str]:
    info = argument.alias_info
    return frozenset() if info is None else frozenset(str(one).rpartition("::")[2] for one in info.before_set)


def writes(node: Any) -> list[Any]:
    """The inputs that a node changes in place."""
    written = _memory(node.schema()).written
    return [value for value, one in zip(node.inputs(), written, strict=False) if one] if any(written) else []


class Reads:
    """Which recorded tensors a value of the graph consists of, or is computed from, at a point of the run.

    Args:
        flat: the program's graph, without recorders.
    """

    def __init__(self, flat: FlatGraph) -> None:
        self._flat = flat
        self._parents: dict[int | str, int | str] = {}
        self._definitions: dict[int, list[Any]] = {}
        self._names: dict[int, tuple[str, ...]] = {}
        self._outside: dict[int, str] = {}
        self._changes: dict[int | str, list[tuple[str, ...]]] = {}
        self._seen: dict[int, int] = {}
        self._attributes: dict[str, tuple[str, ...]] = {}
        self._written: list[int] = []
        for value in flat.graph.inputs():
            if flat.path(value) is None:
                self._outside[value.unique()] = value.debugName()
        self._visit(flat.graph)

    def _visit(self, block: Any) -> None:
        for node in block.nodes():
            for inner in node.blocks():
                self._visit(inner)
            if node.kind() in ("prim::GetAttr", "prim::SetAttr"):
                self._attribute(node)
            elif node.kind() == "prim::Constant":
                if is_tensor(node.output()):
                    self._outside[node.output().unique()] = node.output().debugName()
            elif node.kind() == "prim::If":
                results = (inner.outputs() for inner in node.blocks())
                for out, *sources in zip(node.outputs(), *results, strict=True):
                    self._define(out, sources)
            elif node.kind() == "prim::Loop":
                self._loop(node)
            else:
                self._operator(node)

    def _loop(self, node: Any) -> None:
        body = next(node.blocks())
        starts, lasts = list(node.inputs())[2:], list(body.outputs())[1:]
        for out, parameter, start, last in zip(node.outputs(), list(body.inputs())[1:], starts, lasts, strict=True):
            self._define(parameter, [start, last])
            self._define(out, [start, last])

    def _operator(self, node: Any) -> None:
        handed_on, memory = is_handed_on(node), _memory(node.schema())
        inputs = list(node.inputs())
        for index, value in enumerate(node.outputs()):
            self._definitions[value.unique()] = _element(node, index) or inputs
            own = memory.results[index] if index < len(memory.results) else _NOWHERE
            if not (handed_on or own):
                continue
            for source, its in zip(inputs, itertools.chain(memory.arguments, itertools.repeat(_NOWHERE)), strict=False):
                if (handed_on and _holds_tensors(source) and _holds_tensors(value)) or own & its:
                    self._join(value.unique(), source.unique())
        self._written += [one.unique() for one in writes(node)]

    def _define(self, value: Any, sources: list[Any]) -> None:
        self._definitions[value.unique()] = sources
        for source in sources:
            self._join(value.unique(), source.unique())

    def _attribute(self, node: Any) -> None:
        if node.kind() == "prim::GetAttr":
            path = self._flat.path(node.output())
            if path is None:
                self._define(node.output(), [node.input()])
            else:
                self._outside[node.output().unique()] = path
                self._join(path, node.output().unique())
            return
        owner, value = node.inputs()
        path = self._flat.path(owner)
        if path is not None:
            self._join(f"{path}.{node.s('name')}".lstrip("."), value.unique())

    def _root(self, value: int | str) -> int | str:
        while (parent := self._parents.get(value, value)) != value:
            value = parent
        return value

    def _join(self, first: int | str, second: int | str) -> None:
        self._parents[self._root(first)] = self._root(second)

    def may_change(self, value: Any) -> bool:
        """Whether an operator writes to a value, or to one that may share its memory."""
        return self._root(value.unique()) in {self._root(one) for one in self._written}

    def may_be_nothing(self, value: Any) -> bool:
        """Whether a value may be one that torch leaves without contents: a result that a branch does not have."""
        visited: set[int] = set()
        pending = [value]
        while pending:
            one = pending.pop()
            if one.node().kind() == "prim::Uninitialized":
                return True
            handed_on = one.node().kind() in ("prim::If", "prim::Loop", "prim::Param") or is_handed_on(one.node())
            if handed_on and one.unique() not in visited:
                pending += self.definition(one)
            visited.add(one.unique())
        return False

    def definition(self, value: Any) -> list[Any]:
        """What a value is taken from, or computed from."""
        return self._definitions.get(value.unique(), [])

    def names(self, values: Iterable[Any]) -> tuple[str, ...]:
        """The names of the tensors that the values are made of or computed from, as they are now, each once."""
        found: dict[str, None] = {}
        visited: set[int] = set()
        pending = list(values)[::-1]
        while pending:
            value = pending.pop()
            unique = value.unique()
            if unique in visited:
                continue
            visited.add(unique)
            names = self._known(value)
            if names is None:
                if value.node().kind() not in _OF_SHAPES:
                    pending += self.definition(value)[::-1]
                names = ()
            changes = self._changes.get(self._root(unique), [])[self._seen.get(unique, 0) :]
            found |= dict.fromkeys((*names, *(name for change in changes for name in change)))
        return tuple(found)

    def _known(self, value: Any) -> tuple[str, ...] | None:
        """The names of a recorded value, or of one from outside."""
        unique = value.unique()
        if unique in self._names:
            return self._names[unique]
        path = self._outside.get(unique)
        if path is None:
            return self._list_element(value)
        if not (is_tensor(value) or is_list(value)):
            return () if value.node().kind() in ("prim::Constant", "prim::GetAttr") else (path,)
        return self._attributes.get(path, (path,)) if value.node().kind() == "prim::GetAttr" else (path,)

    def _list_element(self, value: Any) -> tuple[str, ...] | None:
        """The name of one element of a recorded list."""
        node = value.node()
        if node.kind() != "prim::ListUnpack":
            return None
        names = self._names.get(node.inputsAt(0).unique())
        return None if names is None or len(names) != node.outputsSize() else (names[value.offset()],)

    def note(
        self, node: Any, names: Mapping[int, list[str]], inputs: tuple[str, ...], attribute: str | None = None
    ) -> None:
        """Take down that a node has run.

        Args:
            node: the node.
            names: what its recorded results are called from now on.
            inputs: what it has read.
            attribute: the module's attribute that it has set.
        """
        if attribute is not None:
            self._attributes[attribute] = inputs
        elif node.kind() == "prim::SetAttr":
            self._changes.setdefault(self._root(node.inputsAt(0).unique()), []).append(inputs)
        changed = tuple(name for several in names.values() for name in several) or inputs
        for value in writes(node):
            changes = self._changes.setdefault(self._root(value.unique()), [])
            changes.append(changed)
            if names and value.type().kind() == "TensorType":
                # It is the same tensor: its old name is history.
                self._names[value.unique()] = changed
                self._seen[value.unique()] = len(changes)
        for unique, own in names.items():
            self._names[unique] = tuple(own)
            self._seen[unique] = len(self._changes.get(self._root(unique), ()))


def _element(node: Any, index: int) -> list[Any] | None:
    """The one value that an output is, where a container is taken apart whose making the graph shows."""
    if node.kind() not in ("prim::ListUnpack", "prim::TupleUnpack", "prim::TupleIndex"):
        return None
    maker = node.inputsAt(0).node()
    if maker.kind() not in ("prim::ListConstruct", "prim::TupleConstruct"):
        return None
    if node.kind() == "prim::TupleIndex":
        constant = node.inputsAt(1).toIValue()
        index = constant if isinstance(constant, int) else -1
    parts = list(maker.inputs())
    return [parts[index]] if 0 <= index < len(parts) else None
