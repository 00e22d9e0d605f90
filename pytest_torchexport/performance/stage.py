"""The story of the stage: choose a mode, start cold, time both sides in turns, judge.

The program is equivalent by now, and closed. It is loaded anew, its first calls are timed, and then, warm, it is timed
in random turns with eager: the same inputs, the same mode of autograd, one process.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_torchexport import environment
from pytest_torchexport.errors import UsageError
from pytest_torchexport.latency.decide import decided_by, summarise
from pytest_torchexport.latency.measure import CAP_S, time_pair
from pytest_torchexport.measured import Performance
from pytest_torchexport.outcome import Stage
from pytest_torchexport.performance import cold, sides
from pytest_torchexport.performance.judging import Bench, judge
from pytest_torchexport.subject.run import fixed_rng

if TYPE_CHECKING:
    from pytest_torchexport.backends.base import Exported
    from pytest_torchexport.draft import Draft
    from pytest_torchexport.latency.budget import Budget
    from pytest_torchexport.latency.measure import Timing
    from pytest_torchexport.plan import Plan, Policy
    from pytest_torchexport.program import Saved
    from pytest_torchexport.subject.state import Snapshot
    from pytest_torchexport.trials import Reference, Trial

CAP_P99_S = 20.0
"""Seconds for one input whose 99th percentile is limited: that takes some eight hundred calls, one by one."""


def check_inputs(budget: Budget | None, reference: Reference) -> None:
    """Raise a `UsageError` if the budget names an input that the check does not have."""
    known = [_name(trial) for trial in reference.trials if trial.kind in ("example", "extra")]
    for label in budget.inputs if budget is not None else ():
        if label not in known:
            msg = f"the latency budget names the input {label!r}; the check has {', '.join(known)}"
            raise UsageError(msg)


@dataclass
class Measurement:
    """What is measured, and how it is judged.

    Attributes:
        plan: the check's.
        policy: holds the budget.
        saved: what the program is loaded from.
        snapshot: the model's starting state.
        reference: eager's side of the check.
        draft: has the seconds of the export and the artifact's size.
        recompiles: compilations of the program that was compared, beyond the first; None for a backend without.
    """

    plan: Plan
    policy: Policy
    saved: Saved
    snapshot: Snapshot
    reference: Reference
    draft: Draft
    recompiles: int | None = None

    def measure(self, budget: Budget) -> Performance:
        """Measure and judge.

        Raises:
            Exception: a side raises in every mode of autograd, though it did not when it was compared.
        """
        first, *others = sides.modes(self.reference)
        try:
            return self._in(first, budget)
        except Exception:
            # Not all code runs in inference mode. What is wrong otherwise raises again.
            if not others:
                raise
            return self._in(others[0], budget)

    def _in(self, mode: str, budget: Budget) -> Performance:
        both = sides.Sides(self.plan, self.snapshot, self.reference, copies=budget.copies)
        trials = {_name(trial): trial for trial in self.reference.trials if trial.record.error is None}
        example = trials["example"]
        starts = cold.Starts(self.saved, both, example, self.draft.durations.get(Stage.EXPORT.value, 0.0))
        timings: dict[str, Timing] = {}
        machine = environment.machine()  # before the timing adds to the load
        try:
            with sides.MODES[mode](), fixed_rng(self.plan.seed, self.plan.device):
                eager = cold.eager_peak(both, example)
                with starts.program() as exported:
                    for label in budget.inputs:
                        if label in trials:
                            timings[label] = self._timed(both, label, trials[label], exported, budget)
                variants = starts.variants()
                judged = judge(budget, Bench(timings, starts, self.recompiles, self._bytes, self.policy.crowd))
        finally:
            self.snapshot.restore()
        return Performance(
            mode=mode,
            paired=tuple(summarise(timing) for timing in timings.values()),
            cold_starts=(replace(starts.own[0], loads=len(starts.own)), *variants),
            memory=replace(starts.memory[0], host_eager=eager.host_eager, device_eager=eager.device_eager),
            recompiles=self.recompiles,
            judged=judged,
            enforced=self.policy.enforce,
            copies="" if self.plan.device.type == "cpu" else "included" if budget.copies else "excluded",
            machine=machine,
        )

    def _timed(self, both: sides.Sides, label: str, trial: Trial, exported: Exported, budget: Budget) -> Timing:
        eager, program = both.eager(trial), both.exported(trial, exported)
        timed = functools.partial(
            time_pair,
            *(eager, program),
            label=label,
            device=self.plan.device,
            seed=self.plan.seed,
            decided=decided_by(budget.limits, precisely=self.policy.precise),
            cap_s=CAP_S if budget.p99 is None else CAP_P99_S,
        )
        try:
            return timed(single=budget.p99 is not None)
        except Exception:
            # A state may have room for a call or two: a cache of fixed size. Then each call starts anew.
            if eager.before is None or budget.p99 is not None:
                raise
            return timed(single=True)

    @property
    def _bytes(self) -> int | None:
        size = self.draft.facts.get("artifact_bytes")
        return size if isinstance(size, int) else None


def _name(trial: Trial) -> str:
    """What a budget calls an input."""
    return "example" if trial.kind == "example" else trial.label
