"""A TorchScript program that tells what each of its operators computes: in one run, inside of branches and loops too.

Outputs cannot do that: what a branch or a loop computes does not leave it, and what an operator computed may be
overwritten in place by a later one. So a copy of the program's graph gets a list, and after every operator a node that
appends a copy of its result. The list comes out in the order of the run, and it is read against the graph: which
operator that was, and what the values that it read were called at that time.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.backends.base import LARGEST, Step, TooLarge
from pytest_torchexport.backends.torchscript_graph import FlatGraph
from pytest_torchexport.backends.torchscript_values import Reads, is_handed_on, is_list, is_tensor, writes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# What is put behind an operator. `ids` gets a number for each tensor that `log` gets; it begins with how many numbers
# the tensors of the run have. When these are too many, no more of them are kept.
_KEEP = """
      %none : NoneType = prim::Constant()
      %first : int = prim::Constant[value=0]()
      %before : int = aten::__getitem__(%ids, %first)
      %count : int = aten::numel(%some)
      %total : int = aten::add(%before, %count)
      %0 : int[] = aten::_set_item(%ids, %first, %total)
      %most : int = prim::Constant[value=MOST]()
      %fits : bool = aten::le(%total, %most)
      prim::If(%fits)
        block0():
          %copy : Tensor = aten::clone(%some, %none)
          %1 : Tensor[] = aten::append(%log, %copy)
          %2 : int[] = aten::append(%ids, %id)
          -> ()
        block1():
          -> ()
"""
# A tensor may be none at all: an operator that has nothing to say gives an undefined one.
_TENSOR = f"""
graph(%log : Tensor[], %ids : int[], %id : int, %value : Tensor?):
  %nothing : NoneType = prim::Constant()
  %given : bool = aten::__isnot__(%value, %nothing)
  prim::If(%given)
    block0():
      %some : Tensor = prim::unchecked_cast(%value){_KEEP}      -> ()
    block1():
      -> ()
  return ()
"""
_LIST = f"""
graph(%log : Tensor[], %ids : int[], %id : int, %value : Tensor[]):
  %true : bool = prim::Constant[value=1]()
  %length : int = aten::len(%value)
  prim::Loop(%length, %true)
    block0(%index : int):
      %some : Tensor = aten::__getitem__(%value, %index){_KEEP}      -> (%true)
  return ()
"""
_BEGIN = """
graph(%log : Tensor[], %ids : int[], %id : int):
  %1 : int[] = aten::append(%ids, %id)
  return ()
"""


_NUMBER = 4
"""Bytes of a number, as a rule."""


@functools.cache
def _recorder(text: str, most: int) -> Any:
    return torch._C.parse_ir(text.replace("MOST", str(most)))


@dataclass
class _Site:
    """A place of the graph that says when it has run.

    Attributes:
        node: the operator; the loop, where this is the beginning of its body.
        reads: the values that it computes its results from.
        values: those of its results that are recorded.
        attribute: name of the module's attribute that it sets.
    """

    node: Any
    reads: list[Any]
    values: list[Any] = field(default_factory=list)
    attribute: str | None = None


def steps(
    loaded: Any,
    call: Callable[[Callable[..., Any]], Any],
    *,
    owner: str = "",
) -> Iterator[Step]:
    """Run a program once and give what its operators compute.

    The run itself is over when this returns; what it changes in the program's state is the caller's to undo.

    Args:
        loaded: a `ScriptModule` or a `ScriptFunction`.
        call: calls what it is given as it calls the program.
        owner: name of the submodule that is the user's model.

    Returns:
        The steps in the order of the run, values on the program's device.

    Raises:
        TooLarge: together the values take more memory than may be used.
    """
    recording = _Recording(FlatGraph(loaded))
    function = torch._C._create_function_from_graph("steps", recording.flat.graph)
    module = [loaded] if isinstance(loaded, torch.jit.ScriptModule) else []
    schema = loaded.forward.schema if module else loaded.schema
    names = [argument.name for argument in schema.arguments][len(module) :]
    defaults = {one.name: one.default_value for one in schema.arguments if one.has_default_value()}
    kept: list[Any] = []

    def run(*args: Any, **kwargs: Any) -> None:
        named = defaults | kwargs | dict(zip(names, args, strict=False))
        # As written: torch would fuse operators and fold constants, which is not the program's own doing.
        with torch.jit.optimized_execution(should_optimize=False):  # type: ignore[attr-defined]
            kept.extend(function(*module, *(named[name] for name in names)))

    call(run)
    tensors, (total, *ids) = kept
    if total > LARGEST // _NUMBER:
        msg = f"the values in the program take {total * _NUMBER >> 20} MiB"
        raise TooLarge(msg)
    return recording.read(tensors, ids, owner)


class _Recording:
    """A graph with a recorder behind every operator.

    Args:
        flat: the graph; it is changed.
    """

    def __init__(self, flat: FlatGraph) -> None:
        self.flat = flat
        self._graph = flat.graph
        self._sites: list[_Site] = []
        self._values: list[tuple[str, int]] = []
        self._reads = Reads(flat)
        self._log = self._new_list(torch._C.ListType.ofTensors())
        self._ids = self._new_list(torch._C.ListType.ofInts())
        with self._graph.insert_point_guard(self._ids.node()):
            self._ids.node().addInput(self._graph.insertConstant(0))
        self._protect_constants()
        self._visit(self._graph)
        for _ in list(self._graph.outputs()):
            self._graph.eraseOutput(0)
        self._graph.registerOutput(self._log)
        self._graph.registerOutput(self._ids)
        self._graph.makeMultiOutputIntoTuple()

    def _protect_constants(self) -> None:
        """Give the graph constants of its own where it may write to them: a copied graph shares their memory."""
        for node in self._graph.findAllNodes("prim::Constant"):
            if node.hasAttribute("value") and node.kindOf("value") == "t" and self._reads.may_change(node.output()):
                node.t_("value", node.t("value").clone())

    def _new_list(self, kind: Any) -> Any:
        node = self._graph.create("prim::ListConstruct", [], 1)
        node.output().setType(kind)
        self._graph.prependNode(node)
        return node.output()

    def _visit(self, block: Any) -> None:
        """Record the operators of a block, and of the blocks in it."""
        own = {self._log.node(), self._ids.node(), self._ids.node().inputsAt(0).node()}
        nodes = [node for node in block.nodes() if node not in own]
        last = self._graph.return_node() if block is self._graph else block
        for node, end in zip(nodes, [*nodes[1:], last], strict=False):
            for inner in node.blocks():
                first = next(iter(inner.nodes()), inner)
                self._visit(inner)
                if node.kind() == "prim::Loop":
                    self._record_iteration(node, inner, first)
            site = self._site(node)
            if site is not None:
                self._insert(site, end)

    def _record_iteration(self, loop: Any, body: Any, first: Any) -> None:
        values = [one for one in list(body.inputs())[1:] if is_tensor(one) and not self._reads.may_be_nothing(one)]
        if values:
            # What a parameter is: at first what the loop was given, then what its last iteration has left.
            reads = [one for value in values for one in self._reads.definition(value)]
            self._insert(_Site(loop, reads, values), first)

    def _site(self, node: Any) -> _Site | None:
        kind = node.kind()
        if kind in ("prim::Constant", "prim::GetAttr", "prim::Uninitialized"):
            return None
        if kind == "prim::SetAttr":
            owner, value = node.inputs()
            path = self.flat.path(owner)
            name = None if path is None else f"{path}.{node.s('name')}".lstrip(".")
            return _Site(node, [value], attribute=name)
        if kind in ("prim::If", "prim::Loop"):
            values = [one for one in node.outputs() if is_tensor(one) and not self._reads.may_be_nothing(one)]
            reads = [one for value in values for one in self._reads.definition(value)]
            return _Site(node, reads, values) if values else None
        written = writes(node)
        if is_handed_on(node):
            return _Site(node, list(node.inputs())) if written else None
        values = [one for one in node.outputs() if is_tensor(one) or is_list(one)]
        return _Site(node, list(node.inputs()), values) if values or written else None

    def _insert(self, site: _Site, before: Any) -> None:
        """Put recorders in front of a node, or at the end of a block."""
        self._sites.append(site)
        with self._graph.insert_point_guard(before):
            mark = self._graph.insertConstant(-len(self._sites))
            self._graph.insertGraph(_recorder(_BEGIN, 0), [self._log, self._ids, mark])
            for value in site.values:
                number = self._graph.insertConstant(len(self._values))
                self._values.append((value.debugName(), value.unique()))
                recorder = _recorder(_LIST if is_list(value) else _TENSOR, LARGEST // _NUMBER)
                self._graph.insertGraph(recorder, [self._log, self._ids, number, value])

    def read(self, tensors: list[Any], ids: list[int], owner: str) -> Iterator[Step]:
        """The steps, from what the lists hold after a run.

        Args:
            tensors: the recorded values; emptied on the way.
            ids: what was recorded: a site, as the negative of its number, then the numbers of its values.
            owner: name of the submodule that is the user's model.
        """
        tensors.reverse()
        used: dict[str, int] = {}
        for site, numbers in _runs(ids):
            one = self._sites[-site - 1]
            inputs = self._reads.names(one.reads)
            outputs: dict[str, torch.Tensor] = {}
            names: dict[int, list[str]] = {}
            for number in numbers:
                name, unique = self._values[number]
                if is_list(next(value for value in one.values if value.unique() == unique)):
                    name = f"{name}[{len(names.get(unique, ()))}]"
                used[name] = used.get(name, 0) + 1
                name = name if used[name] == 1 else f"{name}#{used[name]}"
                names.setdefault(unique, []).append(name)
                outputs[name] = _plain(tensors.pop())
            self._reads.note(one.node, names, inputs, one.attribute)
            if outputs:
                origin = self.flat.origin(one.node)
                module = origin.module.removeprefix(owner).removeprefix(".") if owner else origin.module
                yield Step(one.node.kind(), inputs, outputs, module, origin.location)


def _runs(ids: Iterable[int]) -> Iterator[tuple[int, list[int]]]:
    """What was recorded, by site."""
    site, numbers = 0, list[int]()
    for one in ids:
        if one < 0:
            if site:
                yield site, numbers
            site, numbers = one, []
        else:
            numbers.append(one)
    if site:
        yield site, numbers


def _plain(value: torch.Tensor) -> torch.Tensor:
    """The value as others can compare it: with numbers that have a place each."""
    value = value.detach()
    if value.is_nested:
        return value.to_padded_tensor(0)
    if value.is_quantized:
        return value.dequantize()
    return value if value.layout is torch.strided else value.to_dense()
