from __future__ import annotations

from collections import namedtuple
from dataclasses import replace
from typing import Any

import pytest
import torch

from pytest_torchexport import Trace, check
from pytest_torchexport.diagnose.cause import Attribution
from pytest_torchexport.explain import figures
from pytest_torchexport.explain.remedy import Failed, what_to_do
from pytest_torchexport.outcome import Cause, Divergence, Evidence, Leaf, Location


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * x.abs()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


class Split(torch.autograd.Function):
    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x * x.abs()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


class Applied(torch.nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.function.apply(self.linear(x))
        return result


class Keeps(torch.nn.Module):
    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held: Any = held

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.held, list):
            self.held.append(x.sum())
            return x + torch.stack(self.held).sum()
        if isinstance(self.held, int):
            self.held += 1
            counted: torch.Tensor = x * self.held
            return counted
        y: torch.Tensor = x if self.held is None else x + self.held
        self.held = x * 0.5
        return y


Pair = namedtuple("Pair", "a b")  # noqa: PYI024 what people write


class ReturnsPair(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return Pair(x * 2, x.sum())


class ReturnsNone(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return {"a": x * 2, "b": None}


def advised(cause: Cause, *facts: str, backend: str = "trace", leaf: Leaf | None = None) -> str:
    attribution = Attribution(cause, None, tuple(map(Evidence, facts)))
    return what_to_do(Failed(attribution, backend, leaves=[leaf] if leaf is not None else []))


def test_batch_norm_that_is_exported_in_eval_mode_is_no_matter_of_whole_numbers() -> None:
    found = check(torch.nn.BatchNorm1d(8).train(), (torch.rand(4, 8),), backend="onnx", n_inputs=0)
    assert found.cause is Cause.LOST_STATE
    assert "does what eager does in eval mode" in found.message
    assert "BatchNorm as in eval mode" in " ".join(found.message.split())
    assert "Whole numbers" not in found.message


def test_the_other_mode_has_a_remedy_of_its_own() -> None:
    fact = "the exported program does what eager does with 'bn' in {} mode; it is in {} mode"
    assert "call model.eval() before the check" in advised(Cause.NUMERIC, fact.format("eval", "training"))
    assert "training=True in functional calls" in advised(Cause.NUMERIC, fact.format("training", "eval"))


def test_ties_are_thought_of_where_indices_differ() -> None:
    indices = Leaf("output", agrees=False, cause=Cause.NUMERIC, dtype="int64", rule="exact")
    assert "(ties)" in advised(Cause.NUMERIC, leaf=indices)
    flags = Leaf("output", agrees=False, cause=Cause.NUMERIC, dtype="bool", rule="exact")
    assert "ties" not in advised(Cause.NUMERIC, leaf=flags)


def test_the_word_for_what_takes_the_number_is_that_of_the_held_expression() -> None:
    line = Location("a.py", 1, "t = x.numpy() if False else float(x.sum())")
    attribution = Attribution(Cause.BAKED_VALUE, line, (Evidence("`float(x.sum())`: 1.0 in the example"),))
    said = what_to_do(Failed(attribution, "trace"))
    assert "`float()`" in said
    assert "numpy" not in said


def test_the_runtimes_optimiser_is_not_the_exporters() -> None:
    worst = Leaf("output", agrees=False, cause=Cause.NUMERIC, dtype="float32", score=1e7, limit=5.0, expected="1")
    found = Divergence(note="as computed: the difference comes from ONNX Runtime's graph optimiser")
    attribution = Attribution(Cause.NUMERIC, None, ())
    said = what_to_do(Failed(attribution, "onnx", leaves=[worst], divergence=found))
    assert "graph_optimization_level" in said
    assert "optimize=False" not in said
    assert "optimize=False" in what_to_do(Failed(attribution, "onnx", leaves=[worst]))


def test_next_to_nothing_beside_zero_is_a_matter_of_tolerance() -> None:
    tiny = Leaf(
        "call 2 output[0]", agrees=False, cause=Cause.NUMERIC, dtype="float32", score=6e5, limit=6.0, max_abs=4.6e-13
    )
    tiny = replace(tiny, expected="4.57e-13", actual="0", exported_error=4.6e-13)
    said = advised(Cause.NUMERIC, leaf=tiny, backend="onnx")
    assert 'tolerance={"output[0]": Tolerance(rtol=1.3e-06, atol=1e-07)}' in said
    assert "Compare the options" not in said
    assert "another computation" not in " ".join(figures.told([tiny]))
    assert "Compare the options" in advised(Cause.NUMERIC, leaf=replace(tiny, expected="0.4"), backend="onnx")


@pytest.mark.parametrize("function", [StraightThrough, Split])
def test_a_backward_of_its_own_that_is_lost_is_named(function: type) -> None:
    apply = torch.autograd.Function.__dict__["apply"]
    found = check(Applied(function), (torch.rand(3, 4),), backend="export", grad=True, n_inputs=0)
    assert found.cause is Cause.NUMERIC
    assert f"the backward of the autograd.Function '{function.__name__}'" in " ".join(found.message.split())
    assert found.location is not None
    assert found.location.source.startswith("def backward")
    assert "register_autograd" in found.message
    assert torch.autograd.Function.__dict__["apply"] is apply


@pytest.mark.parametrize(
    ("held", "way"),
    [
        (None, "self.register_buffer('held', torch.zeros((2, 3)))"),
        (torch.zeros(2, 3), "self.register_buffer('held', torch.zeros((2, 3)))"),
        (0, "self.register_buffer('held', torch.zeros((), dtype=torch.int64))"),
        ([], "self.held is a Python list"),
    ],
)
def test_lost_state_is_named_as_what_it_is(held: Any, way: str) -> None:
    found = check(Keeps(held), (torch.rand(2, 3),), backend="trace", calls=3, n_inputs=0)
    said = " ".join(found.message.split())
    assert found.cause is Cause.LOST_STATE
    assert way in said
    assert "the exported program does not carry 'held', a" in said
    assert ("register_buffer" in said) is (held != [])


def test_a_buffer_is_not_registered_again() -> None:
    fact = "the exported program does not carry 'bn.mean', a buffer (float32, [3])"
    assert advised(Cause.LOST_STATE, fact).startswith("Update it in place, self.mean.copy_(...)")


def test_no_name_is_made_up() -> None:
    assert "count" not in advised(Cause.LOST_STATE, "the outputs agree up to call 1")


@pytest.mark.parametrize(
    ("model", "backend", "said", "way"),
    [
        (ReturnsPair, "export", "the namedtuple Pair", "_register_namedtuple(Pair"),
        (ReturnsNone, Trace(strict=False), "a dict that holds something else than tensors", "Leave what is None"),
    ],
)
def test_what_cannot_be_returned_is_refused_in_words(model: Any, backend: Any, said: str, way: str) -> None:
    found = check(model(), (torch.rand(2, 3),), backend=backend, n_inputs=0)
    assert said in found.summary
    assert found.location is not None
    assert found.location.source.startswith("return ")
    assert way in found.message
