"""Which values of an exported program are values of eager: the same numbers, up to eager's rounding noise."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from pytest_torchexport.compare.spread import Values, same_class, scale_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_torchexport.localize.eager_steps import Value

_PROBES = 64
"""Elements at which all candidates are looked at together; most part there."""
_LEARNT = 64
"""Further such elements, at which candidates turned out to part: two states of a memory may differ in a few only."""
_FAILURES = 8
"""Candidates that may fail after one has agreed, before the others are left alone."""
_AGAIN = 4
"""Candidates that equal an earlier value already, and are looked at once more."""
_ONE = 5_000
"""What a comparison costs beside its numbers, in numbers."""
_PASSES = 4
"""How much more a number of a full comparison costs than one of a look at all candidates."""


class Exhausted(Exception):  # no error: the budget is spent
    """No more values may be compared."""


@dataclass(eq=False)
class Known:
    """A value of eager with what other runs of eager say about it.

    Attributes:
        value: what eager computed.
        noise: the farthest that a run with noise, or in double precision, is from it; None if none has it.
        offset: the value in double precision less eager's; None if there is none.
        changed: where a run is NaN or infinite and eager is not, or the other way round.
    """

    value: Value
    noise: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    changed: torch.Tensor | None = None
    _scale: torch.Tensor | None = None

    def add(self, numbers: torch.Tensor, *, double: bool = False) -> None:
        """Take in the value of another run.

        Args:
            numbers: its sketch.
            double: it is the run in double precision, whose infinities are not eager's.
        """
        self._scale = None
        own = self.value.numbers.to(torch.float64)
        off = numbers - own
        finite = off.isfinite()
        if not bool(finite.all()):
            if not double:
                differs = ~same_class(own, numbers)
                self.changed = differs if self.changed is None else self.changed | differs
            off = torch.where(finite, off, 0.0)
        if double:
            self.offset = off.to(torch.float32)
        off = off.abs().to(torch.float32)
        self.noise = off if self.noise is None else torch.maximum(self.noise, off)

    def forget(self) -> None:
        """Leave aside all runs so far."""
        self.noise = self.offset = self.changed = self._scale = None

    def scale(self) -> torch.Tensor:
        """The rounding noise of each element."""
        if self._scale is None:
            self._scale = self._measured().to(self.value.numbers.dtype)
        return self._scale.to(torch.float64)

    def _measured(self) -> torch.Tensor:
        own = self.value.numbers.to(torch.float64)
        if not self.value.floating:
            return torch.zeros_like(own) if self.noise is None else self.noise.to(torch.float64)
        shape = self.value.shape if math.prod(self.value.shape) == own.numel() else own.shape
        noise = torch.zeros_like(own) if self.noise is None else self.noise.to(torch.float64)
        row = own.view(shape)
        values = Values(row, row, floating=True, unit=self.value.unit, least=self.value.least)
        return scale_of(noise.view(shape), row.isfinite(), values, self.value.unit).reshape(-1)

    def centre(self, places: torch.Tensor | None = None) -> torch.Tensor:
        """What an exact computation gives, as far as it is known; at all elements, or at a few."""
        at = slice(None) if places is None else places
        own = self.value.numbers[at].to(torch.float64)
        return own if self.offset is None else own + self.offset[at]


@dataclass
class _Group:
    """The values of eager with equally many elements, and all of them at a few elements.

    Attributes:
        known: the values.
        found: for each of them, whether the program has it.
        places: the elements.
        centres: what an exact computation gives there, value by value.
        scales: the noise there.
    """

    known: list[Known] = field(default_factory=list)
    found: list[bool] = field(default_factory=list)
    places: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64, device="cpu"))
    centres: torch.Tensor = field(default_factory=lambda: torch.empty(0, device="cpu"))
    scales: torch.Tensor = field(default_factory=lambda: torch.empty(0, device="cpu"))

    def prepare(self) -> None:
        first = self.known[0].value.numbers
        self.found = [False] * len(self.known)
        generator = torch.Generator().manual_seed(first.numel())
        places = torch.randperm(first.numel(), generator=generator, device="cpu")[:_PROBES].to(first.device)
        self.places, self.centres, self.scales = places, *self._at(places)

    def learn(self, place: int) -> None:
        """Look at one more element of all values from now on."""
        if len(self.places) >= _PROBES + _LEARNT or bool((self.places == place).any()):
            return
        places = torch.tensor([place], device=self.places.device)
        centres, scales = self._at(places)
        self.places = torch.cat([self.places, places])
        self.centres = torch.cat([self.centres, centres], 1)
        self.scales = torch.cat([self.scales, scales], 1)

    def _at(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        centres = torch.stack([one.centre(places) for one in self.known])
        return centres, torch.stack([one.scale()[places] for one in self.known])


class Matcher:
    """Finds the values of eager that a value of the program equals.

    Args:
        known: eager's values.
        limit: how many times the noise a value may be off.
        budget: numbers that may be compared.
    """

    def __init__(self, known: Iterable[Known], limit: float, budget: float = math.inf) -> None:
        self._limit = limit
        self._left = budget
        self._groups: dict[tuple[int, int], _Group] = defaultdict(_Group)
        for one in known:
            if one.value.telling:
                key = (math.prod(one.value.shape), one.value.numbers.numel())
                self._groups[key].known.append(one)

    def find(self, count: int, numbers: torch.Tensor) -> tuple[list[Value], float]:
        """Values of eager that agree, in eager's order, and the score of the nearest value, agreeing or not.

        Those that agree are all, but for such as agreed with an earlier value and such as agree by few elements only:
        a loop that comes to rest has a great many of both.

        Args:
            count: number of elements of the program's value.
            numbers: its sketch.

        Raises:
            Exhausted: the budget is spent.
        """
        group = self._groups.get((count, numbers.numel()))
        if group is None:
            return [], math.inf
        if not len(group.places):
            group.prepare()
        self._spend(group.centres.numel())
        off = (numbers[group.places] - group.centres).abs()
        near = ((off <= self._limit * group.scales) | ~off.isfinite()).all(1)
        distances = (off / group.scales).nan_to_num(math.inf, math.inf).amax(1)
        nearest = float(distances.min())
        candidates = near.nonzero().flatten()
        order = candidates[distances[candidates].argsort(stable=True)].tolist()
        new = [place for place in order if not group.found[place]]
        again = [place for place in order if group.found[place]]
        found: list[int] = []
        failures = 0
        for seen, place in enumerate((*again[:_AGAIN], *new, *again[_AGAIN:])):
            if found and (failures >= _FAILURES or seen >= _AGAIN + len(new)):
                break
            self._spend(_ONE + _PASSES * numbers.numel())
            score, where = score_of(group.known[place], numbers)
            if score <= self._limit:
                nearest = min(nearest, score) if found else score
                found.append(place)
                group.found[place] = True
            else:
                failures += 1
                group.learn(where)
        return [group.known[place].value for place in sorted(found)], nearest

    def _spend(self, numbers: int) -> None:
        self._left -= numbers
        if self._left < 0:
            raise Exhausted


def score_of(known: Known, numbers: torch.Tensor) -> tuple[float, int]:
    """How far a program's value is from eager's, as a multiple of eager's rounding noise, and the farthest element."""
    own = known.value.numbers.to(torch.float64)
    if not known.value.floating:
        differs = ~((numbers - own).abs() <= known.scale())
        return (math.inf if bool(differs.any()) else 0.0), _first(differs)
    special = ~same_class(own, numbers)
    if known.changed is not None:
        special &= ~known.changed
    if bool(special.any()):
        return math.inf, _first(special)
    finite = own.isfinite() & numbers.isfinite()
    off = torch.where(finite, (numbers - known.centre()).abs(), 0.0)
    # The noise is a sample too: what eager computes itself is never far.
    own_off = torch.where(finite, (numbers - own).abs(), 0.0)
    score, place = (torch.minimum(off, own_off) / known.scale()).max(0)
    return float(score), int(place)


def _first(flags: torch.Tensor) -> int:
    return int(flags.to(torch.uint8).argmax())
