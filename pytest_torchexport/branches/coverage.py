"""Which outcomes of which decisions exist, and which input took each first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_torchexport.branches.implied import leading_out
from pytest_torchexport.branches.sites import Kind, Site, source_of
from pytest_torchexport.outcome import BranchCoverage, BranchOutcome, Decision, Location
from pytest_torchexport.subject.source import locate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_torchexport.branches.observation import Taken

OTHER = "other"
"""Of a loop or a number: any count or value but the example's."""


@dataclass
class _Known:
    """One decision that depends on the input.

    `example` is what the example took: truth values, or the counts or values in order; None if it was not there.
    """

    example: Any = None
    reached: dict[Any, tuple[str, str]] = field(default_factory=dict)
    tried: dict[Any, str] = field(default_factory=dict)


class Coverage:
    """The state of a search: what is known, and what was reached by whom."""

    def __init__(self) -> None:
        self._known: dict[Site, _Known] = {}
        self._seen: dict[Site, list[tuple[Any, str, str]]] = {}
        self._example: Taken = {}
        self._started = False

    def start(self, taken: Taken) -> None:
        """Note what the example took."""
        self._example = dict(taken)
        self.note(taken, "example", "the example")
        self._started = True

    def note(self, taken: Taken, kind: str, label: str) -> list[tuple[Site, Any]]:
        """Note what an input took; returns the outcomes that it is the first to take.

        A decision that goes another way than in all inputs before is known from then on to depend on the input.
        """
        new = []
        for site, what in taken.items():
            history = self._history(site)
            if not any(_same(site, what, before) for before, _, _ in history):
                history.append((what, kind, label))
            if site not in self._known and len(history) > 1:
                new += self.depends([site])
            if site in self._known:
                new += self._reach(site, what, kind, label)
        return new

    def _history(self, site: Site) -> list[tuple[Any, str, str]]:
        """What the inputs took at a decision. An `except` clause that an input does not enter leaves no trace of it."""
        first = [({False}, "example", "the example")] if site.kind is Kind.EXCEPTION and self._started else []
        return self._seen.setdefault(site, list(first))

    def new(self, taken: Taken) -> list[tuple[Site, Any]]:
        """The outcomes that an input would be the first to take; nothing is noted."""
        new: list[tuple[Site, Any]] = []
        for site, what in taken.items():
            if site in self._known:
                new += [(site, o) for o in self._outcomes(site, what) if o not in self._known[site].reached]
            elif (history := self._history(site)) and all(not _same(site, what, w) for w, _, _ in history):
                new += [(site, outcome) for outcome in self._others(site, what, history)]
        return new

    def _others(self, site: Site, what: Any, history: list[tuple[Any, str, str]]) -> list[Any]:
        """The outcomes in `what` that are in none of the history."""
        if site.kind not in (Kind.CONDITION, Kind.EXCEPTION):
            return [OTHER]
        return sorted(set(what).difference(*(before for before, _, _ in history)))

    def label(self, new: list[tuple[Site, Any]]) -> str:
        """What an input is for: the first outcome that it took."""
        site, outcome = new[0]
        text = text_of(site)
        short = text if len(text) <= 60 else text[:59] + "…"
        went = "another number" if outcome == OTHER else str(outcome).lower()
        return f"`{short}` {went} (line {site.line})"

    def depends(self, sites: Iterable[Site]) -> list[tuple[Site, Any]]:
        """Note that decisions depend on the input; returns outcomes that earlier inputs are now seen to have taken."""
        new = []
        for site in sites:
            if site in self._known:
                continue
            self._known[site] = _Known(self._example.get(site))
            for what, kind, label in self._seen.get(site, []):
                new += self._reach(site, what, kind, label)
        return new

    def _reach(self, site: Site, what: Any, kind: str, label: str) -> list[tuple[Site, Any]]:
        known = self._known[site]
        if known.example is None:
            known.example = what
        new = [outcome for outcome in self._outcomes(site, what) if outcome not in known.reached]
        known.reached |= dict.fromkeys(new, (kind, label))
        return [(site, outcome) for outcome in new]

    def _outcomes(self, site: Site, what: Any) -> list[Any]:
        if site.kind in (Kind.CONDITION, Kind.EXCEPTION):
            return sorted(what)
        example = self._known[site].example
        return ["example" if example is None or _same(site, what, example) else OTHER]

    def sites(self) -> list[Site]:
        """The decisions that are known to depend on the input."""
        return list(self._known)

    def knows(self, site: Site) -> bool:
        """Whether the decision is known to depend on the input."""
        return site in self._known

    def outcomes(self, site: Site) -> list[Any]:
        """The outcomes that a decision has."""
        if site.kind in (Kind.LOOP, Kind.NUMBER):
            return ["example", OTHER]
        source = source_of(site.file)
        out = leading_out(source) if source is not None and site.kind is Kind.CONDITION else ()
        reached = self._known[site].reached if site in self._known else {}
        return [outcome for outcome in (True, False) if (site, outcome) not in out or outcome in reached]

    def reached_elsewhere(self, site: Site) -> list[Any]:
        """The outcomes of a decision that the example did not take, and another input did."""
        known = self._known[site]
        if site.kind is Kind.EXCEPTION or source_excluded(site):
            return []
        took = known.example if site.kind is Kind.CONDITION and known.example else ()
        return [o for o, (kind, _) in known.reached.items() if kind != "example" and o != "example" and o not in took]

    def is_other(self, site: Site, taken: Any) -> bool:
        """Whether counts or values are not the example's."""
        return not _same(site, taken, self._known[site].example)

    def missing(self) -> list[tuple[Site, Any]]:
        """The outcomes that no input took yet, without excluded ones, in the order of their decisions."""
        return [
            (site, outcome)
            for site, known in self._known.items()
            if not source_excluded(site)
            for outcome in self.outcomes(site)
            if outcome not in known.reached
        ]

    def tried(self, goal: tuple[Site, Any], text: str) -> None:
        """Note what was tried for an outcome."""
        site, outcome = goal
        self._known[site].tried[outcome] = text

    def report(self, mode: str, runs: int) -> BranchCoverage:
        """What is known, for the outcome of the check; a number within a condition is part of that."""
        conditions = [site for site in self._known if site.kind is Kind.CONDITION]
        shown = [
            site
            for site in sorted(self._known)
            if site.kind is not Kind.NUMBER or not any(_within(site, other) for other in conditions)
        ]
        return BranchCoverage(mode, tuple(self._decision(site) for site in shown), runs)

    def _decision(self, site: Site) -> Decision:
        known = self._known[site]
        outcomes = []
        for outcome in self.outcomes(site):
            kind, label = known.reached.get(outcome, ("", ""))
            tried = "" if kind else known.tried.get(outcome, "the inputs of this check")
            outcomes.append(BranchOutcome(self._word(site, outcome), kind, label, tried))
        return Decision(str(site.kind), text_of(site), location_of(site), tuple(outcomes), source_excluded(site))

    def _word(self, site: Site, outcome: Any) -> str:
        """The outcome for a person."""
        if isinstance(outcome, bool):
            if site.kind is Kind.EXCEPTION:
                return "entered" if outcome else "not entered"
            return str(outcome).lower()
        if outcome == OTHER:
            return "another number" if site.kind is Kind.LOOP else "another value"
        return describe(site, self._known[site].example)

    def example_took(self, site: Site) -> Any:
        """What the example took at the decision; None if it did not come there."""
        return self._example.get(site)


def _same(site: Site, one: Any, other: Any) -> bool:
    """Whether two inputs took the same.

    Of counts and values it matters which there were, not how often or in which order: a longer sequence of calls comes
    to the same places more often.
    """
    return set(one) == set(other) if site.kind in (Kind.LOOP, Kind.NUMBER) else bool(one == other)


def describe(site: Site, what: Any) -> str:
    """What was taken at a decision, in words: `true`, `3 iterations`, `0.25`."""
    if what is None:
        return "not reached"
    if isinstance(what, (set, frozenset)):
        return " and ".join(str(one).lower() for one in sorted(what, reverse=True))
    if isinstance(what, bool):
        return str(what).lower()
    values = list(what) if isinstance(what, tuple) else [what]
    if site.kind is Kind.LOOP:
        texts = [f"{n} iteration{'' if n == 1 else 's'}" for n in values]
    else:
        texts = [str(value) for value in values]
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")


def _within(site: Site, other: Site) -> bool:
    inside = (other.line, other.column) <= (site.line, site.column)
    return site.file == other.file and inside and (site.end_line, site.end_column) <= (other.end_line, other.end_column)


def text_of(site: Site) -> str:
    """The source of the decision, on one line."""
    source = source_of(site.file)
    return source.text(site) if source is not None else ""


def source_excluded(site: Site) -> bool:
    """Whether a comment takes the decision out of the count."""
    source = source_of(site.file)
    return source is not None and source.excluded(site)


def location_of(site: Site) -> Location:
    """The decision's line."""
    return locate(site.file, site.line)


def different(one: Taken, other: Mapping[Site, Any]) -> list[Site]:
    """The decisions that two runs took differently, in order of position; those that only one came to are left out."""
    return sorted(site for site in one.keys() & other.keys() if not _same(site, one[site], other[site]))
