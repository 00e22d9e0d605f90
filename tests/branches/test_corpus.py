"""What the corpus says is true: checked with plain torch, without the observer and the search that it judges."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import pytest_torchexport
from pytest_torchexport.inputs.draw import generate
from pytest_torchexport.inputs.shapes import normalise
from pytest_torchexport.subject.call import Call as DrawnCall
from tests.branches.corpus import cases
from tests.branches.corpus.case import EXAMPLE, Case, Infeasible, Truth, leaves
from tests.branches.corpus.probe import taken, takes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.branches.corpus.case import Call
    from tests.branches.corpus.probe import Key, Run

DRAWS = 500


def _those(wanted: Callable[[Case], bool]) -> pytest.MarkDecorator:
    chosen = [case for case in cases() if wanted(case)]
    names = [f"{Path(case.file).stem}-{case.name}".replace(" ", "-") for case in chosen]
    return pytest.mark.parametrize("case", chosen, ids=names)


each = _those(lambda case: True)


@cache
def _example(name: str) -> Run:
    case = next(one for one in cases() if one.name == name)
    return taken(case, [case.example] * case.options.get("calls", 1))


def _witnesses(case: Case) -> Iterator[tuple[str, str, Call | list[Call]]]:
    """Condition, outcome and input of the outcomes that another input than the example takes."""
    for truth in case.decisions:
        for outcome, witness in truth.outcomes.items():
            if callable(witness):
                yield truth.condition, outcome, witness()


def test_names_are_unique() -> None:
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names)


@each
def test_witnesses_take_their_outcomes(case: Case) -> None:
    example = _example(case.name)
    for truth, span in case.spans().items():
        for outcome, witness in truth.outcomes.items():
            by_example = takes(truth, span, outcome, example, example)
            assert by_example == (witness is EXAMPLE), f"example: {truth.condition} {outcome}: {by_example}"
            if callable(witness):
                run = taken(case, witness())
                assert takes(truth, span, outcome, run, example), f"{truth.condition} is not {outcome}"


@each
def test_nothing_else_depends_on_the_input(case: Case) -> None:
    claimed = {(truth.kind, span) for truth, span in case.spans().items()}
    others = {(kind, span): text for kind, text, span in leaves(case.file, case.name) if (kind, span) not in claimed}
    seen: dict[Key, set[Any]] = {}
    runs = [_example(case.name), *(taken(case, calls) for _, _, calls in _witnesses(case)), *_drawn(case, 30)]
    for run in runs:
        for key, outcomes in run.items():
            if key in others:
                first = seen.setdefault(key, set(outcomes))
                assert set(outcomes) == first, f"{others[key]!r} goes another way on another input"
                assert key[0] != "condition" or len(first) == 1, f"{others[key]!r} goes both ways"


@_those(lambda case: any(isinstance(one, Infeasible) for t in case.decisions for one in t.outcomes.values()))
def test_infeasible_outcomes_are_not_taken(case: Case) -> None:
    infeasible = {
        (truth, span, outcome)
        for truth, span in case.spans().items()
        for outcome, witness in truth.outcomes.items()
        if isinstance(witness, Infeasible)
    }
    example = _example(case.name)
    for run in _drawn(case, DRAWS):
        for truth, span, outcome in infeasible:
            assert not takes(truth, span, outcome, run, example), f"{truth.condition} is {outcome}"


def _drawn(case: Case, count: int) -> Iterator[Run]:
    """Runs on random inputs: half those of the package's generator, half the example's values at other scales."""
    model, example, options = case.make(), DrawnCall(*case.example), case.options
    drawn = generate(
        model,
        example,
        options.get("inputs"),
        normalise(model, example, options.get("dynamic_shapes")),
        seed=0,
        calls=options.get("calls", 1),
    )
    inputs = [[(one.args, dict(one.kwargs)) for one in calls] for calls in islice(drawn, count // 2)]
    inputs += [[_scaled(case, seed)] for seed in range(count - len(inputs))] if "inputs" not in options else []
    for calls in inputs:
        try:
            run = taken(case, calls)
        except Exception:  # noqa: BLE001 - eager is the judge of what is a valid input
            continue
        yield run


def _scaled(case: Case, seed: int) -> Call:
    generator = torch.Generator().manual_seed(seed)

    def number() -> float:
        return float(torch.randn((), generator=generator))

    def another(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
            return leaf
        scale = 10 ** (1.5 * number())
        return torch.randn(leaf.shape, generator=generator) * scale + number() * scale * (seed % 2)

    args, kwargs = pytree.tree_map(another, case.example)
    return args, kwargs


class _Flat(nn.Module):
    """Takes and returns tensors only, as `torch.jit.trace` wants it."""

    def __init__(self, model: Any, example: Call) -> None:
        super().__init__()
        self.model = model
        leaves, self.spec = pytree.tree_flatten(example)
        self.fixed = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = iter(tensors)
        leaves = [next(given) if leaf is None else leaf for leaf in self.fixed]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return tuple(
            torch.as_tensor(leaf) for leaf in pytree.tree_leaves(self.model(*args, **kwargs)) if leaf is not None
        )


def _tensors(call: Call) -> tuple[torch.Tensor, ...]:
    return tuple(leaf.clone() for leaf in pytree.tree_leaves(call) if isinstance(leaf, torch.Tensor))


def _close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return actual.shape == expected.shape and torch.allclose(actual, expected, 1e-3, 1e-5, equal_nan=True)


def _differs(case: Case, traced: Any, calls: list[Call]) -> bool:
    """Whether a traced program does something else than eager in a sequence of calls; fixed arguments as traced."""
    eager = case.make()
    for call in calls:
        if _Flat(None, call).fixed != _Flat(None, case.example).fixed:
            return False  # it cannot be called so
        try:
            results = traced(*_tensors(call))
        except Exception:  # noqa: BLE001 - eager runs on the witness, so this is a difference
            return True
        expected = _Flat(eager, call)(*_tensors(call))
        if len(results) != len(expected) or not all(map(_close, results, expected)):
            return True
    return False


@_those(lambda case: "trace" in (*case.wrong, *case.right))
@pytest.mark.filterwarnings("ignore")
def test_trace_is_as_wrong_as_said(case: Case) -> None:
    said = case.wrong.get("trace", "")
    if said == "refused":
        with pytest.raises(Exception):  # noqa: B017, PT011 - any of them is a refusal
            torch.jit.trace(case.make(), case.args(), check_trace=False)  # type: ignore[no-untyped-call]
        return
    with torch.no_grad():
        flat, tensors = _Flat(case.make(), case.example), _tensors(case.example)
        traced = torch.jit.trace(flat, tensors, check_trace=False)  # type: ignore[no-untyped-call]
        different = {
            condition
            for condition, _, calls in _witnesses(case)
            if _differs(case, traced, calls if isinstance(calls, list) else [calls])
        }
    assert said in different if said else not different, different


@each
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["trace", "onnx-torchscript", "export", "onnx", "script", "compile"])
def test_backends_are_as_right_as_said(case: Case, backend: str) -> None:
    if backend not in (*case.wrong, *case.right):
        pytest.skip("nothing is said about it")
    args, kwargs = case.example
    sequences = [calls if isinstance(calls, list) else [calls] for _, _, calls in _witnesses(case)]
    witnesses = [one for calls in sequences for one in calls]
    options = {**case.options, "branches": "off", "extra_inputs": [*case.options.get("extra_inputs", ()), *witnesses]}
    with torch.no_grad():
        outcome = pytest_torchexport.check(case.make(), args, kwargs, backend=backend, n_inputs=1, **options)
    expected = {"": {"equivalent"}, "refused": {"refused"}}.get(case.wrong.get(backend, ""), {"mismatch", "failed"})
    assert outcome.verdict in expected, f"{outcome.verdict}: {outcome.message}"


@pytest.mark.filterwarnings("ignore")
def test_false_claims_are_found() -> None:
    case = next(one for one in cases("continuous") if one.name == "mean gate")
    (truth,) = case.decisions
    assert callable(truth.true)
    swapped = Truth(truth.condition, true=EXAMPLE, false=truth.true)
    with pytest.raises(AssertionError, match="example"):
        test_witnesses_take_their_outcomes(replace(case, decisions=[swapped]))
    idle = Truth(truth.condition, true=lambda: case.example, false=EXAMPLE)
    with pytest.raises(AssertionError, match="is not true"):
        test_witnesses_take_their_outcomes(replace(case, decisions=[idle]))
    with pytest.raises(AssertionError, match="goes"):
        test_nothing_else_depends_on_the_input(replace(case, decisions=[]))
    given_up = Truth(truth.condition, true=Infeasible("it is not"), false=EXAMPLE)
    with pytest.raises(AssertionError, match="is true"):
        test_infeasible_outcomes_are_not_taken(replace(case, decisions=[given_up]))
    with pytest.raises(AssertionError):
        test_trace_is_as_wrong_as_said(replace(case, wrong={}, right=("trace",)))
