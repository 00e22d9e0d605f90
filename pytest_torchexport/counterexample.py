"""The failing input that is shown: the simplest one, made simpler as long as it fails in the same way."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pytest_torchexport.branches.observation import Endless, Observing
from pytest_torchexport.branches.sites import Kind
from pytest_torchexport.compare.operators import tensors_in, traits_of
from pytest_torchexport.diagnose.cause import Finding, kind_of
from pytest_torchexport.draft import Failure
from pytest_torchexport.eager import Unstable, agrees_with_itself, eager_run
from pytest_torchexport.errors import ConventionError, NothingCompiled, UsageError
from pytest_torchexport.inputs.shrink import shrink
from pytest_torchexport.outcome import Cause
from pytest_torchexport.reference import accepts, space_of
from pytest_torchexport.subject import containers, source
from pytest_torchexport.trials import Trial

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_torchexport.branches.observation import Taken
    from pytest_torchexport.branches.sites import Site
    from pytest_torchexport.memory import Memory
    from pytest_torchexport.plan import Plan
    from pytest_torchexport.program import Program
    from pytest_torchexport.subject.call import Call
    from pytest_torchexport.subject.run import Record
    from pytest_torchexport.subject.state import Snapshot
    from pytest_torchexport.trials import Reference

EVALUATIONS = 100
"""So often a small model and its program are run while an input is made simple."""
_FEWEST = 8
_SECONDS = 2.0
"""About so long it may take for a large model, by what its operators cost: a clock would change the report."""
_PER_OPERATOR, _PER_FLOP, _PER_READ, _PER_WRITTEN = 1e-5, 3e-11, 5e-10, 1e-9
_RUNS = 4
"""What one evaluation costs, in runs of eager: one that is observed, and one of the program."""
_LONGER, _FUNCTIONS = 10, 1000
"""How much more than the failing input a simpler one may run, in torch's functions: its loops may not end."""
_CLEAR = 1000.0
"""Beyond so many tolerances a first look tells whether a difference is one of rounding; of smaller ones, those count
that are as large as the one that was found. What is left in the end is measured in full."""
_NAMED = ("example", "extra")
"""Kinds of inputs that the user knows: they are shown as they are."""
_ORDER = (*_NAMED, "remembered", "branch", "special", "random")


class Compare(Protocol):
    """Compares a program's record with the trial's; None if they agree, or if nobody can tell."""

    def __call__(self, trial: Trial, record: Record, *, thorough: bool) -> Finding | None:
        """Where not `thorough`, eager's own rounding is not measured, and looked at only where `is_clear`."""


def is_clear(finding: Finding) -> bool:
    """Whether all that differs are numbers, and some are so far off that one run with noise tells what it is."""
    return all(math.isfinite(leaf.excess) for leaf in finding.leaves) and _excess(finding) > _CLEAR


def _excess(finding: Finding) -> float:
    return max((leaf.excess for leaf in finding.leaves), default=0.0)


def simplest(failures: Sequence[Failure]) -> Failure:
    """The failure to show: the example, an extra input, else few calls, then few elements."""

    def effort(failure: Failure) -> tuple[Any, ...]:
        trial = failure.trial
        order = _ORDER.index(trial.kind)
        named = min(order, _ORDER.index("branch"))
        elements = sum(t.numel() for call in trial.calls for _, t in containers.tensors([call.args, dict(call.kwargs)]))
        return named, trial.record.error is not None, len(trial.calls), order == len(_ORDER) - 1, elements

    return min(failures, key=effort)


def shrunk(
    failure: Failure, plan: Plan, snapshot: Snapshot, reference: Reference, program: Program, compare: Compare
) -> Failure:
    """The failure on a simpler input, on which the program fails in the same way; the failure itself without one.

    The same way: another exception, another kind of difference, or a difference that is there although eager took the
    example's branches (or took them, where it did not before) is another fault. The comparison is made anew, in full.

    Args:
        failure: on an input that was generated, or is the user's own: then it is returned as it is.
        plan: the test's.
        snapshot: the starting state.
        reference: eager's side.
        program: the exported one, open.
        compare: judges a run.
    """
    if failure.trial.kind in (*_NAMED, "remembered") or failure.trial.record.error is not None:
        return failure
    shrinking = _Shrinking(failure, plan, snapshot, reference, program, compare)
    try:
        calls, _ = shrink(failure.trial.calls, space_of(plan), shrinking.fails, shrinking.budget())
        return failure if calls is failure.trial.calls else shrinking.told(calls) or failure
    except Exception:  # noqa: BLE001 what goes wrong here must not hide what was found
        return failure


def remember(failure: Failure, plan: Plan, memory: Memory | None) -> None:
    """Keep a failing input for the next run, unless it is the user's own, which is run anyway."""
    trial = failure.trial
    if memory is None or trial.kind in _NAMED:
        return
    calls = trial.calls
    if trial.kind != "remembered":  # that one has the label which it was found with
        relabelled = {id(call): replace(call, label=trial.label) for call in calls}
        calls = tuple(relabelled[id(call)] for call in calls)
    memory.save(plan, calls)


@dataclass
class _Shrinking:
    """What the search for a simpler input asks."""

    failure: Failure
    plan: Plan
    snapshot: Snapshot
    reference: Reference
    program: Program
    compare: Compare

    def __post_init__(self) -> None:
        trial = self.failure.trial
        self.way = _way(self.failure.finding, self.failure.record)
        example = self.reference.trials[0].taken
        self.usual: Taken = example or {}
        self.deviates = _deviating(trial.taken, self.usual) if trial.taken is not None and example is not None else None
        # A program that is compiled when it is called would be compiled anew for each size and number.
        self.limit = math.inf
        self.guards = _guards(trial.calls) if self.program.exported.shares_module else None

    def budget(self) -> int:
        """How many inputs may be tried, by what the model's operators cost."""
        calls, work = self.failure.trial.calls, _Work()
        eager_run(self.plan, self.snapshot, self.reference, calls, mode=work)
        if self.deviates is not None:
            watch = self._observing()
            eager_run(self.plan, self.snapshot, self.reference, calls, mode=watch)
            self.limit = _LONGER * watch.functions + _FUNCTIONS
        return max(_FEWEST, min(EVALUATIONS, int(_SECONDS / (_RUNS * work.seconds)))) if work.seconds else EVALUATIONS

    def fails(self, calls: tuple[Call, ...]) -> bool:
        """Whether eager accepts the calls, and the program fails on them in the same way."""
        try:
            if not accepts(self.plan, calls) or (self.guards is not None and _guards(calls) != self.guards):
                return False
            trial = self._eager(calls, observed=self.deviates is not None)
            return trial is not None and self._fails(trial, thorough=False) is not None
        except (UsageError, Unstable, Endless):  # `assume` raises on it, or eager does not repeat itself or end
            return False

    def told(self, calls: tuple[Call, ...]) -> Failure | None:
        """The failure on the calls, everything anew and without being observed."""
        observed = self._eager(calls, observed=True) if self.deviates is not None else None
        trial = self._eager(calls, observed=False)
        if trial is None:
            return None
        trial.taken = observed.taken if observed is not None else None
        failure = self._fails(trial, thorough=True)
        if failure is None or agrees_with_itself(self.plan, self.snapshot, self.reference, trial) is not None:
            return None
        # Smaller sizes say nothing about the fault if it was seen on the example's.
        same_shapes = failure.finding.same_shapes or self.failure.finding.same_shapes
        return replace(failure, finding=replace(failure.finding, same_shapes=same_shapes))

    def _eager(self, calls: tuple[Call, ...], *, observed: bool) -> Trial | None:
        found = self.failure.trial
        watch = self._observing() if observed else None
        record = eager_run(self.plan, self.snapshot, self.reference, calls, mode=watch)
        if record.error is not None or (watch is not None and not self._same_decisions(watch.taken)):
            return None
        taken = watch.taken if watch is not None else None
        return Trial(calls, record, found.kind, f"shrunk from {found.label}", taken=taken, goals=found.goals)

    def _observing(self) -> Observing:
        return Observing(source.user_code(self.plan.user_code), limit=self.limit)

    def _same_decisions(self, taken: Taken) -> bool:
        """Whether eager leaves the example's way at some of the places where it did before, and at no other."""
        assert self.deviates is not None
        now = _deviating(taken, self.usual)
        if not now <= self.deviates or bool(now) != bool(self.deviates):
            return False
        return all(
            outcome in taken.get(site, ())
            if site.kind in (Kind.CONDITION, Kind.EXCEPTION)
            else taken.get(site) not in (None, self.usual.get(site))
            for site, outcome in self.failure.trial.goals[:1]  # what the label says
        )

    def _fails(self, trial: Trial, *, thorough: bool) -> Failure | None:
        record = self.program.run(trial)
        if isinstance(record.error, (ConventionError, NothingCompiled)):
            return None
        finding = self.compare(trial, record, thorough=thorough)
        if finding is None or _way(finding, record) != self.way:
            return None
        if not thorough and _excess(finding) < min(_CLEAR, _excess(self.failure.finding)):
            return None
        return Failure(trial, finding, record)


def _way(finding: Finding, record: Record) -> tuple[Cause, str]:
    """How a program fails: the kind of difference, or its exception without the numbers in it."""
    if record.error is None:
        return kind_of(finding), ""
    lines = str(record.error).strip().splitlines() or [""]
    return Cause.EXCEPTION, f"{type(record.error).__name__}: {re.sub(r'-?[0-9.]+', '', lines[-1])}"


def _deviating(taken: Taken, usual: Mapping[Site, Any]) -> set[Site]:
    """Where eager leaves the example's way; only if it does nowhere, where it takes other numbers out of tensors."""
    sites = {site for site in taken.keys() | usual.keys() if taken.get(site) != usual.get(site)}
    return {site for site in sites if site.kind is not Kind.NUMBER} or sites


def _guards(calls: Sequence[Call]) -> list[Any]:
    """All of the calls but the values of tensors."""
    return [
        (path, tuple(leaf.shape) if hasattr(leaf, "shape") else leaf)
        for call in calls
        for path, leaf in containers.leaves([call.args, dict(call.kwargs)])
    ]


class _Work(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Estimates what a run costs, the same on every machine."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        self.seconds += _PER_OPERATOR
        if not traits_of(func).view:
            self.seconds += _PER_READ * sum(tensor.numel() for tensor in tensors_in([*args, *(kwargs or {}).values()]))
            self.seconds += _PER_WRITTEN * sum(tensor.numel() for _, tensor in containers.tensors(value))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.seconds += _PER_FLOP * count(*args, **(kwargs or {}), out_val=value)
        return value
