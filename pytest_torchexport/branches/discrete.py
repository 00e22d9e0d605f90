"""Inputs to try where no gradient leads on: options, sizes, constants of the code, special numbers, repeated calls."""

from __future__ import annotations

import math
from itertools import chain, islice, zip_longest
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.inputs.constants import around
from pytest_torchexport.subject import containers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from pytest_torchexport.inputs.limits import Numbers
    from pytest_torchexport.inputs.sizes import Symbol
    from pytest_torchexport.inputs.space import Space
    from pytest_torchexport.subject.call import Call

Calls = tuple["Call", ...]
Candidate = tuple[str, Calls]
"""What is particular, and the input."""
Change = tuple[str, torch.Tensor]
"""What is particular, and the values of one leaf, float64 on the CPU."""

_CONSTANTS = 24
"""Constants of the code that are tried in each integer tensor."""
_REPEATS = 17
"""Calls in a row that fill most caches of a test's size and pass most counters."""


def candidates(
    space: Space, base: Calls, constants: list[Any], generator: torch.Generator, *, stateful: bool
) -> Iterator[Candidate]:
    """Inputs made from one input, the likeliest first; of each kind some, in turns.

    Args:
        space: what may vary.
        base: the input that they are made from.
        constants: of the user's code, the likeliest first.
        generator: the source of chance.
        stateful: whether the model's state changes from call to call.
    """
    sources: list[Iterable[Candidate]] = [
        _options(space, base),
        _sizes(space, base, constants),
        _integers(space, base, constants, generator),
        _masks(space, base, generator),
        _floats(space, base, constants, generator),
        _pairs(space, base),
        _sequences(base) if stateful else (),
        _wholes(space, base),
    ]
    # Options are few and decide most: all of them first.
    yield from sources[0]
    for turn in zip_longest(*(iter(source) for source in sources[1:])):
        yield from (one for one in turn if one is not None)


def _on_each(space: Space, base: Calls, path: str, values: torch.Tensor) -> Calls:
    """The input with the values at the path in every call."""
    return tuple(space.with_values(call, {path: values}, "") if path in space.numbers(call) else call for call in base)


def _options(space: Space, base: Calls) -> Iterator[Candidate]:
    """Options that the example passes, or that are declared: what it leaves to a default most exports fix."""
    told = space.named(space.example)
    for path, values in space.alternatives().items():
        if path.split("[")[0].split(".")[0] not in told:
            continue
        for value in values:
            made = tuple(space.with_alternative(call, path, value, "") for call in base)
            yield f"{path} = {containers.describe(value)}", made


def _sizes(space: Space, base: Calls, constants: list[Any]) -> Iterator[Candidate]:
    """Other sizes; of those that are tied to one another all the same, and each its own."""
    symbols = space.sizes()
    if not symbols:
        return
    known = [int(c) for c in constants if isinstance(c, (int, float)) and not isinstance(c, bool) and c == int(c)]
    sizes_now = space.sizes_of(base[0])
    wanted = {name: _sizes_of(symbol, sizes_now.get(name, symbol.example), known) for name, symbol in symbols.items()}
    groups: dict[str, list[str]] = {}
    for name, symbol in symbols.items():
        groups.setdefault(symbol.tied, []).append(name)
    for row in zip_longest(*(wanted[name] for name in symbols)):
        for names in groups.values():
            own = {name: size for name, size in zip(symbols, row, strict=True) if name in names and size}
            if own:
                tied = dict.fromkeys(names, next(iter(own.values())))
                for sizes in [tied] if len(names) == 1 else [tied, own]:
                    made = tuple(space.resized(call, sizes, "") for call in base)
                    yield ", ".join(f"{n} = {s}" for n, s in sizes.items()), made


def _sizes_of(symbol: Symbol, now: int, constants: list[int]) -> list[int]:
    """The sizes to try in the place of the one that is now, the likeliest first."""
    sizes = [now + 1, symbol.low, symbol.high, now - 1, 1, 2, 3]
    sizes += [c + d for c in constants[:_CONSTANTS] for d in (0, 1, -1)]
    sizes += [2 * now, now // 2, now + 2, 4, 5, 7, 8, 13, 16, 17, 31, 32, 33, 64, 65, 128]
    sizes += [c * k for c in constants[:8] for k in (2, 3) if c > 0]
    return list(dict.fromkeys(s for s in sizes if symbol.low <= s <= symbol.high and s != now))


def _leaves(space: Space, base: Calls, wanted: Callable[[Numbers], bool]) -> list[tuple[str, Numbers]]:
    return [(path, one) for path, one in space.numbers(base[0]).items() if wanted(one) and one.value.numel()]


def _integers(space: Space, base: Calls, constants: list[Any], generator: torch.Generator) -> Iterator[Candidate]:
    """Constants of the code in integer arguments: everywhere, at the ends, in a row, in one place."""
    leaves = _leaves(space, base, lambda one: one.integral and not one.boolean)
    known = [c for c in constants if isinstance(c, (int, float)) and not isinstance(c, bool) and c == int(c)]
    tried: dict[str, set[float]] = {}
    for near in range(2):
        for constant in [*known[:_CONSTANTS], 0, 1, -1, 2]:
            for value in [constant] if near == 0 else around(int(constant))[1:]:
                for path, one in leaves:
                    low, high = one.reach
                    if not isinstance(value, (int, float)) or not low <= value <= high:
                        continue
                    if value in tried.setdefault(path, set()):
                        continue
                    tried[path].add(value)
                    for what, values in _placements(one.value, float(value), generator):
                        yield f"{path}: {what} {int(value)}", _on_each(space, base, path, values)
    for path, one in leaves:
        yield from _orders(space, base, path, one)


def _placements(value: torch.Tensor, constant: float, generator: torch.Generator) -> Iterator[Change]:
    now = value.detach().to("cpu", torch.float64)
    yield "all", torch.full_like(now, constant)
    if now.numel() == 1:
        return
    for what, index in (("last", (..., -1)), ("first", (..., 0))):
        made = now.clone()
        made[index] = constant
        yield what, made
    if now.dim() > 1:
        made = now.clone()
        made[-1] = constant
        yield "last row", made
        made = now.clone()
        made.reshape(-1)[-1] = constant
        yield "last element", made
    made = now.clone()
    made.reshape(-1)[int(torch.randint(now.numel(), (), generator=generator))] = constant
    yield "one element", made
    made = now.clone()
    made.reshape(-1)[: now.numel() // 2] = constant
    yield "first half", made
    made = now.clone()
    made[torch.rand(now.shape, generator=generator) < 0.5] = constant
    yield "random half", made


def _orders(space: Space, base: Calls, path: str, one: Numbers) -> Iterator[Candidate]:
    now = one.value.detach().to("cpu", torch.float64)
    if now.dim() == 0 or now.numel() < 2:
        return
    yield f"{path}: sorted", _on_each(space, base, path, now.sort(-1).values)
    yield f"{path}: sorted down", _on_each(space, base, path, now.sort(-1, descending=True).values)
    yield f"{path}: equal rows", _on_each(space, base, path, now[..., :1].expand_as(now))
    ramp = torch.arange(now.numel(), dtype=torch.float64).reshape(now.shape)
    yield f"{path}: all different", _on_each(space, base, path, ramp)
    if one.high != math.inf:
        yield f"{path}: largest", _on_each(space, base, path, torch.full_like(now, one.high))


def _masks(space: Space, base: Calls, generator: torch.Generator) -> Iterator[Candidate]:
    leaves = _leaves(space, base, lambda one: one.boolean)
    for turn in range(8):
        for path, one in leaves:
            now = one.value.detach().to("cpu", torch.float64)
            if now.numel() == 1 and turn < 2:
                yield f"{path} = {bool(turn)}", _on_each(space, base, path, torch.full_like(now, float(turn)))
            elif now.numel() > 1:
                what, made = _mask(now, turn, generator)
                yield f"{path}: {what}", _on_each(space, base, path, made)


def _mask(now: torch.Tensor, turn: int, generator: torch.Generator) -> Change:
    full = torch.ones_like(now)
    made = full.clone() if turn % 2 else torch.zeros_like(now)
    what = ("all False", "all True", "one row", "all but one row", "one column", "all but one column", "one", "most")[
        turn
    ]
    if turn in (2, 3):
        made[0] = 1 - made[0]
    elif turn in (4, 5):
        made[..., 0] = 1 - made[..., 0]
    elif turn == 6:
        made.reshape(-1)[int(torch.randint(now.numel(), (), generator=generator))] = 1
    elif turn == 7:
        made = (torch.rand(now.shape, generator=generator) < 0.9).to(now)
    return what, made


def _floats(space: Space, base: Calls, constants: list[Any], generator: torch.Generator) -> Iterator[Candidate]:
    """Numbers that calculations stumble over, and constants of the code."""
    known = [float(c) for c in constants if isinstance(c, (int, float)) and not isinstance(c, bool)]
    for path, one in _leaves(space, base, lambda one: not one.integral):
        now = one.value.detach().to("cpu", torch.float64)
        unlimited = one.low == -math.inf and one.high == math.inf
        for what, values in chain(
            _with_one_special(now, generator) if unlimited else (),
            _times(now, {"zeros": 0.0, "huge": 1e30, "tiny": 1e-30, "negated": -1.0}),
            _extremes(now) if unlimited else (),
            _regular(now),
            ((f"all {constant:g}", torch.full_like(now, constant)) for constant in known[:8]),
            _times(now, {"x 10": 10.0, "x 0.1": 0.1, "x 100": 100.0, "x 0.01": 0.01}),
            _ordered(now),
        ):
            yield f"{path}: {what}", _on_each(space, base, path, values)


def _with_one_special(now: torch.Tensor, generator: torch.Generator) -> Iterator[Change]:
    for what, value in (("NaN", math.nan), ("infinite", math.inf), ("minus infinite", -math.inf)):
        made = now.clone()
        made.reshape(-1)[int(torch.randint(now.numel(), (), generator=generator))] = value
        yield f"one element {what}", made


def _times(now: torch.Tensor, factors: Mapping[str, float]) -> Iterator[Change]:
    yield from ((what, now * factor) for what, factor in factors.items())


def _extremes(now: torch.Tensor) -> Iterator[Change]:
    yield "all NaN", torch.full_like(now, math.nan)
    yield "largest", torch.sign(now + 1e-30) * 3e38


def _regular(now: torch.Tensor) -> Iterator[Change]:
    """Repeated values, and matrices of which more is true than of most."""
    for dim in range(now.dim()):
        if now.shape[dim] > 1:
            yield f"equal along dimension {dim}", now.select(dim, 0).unsqueeze(dim).expand_as(now)
    if now.dim() > 1 and now.shape[-1] == now.shape[-2]:
        yield "symmetric", (now + now.mT) / 2
        yield "identity", torch.eye(now.shape[-1], dtype=torch.float64).expand_as(now)
    if now.dim() and now.shape[0] > 1:
        made = now.clone()
        made[0] = 0
        yield "first row zeros", made


def _ordered(now: torch.Tensor) -> Iterator[Change]:
    """Values in order, and of one sign."""
    yield "sorted", now.sort(-1).values if now.dim() else now
    yield "absolute", now.abs()
    yield "minus absolute", -now.abs()


def _pairs(space: Space, base: Calls) -> Iterator[Candidate]:
    """One argument a copy of another, where they have the same shape."""
    numbers = space.numbers(base[0])
    for path, one in numbers.items():
        for other, two in numbers.items():
            if path != other and one.value.shape == two.value.shape and one.value.numel():
                yield f"{path} = {other}", _on_each(space, base, path, two.value.detach().to("cpu", torch.float64))


def _sequences(base: Calls) -> Iterator[Candidate]:
    """The same calls again and again."""
    for length in (2, 3, 5, 9, _REPEATS):
        if length > len(base):
            yield f"{length} calls in a row", tuple(islice((call for _ in range(length) for call in base), length))


def _wholes(space: Space, base: Calls) -> Iterator[Candidate]:
    for call in space.wholes("branches", 16, base[0]):
        yield call.label, (call, *base[1:])
