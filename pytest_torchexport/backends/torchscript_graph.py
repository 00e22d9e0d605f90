"""A TorchScript program as one graph, in which every node still knows the submodule and the line that it comes from.

`inlined_graph` is one graph as well, but it forgets both: which submodule a method was called on, and the caller's line
for what runs inside of torch.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.subject.source import is_users, locate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_torchexport.outcome import Location

_TRACER = re.compile(r"[\\/]torch[\\/]jit[\\/]_trace\.py$")


@dataclass(frozen=True)
class Origin:
    """Where a node comes from: the submodule by its qualified name in the program, and the user's line if known."""

    module: str = ""
    location: Location | None = None


class FlatGraph:
    """A copy of a program's graph without calls, so that every operator stands in it.

    Args:
        loaded: a `ScriptModule` or a `ScriptFunction`; it stays as it is.

    Attributes:
        graph: the copy. A module's graph takes the module as its first input.
    """

    def __init__(self, loaded: Any) -> None:
        self._module: Any = loaded._c if isinstance(loaded, torch.jit.ScriptModule) else None
        program = loaded if self._module is None else self._module._get_method("forward")
        self.graph: Any = program.graph.copy()
        self._self = None if self._module is None else next(self.graph.inputs()).unique()
        self._origins: dict[int, Origin] = {}
        self._marks: dict[int, Origin | None] = {}
        self._visit(self.graph.nodes(), Origin())
        if self._marks:
            torch._C._jit_pass_inline(self.graph)
            self._name_inlined(self.graph.nodes(), [])
        # As a run would: what nothing depends on is not computed.
        torch._C._jit_pass_dce(self.graph)

    def origin(self, node: Any) -> Origin:
        """Where a node of the graph comes from."""
        return next((self._origins[one.unique()] for one in node.outputs() if one.unique() in self._origins), Origin())

    def path(self, value: Any) -> str | None:
        """The qualified name of a value that is read from the program's module: `layer1.conv.weight`; None for others.

        The module itself has the empty name.
        """
        names: list[str] = []
        while value.node().kind() == "prim::GetAttr":
            names.append(value.node().s("name"))
            value = value.node().inputsAt(0)
        return ".".join(reversed(names)) if value.unique() == self._self else None

    def _visit(self, nodes: Iterable[Any], caller: Origin) -> None:
        """Note the origin of each node, and put the methods of submodules in the place of their calls."""
        for node in list(nodes):
            origin = Origin(caller.module, location(node) or caller.location)
            method = self._method(node) if node.kind() == "prim::CallMethod" else None
            if method is not None:
                path, graph = method
                self._visit(self._splice(node, graph), Origin(path, origin.location))
                continue
            self._origins.update((one.unique(), origin) for one in node.outputs())
            if node.kind() in ("prim::CallMethod", "prim::CallFunction"):
                self._mark(node, origin)
            for block in node.blocks():
                self._visit(block.nodes(), caller)

    def _method(self, call: Any) -> tuple[str, Any] | None:
        """The submodule's name and the graph of the method that is called on it; None for another object's method."""
        owner = call.inputsAt(0)
        path = self.path(owner)
        if path is None or owner.type().kind() != "ClassType":
            return None
        module = self._module
        for name in path.split(".") if path else ():
            module = module.getattr(name)
        return path, module._get_method(call.s("name")).graph

    def _splice(self, call: Any, callee: Any) -> list[Any]:
        """Put a graph's nodes in the place of a call, and return them in their order."""
        with self.graph.insert_point_guard(call):
            results = self.graph.insertGraph(callee, list(call.inputs()))
        for old, new in zip(call.outputs(), results, strict=True):
            old.replaceAllUsesWith(new)
        nodes: list[Any] = []
        before = call
        for _ in callee.nodes():
            before = before.prev()
            nodes.append(before)
        call.destroy()
        return nodes[::-1]

    def _mark(self, call: Any, origin: Origin) -> None:
        """Enclose a call of a function in two constants: torch inlines it, and they tell its nodes from others."""
        with self.graph.insert_point_guard(call):
            first = self.graph.insertConstant(0)
            second = self.graph.insertConstant(0)
        second.node().moveAfter(call)
        self._marks |= {first.unique(): origin, second.unique(): None}

    def _name_inlined(self, nodes: Iterable[Any], callers: list[Origin]) -> None:
        """Give the nodes of inlined functions the module of the call; the line, too, where they have none."""
        for node in nodes:
            unique = next((one.unique() for one in node.outputs()), None)
            if unique in self._marks:
                origin = self._marks[unique]
                callers = callers[:-1] if origin is None else [*callers, origin]
            elif callers:
                own = Origin(callers[-1].module, location(node) or callers[-1].location)
                for one in node.outputs():
                    # A call that could not be inlined has kept its own.
                    self._origins.setdefault(one.unique(), own)
            for block in node.blocks():
                self._name_inlined(block.nodes(), callers)


def location(node: Any) -> Location | None:
    """The user's line that a node was traced from or compiled from; None where it is none of the user's.

    A trace holds the stack of Python frames, innermost first; a compiled program the line of the source alone.
    """
    lines = node.sourceRange().splitlines()
    compiled = re.match(r'\s+File "(.+)", line (\d+)$', lines[0]) if lines else None
    if compiled is not None:
        return locate(compiled[1], int(compiled[2])) if is_users(compiled[1]) else None
    frames = itertools.takewhile(bool, (re.match(r"(\S.*)\((\d+)\): ", line) for line in lines))
    for frame in frames:
        if frame is None or _TRACER.search(frame[1]):
            # What lies outside is the test that exports, not the model.
            return None
        if is_users(frame[1]):
            return locate(frame[1], int(frame[2]))
    return None
