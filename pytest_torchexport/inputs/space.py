"""The inputs that a search may try: what varies in a call (numbers, options, sizes), and calls made from it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.inputs.derive import derive, refit
from pytest_torchexport.inputs.limits import Limits, Numbers, can_move
from pytest_torchexport.inputs.options import LEFT_OUT, options, with_key, without_key
from pytest_torchexport.inputs.shapes import root_of
from pytest_torchexport.inputs.sizes import Sizes, Symbol
from pytest_torchexport.inputs.values import Want, as_numbers, can_vary, dense, dense_shape, generator, like
from pytest_torchexport.inputs.variables import Variable, Variables, below, nodes_of
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.call import Call, bind, positional_names, rebind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager


def _on_cpu() -> AbstractContextManager[object]:
    return torch.device("cpu")


@dataclass(eq=False)
class Space:
    """Everything that may be tried instead of the example.

    Paths name arguments and what is in them: `x`, `batch['ids']`, `boxes[0]`. A call that is made shares with the one
    it is made from whatever it does not change; its kind is `branch`.
    """

    model: Callable[..., Any]
    example: Call
    seed: int
    _sizes: Sizes
    _variables: Variables

    @classmethod
    def of(
        cls,
        model: Callable[..., Any],
        example: Call,
        declared: Mapping[str, Any] | None,
        dynamic_shapes: Mapping[str, Any] | None,
        *,
        seed: int,
    ) -> Space:
        """The space around the example.

        Args:
            model: the model whose `forward` names the arguments.
            example: the example call.
            declared: the user's domains, as `generate` takes them.
            dynamic_shapes: as `normalise` returns them; None if every shape is fixed.
            seed: the source of chance, of `wholes` alone.

        Raises:
            UsageError: a declared domain does not fit the example.
        """
        with _on_cpu():
            named = bind(model, example)
            sizes = Sizes.of(named, dynamic_shapes)
            scalars = {place.path for place in sizes.dimensions if place.index is None}
            variables = Variables.of(model, example, declared, seed, scalars)
        return cls(model, example, seed, sizes, variables)

    def __post_init__(self) -> None:
        passed = bind(self.model, self.example)
        self._defaults = {name: value for name, value in self._variables.named.items() if name not in passed}
        self._scalars = {place.path for place in self._sizes.dimensions if place.index is None}
        self._items = {path: item for item in self._variables.items for path in item.paths}
        self._whole = [path for path, item in self._items.items() if item.domain.whole]
        self._options = options(self.model, self.example, self._variables)
        self._limits: dict[str, Limits | None] = {}

    def named(self, call: Call) -> dict[str, Any]:
        """The call's arguments by name, with the defaults of those that only a declaration names."""
        return self._defaults | bind(self.model, call)

    def leaves(self, call: Call) -> dict[str, Any]:
        """Every leaf of the call by path; a tensor that stands in several places by its first one."""
        return {paths[0]: leaf for paths, leaf in self._leaves(self.named(call))}

    @staticmethod
    def _leaves(named: Mapping[str, Any]) -> list[tuple[list[str], Any]]:
        same: dict[int, tuple[list[str], Any]] = {}
        for name, value in named.items():
            for path, leaf in containers.leaves(value, name):
                key = id(leaf) if isinstance(leaf, torch.Tensor) else -len(same) - 1
                same.setdefault(key, ([], leaf))[0].append(path)
        return list(same.values())

    def is_whole(self, path: str) -> bool:
        """Whether the path lies in an argument whose domain is code, which gives it as a whole."""
        return any(below(path, above) for above in self._whole)

    # --- numbers ------------------------------------------------------------------------------------------------

    def numbers(self, call: Call) -> dict[str, Numbers]:
        """The numbers of the call that may vary, by the path of the leaf that holds them.

        Tensors that hold real numbers one by one, and Python numbers with a range. Left out are int arguments that
        are sizes, and arguments whose domain gives them as a whole.
        """
        with _on_cpu():
            found = {}
            drawn = self.sizes_of(call)
            for paths, leaf in self._leaves(self.named(call)):
                limits = self._limits_of(paths, leaf, drawn)
                if limits is not None:
                    value = leaf if isinstance(leaf, torch.Tensor) else _scalar(leaf)
                    plain = {one.name: getattr(limits, one.name) for one in fields(Limits)}
                    found[paths[0]] = Numbers(**plain, value=value)
            return found

    def _limits_of(self, paths: list[str], leaf: Any, drawn: Mapping[str, int]) -> Limits | None:
        if not can_move(leaf) or isinstance(leaf, enum.Enum):
            return None
        path = next((path for path in paths if path in self._items), paths[0])
        item = self._items.get(path)
        if item is not None and _kind(item.example) != _kind(leaf):
            item = None
        if path not in self._limits or item is None:
            self._limits[path] = self._read(path, leaf, item)
        limits = self._limits[path]
        if limits is None or item is None or item.largest is None or not drawn:
            return limits
        return limits.below(self._sizes.ceiling(drawn, item.largest))

    def _read(self, path: str, leaf: Any, item: Variable | None) -> Limits | None:
        if path in self._scalars or self.is_whole(path):
            return None
        if item is not None:
            span = item.domain.span(item.pattern)
            return None if span is None else Limits.of(item.example, span, declared=item.declared)
        domain = derive(leaf)
        span = None if domain is None else domain.span(dense(leaf) if isinstance(leaf, torch.Tensor) else leaf)
        return None if span is None else Limits.of(leaf, span, declared=False)

    def with_values(self, call: Call, values: Mapping[str, torch.Tensor], label: str) -> Call:
        """The call with other numbers, moved into the limits, rounded where they are whole ones.

        Dtype, device, layout, strides and `requires_grad` are the call's. A tensor that stands in two places still
        does.

        Args:
            call: the call to change.
            values: numbers of any dtype by path, each with the shape of what stands there, or one that expands to it.
            label: what is particular about the new call.
        """
        with _on_cpu(), torch.no_grad():
            drawn = self.sizes_of(call)
            at: dict[str, Any] = {}
            for paths, leaf in self._leaves(self.named(call)):
                path = next((path for path in paths if path in values), None)
                limits = None if path is None else self._limits_of(paths, leaf, drawn)
                if path is not None and limits is not None:
                    at.update(dict.fromkeys(paths, _written(leaf, values[path], limits)))
            return self._made(call, at, label)

    # --- options ------------------------------------------------------------------------------------------------

    def alternatives(self) -> dict[str, list[Any]]:
        """Other values than the example's of what takes a few, by path.

        Flags, enumerations, literals, `sampled_from`, small ranges of Python integers, None where an argument may be
        None, and `LEFT_OUT` where a dict may lack the key. An argument that the example leaves to its default counts,
        where its annotation or a declaration tells the values.
        """
        return {path: list(values) for path, values in self._options.items()}

    def with_alternative(self, call: Call, path: str, value: Any, label: str) -> Call:
        """The call with another value at the path, `LEFT_OUT` for none.

        An argument that the call does not pass is passed by keyword.
        """
        nodes = nodes_of(self.named(call))
        is_argument = "[" not in path and "." not in path
        if value is LEFT_OUT:
            if is_argument:
                return self._not_passed(call, path, label)
            return self._made(call, without_key(nodes, path), label)
        now = nodes.get(path, LEFT_OUT)
        if now is LEFT_OUT and is_argument:
            return rebind(self.model, call, bind(self.model, call) | {path: value}, "branch", label)
        if now is LEFT_OUT:
            return self._made(call, with_key(nodes, path, value, nodes_of(self.named(self.example))), label)
        if isinstance(now, torch.Tensor) and isinstance(value, torch.Tensor):
            return self._made(call, {place: value for place, part in nodes.items() if part is now}, label)
        return self._made(call, {path: value}, label)

    def _not_passed(self, call: Call, path: str, label: str) -> Call:
        kwargs = {name: value for name, value in call.kwargs.items() if name != path}
        args = call.args[:-1] if positional_names(self.model, call)[-1:] == [path] else call.args
        return Call(args, kwargs, "branch", label)

    # --- sizes --------------------------------------------------------------------------------------------------

    def sizes(self) -> dict[str, Symbol]:
        """The sizes that may vary, by symbol: `example`, `low`, `high`; those with the same `tied` belong together."""
        return dict(self._sizes.symbols)

    def size_of(self, path: str, dim: int) -> str | None:
        """The symbol that gives the dimension of a tensor, or an int argument (then `dim` does not matter)."""
        shape = self._sizes.shapes.get(path, ())
        for place in self._sizes.dimensions:
            if place.path == path and place.index in (None, dim % len(shape) if shape else None):
                return place.symbol
        return None

    def sizes_of(self, call: Call) -> dict[str, int]:
        """The value that each symbol has in the call; the example's where the call does not tell."""
        drawn = {name: symbol.example for name, symbol in self._sizes.symbols.items()}
        if not drawn:
            return drawn
        nodes = nodes_of(self.named(call))
        for place in self._sizes.dimensions:
            value = nodes.get(place.path)
            if isinstance(value, torch.Tensor) and place.index is not None and place.index < value.dim():
                size = value.shape[place.index]
            elif isinstance(value, int) and place.index is None:
                size = value
            else:
                continue
            if (root := root_of(place.entry, size)) is not None:
                drawn[place.symbol] = root[1]
        return drawn

    def resized(self, call: Call, sizes: Mapping[str, int], label: str) -> Call:
        """The call with other sizes: every tensor that follows them, its numbers kept as far as they go and repeated.

        Args:
            call: the call to change.
            sizes: sizes by symbol, brought within the symbol's limits and to what a tensor may hold; a symbol that is
                not named keeps the call's size.
            label: what is particular about the new call.
        """
        with _on_cpu(), torch.no_grad():
            before = self.sizes_of(call)
            asked = {
                name: min(max(size, self._sizes.symbols[name].low), self._sizes.symbols[name].high)
                for name, size in sizes.items()
                if name in before
            }
            drawn = self._sizes.shrunk(before | asked)
            at: dict[str, Any] = dict(self._sizes.scalars(drawn))
            for paths, leaf in self._leaves(self.named(call)):
                if can_vary(leaf) and not any(self.is_whole(path) for path in paths):
                    made = self._refitted(paths, leaf, drawn)
                    at.update({} if made is leaf else dict.fromkeys(paths, made))
            return self._made(call, at, label)

    def _refitted(self, paths: list[str], leaf: torch.Tensor, drawn: Mapping[str, int]) -> torch.Tensor:
        shape = list(leaf.shape)
        for place in self._sizes.dimensions:
            if place.path in paths and place.index is not None and place.index < len(shape):
                shape[place.index] = place.size(drawn[place.symbol])
        item = next((self._items[path] for path in paths if path in self._items), None)
        ceiling = None
        if item is not None and not item.declared and item.largest is not None:
            ceiling = self._sizes.ceiling(drawn, item.largest)
        if tuple(shape) == tuple(leaf.shape) and ceiling is None:
            return leaf
        numbers = refit(dense(leaf), dense_shape(leaf, tuple(shape)))
        if ceiling is not None and item is not None and item.largest is not None:
            # Indices of what became smaller; what lies beyond the example's largest was never one.
            known = as_numbers(numbers) <= item.largest
            numbers = torch.where(known, numbers.clamp(max=ceiling), numbers)
        if tuple(shape) == tuple(leaf.shape) and torch.equal(numbers, dense(leaf)):
            return leaf
        return like(leaf, numbers, tuple(shape))

    # --- arguments as a whole -----------------------------------------------------------------------------------

    def wholes(self, key: object, n: int, call: Call | None = None) -> Iterator[Call]:
        """Calls with other values of the arguments whose domain is code, a function or a strategy; none without one.

        Args:
            key: which draws, the same for the same key, seed and order of calls.
            n: how many.
            call: the call that lends the other arguments; the example by default.
        """
        code = [item for item in self._variables.items if item.domain.whole and not item.domain.listed(item.pattern)]
        for index in range(n if code else 0):
            with _on_cpu():
                at: dict[str, Any] = {}
                for item in code:
                    want = Want((), generator(self.seed, "wholes", key, index, item.name))
                    at[item.name] = item.fit(item.domain.random(item.example, want))
                made = self._made(call or self.example, at, f"{', '.join(at)} drawn")
            yield made

    # --- calls --------------------------------------------------------------------------------------------------

    def _made(self, call: Call, at: Mapping[str, Any], label: str) -> Call:
        named = {}
        passed = bind(self.model, call)
        for name, value in (self._defaults | passed).items():
            made = containers.replace(value, at, name)
            if name in passed or made is not value:
                named[name] = made
        return rebind(self.model, call, named, "branch", label)


def _written(leaf: Any, values: Any, limits: Limits) -> Any:
    """The leaf with other numbers."""
    if not isinstance(leaf, torch.Tensor):
        return type(leaf)(limits.fit(torch.as_tensor(values).detach().cpu().reshape(()), _scalar(leaf)).item())
    given = torch.as_tensor(values).detach().cpu().expand(leaf.shape)
    if leaf.numel():  # of an expanded tensor one copy of each number, as `dense` has it
        given = given[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in leaf.stride())]
    return like(leaf, limits.fit(given.contiguous(), dense(leaf)), tuple(leaf.shape))


def _scalar(value: Any) -> torch.Tensor:
    kind = torch.bool if isinstance(value, bool) else torch.int64 if isinstance(value, int) else torch.float64
    return torch.tensor(value, dtype=kind)


def _kind(value: Any) -> Any:
    """What has to be the same for limits to hold: dtype and device of a tensor, the type of the rest."""
    return (value.dtype, value.device) if isinstance(value, torch.Tensor) else type(value)
