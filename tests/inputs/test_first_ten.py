"""What the first ten inputs hold: ten are what a check runs if nobody asks for more."""

from __future__ import annotations

from itertools import islice
from typing import Any, Literal

import pytest
import torch
from torch.export import Dim

from pytest_torchexport import Verdict, check
from pytest_torchexport.inputs.draw import generate
from pytest_torchexport.inputs.shapes import normalise
from pytest_torchexport.subject.call import Call

TEN = 10


def one(x: Any) -> Any:
    return x


def ten(model: Any, args: Any, spec: Any = None, seed: int = 0, count: int = TEN) -> list[Call]:
    example = Call(args)
    shapes = None if spec is None else normalise(model, example, spec)
    return [calls[0] for calls in islice(generate(model, example, None, shapes, seed=seed), count)]


@pytest.mark.parametrize("seed", range(5))
def test_floats_of_both_signs_of_all_scales_and_zeros(seed: int) -> None:
    x = torch.rand(3, 4)
    largest = [float(call.args[0].abs().max() / x.max()) for call in ten(one, (x,), seed=seed)]
    signs = {sign for call in ten(one, (x,), seed=seed) for sign in call.args[0].sign().unique().tolist()}
    assert signs == {-1.0, 0.0, 1.0}
    assert min(largest) == 0
    assert any(0 < size < 0.2 for size in largest)
    assert any(size > 5 for size in largest)


@pytest.mark.parametrize("seed", range(5))
def test_both_bounds_of_a_size_and_one_more_than_the_example(seed: int) -> None:
    calls = ten(one, (torch.rand(3, 4),), {"x": {0: Dim("b", max=9)}}, seed)
    special = [call.args[0].shape[0] for call in calls if call.kind == "special"]
    assert {1, 9, 4} <= set(special)
    assert special.count(3) >= 3, "values are varied at the example's size too"


def test_the_bounds_come_even_if_two_inputs_are_taken_by_sequences() -> None:
    calls = ten(one, (torch.rand(3, 4),), {"x": {0: Dim("b", max=9)}}, count=TEN - 2)
    assert {1, 9} <= {call.args[0].shape[0] for call in calls if call.kind == "special"}


def test_each_of_two_sizes_reaches_its_bound_where_both_together_are_too_much_work() -> None:
    spec = {"x": {0: Dim("b", max=64), 1: Dim("s", max=128)}}
    shapes = [tuple(call.args[0].shape) for call in ten(one, (torch.rand(4, 16),), spec)]
    assert (64, 128) not in shapes
    assert {(64, 16), (4, 128)} <= set(shapes)


def test_a_size_that_is_missing_to_one_dimension_does_not_shift_the_others() -> None:
    spec = {"x": {0: Dim("b", min=3, max=9), 1: Dim("s", max=8)}}
    shapes = [tuple(call.args[0].shape) for call in ten(one, (torch.rand(3, 5),), spec) if call.kind == "special"]
    assert {(3, 1), (9, 8), (4, 6)} <= set(shapes)


def test_optional_arguments_flags_masks_and_choices_get_their_turn() -> None:
    def model(x: Any, mask: torch.Tensor, bias: torch.Tensor | None, flag: bool, mode: Literal["a", "b"] = "a") -> Any:
        return x

    mask = torch.tensor([[True, True, False, True]])
    calls = ten(model, (torch.rand(3, 4), mask, torch.rand(4), True, "a"))
    assert any(call.args[2] is None for call in calls)
    assert any(call.args[3] is False for call in calls)
    assert any(call.args[4] == "b" for call in calls)
    assert any(bool(call.args[1].all()) for call in calls)
    assert any(not torch.equal(call.args[1], mask) and not bool(call.args[1].all()) for call in calls)
    assert any(call.kind == "random" for call in calls)


@pytest.mark.parametrize("seed", range(5))
def test_a_branch_on_a_size_within_the_declared_range_is_found(seed: int) -> None:
    def doubled_if_large(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] > 4 else x + 1

    spec = {"x": {0: Dim("b", max=9)}}
    outcome = check(doubled_if_large, torch.rand(3, 4), backend="trace", dynamic_shapes=spec, seed=seed)
    assert outcome.verdict is Verdict.MISMATCH
