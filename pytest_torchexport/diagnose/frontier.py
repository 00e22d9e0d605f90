"""Where two computations part: the first value of each that the other does not have, and what lies behind it."""

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
        roots: the lost values that follow from no lost one.
        lost: all of them that lead to where the results differ, in order: alone, and nothing that follows from them is
            shared again.
    """

    roots: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)


def part(points: Sequence[Point], targets: Iterable[int]) -> Parting:
    """Find where a computation leaves what it shares with the other one.

    Args:
        points: its values, each after its sources.
        targets: the values that are known to differ; only what leads to them counts.
    """
    recovers = _recovers(points)
    leading = _leading(points, targets)
    lost: set[int] = set()
    found = Parting()
    for place, point in enumerate(points):
        follows = any(source in lost for source in point.sources)
        if point.state is State.SILENT and follows:
            lost.add(place)
        if point.state is not State.ALONE or recovers[place] or place not in leading or (point.weak and not follows):
            continue
        lost.add(place)
        found.lost.append(place)
        if not follows:
            found.roots.append(place)
    return found


def _recovers(points: Sequence[Point]) -> list[bool]:
    """Of each value, whether something that follows from it is shared."""
    recovers = [False] * len(points)
    for place in range(len(points) - 1, -1, -1):
        if points[place].state is State.SHARED or recovers[place]:
            for source in points[place].sources:
                recovers[source] = True
    return recovers


def _leading(points: Sequence[Point], targets: Iterable[int]) -> set[int]:
    """All that a target follows from, and the targets."""
    leading: set[int] = set()
    pending = list(targets)
    while pending:
        place = pending.pop()
        if place not in leading:
            leading.add(place)
            pending.extend(points[place].sources)
    return leading


def between(points: Sequence[Point], place: int) -> list[int]:
    """The values between the last shared ones and a place: alone, though something that follows from them is shared."""
    found: set[int] = set()
    pending = list(points[place].sources)
    while pending:
        source = pending.pop()
        if source not in found and points[source].state is State.ALONE:
            found.add(source)
            pending.extend(points[source].sources)
    return sorted(found)


def follows_from(points: Sequence[Point], place: int, root: int) -> bool:
    """Whether one value is computed from another."""
    return root in _leading(points, [place])
