"""What a check of a case should have found, and what it did find."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from pytest_torchexport import Backend, Exported, check
from tests.branches.corpus.case import Infeasible
from tests.branches.corpus.probe import taken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from pytest_torchexport import ExportRequest, Outcome
    from pytest_torchexport.outcome import BranchCoverage, BranchOutcome
    from tests.branches.corpus.case import Call as CaseCall
    from tests.branches.corpus.case import Case, Span, Truth


class _Runs(Exported):
    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__()
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._model(*args, **kwargs)


class Eager(Backend):
    """Exports nothing: what is left of a check is its search."""

    name: ClassVar[str] = "eager"

    def export(self, request: ExportRequest) -> Any:
        return request.model

    def load(self, program: Any, path: Path | None, request: ExportRequest) -> Exported:
        return _Runs(program)


def checked(case: Case, backend: str | Backend, **options: Any) -> Outcome:
    """The public check of a case."""
    args, kwargs = case.example
    return check(case.make(), args, kwargs, backend=backend, **(dict(case.options) | options))


def outcomes(coverage: BranchCoverage | None, kind: str, condition: str, line: int) -> dict[str, BranchOutcome]:
    """The outcomes that a check knows of a decision, by their names; none where it does not know the decision."""
    assert coverage is not None, "nothing was observed"
    return {
        one.outcome: one
        for decision in coverage.decisions
        if (decision.kind, decision.condition, decision.location.line) == (kind, condition, line)
        for one in decision.outcomes
    }


_NAMES = {
    "condition": {"true": "true", "false": "false"},
    "exception": {"true": "entered", "false": "not entered"},
    "loop": {"other": "another number"},
    "number": {"other": "another value"},
}
"""What the package calls an outcome of the corpus."""


@dataclass
class Tally:
    """How many outcomes inputs reached; a decision that is not known has none.

    Attributes:
        reachable: number of outcomes that some input takes.
        missed: those that the check did not reach, in words; `easy` those of cases that are easy.
        impossible: outcomes that the check claims to have reached and no input takes.
        runs: what it cost, in runs of eager.
        by: number of reached outcomes by the kind of input.
    """

    reachable: int = 0
    missed: list[str] = field(default_factory=list)
    easy: list[str] = field(default_factory=list)
    impossible: list[str] = field(default_factory=list)
    runs: int = 0
    by: dict[str, int] = field(default_factory=dict)

    def add(self, case: Case, coverage: BranchCoverage | None) -> None:
        """Count the outcomes of a case."""
        assert coverage is not None, f"{case.name}: nothing was observed"
        self.runs += coverage.eager_runs
        for truth, span in case.spans().items():
            known = outcomes(coverage, truth.kind, truth.condition, span.line)
            for name, witness in truth.outcomes.items():
                found = known.get(_NAMES[truth.kind][name])
                how = found.reached_by if found is not None else ""
                text = f"{case.name}: {truth.condition}: {name}"
                if isinstance(witness, Infeasible):
                    self.impossible += [text] if how else []
                    continue
                self.reachable += 1
                self.by[how] = self.by.get(how, 0) + 1
                if not how:
                    self.missed.append(text + (f" (tried: {found.tried})" if found else " (not known)"))
                    self.easy += [text] if case.effort == "easy" else []

    @property
    def ratio(self) -> float:
        """The part of the reachable outcomes that was reached."""
        return 1 - len(self.missed) / self.reachable


def tally(cases: Iterable[Case], **options: Any) -> Tally:
    """What the search reaches on cases."""
    total = Tally()
    for case in cases:
        total.add(case, checked(case, Eager(), **options).branches)
    return total


def at_line(case: Case, line: int) -> list[tuple[Truth, Span]]:
    """The decisions of a case that stand on a line."""
    return [(truth, span) for truth, span in case.spans().items() if span.line <= line <= span.end_line]


def failing_calls(outcome: Outcome) -> list[CaseCall] | None:
    """The failing input as a person would paste it; None where its values are too many to be written down."""
    if outcome.paste is None:
        return None
    (element,) = eval(f"dict({outcome.paste})", {"torch": torch})["extra_inputs"]
    return [_call(one) for one in (element if isinstance(element, list) else [element])]


def _call(element: Any) -> CaseCall:
    match element:
        case (tuple() as args, dict() as kwargs):
            return args, kwargs
        case dict():
            return (), element
    return tuple(element), {}


def goes_elsewhere(case: Case, calls: list[CaseCall]) -> set[Truth]:
    """The decisions that an input takes otherwise than the example, or more or less often."""
    calls = calls * case.options.get("calls", 1) if len(calls) == 1 else calls
    example, run = taken(case, [case.example] * case.options.get("calls", 1)), taken(case, calls)
    keys = {truth: (truth.kind, span) for truth, span in case.spans().items()}
    return {truth for truth, key in keys.items() if run.get(key) != example.get(key)}
