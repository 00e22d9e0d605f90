"""What a search stands on: runs that are observed or followed, counted, and what was learned from them."""

from __future__ import annotations

import ast
import math
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pytest_torchexport.branches.coverage import Coverage
from pytest_torchexport.branches.definitions import definition
from pytest_torchexport.branches.follow import follow
from pytest_torchexport.branches.implied import implied
from pytest_torchexport.branches.observation import Endless, Observation, Observing
from pytest_torchexport.branches.sites import Kind, source_of
from pytest_torchexport.subject.call import forward_of
from pytest_torchexport.subject.run import Record
from pytest_torchexport.subject.source import is_installed, of_exception

if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Iterable, Mapping

    from pytest_torchexport.branches.flip import Goal
    from pytest_torchexport.branches.followed import Followed, Runner
    from pytest_torchexport.branches.observation import Taken
    from pytest_torchexport.branches.sites import Site
    from pytest_torchexport.inputs.space import Space
    from pytest_torchexport.outcome import BranchCoverage
    from pytest_torchexport.subject.call import Call

Calls = tuple["Call", ...]

BUDGET = 400
"""Runs of the eager module that a search may cost by default: about a second for a small model."""

_LEAST, _WORK = 60, 60.0
"""The least that the default is lowered to, and the work of the example's run from which on it is lowered."""
FOLLOW = 3
"""What an instrumented run with a backward pass costs, in plain runs."""
_LONGER, _FUNCTIONS = 30, 3000
"""How much more than the example an input may run, in torch's functions: what loops on for ever is no input."""


@dataclass
class Found:
    """An input that takes an outcome which no input took before."""

    calls: Calls
    goals: list[tuple[Site, Any]]
    label: str
    taken: Taken


@dataclass
class Known:
    """An input that ran: what it took, and its instrumented run if there was one."""

    calls: Calls
    observation: Observation
    followed: Followed | None = None


@dataclass
class Explorer:
    """Runs the inputs of a check, and keeps what is known of its decisions.

    Args:
        runner: runs eager from the starting state.
        model: the user's.
        make_space: says what may vary; asked only if the model decides anything.
        is_users: whether the code of a file counts as the user's.
        budget: how many runs it may cost; 0 observes only, None is the default: fewer for a model that takes longer.
        seed: the source of chance.
        read_state: gives the tensors of the model's state by name.
        accepts: whether an input is one that the model is meant for (`assume`).
        draws: further generated inputs.

    Attributes:
        coverage: what is known, and what was reached.
        changing: names of the state that forward changes.
        runs: what the search cost so far, in runs of eager.
        found: the inputs that it adds.
        has_decisions: the user's code decides anything at all.
        notes: what could not be followed, and why.
    """

    runner: Runner
    model: Callable[..., Any]
    make_space: Callable[[], Space]
    is_users: Callable[[str], bool]
    budget: int | None
    seed: int
    read_state: Callable[[], Mapping[str, Any]]
    accepts: Callable[[Calls], bool]
    draws: Iterable[Calls] = ()
    coverage: Coverage = field(default_factory=Coverage)
    changing: set[str] = field(default_factory=set)
    runs: int = 0
    found: list[Found] = field(default_factory=list)
    has_decisions: bool = False
    notes: dict[str, str] = field(default_factory=dict)
    _limit: float = math.inf
    _pool: list[Known] = field(default_factory=list)
    _accepted: set[str] = field(default_factory=set)
    _efforts: dict[tuple[Site, Any], dict[str, int]] = field(default_factory=dict)

    @cached_property
    def space(self) -> Space:
        """What may vary."""
        return self.make_space()

    @cached_property
    def state(self) -> Mapping[str, Any]:
        """Tensors of the model's state by name."""
        return self.read_state()

    # --- the inputs that are there anyway -------------------------------------------------------------------------

    def observing(self) -> Observing:
        """What a run is entered under to be observed."""
        return Observing(self.is_users, self._limit)

    def start(self, calls: Calls, record: Record, observing: Observing) -> None:
        """Note what the example took, and how much it ran; learn which of its decisions depend on the input."""
        observation = Observation(record, observing.taken, observing.path)
        self.changing |= set(observation.record.state or ())
        self.coverage.start(observation.taken)
        self._limit = _LONGER * observing.functions + _FUNCTIONS
        if self.budget is None:
            self.budget = max(_LEAST, min(BUDGET, round(BUDGET * _WORK / max(observing.work, 1.0))))
        self.has_decisions = bool(observation.taken) or observing.decides
        code = getattr(forward_of(self.model), "__code__", None)
        if code is not None and source_of(code.co_filename) is None:
            why = f"there is no source of {code.co_filename}: its decisions are not observed. Put the model into a file"
            self.notes["branches of forward"] = why
        if self.has_decisions:
            self._learn(calls, observation)

    def watch(self, calls: Calls, kind: str, label: str) -> Observation:
        """Run another input that is checked anyway under observation, and note what it took."""
        observation = self._watch(calls)
        if observation.record.error is None and self.coverage.note(observation.taken, kind, label):
            self._pool.append(Known(calls, observation))
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
        error = followed.record.error if followed.record is not None else None
        if error is not None:
            where = of_exception(error)
            self.notes["branches after " + (f"{where.file}:{where.line}" if where else "an unknown line")] = (
                f"they could not be followed there ({type(error).__name__}: {str(error)[:120]})"
            )
        self._pool.append(Known(calls, observation, followed if error is None else None))
        sites: dict[Site, None] = {}
        for test in followed.tests:
            if test.size and (not self.space.sizes() or is_installed(test.site.file)):
                continue  # what a library asks of sizes is mostly whether they are what they always are
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
        root = getattr(forward_of(self.model), "__code__", None)
        plain = {path for path, one in self.space.numbers(self.space.example).items() if not one.value.dim()}
        names = {path for path in (*self._accepted, *plain) if path.isidentifier()}
        known = self.coverage.sites()
        for code in followed.codes:
            found = definition(code)
            if found is not None and not isinstance(found[1], ast.Lambda):
                yield from implied(found[0], found[1], known, names if code is root else ())

    def _codes(self) -> list[types.CodeType]:
        """The code of the user's functions that ran."""
        codes: dict[types.CodeType, None] = {}
        for known in self._pool:
            if known.followed is not None:
                codes |= dict.fromkeys(known.followed.codes)
        return list(codes)

    def report(self, mode: str) -> BranchCoverage:
        """What is known of the decisions; the instrumented runs are let go."""
        self._pool.clear()
        return self.coverage.report(mode, self.runs)

    # --- inputs that a search makes -------------------------------------------------------------------------------

    def _left(self) -> int:
        return (self.budget or 0) - self.runs

    def _is_new_ground(self, known: Known) -> bool:
        """Whether an input comes to places that no followed input came to."""
        followed = {site for one in self._pool if one.followed is not None for site in one.observation.taken}
        return bool(known.observation.taken.keys() - followed)

    def follow(self, calls: Calls) -> Followed | None:
        """An instrumented run; None where eager rejects the input, or nothing is left to spend."""
        if self._left() < FOLLOW or not self.accepts(calls):
            return None
        followed = self._follow(calls)
        return followed if followed.record is not None and followed.record.error is None else None

    def _follow(self, calls: Calls) -> Followed:
        self.runs += FOLLOW
        return follow(
            self.runner,
            self.space,
            calls,
            is_users=self.is_users,
            state=self.state,
            changing=frozenset(self.changing),
            limit=self._limit,
        )

    def takes(self, calls: Calls, goal: Goal) -> bool:
        """Whether a run without instrumentation reaches the goal; what else it takes is noted if it does."""
        observation = self._observe(calls)
        if observation is None:
            return False
        if goal.loop is not None:
            before = self.coverage.example_took(goal.loop) if goal.beyond is None else goal.beyond
            reached = self._differs(observation.taken.get(goal.loop), before)
        elif goal.site.kind is Kind.NUMBER:
            reached = self._differs(observation.taken.get(goal.site), self.coverage.example_took(goal.site))
        else:
            reached = goal.outcome in observation.taken.get(goal.site, ())
        if reached:
            self._keep(calls, observation)
        return reached

    @staticmethod
    def _differs(taken: Any, before: Any) -> bool:
        """Whether there are other counts, or values, than before."""
        return taken is not None and set(taken) != set(before or ())

    def _observe(self, calls: Calls) -> Observation | None:
        """Run an input under observation; None where eager rejects it, or nothing is left."""
        if self._left() < 1 or not self.accepts(calls):
            return None
        self.runs += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # most of what is tried is never checked
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
        if self._left() >= FOLLOW:
            self._learn(calls, observation)
        return True
