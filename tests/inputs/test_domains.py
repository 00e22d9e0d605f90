"""Declared domains: what is drawn lies in them, and a wrong declaration is an error that says what to write."""

from __future__ import annotations

import enum
from itertools import islice
from typing import Any

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from pytest_torchexport import UsageError, booleans, floats, integers, optional, sampled_from
from pytest_torchexport.inputs.draw import generate
from pytest_torchexport.subject.call import Call


class Color(enum.Enum):
    RED = 1
    BLUE = 2


def take(value: Any, domain: Any, count: int = 30, seed: int = 0) -> list[Any]:
    """Values drawn for the argument `x` of a function of one argument."""

    def model(x: Any) -> Any:
        return x

    stream = generate(model, Call((value,)), {"x": domain}, None, seed=seed)
    return [calls[0].args[0] for calls in islice(stream, count)]


FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn)


@hypothesis.settings(max_examples=30, deadline=None, database=None, derandomize=True)
@hypothesis.given(
    st.tuples(st.floats(-400, 400), st.floats(-400, 400)).map(sorted), st.sampled_from(FLOATING), st.integers(0, 5)
)
def test_floats_stay_between_their_bounds_in_every_dtype(bounds: Any, dtype: Any, seed: Any) -> None:
    low, high = bounds
    example = torch.full((3, 5), (low + high) / 2, dtype=torch.float64).to(dtype)
    hypothesis.assume(low <= float(example.double()[0, 0]) <= high)
    for drawn in take(example, floats(low, high), 12, seed):
        assert drawn.dtype == dtype
        assert bool(((drawn.double() >= low) & (drawn.double() <= high)).all())


@hypothesis.settings(max_examples=30, deadline=None, database=None, derandomize=True)
@hypothesis.given(
    st.tuples(st.integers(0, 100), st.integers(0, 100)).map(sorted),
    st.sampled_from((torch.int64, torch.uint8, torch.int8, torch.int32, torch.float32)),
)
def test_integers_stay_between_their_bounds_and_are_whole(bounds: Any, dtype: Any) -> None:
    low, high = bounds
    for drawn in take(torch.full((4,), low, dtype=dtype), integers(low, high), 12):
        assert drawn.dtype == dtype
        assert bool(((drawn >= low) & (drawn <= high) & (drawn == drawn.round())).all())


def test_bounds_themselves_are_drawn_first() -> None:
    drawn = take(torch.zeros(2, 3), floats(-2.0, 5.0), 8)
    assert any(bool((one == -2.0).all()) for one in drawn)
    assert any(bool((one == 5.0).all()) for one in drawn)


def test_integers_reach_both_ends_of_64_bits() -> None:
    drawn = torch.stack(take(torch.zeros(50, dtype=torch.int64), integers(-(2**63), 2**63 - 1), 8))
    assert drawn.max() == 2**63 - 1
    assert drawn.min() == -(2**63)


def test_complex_parts_stay_between_the_bounds() -> None:
    for drawn in take(torch.zeros(4, dtype=torch.complex64), floats(-1, 1)):
        assert drawn.dtype == torch.complex64
        assert bool((torch.view_as_real(drawn).abs() <= 1).all())


def test_python_numbers_keep_their_type() -> None:
    assert all(isinstance(one, float) and 0 <= one <= 2 for one in take(0.5, floats(0, 2)))
    assert all(type(one) is int and 3 <= one <= 9 for one in take(4, integers(3, 9)))
    assert take(True, booleans()) == [False]


def test_flags_are_drawn_all_set_and_all_unset() -> None:
    drawn = take(torch.tensor([True, False, True]), booleans())
    assert any(bool(one.all()) for one in drawn)
    assert any(not bool(one.any()) for one in drawn)


def test_sampled_from_numbers_fills_the_elements() -> None:
    drawn = take(torch.tensor([0.5, 2.0]), sampled_from([0.5, 2.0, 7.0]))
    assert set(torch.stack(drawn).reshape(-1).tolist()) == {0.5, 2.0, 7.0}


def test_sampled_from_tensors_gives_them_whole_and_at_any_shape() -> None:
    long, short = torch.arange(5), torch.arange(2)
    drawn = take(torch.arange(3), sampled_from([long, short]))
    assert {tuple(one.tolist()) for one in drawn} == {(0, 1, 2, 3, 4), (0, 1)}


def test_sampled_from_takes_an_enum_class_and_strings() -> None:
    assert take(Color.RED, sampled_from(Color)) == [Color.BLUE]
    assert set(take("a", sampled_from(["a", "b", "c"]))) == {"b", "c"}


def test_optional_draws_none_and_values() -> None:
    drawn = take(torch.rand(2), optional(floats(0, 1)))
    assert any(one is None for one in drawn)
    assert all(one is None or bool((one <= 1).all()) for one in drawn)


def test_a_declared_domain_rules_out_the_none_of_the_annotation() -> None:
    def model(mask: torch.Tensor | None = None) -> Any:
        return mask

    def drawn(declared: Any) -> list[Any]:
        stream = generate(model, Call((torch.ones(3, dtype=torch.long),)), declared, None, seed=0)
        return [call.args[0] for (call,) in islice(stream, 30)]

    assert any(one is None for one in drawn(None))
    assert not any(one is None for one in drawn({"mask": integers(0, 1)}))
    assert any(one is None for one in drawn({"mask": optional(integers(0, 1))}))


def test_optional_gives_values_to_an_argument_that_is_none() -> None:
    mask = torch.ones(2)
    assert any(one is mask or one is not None for one in take(None, optional(sampled_from([mask]))))


def test_a_function_gets_the_generator_and_is_repeatable_even_if_it_ignores_it() -> None:
    def given(generator: Any) -> Any:
        return torch.rand(2, generator=generator) + torch.rand(2)

    example = torch.rand(2)
    state = torch.get_rng_state()
    first, second = take(example, given, 4), take(example, given, 4)
    assert torch.equal(torch.stack(first), torch.stack(second))
    assert torch.equal(state, torch.get_rng_state())


def test_a_strategy_for_whole_values_and_one_for_elements() -> None:
    arrays = hypothesis.extra.numpy.arrays(np.float32, (2, 3), elements=st.floats(0, 1, width=32))
    drawn = take(torch.rand(2, 3), arrays)
    assert all(one.shape == (2, 3) and one.dtype == torch.float32 for one in drawn)
    elements = take(torch.rand(2, 3), st.floats(0.25, 0.75))
    assert all(bool(((one >= 0.25) & (one <= 0.75)).all()) for one in elements)
    assert torch.equal(torch.stack(elements), torch.stack(take(torch.rand(2, 3), st.floats(0.25, 0.75))))


def test_a_strategy_leaves_global_randomness_alone() -> None:
    import random

    before = random.getstate(), torch.get_rng_state()
    take(3, st.integers(0, 1000), 50)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


IDS = torch.tensor([3, 4])
HALF = torch.zeros(2, dtype=torch.float16)


@pytest.mark.parametrize(
    ("value", "domain", "said"),
    [
        (IDS, floats(0, 9), r"use integers\(low, high\)"),
        (torch.tensor([True]), integers(0, 1), r"use booleans\(\)"),
        (torch.tensor([True]), floats(0, 1), r"use booleans\(\)"),
        (IDS, booleans(), r"use integers\(0, 1\)"),
        (HALF, floats(0, 1e6), "65504"),
        (torch.zeros(1, dtype=torch.uint8), integers(-1, 5), "0 to 255"),
        (torch.rand(2) + 5, floats(0, 1), r"holds 5\.\d+, outside its declared domain floats\(0, 1\)"),
        (IDS, integers(0, 3), "holds 4, outside"),
        (torch.tensor([float("nan")]), floats(0, 1), "holds nan"),
        (torch.tensor([0.5]), sampled_from([0.25]), "holds 0.5"),
        (4, integers(0, 3), "holds 4"),
        ("c", sampled_from(["a"]), "holds 'c'"),
        ("c", sampled_from(["c", 1]), "list values of one type"),
        (IDS, sampled_from([1.5, 3, 4]), "1.5 is no value of that dtype"),
        (IDS, sampled_from([torch.rand(2)]), r"write tensor\.to\(torch\.int64\)"),
        (3, floats(0, 9), "pass the example as a float"),
        (0.5, integers(0, 9), r"use floats\(low, high\)"),
        (True, integers(0, 1), r"for a flag use booleans\(\)"),
        ("text", floats(0, 1), r"use sampled_from\(\[\.\.\.\]\)"),
        (None, floats(0, 1), "pass an example that has it"),
        (None, optional(), "optional.sampled_from"),
        (IDS, [3, 4], r"write sampled_from\(\[\.\.\.\]\)"),
        (IDS, 7, r"write sampled_from\(\[7\]\)"),
        (IDS, torch.nn.Identity, "not the class Identity"),
        (IDS, lambda generator: 3, "gave 3, the example's x is a tensor"),
        (IDS, lambda generator: torch.rand(2, generator=generator), "draw with dtype=torch.int64"),
        (IDS, lambda generator: dict[str, int]()["key"], "raised KeyError"),
        (IDS, st.nothing(), "has no value"),
        (IDS, st.floats(0, 1), "is a torch.int64 tensor"),
        (3, lambda generator: "3", "is of type int"),
    ],
)
def test_a_domain_that_does_not_fit_is_an_error_before_anything_is_drawn(value: Any, domain: Any, said: Any) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        generate(lambda x: x, Call((value,)), {"x": domain}, None, seed=0)
    assert "x" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: floats(2, 1), r"write floats\(1, 2\)"),
        (lambda: floats(float("nan"), 1), "low is not a finite number"),
        (lambda: floats(0, float("inf")), "high is not a finite number"),
        (lambda: floats("0", 1), "low is not a finite number"),  # type: ignore[arg-type]
        (lambda: integers(0, 1.5), "high is not a 64-bit integer"),  # type: ignore[arg-type]
        (lambda: integers(5, 3), r"write integers\(3, 5\)"),
        (lambda: integers(0, 2**64), "64-bit"),
        (lambda: sampled_from([]), "nothing to draw from"),
        (lambda: sampled_from("abc"), "pass a list"),
        (lambda: sampled_from(3), "pass a list"),  # type: ignore[arg-type]
    ],
)
def test_a_domain_that_makes_no_sense_is_an_error(make: Any, said: Any) -> None:
    with pytest.raises(UsageError, match=said):
        make()


def test_an_unknown_argument_lists_the_accepted_names() -> None:
    def model(x: Any, batch: Any) -> Any:
        return x

    with pytest.raises(UsageError, match=r"'y', which is no argument.*Accepted: x, batch, batch\['ids'\]"):
        generate(model, Call((torch.rand(1), {"ids": IDS})), {"y": floats(0, 1)}, None, seed=0)


def test_a_domain_goes_to_the_leaves_of_a_container_that_it_fits_and_to_a_path() -> None:
    def model(batch: Any) -> Any:
        return batch

    batch = {"ids": IDS, "pair": [torch.rand(2), torch.rand(2)]}
    declared = {"batch": floats(0, 1), 'batch["ids"]': integers(3, 5), "batch['pair'][1]": floats(0.0, 2.0)}
    seen = [calls[0].args[0] for calls in islice(generate(model, Call((batch,)), declared, None, seed=0), 40)]
    assert {int(n) for one in seen for n in one["ids"]} == {3, 4, 5}
    assert max(float(one["pair"][0].max()) for one in seen) <= 1
    assert 1 < max(float(one["pair"][1].max()) for one in seen) <= 2
    with pytest.raises(UsageError, match="fits none of the values"):
        generate(model, Call((batch,)), {"batch": booleans()}, None, seed=0)


def test_a_default_that_the_example_leaves_out_can_be_declared() -> None:
    def model(x: Any, scale: Any = 2.0) -> Any:
        return x * scale

    calls = [c for (c,) in islice(generate(model, Call((IDS,)), {"scale": floats(1, 4)}, None, seed=0), 20)]
    assert {1.0, 4.0} <= {call.kwargs.get("scale", 2.0) for call in calls}
