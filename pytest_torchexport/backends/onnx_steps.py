"""An ONNX file with every value as an output: what its nodes compute, in one run, with their places in the model."""

from __future__ import annotations

import ast
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.backends.base import LARGEST, Step, TooLarge
from pytest_torchexport.subject.source import innermost

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from pathlib import Path

    from pytest_torchexport.outcome import Location

_FRAME = re.compile(r'File "([^"\n]+)", line (\d+)')


@dataclass(frozen=True)
class _Node:
    """What is kept of a node of the graph."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    module: str
    location: Location | None


class WatchedGraph:
    """A model file whose every value is an output of the graph.

    What a node computes in one piece is one step: the body of a loop, a branch, a function of the model.

    Args:
        path: the file. Its weights stay where they are.
        modules: finds the user's submodule of a node.

    Attributes:
        names: the values that are computed, in the order of the nodes.
    """

    def __init__(self, path: Path, modules: ModuleNames) -> None:
        import onnx  # noqa: PLC0415 - an extra

        self._model = onnx.load(str(path), load_external_data=False)
        self._nodes = [_read(node, modules) for node in _alive(self._model.graph) if not _is_constant(node)]
        self.names = [name for node in self._nodes for name in node.outputs]
        given = {one.name for one in self._model.graph.output}
        new = [name for name in self.names if name not in given]
        self._model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in new)

    def check_size(self, run: Callable[[bytes, list[str]], Iterable[int]]) -> None:
        """See that all values together fit into the memory that may be used.

        Args:
            run: runs a model on the input and gives those of its outputs that are named, which are numbers. It is
                asked where the file does not say all sizes.

        Raises:
            TooLarge: they do not.
        """
        import onnx  # noqa: PLC0415 - an extra

        graph = onnx.shape_inference.infer_shapes(self._model).graph
        every = [(one.name, one.type.tensor_type) for one in (*graph.value_info, *graph.output)]
        types = {name: kind for name, kind in every if kind.elem_type}
        known = {name: types[name] for name in self.names if name in types}
        sizes = {name: _size(kind) for name, kind in known.items()}
        open_ = [name for name, size in sizes.items() if size is None]
        if open_:
            counting = onnx.ModelProto()
            counting.CopyFrom(self._model)
            del counting.graph.output[:]
            names = [f"{name}/size of it" for name in open_]
            nodes = (onnx.helper.make_node("Size", [one], [name]) for one, name in zip(open_, names, strict=True))
            counting.graph.node.extend(nodes)
            counting.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
            sizes |= zip(open_, run(bytes(counting.SerializeToString()), names), strict=True)
        total = sum((sizes[name] or 0) * _bytes(kind.elem_type) for name, kind in known.items())
        if total > LARGEST:
            msg = f"the values in the file take {total >> 20} MiB"
            raise TooLarge(msg)

    def serialized(self) -> bytes:
        """The model as a file would hold it; its external data is found from the original file's folder only."""
        return bytes(self._model.SerializeToString())

    def steps(self, values: Iterable[tuple[str, torch.Tensor]]) -> Iterator[Step]:
        """The steps of a run.

        Args:
            values: the names that are tensors, in the order of `names`, with what the run gave for them.
        """
        values = iter(values)
        pending = next(values, None)
        made_of: dict[str, tuple[str, ...]] = {}
        for node in self._nodes:
            inputs = tuple(dict.fromkeys(one for name in node.inputs for one in made_of.get(name, (name,))))
            outputs: dict[str, torch.Tensor] = {}
            for name in node.outputs:
                if pending is not None and pending[0] == name:
                    outputs[name] = pending[1]
                    pending = next(values, None)
                else:
                    # A sequence: who reads it, reads what it was made of.
                    made_of[name] = inputs
            if outputs:
                yield Step(node.operator, inputs, outputs, node.module, node.location)


def _size(kind: Any) -> int | None:
    """How many numbers a value of a type has; None where that depends on the input."""
    if not kind.HasField("shape") or not all(dim.HasField("dim_value") for dim in kind.shape.dim):
        return None
    return math.prod(int(dim.dim_value) for dim in kind.shape.dim)


def _bytes(kind: int) -> int:
    """The size of a number; texts count as long numbers."""
    import onnx  # noqa: PLC0415 - an extra

    return int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)


def _alive(graph: Any) -> list[Any]:
    """The nodes that an output depends on; the runtime leaves the others out."""
    needed = {one.name for one in graph.output}
    alive: list[Any] = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= {*node.input, *_captured(node)}
            alive.append(node)
    return alive[::-1]


def _is_constant(node: Any) -> bool:
    return node.op_type == "Constant" and node.domain in ("", "ai.onnx")


def _read(node: Any, modules: ModuleNames) -> _Node:
    metadata = {entry.key: entry.value for entry in node.metadata_props}
    operator = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
    inputs = tuple(dict.fromkeys(name for name in (*node.input, *_captured(node)) if name))
    outputs = tuple(name for name in node.output if name)
    return _Node(operator, inputs, outputs, modules.of_node(node.name, metadata), _location(metadata))


def _captured(node: Any) -> Iterator[str]:
    """The values around a node that its branches or its loop's body read."""
    for attribute in node.attribute:
        graphs = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
        for graph in graphs:
            inside = {one.name for one in (*graph.input, *graph.initializer)}
            inside |= {name for one in graph.node for name in one.output}
            read = [name for one in graph.node for name in (*one.input, *_captured(one))]
            # A branch may give out a value that stands outside, without any node.
            yield from (name for name in (*read, *(one.name for one in graph.output)) if name and name not in inside)


def _location(metadata: Mapping[str, str]) -> Location | None:
    """The user's line, from the Python stack that the exporter by torch.export writes."""
    frames = _FRAME.findall(metadata.get("pkg.torch.onnx.stack_trace", ""))
    return innermost((file, int(line)) for file, line in frames)


class ModuleNames:
    """Finds the user's submodules by what the exporters write about a node.

    Args:
        model: the user's module or function.
        wrapped: whether the exporter was given a module that holds the model as `model`.
    """

    def __init__(self, model: object, *, wrapped: bool = False) -> None:
        modules = dict(model.named_modules()) if isinstance(model, torch.nn.Module) else {}
        self._known = {name: _is_container(module) for name, module in modules.items() if name}
        self._wrapped = wrapped

    def of_node(self, name: str, metadata: Mapping[str, str]) -> str:
        """The qualified name of the submodule that a node belongs to; empty for the model itself, and if unknown.

        Args:
            name: the node's.
            metadata: its metadata.
        """
        scopes = metadata.get("pkg.torch.onnx.name_scopes")
        if scopes is not None:
            return self._innermost(_parsed(scopes)[:-1])
        if name.startswith("/"):
            parts = name.split("/")[1:-1]
            return self._along(parts[1:] if self._wrapped and parts[:1] == ["model"] else parts)
        return ""

    def _innermost(self, scopes: Collection[str]) -> str:
        """The last of the qualified names that is a submodule's."""
        return next((scope for scope in reversed(list(scopes)) if scope in self._known), "")

    def _along(self, parts: Iterable[str]) -> str:
        """The submodule that a path of names leads to, as far as it is clear.

        The legacy exporter names a node by the submodules whose call it stems from. Of each it writes the end of the
        qualified name that begins with the last part which is no number: `layer1`, then `layer1.0`. Lists and other
        containers, which are never called, are left out.
        """
        current = ""
        for part in parts:
            inside = f"{current}." if current else ""
            found = [name for name in self._known if name.startswith(inside) and _short(name) == part]
            if len(found) > 1:
                found = [name for name in found if self._through_containers(current, name)]
            if len(found) != 1:
                break
            current = found[0]
        return current

    def _through_containers(self, outer: str, inner: str) -> bool:
        """Whether only containers stand between two submodules."""
        steps = inner.split(".")[: -_short(inner).count(".") - 1]
        between = [".".join(steps[: index + 1]) for index in range(len(steps))]
        return all(self._known[name] for name in between if len(name) > len(outer))


def _is_container(module: torch.nn.Module) -> bool:
    # A script module's class has no forward that could be asked for.
    return getattr(type(module), "forward", None) is torch.nn.Module.forward


def _short(name: str) -> str:
    parts = name.split(".")
    first = next((index for index in reversed(range(len(parts))) if not parts[index].isnumeric()), 0)
    return ".".join(parts[first:])


def _parsed(text: str) -> list[str]:
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return []
    return [str(one) for one in found] if isinstance(found, list) else []
