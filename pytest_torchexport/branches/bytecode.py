"""From the bytecode of a function to its decisions: what each jump decides, where loops begin an iteration and end."""

from __future__ import annotations

import dis
import weakref
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pytest_torchexport.branches.positions import Decisions, Loop, Tested
from pytest_torchexport.branches.sites import Position, Site, Source, source_of

if TYPE_CHECKING:
    from types import CodeType

_GLUE = frozenset(("COPY", "TO_BOOL", "NOP", "EXTENDED_ARG", "NOT_TAKEN", "JUMP_FORWARD"))
"""What may stand between the instruction that computes a value and the jump that tests it."""
_NO_FALL_THROUGH = ("RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE", "JUMP_FORWARD", "JUMP_BACKWARD")
_DOUBLE_LOADS = ("LOAD_FAST_LOAD_FAST", "STORE_FAST_LOAD_FAST", "LOAD_FAST_BORROW_LOAD_FAST_BORROW")
_JUMPS = frozenset((*dis.hasjrel, *dis.hasjabs))
_COMPARISONS = ("COMPARE_OP", "IS_OP", "CONTAINS_OP")


@dataclass(eq=False, slots=True)
class Jump:
    """A jump that may go two ways, and what follows from each, by the offset where execution goes on."""

    effects: dict[int, Effect] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Effect:
    """What is known once a jump went one way."""

    event: tuple[Site, bool] | None = None
    begins: Loop | None = None
    """The loop of which an iteration begins."""
    ends: Loop | None = None
    again: Jump | None = None
    """A jump right behind this one that tests the same value once more."""


@dataclass(eq=False, slots=True)
class Mark:
    """What is to be done when execution comes to an instruction."""

    inside: tuple[Loop, ...] | None
    """The loops it is part of, outer ones first; None where that is not known."""
    jump: Jump | None = None
    begins: Loop | None = None
    ends: Loop | None = None
    enters: Site | None = None
    """The `except` clause that is entered."""


@dataclass(eq=False, slots=True)
class Plan:
    """How to observe one code object."""

    jumps: dict[int, Jump] = field(default_factory=dict)
    marks: dict[int, Mark] = field(default_factory=dict)
    loops: list[Loop] = field(default_factory=list)
    arrivals: set[int] = field(default_factory=set)
    """Where the jumps lead."""
    yields: set[int] = field(default_factory=set)
    start: int = 0
    """The offset of the instruction at which a frame is entered for the first time."""
    every_instruction: bool = False
    """Whether the jumps alone do not tell all."""


def plan_of(code: CodeType) -> Plan | None:
    """How to observe a code object; None if nothing in it decides, or its source cannot be had."""
    known = _PLANS.get(id(code))
    if known is None or known[0]() is not code:
        key = id(code)
        known = _PLANS[key] = (weakref.ref(code, lambda _: _PLANS.pop(key, None)), _plan(code))
    return known[1]


def _plan(code: CodeType) -> Plan | None:
    source = source_of(code.co_filename)
    if source is None:
        return None
    decisions = _DECISIONS.get(source)
    if decisions is None:
        decisions = _DECISIONS[source] = Decisions(source)
    if not decisions.defines(code.co_name, code.co_firstlineno):
        return None
    plan = _Reader(code, decisions).read()
    return plan if plan.jumps or plan.marks else None


_PLANS: dict[int, tuple[weakref.ref[CodeType], Plan | None]] = {}
_DECISIONS: weakref.WeakKeyDictionary[Source, Decisions] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class _Test:
    """What a jump tests."""

    tested: Tested
    partial: bool
    """A comparison of several parts is not settled if this part holds."""
    kept: bool
    """The value is needed after the jump."""


class _Reader:
    """Reads one code object."""

    def __init__(self, code: CodeType, decisions: Decisions) -> None:
        self._code = code
        self._decisions = decisions
        self._plan = Plan()
        self._iterators: dict[int, Loop] = {}
        self._instructions = [i for i in dis.get_instructions(code) if i.opname != "CACHE"]
        self._positions = self._read_positions()
        self._index = {instruction.offset: n for n, instruction in enumerate(self._instructions)}
        self._jumpers: dict[int, list[int]] = {}
        for n, instruction in enumerate(self._instructions):
            if instruction.opcode in _JUMPS:
                self._jumpers.setdefault(self._index[instruction.argval], []).append(n)

    def _read_positions(self) -> list[Position | None]:
        positions = list(self._code.co_positions())
        found: list[Position | None] = []
        for instruction in self._instructions:
            line, end_line, column, end_column = positions[instruction.offset // 2]
            if line is None or end_line is None or column is None or end_column is None:
                found.append(None)
            else:
                found.append((line, column, end_line, end_column))
        return found

    def read(self) -> Plan:
        """The plan."""
        self._find_loops()
        for n, instruction in enumerate(self._instructions):
            if instruction.opname == "YIELD_VALUE":
                self._plan.yields.add(instruction.offset)
            elif instruction.opname == "RESUME" and instruction.arg == 0:
                self._plan.start = instruction.offset
            elif n in self._iterators:
                self._add_iteration(n)
            elif _is_conditional(instruction) and not self._add_match(n):
                self._add_test(n)
        self._add_marks()
        return self._plan

    # --- loops --------------------------------------------------------------------------------------------------

    def _find_loops(self) -> None:
        name = self._code.co_name
        owner = (name, 0 if name == "<module>" else self._code.co_firstlineno)
        loops = [loop for loop in self._decisions.loops if loop.owner == owner and not loop.iterates]
        for n, instruction in enumerate(self._instructions):
            position = self._positions[n + 1] if instruction.opname == "FOR_ITER" else None
            loop = self._decisions.loop_into(position) if position is not None else None
            if loop is not None:
                self._iterators[n] = loop
                if loop not in loops:
                    loops.append(loop)
        loops.sort(key=lambda loop: (loop.span[:2], tuple(-end for end in loop.span[2:]), loop.first))
        self._plan.loops = loops
        self._plan.every_instruction = any(loop.leaves_early or loop.by_arrival for loop in loops)

    def _add_iteration(self, n: int) -> None:
        loop = self._iterators[n]
        for effect in self._effects(n, jumped=False):
            effect.begins = loop
        for effect in self._effects(n, jumped=True):
            effect.ends = loop

    def _add_marks(self) -> None:
        """Mark the instructions that matter; a loop's end matters where execution may come from inside it."""
        begun: set[Loop] = set()
        cache: dict[tuple[Loop, ...], tuple[Loop, ...]] = {}
        regions = [self._inside(n) for n in range(len(self._instructions))]
        regions = [region if region is None else cache.setdefault(region, region) for region in regions]
        for n, instruction in enumerate(self._instructions):
            position, inside = self._positions[n], regions[n]
            mark = Mark(inside, self._plan.jumps.get(instruction.offset))
            if position is not None:
                for loop in inside or ():
                    if loop.by_arrival and loop not in begun and position[:2] >= loop.first:
                        begun.add(loop)
                        mark.begins = loop
                if instruction.opname == "END_ASYNC_FOR":
                    mark.ends = next((loop for loop in self._plan.loops if loop.is_over(position)), None)
                elif instruction.opname == "POP_TOP" and self._decisions.is_bare(position):
                    mark.enters = self._decisions.caught_at(position)
                    self._plan.every_instruction = True
            before = self._before(n)
            moved = inside is not None and (not before or any(regions[source] is not inside for source, _ in before))
            if mark.jump or mark.enters or (self._plan.loops and (moved or mark.begins or mark.ends)):
                self._plan.marks[instruction.offset] = mark
        self._plan.arrivals = {offset for jump in self._plan.jumps.values() for offset in jump.effects}

    def _inside(self, n: int) -> tuple[Loop, ...] | None:
        position = self._positions[n]
        if position is None or self._instructions[n].opname in ("EXTENDED_ARG", "RESUME"):
            return None
        its_own = self._iterators.get(n)
        return tuple(loop for loop in self._plan.loops if loop is its_own or loop.holds(position))

    # --- jumps --------------------------------------------------------------------------------------------------

    def _effects(self, n: int, *, jumped: bool) -> list[Effect]:
        """The effects of one way to go on after the jump `n`, one for each offset that may be reported for it."""
        target = self._index[self._instructions[n].argval]
        if target == n + 1:
            return []  # both ways lead to the same place
        jump = self._plan.jumps.get(self._instructions[n].offset)
        if jump is None:
            jump = self._plan.jumps[self._instructions[n].offset] = Jump()
            prefix = n - 1
            while prefix >= 0 and self._instructions[prefix].opname == "EXTENDED_ARG":
                self._plan.jumps[self._instructions[prefix].offset] = jump
                prefix -= 1
        return [jump.effects.setdefault(offset, Effect()) for offset in self._arrivals(n, target if jumped else n + 1)]

    def _arrivals(self, jump: int, at: int) -> list[int]:
        """Offsets that may be reported for the place where a jump leads: prefixes, and a loop's end, may be skipped."""
        skipped = ["EXTENDED_ARG", "NOT_TAKEN"]
        if jump in self._iterators and at == self._index[self._instructions[jump].argval]:
            skipped += ["END_FOR", "POP_TOP", "POP_ITER"]
        found = [self._instructions[at].offset]
        while self._instructions[at].opname in skipped and at + 1 < len(self._instructions):
            at += 1
            found.append(self._instructions[at].offset)
        return found

    def _add_match(self, n: int) -> bool:
        """Whether the jump comes from an `except` clause; if so, it is entered where the jump is not taken."""
        before = n - 1
        while before > 0 and self._instructions[before].opname in _GLUE:
            before -= 1
        if self._instructions[before].opname not in ("CHECK_EXC_MATCH", "CHECK_EG_MATCH"):
            return False
        position = self._positions[before]
        site = self._decisions.caught_at(position) if position is not None else None
        if site is not None:
            for effect in self._effects(n, jumped=False):
                effect.event = (site, True)
        return True

    def _add_test(self, n: int) -> None:
        opname = self._instructions[n].opname
        found, doubled = self._tests(n)
        test = found.pop() if len(found) == 1 else None
        if test is not None and not (test.partial and test.kept):
            if_jumped = "_TRUE" in opname or opname.endswith("IF_NONE")
            for jumped in (True, False):
                self._add_outcome(n, test, jumped=jumped, holds=jumped is if_jumped)
        again = self._plan.jumps.get(self._instructions[n].offset)
        if again is not None:
            for first in doubled:
                for effect in self._effects(first, jumped=True):
                    effect.again = again

    def _add_outcome(self, n: int, test: _Test, *, jumped: bool, holds: bool) -> None:
        """What it means that the tested value is true (or None, where that is asked) or not."""
        tested, of_none = test.tested, "NONE" in self._instructions[n].opname
        outcome = holds is tested.if_none if of_none else holds is not tested.inverted
        if test.partial and outcome:
            return
        for effect in self._effects(n, jumped=jumped):
            effect.event = (tested.site, outcome)
            for loop in self._plan.loops:
                truth = loop.truths.get((tested.site, outcome))
                if truth is True:
                    effect.begins = loop
                elif truth is False:
                    effect.ends = loop

    def _tests(self, n: int) -> tuple[set[_Test | None], list[int]]:
        """What the jump `n` tests, by way of each instruction that may have computed it; and the jumps that lead here.

        A None among the tests: something that is no condition of the source, or not known to be one.
        """
        found: set[_Test | None] = set()
        doubled: list[int] = []
        todo, seen = [(n, "OR_POP" in self._instructions[n].opname)], {n}
        while todo:
            at, kept = todo.pop()
            kept = kept or self._instructions[at].opname == "COPY"
            for before, jumped in self._before(at):
                if _is_conditional(self._instructions[before]):
                    if jumped:
                        doubled.append(before)
                    else:
                        found.add(None)
                elif (test := self._test_of(before, at, n, kept=kept)) is not None:
                    found.add(test)
                elif self._instructions[before].opname not in _GLUE:
                    found.add(None)
                elif before not in seen:
                    seen.add(before)
                    todo.append((before, kept))
        return found, doubled

    def _before(self, n: int) -> list[tuple[int, bool]]:
        """Where execution may come from to an instruction, and whether by a jump."""
        found = [(source, True) for source in self._jumpers.get(n, ())]
        if n > 0 and not self._instructions[n - 1].opname.startswith(_NO_FALL_THROUGH):
            found.append((n - 1, False))
        return found

    def _test_of(self, n: int, behind: int, jump: int, *, kept: bool) -> _Test | None:
        """What the value that an instruction computes says about a condition; `behind` is what comes next."""
        instruction, position = self._instructions[n], self._positions[n]
        for_none = "NONE" in self._instructions[jump].opname
        if position is None or instruction.opname == "WITH_EXCEPT_START":
            return None
        tested: Tested | None
        if instruction.opname in _DOUBLE_LOADS:  # they have the position of the first of two
            name, at = instruction.argval[1], self._positions[behind]
            if for_none:
                tested = self._decisions.tested_none_by_name(name, position[0], at)
            else:
                tested = self._decisions.tested_first(at, name) if at is not None else None
        elif for_none:
            tested = self._decisions.tested_none(position)
        elif instruction.opname in _GLUE and (instruction.opname != "TO_BOOL" or self._is_copied(n)):
            return None  # it has the position of the whole `and` or `or`, or of something else
        else:
            tested = self._decisions.tested(position, instruction.opname)
        if tested is None:
            return None
        if tested.negative is not None and instruction.opname in ("IS_OP", "CONTAINS_OP"):
            # The compiler turns `not a in b` into `a not in b`, which has the position of `a in b`.
            tested = replace(tested, inverted=tested.inverted ^ tested.negative ^ bool(instruction.arg))
        partial = tested.chained and instruction.opname in _COMPARISONS and self._is_copied(n)
        return _Test(tested, partial=partial, kept=kept)

    def _is_copied(self, n: int) -> bool:
        return n > 0 and self._instructions[n - 1].opname == "COPY"


def _is_conditional(instruction: dis.Instruction) -> bool:
    return instruction.opcode in _JUMPS and instruction.opname.endswith(("_TRUE", "_FALSE", "_NONE", "_OR_POP"))
