"""Is what the exported program did on one input what eager did? At a first look, and measured in full."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.compare.records import Comparison, compare_records, named_leaves
from pytest_torchexport.counterexample import is_clear
from pytest_torchexport.diagnose.cause import Finding
from pytest_torchexport.eager import Glance, second_opinion
from pytest_torchexport.errors import UsageError
from pytest_torchexport.outcome import Cause, Leaf, NotChecked

if TYPE_CHECKING:
    from pytest_torchexport.backends.base import Backend
    from pytest_torchexport.compare.records import SecondOpinion
    from pytest_torchexport.compare.tolerance import Rules
    from pytest_torchexport.draft import Draft, Failure
    from pytest_torchexport.plan import Plan
    from pytest_torchexport.program import Program
    from pytest_torchexport.subject.run import Record
    from pytest_torchexport.subject.state import Snapshot
    from pytest_torchexport.trials import Reference, Trial


def check_names(plan: Plan, reference: Reference) -> None:
    """Raise a `UsageError` if the tolerances of a plan name a result or a dimension that eager does not have."""
    paths: dict[str, Any] = {}
    for trial in reference.trials:
        if trial.record.error is None:
            paths |= named_leaves(trial.record, len(trial.calls), reference.start, plan.names)
    for path, leaf in paths.items():
        rule, dims = plan.rules.of_result(path), leaf.dim() if isinstance(leaf, torch.Tensor) else None
        named = rule != plan.rules.default
        if rule.compare == "set" and dims and rule.dim and not -dims <= rule.dim < dims and (named or "output" in path):
            msg = f"tolerance of {path}: it has {dims} dimension{'' if dims == 1 else 's'}, and none is dim={rule.dim}"
            raise UsageError(msg)
    unknown = plan.rules.unknown(paths)
    if unknown:
        msg = (
            f"tolerance names {unknown[0]!r}, and the model has no such result. It has: {', '.join(paths)}. Give a "
            "path, its last part, or a pattern with *."
        )
        raise UsageError(msg)


@dataclass(frozen=True)
class Unjudged:
    """Why an input can be neither passed nor failed."""

    why: str


@dataclass
class Judge:
    """Compares eager with one exported program, input by input; what is left unchecked it notes in the draft."""

    plan: Plan
    rules: Rules
    backend: Backend
    draft: Draft
    program: Program
    snapshot: Snapshot
    reference: Reference

    def compare(self, trial: Trial, record: Record) -> Finding | Unjudged | None:
        """Compare everything; what differs, or None."""
        if trial.record.error is not None:
            return None if record.error is not None else self._should_raise(trial)
        if record.error is not None:
            record.error = record.error.with_traceback(None)
            return self._finding(trial, record, Comparison())
        glance = Glance(self.plan, self.snapshot, self.reference, trial, self.rules)
        comparison = self.comparison(trial, record, glance)
        if glance.undecided and not comparison.disagreeing:
            comparison = self.comparison(trial, record, self._measuring(trial))
        if not comparison.unjudged or comparison.disagreeing:
            self.draft.count(comparison.leaves)
        for path in comparison.ignored:
            self.draft.note(NotChecked(path, "the test's tolerance says compare='ignore'"))
        for path in comparison.left_out:
            self.draft.note(NotChecked(path, "it is no tensor: the exported program does not return it"))
        for name in comparison.unread:
            why = "forward changes it, and it cannot be read from the exported program; later calls were compared"
            if all(len(trial.calls) == 1 for trial in self.reference.trials):
                why = "forward changes it, and it cannot be read from the exported program; no later call was made"
            self.draft.note(NotChecked(f"state {name!r}", why))
        if not comparison.disagreeing:
            return Unjudged(comparison.unjudged[0]) if comparison.unjudged else None
        return self._finding(trial, record, comparison)

    def measured(self, failure: Failure) -> Finding | Unjudged | None:
        """What differs on a failing input when eager's rounding is measured in full."""
        trial, record = failure.trial, failure.record
        if record.error is not None or trial.record.error is not None:
            return failure.finding
        comparison = self.comparison(trial, record, self._measuring(trial))
        if comparison.disagreeing:
            return self._finding(trial, record, comparison)
        return Unjudged(comparison.unjudged[0]) if comparison.unjudged else None

    def compare_again(self, trial: Trial, record: Record, *, thorough: bool) -> Finding | None:
        """Compare on an input that is not one of the check's own: nothing is counted or noted."""
        if record.error is not None:
            record.error = record.error.with_traceback(None)
            return self._finding(trial, record, Comparison())
        if thorough:
            comparison = self.comparison(trial, record, self._measuring(trial))
            return self._finding(trial, record, comparison) if comparison.disagreeing else None
        comparison = self.comparison(trial, record, None)
        if not comparison.disagreeing:
            return None
        finding = self._finding(trial, record, comparison)
        if not is_clear(finding):
            return finding
        glance = Glance(self.plan, self.snapshot, self.reference, trial, self.rules)
        comparison = self.comparison(trial, record, glance)
        return self._finding(trial, record, comparison) if comparison.disagreeing else None

    def comparison(self, trial: Trial, record: Record, asked: SecondOpinion | None) -> Comparison:
        """Everything that eager and the program did on an input; `asked` judges values that differ."""
        return compare_records(
            trial.record,
            record,
            trial.calls,
            structure=self.backend.structure,
            states=self.program.states,
            names=self.plan.names,
            rules=self.rules,
            gradients=self._gradients_of(trial),
            second_opinion=asked,
        )

    def _measuring(self, trial: Trial) -> SecondOpinion:
        return second_opinion(self.plan, self.snapshot, self.reference, trial, self.rules)

    def _finding(self, trial: Trial, record: Record, comparison: Comparison) -> Finding:
        return Finding(
            leaves=tuple(comparison.disagreeing),
            raised=f"{type(record.error).__name__}: {_cut(str(record.error))}" if record.error is not None else None,
            is_example=self.plan.is_example(trial.calls),
            same_shapes=self.plan.has_example_shapes(trial.calls),
            calls=len(trial.calls),
        )

    def _should_raise(self, trial: Trial) -> Finding:
        error = trial.record.error
        leaf = Leaf(
            "the call",
            agrees=False,
            cause=Cause.EXCEPTION,
            reason="eager raises, the exported program returns",
            expected=f"{type(error).__name__}: {_cut(str(error), 120)}",
            actual="an output",
        )
        return Finding((leaf,), None, is_example=False, same_shapes=True, calls=len(trial.calls))

    def _gradients_of(self, trial: Trial) -> frozenset[str]:
        """Names of eager's gradients that the program has too; the others are in the ledger."""
        if not self.plan.grad:
            return frozenset()
        if not self.backend.gradients:
            self.draft.note(NotChecked("gradients", f"{self.backend.name} programs have none"))
            return frozenset()
        frozen = (self.plan.parameters() or {}).keys() - self.program.parameters().keys()
        for name in frozen:
            self.draft.note(NotChecked(f"gradient of {name}", "the exported program holds the parameter as a constant"))
        return frozenset(trial.record.gradients) - {f"gradient of {name}" for name in frozen}


def _cut(text: str, limit: int = 500) -> str:
    text = text.strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"
