"""From what is executed to what was decided. Standard library only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from pytest_torchexport.branches.bytecode import plan_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

    from pytest_torchexport.branches.bytecode import Effect, Jump, Plan
    from pytest_torchexport.branches.positions import Loop
    from pytest_torchexport.branches.sites import Site


_FILES: WeakKeyDictionary[Callable[[str], bool], dict[str, bool]] = WeakKeyDictionary()
"""What predicates said of files."""


def _files_of(is_users: Callable[[str], bool]) -> dict[str, bool]:
    try:
        return _FILES.setdefault(is_users, {})
    except TypeError:  # it cannot be referred to weakly, or has no hash
        return {}


class Run:
    """What is known of one frame while it runs."""

    __slots__ = ("active", "inside", "jump", "plan", "serial")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.active: list[list[Any]] = []
        """The loops it is in, outer ones first, with the number of iterations begun."""
        self.inside: tuple[Loop, ...] | None = None
        self.jump: Jump | None = None
        """The jump that was just executed."""
        self.serial = 0


class Recorder:
    """Turns what is executed into events."""

    def __init__(self, is_users: Callable[[str], bool], limit: int) -> None:
        self.events: list[tuple[Site, bool | int]] = []
        self.truncated = False
        self.error: Exception | None = None
        self.is_on = True
        self.runs: dict[int, Run] = {}
        """By the id of the frame."""
        self._is_users, self._limit = is_users, limit
        self.plans: dict[int, tuple[CodeType, Plan | None]] = {}
        """By the id of the code, which is kept alive."""
        self._files = _files_of(is_users)
        self._abandoned: list[Run] = []
        self._again: Jump | None = None
        self._serial = 0

    def plan(self, code: CodeType) -> Plan | None:
        """How to observe a code object, None if it is none of the user's or decides nothing."""
        known = self.plans.get(id(code))
        if known is None:
            filename = code.co_filename
            if filename not in self._files:
                self._files[filename] = bool(self._is_users(filename))
            known = self.plans[id(code)] = (code, plan_of(code) if self._files[filename] else None)
        return known[1]

    def fail(self, error: Exception) -> None:
        """Give up."""
        self.is_on = False
        self.error = self.error or error

    def run(self, frame: FrameType, plan: Plan, *, fresh: bool = False) -> Run:
        """What is known of a frame; a fresh one may have the id of one that is gone."""
        run = self.runs.get(id(frame))
        if run is None or fresh or run.plan is not plan:
            if run is not None:
                self.abandon(run)
            run = self.runs[id(frame)] = Run(plan)
        return run

    def step(self, run: Run, offset: int) -> None:
        """The instruction at the offset is executed next."""
        if run.jump is not None:
            jump, run.jump = run.jump, None
            effect = jump.effects.get(offset)
            if effect is not None:
                self.apply(run, jump, effect)
        mark = run.plan.marks.get(offset)
        if mark is None:
            return
        run.jump = mark.jump
        if mark.inside is not run.inside and mark.inside is not None:
            run.inside = mark.inside
            while run.active and run.active[-1][0] not in mark.inside:
                self._end(run)
        begins = mark.begins
        if begins is not None and (self._is_new(run, begins) or run.active[-1][0] is begins):
            self._begin(run, begins)
        if mark.ends is not None:
            self._end_of(run, mark.ends)
        if mark.enters is not None:
            self._add(mark.enters, outcome=True)

    def apply(self, run: Run | None, jump: Jump, effect: Effect) -> None:
        """A jump went one way. Without a run there is nothing that concerns loops."""
        if self._again is not None:
            repeated, self._again = self._again is jump, None
        else:
            repeated = False
        self._again = effect.again
        if effect.event is not None and not repeated:
            self._add(*effect.event)
        if run is not None:
            if effect.begins is not None:
                self._begin(run, effect.begins)
            if effect.ends is not None:
                self._end_of(run, effect.ends)

    def leave(self, frame: FrameType) -> None:
        """A frame returns, or an exception leaves it."""
        run = self.runs.pop(id(frame), None)
        while run is not None and run.active:
            self._end(run)

    def abandon(self, run: Run) -> None:
        """A generator is gone before it was at its end: not every Python tells when."""
        if run.active:
            self._abandoned.append(run)

    def finish(self) -> None:
        """Enter the loops of which nothing told the end."""
        for run in sorted((*self._abandoned, *self.runs.values()), key=lambda run: run.serial):
            while run.active:
                self._end(run)
        self.plans.clear()

    def _is_new(self, run: Run, loop: Loop) -> bool:
        return all(active[0] is not loop for active in run.active)

    def _begin(self, run: Run, loop: Loop) -> None:
        if run.active and run.active[-1][0] is loop:  # by far the most frequent
            run.active[-1][1] += 1
            return
        if self._is_new(run, loop):
            if not run.active:
                self._serial += 1
                run.serial = self._serial
            run.active.append([loop, 1])
            return
        while run.active[-1][0] is not loop:
            self._end(run)
        run.active[-1][1] += 1

    def _end_of(self, run: Run, loop: Loop) -> None:
        if self._is_new(run, loop):
            self._add(loop.site, 0)
            return
        while run.active[-1][0] is not loop:
            self._end(run)
        self._end(run)

    def _end(self, run: Run) -> None:
        loop, count = run.active.pop()
        self._add(loop.site, count)

    def _add(self, site: Site, outcome: bool | int) -> None:  # noqa: FBT001
        if len(self.events) >= self._limit:
            self.truncated = True
            self.is_on = False
        else:
            self.events.append((site, outcome))
