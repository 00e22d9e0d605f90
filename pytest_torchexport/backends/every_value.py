"""A graph that gives every value in it: what compiled code computes inside, seen from outside."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from pytest_torchexport.backends.base import LARGEST, Step, TooLarge
from pytest_torchexport.backends.fx_steps import location_of, memory_of, module_of, named_outputs, spell, written_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_torchexport.outcome import Location


@dataclass(frozen=True)
class Listed:
    """An operator of the graph before it was changed, and the further outputs that are its results.

    Attributes:
        operator: as the graph spells it.
        inputs: names of what it reads.
        names: names of its results, in the order of the further outputs.
        module: the submodule.
        location: the user's line.
    """

    operator: str
    inputs: tuple[str, ...]
    names: tuple[str, ...]
    module: str
    location: Location | None


def flat(module: torch.nn.Module) -> fx.GraphModule:
    """The module that torch.export makes of a program, from the leaves of its arguments to those of its output.

    Its checks of the arguments are left out.
    """
    assert isinstance(module, fx.GraphModule)
    plain = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node.name != "_guards_fn":
            copied[node] = plain.node_copy(node, copied.__getitem__)
    return fx.GraphModule(module, plain)


def give_every_value(graph: fx.GraphModule, prefix: str = "") -> tuple[int, list[Listed]]:
    """Make every tensor of a graph one more output, behind its own outputs.

    A value is copied where it stands if the graph writes anything in place: an output that is written to later would
    be given as it is at the end. What an operator writes are results of it, by all names that this memory has.

    Args:
        graph: captured by Dynamo or torch.export, with examples of its values; it is changed.
        prefix: what stands in front of the user's names of modules, without the dot.

    Returns:
        The number of its own outputs, and its operators in the order in which they run.

    Raises:
        TooLarge: the values do not fit into the memory that may be used.
    """
    nodes = list(graph.graph.nodes)
    examples = {node: example for node in nodes if (example := _example(node)) is not None}
    written = {node: written_by(node, examples) for node in nodes}
    copies = any(written.values())
    (end,) = [node for node in nodes if node.op == "output"]
    _check_size([examples[node] for node in nodes if node.op.startswith("call_") and node in examples])
    listed: list[Listed] = []
    further: list[fx.Node] = []
    known: list[fx.Node] = []
    for node in nodes:
        if node.op.startswith("call_") and node.name != "_guards_fn":
            results = [node] if isinstance(examples.get(node), torch.Tensor) else []
            results += [
                other
                for other in (known if written[node] else ())
                if isinstance(examples[other], torch.Tensor) and memory_of(examples[other]) in written[node]
            ]
            names = tuple(other.name for other in results)
            from_ = _whole(node, examples)
            inputs = tuple(used.name for used in from_.all_input_nodes)
            listed.append(Listed(spell(from_), inputs, names, module_of(from_, prefix), location_of(from_)))
            further += _copies(graph.graph, node, results) if copies else results
        if node in examples:
            known.append(node)
    (outputs,) = end.args
    own = tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)
    end.args = ((*own, *further),)
    graph.recompile()
    return len(own), listed


def steps_of(listed: Sequence[Listed], values: Sequence[torch.Tensor], prefix: str = "") -> Iterator[Step]:
    """The operators with their values.

    Args:
        listed: of a graph.
        values: its further outputs, in one run.
        prefix: put in front of all names.
    """
    left = iter(values)
    for one in listed:
        outputs = {prefix + name: next(left) for name in one.names}
        yield Step(one.operator, tuple(prefix + name for name in one.inputs), outputs, one.module, one.location)


class Listing:
    """A Dynamo backend around another one, which has the compiled graphs give every value in them."""

    def __init__(self, compiler: Callable[..., Any]) -> None:
        self.__name__ = "listing"
        self.compiler = compiler
        self._steps: list[Step] = []
        self._graphs = 0

    def taken(self) -> list[Step]:
        """The steps of what ran since the last time."""
        taken, self._steps = self._steps, []
        return taken

    def __call__(self, graph: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        """Compile a graph that gives every value, for callers that want its own outputs."""
        own, listed = give_every_value(graph)
        compiled = self.compiler(graph, inputs)
        self._graphs += 1
        prefix = f"{self._graphs}." if self._graphs > 1 else ""

        def run(*args: Any) -> Any:
            values = compiled(*args)
            self._steps += steps_of(listed, values[own:], prefix)
            return values[:own]

        return run


def _example(node: fx.Node) -> Any:
    value = node.meta.get("example_value", node.meta.get("val"))
    return value if named_outputs(node.name, value) else None


def _whole(node: fx.Node, examples: dict[fx.Node, Any]) -> fx.Node:
    """The operator behind a node that only takes a part out of its results."""
    while node.target is operator.getitem:
        (first, *_) = node.args
        if not isinstance(first, fx.Node) or isinstance(examples.get(first), torch.Tensor):
            break
        node = first
    return node


def _copies(graph: fx.Graph, node: fx.Node, results: Sequence[fx.Node]) -> list[fx.Node]:
    made = []
    after = node
    for result in results:
        with graph.inserting_after(after):
            after = graph.call_function(torch.clone, (result,))
        made.append(after)
    return made


def _check_size(examples: Sequence[Any]) -> None:
    total = 0
    for example in examples:
        for tensor in named_outputs("", example).values():
            total += tensor.element_size() * _count(tensor)
    if total > LARGEST:
        msg = f"the values in the graph take {total >> 20} MiB"
        raise TooLarge(msg)


def _count(tensor: torch.Tensor) -> int:
    count = 1
    sizes: list[Any] = list(tensor.shape)  # ints, or symbols that have an example
    for size in sizes:
        count *= size if isinstance(size, int) else int(size.node.hint or 1)
    return count
