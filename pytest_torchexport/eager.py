"""Eager itself: one run from the starting state, and whether what it does can be relied on."""

from __future__ import annotations

import functools
import gc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.backends.base import Structure
from pytest_torchexport.compare.noise import RoundingNoise
from pytest_torchexport.compare.path import Path
from pytest_torchexport.compare.records import SecondOpinion, compare_records, in_eagers_order, named_leaves
from pytest_torchexport.compare.rerun import Eager, Known
from pytest_torchexport.compare.tolerance import Rules, Tolerance
from pytest_torchexport.outcome import Leaf
from pytest_torchexport.subject import containers, source
from pytest_torchexport.subject.call import Call, name_of, positional_names
from pytest_torchexport.subject.run import WRITTEN_LEAF, Record, run, storage_of
from pytest_torchexport.subject.state import Snapshot, identical, parameter_marks, parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from pytest_torchexport.plan import Plan
    from pytest_torchexport.trials import Reference, Trial


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
    # What the collector finalizes would be seen as a part of the run: suspended generators of other code go on then.
    collects = mode is not None and gc.isenabled()
    if collects:
        gc.disable()
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
            writes_arguments=reference.writes_arguments,
        )
        record.state = snapshot.changes()
    finally:
        if collects:
            gc.enable()
        snapshot.restore()
    # Most models leave their arguments alone: then the copies that they ran on need not be held.
    record.arguments = [
        before if _same_arguments(before, after) else after
        for before, after in zip(calls, record.arguments, strict=False)
    ]
    return record


def _same_arguments(before: Call, after: Call) -> bool:
    return identical([before.args, dict(before.kwargs)], [after.args, dict(after.kwargs)])


def first_run(
    plan: Plan,
    snapshot: Snapshot,
    reference: Reference,
    example: tuple[Call, ...],
    mode: AbstractContextManager[Any] | None = None,
) -> Record:
    """Run the example, again with other random numbers, and see whether the module agrees with itself.

    The second run is under the mode, which only watches.
    """
    marks = parameter_marks(plan.model)
    first = eager_run(plan, snapshot, reference, example)
    if first.error is not None and not plan.grad and "does not require grad" in str(first.error):
        reference.needs_grad_mode = True
        first = eager_run(plan, snapshot, reference, example)
    if first.error is not None and plan.grad and WRITTEN_LEAF in str(first.error):
        reference.writes_arguments = True
        first = eager_run(plan, snapshot, reference, example)
    if first.error is not None:
        reference.invalid = _raised(plan, first.error)
        return first
    reference.invalid = writes_parameters(plan, marks)
    if reference.invalid is not None:
        return first
    opaque = _uncomparable(first)
    if opaque:
        reference.invalid = opaque
        return first
    reference.invalid = _disagrees_with_itself(plan, snapshot, reference, example, first, mode)
    return first


def writes_parameters(plan: Plan, marks: Mapping[str, Any]) -> str | None:
    """Why no two runs start alike: the parameter that forward has written to since the marks were made; else None."""
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
    plan: Plan,
    snapshot: Snapshot,
    reference: Reference,
    example: tuple[Call, ...],
    first: Record,
    mode: AbstractContextManager[Any] | None,
) -> str | None:
    """Why the module is not a function of its inputs and state; None if it is."""
    second = eager_run(plan, snapshot, reference, example, seed=1, mode=mode)
    reference.reuses_memory = _share_memory(plan, first, second)
    if reference.reuses_memory:
        first.outputs[:] = eager_run(plan, snapshot, reference, example).outputs
        second = eager_run(plan, snapshot, reference, example, seed=1)
    leaf = _first_difference(plan, reference, example, first, second)
    if leaf is not None and mode is not None:
        # Attention and encoder layers have kernels that torch does not use under a mode: that is no randomness.
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
        rules=Rules(),
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
    rules: Rules,
    program: Callable[..., Any] | None = None,
) -> SecondOpinion:
    """What says whether eager's own rounding explains a difference on an input; the measurement stays with the trial.

    Args:
        plan: its model is run again, its seed decides the noise.
        snapshot: the state that the runs start from, and that the model is left in.
        reference: the trial's.
        trial: the input.
        rules: the tolerance of each result.
        program: what stands in the model's place, if the trial's record is not the model's own.
    """
    eager = _rerunning(plan, snapshot, reference, trial, rules, program)

    def ask(leaf: Leaf, expected: Any, actual: Any, disputed: frozenset[str]) -> Leaf:
        rule = rules.of_result(leaf.path)
        noise = _noise_of(trial, plan, eager, rules, rule)
        if not noise.repeats:
            # Noise is how far two runs with rounding errors differ: it means nothing if two equal runs differ too.
            differs = agrees_with_itself(plan, snapshot, reference, trial, program)
            if differs is not None:
                msg = f"{differs.path} ({differs.reason})"
                raise Unstable(msg)
            noise.repeats = True
        return noise.judge(leaf, expected, actual, eager, disputed, rule)

    return ask


class Glance:
    """A second opinion that costs little: which differences are so large that rounding is out of the question.

    The other ones it passes over, and says so in `undecided`: they have to be measured. Takes the arguments of
    `second_opinion`.
    """

    def __init__(self, plan: Plan, snapshot: Snapshot, reference: Reference, trial: Trial, rules: Rules) -> None:
        self._plan, self._trial, self._rules = plan, trial, rules
        self._eager = _rerunning(plan, snapshot, reference, trial, rules, None)
        self.undecided = False

    def __call__(self, leaf: Leaf, expected: Any, actual: Any, disputed: frozenset[str]) -> Leaf:
        """The leaf if its difference is far beyond rounding, else one that agrees."""
        rule = self._rules.of_result(leaf.path)
        noise = _noise_of(self._trial, self._plan, self._eager, self._rules, rule)
        if noise.rules_out(leaf, expected, actual, self._eager, disputed, rule):
            return leaf
        self.undecided = True
        return replace(leaf, agrees=True, cause=None)


def _noise_of(trial: Trial, plan: Plan, eager: Eager, rules: Rules, rule: Tolerance) -> RoundingNoise:
    # Runs of eager are put into another order for some rules: then their noise is another one.
    key = (rule.precision, str(rules) if rules.any_order else "")
    noise = trial.noise.get(key)
    if noise is None:
        noise = RoundingNoise(eager.leaves(trial.record), plan.seed, rule.precision)
        trial.noise[key] = noise
    return noise


def _rerunning(
    plan: Plan,
    snapshot: Snapshot,
    reference: Reference,
    trial: Trial,
    rules: Rules,
    program: Callable[..., Any] | None,
) -> Eager:
    """How the noise on an input is measured."""

    def leaves(record: Record) -> dict[str, Any]:
        found = named_leaves(record, len(trial.calls), reference.start, plan.names)
        if rules.any_order and record is not trial.record:
            found |= in_eagers_order(leaves(trial.record), found, rules)
        return found

    def rerun(mode: AbstractContextManager[Any], dtype: torch.dtype | None = None) -> Record:
        try:
            calls = tuple(call.place(plan.device, dtype) for call in trial.calls)
        except Exception as error:  # noqa: BLE001 not every device has the dtype
            return Record(error=error)
        for way in (getattr(mode, "path", None), getattr(mode, "computed", None)):
            if isinstance(way, Path):
                way.numbers = numbers()
        return eager_run(plan, snapshot, reference, calls, mode=mode, program=program)

    @functools.cache
    def numbers() -> dict[int, int]:
        return {id(one): number for number, one in enumerate(parameters(plan.model).values())}

    known = reference.known if program is None else Known()
    return Eager(rerun, leaves, lambda: parameters(plan.model).values(), known, reference.decides)
