"""Hypotheses that run eager in another way: in the other mode, from another state, with an argument held."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.diagnose.case import Clue
from pytest_torchexport.diagnose.likeness import explains, is_like, tensors
from pytest_torchexport.diagnose.lost_backward import lost_backward
from pytest_torchexport.diagnose.lost_entries import lost_entries
from pytest_torchexport.outcome import Cause, Evidence
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.call import rebind
from pytest_torchexport.subject.state import identical, parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_torchexport.diagnose.case import Case
    from pytest_torchexport.subject.call import Call
    from pytest_torchexport.subject.run import Record

_TRACED = 3
"""Runs of the model that an exporter may have made before it read the state."""
_SEVERAL = 3
_NORMS = 8
"""Normalisations that are looked at one by one."""
_ARGUMENTS = 6
"""Arguments that are held one by one."""
_CALLS = 4
"""Calls that are looked at where each needs a run of its own."""


def other_mode(case: Case) -> Iterator[Clue]:
    """Whether the program does what eager does in the other mode, train or eval."""
    model = case.plan.model
    if not isinstance(model, torch.nn.Module) or isinstance(model, torch.jit.ScriptModule):
        return
    norms = {name: module for name, module in model.named_modules() if getattr(module, "track_running_stats", False)}
    single = {f"{name!r}": [module] for name, module in list(norms.items())[:_NORMS]} if len(norms) > 1 else {}
    kinds = ", ".join(sorted({type(module).__name__ for module in norms.values()}))
    some = {kinds: list(norms.values()), **single} if norms else {}
    changed = case.trial.record.state
    lost = any(leaf.cause is Cause.LOST_STATE and leaf.path.removeprefix("state ") in changed for leaf in case.leaves)
    for who, chosen in {"": list(model.modules()), **some}.items():
        if case.explained_by(case.eager(program=_in_other_mode(model, chosen))):
            mode, other = ("training", "eval") if chosen[0].training else ("eval", "training")
            what = f"with {who} in {other} mode; it is" if who else f"in {other} mode; the model is"
            fact = Evidence(f"the exported program does what eager does {what} in {mode} mode")
            yield Clue((fact,), Cause.LOST_STATE if lost else Cause.NUMERIC)
            return


def _in_other_mode(model: torch.nn.Module, chosen: list[torch.nn.Module]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        for module in chosen:
            module.training = not module.training
        try:
            return model(*args, **kwargs)
        finally:
            for module in chosen:
                module.training = not module.training

    return run


def other_start(case: Case) -> Iterator[Clue]:
    """Whether the program starts from another state: values of its own, or what exporting the model left there."""
    theirs = case.program.states.exported or {}
    ours = case.reference.start
    other = {
        name: value
        for name, value in theirs.items()
        if name in ours and isinstance(value, torch.Tensor) and _is_another(ours[name], value)
    }
    if other and case.explained_by(case.eager(program=_with_state(case, other))):
        shown = [
            f"{name!r} starts as {_short(value)}, in eager as {_short(ours[name])}" for name, value in other.items()
        ]
        yield Clue((Evidence(f"in the exported program the state {'; '.join(shown[:3])}"),), Cause.LOST_STATE)
    changed = _changed_by_eager(case)
    if not changed:
        return
    before = (case.plan.example,)
    for count in range(1, _TRACED + 1):
        record = case.eager(before * count + case.trial.calls)
        if record.error is None and case.gives(record.outputs[count:]):
            text = (
                f"the exported program starts where eager is after {_times(count)} on the example: its first call "
                f"gives what eager's call {count + 1} gives. Exporting ran the model, and {_listed(changed)} was kept "
                "as that left it"
            )
            yield Clue((Evidence(text),), Cause.LOST_STATE)
            return


def _is_another(ours: Any, theirs: torch.Tensor) -> bool:
    same_kind = isinstance(ours, torch.Tensor) and ours.shape == theirs.shape and ours.dtype == theirs.dtype
    return same_kind and not identical(ours, theirs.to(ours.device))


def _with_state(case: Case, values: Mapping[str, torch.Tensor]) -> Callable[..., Any]:
    """The model, which is given these values for its state when it is called first."""
    waiting = [values]

    def run(*args: Any, **kwargs: Any) -> Any:
        while waiting:
            live = case.snapshot.live()
            with torch.no_grad():
                for name, value in waiting.pop().items():
                    live[name].copy_(value)
        return case.plan.model(*args, **kwargs)

    return run


def frozen_state(case: Case) -> Iterator[Clue]:
    """Whether every call of the program starts from the same state, or answers with the call before it or after it."""
    yield from lost_entries(case)
    calls = case.trial.calls
    if len(calls) < 2:
        return
    changed = _changed_by_eager(case)
    few = calls[:_CALLS] if changed else ()
    for count in range(_TRACED) if few else ():
        runs = [case.eager((case.plan.example,) * count + (call,)) for call in few]
        if all(run.error is None for run in runs) and case.gives([r.outputs[-1] for r in runs], slice(0, len(few))):
            start = f"as {_times(count)} on the example left it" if count else "as it was at first"
            text = f"each call of the exported program finds {_listed(changed)} {start}, eager as the last call left it"
            yield Clue((Evidence(text),), Cause.LOST_STATE)
            return
    yield from _late(case)


def _late(case: Case) -> Iterator[Clue]:
    """Whether the program answers each call with what eager answered the call before it, or the one after it."""
    ours, theirs = case.trial.record.outputs, case.record.outputs
    if len(ours) < _SEVERAL:
        return
    for mine, others, said in (
        (slice(0, -1), slice(1, None), "the exported program gives in each call what eager gave in the call before"),
        (slice(1, None), slice(0, -1), "the exported program gives in each call what eager gives in the next one"),
    ):
        if explains(ours[others], ours[mine], theirs[others], case.structure):
            yield Clue((Evidence(said),), Cause.LOST_STATE)
            return


def _changed_by_eager(case: Case) -> list[str]:
    """The entries of the state that eager changes, and the program does not, as far as is known."""
    mine = dict.fromkeys([*case.trial.record.state, *case.reference.trials[0].record.state])
    lost = [name for name in mine if name not in case.record.state]
    return lost or list(mine)


def other_weights(case: Case) -> Iterator[Clue]:
    """Whether the program holds other parameters than eager."""
    ours, theirs = parameters(case.plan.model), case.program.parameters()
    other = {
        name: theirs[name].detach()
        for name, value in ours.items()
        if name in theirs and _is_another(value.detach(), theirs[name].detach())
    }
    if not other:
        return
    name = next(iter(other))
    names = f"{name!r}{f' and {len(other) - 1} more' if len(other) > 1 else ''}"
    if stored := _stored_as({name: ours[name].detach() for name in other}, other):
        text = f"the exported program's weights are not eager's: {names} were stored as {stored}"
        yield Clue((Evidence(text),), Cause.DTYPE)
        return
    furthest = float((ours[name].detach() - other[name].to(ours[name].device)).abs().max())
    text = f"the exported program's weights are not eager's: {names} (off by up to {furthest:.3g})"
    explained = case.explained_by(case.eager(program=_with_weights(case, other)))
    yield Clue((Evidence(text),), Cause.NUMERIC if explained else None)


def _stored_as(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> str:
    """The narrower type whose numbers nearest to eager's the values are; empty if they are none."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        if all(
            value.is_floating_point()
            and value.dtype.itemsize > dtype.itemsize
            and identical(value.to(dtype).to(value.dtype), theirs[name].to(value.device))
            for name, value in ours.items()
        ):
            return str(dtype).removeprefix("torch.")
    return ""


def _with_weights(case: Case, values: Mapping[str, torch.Tensor]) -> Callable[..., Any]:
    own = parameters(case.plan.model)

    def run(*args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as undo:
            for name, value in values.items():
                undo.callback(setattr, own[name], "data", own[name].data)
                own[name].data = value.to(own[name].device)
            return case.plan.model(*args, **kwargs)

    return run


def held_arguments(case: Case) -> Iterator[Clue]:
    """Whether the program does what eager does with the example's value of an argument, whatever it is given."""
    example = dict(_leaves(case, case.plan.example))
    calls = [dict(_leaves(case, call)) for call in case.trial.calls]
    other = [
        path
        for path, value in example.items()
        if all(path in call and _has_form(value, call[path]) for call in calls)
        and any(not identical(value, call[path]) for call in calls)
    ]
    if _is_constant(case):
        text = (
            "no argument has an effect on the exported program: on every input it gives what eager gives on the example"
        )
        yield Clue((Evidence(text),), Cause.BAKED_VALUE)
        return
    for path in other[:_ARGUMENTS]:
        if case.explained_by(case.eager(_held(case, {path: example[path]}))):
            text = (
                f"the argument {path} has no effect on the exported program: it gives what eager gives with the "
                f"example's {path} ({_short(example[path])})"
            )
            yield Clue((Evidence(text),), Cause.BAKED_VALUE)
            return


def _is_constant(case: Case) -> bool:
    """Whether the program gave eager's output on the example wherever it failed, at least twice."""
    example = case.reference.trials[0].record.outputs
    both = [(trial.record, record) for trial, record in ((case.trial, case.record), *case.others)]
    runs = [(ours, theirs) for ours, theirs in both if ours.error is None and theirs.error is None][:_CALLS]
    return len(runs) > 1 and all(explains(o.outputs, example, t.outputs, case.structure) for o, t in runs)


def _leaves(case: Case, call: Call) -> Iterator[tuple[str, Any]]:
    for name, value in case.plan.names(call).items():
        yield from containers.leaves(value, name)


def _has_form(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        return ours.shape == theirs.shape and ours.dtype == theirs.dtype
    return type(ours) is type(theirs)


def _held(case: Case, values: Mapping[str, Any]) -> Iterator[Call]:
    for call in case.trial.calls:
        named = {name: containers.replace(v, values, name) for name, v in case.plan.names(call).items()}
        yield rebind(case.plan.model, call, named, call.kind, call.label)


def lost_no_grad(case: Case) -> Iterator[Clue]:
    """Whether the program has the gradients that eager has without `torch.no_grad()`, or without its own backward."""
    names = [leaf.path for leaf in case.leaves]
    if not names or not all(name.startswith("gradient of ") for name in names):
        return
    record = case.eager(program=_without_no_grad(case.plan.model))
    ours, theirs = case.trial.record.gradients, case.record.gradients
    if record.error is None and all(
        name in record.gradients and name in theirs and is_like(record.gradients[name], theirs[name], ours.get(name))
        for name in names
    ):
        text = "the exported program does not keep torch.no_grad(): eager without it has the program's gradients"
        yield Clue((Evidence(text),), Cause.NUMERIC)
        return
    yield from lost_backward(case)


def _without_no_grad(model: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        enter = torch.no_grad.__enter__
        torch.no_grad.__enter__ = _enter_nothing  # type: ignore[method-assign]
        try:
            return model(*args, **kwargs)
        finally:
            torch.no_grad.__enter__ = enter  # type: ignore[method-assign]

    return run


def _enter_nothing(block: torch.no_grad) -> None:
    block.prev = torch.is_grad_enabled()


def own_ways(case: Case) -> Iterator[Clue]:
    """Whether the program gives something else when it runs again: random numbers, or memories of earlier inputs."""
    if not case.left:
        return
    first, again = _after_another(case), case.program.run(case.trial)
    if first.error is not None or again.error is not None:
        return
    if _same(case, first.outputs, case.record.outputs) and _same(case, again.outputs, first.outputs):
        other = case.program.run(case.trial, seed=1)
        if other.error is None and not _same(case, other.outputs, again.outputs):
            text = "the exported program draws random numbers, eager does not: with another seed it gives other values"
            yield Clue((Evidence(text),), Cause.NUMERIC)
        return
    last = _after_another(case)
    if last.error is None and _same(case, last.outputs, first.outputs):
        text = "the exported program keeps something of earlier runs: what it gives depends on the input before"
    else:
        text = (
            "the exported program gives other values in each run: random numbers, something that it keeps from run to "
            "run, or memory that was never written"
        )
    yield Clue((Evidence(text),), Cause.NUMERIC)


def _after_another(case: Case) -> Record:
    """What the program does on the input after it ran on another one."""
    trials = [trial for trial in case.reference.trials if trial is not case.trial and trial.record.error is None]
    if trials:
        case.program.run(trials[-1])
    return case.program.run(case.trial)


def _same(case: Case, one: list[Any], other: list[Any]) -> bool:
    """Whether two runs of the program part by no more than a small part of its difference from eager."""
    return all(
        any(expected is not None and is_like(mine, theirs, expected) for expected in (wanted.get(path), mine))
        for ours, first, second in zip(case.trial.record.outputs, one, other, strict=True)
        for wanted in [dict(tensors(ours))]
        for (path, mine), (_, theirs) in zip(tensors(first), tensors(second), strict=True)
    )


def _times(count: int) -> str:
    return "one call" if count == 1 else f"{count} calls"


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _short(value: Any) -> str:
    return containers.describe(value, limit=60)
