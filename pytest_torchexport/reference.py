"""Eager's side of a check: the inputs that eager accepts and what it did on each, run once for all backends."""

from __future__ import annotations

import functools
import sys
import types
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.branches.search import Search
from pytest_torchexport.eager import eager_run, first_run, writes_parameters
from pytest_torchexport.errors import UsageError
from pytest_torchexport.inputs import draw
from pytest_torchexport.inputs.fits import fits
from pytest_torchexport.inputs.space import Space
from pytest_torchexport.subject import source
from pytest_torchexport.subject.state import Snapshot, buffer_names, parameter_marks
from pytest_torchexport.trials import Reference, Trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pytest_torchexport.branches.followed import Runner
    from pytest_torchexport.branches.observation import Taken
    from pytest_torchexport.memory import Memory
    from pytest_torchexport.plan import Plan
    from pytest_torchexport.subject.call import Call
    from pytest_torchexport.subject.fingerprint import Fingerprint
    from pytest_torchexport.subject.run import Record

_ATTEMPTS_PER_INPUT = 5
"""How many generated inputs eager may reject for each that is wanted, before generation gives up."""


_PYTHON_TRACERS = (types.NoneType, types.FunctionType, types.MethodType)


class ReferenceStore:
    """References of the checks of one test, so that its backends share them. Holds eager's outputs: clear it."""

    def __init__(self) -> None:
        self._kept: dict[Fingerprint, Reference] = {}

    def get(self, plan: Plan, snapshot: Snapshot, memory: Memory | None = None) -> Reference:
        """The plan's reference: one that was made for the same model and inputs before, or a new one.

        Only a new one reads what is remembered.
        """
        key = plan.key()
        if key is None:
            return make_reference(plan, snapshot, memory)
        if key not in self._kept:
            self._kept[key] = make_reference(plan, snapshot, memory)
        return self._kept[key]

    def clear(self) -> None:
        """Forget all references."""
        self._kept.clear()


def make_reference(plan: Plan, snapshot: Snapshot, memory: Memory | None = None) -> Reference:
    """Run eager on the example (twice), the extra inputs, remembered ones and as many generated ones as the plan wants.

    The model is back in the snapshot's state afterwards.
    """
    reference = Reference(start=snapshot.values, buffers=buffer_names(plan.model))
    marks = parameter_marks(plan.model)
    example = (plan.example,) * plan.calls
    search = _search(plan, snapshot, reference)
    observing = search.observing() if search is not None else None
    first = first_run(plan, snapshot, reference, example, observing)
    if reference.invalid is not None:
        return reference
    taken = None
    if search is not None and observing is not None:
        search.start(example, first, observing)
        taken = observing.taken
    reference.trials.append(Trial(example, first, "example", "the example", taken=taken))
    _add_extra(plan, snapshot, reference, search)
    if memory is not None:
        _add_remembered(plan, snapshot, reference, search, memory)
    candidates = draw.generate(
        plan.model, plan.example, plan.inputs, plan.dynamic_shapes, seed=plan.seed, calls=plan.calls
    )
    _add_generated(plan, snapshot, reference, candidates, search)
    _add_sequences(plan, snapshot, reference, search)
    if search is not None:
        _add_found(plan, snapshot, reference, search)
    if reference.invalid is None:  # all generated inputs may have been dropped
        reference.invalid = writes_parameters(plan, marks)
    return reference


def runner(plan: Plan, snapshot: Snapshot, reference: Reference) -> Runner:
    """Runs eager for the branch search; parts that are compiled run as they are written."""
    run = functools.partial(eager_run, plan, snapshot, reference)
    modules = plan.model.modules() if isinstance(plan.model, torch.nn.Module) else ()
    if not any(type(module).__name__ == "OptimizedModule" for module in modules):
        return run

    def uncompiled(calls: tuple[Call, ...], **options: Any) -> Record:
        with torch.compiler.set_stance("force_eager"):
            return run(calls, **options)

    return uncompiled


def _search(plan: Plan, snapshot: Snapshot, reference: Reference) -> Search | None:
    if plan.branches == "off":
        return None
    return Search(
        runner=runner(plan, snapshot, reference),
        model=plan.model,
        make_space=functools.partial(space_of, plan),
        is_users=source.user_code(plan.user_code),
        budget=plan.search_budget if plan.branches == "search" else 0,
        seed=plan.seed,
        read_state=snapshot.live,
        accepts=functools.partial(_may_be_tried, plan),
        draws=_further_draws(plan),
    )


def _further_draws(plan: Plan) -> Iterator[tuple[Call, ...]]:
    """Inputs from another seed; nothing is made before the first is asked for."""
    yield from draw.generate(
        plan.model, plan.example, plan.inputs, plan.dynamic_shapes, seed=plan.seed + 1, calls=plan.calls
    )


def space_of(plan: Plan) -> Space:
    """Everything that may be tried instead of the example."""
    return Space.of(plan.model, plan.example, plan.inputs, plan.dynamic_shapes, seed=plan.seed)


def _run_and_watch(
    plan: Plan,
    snapshot: Snapshot,
    reference: Reference,
    search: Search | None,
    calls: tuple[Call, ...],
    kind: str,
    label: str,
) -> tuple[Record, Taken | None]:
    """Run an input, under observation if the model decides anything at all."""
    if search is None or not search.has_decisions:
        return eager_run(plan, snapshot, reference, calls), None
    observation = search.watch(calls, kind, label)
    if isinstance(sys.gettrace(), _PYTHON_TRACERS) or observation.record.error is not None:
        return observation.record, observation.taken
    # A tracer written in C (coverage.py's) pauses while this one observes: it shall see what the input ran.
    return eager_run(plan, snapshot, reference, calls), observation.taken


def _add_found(plan: Plan, snapshot: Snapshot, reference: Reference, search: Search) -> None:
    """Search for what no input took; what is found is run once more, without being observed."""
    for found in search.search():
        record = eager_run(plan, snapshot, reference, found.calls)
        if record.error is None:
            trial = Trial(found.calls, record, "branch", found.label, taken=found.taken, goals=tuple(found.goals))
            reference.trials.append(trial)
    reference.coverage = search.report(plan.branches)
    reference.notes += search.notes.items()


def _add_extra(plan: Plan, snapshot: Snapshot, reference: Reference, search: Search | None) -> None:
    for index, call in enumerate(plan.extra_inputs):
        calls = (call,) * plan.calls
        label = call.label or f"extra_inputs[{index}]"
        record, taken = _run_and_watch(plan, snapshot, reference, search, calls, "extra", label)
        if record.error is not None:
            # The user named this call: the exported program has to raise on it too.
            record.error = record.error.with_traceback(None)
            why = f"eager raises {type(record.error).__name__}: {record.error}; only that the program raises too"
            reference.notes.append((label, why))
        reference.trials.append(Trial(calls, record, "extra", label, taken=taken))


def _add_remembered(
    plan: Plan, snapshot: Snapshot, reference: Reference, search: Search | None, memory: Memory
) -> None:
    """Inputs that failed in an earlier run, as far as they are still inputs of the model."""
    kept = memory.load(plan)
    space = space_of(plan) if kept.inputs else None
    unfit = kept.dropped
    for calls in kept.inputs:
        if space is None or not all(fits(space, call) for call in calls):
            unfit += 1
        elif not accepts(plan, calls):
            reference.dropped["remembered: assume"] += 1
        else:
            label = f"remembered: {calls[0].label}"
            record, taken = _run_and_watch(plan, snapshot, reference, search, calls, "remembered", label)
            if record.error is None:
                reference.trials.append(Trial(calls, record, "remembered", label, taken=taken))
            else:
                reference.dropped["remembered: eager raises"] += 1
    if unfit:
        reference.dropped["remembered: no longer an input of the model"] += unfit


def _add_sequences(plan: Plan, snapshot: Snapshot, reference: Reference, search: Search | None) -> None:
    """Call a model whose state changes three times in a row: one call does not show an update that got lost."""
    if plan.calls > 1:
        return
    ran = [trial for trial in reference.trials if trial.record.error is None]
    changing = next((trial.calls[0] for trial in ran if trial.record.state), None)
    if changing is None:
        return
    others = [trial.calls[0] for trial in ran if trial.calls[0] is not changing]
    label = "three calls in a row"
    for calls in ((changing, *others, changing)[:3], (changing, plan.example, changing), (changing,) * 3):
        if len(calls) < 3:
            continue
        record, taken = _run_and_watch(plan, snapshot, reference, search, calls, "generation", label)
        if record.error is None:
            reference.trials.append(Trial(calls, record, "special", label, taken=taken))
            return
    reference.notes.append((label, "eager changes its state, and raises when it is called again"))


def _add_generated(
    plan: Plan,
    snapshot: Snapshot,
    reference: Reference,
    candidates: Iterable[tuple[Call, ...]],
    search: Search | None,
) -> None:
    """Run eager on candidates until enough are accepted; eager decides what is in the domain."""
    if plan.n_inputs <= 0:
        return
    accepted = tried = 0
    last_error: Exception | None = None
    for calls in candidates:
        if accepted >= plan.n_inputs or tried >= _ATTEMPTS_PER_INPUT * plan.n_inputs:
            break
        tried += 1
        if not accepts(plan, calls):
            reference.dropped["assume"] += 1
            continue
        record, taken = _run_and_watch(plan, snapshot, reference, search, calls, "generation", calls[0].label)
        if record.error is not None:
            last_error = record.error
            reference.dropped["eager raises"] += 1
            continue
        reference.trials.append(Trial(calls, record, calls[0].kind, calls[0].label, taken=taken))
        accepted += 1
    if accepted == 0 and tried:
        reference.invalid = _all_dropped(reference, tried, last_error)
    elif accepted == 0:
        reference.notes.append(("generated inputs", "no argument of the example can vary"))
    elif accepted < plan.n_inputs and tried >= _ATTEMPTS_PER_INPUT * plan.n_inputs:
        why = f"eager rejects most generated inputs: {accepted} of {plan.n_inputs} found in {tried} tries"
        reference.notes.append((f"{plan.n_inputs - accepted} generated inputs", why))


def accepts(plan: Plan, calls: Iterable[Call]) -> bool:
    """Whether the model is meant for the calls, as far as `assume` tells.

    Raises:
        UsageError: `assume` raises.
    """
    return plan.assume is None or all(_assumed(plan.assume, call.clone()) for call in calls)


def _may_be_tried(plan: Plan, calls: Iterable[Call]) -> bool:
    """`accepts` for the search, which tries what nobody drew: `assume` need not be made for all of that."""
    try:
        return accepts(plan, calls)
    except UsageError:
        return False


def _assumed(assume: Callable[..., bool], mine: Call) -> bool:
    try:
        return bool(assume(*mine.args, **mine.kwargs))
    except Exception as error:
        msg = f"assume raises {type(error).__name__} on a generated input: {error}. It is called as the model is."
        raise UsageError(msg) from error


def _all_dropped(reference: Reference, tried: int, error: Exception | None) -> str:
    by_reason = ", ".join(f"{count} by {reason}" for reason, count in reference.dropped.items())
    said = f" Eager last raised {type(error).__name__}: {error}." if error else ""
    return (
        f"all {tried} generated inputs were dropped ({by_reason}), nothing but the example could be checked.{said} "
        "Declare what the arguments may be with inputs={...}, loosen assume, or set n_inputs=0 to check only the "
        "example and extra_inputs."
    )
