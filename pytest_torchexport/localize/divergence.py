"""What is said of the place where an exported program and eager part, from what each side shows of it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_torchexport.localize.frontier import State, between, following, recovering
from pytest_torchexport.localize.kinds import kind_of
from pytest_torchexport.outcome import Divergence
from pytest_torchexport.subject import source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_torchexport.localize.frontier import Parting, Point
    from pytest_torchexport.outcome import Location

_CAST = re.compile(r"^(Cast|CastLike|(aten::|aten\.)(to|_to_copy|half|float|double|type_as))\b")

_GROUP = 20
"""Operators of a group that are named."""


@dataclass
class Side:
    """One computation, and where it leaves the other one.

    Attributes:
        points: its values.
        parting: where it leaves the other one.
        names: what it calls the values.
        scores: how far each value is from its counterpart, or else from the nearest value of the other computation.
    """

    points: Sequence[Point]
    parting: Parting
    names: Sequence[str]
    scores: Sequence[float]

    def named(self, places: Sequence[int]) -> tuple[str, ...]:
        """Operators with the names of their values."""
        return tuple(
            f"{self.points[place].operator} ({self.names[place]})" if self.names[place] else self.points[place].operator
            for place in places[:_GROUP]
        )


def conclude(program: Side, eager: Side) -> Divergence | None:
    """Say where the program leaves eager; None where neither side shows it."""
    if not program.parting.roots:
        return _missing_at_end(eager, eager.parting.roots[0]) if eager.parting.roots else None
    first = program.parting.roots[0]
    theirs = program.points[first]
    if not eager.parting.roots:
        return _only_program(program, first, "no operator of eager's could be named")
    lost = _belonging(eager, theirs)
    mine = eager.points[lost]
    if not _apart(mine, theirs):
        return _same_place(program, eager, first, lost)
    if _counterparts(eager, theirs, lost):
        return _left_out(program, eager, first, lost)
    if _counterparts(program, mine, first):
        note = f"eager has no such operator here; it goes on with {mine.operator}"
        return _only_program(program, first, note)
    where = f" at {Path(mine.line[0]).name}:{mine.line[1]}" if mine.line is not None else ""
    return _only_program(program, first, f"eager goes on with {mine.operator}{where}")


def _belonging(eager: Side, theirs: Point) -> int:
    """The root on eager's side that belongs to the program's: on its line, or else leading to its counterpart."""
    roots = eager.parting.roots
    same = [place for place in roots if not _apart(eager.points[place], theirs)]
    alike = [place for place in same if kind_of(eager.points[place].operator) == kind_of(theirs.operator)]
    leading = [place for place in roots if _counterparts(eager, theirs, place)]
    return (alike or same or leading or roots)[0]


def _same_place(program: Side, eager: Side, first: int, lost: int) -> Divergence:
    """Both part on the same line and in the same submodule: which operators do the two have there?"""
    mine = eager.points[lost]
    if program.points[first].line is None and _kind(program, first) == _kind(eager, lost):
        # The program does not know its lines, so what else stands on this one cannot be told.
        return _with_place(_divergence(program, first, [], mine.operator, ""), mine)
    if _CAST.search(program.points[first].operator) and not _CAST.search(mine.operator):
        # A cast whose result is not in eager has lost something: it is no mere move.
        return _only_program(program, first, f"eager has no such operator here; it goes on with {mine.operator}")
    here, there = _computing(program, first), _computing(eager, lost)
    alike = 0
    while alike < min(len(here), len(there)) and _kind(program, here[-1 - alike]) == _kind(eager, there[-1 - alike]):
        alike += 1
    more, less = here[: len(here) - alike], there[: len(there) - alike]
    if not more and len(less) == 1:
        return _left_out(program, eager, first, less[0])
    if len(more) == 1 and not less:
        return _only_program(program, first, f"eager has no such operator here; it goes on with {mine.operator}")
    if len(more) <= 1:
        whole = f"eager computes it in {len(less)} operators, from {mine.operator} on" if len(less) > 1 else ""
        return _with_place(_divergence(program, first, [], mine.operator, whole), mine)
    note = f"eager computes this line in other operators, from {mine.operator} on: the fault may be in any of these"
    return _with_place(_divergence(program, first, more, mine.operator, note), mine)


def _with_place(found: Divergence, mine: Point) -> Divergence:
    """What was found; the line and the submodule from eager, for a program that does not know its lines."""
    if found.location is not None:
        return found
    return replace(found, location=_location(mine), module=found.module or mine.module)


def _left_out(program: Side, eager: Side, first: int, lost: int) -> Divergence:
    """Eager parts before the program does: what it computes there is not in the program, or does nothing there."""
    mine, theirs = eager.points[lost], program.points[first]
    silent = [
        source
        for source in theirs.sources
        if not _apart(program.points[source], mine) and program.points[source].line is not None
    ]
    note = f"nothing in the program is what {mine.operator} computes: {theirs.operator} is given what comes before it"
    found = _divergence(program, first, silent, mine.operator, note)
    return Divergence(
        module=mine.module,
        operator=found.operator,
        eager=mine.operator,
        name=found.name,
        location=_location(mine),
        score=found.score,
        inputs_score=found.inputs_score,
        group=found.group,
        note=note,
    )


def _missing_at_end(eager: Side, lost: int) -> Divergence:
    mine = eager.points[lost]
    return Divergence(
        module=mine.module,
        eager=mine.operator,
        location=_location(mine),
        score=math.inf,
        note=f"nothing in the program is what {mine.operator} computes; all that the program computes is in eager too",
    )


def _only_program(program: Side, first: int, note: str) -> Divergence:
    return _divergence(program, first, [], "", note)


def _divergence(program: Side, first: int, group: Sequence[int], eager: str, note: str) -> Divergence:
    point = program.points[first]
    places = sorted({*between(program.points, first), *_doubted(program, first), *group} - {first})
    inputs = [program.scores[place] for place in point.sources if program.points[place].state is State.SHARED]
    notes = [note] if note else []
    if len(places) > _GROUP:
        notes.append(f"and {len(places) - _GROUP} more operators")
    return Divergence(
        module=point.module,
        operator=point.operator,
        eager=eager,
        name=program.names[first],
        location=_location(point),
        score=program.scores[first],
        inputs_score=max(inputs, default=0.0),
        group=program.named(sorted({*places, first})) if places else (),
        note="; ".join(notes),
    )


def _doubted(program: Side, first: int) -> list[int]:
    """Where something that follows from the first value is in eager: the lost values up to one of which nothing is."""
    recovers = recovering(program.points)
    if not recovers[first]:
        return []
    after = following(program.points, first)
    lost = [place for place in program.parting.lost if place in after]
    sure = next((n for n, place in enumerate(lost) if not recovers[place]), len(lost))
    return lost[: sure + 1]


def _apart(one: Point, other: Point) -> bool:
    """Whether two operators are known to belong to different lines or submodules."""
    if one.module and other.module and one.module != other.module:
        return True
    return one.line is not None and other.line is not None and one.line != other.line


def _computing(side: Side, first: int) -> list[int]:
    """The lost values on the line and in the submodule of the first one, without those that were only moved."""
    here: list[int] = []
    for place in side.parting.lost:
        if _apart(side.points[place], side.points[first]) or _kind(side, place) == "move":
            continue
        if not here or not _of_one_operator(side.points[here[-1]], side.points[place]):
            here.append(place)
    return here


def _of_one_operator(one: Point, other: Point) -> bool:
    """Whether two values that come one after the other are results of one operator."""
    return (one.operator, one.sources, one.line) == (other.operator, other.sources, other.line)


def _kind(side: Side, place: int) -> str:
    return kind_of(side.points[place].operator)


def _counterparts(side: Side, wanted: Point, root: int) -> list[int]:
    """Lost values that follow from a root, of the kind that is wanted and at its place."""
    after = following(side.points, root)
    return [
        place
        for place in side.parting.lost
        if place != root
        and kind_of(side.points[place].operator) == kind_of(wanted.operator)
        and not _apart(side.points[place], wanted)
        and place in after
    ]


def _location(point: Point) -> Location | None:
    return source.locate(*point.line) if point.line is not None else None
