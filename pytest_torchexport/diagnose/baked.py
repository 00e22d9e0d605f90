"""Which decision an export has baked in: eager is run again with decisions held to what the example took.

If eager, held so, gives what the exported program gave, then these decisions are what the export keeps of the example:
that is a proof. Where no such run can be made, a decision that goes another way on all inputs that fail, and on none
that agrees, is named as likely.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_torchexport.branches.coverage import location_of
from pytest_torchexport.branches.follow import follow
from pytest_torchexport.branches.replay import CannotHold, Loop, Path, Replay, Taken
from pytest_torchexport.branches.sites import Kind, Site, decisions_of, source_of
from pytest_torchexport.compare.noise import TooChaotic
from pytest_torchexport.diagnose.separation import separating, text
from pytest_torchexport.eager import Unstable, agrees_with_itself, second_opinion
from pytest_torchexport.outcome import Cause, Evidence, Location
from pytest_torchexport.reference import runner, space_of
from pytest_torchexport.subject import source
from pytest_torchexport.trials import Reference, Trial

if TYPE_CHECKING:
    from pytest_torchexport.backends.base import Suspicion
    from pytest_torchexport.compare.records import Comparison, SecondOpinion
    from pytest_torchexport.plan import Plan
    from pytest_torchexport.subject.call import Call
    from pytest_torchexport.subject.run import Record
    from pytest_torchexport.subject.state import Snapshot

RUNS = 12
"""Runs of eager with decisions held, for one check."""
_INPUTS = 3
"""Failing inputs that are looked at."""
_SINGLES = 6
"""Decisions that are held one by one on an input, before several are held at once."""
_CLEAR = 1000.0
"""Beyond so many tolerances, rounding is no explanation for a difference."""


@dataclass(frozen=True)
class Failing:
    """An input on which the exported program did not do what eager did, and what it did."""

    trial: Trial
    record: Record


@dataclass(frozen=True)
class Baked:
    """The decision that the export keeps from the example.

    Attributes:
        cause: branch, value or shape.
        location: its line.
        evidence: what shows it.
        failing: which of the failing inputs shows it.
        proven: eager gives what the program gives when the decision is held.
    """

    cause: Cause
    location: Location
    evidence: tuple[Evidence, ...]
    failing: int
    proven: bool


Compare = Callable[["Trial", "Record", "SecondOpinion | None"], "Comparison"]
"""Compares an exported program's record with the trial's."""


def find_baked(
    plan: Plan,
    snapshot: Snapshot,
    reference: Reference,
    failing: Sequence[Failing],
    agreeing: Sequence[Trial],
    suspicions: Sequence[Suspicion],
    compare: Compare,
) -> Baked | None:
    """The decision behind the failures; None if it is none, or cannot be told.

    Args:
        plan: of the check; the example agrees.
        snapshot: the model's starting state, in which it is left.
        reference: eager's side.
        failing: the inputs that fail.
        agreeing: the inputs that agree.
        suspicions: what the exporter warned about; its lines are looked at first.
        compare: compares what eager did with what the program did.
    """
    lines = {(s.location.file, s.location.line) for s in suspicions if s.location is not None}
    search = _Search(plan, snapshot, reference, lines, compare)
    try:
        return search.find(failing, agreeing)
    except Exception:  # noqa: BLE001 what goes wrong here must not hide what was found
        return None


@dataclass(frozen=True)
class _Suspect:
    """A decision that may be baked: where it is named, and what has to be held for it."""

    site: Site
    held: tuple[Site, ...]


@dataclass(frozen=True)
class _Proof:
    """The fewest decisions that explain what the program did on an input, and that in words."""

    suspects: list[_Suspect]
    evidence: tuple[Evidence, ...]


@dataclass
class _Search:
    """The replays of one check.

    `may_be_baked` tells whether a decision may still be the reason though none was proven: some replay could not be
    made. `may_be_guard` that the program raises where eager does not: it may refuse sizes that it was not made for.
    """

    plan: Plan
    snapshot: Snapshot
    reference: Reference
    lines: set[tuple[str, int]]
    compare: Compare
    runs: int = 0
    may_be_baked: bool = False
    may_be_guard: bool = False
    whiles: dict[Site, Site] = field(default_factory=dict)
    _example: Path | None = None
    _unreached: list[Site] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._is_users = source.user_code(self.plan.user_code)
        self._run = runner(self.plan, self.snapshot, self.reference)

    def find(self, failing: Sequence[Failing], agreeing: Sequence[Trial]) -> Baked | None:
        """The decision that is proven on the first inputs that fail, or the one that separates all of them."""
        for number, one in enumerate(failing[:_INPUTS]):
            if one.trial.record.error is None and (proof := self.prove(one)) is not None:
                cause = self.cause(proof.suspects[0], one)
                others = self.further(proof, failing[number + 1 :])
                return Baked(
                    cause, location_of(proof.suspects[0].site), (*proof.evidence, *others), number, proven=True
                )
        found = separating(self.reference.trials[0], [one.trial for one in failing], agreeing, self.lines)
        if found is None or not (self.may_be_baked or self.may_be_guard):
            return None
        site, evidence = found
        cause = self.cause(_Suspect(site, (site,)), failing[0])
        if not self.may_be_baked and cause is not Cause.BAKED_SHAPE:
            return None
        return Baked(cause, location_of(site), evidence, 0, proven=False)

    def replay(self, calls: tuple[Call, ...], hold: Mapping[Site, list[Any]] | None = None) -> tuple[Replay, Record]:
        """Run eager with decisions held."""
        replay = Replay(self.plan.model, self._is_users, hold)
        record = self._run(calls, program=replay)
        self.whiles |= replay.whiles
        return replay, record

    def prove(self, failing: Failing) -> _Proof | None:
        """The fewest decisions that, held as in the example, make eager do what the program did on the input."""
        trial = failing.trial
        if self._is_lost_state(failing):
            return None
        if self._example is None:
            paths = self._paths(self.reference.trials[0])
            self._example = paths[0] if paths else None
        paths = self._paths(trial) if self._example is not None else None
        if paths is None:
            self.may_be_baked = True
            return None
        assert self._example is not None
        suspects = self._suspects(paths)
        self._unreached = [s for s, taken in self._example.items() if self._is_new(s, taken[0], paths)]
        for group in self._groups(suspects):
            if self.runs >= RUNS:
                self.may_be_baked = True
                return None
            if self._explains(failing, group):
                fewest = self._fewest(failing, group)
                return _Proof(fewest, tuple(self._told(failing, fewest, paths)))
        return None

    def further(self, proof: _Proof, failing: Sequence[Failing]) -> Iterator[Evidence]:
        """Other decisions that are baked as well, from inputs on which those that are proven go as in the example."""
        proven = {suspect.site for suspect in proof.suspects}
        usual = self.reference.trials[0].taken or {}
        looked = 0
        for one in failing:
            taken = one.trial.taken
            if taken is None or one.trial.record.error is not None or looked == _INPUTS or self.runs >= RUNS:
                continue
            if any(taken.get(site) != usual.get(site) for site in proven):
                continue
            looked += 1
            more = self.prove(one)
            if more is not None and not proven.issuperset(suspect.site for suspect in more.suspects):
                proven |= {suspect.site for suspect in more.suspects}
                texts = [f"`{text(suspect.site)}`" for suspect in more.suspects]
                at = location_of(more.suspects[0].site)
                yield Evidence(f"baked as well: {' with '.join(texts)}, which fails on the input {one.trial.label}", at)

    def _paths(self, trial: Trial) -> list[Path] | None:
        """What each call takes; None if the twins of the user's functions do not do what these do."""
        replay = Replay(self.plan.model, self._is_users)
        differs = agrees_with_itself(self.plan, self.snapshot, self.reference, trial, replay)
        self.whiles |= replay.whiles
        return None if differs is not None else replay.paths

    def _matches(self, trial: Trial, replay: Replay, record: Record) -> bool:
        """Whether the program did what eager did in a replay, of which the trial has the record."""
        disagreeing = self.compare(trial, record, None).disagreeing
        if any(leaf.cause is not Cause.NUMERIC or leaf.excess > _CLEAR for leaf in disagreeing):
            return False
        if not disagreeing:
            return True
        asked = second_opinion(self.plan, self.snapshot, self.reference, trial, self.plan.rules, replay)
        try:
            return not self.compare(trial, record, asked).disagreeing
        except (TooChaotic, Unstable):
            return False

    def _suspects(self, paths: Sequence[Path]) -> list[_Suspect]:
        """The decisions that went another way than in the example's call; first where the exporter warned."""
        assert self._example is not None
        sites = list(dict.fromkeys(site for path in paths for site in path))
        other = [s for s in sites if any(s in path and self._differs(s, path[s]) for path in paths)]
        found: dict[_Suspect, None] = {}
        for site in other:
            loop = self.whiles.get(site)
            if loop is None:
                found[_Suspect(site, (site,))] = None
            else:
                found[_Suspect(site, tuple(s for s in sites if self.whiles.get(s) == loop and s in self._example))] = (
                    None
                )
        whiles: set[Site | None] = set()
        suspects = []
        for suspect in found:  # one suspect for all conditions of a `while`: the first that differs
            loop = self.whiles.get(suspect.site)
            if loop is None or loop not in whiles:
                suspects.append(suspect)
            whiles.add(loop)
        return sorted(suspects, key=lambda suspect: not self._is_suspected(suspect.site))

    def _is_new(self, site: Site, taken: Any, paths: Sequence[Path]) -> bool:
        """Whether only the example came to a decision: what it took there follows where the decision before is held."""
        is_size = isinstance(taken, Taken) and taken.size
        return not is_size and site.kind is not Kind.EXCEPTION and not any(site in path for path in paths)

    def _differs(self, site: Site, taken: list[Any]) -> bool:
        assert self._example is not None
        before = self._example.get(site)
        if site.kind is Kind.EXCEPTION:
            return not before
        if before is None:
            return False
        if site.kind is Kind.LOOP:
            pairs = list(zip(before, taken, strict=False))
            return any(one != other and one.ended for one, other in pairs)
        return bool(before != taken)

    def _is_size(self, suspect: _Suspect) -> bool:
        assert self._example is not None
        taken = self._example.get(suspect.site, [None])[0]
        return isinstance(taken, Taken) and taken.size

    def _is_suspected(self, site: Site) -> bool:
        return any((site.file, line) in self.lines for line in range(site.line, site.end_line + 1))

    def _groups(self, suspects: list[_Suspect]) -> Iterator[list[_Suspect]]:
        """What is held at once, in the order in which it is tried.

        One decision rather than several; those first that say most about the path. Sizes come last: programs compute
        with them, and bake what follows from them.
        """
        tests = [s for s in suspects if s.site.kind in (Kind.CONDITION, Kind.EXCEPTION)]
        loops = [s for s in suspects if s.site.kind is Kind.LOOP]
        sizes = [s for s in suspects if self._is_size(s)]
        values = [s for s in suspects if s.site.kind is Kind.NUMBER and s not in sizes]
        together = [[s for s in tests if s.site in leaves] for leaves in _tests_of({s.site for s in tests})]
        tried: list[list[_Suspect]] = []
        for group in (
            *([one] for one in tests[:_SINGLES]),
            *together,
            *([one] for one in loops[:_SINGLES]),
            *([one] for one in values[:_SINGLES]),
            [*tests, *loops],
            *([one] for one in sizes[:_SINGLES]),
            [*tests, *loops, *values],
            suspects,
        ):
            if group and group not in tried:
                tried.append(group)
                yield group

    def _explains(self, failing: Failing, group: Sequence[_Suspect]) -> bool:
        """Whether eager does what the program did if these decisions are held."""
        assert self._example is not None
        self.runs += 1
        held = [site for suspect in group for site in suspect.held]
        hold = {site: self._example.get(site, [False]) for site in (*held, *self._unreached)}
        replay, record = self.replay(failing.trial.calls, hold)
        if isinstance(record.error, CannotHold):
            self.may_be_baked = True
            return False
        theirs = failing.record.error
        if theirs is not None and record.error is None:
            self.may_be_guard = True
            return False
        if theirs is not None and record.error is not None and _same_error(record.error, theirs):
            return True
        if record.error is not None:
            self.may_be_baked = True
            return False
        return self._matches(Trial(failing.trial.calls, record, "", ""), replay, failing.record)

    def _is_lost_state(self, failing: Failing) -> bool:
        """Whether only later calls differ, and eager has state by then that the program has not."""
        if len(failing.trial.calls) == 1 or failing.record.error is not None:
            return False
        comparison = self.compare(failing.trial, failing.record, None)
        return bool(comparison.unread) and not any(leaf.path.startswith("call 1 ") for leaf in comparison.disagreeing)

    def _fewest(self, failing: Failing, group: list[_Suspect]) -> list[_Suspect]:
        """The group without the decisions that make no difference."""
        kept = list(group)
        for suspect in reversed(group):
            fewer = [one for one in kept if one is not suspect]
            if fewer and self.runs < RUNS and self._explains(failing, fewer):
                kept = fewer
        return kept

    def _told(self, failing: Failing, suspects: Sequence[_Suspect], paths: Sequence[Path]) -> Iterator[Evidence]:
        """What was proven, in words."""
        assert self._example is not None
        for suspect in suspects:
            site = suspect.site
            ours = next(path[site] for path in paths if site in path and self._differs(site, path[site]))
            went = f"{self._went(site, self._example.get(site))} in the example, {self._went(site, ours)} on this input"
            yield Evidence(f"`{text(site)}`: {went}", location_of(site))
        first = suspects[0].site
        does = "raises what eager raises" if failing.record.error is not None else "gives what eager gives"
        if len(suspects) == 1:
            to = self._went(first, self._example.get(first))
            if first.kind is Kind.EXCEPTION:
                held = f"`{text(first)}` is not entered"
            elif first.kind is Kind.CONDITION and to in ("true", "false"):
                held = f"`{text(first)}` is forced to {to}"
            else:
                held = f"`{text(first)}` is held at {to}"
        else:
            held = f"these {len(suspects)} are forced together"
        yield Evidence(f"the exported program {does} when {held}, as in the example", location_of(first))

    def _went(self, site: Site, taken: list[Any] | None) -> str:
        return _went(site, taken, in_while=site in self.whiles)

    def cause(self, suspect: _Suspect, failing: Failing) -> Cause:
        """Whether it is a branch, a value, or one of these on sizes alone."""
        site = suspect.site
        if self._is_on_sizes(suspect, failing.trial):
            return Cause.BAKED_SHAPE
        first = (self._example or {}).get(site, [None])[0]
        if site.kind is Kind.NUMBER:  # `max` of tensors compares them
            return (
                Cause.BAKED_BRANCH if isinstance(first, Taken) and isinstance(first.value, bool) else Cause.BAKED_VALUE
            )
        return Cause.BAKED_VALUE if site.kind is Kind.LOOP and isinstance(first, Loop) else Cause.BAKED_BRANCH

    def _is_on_sizes(self, suspect: _Suspect, trial: Trial) -> bool:
        site = suspect.site
        first = (self._example or {}).get(site, [None])[0]
        if isinstance(first, Taken):
            return first.size
        if isinstance(first, Loop) and first.tensor:
            return True
        if self.plan.has_example_shapes(trial.calls):
            return False
        if site.kind is Kind.LOOP:
            return self._follows_sizes(site, trial)
        state = self.snapshot.live()
        followed = follow(self._run, space_of(self.plan), trial.calls, is_users=self._is_users, state=state)
        return any(test.size for test in followed.tests if test.site == site)

    def _follows_sizes(self, site: Site, trial: Trial) -> bool:
        """Whether the decision goes as in the example when all sizes are the example's."""
        assert self._example is not None
        hold = {s: taken for s, taken in self._example.items() if isinstance(taken[0], Taken) and taken[0].size}
        replay, _ = self.replay(trial.calls, hold)
        found = next((path[site] for path in replay.paths if site in path), None)
        return found is not None and not self._differs(site, found)


def _tests_of(sites: set[Site]) -> list[set[Site]]:
    """Of the conditions, those that belong to one test: `a or b`, the tests of one `if`."""
    found = []
    for file in sorted({site.file for site in sites}):
        parsed = source_of(file)
        for node in ast.walk(parsed.tree) if parsed is not None else ():
            leaves = {parsed.condition(leaf) for leaf in decisions_of(node)} & sites if parsed is not None else set()
            if len(leaves) > 1:
                found.append(leaves)
    return found


def _same_error(ours: Exception, theirs: Exception) -> bool:
    """Whether an exported program's exception tells of eager's: TorchScript puts the text below one of its own."""
    text = str(ours).strip().split("\n", 1)[0]
    return bool(text) and text in str(theirs)


def _went(site: Site, taken: list[Any] | None, *, in_while: bool) -> str:
    """What was taken at a decision, in words."""
    if site.kind is Kind.EXCEPTION:
        return "entered" if taken else "not entered"
    if not taken:
        return "not reached"
    if site.kind is Kind.CONDITION:
        if in_while:
            times = sum(taken)
            return f"true {times} time{'' if times == 1 else 's'}"
        kinds = [key for key, _ in itertools.groupby(str(bool(one)).lower() for one in taken)]
        return kinds[0] if len(kinds) == 1 else _listed([str(bool(one)).lower() for one in taken])
    shown = list(dict.fromkeys(repr(one).lower() if repr(one) in ("True", "False") else repr(one) for one in taken))
    return _listed(shown)


def _listed(texts: Sequence[str]) -> str:
    short = [text if len(text) <= 60 else text[:59] + "…" for text in texts[:4]]
    return ", ".join(short) + (f" and {len(texts) - 4} more" if len(texts) > 4 else "")
