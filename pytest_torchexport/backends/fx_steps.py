"""A graph of torch.fx as the steps of a program: run node by node, each with its place in the user's model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from pytest_torchexport.backends.base import Step
from pytest_torchexport.subject import source

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pytest_torchexport.outcome import Location

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def location_of(node: fx.Node) -> Location | None:
    """The user's innermost line behind a node, where its stack trace names one."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    return source.innermost((file, int(line)) for file, line in frames)


def module_of(node: fx.Node, prefix: str = "") -> str:
    """The submodule that a node belongs to, by its name in the user's model; empty for the model's own forward.

    Args:
        node: of a graph that torch.export or Dynamo captured.
        prefix: what stands in front of the user's names, without the dot.
    """
    stack = node.meta.get("nn_module_stack") or {}
    innermost = next(reversed(stack.values()), ("",))
    path = _plain(innermost[0] if isinstance(innermost, tuple) else str(innermost))
    if prefix:
        path = "" if path == prefix else path.removeprefix(f"{prefix}.")
    return path


def _plain(path: str) -> str:
    """`L['self'].blocks[0].norm@1`, as Dynamo spells it, is `blocks.0.norm`."""
    path = re.sub(r"^L\['?self'?\]\.?|@\d+", "", path)
    path = re.sub(r"\[['\"]?([^'\"\]]+)['\"]?\]", r".\1", path)
    return path.replace("_modules.", "").strip(".")


def interpret(graph: fx.GraphModule, leaves: Iterable[Any], *, prefix: str = "") -> Iterator[Step]:
    """Run a graph node by node.

    What a step computed is to be read before the next one runs: that may write to it in place.

    Args:
        graph: of a module without submodules of its own, other than those that its operators take.
        leaves: values of the placeholders, in order.
        prefix: what stands in front of the user's names of modules, without the dot.

    Returns:
        A step for each operator; operators that only check something are left out. One that writes in place gives all
        values in that memory anew.
    """
    interpreter = fx.Interpreter(graph, garbage_collect_values=False)
    interpreter.args_iter = iter(leaves)
    last = {used: node for node in graph.graph.nodes for used in node.all_input_nodes}
    dying: dict[fx.Node, list[fx.Node]] = {}
    for used, node in last.items():
        dying.setdefault(node, []).append(used)
    parts: dict[str, tuple[str, ...]] = {}
    for node in graph.graph.nodes:
        if node.op == "output":
            return
        if node.name == "_guards_fn":
            continue
        written = written_by(node, interpreter.env)
        value = interpreter.run_node(node)
        interpreter.env[node] = value
        if node.op.startswith("call_"):
            outputs = named_outputs(node.name, value)
            parts[node.name] = tuple(outputs)
            for used, known in interpreter.env.items() if written else ():
                named = named_outputs(used.name, known)
                outputs |= {name: tensor for name, tensor in named.items() if memory_of(tensor) in written}
            inputs = dict.fromkeys(name for used in node.all_input_nodes for name in parts.get(used.name, (used.name,)))
            yield Step(spell(node), tuple(inputs), outputs, module_of(node, prefix), location_of(node))
        for used in dying.get(node, ()):
            interpreter.env.pop(used, None)


def written_by(node: fx.Node, env: Mapping[fx.Node, Any]) -> set[int]:
    """The memory that an operator writes to: all values in it are its results too, by the names that they have.

    Args:
        node: the operator.
        env: the values of the nodes before it, or examples of them.
    """
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        named = [*zip((a.name for a in schema.arguments), node.args, strict=False), *node.kwargs.items()]
        writes = {a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write}
        chosen = [part for name, part in named if name in writes]
    else:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        changes = (name.endswith("_") and not name.endswith("__")) or name in ("setitem", "iadd", "imul", "isub")
        chosen = list(node.args[:1]) if changes else []
    found: set[int] = set()
    for used in (part for one in chosen for part in (one if isinstance(one, (list, tuple)) else [one])):
        if isinstance(used, fx.Node) and used in env:
            found |= {memory_of(tensor) for tensor in named_outputs(used.name, env[used]).values()}
    return found


def memory_of(tensor: torch.Tensor) -> int:
    """What tensors have in common that share memory; of fake ones too, which have no address."""
    return int(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else id(tensor)


def spell(node: fx.Node) -> str:
    """An operator as graphs spell it: `aten.mul.Tensor`, `torch.nn.functional.relu`, `Tensor.view`."""
    if isinstance(node.target, str):
        return f"Tensor.{node.target}" if node.op == "call_method" else node.target
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    name = getattr(node.target, "__name__", str(node.target))
    module = getattr(node.target, "__module__", None) or ""
    return f"{module}.{name}".removeprefix("_operator.").removeprefix("torch._C._nn.").strip(".")


def named_outputs(name: str, value: Any) -> dict[str, torch.Tensor]:
    """The tensors of a node's value; those of a tuple share the node's name, with their places behind it."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    if isinstance(value, (list, tuple)):
        return {
            key: tensor
            for place, part in enumerate(value)
            for key, tensor in named_outputs(f"{name}.{place}", part).items()
        }
    return {}
