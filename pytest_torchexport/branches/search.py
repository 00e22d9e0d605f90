"""The search: inputs for the outcomes that no input took, gradients first, then what may be tried, then chance."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.branches.bytecode import plan_of
from pytest_torchexport.branches.chance import mutated
from pytest_torchexport.branches.coverage import OTHER
from pytest_torchexport.branches.discrete import Candidate, candidates
from pytest_torchexport.branches.explorer import FOLLOW, Calls, Explorer, Found, Known
from pytest_torchexport.branches.flip import Goal, flip
from pytest_torchexport.branches.sites import Kind, Site
from pytest_torchexport.branches.telling import path_of, tells
from pytest_torchexport.inputs.constants import mine

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_torchexport.branches.followed import Followed
    from pytest_torchexport.branches.observation import Observation
    from pytest_torchexport.branches.replay import Path


_BASES = 4
"""Inputs from which a decision is tried to be flipped."""
_STARTS, _GENERATIONS, _CHANCES = 3, 8, 60
"""Drawn inputs to follow gradients from; random changes for each outcome; random inputs without a new outcome."""
_RETOLD, _TELLING = 12, 100
"""Changes of inputs that are tried for one that tells; what all of that may cost."""
_PER_GOAL = 60
"""Runs that go into the gradient search for one outcome before others have had their turn."""


class Search(Explorer):
    """Finds inputs that take the branches which the others did not."""

    # --- the search -----------------------------------------------------------------------------------------------

    def search(self) -> list[Found]:
        """Look for inputs for all outcomes that are missing, as long as the budget lasts."""
        if not self.has_decisions or not self.budget:
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
        self._make_tell()
        for goal in self.coverage.missing():
            efforts = self._efforts.get(goal, {})
            text = ", ".join(f"{n} {what}" for what, n in efforts.items()) or "nothing: the budget was spent"
            self.coverage.tried(goal, text)
        return self.found

    # --- gradients ------------------------------------------------------------------------------------------------

    def _follow_gradients(self, attempted: set[tuple[Any, ...]]) -> None:
        """Flip what is missing, nearest first, again as long as that opens new ground."""
        progress = True
        while progress and self._left() >= FOLLOW:
            progress = False
            for missing in self.coverage.missing():
                if missing not in self.coverage.missing():
                    continue  # reached on the way
                for known, goal in self._ways(missing):
                    key = (*missing, id(known), goal.site, goal.nth)
                    if key in attempted:
                        continue
                    attempted.add(key)
                    ceiling = self.budget or 0
                    self.budget = min(ceiling, self.runs + _PER_GOAL)
                    try:
                        reached = flip(self, self.space, goal, known.calls, known.followed)
                    finally:
                        self.budget = ceiling
                    self._effort(missing, "gradient searches")
                    if reached is not None and missing not in self.coverage.missing():
                        progress = True
                        break
                    if self._left() < FOLLOW:
                        return

    def _effort(self, goal: tuple[Site, Any], what: str) -> None:
        efforts = self._efforts.setdefault(goal, {})
        efforts[what] = efforts.get(what, 0) + 1

    def _ways(self, missing: tuple[Site, Any]) -> list[tuple[Known, Goal]]:
        """Inputs that come to the decision, with what would have to change there, the nearest first."""
        site, outcome = missing
        found: list[tuple[float, int, Known, Goal]] = []
        for index, (known, followed) in enumerate(self._followed()):
            goals = [goal for goal in _goals(site, outcome, followed) if goal.instances(followed)]
            found += [(_nearest(goal, followed), index, known, goal) for goal in goals]
        found.sort(key=lambda one: (one[0], one[1]))
        return [(known, goal) for _, _, known, goal in found[:_BASES]]

    def _followed(self) -> list[tuple[Known, Followed]]:
        """The inputs that have an instrumented run."""
        return [(known, known.followed) for known in self._pool if known.followed is not None]

    def _drive_loops(self) -> None:
        """Make loops turn more often, and less: what is decided by a counter after or in them has no margin itself."""
        for known, followed in self._followed()[:_BASES]:
            for loop in dict.fromkeys(test.loop for test in followed.tests if test.loop is not None):
                for longer in (True, False):
                    self._drive(known, loop, longer=longer)

    def _drive(self, known: Known, loop: Site, *, longer: bool) -> None:
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
                    known = Known(reached, observation, self.follow(reached))
                    break
            else:
                return

    # --- inputs that tell ------------------------------------------------------------------------------------------

    def _make_tell(self) -> None:
        """For outcomes whose input would give the same on the example's way, find one that would not."""
        if not self._pool:
            return
        example = self._pool[0]
        path = path_of(self.runner, self.space.model, self.is_users, example.calls)
        tests = [test for _, followed in self._followed() for test in followed.tests]
        tested = {test.site for test in tests} | {test.loop for test in tests}
        ceiling, self.budget = self.budget or 0, min(self.budget or 0, self.runs + _TELLING)
        for site in self.coverage.sites():
            if site not in tested:
                continue
            held = {site: path[site]} if path.get(site) else self._tests_of(site, path)
            for outcome in self.coverage.reached_elsewhere(site):
                if not held or self._left() < 2:
                    continue
                known = next((one for one in self._pool if self._takes(one.observation, site, outcome)), None)
                if known is None or self._tells(known.calls, known.observation, held):
                    continue
                self._retell(site, outcome, example, held)
        self.budget = ceiling

    def _tests_of(self, loop: Site, path: Path) -> dict[Site, list[Any]]:
        """The conditions that keep a `while` loop going, held to what the example took."""
        followed = self._pool[0].followed
        leaves = {test.site for test in followed.tests if test.loop == loop} if followed is not None else set()
        return {site: path[site] for site in sorted(leaves) if path.get(site)}

    def _takes(self, observation: Observation, site: Site, outcome: Any) -> bool:
        taken = observation.taken.get(site)
        if taken is None:
            return False
        if outcome == OTHER:
            return self.coverage.is_other(site, taken)
        return outcome in taken and len(taken) == 1

    def _tells(self, calls: Calls, observation: Observation, held: dict[Site, list[Any]]) -> bool:
        self.runs += 1
        return tells(self.runner, self.space.model, self.is_users, calls, observation.record, held)

    def _retell(self, site: Site, outcome: Any, example: Known, held: dict[Site, list[Any]]) -> None:
        """Flip the decision from an ordinary input, or try others that take the outcome, until one tells."""
        generator = torch.Generator().manual_seed(self.seed + 2)
        for calls in self._others(site, outcome, example, generator):
            observation = self._observe(calls)
            if observation is None or not self._takes(observation, site, outcome):
                continue
            if self._left() < 1 or self._tells(calls, observation, held):
                label = self.coverage.label([(site, outcome)])
                self.found.append(Found(calls, [(site, outcome)], label, observation.taken))
                return

    def _others(self, site: Site, outcome: Any, example: Known, generator: torch.Generator) -> Iterator[Calls]:
        """Inputs that may take the outcome: by gradient, particular ones, and by chance."""
        for known, followed in self._followed()[:_BASES]:
            for goal in _goals(site, outcome, followed):
                if goal.instances(followed) and self._left() >= FOLLOW:
                    reached = flip(self, self.space, goal, known.calls, followed)
                    if reached is not None:
                        yield reached
        constants = mine(self.space.model, self._codes())
        stream = candidates(self.space, example.calls, constants, generator, stateful=False)
        yield from (calls for _, calls in islice(stream, 2 * _RETOLD))
        takes = [one.calls for one in self._pool if self._takes(one.observation, site, outcome)]
        for calls in (*takes[:2], example.calls):
            for _ in range(_RETOLD // 3):
                changed = mutated(self.space, calls, generator)
                if changed is not None:
                    yield changed

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
            share = self._left() // 2 if number else int(0.75 * self._left())
            self._try(stream, share, bases)
            number += 1
            if not self.coverage.missing():
                break

    def _try(self, stream: Iterable[Candidate], share: int, bases: list[Calls]) -> None:
        stop = self.runs + share
        options = sum(len(values) for values in self.space.alternatives().values())
        # What becomes of a number, or decides on a size or state, is not always seen.
        numbers = any(site.kind is Kind.NUMBER for site in self.coverage.sites())
        patience = options + 16 * numbers + 8 * len(self.space.sizes())
        patience += 24 * bool(self.changing) + 40 * self._handlers()
        for index, (label, calls) in enumerate(stream):
            missing = self.coverage.missing()
            if self.runs >= stop or (not missing and index >= patience):
                break
            observation = self._observe(calls)
            for goal in missing:
                self._effort(goal, "particular inputs")
            if observation is None:
                continue
            option = label.partition(" = ")[0]
            if option in self.space.alternatives() and option not in self._accepted:
                self._accepted.add(option)
                self._imply()
            if self._keep(calls, observation):
                bases.append(calls)

    def _imply(self) -> None:
        """Learn what depends on arguments of which other values are now known to be accepted."""
        for known, followed in self._followed():
            seen = known.observation.taken
            self.coverage.depends(site for site in self._implied(followed) if site in seen)

    def _handlers(self) -> int:
        """Number of `except` clauses that no input entered; whether one can is not known."""
        handlers = {m.enters for c in self._codes() if (p := plan_of(c)) for m in p.marks.values() if m.enters}
        return min(2, len(handlers - set(self.coverage.sites())))

    # --- chance ---------------------------------------------------------------------------------------------------

    def _by_chance(self, attempted: set[tuple[Any, ...]]) -> None:
        """Other inputs to start from, changes that bring a margin closer to zero, and what is drawn at random."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        draws = iter(self.draws)
        for drawn in islice(draws, _STARTS) if self.coverage.missing() else ():
            observation = self._observe(drawn)
            if observation is not None and not self._keep(drawn, observation) and self._left() >= FOLLOW:
                self._learn(drawn, observation)
        self._follow_gradients(attempted)
        for missing in self.coverage.missing():
            self._evolve(missing, generator)
        stop = self.runs + _CHANCES
        while (missing_now := self.coverage.missing()) and self._left() >= 1 and self.runs < stop:
            before = self.runs
            changed = (mutated(self.space, known.calls, generator) for known in self._pool[:2])
            tried: list[Calls | None] = [*islice(draws, 2), *changed]
            for calls in tried:
                observation = self._observe(calls) if calls is not None else None
                for goal in missing_now:
                    self._effort(goal, "random inputs")
                if calls is not None and observation is not None and self._keep(calls, observation):
                    self._follow_gradients(attempted)
                    stop = self.runs + _CHANCES
            if self.runs == before:
                return

    def _evolve(self, missing: tuple[Site, Any], generator: torch.Generator) -> None:
        """Change the nearest input at random, and go on from where that brings the margin closer to zero."""
        ways = self._ways(missing)
        if not ways:
            return
        known, goal = ways[0]
        calls, level = known.calls, _nearest(goal, known.followed)
        for _ in range(_GENERATIONS):
            if self._left() < FOLLOW or missing not in self.coverage.missing():
                return
            changed = mutated(self.space, calls, generator)
            followed = self.follow(changed) if changed is not None else None
            self._effort(missing, "random changes")
            if changed is None or followed is None:
                continue
            if any(outcome == goal.outcome for site, outcome in followed.path if site == goal.site):
                observation = self._observe(changed)
                if observation is not None and self._keep(changed, observation):
                    return
            if (now := _nearest(goal, followed)) < level:
                calls, level = changed, now


def _nearest(goal: Goal, followed: Followed | None) -> float:
    """How far the nearest decision that the goal wants changed is from that; infinite where it is not met."""
    if followed is None:
        return math.inf
    levels = [abs(test.level) for _, test in goal.instances(followed)]
    return min((level for level in levels if not math.isnan(level)), default=math.inf)


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
            goals += [Goal(leaf, wanted, nth, site) for nth in dict.fromkeys((*at[-1:], *at[:1]))]
    return goals
