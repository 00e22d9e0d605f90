"""The story of one check, top to bottom: reference, export, save, load, run, compare, diagnose, measure."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport import environment
from pytest_torchexport.backends.item_names import names_of
from pytest_torchexport.backends.registry import make_backend
from pytest_torchexport.counterexample import remember, shrunk, simplest
from pytest_torchexport.diagnose.baked import Baked, Failing, find_baked
from pytest_torchexport.diagnose.case import Case, Clue
from pytest_torchexport.diagnose.cause import Finding, attribute
from pytest_torchexport.diagnose.coverage import below_minimum, branches_ledger, compared_only
from pytest_torchexport.diagnose.hypotheses import examine
from pytest_torchexport.diagnose.separation import to_blame
from pytest_torchexport.draft import Draft, Failure, Made, Surroundings, size_of
from pytest_torchexport.eager import Unstable, agrees_with_itself
from pytest_torchexport.errors import (
    BackendUnavailable,
    ConventionError,
    NotEquivalent,
    NothingCompiled,
    ReferenceInvalid,
    UsageError,
)
from pytest_torchexport.judge import Judge, Unjudged, check_names
from pytest_torchexport.latency.budget import budget_of
from pytest_torchexport.localize.first_difference import localize
from pytest_torchexport.outcome import Divergence, Input, NotChecked, Outcome, Stage, Verdict
from pytest_torchexport.performance.stage import Measurement, check_inputs
from pytest_torchexport.plan import Plan, Policy, Subject, make_plan
from pytest_torchexport.program import Program, make
from pytest_torchexport.reference import ReferenceStore
from pytest_torchexport.subject import devices
from pytest_torchexport.subject.state import Snapshot, parameter_marks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pytest_torchexport.backends.base import Backend, Exported
    from pytest_torchexport.compare.tolerance import Given
    from pytest_torchexport.latency.budget import Budget
    from pytest_torchexport.latency.budget import Given as GivenBudget
    from pytest_torchexport.trials import Reference, Trial

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
    tolerance: Given = None,
    n_inputs: int = 10,
    seed: int = 0,
    grad: bool = False,
    latency: GivenBudget = None,
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
        tolerance: replaces the measured tolerance, or changes how it is used: a `Tolerance` for all results, or a dict
            of such by the results' names (`{"logits": Tolerance(k=10), "*": Tolerance(rtol=1e-4, atol=1e-5)}`).
        n_inputs: number of generated inputs.
        seed: the same seed gives the same inputs.
        grad: compare the gradients of parameters and floating arguments too.
        latency: what the program may take in time and memory: `"1.2x"` (times eager), `"5ms"`, a `Budget`, or a dict of
            such by backend and device. An empty `Budget()` is measured and not judged; with None nothing is measured.
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
        latency=_budget(latency, backend, device, dtype),
    )
    return run(subject, policy, Surroundings())


def _budget(given: GivenBudget, backend: str | Backend, device: str, dtype: str | None) -> Budget | None:
    if given is None:
        return None
    made = make_backend(backend)
    # Neither is checked yet: a torch.device and a torch.dtype are as good as their names.
    named = None if dtype is None else str(dtype).removeprefix("torch.")
    return budget_of(given, names_of(made.name, made.id, str(device), named))


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


@contextlib.contextmanager
def _scratch(surroundings: Surroundings) -> Iterator[Path]:
    if surroundings.directory is not None:
        yield surroundings.directory
        return
    with tempfile.TemporaryDirectory(prefix="torchexport-") as folder:
        yield Path(folder)


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
        check_names(plan, reference)
        check_inputs(self.policy.latency, reference)
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
        outcome = self.draft.writes_parameters(marks) or outcome
        if outcome.verdict is Verdict.EQUIVALENT:
            outcome = self._measure(outcome, program, snapshot, reference)
        return self.draft.kept(outcome)

    def _make(self, snapshot: Snapshot, reference: Reference, directory: Path) -> Program:
        plan = self.plan
        grad_mode = plan.grad or reference.needs_grad_mode
        exported, saved = make(self.backend, plan, snapshot, directory, grad_mode=grad_mode, at=self.draft.at)
        path = saved.path
        self.draft.facts |= {"artifact": path and str(path), "artifact_bytes": path and size_of(path)}
        self.draft.note(*exported.not_checked)
        self.draft.made = Made(exported, saved, grad_mode, reference.start)
        return Program(exported, plan, snapshot, reference, gradients=plan.grad and self.backend.gradients)

    def _run_all(self, program: Program, snapshot: Snapshot, reference: Reference) -> Outcome:
        """Run and compare every input, then conclude from all of them."""
        judge = Judge(self.plan, self.plan.rules, self.backend, self.draft, program, snapshot, reference)
        failures: list[Failure] = []
        agreeing: list[Trial] = []
        unjudged: list[tuple[Trial, str]] = []
        uncompared: dict[str, str] = {}
        # A call that raises comes last: torch.compile runs a function that has raised in eager from then on.
        for trial in sorted(reference.trials, key=lambda trial: trial.record.error is not None):
            with self.draft.at(Stage.RUN):
                record = program.run(trial)
            if isinstance(record.error, ConventionError):
                if trial.kind == "extra" or self._is_declared(record.error.argument):
                    return self.draft.fixed_argument(record.error, trial)
                self.draft.note(NotChecked(f"input {trial.label}", record.error.reason))
                uncompared[trial.label] = record.error.reason
                continue
            if isinstance(record.error, NothingCompiled) and trial.record.error is None:
                self.draft.facts["details"] = dict(program.exported.details)
                return self.draft.refused(record.error)
            with self.draft.at(Stage.COMPARE):
                finding = judge.compare(trial, record)
            if isinstance(finding, Unjudged):
                self.draft.note(NotChecked(f"input {trial.label}", finding.why))
                unjudged.append((trial, finding.why))
                continue
            self.draft.inputs.append(Input(trial.kind, trial.label, len(trial.calls), agrees=finding is None))
            if finding is not None:
                failures.append(Failure(trial, finding, record))
            else:
                agreeing.append(trial)
        with self.draft.at(Stage.COMPARE):
            self._make_sure(judge, failures, agreeing, unjudged)
        self.draft.facts["details"] = dict(program.exported.details)
        self.draft.facts["environment"] |= {"exported": devices.numerics_flags()}
        self.draft.note(*program.exported.not_checked)
        # A few inputs on which eager is mostly noise (constant ones, before a normalisation) say nothing of a model.
        named = any(trial.kind in ("example", "extra") for trial, _ in unjudged)
        if unjudged and not failures and (named or len(unjudged) > len(self.draft.inputs)):
            return self.draft.too_chaotic(unjudged[0][0].label, unjudged[0][1])
        uncompared |= {trial.label: why for trial, why in unjudged}
        coverage = compared_only(reference.coverage, uncompared, {tried.label for tried in self.draft.inputs})
        self.draft.facts["branches"] = coverage
        self.draft.note(*branches_ledger(coverage, self.policy.min_coverage))
        if not failures:
            too_few = coverage and below_minimum(coverage, self.policy.min_coverage)
            return self.draft.outcome(Verdict.INVALID, too_few) if too_few else self.draft.equivalent()
        return self._not_equivalent(judge, failures, agreeing)

    def _measure(self, outcome: Outcome, program: Program, snapshot: Snapshot, reference: Reference) -> Outcome:
        """Hold the equivalent program against its budget of time and memory, if anything is to be measured."""
        budget, made = self.policy.latency, self.draft.made
        if self.policy.latency_left_out:
            return self.draft.left_out(self.policy.latency_left_out)
        if budget is None or made is None:
            return outcome
        measurement = Measurement(
            *(self.plan, self.policy, made.saved, snapshot, reference, self.draft), program.exported.recompiles
        )
        with self.surroundings.alone(), self.draft.at(Stage.LATENCY):  # to wait for others is no part of the stage
            try:
                performance = measurement.measure(budget)
            except Exception as error:  # noqa: BLE001 it ran when it was compared: what fails is the measurement
                return self.draft.not_measured(error)
        return self.draft.measured(performance)

    def _make_sure(
        self,
        judge: Judge,
        failures: list[Failure],
        agreeing: list[Trial],
        unjudged: list[tuple[Trial, str]],
    ) -> None:
        """Measure the failure that is shown in full; if rounding explains it after all, the next one, until one stands.

        The other failures may rest on a first look: the verdict does not need them.
        """
        while failures:
            first = simplest(failures)
            found = judge.measured(first)
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

    def _is_declared(self, argument: str) -> bool:
        """Whether the user said that this argument varies."""
        return any(argument == name or argument.startswith((name + "[", name + ".")) for name in self.plan.inputs or ())

    def _not_equivalent(self, judge: Judge, failures: list[Failure], agreeing: list[Trial]) -> Outcome:
        """Make sure that eager is not to blame, find the cause, and say it on the simplest input that fails."""
        program, snapshot, reference = judge.program, judge.snapshot, judge.reference
        first = simplest(failures)
        raises = first.trial.record.error is not None
        differs = None if raises else agrees_with_itself(self.plan, snapshot, reference, first.trial)
        if differs is not None:
            return self.draft.unstable(f"the input {first.trial.label}: {differs.path} ({differs.reason})")
        others = [failure for failure in failures if failure is not first]
        with self.draft.at(Stage.COMPARE):
            first = shrunk(first, self.plan, snapshot, reference, program, judge.compare_again)
        failures = [first, *others]
        with self.draft.at(Stage.COMPARE):
            baked = self._baked(judge, failures, agreeing)
        if baked is not None and baked.failing > 0:  # shown is the input that proves it
            proof = failures[baked.failing]
            found: Finding | Unjudged | None = None
            # What is unstable on this input takes nothing away from the failure that was measured.
            with self.draft.at(Stage.COMPARE), contextlib.suppress(Unstable):
                found = judge.measured(proof)
            if isinstance(found, Finding):
                failures.pop(baked.failing)
                failures.insert(0, replace(proof, finding=found))
        remember(failures[0], self.plan, self.surroundings.kept)
        findings = [failure.finding for failure in failures]
        suspicions = to_blame(program.exported.suspicions, reference.trials[0], [f.trial for f in failures])
        with self.draft.at(Stage.COMPARE):
            clues = [] if baked is not None and baked.proven else self._clues(judge, failures)
        cause = attribute(findings, len(self.draft.inputs), suspicions, baked, clues)
        verdict = Verdict.FAILED if findings[0].raised else Verdict.MISMATCH
        with self.draft.at(Stage.COMPARE):
            divergence = self._divergence(judge, failures[0])
        return self.draft.conclude(verdict, cause, failures[0], divergence)

    def _divergence(self, judge: Judge, failure: Failure) -> Divergence | None:
        """The first operator at which the two part; a search that fails takes nothing away from the verdict."""
        case = Case(
            *(self.plan, judge.snapshot, judge.reference, judge.program, self.backend.structure),
            *(failure.trial, failure.record, failure.finding.leaves),
        )
        try:
            return localize(case, self.backend)
        except Exception as error:  # noqa: BLE001 it runs the model and the program under instruments
            self.draft.facts["details"]["localization"] = f"{type(error).__name__}: {error}"
            return None

    def _clues(self, judge: Judge, failures: list[Failure]) -> list[Clue]:
        """What tested hypotheses say of the input that is shown."""
        first, others = failures[0], [(failure.trial, failure.record) for failure in failures[1:]]
        case = Case(
            *(self.plan, judge.snapshot, judge.reference, judge.program, self.backend.structure),
            *(first.trial, first.record, first.finding.leaves, others),
        )
        clues = examine(case)
        if case.errors:
            self.draft.facts["details"]["explanation"] = list(case.errors)
        return clues

    def _baked(self, judge: Judge, failures: list[Failure], agreeing: list[Trial]) -> Baked | None:
        """The decision that the export keeps from the example; none is to blame where the example itself fails."""
        if self.plan.branches == "off" or any(f.finding.is_example and f.finding.calls == 1 for f in failures):
            return None
        failing = [Failing(failure.trial, failure.record) for failure in failures]
        suspicions = judge.program.exported.suspicions
        return find_baked(self.plan, judge.snapshot, judge.reference, failing, agreeing, suspicions, judge.comparison)
