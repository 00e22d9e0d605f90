"""The search: inputs for the outcomes that no input took, gradients first, then what may be tried, then chance."""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.branches.bytecode import plan_of
from pytest_torchexport.branches.coverage import OTHER, Coverage
from pytest_torchexport.branches.discrete import Candidate, candidates
from pytest_torchexport.branches.flip import Goal, flip
from pytest_torchexport.branches.follow import Followed, Runner, follow
from pytest_torchexport.branches.implied import implied
from pytest_torchexport.branches.instrument import definition
from pytest_torchexport.branches.observation import Endless, Observation, Observing, Taken
from pytest_torchexport.branches.sites import Kind, Site
from pytest_torchexport.branches.twins import decides
from pytest_torchexport.inputs.constants import mine
from pytest_torchexport.subject.call import forward_of
from pytest_torchexport.subject.run import Record

if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Iterable, Mapping

    from pytest_torchexport.inputs.space import Space
    from pytest_torchexport.outcome import BranchCoverage
    from pytest_torchexport.subject.call import Call

Calls = tuple["Call", ...]

BUDGET = 400
"""Runs of the eager module that a search may cost by default: about a second for a small model."""

_FOLLOW = 3
"""What an instrumented run with a backward pass costs, in plain runs."""
_LONGER, _FUNCTIONS = 30, 3000
"""How much more than the example an input may run, in torch's functions: what loops on for ever is no input."""
_BASES = 4
"""Inputs from which a decision is tried to be flipped."""
_PER_GOAL = 60
"""Runs that go into the gradient search for one outcome before others have had their turn."""


@dataclass
class Found:
    """An input that takes an outcome which no input took before."""

    calls: Calls
    goals: list[tuple[Site, Any]]
    label: str
    taken: Taken


@dataclass
class _Known:
    """An input that ran: what it took, and its instrumented run if there was one."""

    calls: Calls
    observation: Observation
    followed: Followed | None = None


@dataclass
class Search:
    """Finds inputs that take the branches which the others did not.

    Args:
        runner: runs eager from the starting state.
        space: what may vary.
        is_users: whether the code of a file counts as the user's.
        budget: how many runs it may cost; 0 observes only.
        seed: the source of chance.
        state: tensors of the model's state by name.
        accepts: whether an input is one that the model is meant for (`assume`).
        draws: further generated inputs.
    """

    runner: Runner
    space: Space
    is_users: Callable[[str], bool]
    budget: int
    seed: int
    state: Mapping[str, Any]
    accepts: Callable[[Calls], bool]
    draws: Iterable[Calls] = ()
    coverage: Coverage = field(default_factory=Coverage)
    changing: set[str] = field(default_factory=set)
    runs: int = 0
    found: list[Found] = field(default_factory=list)
    has_decisions: bool = False
    _limit: float = math.inf
    _pool: list[_Known] = field(default_factory=list)
    _kept: list[Calls] = field(default_factory=list)
    _efforts: dict[tuple[Site, Any], dict[str, int]] = field(default_factory=dict)
    _pending: list[tuple[Calls, Observation, list[tuple[Site, Any]]]] = field(default_factory=list)

    # --- the inputs that are there anyway -------------------------------------------------------------------------

    def observing(self) -> Observing:
        """What a run is entered under to be observed."""
        return Observing(self.is_users, self._limit)

    def start(self, calls: Calls, observation: Observation, functions: int) -> None:
        """Note what the example took, and how much it ran; learn which of its decisions depend on the input."""
        self.changing |= set(observation.record.state or ())
        self.coverage.start(observation.taken)
        self._limit = _LONGER * functions + _FUNCTIONS
        self.has_decisions = bool(observation.taken) or decides(self.space.model, self.is_users)
        if self.has_decisions:
            self._learn(calls, observation)

    def watch(self, calls: Calls, kind: str, label: str) -> Observation:
        """Run another input that is checked anyway under observation, and note what it took."""
        observation = self._watch(calls)
        if observation.record.error is None:
            self.changing |= set(observation.record.state or ())
            if self.coverage.note(observation.taken, kind, label):
                self._pool.append(_Known(calls, observation))
        return observation

    def _watch(self, calls: Calls) -> Observation:
        observing = self.observing()
        try:
            record = self.runner(calls, mode=observing)
        except Endless:
            record = Record(error=RuntimeError("the run takes far longer than the example: its loop may never end"))
        self.changing |= set(record.state or ())
        return Observation(record, observing.taken, observing.path)

    def _learn(self, calls: Calls, observation: Observation) -> None:
        """Follow an input that runs, so that the decisions on its way are known."""
        followed = self._follow(calls)
        if followed is None:
            return
        self._pool.append(_Known(calls, observation, followed))
        sites: dict[Site, None] = {}
        for test in followed.tests:
            if test.size and not self.space.sizes():
                continue
            sites[test.site] = None
            if test.loop is not None:
                sites[test.loop] = None
        for number in followed.numbers:
            if not number.size:
                sites[number.site] = None
        sites |= dict.fromkeys(followed.loops)
        self.coverage.depends(site for site in sites if site in observation.taken)
        self.coverage.depends(site for site in self._implied(followed) if site in observation.taken)

    def _implied(self, followed: Followed) -> Iterable[Site]:
        """The decisions that depend on the input because others, or arguments that are no tensors, do."""
        root = getattr(forward_of(self.space.model), "__code__", None)
        plain = {path for path, one in self.space.numbers(self.space.example).items() if not one.value.dim()}
        names = {path for path in (*self.space.alternatives(), *plain) if path.isidentifier()}
        known = self.coverage.sites()
        for code in followed.codes:
            found = definition(code)
            if found is not None and not isinstance(found[1], ast.Lambda):
                yield from implied(found[0], found[1], known, names if code is root else ())

    # --- the search -----------------------------------------------------------------------------------------------

    def search(self) -> list[Found]:
        """Look for inputs for all outcomes that are missing, as long as the budget lasts."""
        if not self.has_decisions or self.budget <= 0:
            return []
        for known in list(self._pool):
            if known.followed is None and self._left() > 0 and self._is_new_ground(known):
                self._learn(known.calls, known.observation)
        attempted: set[tuple[Any, ...]] = set()
        self._follow_gradients(attempted)
        self._try_out()
        self._follow_gradients(attempted)
        self._drive_loops()
        self._by_chance(attempted)
        for goal in self.coverage.missing():
            efforts = self._efforts.get(goal, {})
            text = ", ".join(f"{n} {what}" for what, n in efforts.items()) or "nothing: the budget was spent"
            self.coverage.tried(goal, text)
        return self.found

    def _left(self) -> int:
        return self.budget - self.runs

    def _is_new_ground(self, known: _Known) -> bool:
        """Whether an input comes to places that no followed input came to."""
        followed = {site for one in self._pool if one.followed is not None for site in one.observation.taken}
        return bool(known.observation.taken.keys() - followed)

    # --- what the flips ask for (Prober) --------------------------------------------------------------------------

    def follow(self, calls: Calls) -> Followed | None:
        """An instrumented run; None where eager rejects the input, or nothing is left to spend."""
        if self._left() < _FOLLOW or not self.accepts(calls):
            return None
        return self._follow(calls)

    def _follow(self, calls: Calls) -> Followed | None:
        self.runs += _FOLLOW
        followed = follow(
            self.runner,
            self.space,
            calls,
            is_users=self.is_users,
            state=self.state,
            changing=frozenset(self.changing),
            limit=self._limit,
        )
        return followed if followed.record is not None and followed.record.error is None else None

    def takes(self, calls: Calls, goal: Goal) -> bool:
        """Whether a run without instrumentation reaches the goal; what else it takes is noted if it does."""
        observation = self._observe(calls)
        if observation is None:
            return False
        if goal.loop is not None:
            before = self.coverage.example_took(goal.loop) if goal.beyond is None else goal.beyond
            reached = observation.taken.get(goal.loop) not in (None, before)
        elif goal.site.kind is Kind.NUMBER:
            reached = observation.taken.get(goal.site) not in (None, self.coverage.example_took(goal.site))
        else:
            reached = goal.outcome in observation.taken.get(goal.site, ())
        if reached:
            self._keep(calls, observation)
        return reached

    def _observe(self, calls: Calls) -> Observation | None:
        """Run an input under observation; None where eager rejects it, or nothing is left."""
        if self._left() < 1 or not self.accepts(calls):
            return None
        self.runs += 1
        observation = self._watch(calls)
        return observation if observation.record.error is None else None

    def _keep(self, calls: Calls, observation: Observation) -> bool:
        """Keep an input if it takes an outcome that no other took, and learn from it."""
        new = self.coverage.new(observation.taken)
        if not new:
            return False
        label = self.coverage.label(new)
        self.coverage.note(observation.taken, "search", label)
        self.found.append(Found(calls, new, label, observation.taken))
        if self._left() >= _FOLLOW:
            self._learn(calls, observation)
        return True

    def report(self, mode: str) -> BranchCoverage:
        """What is known of the decisions; the instrumented runs are let go."""
        self._pool.clear()
        return self.coverage.report(mode, self.runs)

    # --- gradients ------------------------------------------------------------------------------------------------

    def _follow_gradients(self, attempted: set[tuple[Any, ...]]) -> None:
        """Flip what is missing, nearest first, again as long as that opens new ground."""
        progress = True
        while progress and self._left() >= _FOLLOW:
            progress = False
            for missing in self.coverage.missing():
                if missing not in self.coverage.missing():
                    continue  # reached on the way
                for known, goal in self._ways(missing):
                    key = (*missing, id(known), goal.site, goal.nth)
                    if key in attempted:
                        continue
                    attempted.add(key)
                    ceiling = self.budget
                    self.budget = min(self.budget, self.runs + _PER_GOAL)
                    try:
                        reached = flip(self, self.space, goal, known.calls, known.followed)
                    finally:
                        self.budget = ceiling
                    self._effort(missing, "gradient searches")
                    if reached is not None and missing not in self.coverage.missing():
                        progress = True
                        break
                    if self._left() < _FOLLOW:
                        return

    def _effort(self, goal: tuple[Site, Any], what: str) -> None:
        efforts = self._efforts.setdefault(goal, {})
        efforts[what] = efforts.get(what, 0) + 1

    def _ways(self, missing: tuple[Site, Any]) -> list[tuple[_Known, Goal]]:
        """Inputs that come to the decision, with what would have to change there, the nearest first."""
        site, outcome = missing
        found: list[tuple[float, int, _Known, Goal]] = []
        for index, known in enumerate(self._pool):
            if known.followed is None:
                continue
            for goal in _goals(site, outcome, known.followed):
                tests = [test for _, test in goal.instances(known.followed)]
                if tests:
                    nearest = min(abs(test.level) for test in tests)
                    found.append((nearest, index, known, goal))
        found.sort(key=lambda one: (one[0] != one[0], one[0], one[1]))
        return [(known, goal) for _, _, known, goal in found[:_BASES]]

    def _drive_loops(self) -> None:
        """Make loops turn more often, and less: what is decided by a counter after or in them has no margin itself."""
        for known in [one for one in self._pool if one.followed is not None][:_BASES]:
            for loop in dict.fromkeys(test.loop for test in known.followed.tests if test.loop is not None):  # type: ignore[union-attr]
                for longer in (True, False):
                    self._drive(known, loop, longer=longer)

    def _drive(self, known: _Known, loop: Site, *, longer: bool) -> None:
        """From one input on, a turn more (or less) at a time, as long as outcomes are missing near the loop."""
        stop = self.runs + _PER_GOAL
        while self.runs < stop and any(site.file == loop.file for site, _ in self.coverage.missing()):
            if known.followed is None:
                return
            tests = [test for test in known.followed.tests if test.loop == loop]
            goals = [goal for goal in _goals(loop, OTHER, known.followed) if goal.outcome is longer]
            goals = [replace(goal, beyond=known.observation.taken.get(loop)) for goal in goals]
            for goal in goals if tests else ():
                reached = flip(self, self.space, goal, known.calls, known.followed)
                observation = self._observe(reached) if reached is not None else None
                if reached is not None and observation is not None:
                    for missing in self.coverage.missing():
                        self._effort(missing, "turns of a loop")
                    known = _Known(reached, observation, self.follow(reached))
                    break
            else:
                return

    # --- candidates -----------------------------------------------------------------------------------------------

    def _try_out(self) -> None:
        """Run candidates as long as something is missing, or options and sizes were not tried yet."""
        bases = [self._pool[0].calls] if self._pool else []
        constants = mine(self.space.model, self._codes())
        number = 0
        while number < len(bases) and number < _BASES:
            generator = torch.Generator().manual_seed(self.seed + number)
            base = bases[number]
            stream = candidates(self.space, base, constants, generator, stateful=bool(self.changing))
            share = self._left() // (2 if number else 1) if number else int(0.75 * self._left())
            self._try(stream, share, bases)
            number += 1
            if not self.coverage.missing():
                break

    def _try(self, stream: Iterable[Candidate], share: int, bases: list[Calls]) -> None:
        stop = self.runs + share
        options = sum(len(values) for values in self.space.alternatives().values())
        patience = options + 8 * len(self.space.sizes()) + 24 * bool(self.changing) + 40 * self._handlers()
        for index, (_, calls) in enumerate(stream):
            missing = self.coverage.missing()
            if self.runs >= stop or (not missing and index >= patience):
                break
            observation = self._observe(calls)
            for goal in missing:
                self._effort(goal, "particular inputs")
            if observation is not None and self._keep(calls, observation):
                bases.append(calls)

    def _handlers(self) -> int:
        """Number of `except` clauses that no input entered; whether one can is not known."""
        handlers = {m.enters for c in self._codes() if (p := plan_of(c)) for m in p.marks.values() if m.enters}
        return min(2, len(handlers - set(self.coverage.sites())))

    def _codes(self) -> list[types.CodeType]:
        codes: dict[types.CodeType, None] = {}
        for known in self._pool:
            if known.followed is not None:
                codes |= dict.fromkeys(known.followed.codes)
        return list(codes)

    # --- chance ---------------------------------------------------------------------------------------------------

    def _by_chance(self, attempted: set[tuple[Any, ...]]) -> None:
        """Spend what is left: drawn inputs, and changes of known ones, kept where a margin comes closer to zero."""
        draws = iter(self.draws)
        generator = torch.Generator().manual_seed(self.seed + 1)
        while (missing := self.coverage.missing()) and self._left() >= 1:
            before = self.runs
            drawn = list(islice(draws, 4))
            for calls in drawn:
                observation = self._observe(calls)
                for goal in missing:
                    self._effort(goal, "random inputs")
                if observation is not None and self._keep(calls, observation):
                    self._follow_gradients(attempted)
            for known in self._pool[:3]:
                mutated = self._mutated(known.calls, generator)
                observation = self._observe(mutated) if mutated is not None else None
                if observation is not None and self._keep(mutated, observation):  # type: ignore[arg-type]
                    self._follow_gradients(attempted)
            if self.runs == before:
                return

    def _mutated(self, calls: Calls, generator: torch.Generator) -> Calls | None:
        """The input with some of its numbers changed, by amounts of all magnitudes."""
        made = []
        for call in calls:
            values = {}
            for path, one in self.space.numbers(call).items():
                now = one.value.detach().to("cpu", torch.float64)
                some = torch.rand(now.shape, generator=generator) < torch.rand((), generator=generator)
                size = 10 ** (4 * torch.rand((), generator=generator) - 2)
                noise = torch.randn(now.shape, generator=generator, dtype=torch.float64) * size * (1 + now.abs())
                if one.integral:
                    low, high = max(one.low, -1e6), min(one.high, 1e6)
                    noise = low + (high - low) * torch.rand(now.shape, generator=generator, dtype=torch.float64) - now
                values[path] = torch.where(some, now + noise, now)
            made.append(self.space.with_values(call, values, "") if values else call)
        return tuple(made) if any(one is not call for one, call in zip(made, calls, strict=True)) else None


def _goals(site: Site, outcome: Any, followed: Followed) -> list[Goal]:
    """What would have to change in a run for the outcome: one goal, or for a loop to go on or to end earlier."""
    if site.kind is Kind.CONDITION:
        return [Goal(site, outcome)]
    if site.kind is Kind.NUMBER and outcome == OTHER:
        return [Goal(site, outcome=True, nth=0), Goal(site, outcome=False, nth=0)]
    if site.kind is not Kind.LOOP or outcome != OTHER:
        return []
    goals = []
    tests: dict[Site, list[bool]] = {}
    for test in followed.tests:
        if test.loop == site:
            tests.setdefault(test.site, []).append(test.outcome)
    for leaf, outcomes in tests.items():
        for wanted in (True, False):
            at = [n for n, taken in enumerate(outcomes) if taken is not wanted]
            goals += [Goal(leaf, wanted, at[-1], site)] if at else []
    return goals
