"""Make one decision go the other way: steps along the gradient of its margin, the decisions before it kept."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from pytest_torchexport.branches.followed import Test
from pytest_torchexport.branches.formulas import chosen, exceeds
from pytest_torchexport.branches.sites import Kind, Site
from pytest_torchexport.branches.step import Wish, step

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_torchexport.branches.followed import Followed
    from pytest_torchexport.branches.margins import Lookup
    from pytest_torchexport.branches.step import Key
    from pytest_torchexport.inputs.limits import Numbers
    from pytest_torchexport.inputs.space import Space
    from pytest_torchexport.subject.call import Call

Calls = tuple["Call", ...]

_STEPS = 12
"""Steps before a decision is given up; margins are mostly close to linear, and most decisions flip in one to three."""
_PARTS = (1.0, 0.5, 0.2, 0.05, 0.01)
"""How much of a step is taken, in this order, until one does not lose the way."""
_OVERSHOOT = 0.1
"""How far past its limit a margin is aimed, as a part of the distance to it."""
_NEARER = 0.8
"""How much of the distance to its limit a decision that is to be kept may lose in one step."""
_GRIDS = (2.0**-3, 2.0**-6, 2.0**-10)
"""Grids on which sums are exact, for conditions that want equality."""


class Prober(Protocol):
    """Runs inputs for the search, and counts what that costs."""

    def follow(self, calls: Calls) -> Followed | None:
        """An instrumented run; None where eager rejects the input, or nothing is left to spend."""

    def takes(self, calls: Calls, goal: Goal) -> bool:
        """Whether a run without instrumentation reaches the goal."""


@dataclass(frozen=True)
class Goal:
    """The outcome that is looked for.

    Attributes:
        site: the decision.
        outcome: which way it should go.
        nth: which of the times that it is decided; None for any.
        loop: the loop that should turn another number of times by it.
        beyond: the numbers of turns that it should not have; None for those of the example.
    """

    site: Site
    outcome: bool
    nth: int | None = None
    loop: Site | None = None
    beyond: tuple[int, ...] | None = None

    def instances(self, followed: Followed) -> list[tuple[int, Test]]:
        """The tests that would have to go the other way, with their position among all tests."""
        if self.site.kind is Kind.NUMBER:
            return [(len(followed.tests), test) for test in _as_tests(followed, self)]
        at = [(i, test) for i, test in enumerate(followed.tests) if test.site == self.site]
        if self.nth is not None:
            at = at[self.nth :][:1]
        return [(i, test) for i, test in at if test.outcome != self.outcome and test.margin is not None]


def _as_tests(followed: Followed, goal: Goal) -> Iterator[Test]:
    """A number as the condition that it is larger (or, to make that false, at least as large) than it is."""
    for number in followed.numbers:
        if number.site != goal.site or number.origin is None or isinstance(number.value, bool):
            continue
        whole = isinstance(number.value, int)
        with torch.enable_grad():
            limit = number.value + 1 if whole and goal.outcome else number.value
            margin = exceeds(number.origin, float(limit), strictly=False)
            choice = number.origin.choice
            if margin is None and choice is not None and whole:
                other = number.value + (1 if goal.outcome else -1)
                found = chosen(choice.scores, other % choice.scores.shape[-1])
                margin = found if found is None or goal.outcome else -found
        if margin is not None:
            yield Test(number.site, not goal.outcome, margin.reshape(()), size=False)
        return


@dataclass
class _Way:
    """Where a flip stands.

    Attributes:
        calls: the input.
        followed: its instrumented run.
        test: the decision that is to go the other way.
        position: where that is among all tests of the run.
        exact: the margin is to be hit exactly, not to be moved past zero.
        keep: decisions before it that a step upset, by their site and number, with the way that they have to go.
    """

    calls: Calls
    followed: Followed
    test: Test
    position: int
    exact: bool = False
    keep: dict[tuple[Site, int], bool] = field(default_factory=dict)

    @property
    def margin(self) -> float:
        return self.test.level

    def gradient(self) -> dict[Key, torch.Tensor]:
        assert self.test.margin is not None  # the instances of a goal have one
        return self.followed.gradient(self.test.margin)


def flip(prober: Prober, space: Space, goal: Goal, base: Calls, followed: Followed | None = None) -> Calls | None:
    """An input that takes the goal's outcome, or None.

    Each step solves for the shortest change that moves the margin past zero, with margins as linear as their gradient
    says (Newton's method for one equation), and with the decisions before it that a former step upset held in place.

    Args:
        prober: runs inputs.
        space: what may vary.
        goal: what is wanted.
        base: an input that reaches the decision and goes the other way.
        followed: its instrumented run, if there was one.
    """
    way = _start(prober, goal, base) if followed is None else _judged(prober, goal, base, followed, fresh=False)
    if way is None or isinstance(way, tuple):
        return way
    for _ in range(_STEPS):
        following = _next(prober, space, goal, way)
        if following is None:
            break
        if isinstance(following, tuple):
            return following
        way = following
    return _exactly(prober, space, goal, way) if way.exact else None


def _start(prober: Prober, goal: Goal, calls: Calls) -> _Way | Calls | None:
    followed = prober.follow(calls)
    if followed is None:
        return None
    return _judged(prober, goal, calls, followed)


def _judged(prober: Prober, goal: Goal, calls: Calls, followed: Followed, *, fresh: bool = True) -> _Way | Calls | None:
    """The input if it reaches the goal; where it stands if it reaches the decision; else None."""
    if goal.nth is None and (goal.site, goal.outcome) in followed.path and prober.takes(calls, goal):
        return calls
    found = goal.instances(followed)
    if goal.nth is not None and fresh and prober.takes(calls, goal):
        return calls
    if not found:
        return None
    position, test = min(found, key=lambda one: abs(one[1].level))
    return _Way(calls, followed, test, position)


def _next(prober: Prober, space: Space, goal: Goal, way: _Way) -> _Way | Calls | None:
    """One step further, shorter where the full one loses the way or leads no nearer."""
    parts = list(_PARTS)
    nearest: _Way | None = None
    while parts:
        kept = len(way.keep)
        calls = _moved(space, goal, way, parts[0])
        if calls is None:
            break
        found = _tried(prober, goal, way, calls)
        if isinstance(found, tuple):
            return found
        if found is None:
            if len(way.keep) == kept:  # nothing was learned: the same step would lead to the same place
                parts.pop(0)
            continue
        before, after = abs(way.margin), abs(found.margin)
        if after < 0.95 * before or (goal.nth is not None and found.position != way.position):
            return found
        if not way.exact and after <= 1.5 * _spare(way):
            # The overshoot is all that is left: a margin that never exceeds zero wants to be hit exactly.
            way.exact = True
            continue
        if after < (before if nearest is None else abs(nearest.margin)):
            nearest = found
        parts.pop(0)
    return nearest


def _tried(prober: Prober, goal: Goal, way: _Way, calls: Calls) -> _Way | Calls | None:
    """Where a step leads; if it upsets a decision on the way, that one is kept from then on."""
    followed = prober.follow(calls)
    if followed is None:
        return None
    found = _judged(prober, goal, calls, followed)
    if isinstance(found, _Way):
        found.keep, found.exact = way.keep, way.exact
    elif found is None:
        upset = _upset(way, followed)
        if upset is not None:
            way.keep.setdefault(*upset)
    return found


def _upset(way: _Way, followed: Followed) -> tuple[tuple[Site, int], bool] | None:
    """The first decision before the wanted one that now goes another way, with the way that it has to go."""
    counts: dict[Site, int] = {}
    for before, after in zip(way.followed.tests[: way.position], followed.tests, strict=False):
        if before.site != after.site:
            return None
        nth = counts.get(before.site, 0)
        counts[before.site] = nth + 1
        if before.outcome != after.outcome:
            return (before.site, nth), before.outcome
    return None


def _spare(way: _Way) -> float:
    """How far past zero a step aims."""
    gradient = way.gradient()
    reach = sum(float(g.norm()) * float(way.followed.leaves[key].detach().norm()) for key, g in gradient.items())
    if way.exact:  # at the very edge of a narrow band, a hair more is wanted; an equality is met by now
        return 1e-6 * (1 + reach) if abs(way.margin) < 1e-6 * (1 + reach) else 0.0
    return max(_OVERSHOOT * abs(way.margin), 1e-4 * reach / max(1.0, len(gradient)), 1e-7)


def _moved(space: Space, goal: Goal, way: _Way, part: float) -> Calls | None:
    """The input after a step, or None if the gradient leads nowhere."""
    gradient, tables = way.gradient(), way.followed.table_gradients
    if not math.isfinite(way.margin):
        return None
    aim = _spare(way)
    change = (aim if goal.outcome else -aim) - way.margin
    wishes = [Wish(gradient, part * change), *_kept(way)]
    numbers = _numbers(space, way.calls)
    values = step(numbers, wishes) if gradient else None
    if values is None and tables:
        values = _other_tokens(numbers, way.followed, tables, change, part)
    return None if values is None else _with(space, way.calls, values)


def _kept(way: _Way) -> Iterator[Wish]:
    """The decisions to keep: each may come nearer to its own limit, but not reach it."""
    for (site, nth), outcome in way.keep.items():
        test = way.followed.test(site, nth)
        if test is None or test.margin is None:
            continue
        gradient = way.followed.gradient(test.margin)
        towards = {key: value if outcome else -value for key, value in gradient.items()}
        yield Wish(towards, -_NEARER * abs(test.level))


def _numbers(space: Space, calls: Calls) -> dict[Key, Numbers]:
    return {(n, path): one for n, call in enumerate(calls) for path, one in space.numbers(call).items()}


def _with(space: Space, calls: Calls, values: Mapping[Key, torch.Tensor]) -> Calls:
    made = []
    for n, call in enumerate(calls):
        own = {path: value for (at, path), value in values.items() if at == n}
        made.append(space.with_values(call, own, "") if own else call)
    return tuple(made)


# --- tokens -------------------------------------------------------------------------------------------------------


def _other_tokens(
    numbers: Mapping[Key, Numbers],
    followed: Followed,
    tables: list[tuple[Lookup, torch.Tensor]],
    change: float,
    part: float,
) -> dict[Key, torch.Tensor] | None:
    """Other indices into a table, chosen by what the gradient says of each row (HotFlip's estimate, Ebrahimi 2018)."""
    for lookup, gradient in tables:
        found = _leaf_of(followed, lookup)
        if found is None or found not in numbers or lookup.indices.numel() == 0:
            continue
        low, high = numbers[found].reach
        rows = lookup.weight[max(0, int(low)) : int(min(high, lookup.weight.shape[0] - 1)) + 1].to("cpu", torch.float64)
        flat = gradient.reshape(-1, gradient.shape[-1]).to("cpu", torch.float64)
        now = lookup.indices.reshape(-1).cpu()
        current = lookup.weight.cpu().to(torch.float64)[now]
        gains = flat @ rows.T - (flat * current).sum(-1, keepdim=True)
        best = (gains if change > 0 else -gains).max(dim=1)
        order = best.values.argsort(descending=True)
        total, made = 0.0, now.clone().to(torch.float64)
        for position in order.tolist():
            if float(best.values[position]) <= 0:
                break
            made[position] = float(best.indices[position]) + max(0, int(low))
            total += float(best.values[position])
            if total >= 1.2 * part * abs(change):
                break
        if total > 0:
            return {found: made.reshape(numbers[found].value.shape)}
    return None


def _leaf_of(followed: Followed, lookup: Lookup) -> Key | None:
    """The argument whose elements, in their order, the indices are."""
    for key, leaf in followed.leaves.items():
        same = leaf.numel() == lookup.indices.numel()
        if same and torch.equal(leaf.detach().reshape(-1), lookup.indices.reshape(-1).to(leaf.dtype)):
            return key
    return None


# --- equality -----------------------------------------------------------------------------------------------------


def _exactly(prober: Prober, space: Space, goal: Goal, way: _Way) -> Calls | None:
    """Hit an equality: numbers on a grid, where sums are exact, and the last step by a single element."""
    for grid in _GRIDS:
        snapped = {
            (n, path): (one.value.detach().to(torch.float64) / grid).round() * grid
            for (n, path), one in _numbers(space, way.calls).items()
            if not one.integral
        }
        calls: Calls | None = _with(space, way.calls, snapped)
        for _ in range(3):
            followed = prober.follow(calls) if calls is not None else None
            if calls is None or followed is None:
                break
            found = _judged(prober, goal, calls, followed)
            if isinstance(found, tuple):
                return found
            if found is None:
                break
            calls = _by_one_element(space, found, grid)
    return None


def _by_one_element(space: Space, way: _Way, grid: float) -> Calls | None:
    """The rest of the way by the element with the steepest slope, on the grid."""
    gradient = way.gradient()
    numbers = _numbers(space, way.calls)
    best = max(
        (key for key in gradient if key in numbers and not numbers[key].integral),
        key=lambda key: float(gradient[key].abs().max()),
        default=None,
    )
    if best is None:
        return None
    slopes = gradient[best].reshape(-1).to(torch.float64)
    index = int(slopes.abs().argmax())
    if slopes[index] == 0:
        return None
    values = numbers[best].value.detach().to(torch.float64).clone().reshape(-1)
    values[index] += round(-way.margin / float(slopes[index]) / grid) * grid
    return _with(space, way.calls, {best: values.reshape(numbers[best].value.shape)})
