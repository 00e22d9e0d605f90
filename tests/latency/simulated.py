"""A machine whose time passes only in the calls that are made on it, with the noise that real ones have."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_torchexport.latency.measure import Side

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator


@dataclass
class Machine:
    """Its clock, and what was called on it.

    Attributes:
        noise: by what the times of the calls are multiplied, one after the other.
        tick: nanoseconds that reading the clock takes.
    """

    noise: Iterator[float] = field(default_factory=lambda: iter(lambda: 1.0, None))
    tick: int = 0
    now: int = 0
    log: list[str] = field(default_factory=list)

    def clock(self) -> int:
        self.now += self.tick
        return self.now

    def takes(self, seconds: float | Callable[[int], float], name: str = "call") -> Callable[[], None]:
        """A call that takes so long, always or by its number from 0."""
        made = 0

        def call() -> None:
            nonlocal made
            time = seconds(made) if callable(seconds) else seconds
            made += 1
            self.now += round(time * next(self.noise) * 1e9)
            self.log.append(name)

        return call

    def sides(self, eager: float, exported: float) -> tuple[Side, Side]:
        return Side(self.takes(eager, "eager")), Side(self.takes(exported, "exported"))


def quiet(rng: random.Random) -> Iterator[float]:
    """A few percent."""
    while True:
        yield math.exp(rng.gauss(0, 0.03))


def heavy_tailed(rng: random.Random) -> Iterator[float]:
    """One call in eight is interrupted, some for long."""
    for factor in quiet(rng):
        yield factor * (1 + (rng.paretovariate(0.9) - 1 if rng.random() < 0.125 else 0))


def two_speeds(rng: random.Random) -> Iterator[float]:
    """Each call takes one of two times."""
    for factor in quiet(rng):
        yield factor * rng.choice((1.0, 1.4))


def two_phases(rng: random.Random) -> Iterator[float]:
    """One of two times for some tens of calls, then the other: a core that is shared, then not."""
    level = 1.0
    for factor in quiet(rng):
        if rng.random() < 1 / 30:
            level = 1.6 - level
        yield factor * level


def wandering(rng: random.Random) -> Iterator[float]:
    """The load of the machine, which has a memory."""
    load = 0.0
    for factor in quiet(rng):
        load = 0.97 * load + rng.gauss(0, 0.04)
        yield factor * math.exp(load)


def bursts(rng: random.Random) -> Iterator[float]:
    """Other work for some tens of calls: each then takes much longer, and never the same."""
    busy = False
    for factor in quiet(rng):
        busy ^= rng.random() < 1 / 25
        yield factor * (1 + (rng.expovariate(1) if busy else 0))


def slowing(rng: random.Random) -> Iterator[float]:
    """The machine becomes hot, again and again: each call takes one percent longer than the last."""
    for number, factor in enumerate(quiet(rng)):
        yield factor * 1.01 ** (number % 150)


def quickening(rng: random.Random) -> Iterator[float]:
    """The machine wakes up, again and again."""
    for number, factor in enumerate(quiet(rng)):
        yield factor * 0.99 ** (number % 150)


FAMILIES = (quiet, heavy_tailed, two_speeds, two_phases, wandering, bursts, slowing, quickening)
