"""The stream of inputs: deterministic, varied, like the example in all but the values."""

from __future__ import annotations

import dataclasses
import enum
import time
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pytest
import torch
from torch.export import Dim

from pytest_torchexport import floats
from pytest_torchexport.inputs.draw import generate
from pytest_torchexport.inputs.shapes import normalise
from pytest_torchexport.inputs.variables import digest
from pytest_torchexport.subject.call import Call

if TYPE_CHECKING:
    from collections.abc import Callable


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor | None


@dataclasses.dataclass
class Batch:
    ids: torch.Tensor
    names: list[str]


class Mode(enum.Enum):
    FAST = "fast"
    EXACT = "exact"


def one(x: Any) -> Any:
    return x


def two(x: Any, y: Any) -> Any:
    return x, y


def stream(model: Any, *args: Any, count: Any = 30, seed: Any = 0, **kwargs: Any) -> Any:
    return [calls[0] for calls in islice(generate(model, Call(args, kwargs), None, None, seed=seed), count)]


def values(example: Any, count: Any = 60, seed: Any = 0) -> Any:
    return [call.args[0] for call in stream(one, example, count=count, seed=seed)]


def fingerprints(calls: Any) -> Any:
    return [digest((call.args, dict(call.kwargs))) for call in calls]


def test_the_same_seed_gives_the_same_inputs_and_another_one_others() -> None:
    x, y = torch.rand(3, 4), torch.randint(0, 9, (3,))
    first = fingerprints(stream(two, x, y, seed=1))
    torch.manual_seed(999)
    assert fingerprints(stream(two, x, y, seed=1)) == first
    assert fingerprints(stream(two, x, y, seed=2)) != first


def test_the_global_generator_is_left_alone() -> None:
    x, y = torch.rand(3, 4), torch.ones(3, dtype=torch.bool)
    state = torch.get_rng_state()
    stream(two, x, y)
    assert torch.equal(state, torch.get_rng_state())


def test_special_and_random_draws_come_in_turns_and_say_what_they_are() -> None:
    kinds = [call.kind for call in stream(two, torch.rand(3, 4), torch.randn(3, 4), count=10)]
    assert 4 <= kinds.count("special") <= 6
    assert kinds.count("special") + kinds.count("random") == 10
    labels = [call.label for call in stream(two, torch.rand(3, 4), torch.randn(3, 4), count=10)]
    assert "x, y = negated" in labels
    assert any(label.startswith("random") for label in labels)


def test_no_input_comes_twice_and_none_is_the_example() -> None:
    x = torch.tensor([True, False])
    made = stream(one, x, count=1000)
    assert len(set(fingerprints(made))) == len(made) == 3


@pytest.mark.parametrize("args", [(), (None,), ("text",), (torch.zeros(0, dtype=torch.int64),)])
def test_the_stream_ends_where_nothing_can_vary(args: Any) -> None:
    def model(*args: Any) -> Any:
        return args

    assert list(generate(model, Call(args), None, None, seed=0)) == []


def test_a_decision_on_the_sign_the_size_or_the_order_goes_both_ways_early() -> None:
    decisions: dict[str, Callable[[torch.Tensor], bool]] = {
        "sum": lambda x: bool(x.sum() > 0),
        "large": lambda x: bool(x.abs().max() > 5),
        "first row against last": lambda x: bool(x[0].sum() > x[-1].sum()),
    }
    for name, decide in decisions.items():
        assert {decide(x) for x in values(torch.rand(3, 4), 10)} == {True, False}, name


def test_values_are_finite_and_not_out_of_all_reason() -> None:
    for example in (torch.rand(20, 5), 1e4 * torch.randn(20, 5), torch.full((3,), 1e-6), torch.zeros(4, 4)):
        largest = max(float(one.abs().max()) for one in values(example, 100))
        assert largest <= 100 * max(float(example.abs().max()), 1.0)


def test_half_precision_does_not_overflow() -> None:
    assert all(bool(one.isfinite().all()) for one in values(torch.full((5,), 60000.0).half()))


def test_structure_of_the_rows_is_kept_by_most_draws() -> None:
    unit = torch.nn.functional.normalize(torch.randn(6, 5), dim=-1)
    onehot = torch.nn.functional.one_hot(torch.arange(6) % 5, 5).float()
    ascending = torch.arange(12.0).reshape(2, 6)
    structures: tuple[tuple[torch.Tensor, Callable[[torch.Tensor], bool]], ...] = (
        (unit, lambda x: torch.allclose(x.norm(dim=-1), torch.ones(6), atol=1e-4)),
        (onehot, lambda x: bool(((x == 0) | (x == 1)).all() and (x.sum(-1) == 1).all())),
        (ascending, lambda x: bool((x.diff(dim=-1) >= 0).all() and (x == x.round()).all())),
    )
    for example, holds in structures:
        random = [call.args[0] for call in stream(one, example, count=80) if call.kind == "random"]
        assert sum(holds(x) for x in random) > len(random) / 2


def test_integers_stay_where_an_embedding_takes_them() -> None:
    for drawn in values(torch.tensor([[7, 101, 30]])):
        assert int(drawn.min()) >= 0
        assert int(drawn.max()) <= 101


def test_a_negative_integer_is_only_one_that_the_example_has() -> None:
    drawn = torch.stack(values(torch.tensor([3, -100, 8, 2])))
    assert set(drawn[drawn < 0].tolist()) == {-100}


def test_a_mask_stays_a_mask_and_has_other_lengths() -> None:
    drawn = values(torch.ones(2, 6, dtype=torch.int64))
    assert all(set(one.unique().tolist()) <= {0, 1} for one in drawn)
    assert len({int(one.sum()) for one in drawn}) > 4
    flags = values(torch.ones(2, 6, dtype=torch.bool))
    assert any(not bool(one.any()) for one in flags)


def test_random_masks_leave_something_in_each_row_if_the_example_does() -> None:
    made = stream(one, torch.ones(3, 5, dtype=torch.bool), count=60)
    assert all(bool(call.args[0].any(-1).all()) for call in made if call.kind == "random")


def test_the_stream_goes_on_as_long_as_there_is_something_new() -> None:
    assert len(stream(one, torch.rand(2), count=400)) == 400


def test_a_flipped_flag_stays_flipped_through_a_sequence() -> None:
    sequences = islice(generate(two, Call((torch.rand(2), True)), None, None, seed=0, calls=3), 30)
    flags = [[call.args[1] for call in calls] for calls in sequences]
    assert [False] * 3 in flags
    assert all(len(set(one)) == 1 for one in flags)


def test_optional_and_flags_vary_in_special_draws_only() -> None:
    def model(
        x: Any, mask: torch.Tensor | None, flag: bool, mode: Literal["a", "b"], n: int, kind: Any = Mode.FAST
    ) -> Any:
        return x

    calls = stream(model, torch.rand(2), torch.rand(2), True, "a", 3, Mode.FAST, count=60)
    special = [call for call in calls if call.kind == "special"]
    assert any(call.args[1] is None for call in special)
    assert any(call.args[2] is False for call in special)
    assert any(call.args[3] == "b" for call in special)
    assert any(call.args[4] == 4 for call in special)
    assert any(call.args[5] is Mode.EXACT for call in special)
    assert all(call.args[2:] == (True, "a", 3, Mode.FAST) for call in calls if call.kind == "random")


def test_an_annotation_that_cannot_be_resolved_costs_only_the_hint() -> None:
    def model(x: Nowhere, flag: bool = True) -> Any:  # type: ignore[name-defined]  # noqa: F821
        return x

    assert len(stream(model, torch.rand(2), True, count=5)) == 5


def test_an_unannotated_number_stays_as_it_is() -> None:
    assert {call.args[1] for call in stream(two, torch.rand(2), 5)} == {5}


def test_two_flags_that_are_one_object_to_python_are_flipped_one_by_one() -> None:
    def model(x: Any, a: Any, b: Any) -> Any:
        return x

    seen = {call.args[1:] for call in stream(model, torch.rand(2), True, True)}
    assert {(False, True), (True, False)} <= seen


def test_arguments_vary_together_and_alone() -> None:
    x, y = torch.rand(2, 2), torch.rand(2, 2)
    changed = {(not torch.equal(c.args[0], x), not torch.equal(c.args[1], y)) for c in stream(two, x, y, count=60)}
    assert changed == {(True, True), (True, False), (False, True)}


ODD = {
    "0-d": torch.tensor(3.0),
    "0-d integer": torch.tensor(3),
    "empty": torch.rand(0, 3),
    "empty integers": torch.zeros(0, 3, dtype=torch.int64),
    "half": torch.rand(3).half(),
    "bfloat16": torch.rand(3, 2).bfloat16(),
    "float8": torch.rand(3, 2).to(torch.float8_e4m3fn),
    "complex": torch.randn(3, 2, dtype=torch.complex64),
    "complex conjugate": torch.randn(3, 2, dtype=torch.complex64).conj(),
    "uint8": torch.randint(0, 255, (3, 4), dtype=torch.uint8),
    "uint16": torch.tensor([1, 5]).to(torch.uint16),
    "bool": torch.rand(3) > 0.5,
    "nan": torch.tensor([float("nan"), 1.0]),
    "infinite": torch.full((3,), float("-inf")),
    "expanded": torch.rand(1, 4).expand(3, 4),
    "transposed": torch.rand(3, 4).t(),
    "strided": torch.rand(8, 4)[::2, 1:3],
    "channels last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "overlapping": torch.rand(6).as_strided((3, 3), (1, 1)),
    "sparse": torch.eye(3).to_sparse(),
    "gradient": torch.rand(3, requires_grad=True),
    "gradient of a view": torch.rand(3, 4, requires_grad=True).t(),
    "parameter": torch.nn.Parameter(torch.rand(2)),
    "constant": torch.ones(3, 3),
    "one element": torch.rand(1),
}


@pytest.mark.parametrize("name", ODD)
def test_a_draw_is_like_the_example_in_all_but_the_values(name: Any) -> None:
    example = ODD[name]
    made = values(example, 40)
    assert made or not example.numel()
    for drawn in made:
        assert (drawn.dtype, drawn.shape, drawn.layout) == (example.dtype, example.shape, example.layout)
        assert drawn.requires_grad == example.requires_grad
        assert drawn.is_leaf
        if example.layout is torch.strided and name != "overlapping":
            assert drawn.stride() == example.stride()
    assert len({digest(drawn) for drawn in made}) == len(made)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("example", ["quantized", "nested", "meta", "object"])
def test_what_cannot_be_drawn_stays_as_it_is(example: Any) -> None:
    thing = {
        "quantized": lambda: torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.quint8),
        "nested": lambda: torch.nested.nested_tensor([torch.rand(2), torch.rand(3)], layout=torch.jagged),
        "meta": lambda: torch.rand(3, device="meta"),
        "object": object,
    }[example]
    value = thing()
    assert all(call.args[0] is value for call in stream(two, value, torch.rand(2), count=10))


def test_containers_and_their_types_are_kept() -> None:
    def model(pair: Any, batch: Any, extra: Any) -> Any:
        return pair

    example = (Pair(torch.rand(2), None), Batch(torch.tensor([1, 2]), ["a"]), {"k": [torch.rand(1), 3]})
    for call in stream(model, *example, count=20):
        pair, batch, extra = call.args
        assert isinstance(pair, Pair)
        assert pair.right is None
        assert isinstance(batch, Batch)
        assert batch.names == ["a"]
        assert list(extra) == ["k"]
        assert extra["k"][1] == 3


def test_one_tensor_in_two_arguments_stays_one_tensor() -> None:
    x = torch.rand(3)
    assert all(call.args[0] is call.args[1] for call in stream(two, x, x, count=15))


def test_a_sequence_starts_with_the_example_repeated_and_varies_from_call_to_call() -> None:
    x = torch.rand(3)
    first, *others = islice(generate(one, Call((x,)), None, None, seed=0, calls=3), 12)
    assert all(torch.equal(call.args[0], x) for call in first)
    assert all(len(calls) == 3 for calls in others)
    assert all(len({digest(call.args) for call in calls}) > 1 for calls in others)


def test_the_example_itself_is_never_changed() -> None:
    x, ids = torch.rand(3, 4), torch.arange(4)
    before = digest((x, ids))
    declared = {"x": floats(0, 1)}
    list(islice(generate(two, Call((x, ids)), declared, None, seed=0), 40))
    assert digest((x, ids)) == before


def test_a_keyword_argument_stays_one() -> None:
    (call,) = stream(two, torch.rand(2), y=torch.rand(2), count=1)
    assert list(call.kwargs) == ["y"]


def test_an_image_takes_milliseconds() -> None:
    image = torch.rand(1, 3, 224, 224)
    started = time.perf_counter()
    made = list(islice(generate(one, Call((image,)), None, None, seed=0), 20))
    # Measured at about 5 ms a draw; the bound leaves room for a loaded machine.
    assert time.perf_counter() - started < 20 * 0.05
    assert len(made) == 20


def test_sizes_vary_with_the_values() -> None:
    shapes = normalise(one, Call((torch.rand(4, 3),)), {"x": {0: Dim("b")}})
    made = [c[0] for c in islice(generate(one, Call((torch.rand(4, 3),)), None, shapes, seed=0), 10)]
    assert {"special", "random"} == {call.kind for call in made}
    assert len({call.args[0].shape for call in made}) > 3
    assert any("b = 1" in call.label for call in made)


@pytest.mark.parametrize("name", [name for name in ODD if name != "overlapping"])
def test_the_default_device_of_the_user_changes_nothing(name: Any) -> None:
    def model(x: Any, flag: bool, ids: Any) -> Any:
        return x

    spec = {"x": None, "flag": None, "ids": {0: Dim("n", max=9)}}
    example = Call((ODD[name], True, torch.tensor([3, 0, 7])))
    shapes = normalise(model, example, spec)
    declared = {"ids": lambda generator: torch.randint(8, (3,), generator=generator)} if name == "half" else None

    def drawn() -> Any:
        made = [calls[0] for calls in islice(generate(model, example, declared, shapes, seed=0), 20)]
        return fingerprints(made), [str(call.args[0].device) for call in made]

    expected = drawn()
    torch.set_default_device("meta")  # where nothing can be computed, whatever is made there is noticed
    try:
        assert drawn() == expected
    finally:
        torch.set_default_device(None)
