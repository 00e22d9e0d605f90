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

    def add(self, numbers: torch.Tensor, *, double: bool = False) -> None:
        """Take in the value of another run.

        Args:
            numbers: its sketch.
            double: it is the run in double precision, whose infinities are not eager's.
        """
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

    def scale(self) -> torch.Tensor:
        """The rounding noise of each element."""
        own = self.value.numbers.to(torch.float64)
        if not self.value.floating:
            return torch.zeros_like(own) if self.noise is None else self.noise.to(torch.float64)
        shape = self.value.shape if math.prod(self.value.shape) == own.numel() else own.shape
        noise = torch.zeros_like(own) if self.noise is None else self.noise.to(torch.float64)
        row = own.view(shape)
        values = Values(row, row, floating=True, unit=self.value.unit, least=self.value.least)
        return scale_of(noise.view(shape), row.isfinite(), values, self.value.unit).reshape(-1)

    def centre(self) -> torch.Tensor:
        """What an exact computation gives, as far as it is known."""
        own = self.value.numbers.to(torch.float64)
        return own if self.offset is None else own + self.offset


@dataclass
class _Group:
    """The values of eager with equally many elements, and all of them at a few elements."""

    known: list[Known] = field(default_factory=list)
    places: torch.Tensor | None = None
    centres: torch.Tensor | None = None
    scales: torch.Tensor | None = None

    def prepare(self) -> None:
        count = self.known[0].value.numbers.numel()
        generator = torch.Generator().manual_seed(count)
        self.places = torch.randperm(count, generator=generator, device="cpu")[:_PROBES]
        places = self.places.to(self.known[0].value.numbers.device)
        self.centres = torch.stack([one.centre()[places] for one in self.known])
        self.scales = torch.stack([one.scale()[places] for one in self.known])
        self.places = places


class Matcher:
    """Finds the values of eager that a value of the program equals.

    Args:
        known: eager's values.
        limit: how many times the noise a value may be off.
    """

    def __init__(self, known: Iterable[Known], limit: float) -> None:
        self._limit = limit
        self._groups: dict[tuple[int, int], _Group] = defaultdict(_Group)
        for one in known:
            if one.value.telling:
                key = (math.prod(one.value.shape), one.value.numbers.numel())
                self._groups[key].known.append(one)

    def find(self, count: int, numbers: torch.Tensor) -> tuple[list[Value], float]:
        """All values of eager that agree, in eager's order, and the score of the nearest value, agreeing or not.

        Args:
            count: number of elements of the program's value.
            numbers: its sketch.
        """
        group = self._groups.get((count, numbers.numel()))
        if group is None:
            return [], math.inf
        if group.places is None:
            group.prepare()
        assert group.places is not None
        assert group.centres is not None
        assert group.scales is not None
        probe = numbers[group.places]
        off = (probe - group.centres).abs()
        near = ((off <= self._limit * group.scales) | ~off.isfinite()).all(1)
        found = []
        nearest = float((off / group.scales).nan_to_num(math.inf, math.inf).amax(1).min())
        for place in near.nonzero().flatten().tolist():
            score = score_of(group.known[place], numbers)
            if score <= self._limit:
                found.append(group.known[place].value)
                nearest = min(nearest, score) if len(found) > 1 else score
        return found, nearest


def score_of(known: Known, numbers: torch.Tensor) -> float:
    """How far a program's value is from eager's, as a multiple of eager's rounding noise."""
    own = known.value.numbers.to(torch.float64)
    if not known.value.floating:
        return 0.0 if bool(((numbers - own).abs() <= known.scale()).all()) else math.inf
    special = ~same_class(own, numbers)
    if known.changed is not None:
        special &= ~known.changed
    if bool(special.any()):
        return math.inf
    finite = own.isfinite() & numbers.isfinite()
    off = torch.where(finite, (numbers - known.centre()).abs(), 0.0)
    # The noise is a sample too: what eager computes itself is never far.
    own_off = torch.where(finite, (numbers - own).abs(), 0.0)
    return float((torch.minimum(off, own_off) / known.scale()).max())
