"""What is planted: a fault is a kind, a place in a program, and a seed for what is left to chance in it.

The kinds are those of errors that exporters and runtimes have had: a changed constant, a lower precision in one layer,
a dropped bias, another rounding mode, a wrong axis. They say nothing of how large an error must be to be found.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Place = TypeVar("Place")
Program = TypeVar("Program")


@dataclass(frozen=True)
class Kind(Generic[Program, Place]):
    """A way to make a program wrong.

    Attributes:
        name: `drop_bias`.
        places: where in a program it can be done, in the program's order; a place is found again by its number.
        plant: changes the program at a place.
    """

    name: str
    places: Callable[[Program], Sequence[Place]]
    plant: Callable[[Program, Place, random.Random], None]


@dataclass(frozen=True)
class Fault(Generic[Program, Place]):
    """One fault of one program: planting it in a copy of the program gives the same wrong program each time."""

    kind: Kind[Program, Place]
    place: int
    seed: int

    def plant(self, program: Program) -> None:
        """Make the program wrong, in place."""
        self.kind.plant(program, self.kind.places(program)[self.place], random.Random(self.seed))

    def __str__(self) -> str:
        """`drop_bias[3]`."""
        return f"{self.kind.name}[{self.place}]"


def chosen(
    kinds: Sequence[Kind[Program, Place]], program: Program, *, per_kind: int, seed: str
) -> list[Fault[Program, Place]]:
    """Faults of each kind that the program has a place for, at places that the seed chooses."""
    faults = []
    for kind in kinds:
        number = zlib.crc32(f"{seed}:{kind.name}".encode())
        rng = random.Random(number)
        places = range(len(kind.places(program)))
        faults += [
            Fault(kind, place, rng.randrange(1 << 30)) for place in rng.sample(places, min(per_kind, len(places)))
        ]
    return faults
