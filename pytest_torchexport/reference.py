"""Eager's side of a check: the inputs that eager accepts and what it did on each, run once for all backends."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.backends.base import Structure
from pytest_torchexport.branches.search import Search
from pytest_torchexport.compare.noise import Eager, RoundingNoise
from pytest_torchexport.compare.records import SecondOpinion, StateView, compare_records, named_leaves
from pytest_torchexport.errors import UsageError
from pytest_torchexport.inputs import draw
from pytest_torchexport.inputs.fits import fits
from pytest_torchexport.inputs.space import Space
from pytest_torchexport.outcome import Leaf
from pytest_torchexport.subject import containers, source
from pytest_torchexport.subject.call import Call, name_of, positional_names
from pytest_torchexport.subject.run import Record, run, storage_of
from pytest_torchexport.subject.state import Snapshot, buffer_names, identical, parameter_marks, parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager

    from pytest_torchexport.branches.follow import Runner
    from pytest_torchexport.branches.observation import Taken
    from pytest_torchexport.branches.sites import Site
    from pytest_torchexport.memory import Memory
    from pytest_torchexport.outcome import BranchCoverage
    from pytest_torchexport.plan import Plan

_ATTEMPTS_PER_INPUT = 5
"""How many generated inputs eager may reject for each that is wanted, before generation gives up."""


@dataclass
class Trial:
    """One input that eager accepts: a sequence of calls, and what eager did on it.

    `taken` is what it took at each decision, where that was observed; `goals` are the outcomes that the search found it
    for.
    """

    calls: tuple[Call, ...]
    record: Record
    kind: str
    label: str
    noise: RoundingNoise | None = None
    taken: Taken | None = None
    goals: tuple[tuple[Site, Any], ...] = ()

    def describe(self) -> str:
        """The arguments, call by call."""
        return "; then ".join(call.describe() for call in self.calls)


@dataclass
class Reference:
    """What eager does.

    Attributes:
        trials: the example first, then extra, remembered and generated inputs.
        dropped: number of inputs that are outside of the domain, by reason.
        invalid: why no verdict is possible; None if one is.
        needs_grad_mode: eager needs autograd on, though no gradients are asked for.
        start: eager's starting state by name.
        buffers: names of the registered buffers in it.
        notes: what the reference leaves unchecked, as (what, why).
        coverage: which branches the inputs took; None where they were not observed.
        reuses_memory: eager returns the same memory from each run, so that every output has to be copied at once.
    """

    trials: list[Trial] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    invalid: str | None = None
    needs_grad_mode: bool = False
    start: dict[str, Any] = field(default_factory=dict)
    buffers: frozenset[str] = frozenset()
    notes: list[tuple[str, str]] = field(default_factory=list)
    reuses_memory: bool = False
    coverage: BranchCoverage | None = None

    def states(self, exported: Mapping[str, Any] | None, *, complete: bool = False) -> StateView:
        """Eager's starting state beside the loaded program's; complete if that is the module's own."""
        return StateView(self.start, exported, self.buffers, complete)


class ReferenceStore:
    """References of the checks of one test, so that its backends share them. Holds eager's outputs: clear it."""

    def __init__(self) -> None:
        self._kept: dict[str, Reference] = {}

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
    first = _first_run(plan, snapshot, reference, example)
    if reference.invalid is not None:
        return reference
    search = _search(plan, snapshot, reference)
    taken = search.start(example).taken if search is not None else None
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
        reference.invalid = _writes_parameters(plan, marks)
    return reference


def runner(plan: Plan, snapshot: Snapshot, reference: Reference) -> Runner:
    """Runs eager for the branch search."""
    return functools.partial(eager_run, plan, snapshot, reference)


def _search(plan: Plan, snapshot: Snapshot, reference: Reference) -> Search | None:
    if plan.branches == "off":
        return None
    return Search(
        runner=runner(plan, snapshot, reference),
        space=space_of(plan),
        is_users=source.user_code(plan.user_code),
        budget=plan.search_budget if plan.branches == "search" else 0,
        seed=plan.seed,
        state=snapshot.live(),
        accepts=functools.partial(accepts, plan),
        draws=draw.generate(
            plan.model, plan.example, plan.inputs, plan.dynamic_shapes, seed=plan.seed + 1, calls=plan.calls
        ),
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
    return observation.record, observation.taken


def _add_found(plan: Plan, snapshot: Snapshot, reference: Reference, search: Search) -> None:
    """Search for what no input took; what is found is run once more, without being observed."""
    for found in search.search():
        record = eager_run(plan, snapshot, reference, found.calls)
        if record.error is None:
            trial = Trial(found.calls, record, "branch", found.label, taken=found.taken, goals=tuple(found.goals))
            reference.trials.append(trial)
    reference.coverage = search.report(plan.branches)


def eager_run(
    plan: Plan,
    snapshot: Snapshot,
    reference: Reference,
    calls: tuple[Call, ...],
    seed: int = 0,
    mode: AbstractContextManager[Any] | None = None,
    program: Callable[..., Any] | None = None,
) -> Record:
    """Run eager once from the snapshot's state, under the mode if there is one, and put that state back.

    A `program` is called in the model's place: the model itself under instruments.
    """
    snapshot.restore()
    try:
        record = run(
            program or plan.model,
            calls,
            device=plan.device,
            seed=plan.seed + seed,
            keep_apart=snapshot.tensors(),
            parameters=plan.parameters(),
            names=positional_names(plan.model, plan.example),
            needs_grad_mode=reference.needs_grad_mode,
            mode=mode,
            clone_all=reference.reuses_memory,
        )
        record.state = snapshot.changes()
    finally:
        snapshot.restore()
    # Most models leave their arguments alone: then the copies that they ran on need not be held.
    record.arguments = [
        before if _same_arguments(before, after) else after
        for before, after in zip(calls, record.arguments, strict=False)
    ]
    return record


def _same_arguments(before: Call, after: Call) -> bool:
    return identical([before.args, dict(before.kwargs)], [after.args, dict(after.kwargs)])


def _first_run(plan: Plan, snapshot: Snapshot, reference: Reference, example: tuple[Call, ...]) -> Record:
    """Run the example, again with other random numbers, and see whether the module agrees with itself."""
    marks = parameter_marks(plan.model)
    first = eager_run(plan, snapshot, reference, example)
    if first.error is not None and not plan.grad and "does not require grad" in str(first.error):
        reference.needs_grad_mode = True
        first = eager_run(plan, snapshot, reference, example)
    if first.error is not None:
        reference.invalid = _raised(plan, first.error)
        return first
    reference.invalid = _writes_parameters(plan, marks)
    if reference.invalid is not None:
        return first
    opaque = _uncomparable(first)
    if opaque:
        reference.invalid = opaque
        return first
    reference.invalid = _disagrees_with_itself(plan, snapshot, reference, example, first)
    return first


def _writes_parameters(plan: Plan, marks: Mapping[str, Any]) -> str | None:
    changed = [name for name, mark in parameter_marks(plan.model).items() if marks[name] != mark]
    if not changed:
        return None
    return (
        f"forward changes the parameter {changed[0]!r} itself, so no two runs start alike. Parameters are never "
        "copied by a check: keep what forward writes in a buffer (register_buffer)."
    )


def _raised(plan: Plan, error: Exception) -> str:
    where = source.of_exception(error)
    line = f" at {where} ({where.source})" if where else ""
    return (
        f"eager {name_of(plan.model)} itself raises on the example{line}: {type(error).__name__}: {error}. "
        "Call the model on these arguments first; a check needs an example on which eager runs."
    )


def _uncomparable(record: Record) -> str | None:
    for output in record.outputs:
        for path, leaf in containers.leaves(output, "output"):
            known = (torch.Tensor, *containers.SCALARS)
            if not isinstance(leaf, known) and type(leaf).__module__ != "numpy":
                return (
                    f"{path} is a {type(leaf).__name__}, which cannot be compared. Return tensors, numbers, strings or "
                    "containers of them, or register the type with torch.utils._pytree.register_pytree_node."
                )
    return None


def _disagrees_with_itself(
    plan: Plan, snapshot: Snapshot, reference: Reference, example: tuple[Call, ...], first: Record
) -> str | None:
    """Why the module is not a function of its inputs and state; None if it is."""
    second = eager_run(plan, snapshot, reference, example, seed=1)
    reference.reuses_memory = _share_memory(plan, first, second)
    if reference.reuses_memory:
        first.outputs[:] = eager_run(plan, snapshot, reference, example).outputs
        second = eager_run(plan, snapshot, reference, example, seed=1)
    leaf = _first_difference(plan, reference, example, first, second)
    if leaf is None:
        return None
    again = eager_run(plan, snapshot, reference, example)
    if _first_difference(plan, reference, example, first, again) is not None:
        return (
            f"eager {name_of(plan.model)} is not deterministic: two runs from the same state and random seed differ at "
            f"{leaf.path} ({leaf.reason}). Look for a clock, a generator that is not torch's global one, or an "
            "operator without a deterministic form (torch.use_deterministic_algorithms(True) names it)."
        )
    dropouts = _active_dropouts(plan.model)
    if dropouts:
        return (
            f"{name_of(plan.model)} is in training mode and its dropout is active ({', '.join(dropouts[:3])}), so that "
            "its output is random. Call model.eval() before the check, or set the dropout's p to 0."
        )
    return (
        f"eager {name_of(plan.model)} draws random numbers: {leaf.path} depends on the random seed ({leaf.reason}). "
        "Exported programs draw others. Pass the random tensor as an argument, or call model.eval()."
    )


def _share_memory(plan: Plan, one: Record, other: Record) -> bool:
    """Whether two runs hand out the same memory, other than that of parameters: a workspace that is written anew."""
    weights = {storage_of(tensor) for tensor in parameters(plan.model).values()}
    ours, theirs = (
        {storage_of(tensor) for _, tensor in containers.tensors(record.outputs) if tensor.numel()}
        for record in (one, other)
    )
    return bool((ours & theirs) - weights)


def _first_difference(
    plan: Plan, reference: Reference, calls: tuple[Call, ...], one: Record, other: Record
) -> Leaf | None:
    if other.error is not None:
        return Leaf("the second run", agrees=False, reason=f"raises {type(other.error).__name__}: {other.error}")
    comparison = compare_records(
        one,
        other,
        calls,
        structure=Structure.SAME,
        states=reference.states(reference.start),
        names=plan.names,
        tolerance=None,
    )
    return next(iter(comparison.disagreeing), None)


def _active_dropouts(model: object) -> list[str]:
    if not isinstance(model, torch.nn.Module):
        return []
    return [
        name or type(module).__name__
        for name, module in model.named_modules()
        for probability in (getattr(module, "p", None), getattr(module, "dropout", None))
        if module.training and isinstance(probability, (int, float)) and probability > 0
    ]


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


def agrees_with_itself(
    plan: Plan,
    snapshot: Snapshot,
    reference: Reference,
    trial: Trial,
    program: Callable[..., Any] | None = None,
) -> Leaf | None:
    """Run eager once more on an input, before an exported program is blamed for it.

    A `program` stands in the model's place, as in `eager_run`.

    Returns:
        Where eager's two runs differ; None if they agree.
    """
    again = eager_run(plan, snapshot, reference, trial.calls, program=program)
    return _first_difference(plan, reference, trial.calls, trial.record, again)


class Unstable(Exception):
    """Eager does not repeat its own result on an input; the message says where."""


def second_opinion(
    plan: Plan,
    snapshot: Snapshot,
    reference: Reference,
    trial: Trial,
    program: Callable[..., Any] | None = None,
) -> SecondOpinion:
    """What says whether eager's own rounding explains a difference on an input; the measurement stays with the trial.

    Args:
        plan: its model is run again, its seed decides the noise.
        snapshot: the state that the runs start from, and that the model is left in.
        reference: the trial's.
        trial: the input.
        program: what stands in the model's place, if the trial's record is not the model's own.
    """

    def leaves(record: Record) -> dict[str, Any]:
        return named_leaves(record, len(trial.calls), reference.start, plan.names)

    def rerun(mode: AbstractContextManager[Any], dtype: torch.dtype | None = None) -> Record:
        calls = tuple(call.place(plan.device, dtype) for call in trial.calls)
        return eager_run(plan, snapshot, reference, calls, mode=mode, program=program)

    def ask(leaf: Leaf, expected: Any, actual: Any, disputed: frozenset[str]) -> Leaf:
        if trial.noise is None:
            # Noise is how far two runs with rounding errors differ: it means nothing if two equal runs differ too.
            differs = agrees_with_itself(plan, snapshot, reference, trial, program)
            if differs is not None:
                msg = f"{differs.path} ({differs.reason})"
                raise Unstable(msg)
            trial.noise = RoundingNoise(leaves(trial.record), plan.seed)
        model = plan.model
        eager = Eager(rerun, leaves, lambda: parameters(model).values())
        return trial.noise.judge(leaf, expected, actual, eager, disputed)

    return ask
