"""Sizes drawn for the dimensions that vary: one for each symbol, so that equal `Dim`s stay equal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.inputs.shapes import Varying, varying

if TYPE_CHECKING:
    from pytest_torchexport.inputs.values import Want

Drawn = Mapping[str, int]
"""A value for every symbol."""

_GROWTH = 4
_FREE_ELEMENTS = 4096
"""A tensor may grow to four times the example's elements, or to this many: enough to see that a size is not fixed."""

_UNBOUNDED = 64
"""Where nothing bounds a small size."""


@dataclass(frozen=True)
class Symbol:
    """A size that may be drawn from `low` to `high`; hints with the same example size are `tied` to one another."""

    name: str
    example: int
    low: int
    high: int
    tied: str

    def particular(self) -> list[int | None]:
        """Sizes with something particular about them, the most telling first: the same kinds for every symbol.

        None where it has no size of the kind: it would lie outside the bounds, or it is the example's own.
        """
        example = self.example
        prime = next(n for n in range(example + 2, 4 * example + 8) if _is_prime(n))
        wanted = [self.low, self.high, example + 1, prime, 2, 2 * example, example - 1, example // 2, 3]
        return [n if self.low <= n <= self.high and n != example else None for n in wanted]

    def draw(self, want: Want) -> int:
        """A size: the example's, one near it, a multiple of its largest power of two, or a candidate."""
        way = want.below(8)
        if way == 0:
            return self.example
        if way == 1 and (special := sorted({size for size in self.particular() if size is not None})):
            return special[want.below(len(special))]
        grain = self.example & -self.example if self.example else 1
        if way <= 4 and grain >= 4:  # strided layers take only multiples
            first, last = math.ceil(self.low / grain), self.high // grain
            if first <= last:
                return grain * (first + want.below(last - first + 1))
        high = min(self.high, max(self.low, 2 * self.example + 4))
        return self.low + want.below(high - self.low + 1)


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


@dataclass
class Sizes:
    """The varying sizes of one example."""

    dimensions: list[Varying] = field(default_factory=list)
    symbols: dict[str, Symbol] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, named: Mapping[str, Any], normalised: Mapping[str, Any] | None) -> Sizes:
        """Read the sizes from the example's arguments and their normalised `dynamic_shapes`."""
        sizes = cls()
        found = varying(named, normalised) if normalised else []
        roots: dict[str, tuple[int, int | None, int]] = {}
        for place, leaf in found:
            bounds = _bounds(place, leaf)
            if bounds is None:
                continue
            sizes.dimensions.append(place)
            if isinstance(leaf, torch.Tensor):
                sizes.shapes[place.path] = tuple(leaf.shape)
            low, high, example = bounds
            known = roots.get(place.symbol, bounds)
            ceilings = [bound for bound in (high, known[1]) if bound is not None]
            roots[place.symbol] = (max(low, known[0]), min(ceilings, default=None), example)
        hints = {place.symbol for place in sizes.dimensions if not hasattr(place.entry, "__name__")}
        for name, (low, high, example) in roots.items():
            tied = f"size {example}" if name in hints else name
            sizes.symbols[name] = sizes._capped(Symbol(name, example, min(low, example), high or 0, tied), high)
        return sizes

    def _capped(self, symbol: Symbol, declared: int | None) -> Symbol:
        """The symbol with a highest value that keeps every tensor to an acceptable amount of work."""
        high = max(_GROWTH * symbol.example, _UNBOUNDED)
        high = high if declared is None else min(high, declared) if declared > _FREE_ELEMENTS else declared
        example = {symbol.name: symbol.example}
        while high > symbol.example and self._too_large(example | {symbol.name: high}):
            high = (high + symbol.example) // 2
        return Symbol(symbol.name, symbol.example, symbol.low, max(high, symbol.example), symbol.tied)

    def shape(self, path: str, drawn: Drawn) -> tuple[int, ...] | None:
        """The shape of the tensor at the path; None if it does not vary."""
        if path not in self.shapes:
            return None
        shape = list(self.shapes[path])
        for place in self.dimensions:
            if place.path == path and place.index is not None and place.symbol in drawn:
                shape[place.index] = place.size(drawn[place.symbol])
        return tuple(shape)

    def scalars(self, drawn: Drawn) -> dict[str, int]:
        """The values of the int arguments that vary, by path."""
        return {p.path: p.size(drawn[p.symbol]) for p in self.dimensions if p.index is None and p.symbol in drawn}

    def ceiling(self, drawn: Drawn, largest: int) -> int | None:
        """The largest integer that is still valid where integers up to `largest` may be indices or lengths.

        An index beyond a dimension that became smaller ends a CUDA process, it does not raise.
        """
        limits = []
        for place in self.dimensions:
            if place.index is None or place.symbol not in drawn:
                continue
            before, now = self.shapes[place.path][place.index], place.size(drawn[place.symbol])
            if now < before and largest <= before:
                limits.append(now if largest == before else max(now - 1, 0))
        return min(limits, default=None)

    def _too_large(self, drawn: Drawn) -> bool:
        for path, example in self.shapes.items():
            shape = self.shape(path, drawn)
            if shape is not None and math.prod(shape) > max(_GROWTH * math.prod(example), _FREE_ELEMENTS):
                return True
        return False

    def shrunk(self, drawn: dict[str, int]) -> dict[str, int]:
        """The sizes, the largest ones halved towards the example's until no tensor is too large."""
        while self._too_large(drawn):
            name = max(drawn, key=lambda key: drawn[key] / max(self.symbols[key].example, 1))
            symbol, value = self.symbols[name], drawn[name]
            if value <= symbol.example:
                break
            drawn[name] = max(symbol.example, value // 2)
            equal = [
                other for other, size in drawn.items() if size == value and self.symbols[other].tied == symbol.tied
            ]
            drawn.update(dict.fromkeys(equal, drawn[name]))  # what was equal stays equal
        return drawn

    def specials(self) -> Iterator[tuple[str, dict[str, int]]]:
        """Particular sizes: of all symbols together, then of one at a time.

        Where all together would make a tensor too large, one at a time comes at once, so that each reaches its bound.
        """
        seen = [{name: symbol.example for name, symbol in self.symbols.items()}]
        for drawn in self._particular():
            if drawn not in seen:
                seen.append(drawn)
                yield self.label(drawn), drawn

    def _particular(self) -> Iterator[dict[str, int]]:
        example = {name: symbol.example for name, symbol in self.symbols.items()}
        kinds = [
            {name: size for name, size in zip(self.symbols, sizes, strict=True) if size is not None}
            for sizes in zip(*(symbol.particular() for symbol in self.symbols.values()), strict=True)
        ]
        for together in kinds:
            fits = not self._too_large(example | together)
            for sizes in [together] if fits else self._alone(together):
                yield self.shrunk(example | sizes)
        for together in kinds[:3]:
            for sizes in self._alone(together):
                yield self.shrunk(example | sizes)

    def _alone(self, sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
        """The sizes of one group of tied symbols at a time."""
        for group in dict.fromkeys(self.symbols[name].tied for name in sizes):
            yield {name: size for name, size in sizes.items() if self.symbols[name].tied == group}

    def random(self, want: Want) -> dict[str, int]:
        """Sizes at random; tied ones are mostly equal."""
        drawn: dict[str, int] = {}
        shared: dict[str, int] = {}
        for name, symbol in self.symbols.items():
            value = symbol.draw(want)
            if want.below(8):
                value = min(max(shared.setdefault(symbol.tied, value), symbol.low), symbol.high)
            drawn[name] = value
        return self.shrunk(drawn)

    def label(self, drawn: Drawn) -> str:
        """`batch = 1, x.shape[1] = 7`, tied sizes once."""
        said: dict[tuple[str, int], str] = {}
        for name, value in drawn.items():
            if name in self.symbols and value != self.symbols[name].example:
                said.setdefault((self.symbols[name].tied, value), f"{name} = {value}")
        return ", ".join(said.values())


def _bounds(place: Varying, leaf: Any) -> tuple[int, int | None, int] | None:
    """The lowest and the highest value of the symbol, and its value in the example; None if it cannot vary."""
    entry = place.entry
    if not isinstance(leaf, torch.Tensor):
        return None if leaf in (0, 1) else (min(2, leaf) if entry.min is None else entry.min, entry.max, leaf)
    if leaf.layout is not torch.strided:
        return None
    size = leaf.shape[place.index or 0]
    if not hasattr(entry, "__name__"):
        return 2 if entry.min is None else entry.min, entry.max, size
    offset = int(entry.fn(0)) if hasattr(entry, "fn") else 0
    step = int(entry.fn(1)) - offset if hasattr(entry, "fn") else 1
    root = getattr(entry, "root", entry)
    low = max(int(root.min), math.ceil((1 - offset) / step))  # no dimension becomes empty
    return low, root.max if isinstance(root.max, int) else None, (size - offset) // step
