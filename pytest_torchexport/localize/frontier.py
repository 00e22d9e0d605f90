"""Where two computations part: the first values of one that the other does not have, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class State(Enum):
    """What is known of one value of a computation."""

    SHARED = "shared"
    """The other computation has it."""
    ALONE = "alone"
    """The other computation has nothing like it."""
    SILENT = "silent"
    """It says nothing: a constant, a few flags."""


@dataclass(eq=False)
class Point:
    """One value of a computation, as the search sees it.

    Attributes:
        operator: what computed it.
        sources: places, in the computation, of the values that it was computed from.
        state: whether the other computation has it.
        module: the submodule.
        line: file and line of the user's; None if unknown.
        weak: that the other computation lacks it means nothing, unless it follows from something that it lacks too.
    """

    operator: str
    sources: tuple[int, ...]
    state: State
    module: str = ""
    line: tuple[str, int] | None = None
    weak: bool = False


@dataclass
class Parting:
    """What one computation shows of the place where the two part.

    Attributes:
        lost: the values that the other computation lacks and that reach a result that differs by a way on which it
            lacks everything, in order.
        roots: those of them that follow from no other.
    """

    lost: list[int] = field(default_factory=list)
    roots: list[int] = field(default_factory=list)


def part(points: Sequence[Point], targets: Iterable[int]) -> Parting:
    """Find where a computation leaves what it shares with the other one.

    A value that the other computation lacks is no sign of a difference by itself: the same can be computed in other
    steps. It is one if nothing shared stands between it and a result that differs.

    Args:
        points: its values, each after its sources.
        targets: the results that differ; without any, all values that nothing else is computed from.
    """
    chosen = set(targets) or set(range(len(points))) - {source for point in points for source in point.sources}
    reaches = [False] * len(points)
    for place in range(len(points) - 1, -1, -1):
        reaches[place] = (reaches[place] or place in chosen) and points[place].state is not State.SHARED
        if reaches[place]:
            for source in points[place].sources:
                reaches[source] = True
    found, lost = Parting(), set()
    for place, point in enumerate(points):
        follows = any(source in lost for source in point.sources)
        if not reaches[place] or (not follows and (point.weak or point.state is State.SILENT)):
            continue
        lost.add(place)
        if point.state is State.ALONE:
            found.lost.append(place)
            if not follows:
                found.roots.append(place)
    return found


def recovering(points: Sequence[Point]) -> list[bool]:
    """Of each value, whether something that follows from it is shared."""
    found = [False] * len(points)
    for place in range(len(points) - 1, -1, -1):
        if found[place] or points[place].state is State.SHARED:
            for source in points[place].sources:
                found[source] = True
    return found


def between(points: Sequence[Point], place: int) -> list[int]:
    """The values between the last shared ones and a place that are alone."""
    found: set[int] = set()
    pending = list(points[place].sources)
    while pending:
        source = pending.pop()
        if source not in found and points[source].state is State.ALONE:
            found.add(source)
            pending.extend(points[source].sources)
    return sorted(found)


def following(points: Sequence[Point], root: int) -> set[int]:
    """The values that are computed from one, and that one."""
    found = {root}
    for place in range(root + 1, len(points)):
        if not found.isdisjoint(points[place].sources):
            found.add(place)
    return found
