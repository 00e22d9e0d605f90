"""The outcome of a check in the making: what is known so far, and the words for each way that it can end."""

from __future__ import annotations

import dataclasses
import functools
import time
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytest_torchexport.backends.base import Backend, FlatOutput
from pytest_torchexport.diagnose.cause import Attribution, Finding
from pytest_torchexport.explain import figures, message, speed
from pytest_torchexport.explain.refusal import explain, say
from pytest_torchexport.explain.remedy import TOO_CHAOTIC, Failed, what_to_do
from pytest_torchexport.measured import SPEED, Standing
from pytest_torchexport.memory import Memory
from pytest_torchexport.outcome import Cause, Evidence, Input, Leaf, Location, NotChecked, Outcome, Stage, Verdict
from pytest_torchexport.reference import ReferenceStore
from pytest_torchexport.reproduce import keep, ready_test, script
from pytest_torchexport.reproduce.again import again as to_check_again
from pytest_torchexport.subject.call import name_of
from pytest_torchexport.subject.run import Record
from pytest_torchexport.subject.state import parameter_marks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_torchexport.backends.base import Exported
    from pytest_torchexport.errors import ConventionError
    from pytest_torchexport.measured import Performance
    from pytest_torchexport.outcome import Divergence
    from pytest_torchexport.plan import Plan, Policy
    from pytest_torchexport.program import Saved
    from pytest_torchexport.trials import Trial

_LEAVES_KEPT = 20
"""Disagreeing leaves that an outcome holds; a model with thousands of outputs should not fill a report."""


@dataclass
class Surroundings:
    """What the caller lends the engine.

    Attributes:
        references: eager's results, shared by the checks of one test.
        directory: scratch folder for the artifact; None makes a temporary one that is gone afterwards.
        test: id of the test, for the report.
        origin: id of the test function; with the seed it decides all random numbers.
        on_stage: told each stage before it starts, so that a crash has a stage.
        keep_in: folder for what is kept of this check.
        keep: when it is kept.
        alone: entered around what is timed: no other process of the caller times anything meanwhile.
        memory: folder in which inputs that failed are remembered from run to run; None forgets them.
    """

    references: ReferenceStore = field(default_factory=ReferenceStore)
    directory: Path | None = None
    test: str | None = None
    origin: str = ""
    on_stage: Callable[[Stage], None] = lambda _: None
    keep_in: Path | None = None
    keep: Literal["on", "off", "retain-on-failure"] = "off"
    alone: Callable[[], AbstractContextManager[Any]] = nullcontext
    memory: Path | None = None

    @property
    def kept(self) -> Memory | None:
        """The test's part of that folder."""
        return Memory(self.memory, self.origin) if self.memory is not None else None


@dataclass
class Failure:
    """An input on which the exported program did not do what eager did."""

    trial: Trial
    finding: Finding
    record: Record


@dataclass(frozen=True)
class Made:
    """The exported program, what it was loaded from, whether autograd is on, and eager's starting state."""

    exported: Exported
    saved: Saved
    grad: bool
    start: Mapping[str, Any]


@dataclass
class Draft:
    """What is known of a check so far."""

    plan: Plan
    policy: Policy
    surroundings: Surroundings
    backend: Backend
    stage: Stage = Stage.REFERENCE
    durations: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    inputs: list[Input] = field(default_factory=list)
    not_checked: dict[NotChecked, None] = field(default_factory=dict)
    compared: int = 0
    has_values: bool = False
    worst: Leaf | None = None
    shown: Failure | None = None
    made: Made | None = None

    @contextmanager
    def at(self, stage: Stage) -> Iterator[None]:
        """Record the stage before it starts, and the seconds that it takes."""
        if stage is not self.stage or stage is Stage.REFERENCE:
            self.surroundings.on_stage(stage)
        self.stage = stage
        start = time.perf_counter()
        try:
            yield
        finally:
            self.durations[stage.value] = self.durations.get(stage.value, 0.0) + time.perf_counter() - start

    def note(self, *entries: NotChecked) -> None:
        """Enter something into the not-checked ledger, once."""
        self.not_checked |= dict.fromkeys(entries)

    def count(self, leaves: list[Leaf]) -> None:
        """Keep what the outcome says of all comparisons: their number, and the worst of them."""
        self.compared += len(leaves)
        self.has_values |= any(leaf.dtype for leaf in leaves)
        # Of those that differ at a first look, some are acquitted; what stands is known in the end.
        agreeing = [leaf for leaf in leaves if leaf.agrees]
        self.worst = max([*agreeing, *filter(None, [self.worst])], key=lambda leaf: leaf.excess, default=None)

    def skipped(self, reason: str) -> Outcome:
        """The outcome where the backend or the device is not here."""
        self.note(NotChecked(f"{self.backend.id} on {self.policy.device}", reason))
        return self.outcome(Verdict.SKIPPED, reason)

    def equivalent(self) -> Outcome:
        """The outcome where nothing differs; never a pass if nothing was compared."""
        if not self.inputs or not self.has_values:
            reasons = "; ".join(entry.why for entry in self.not_checked) or "eager returns neither tensors nor numbers"
            return self.outcome(Verdict.INVALID, f"nothing could be compared: {reasons}")
        counts = f"{_number(self.compared, 'comparison')} on {_number(len(self.inputs), 'input')}"
        head = message.headline(self._model, self.backend.id, self.policy.device, Verdict.EQUIVALENT, counts)
        return self.outcome(Verdict.EQUIVALENT, head)

    def measured(self, performance: Performance) -> Outcome:
        """The outcome of an equivalent program whose speed was measured: within its budget, over it, or undecided."""
        self.facts["performance"] = performance
        for one in performance.judged:
            if one.standing is Standing.NOT_CHECKED:
                self.note(NotChecked(f"{one.name} budget {one.budget}", one.why))
        for standing, verdict in ((Standing.OVER, Verdict.OVER_BUDGET), (Standing.INCONCLUSIVE, Verdict.INCONCLUSIVE)):
            found = [one for one in performance.judged if one.standing is standing]
            if found and performance.enforced:
                head = message.headline(
                    self._model, self.backend.id, self.policy.device, verdict, speed.headline(found[0])
                )
                return self.outcome(verdict, "\n".join([head, *speed.told(performance)]))
        return self.equivalent()

    def left_out(self, why: str) -> Outcome:
        """The outcome of an equivalent program whose speed nobody wants to know in this run."""
        self.note(NotChecked(SPEED, why))
        return self.equivalent()

    def not_measured(self, error: Exception) -> Outcome:
        """The outcome of an equivalent program that could not be timed: whether it keeps its budget is not known."""
        why = f"to time it raises {message.first_sentence(say(error))}"
        self.note(NotChecked(SPEED, why))
        if self.policy.latency is None or not self.policy.latency.limits or not self.policy.enforce:
            return self.equivalent()
        rest = f"the budget {self.policy.latency} could not be checked, {why}"
        head = message.headline(self._model, self.backend.id, self.policy.device, Verdict.INCONCLUSIVE, rest)
        return self.outcome(Verdict.INCONCLUSIVE, head)

    def unstable(self, where: str) -> Outcome:
        """The outcome where eager does not repeat its own result."""
        why = (
            f"eager {self._model} is not deterministic: two runs from the same state and random seed differ on {where}"
        )
        return self.outcome(Verdict.INVALID, why)

    def too_chaotic(self, label: str, why: str) -> Outcome:
        """The outcome where eager's own rounding noise leaves nothing to be judged."""
        what, _, more = why.partition(": ")
        rest = f"on the input {label}, {what}"
        head = message.headline(self._model, self.backend.id, self.policy.device, Verdict.INVALID, rest)
        return self.outcome(Verdict.INVALID, message.refused(head, None, more, way_out=TOO_CHAOTIC))

    def writes_parameters(self, marks: dict[str, Any]) -> Outcome | None:
        """The outcome where the exported program wrote the model's weights, which eager leaves alone."""
        changed = [name for name, mark in parameter_marks(self.plan.model).items() if marks[name] != mark]
        if not changed:
            return None
        rest = f"{Cause.LOST_STATE.value}, exporting or running it writes the model's parameter {changed[0]!r}"
        head = message.headline(self._model, self.backend.id, self.policy.device, Verdict.MISMATCH, rest)
        text = f"{head}\n  eager leaves it alone. The model of this test now holds the changed weights."
        return self.outcome(Verdict.MISMATCH, text, cause=Cause.LOST_STATE)

    def conclude(
        self,
        verdict: Verdict,
        cause: Attribution,
        failure: Failure,
        divergence: Divergence | None = None,
        argument: str = "",
    ) -> Outcome:
        """The outcome where an input fails: its cause, what differs on it, and the first layer that does.

        Args:
            verdict: `mismatch` or `failed`.
            cause: why.
            failure: the input that is shown.
            divergence: the first layer at which the two part, if it was found.
            argument: an argument that the export holds as a constant, if that is why.
        """
        finding, trial = failure.finding, failure.trial
        leaves = sorted(finding.leaves, key=lambda leaf: -leaf.excess)
        if leaves:
            self.worst = leaves[0]  # the only input that is measured in full
        error = failure.record.error if finding.raised else None
        raised = say(error) if error is not None else finding.raised
        rest = cause.cause.value
        if cause.location is not None:
            rest += f" at {Path(cause.location.file).name}:{cause.location.line}"
        if finding.raised:
            rest += f", it raises {message.first_sentence(raised or finding.raised, limit=120)}"
        elif leaves:
            rest += f", {figures.how_it_differs(leaves[0])}"
        head = message.headline(self._model, self.backend.id, self.policy.device, verdict, rest)
        arguments = trial.describe()
        again = None if trial.kind in ("example", "extra") else to_check_again(trial.calls, self.plan, self._input_file)
        name, _, options = self.backend.id.partition(":")
        failed = Failed(
            cause,
            name,
            options,
            leaves,
            divergence,
            raised,
            dynamic=self.plan.dynamic_shapes is not None,
            argument=argument,
        )
        text = message.mismatch(
            head,
            cause,
            label=trial.label,
            arguments=arguments,
            leaves=leaves,
            raised=raised,
            again=again,
            divergence=divergence,
            what_to_do=what_to_do(failed),
        )
        self.shown = failure
        return self.outcome(
            verdict,
            text,
            cause=cause.cause,
            location=cause.location,
            evidence=cause.evidence,
            leaves=tuple(leaves[:_LEAVES_KEPT]),
            failing_input=arguments,
            paste=again.text if again is not None and again.complete else None,
            divergence=divergence,
        )

    def fixed_argument(self, error: ConventionError, trial: Trial) -> Outcome:
        """A declared argument that the exported program holds as a constant: the user says that it varies."""
        asked = (
            "extra_inputs names a call with another value"
            if trial.kind == "extra"
            else "inputs= declares that it varies"
        )
        text = f"argument {error.argument!r}: {asked}, and {error.reason}"
        cause = Attribution(Cause.BAKED_VALUE, None, (Evidence(text),))
        finding = Finding((), None, is_example=False, same_shapes=True, calls=len(trial.calls))
        self.inputs.append(Input(trial.kind, trial.label, len(trial.calls), agrees=False))
        return self.conclude(Verdict.MISMATCH, cause, Failure(trial, finding, Record()), argument=error.argument)

    def refused(self, error: Exception) -> Outcome:
        """The outcome where the exporter, or writing or reading back its artifact, raised."""
        refusal = explain(error, backend=self.backend.name, model=self.plan.model)
        verdict = Verdict.FAILED if self.stage is Stage.LOAD else Verdict.REFUSED
        first = message.first_sentence(refusal.reason) or type(error).__name__
        head = message.headline(self._model, self.backend.id, self.policy.device, verdict, first.removesuffix("."))
        detail = refusal.reason.strip().removeprefix(first).strip()
        text = message.refused(head, refusal.location, detail, way_out=refusal.way_out, said=refusal.said)
        cause = Cause.EXCEPTION if verdict is Verdict.FAILED else None
        return self.outcome(verdict, text, cause=cause, location=refusal.location)

    def kept(self, outcome: Outcome) -> Outcome:
        """Keep what a person will want to look at, if the policy says so."""
        around = self.surroundings
        if around.keep_in is None or not self._keeps(failed=outcome.failed):
            # A temporary folder is gone when the outcome is read.
            return dataclasses.replace(outcome, artifact=None) if around.directory is None else outcome
        tensors: dict[str, Any] = {}
        writers: list[Callable[[keep.Kept], dict[str, Any]]] = []
        shown = self._script(outcome)
        if self.shown is not None:
            trial, record = self.shown.trial, self.shown.record
            tensors["input"] = [self.plan.names(call) for call in trial.calls]
            tensors["eager"] = script.eager_leaves(shown) if shown is not None else trial.record.outputs
            tensors["exported"] = [_values(output) for output in record.outputs]
        if shown is not None:
            writers.append(functools.partial(script.write, shown))
        if outcome.failed and outcome.verdict is not Verdict.INVALID:
            trial_shown = self.shown.trial if self.shown is not None else None
            ready = ready_test.Ready(outcome.summary, self.plan, self.policy, self.backend, trial_shown)
            writers.append(functools.partial(ready_test.write, ready))
        artifact = self.facts.get("artifact")
        place = Path(artifact) if artifact else None
        return keep.keep(outcome, around.keep_in, place, tensors, writers, move=around.directory is None)

    def _script(self, outcome: Outcome) -> script.Shown | None:
        """What a script shows of the failure; None if there is none, or no program."""
        if self.shown is None or self.made is None or not outcome.failed:
            return None
        return script.Shown(
            outcome.summary,
            self.plan,
            self.made.exported,
            self.backend.structure.value,
            self.shown.trial,
            self.shown.finding,
            self.made.grad,
            self.made.start,
        )

    def _keeps(self, *, failed: bool) -> bool:
        keep = self.surroundings.keep
        return keep == "on" or (keep == "retain-on-failure" and failed)

    @property
    def _input_file(self) -> str:
        """Where the failing input will be kept; empty if it will not."""
        folder = self.surroundings.keep_in
        return str(folder / "input.npz") if folder is not None and self._keeps(failed=True) else ""

    @property
    def _model(self) -> str:
        return name_of(self.plan.model)

    def outcome(
        self,
        verdict: Verdict,
        text: str,
        *,
        cause: Cause | None = None,
        location: Location | None = None,
        evidence: tuple[Evidence, ...] = (),
        leaves: tuple[Leaf, ...] = (),
        failing_input: str | None = None,
        paste: str | None = None,
        divergence: Divergence | None = None,
    ) -> Outcome:
        """The outcome with all that is known so far."""
        return Outcome(
            verdict=verdict,
            stage=self.stage,
            backend=self.backend.id,
            device=self.policy.device,
            message=text,
            model=self._model,
            dtype=self.policy.dtype,
            test=self.surroundings.test,
            seed=self.policy.seed,
            cause=cause,
            location=location,
            evidence=evidence,
            worst=self.worst,
            leaves=leaves,
            compared=self.compared,
            inputs=tuple(self.inputs),
            failing_input=failing_input,
            paste=paste,
            divergence=divergence,
            not_checked=tuple(self.not_checked),
            tolerance=str(self.plan.rules),
            durations=dict(self.durations),
            **self.facts,
        )


def size_of(path: Path) -> int:
    """Bytes of the artifact, with the files that lie beside it."""
    return sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())


def _values(output: Any) -> Any:
    return output.values if isinstance(output, FlatOutput) else output


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
