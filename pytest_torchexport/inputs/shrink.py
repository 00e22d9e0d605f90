"""Making a failing input simple: fewer calls, smaller sizes, the example's options and values, zeros, round numbers.

Every step is kept only if the input still fails, so that the result fails for sure.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from pytest_torchexport.inputs.options import LEFT_OUT
from pytest_torchexport.inputs.simpler import rounded, shortest, simpler
from pytest_torchexport.inputs.variables import digest, nodes_of
from pytest_torchexport.subject.equality import identical

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_torchexport.inputs.limits import Numbers
    from pytest_torchexport.inputs.space import Space
    from pytest_torchexport.subject.call import Call

Calls = tuple["Call", ...]

_ROUNDS = 3
"""A step may make another one possible, so all are tried again, at most so often."""

_SINGLES = 24
"""So many elements are made simple one by one."""

_STEPS = 12
"""So many simpler numbers are tried in the place of one."""


def shrink(calls: Calls, space: Space, fails: Callable[[Calls], bool], budget: int) -> tuple[Calls, int]:
    """A simpler input that fails as well.

    Args:
        calls: the failing input.
        space: what may vary; nothing leaves its domains.
        fails: whether an input fails. It is never called twice with the same input.
        budget: the most that `fails` may be called.

    Returns:
        The simplest input found, `calls` itself if there is none, and how often `fails` was called.
    """
    failing = _Failing(space, fails, budget, calls)
    with torch.device("cpu"), torch.no_grad():
        for _ in range(_ROUNDS):
            before = failing.calls
            _fewer_calls(failing)
            _smaller_sizes(failing)
            _plainer_options(failing)
            _plainer_values(failing)
            if failing.calls is before or failing.left <= 0:
                break
    return failing.calls, failing.used


@dataclass
class _Failing:
    """The simplest failing input so far.

    The places of a sequence that hold the same call object are changed together.
    """

    space: Space
    fails: Callable[[Calls], bool]
    budget: int
    calls: Calls
    used: int = 0
    seen: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.seen.add(_fingerprint(self.calls))

    @property
    def left(self) -> int:
        """How often `fails` may still be called."""
        return self.budget - self.used

    def takes(self, calls: Calls) -> bool:
        """Whether the calls are another input that fails as well; then they are the simplest so far."""
        mark = _fingerprint(calls)
        if mark in self.seen or self.left <= 0:
            return False
        self.seen.add(mark)
        self.used += 1
        if not self.fails(calls):
            return False
        self.calls = calls
        return True

    def takes_at(self, position: int, changed: Call) -> bool:
        """Whether it fails with another call at the position, and wherever else the present one stands."""
        now = self.calls[position]
        changed = replace(changed, label=now.label)
        return self.takes(tuple(changed if one is now else one for one in self.calls))

    def positions(self) -> list[int]:
        """Where each call stands first."""
        return [index for index, call in enumerate(self.calls) if not any(call is one for one in self.calls[:index])]


def _fingerprint(calls: Calls) -> bytes:
    return b"".join(digest((call.args, dict(call.kwargs))) for call in calls)


# --- calls and sizes ------------------------------------------------------------------------------------------------


def _fewer_calls(failing: _Failing) -> None:
    size = len(failing.calls) - 1
    while size >= 1:
        starts = range(0, len(failing.calls) - size + 1, size)
        for start in dict.fromkeys([*starts, len(failing.calls) - size]):
            if failing.takes(failing.calls[:start] + failing.calls[start + size :]):
                break
        else:
            size //= 2
        size = min(size, len(failing.calls) - 1)
    for position in reversed(failing.positions()):
        if len(failing.positions()) > 1 and failing.takes((failing.calls[position],) * len(failing.calls)):
            return


def _smaller_sizes(failing: _Failing) -> None:
    """All sizes together, then those that belong together, then one at a time."""
    groups: dict[str, list[str]] = {}
    for name, symbol in failing.space.sizes().items():
        groups.setdefault(symbol.tied, []).append(name)
    every = [name for names in groups.values() for name in names]
    alone = [[name] for names in groups.values() if len(names) > 1 for name in names]
    for names in [every, *(groups.values() if len(groups) > 1 else ()), *alone]:
        _smaller(failing, names)


def _smaller(failing: _Failing, names: list[str]) -> None:
    """The smallest sizes that still fail: a few very small ones, then by halves between those and the present ones."""
    symbols = failing.space.sizes()
    held = [failing.space.sizes_of(call) for call in failing.calls]
    now = {name: max(one[name] for one in held) for name in names}
    lows = {name: min(symbols[name].low, now[name]) for name in names}
    good = max((now[name] - lows[name] for name in names), default=0)  # distance from the lowest sizes

    def fails(distance: int) -> bool:
        return _takes_sizes(failing, {name: min(now[name], lows[name] + distance) for name in names})

    bad = -1
    for distance in range(min(3, good)):
        if fails(distance):
            return
        bad = distance
    while good - bad > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fails(middle) else (good, middle)


def _takes_sizes(failing: _Failing, sizes: Mapping[str, int]) -> bool:
    """Whether it fails with other sizes, made of the first or of the last of the elements that are there."""
    for make in (_first, _last):
        made = {position: make(failing.space, failing.calls[position], sizes) for position in failing.positions()}
        by_call = {id(failing.calls[position]): call for position, call in made.items()}
        if failing.takes(tuple(by_call[id(call)] for call in failing.calls)):
            return True
    return False


def _first(space: Space, call: Call, sizes: Mapping[str, int]) -> Call:
    return space.resized(call, sizes, call.label)


def _last(space: Space, call: Call, sizes: Mapping[str, int]) -> Call:
    return _flipped(space, _first(space, _flipped(space, call, sizes), sizes), sizes)


def _flipped(space: Space, call: Call, names: Mapping[str, int]) -> Call:
    flipped = {}
    for path, numbers in space.numbers(call).items():
        dims = [dim for dim in range(numbers.value.dim()) if space.size_of(path, dim) in names]
        if dims:
            flipped[path] = numbers.value.detach().flip(dims)
    return space.with_values(call, flipped, call.label)


# --- options --------------------------------------------------------------------------------------------------------


def _plainer_options(failing: _Failing) -> None:
    """Arguments of few values, one after the other, as they are in the example."""
    space = failing.space
    usual = nodes_of(space.named(space.example))
    for path in space.alternatives():
        for position in failing.positions():
            call = failing.calls[position]
            now, then = nodes_of(space.named(call)).get(path, LEFT_OUT), usual.get(path, LEFT_OUT)
            if not identical(now, then):
                made = space.with_alternative(call, path, then, call.label)
                failing.takes_at(position, space.resized(made, space.sizes_of(call), call.label))


# --- values ---------------------------------------------------------------------------------------------------------


def _plainer_values(failing: _Failing) -> None:
    for position in failing.positions():
        _as_in_the_example(failing, position)
        for path in failing.space.numbers(failing.calls[position]):
            leaf = _Leaf(failing, position, path)
            if leaf.present():
                leaf.shrink()


def _usual(space: Space, call: Call) -> dict[str, torch.Tensor]:
    """The example's values at the call's sizes, where the call has such numbers too."""
    example = space.resized(space.example, space.sizes_of(call), "")
    here = space.numbers(call)
    return {
        path: numbers.value.detach().cpu()
        for path, numbers in space.numbers(example).items()
        if path in here and here[path].value.shape == numbers.value.shape
    }


def _as_in_the_example(failing: _Failing, position: int) -> None:
    """Several arguments at once back to the example's values: all, halves of them, and so on."""
    usual = _usual(failing.space, failing.calls[position])
    size = len(usual)
    while size > 1:
        paths = list(usual)
        for start in range(0, len(paths), size):
            block = {path: usual[path] for path in paths[start : start + size]}
            failing.takes_at(position, failing.space.with_values(failing.calls[position], block, ""))
        size = (size + 1) // 2 if size > 2 else 1


@dataclass
class _Leaf:
    """One leaf of one call that is made simple: as in the example, else one number, else few that are not 0."""

    failing: _Failing
    position: int
    path: str

    def present(self) -> bool:
        """Whether the call has the leaf, with elements."""
        numbers = self.failing.space.numbers(self.failing.calls[self.position])
        return self.path in numbers and numbers[self.path].value.numel() > 0

    @property
    def numbers(self) -> Numbers:
        """The leaf as it is now."""
        return self.failing.space.numbers(self.failing.calls[self.position])[self.path]

    @property
    def value(self) -> torch.Tensor:
        """Its values, to read only."""
        return self.numbers.value.detach().cpu()

    def puts(self, values: torch.Tensor) -> bool:
        """Whether the input still fails with these values, which then stay."""
        if self.failing.left <= 0:
            return False
        call = self.failing.calls[self.position]
        return self.failing.takes_at(
            self.position, self.failing.space.with_values(call, {self.path: values}, call.label)
        )

    def shrink(self) -> None:
        """Steps from the simplest result to the least simple one."""
        usual = _usual(self.failing.space, self.failing.calls[self.position]).get(self.path)
        if usual is not None and (identical(self.value, usual) or self.puts(usual)):
            return
        if self._constant():
            self._simplify(None, self.value.reshape(-1)[0])
            return
        self._reset(torch.zeros(self.value.shape))
        if usual is not None and int((self.value != 0).sum()) > self.value.numel() // 2:
            self._reset(usual)
        self._round()
        for place in (self.value.reshape(-1) != 0).nonzero().reshape(-1).tolist()[:_SINGLES]:
            self._simplify(place, self.value.reshape(-1)[place])

    def _constant(self) -> bool:
        """Whether one number everywhere is enough."""
        value = self.value
        if bool((value == value.reshape(-1)[0]).all()):
            return True
        return any(self.puts(torch.full(value.shape, one, dtype=torch.float64)) for one in _levels(value))

    def _reset(self, base: torch.Tensor) -> None:
        """Delta debugging: blocks of elements back to the base, halves first, until as few as possible differ."""
        flat_base = base.to(self.value.dtype).reshape(-1)
        places = _differ(self.value.reshape(-1), flat_base).nonzero().reshape(-1)
        floor = self.failing.left // 2  # the rest is for what comes after
        size = (len(places) + 1) // 2
        while size and len(places) > 1 and self.failing.left > floor:
            kept = []
            for block in torch.split(places, size):
                if self.failing.left <= floor:
                    return
                flat = self.value.reshape(-1).clone()
                flat[block] = flat_base[block]
                if not self.puts(flat.reshape(base.shape)):
                    kept.append(block)
            places = torch.cat([places[:0], *kept])
            size = 0 if size == 1 else min((size + 1) // 2, (len(places) + 1) // 2)

    def _round(self) -> None:
        """All elements with few digits: whole numbers, else as few significant ones as possible."""
        value = self.value
        if value.is_floating_point() and not self.puts(value.round()):
            any(self.puts(rounded(value, digits)) for digits in (1, 2, 3))

    def _simplify(self, place: int | None, element: torch.Tensor) -> None:
        """A simpler number in one place, or everywhere."""
        for _ in range(_STEPS):
            for other in self._simpler(element):
                flat = self.value.reshape(-1).clone()
                with_other = torch.full_like(flat, other, dtype=torch.float64)
                if place is not None:
                    with_other = torch.where(torch.arange(len(flat)) == place, with_other, flat.double())
                if self.puts(with_other.reshape(self.value.shape)):
                    element = self.value.reshape(-1)[place or 0]
                    break
            else:
                return

    def _simpler(self, element: torch.Tensor) -> Iterator[float]:
        if element.dtype is torch.bool:
            yield from (0.0,) if bool(element) else ()
        else:
            number = shortest(element) if element.is_floating_point() else int(element)
            yield from simpler(number, whole=self.numbers.integral)[:_STEPS]


def _levels(value: torch.Tensor) -> list[float]:
    """Numbers that may stand for all: 0, 1, the mean, the largest, the smallest, and such beyond those."""
    plain = value.double().reshape(-1)
    plain = plain[plain.isfinite()]
    if not len(plain):
        return [0.0, 1.0]
    mean = [float(plain.mean())] if value.is_floating_point() else []
    ends = [float(plain.max()), float(plain.min())]
    # What a pattern does with small numbers, as a filter sees it, one number does if it is large enough.
    beyond = [10 * end for end in ends] if value.is_floating_point() else []
    return list(dict.fromkeys([0.0, 1.0, *mean, *ends, *beyond]))


def _differ(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one != other) & ~(one.isnan() & other.isnan()) if one.is_floating_point() else one != other
