"""The story of one check, top to bottom: reference, export, save, load, run, compare, diagnose."""

from __future__ import annotations

import functools
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport import environment
from pytest_torchexport.backends.registry import make_backend
from pytest_torchexport.compare.records import Comparison, compare_records
from pytest_torchexport.counterexample import is_clear, remember, shrunk, simplest
from pytest_torchexport.diagnose.baked import Baked, Failing, find_baked
from pytest_torchexport.diagnose.cause import Finding, attribute
from pytest_torchexport.diagnose.coverage import below_minimum, branches_ledger
from pytest_torchexport.diagnose.separation import to_blame
from pytest_torchexport.draft import Draft, Failure, Surroundings, size_of
from pytest_torchexport.eager import Glance, Unstable, agrees_with_itself, second_opinion
from pytest_torchexport.errors import (
    BackendUnavailable,
    ConventionError,
    NotEquivalent,
    NothingCompiled,
    ReferenceInvalid,
    UsageError,
)
from pytest_torchexport.outcome import Cause, Input, Leaf, NotChecked, Outcome, Stage, Verdict
from pytest_torchexport.plan import Plan, Policy, Subject, make_plan
from pytest_torchexport.program import Program, make
from pytest_torchexport.reference import Reference, ReferenceStore, Trial
from pytest_torchexport.subject import devices
from pytest_torchexport.subject.state import Snapshot, parameter_marks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pytest_torchexport.backends.base import Backend, Exported
    from pytest_torchexport.compare.records import SecondOpinion
    from pytest_torchexport.compare.tolerance import Tolerance
    from pytest_torchexport.subject.run import Record

__all__ = [
    "Policy",
    "ReferenceStore",
    "Subject",
    "Surroundings",
    "assert_equivalent",
    "check",
    "export",
    "raise_for",
    "run",
]


def check(
    model: Callable[..., Any],
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    backend: str | Backend = "trace",
    device: str = "cpu",
    dtype: str | None = None,
    dynamic_shapes: Any = None,
    inputs: Mapping[str, Any] | None = None,
    extra_inputs: Sequence[Any] = (),
    assume: Callable[..., bool] | None = None,
    calls: int = 1,
    tolerance: Tolerance | None = None,
    n_inputs: int = 10,
    seed: int = 0,
    grad: bool = False,
    branches: str = "search",
    search_budget: int | None = None,
    min_coverage: float | None = None,
    user_code: tuple[str, ...] = (),
) -> Outcome:
    """Export a model, run it and eager on the example and on generated inputs, and compare all they do.

    Args:
        model: a `torch.nn.Module` (in the mode, train or eval, in which it is to be exported) or a function.
        args: positional arguments of the example call; a tuple (a single tensor stands for a tuple of one).
        kwargs: keyword arguments of the example call.
        backend: a name (`trace`, `script`, `compile`, `onnx`, `export`, `aoti`, `onnx-torchscript`, or one that was
            registered), a name with options (`compile:mode=max-autotune`), or a `Backend`.
        device: `cpu`, `cuda`, `cuda:1`, `mps`, `xpu`. The model is placed there, and so are the arguments.
        dtype: of floating parameters and arguments, `float32`, `float16`, `bfloat16` or `float64`; None leaves them.
        dynamic_shapes: which dimensions may vary, in torch.export's own format. They are exported as dynamic, and
            varied in the generated inputs.
        inputs: domain of an argument by name: `floats(low, high)`, `integers(low, high)`, `booleans()`,
            `sampled_from([...])`, `optional(...)`, a callable `(torch.Generator) -> value`, or a Hypothesis strategy.
        extra_inputs: further calls to check: each a tuple of positional arguments, a dict of keyword arguments, or a
            pair of both.
        assume: called as the model is, returns whether a generated input is one that the model is meant for.
        calls: length of the call sequences, for models with state.
        tolerance: replaces the default tolerance.
        n_inputs: number of generated inputs.
        seed: the same seed gives the same inputs.
        grad: compare the gradients of parameters and floating arguments too.
        branches: `search` for inputs that take the branches which the example does not; `observe` only which ones the
            other inputs take; or `off`.
        search_budget: how many runs of the eager module the search may use; None for the default.
        min_coverage: the least part of the branches' outcomes that the inputs have to take, 0 to 1; with less, the
            verdict is `invalid`.
        user_code: whose branches count, beside your own code and that of model libraries: packages
            (`"my_kernels"`) or globs of files to add, and with a `-` in front those to leave out (`"-timm"`).

    Returns:
        The outcome, whatever the verdict.

    Raises:
        UsageError: an argument of this call is wrong; the message says which, and how to mend it.
    """
    subject = Subject(model, args, kwargs, dynamic_shapes, inputs, extra_inputs, assume, calls)
    if branches == "off" and min_coverage is not None:
        msg = f"min_coverage={min_coverage!r} with branches='off': nothing is observed then; leave one of them out"
        raise UsageError(msg)
    policy = Policy(
        backend=backend,
        device=device,
        dtype=dtype,
        tolerance=tolerance,
        n_inputs=n_inputs,
        seed=seed,
        grad=grad,
        branches=branches,
        search_budget=search_budget,
        min_coverage=min_coverage,
        user_code=user_code,
    )
    return run(subject, policy, Surroundings())


def assert_equivalent(model: Callable[..., Any], args: Any = (), kwargs: Any = None, **options: Any) -> Outcome:
    """`check`, and an exception unless the program is equivalent (or the result is inconclusive).

    Takes the arguments of `check`.

    Raises:
        NotEquivalent: verdict `mismatch`, `refused`, `failed` or `over-budget`.
        ReferenceInvalid: verdict `invalid`.
        BackendUnavailable: verdict `skipped`: nothing was compared.
        UsageError: as `check`.
    """
    outcome = check(model, args, kwargs, **options)
    raise_for(outcome)
    return outcome


def raise_for(outcome: Outcome) -> None:
    """Raise what belongs to a verdict that is no pass; nothing for `equivalent` and `inconclusive`."""
    if outcome.verdict is Verdict.INVALID:
        raise ReferenceInvalid(outcome)
    if outcome.verdict is Verdict.SKIPPED:
        raise BackendUnavailable(outcome.message)
    if outcome.failed:
        raise NotEquivalent(outcome)


def run(subject: Subject, policy: Policy, surroundings: Surroundings) -> Outcome:
    """Check one subject under one policy: the story of a test item.

    Raises:
        UsageError: the call or the policy is wrong.
    """
    backend, device = make_backend(policy.backend), devices.parse(policy.device)
    plan = make_plan(subject, policy, surroundings.origin)
    draft = Draft(plan, policy, surroundings, backend)
    missing = devices.unavailable(device) or backend.unavailable(device)
    if missing is not None:
        return draft.skipped(missing)
    # Tensors made in inference mode cannot be exported, saved or differentiated.
    with torch.inference_mode(mode=False), _scratch(surroundings) as directory:
        plan.place(device)
        return _Story(plan, policy, surroundings, backend, draft).tell(directory)


def export(subject: Subject, policy: Policy, surroundings: Surroundings) -> Exported:
    """Export, save and load a model without checking it. The artifact is in `surroundings.directory`.

    Raises:
        BackendUnavailable: the backend or device cannot be used here.
        UsageError: the call or the policy is wrong.
        Exception: whatever the exporter raises.
    """
    backend, device = make_backend(policy.backend), devices.parse(policy.device)
    plan = make_plan(subject, policy, surroundings.origin)
    missing = devices.unavailable(device) or backend.unavailable(device)
    if missing is not None:
        raise BackendUnavailable(missing)
    with torch.inference_mode(mode=False), _scratch(surroundings) as directory:
        plan.place(device)
        exported, _ = make(backend, plan, Snapshot(plan.model), directory, grad_mode=plan.grad)
    return exported


@contextmanager
def _scratch(surroundings: Surroundings) -> Iterator[Path]:
    if surroundings.directory is not None:
        yield surroundings.directory
        return
    with tempfile.TemporaryDirectory(prefix="torchexport-") as folder:
        yield Path(folder)


@dataclass(frozen=True)
class _Unjudged:
    """Why an input can be neither passed nor failed."""

    why: str


@dataclass
class _Story:
    """One check as it happens."""

    plan: Plan
    policy: Policy
    surroundings: Surroundings
    backend: Backend
    draft: Draft

    def tell(self, directory: Path) -> Outcome:
        """Reference, export, save, load, run and compare, conclude."""
        plan = self.plan
        versions, flags = environment.versions(), devices.numerics_flags()
        self.draft.facts["environment"] = {"versions": versions, "eager": flags}
        snapshot, marks = Snapshot(plan.model), parameter_marks(plan.model)
        with self.draft.at(Stage.REFERENCE):
            reference = self.surroundings.references.get(plan, snapshot, self.surroundings.kept)
        self.draft.facts["dropped"] = dict(reference.dropped)
        self.draft.note(*(NotChecked(what, why) for what, why in reference.notes))
        self.draft.facts["branches"] = reference.coverage
        if reference.invalid is not None:
            return self.draft.kept(self.draft.outcome(Verdict.INVALID, reference.invalid))
        try:
            program = self._make(snapshot, reference, directory)
        except BackendUnavailable as error:
            return self.draft.skipped(str(error))
        except Exception as error:  # noqa: BLE001 whatever the exporter raises is a verdict
            return self.draft.kept(self.draft.refused(error))
        try:
            outcome = self._run_all(program, snapshot, reference)
        except Unstable as drift:
            outcome = self.draft.unstable(str(drift))
        finally:
            program.close()
        return self.draft.kept(self.draft.writes_parameters(marks) or outcome)

    def _make(self, snapshot: Snapshot, reference: Reference, directory: Path) -> Program:
        plan = self.plan
        grad_mode = plan.grad or reference.needs_grad_mode
        exported, path = make(self.backend, plan, snapshot, directory, grad_mode=grad_mode, at=self.draft.at)
        self.draft.facts |= {"artifact": path and str(path), "artifact_bytes": path and size_of(path)}
        self.draft.note(*exported.not_checked)
        return Program(exported, plan, snapshot, reference, gradients=plan.grad and self.backend.gradients)

    def _run_all(self, program: Program, snapshot: Snapshot, reference: Reference) -> Outcome:
        """Run and compare every input, then conclude from all of them."""
        failures: list[Failure] = []
        agreeing: list[Trial] = []
        unjudged: list[tuple[Trial, str]] = []
        # A call that raises comes last: torch.compile runs a function that has raised in eager from then on.
        for trial in sorted(reference.trials, key=lambda trial: trial.record.error is not None):
            with self.draft.at(Stage.RUN):
                record = program.run(trial)
            if isinstance(record.error, ConventionError):
                if trial.kind == "extra" or self._is_declared(record.error.argument):
                    return self.draft.fixed_argument(record.error, trial)
                self.draft.note(NotChecked(f"input {trial.label}", record.error.reason))
                continue
            if isinstance(record.error, NothingCompiled) and trial.record.error is None:
                self.draft.facts["details"] = dict(program.exported.details)
                return self.draft.refused(record.error)
            with self.draft.at(Stage.COMPARE):
                finding = self._compare(program, snapshot, reference, trial, record)
            if isinstance(finding, _Unjudged):
                self.draft.note(NotChecked(f"input {trial.label}", finding.why))
                unjudged.append((trial, finding.why))
                continue
            self.draft.inputs.append(Input(trial.kind, trial.label, len(trial.calls), agrees=finding is None))
            if finding is not None:
                failures.append(Failure(trial, finding, record))
            else:
                agreeing.append(trial)
        with self.draft.at(Stage.COMPARE):
            self._make_sure(program, snapshot, reference, failures, agreeing, unjudged)
        self.draft.facts["details"] = dict(program.exported.details)
        self.draft.facts["environment"] |= {"exported": devices.numerics_flags()}
        self.draft.note(*program.exported.not_checked)
        # A few inputs on which eager is mostly noise (constant ones, before a normalisation) say nothing of a model.
        named = any(trial.kind in ("example", "extra") for trial, _ in unjudged)
        if unjudged and not failures and (named or len(unjudged) > len(self.draft.inputs)):
            return self.draft.outcome(Verdict.INVALID, f"on the input {unjudged[0][0].label}, {unjudged[0][1]}")
        self.draft.note(*branches_ledger(reference.coverage, self.policy.min_coverage))
        if not failures:
            too_few = reference.coverage and below_minimum(reference.coverage, self.policy.min_coverage)
            return self.draft.outcome(Verdict.INVALID, too_few) if too_few else self.draft.equivalent()
        return self._not_equivalent(program, snapshot, reference, failures, agreeing)

    def _make_sure(
        self,
        program: Program,
        snapshot: Snapshot,
        reference: Reference,
        failures: list[Failure],
        agreeing: list[Trial],
        unjudged: list[tuple[Trial, str]],
    ) -> None:
        """Measure the failure that is shown in full; if rounding explains it after all, the next one, until one stands.

        The other failures may rest on a first look: the verdict does not need them.
        """
        while failures:
            first = simplest(failures)
            found = self._measured(program, snapshot, reference, first)
            place = next(index for index, failure in enumerate(failures) if failure is first)
            if isinstance(found, Finding):
                failures[place] = replace(first, finding=found)
                return
            trial = failures.pop(place).trial
            entry = Input(trial.kind, trial.label, len(trial.calls), agrees=False)
            entered = self.draft.inputs.index(entry)
            if found is None:
                self.draft.inputs[entered] = replace(entry, agrees=True)
                agreeing.append(trial)
            else:
                del self.draft.inputs[entered]
                self.draft.note(NotChecked(f"input {trial.label}", found.why))
                unjudged.append((trial, found.why))

    def _measured(
        self, program: Program, snapshot: Snapshot, reference: Reference, failure: Failure
    ) -> Finding | _Unjudged | None:
        """What differs on a failing input when eager's rounding is measured in full."""
        trial, record = failure.trial, failure.record
        if self.policy.tolerance or record.error is not None or trial.record.error is not None:
            return failure.finding
        comparison = self._comparison(program, trial, record, second_opinion(self.plan, snapshot, reference, trial))
        if comparison.disagreeing:
            return self._finding(trial, record, comparison)
        return _Unjudged(comparison.unjudged[0]) if comparison.unjudged else None

    def _compare(
        self, program: Program, snapshot: Snapshot, reference: Reference, trial: Trial, record: Record
    ) -> Finding | _Unjudged | None:
        """Compare everything; what differs, or None."""
        if trial.record.error is not None:
            return None if record.error is not None else self._should_raise(trial)
        if record.error is not None:
            record.error = record.error.with_traceback(None)
            return self._finding(trial, record, Comparison())
        glance = None if self.policy.tolerance else Glance(self.plan, snapshot, reference, trial)
        comparison = self._comparison(program, trial, record, glance)
        if glance is not None and glance.undecided and not comparison.disagreeing:
            asked = second_opinion(self.plan, snapshot, reference, trial)
            comparison = self._comparison(program, trial, record, asked)
        if not comparison.unjudged or comparison.disagreeing:
            self.draft.count(comparison.leaves)
        for path in comparison.left_out:
            self.draft.note(NotChecked(path, "it is no tensor: the exported program does not return it"))
        for name in comparison.unread:
            why = "forward changes it, and it cannot be read from the exported program; later calls were compared"
            if all(len(trial.calls) == 1 for trial in reference.trials):
                why = "forward changes it, and it cannot be read from the exported program; no later call was made"
            self.draft.note(NotChecked(f"state {name!r}", why))
        if not comparison.disagreeing:
            return _Unjudged(comparison.unjudged[0]) if comparison.unjudged else None
        return self._finding(trial, record, comparison)

    def _comparison(self, program: Program, trial: Trial, record: Record, asked: SecondOpinion | None) -> Comparison:
        return compare_records(
            trial.record,
            record,
            trial.calls,
            structure=self.backend.structure,
            states=program.states,
            names=self.plan.names,
            tolerance=self.policy.tolerance,
            gradients=self._gradients_of(program, trial),
            second_opinion=asked,
        )

    def _finding(self, trial: Trial, record: Record, comparison: Comparison) -> Finding:
        return Finding(
            leaves=tuple(comparison.disagreeing),
            raised=f"{type(record.error).__name__}: {_cut(str(record.error))}" if record.error is not None else None,
            is_example=self.plan.is_example(trial.calls),
            same_shapes=self.plan.has_example_shapes(trial.calls),
            calls=len(trial.calls),
        )

    def _compare_again(
        self,
        program: Program,
        snapshot: Snapshot,
        reference: Reference,
        trial: Trial,
        record: Record,
        *,
        thorough: bool,
    ) -> Finding | None:
        """Compare on an input that is not one of the check's own: nothing is counted or noted."""
        if record.error is not None:
            record.error = record.error.with_traceback(None)
            return self._finding(trial, record, Comparison())
        comparison = self._comparison(program, trial, record, None)
        if not comparison.disagreeing:
            return None
        finding = self._finding(trial, record, comparison)
        if self.policy.tolerance or (not thorough and not is_clear(finding)):
            return finding
        asked = (second_opinion if thorough else Glance)(self.plan, snapshot, reference, trial)
        comparison = self._comparison(program, trial, record, asked)
        return self._finding(trial, record, comparison) if comparison.disagreeing else None

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

    def _gradients_of(self, program: Program, trial: Trial) -> frozenset[str]:
        """Names of eager's gradients that the program has too; the others are in the ledger."""
        if not self.plan.grad:
            return frozenset()
        if not self.backend.gradients:
            self.draft.note(NotChecked("gradients", f"{self.backend.name} programs have none"))
            return frozenset()
        frozen = (self.plan.parameters() or {}).keys() - program.parameters().keys()
        for name in frozen:
            self.draft.note(NotChecked(f"gradient of {name}", "the exported program holds the parameter as a constant"))
        return frozenset(trial.record.gradients) - {f"gradient of {name}" for name in frozen}

    def _is_declared(self, argument: str) -> bool:
        """Whether the user said that this argument varies."""
        return any(argument == name or argument.startswith((name + "[", name + ".")) for name in self.plan.inputs or ())

    def _not_equivalent(
        self,
        program: Program,
        snapshot: Snapshot,
        reference: Reference,
        failures: list[Failure],
        agreeing: list[Trial],
    ) -> Outcome:
        """Make sure that eager is not to blame, find the cause, and say it on the simplest input that fails."""
        first = simplest(failures)
        raises = first.trial.record.error is not None
        differs = None if raises else agrees_with_itself(self.plan, snapshot, reference, first.trial)
        if differs is not None:
            return self.draft.unstable(f"the input {first.trial.label}: {differs.path} ({differs.reason})")
        others = [failure for failure in failures if failure is not first]
        compare = functools.partial(self._compare_again, program, snapshot, reference)
        with self.draft.at(Stage.COMPARE):
            first = shrunk(first, self.plan, snapshot, reference, program, compare)
        failures = [first, *others]
        with self.draft.at(Stage.COMPARE):
            baked = self._baked(program, snapshot, reference, failures, agreeing)
        if baked is not None and baked.failing > 0:  # shown is the input that proves it
            proof = failures[baked.failing]
            with self.draft.at(Stage.COMPARE):
                found = self._measured(program, snapshot, reference, proof)
            if isinstance(found, Finding):
                failures.pop(baked.failing)
                failures.insert(0, replace(proof, finding=found))
        remember(failures[0], self.plan, self.surroundings.kept)
        findings = [failure.finding for failure in failures]
        suspicions = to_blame(program.exported.suspicions, reference.trials[0], [f.trial for f in failures])
        cause = attribute(findings, len(self.draft.inputs), suspicions, baked)
        verdict = Verdict.FAILED if findings[0].raised else Verdict.MISMATCH
        return self.draft.conclude(verdict, cause, failures[0])

    def _baked(
        self,
        program: Program,
        snapshot: Snapshot,
        reference: Reference,
        failures: list[Failure],
        agreeing: list[Trial],
    ) -> Baked | None:
        """The decision that the export keeps from the example; none is to blame where the example itself fails."""
        if self.plan.branches == "off" or any(f.finding.is_example and f.finding.calls == 1 for f in failures):
            return None
        compare = functools.partial(self._comparison, program)
        failing = [Failing(failure.trial, failure.record) for failure in failures]
        suspicions = program.exported.suspicions
        return find_baked(self.plan, snapshot, reference, failing, agreeing, suspicions, compare)


def _cut(text: str, limit: int = 500) -> str:
    text = text.strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"
