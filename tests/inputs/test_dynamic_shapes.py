"""`dynamic_shapes` by argument name, and sizes that stay inside what the user declared."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch.export import Dim, ShapesCollection

from pytest_torchexport import UsageError
from pytest_torchexport.inputs.draw import generate
from pytest_torchexport.inputs.shapes import normalise
from pytest_torchexport.subject.call import Call


def one(x: Any) -> Any:
    return x


def two(x: Any, y: Any) -> Any:
    return x, y


def calls_of(model: Any, example: Any, spec: Any, count: Any = 60, seed: Any = 0) -> Any:
    shapes = normalise(model, example, spec)
    return [calls[0] for calls in islice(generate(model, example, None, shapes, seed=seed), count)]


def sizes_of(spec: Any, size: Any, count: Any = 60, dim: Any = 0) -> Any:
    shape = [size, 3] if dim == 0 else [3, size]
    return {call.args[0].shape[dim] for call in calls_of(one, Call((torch.rand(shape),)), spec, count)}


@pytest.mark.parametrize("form", [lambda b: {"x": {0: b}}, lambda b: ({0: b},), lambda b: [(b, None)]])
def test_every_form_means_the_same(form: Any) -> None:
    batch = Dim("batch")
    assert normalise(one, Call((torch.rand(4, 3),)), form(batch)) == {"x": {0: batch}}


def test_a_negative_index_counts_from_the_end_and_a_static_entry_is_dropped() -> None:
    assert normalise(one, Call((torch.rand(4, 3),)), {"x": {-1: Dim.AUTO, 0: Dim.STATIC}}) == {"x": {1: Dim.AUTO}}
    assert normalise(one, Call((torch.rand(4, 3),)), {"x": {0: Dim.STATIC, 1: 3}}) is None
    assert normalise(one, Call((torch.rand(4, 3),)), None) is None


def test_containers_keep_their_structure_because_torch_export_asks_for_it() -> None:
    batch = Dim("batch")
    example = Call((torch.rand(4), {"a": torch.rand(4), "b": [torch.rand(2), None]}))
    expected = {"x": {0: batch}, "y": {"a": {0: batch}, "b": [None, None]}}
    assert normalise(two, example, {"x": {0: batch}, "y": {"a": {0: batch}}}) == expected


def test_the_parts_of_variadic_arguments_are_named_as_bind_names_them() -> None:
    def model(*args: Any, **kwargs: Any) -> Any:
        return args

    batch = Dim("batch")
    example = Call((torch.rand(4), torch.rand(4)), {"k": torch.rand(4)})
    expected = {"args_0": {0: batch}, "args_1": None, "k": {0: batch}}
    assert normalise(model, example, {"args": ({0: batch}, None), "kwargs": {"k": {0: batch}}}) == expected
    assert normalise(model, example, {"args_0": {0: batch}, "k": {0: batch}}) == expected


def test_a_shapes_collection_is_read() -> None:
    x = torch.rand(4, 3)
    collection: Any = ShapesCollection()  # type: ignore[no-untyped-call]
    collection[x] = {0: Dim.DYNAMIC}
    assert normalise(one, Call((x,)), collection) == {"x": {0: Dim.DYNAMIC}}


X = torch.rand(4, 3)


@pytest.mark.parametrize(
    ("model", "args", "spec", "said"),
    [
        (one, (X,), {"z": {0: Dim("b")}}, "names the argument 'z'.*Accepted: x"),
        (one, (X,), {"x": {2: Dim("b")}}, "dimension 2.*has 2"),
        (one, (X,), {"x": {0: "batch"}}, "has 'batch' for dimension 0. Accepted: a Dim"),
        (one, (X,), {"x": {0: Dim("b", min=5)}}, "size 4 in dimension 0, outside"),
        (one, (X,), {"x": {0: Dim.DYNAMIC(max=3)}}, "size 4 in dimension 0, outside"),
        (one, (X,), {"x": {0: 5}}, "fixes dimension 0 to 5"),
        (one, (X,), {"x": (Dim("b"),)}, "1 entries.*has 2"),
        (one, (X,), "x", "is str: pass a dict"),
        (one, (X,), {"x": Dim("b")}, "give a dict by dimension"),
        (one, (X,), {"x": {1: 2 * Dim("b")}}, r"size 3 in dimension 1, which 2\*b can never be"),
        (two, (X, X), ({0: Dim("b")},), "has 1 entries, the example has 2 arguments"),
        (two, (X, torch.rand(2)), {"x": {0: Dim("b")}, "y": {0: Dim("b")}}, "is 4 by dimension 0 of x but 2"),
        (two, (X, "text"), {"y": {0: Dim("b")}}, "only tensors and ints can vary"),
        (two, (X, [X]), {"y": [None, None]}, "2 entries, the example has 1"),
        (two, (X, {"a": X}), {"y": {"b": None}}, "'b', which the example does not have"),
    ],
)
def test_a_wrong_declaration_is_an_error(model: Any, args: Any, spec: Any, said: Any) -> None:
    with pytest.raises(UsageError, match=said):
        normalise(model, Call(args), spec)


def test_sizes_stay_in_their_bounds_and_reach_them() -> None:
    assert {3, 9} <= sizes_of({"x": {0: Dim("b", min=3, max=9)}}, 4) <= set(range(3, 10))
    assert {2, 6} <= sizes_of({"x": {0: Dim.DYNAMIC(max=6)}}, 4) <= set(range(2, 7))


def test_where_no_minimum_is_given_a_named_dim_goes_down_to_one_and_a_hint_to_two() -> None:
    assert min(sizes_of({"x": {0: Dim("b")}}, 4)) == 1
    assert min(sizes_of({"x": {0: Dim.AUTO}}, 4)) == 2


def test_an_empty_size_is_drawn_only_where_a_hint_asks_for_it() -> None:
    assert 0 in sizes_of({"x": {0: Dim.DYNAMIC(min=0)}}, 4)
    assert 0 not in sizes_of({"x": {0: Dim("b", min=0)}}, 4)


def test_a_hint_at_a_size_that_torch_export_specialises_does_not_vary() -> None:
    assert sizes_of({"x": {0: Dim.AUTO}}, 1) == {1}


def test_odd_even_and_prime_sizes_come_early() -> None:
    sizes = sizes_of({"x": {0: Dim("b")}}, 8, count=20)
    assert any(size % 2 for size in sizes)
    assert any(not size % 2 and size != 8 for size in sizes)
    assert sizes & {11, 13, 17, 19}


def test_one_dim_has_one_size_everywhere_and_derived_ones_follow() -> None:
    batch = Dim("batch", max=20)
    example = Call((torch.rand(4, 8), torch.rand(9)))
    for call in calls_of(two, example, {"x": {0: batch, 1: 2 * batch}, "y": {0: 2 * batch + 1}}):
        x, y = call.args
        assert x.shape[1] == 2 * x.shape[0]
        assert y.shape[0] == 2 * x.shape[0] + 1


def test_hints_at_equal_sizes_are_mostly_equal() -> None:
    example = Call((torch.rand(5, 2), torch.rand(5, 3)))
    calls = calls_of(two, example, {"x": {0: Dim.AUTO}, "y": {0: Dim.AUTO}})
    sizes = [(call.args[0].shape[0], call.args[1].shape[0]) for call in calls]
    varied = [pair for pair in sizes if pair != (5, 5)]
    assert 0.6 < sum(x == y for x, y in varied) / len(varied) < 1


def test_work_is_bounded_where_the_range_is_not() -> None:
    image = torch.rand(1, 3, 64, 64)
    spec = {"x": {0: Dim("b"), 2: Dim("h"), 3: Dim("w")}}
    assert max(call.args[0].numel() for call in calls_of(one, Call((image,)), spec, 30)) <= 4 * image.numel()


def test_sizes_are_often_multiples_that_strided_layers_take() -> None:
    sizes = [call.args[0].shape[0] for call in calls_of(one, Call((torch.rand(32, 3),)), {"x": {0: Dim("b")}}, 60)]
    assert sum(size % 32 == 0 and size != 32 for size in sizes) >= 3


def test_integers_that_may_index_a_dimension_shrink_with_it() -> None:
    example = Call((torch.rand(10, 2), torch.tensor([0, 3, 9])))
    for call in calls_of(two, example, {"x": {0: Dim("n")}, "y": None}):
        assert int(call.args[1].max()) < call.args[0].shape[0]


def test_an_int_argument_with_a_hint_varies() -> None:
    calls = calls_of(two, Call((torch.rand(3), 7)), {"x": None, "y": Dim.DYNAMIC(min=4, max=9)})
    assert {4, 9} <= {call.args[1] for call in calls} <= set(range(4, 10))


def test_every_argument_of_a_sequence_has_the_same_sizes() -> None:
    shapes = normalise(one, Call((torch.rand(4, 3),)), {"x": {0: Dim("b")}})
    for calls in islice(generate(one, Call((torch.rand(4, 3),)), None, shapes, seed=0, calls=3), 20):
        assert len({call.args[0].shape for call in calls}) == 1


def test_memory_order_follows_a_size_that_varies() -> None:
    example = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    for call in calls_of(one, Call((example,)), {"x": {0: Dim("b")}}, 20):
        assert call.args[0].is_contiguous(memory_format=torch.channels_last)
