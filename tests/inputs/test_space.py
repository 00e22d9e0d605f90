"""What a search may try instead of the example, and the calls that are made from it."""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NotRequired, TypedDict

import pytest
import torch
from torch.export import Dim

from pytest_torchexport import UsageError, booleans, floats, integers, optional, sampled_from
from pytest_torchexport.inputs.options import LEFT_OUT
from pytest_torchexport.inputs.shapes import normalise
from pytest_torchexport.inputs.space import Space
from pytest_torchexport.subject.call import Call, bind
from pytest_torchexport.subject.equality import identical

if TYPE_CHECKING:
    from pytest_torchexport.inputs.limits import Numbers

INF = math.inf


class Mode(enum.Enum):
    SUM = 1
    MEAN = 2


class Free(torch.nn.Module):
    """Takes anything."""

    def forward(self, x: Any, y: Any = None, **others: Any) -> Any:
        return x


class Typed(torch.nn.Module):
    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None = None,
        n: int = 3,
        *,
        flag: bool = False,
        mode: Literal["a", "b", "c"] = "a",
        kind: Mode = Mode.SUM,
        scale: float = 0.5,
        width=4,
        extra=None,
    ) -> torch.Tensor:
        return x


FREE, TYPED = Free(), Typed()
X = torch.arange(12.0).reshape(3, 4) / 8


def space(example: Call, domains: dict[str, Any] | None = None, shapes: Any = None, model: Any = FREE) -> Space:
    return Space.of(model, example, domains, normalise(model, example, shapes), seed=0)


def numbers(value: Any, domain: Any = None) -> Numbers | None:
    example = Call((X + 1, value))
    return space(example, {"y": domain} if domain is not None else None).numbers(example).get("y")


# --- limits ---------------------------------------------------------------------------------------------------------

IDS = torch.tensor([[3, 1, 7, 7]])

SPANS = {
    "floats": (X, None, (-INF, INF), (-INF, INF), "-"),
    "ids": (IDS, None, (0, 7), (-128, 2**19), "integral"),
    "negative ids": (IDS - 4, None, (-3, 3), (-128, 2**19), "integral"),
    "large ids": (IDS * 10**6, None, (0, 7 * 10**6), (-128, 14 * 10**6), "integral"),
    "a single integer": (torch.tensor(5), None, (0, 5), (-128, 4096), "integral"),
    "bytes": (IDS.to(torch.uint8), None, (0, 7), (0, 255), "integral"),
    "small": (IDS.to(torch.int8), None, (0, 7), (-128, 127), "integral"),
    "flags as integers": (IDS.clamp(0, 1), None, (0, 1), (-128, 2**19), "integral"),
    "mask": (IDS > 2, None, (0, 1), (0, 1), "integral boolean"),
    "declared floats": (X, floats(-2, 3), (-2, 3), (-2, 3), "declared"),
    "declared whole floats": (X, integers(-2, 3), (-2, 3), (-2, 3), "integral declared"),
    "declared ids": (IDS, integers(1, 9), (1, 9), (1, 9), "integral declared"),
    "declared mask": (IDS > 2, booleans(), (0, 1), (0, 1), "integral boolean declared"),
    "half": (X.half(), floats(0, 1.6), (0, 1.599609375), (0, 1.599609375), "declared"),
    "listed": (IDS, sampled_from([1, 3, 7]), (1, 7), (1, 7), "integral declared"),
    "Python float": (1.5, floats(0, 2), (0, 2), (0, 2), "declared"),
    "Python int": (3, integers(0, 2000), (0, 2000), (0, 2000), "integral declared"),
    "Python flag": (True, None, (0, 1), (0, 1), "integral boolean"),
}


@pytest.mark.parametrize(("value", "domain", "span", "reach", "what"), SPANS.values(), ids=list(SPANS))
def test_limits(value: Any, domain: Any, span: Any, reach: Any, what: str) -> None:
    found = numbers(value, domain)
    assert found is not None
    assert (found.low, found.high) == span
    assert found.reach == reach
    flags = [name for name in ("integral", "boolean", "declared") if getattr(found, name)]
    assert (" ".join(flags) or "-") == what
    if isinstance(value, torch.Tensor):
        assert found.value is value
    else:
        assert found.value.item() == value
        assert found.value.dim() == 0


NO_NUMBERS = {
    "complex": (torch.tensor([1j]), None),
    "sparse": (X.to_sparse(), None),
    "Python float that nobody describes": (1.5, None),
    "Python int that nobody describes": (4, None),
    "string": ("a", None),
    "member": (Mode.SUM, None),
    "none": (None, None),
    "whole tensors": (X, sampled_from([X, X + 1])),
    "code": (X, lambda generator: X + 1),
    "listed Python numbers": (3, sampled_from([3, 5])),
}


@pytest.mark.parametrize(("value", "domain"), NO_NUMBERS.values(), ids=list(NO_NUMBERS))
def test_what_has_no_numbers(value: Any, domain: Any) -> None:
    assert numbers(value, domain) is None


def test_annotated_python_numbers_vary_and_literal_ones_do_not() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Any, n: int, scale: float, level: Literal[1, 2]) -> Any:
            return x

    example = Call((X, 3, 0.5, 1))
    found = space(example, model=Model()).numbers(example)
    assert list(found) == ["x", "n", "scale"]
    assert (found["n"].low, found["n"].high, found["n"].reach) == (0, 4, (-128, 4096))
    assert (found["scale"].low, found["scale"].high) == (-INF, INF)


def test_an_accelerator_is_never_given_an_index_out_of_range() -> None:
    from pytest_torchexport.inputs.base import Span
    from pytest_torchexport.inputs.limits import Limits

    class Elsewhere(torch.Tensor):
        device = torch.device("cuda")

    there = IDS.as_subclass(Elsewhere)
    limits = Limits.of(there, Span(0, 7, integral=True), declared=False)
    assert limits.reach == (0, 7)
    assert limits.below(4).reach == (0, 4)
    here = Limits.of(IDS, Span(0, 7, integral=True), declared=False)
    assert (here.below(4).high, here.below(4).reach) == (4, (-128, 2**19))


def test_paths_go_into_containers_and_a_shared_tensor_counts_once() -> None:
    example = Call(({"a": X, "b": [X, IDS]}, IDS))
    found = space(example).numbers(example)
    assert {path: one.value for path, one in found.items()} == {"x['a']": X, "x['b'][1]": IDS}


def test_another_call_may_lack_an_argument_or_hold_another() -> None:
    example = Call((X, IDS), {"mask": X})
    made = space(example, {"y": integers(0, 9), "mask": floats(0, 2)})
    assert list(made.numbers(Call((X,), {"mask": None}))) == ["x"]
    found = made.numbers(Call((X[:1], X.double()), {"new": IDS + 100, "mask": X[:2]}))
    assert list(found) == ["x", "y", "new", "mask"]
    assert (found["y"].low, found["y"].declared) == (-INF, False)
    assert (found["new"].high, found["mask"].high) == (107, 2)


# --- values ---------------------------------------------------------------------------------------------------------


def put(value: Any, wanted: Any, domain: Any = None) -> Any:
    example = Call((X, value))
    made = space(example, {"y": domain} if domain is not None else None)
    call = made.with_values(example, {"y": torch.as_tensor(wanted)}, "tried")
    assert call.args[0] is X
    assert (call.kind, call.label) == ("branch", "tried")
    return call.args[1]


NAN = math.nan
BIG = torch.tensor([2**53 + 1, 5])

PUTS = {
    "floats": (X[0], [1e30, -5.5, NAN, INF], None, [1e30, -5.5, NAN, INF]),
    "half stays finite": (X[0].half(), [1e30, -1e30, NAN, INF], None, [65504.0, -65504.0, NAN, INF]),
    "within limits": (X[0], [9.0, -9.0, 0.3, NAN], floats(-2, 1), [1.0, -2.0, 0.3, X[0, 3].item()]),
    "whole": (X[0] * 8, [0.4, 1.6, -9.0, 9.0], integers(-3, 8), [0.0, 2.0, -3.0, 8.0]),
    "ids from floats": (IDS[0], [1.6, 1e9, -1e9, NAN], None, [2, 2**19, -128, 7]),
    "ids from integers": (IDS[0], [9, 2**62, -(2**62), 0], None, [9, 2**19, -128, 0]),
    "declared ids": (IDS[0], [0, 99, 5, 6], integers(1, 7), [1, 7, 5, 6]),
    "all 64 bits": (BIG, [2**63 - 1, -(2**63)], integers(-(2**63), 2**63 - 1), [2**63 - 1, -(2**63)]),
    "bytes": (IDS[0].to(torch.uint8), [-1, 256, 3, 4], None, [0, 255, 3, 4]),
    "flags": (IDS[0] > 2, [0.0, 0.6, 0.4, 1.0], None, [False, True, False, True]),
    "flags from flags": (IDS[0] > 2, [False, True, False, True], None, [False, True, False, True]),
    "flag that is NaN": (IDS[0] > 2, [NAN] * 4, None, [True, False, True, True]),
    "the nearest choice": (IDS[0], [2, 2.6, -9, 99], sampled_from([1, 3, 7]), [1, 3, 1, 7]),
    "the nearest number": (X[0] * 0, [INF, 0.4, NAN, 9], sampled_from([0.0, 1.0, INF]), [INF, 0.0, 0.0, 1.0]),
    "one for all": (X[0], 2.5, None, [2.5] * 4),
}


@pytest.mark.parametrize(("value", "wanted", "domain", "expected"), PUTS.values(), ids=list(PUTS))
def test_values_are_put_within_the_limits(value: torch.Tensor, wanted: Any, domain: Any, expected: Any) -> None:
    before = value.clone()
    made = put(value, wanted, domain)
    assert identical(made, torch.tensor(expected, dtype=value.dtype))
    assert identical(value, before)


def test_what_stays_the_same_stays_to_the_bit() -> None:
    value = torch.tensor([2**53 + 1, 7])
    assert put(value, value.double() + torch.tensor([0.0, 1.0]), integers(0, 2**60)).tolist() == [2**53 + 1, 8]
    outside = torch.tensor([900000, 3])
    example = Call((X, IDS[0, :2]))
    made = space(example).with_values(Call((X, outside)), {"y": torch.tensor([900000.0, 900000.0])}, "")
    assert made.args[1].tolist() == [900000, 2**19]


PYTHON = [
    (1.5, floats(0, 2), 9.0, 2.0),
    (3, integers(0, 9), 4.6, 5),
    (3, integers(0, 9), -4, 0),
    (False, None, 1.0, True),
    (True, None, 0.2, False),
]


@pytest.mark.parametrize(("value", "domain", "wanted", "expected"), PYTHON)
def test_python_numbers_stay_what_they_are(value: Any, domain: Any, wanted: float, expected: Any) -> None:
    made = put(value, wanted, domain)
    assert made == expected
    assert type(made) is type(value)


LAYOUTS = {
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "channels last": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "expanded": torch.arange(3.0).expand(4, 3),
    "strided": torch.arange(12.0)[::3],
    "with gradient": torch.ones(3, requires_grad=True),
    "double": torch.ones(3, dtype=torch.float64),
    "empty": torch.zeros(0, 3),
}


@pytest.mark.parametrize("value", LAYOUTS.values(), ids=list(LAYOUTS))
def test_layouts_stay(value: torch.Tensor) -> None:
    made = put(value, value.detach() * 2 + 1)
    assert made.stride() == value.stride()
    assert (made.dtype, made.requires_grad) == (value.dtype, value.requires_grad)
    assert identical(made.detach(), value.detach() * 2 + 1)


def test_gradients_do_not_come_along() -> None:
    wanted = (torch.ones(4, requires_grad=True) * 2).exp()
    made = put(X[0], wanted)
    assert made.grad_fn is None
    assert not made.requires_grad


def test_a_tensor_in_two_places_still_is() -> None:
    example = Call((X, {"again": X, "other": IDS}), {"also": X})
    made = space(example).with_values(example, {"x": X + 1}, "")
    assert made.args[0] is made.args[1]["again"] is made.kwargs["also"]
    assert made.args[1]["other"] is IDS
    assert identical(made.args[0], X + 1)
    again = space(example).with_values(example, {"y['again']": X + 2}, "")
    assert identical(again.args[0], X + 2)


def test_values_of_arguments_that_the_example_leaves_out() -> None:
    example = Call((X,))
    made = space(example, {"scale": floats(0, 9)}, model=TYPED)
    assert made.numbers(example)["scale"].value.item() == 0.5
    assert made.with_values(example, {"x": X + 1}, "").kwargs == {}
    assert made.with_values(example, {"scale": torch.tensor(20.0)}, "").kwargs == {"scale": 9.0}


def test_values_under_another_default_device() -> None:
    example = Call((X, IDS))
    made = space(example)
    with torch.device("meta"):
        call = made.with_values(example, {"x": X + 1, "y": IDS + 1}, "")
        assert made.numbers(call)["y"].high == 7
    assert identical(call.args[1], IDS + 1)


# --- options --------------------------------------------------------------------------------------------------------


def options(example: Call, domains: Any = None, model: Any = TYPED) -> dict[str, list[Any]]:
    return space(example, domains, model=model).alternatives()


def test_annotations_and_defaults_tell_options() -> None:
    left_out = {"flag": [True], "mode": ["b", "c"], "kind": [Mode.MEAN]}
    assert options(Call((X,))) == left_out
    passed = Call((X, X > 0, 5), {"flag": True, "mode": "c", "kind": Mode.MEAN, "scale": 2.0, "width": 3, "extra": X})
    assert options(passed) == {
        "mask": [None],
        "n": [6, 4, 0, 1],
        "flag": [False],
        "mode": ["a", "b"],
        "kind": [Mode.SUM],
        "scale": [4.0, 1.0, 0.0],
        "extra": [None],
    }


def test_declarations_tell_options() -> None:
    one, other = torch.ones(2), torch.zeros(2)
    domains = {
        "mask": sampled_from([one, other]),
        "n": integers(2, 5),
        "width": sampled_from([4, 8]),
        "scale": optional(floats(0, 1)),
        "flag": booleans(),
        "extra": optional(),
    }
    example = Call((X, one, 3), {"extra": X})
    found = options(example, domains)
    assert identical(found["mask"], [other])
    assert found["n"] == [2, 4, 5]
    assert found["width"] == [8]
    assert found["scale"] == [None]
    assert found["flag"] == [True]
    assert found["extra"] == [None]
    assert options(example, {"n": integers(0, 99), "mask": floats(0, 1), "extra": floats(0, 2)}).keys() == {
        *("flag", "mode", "kind"),
    }


class Given(TypedDict):
    ids: torch.Tensor
    mask: NotRequired[torch.Tensor]


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor | None = None


@dataclasses.dataclass
class Record:
    x: torch.Tensor
    mask: torch.Tensor | None = None
    kind: Mode = Mode.SUM
    way: Literal["up", "down"] = "up"


class Nested(torch.nn.Module):
    def forward(self, given: Given, pair: Pair, record: Record, boxes: list[torch.Tensor]) -> Any:
        return given


def test_containers_tell_options() -> None:
    example = Call(({"ids": IDS, "mask": IDS > 0}, Pair(X, X), Record(X, X), [X, X]))
    assert options(example, {"given['ids']": integers(0, 9)}, Nested()) == {
        "given['mask']": [LEFT_OUT],
        "pair.right": [None],
        "record.mask": [None],
        "record.kind": [Mode.MEAN],
        "record.way": ["down"],
    }
    assert options(example, {"given['ids']": optional()}, Nested())["given['ids']"] == [None, LEFT_OUT]


def test_an_option_is_put_in_its_place() -> None:
    example = Call(({"ids": IDS, "mask": IDS > 0}, Pair(X, X), Record(X, X), [X, X]))
    made = space(example, model=Nested())
    call = made.with_alternative(example, "record.kind", Mode.MEAN, "tried")
    assert call.args[2].kind is Mode.MEAN
    assert call.args[0] is example.args[0]
    assert (call.kind, call.label) == ("branch", "tried")
    without = made.with_alternative(example, "given['mask']", LEFT_OUT, "")
    assert list(without.args[0]) == ["ids"]
    assert list(example.args[0]) == ["ids", "mask"]
    back = made.with_alternative(without, "given['mask']", IDS < 0, "")
    assert identical(back.args[0], {"ids": IDS, "mask": IDS < 0})
    assert made.with_alternative(call, "pair.right", None, "").args[1].right is None


def test_arguments_come_and_go() -> None:
    example = Call((X,), {"mode": "b"})
    made = space(example, model=TYPED)
    call = made.with_alternative(example, "flag", True, "")
    assert call.kwargs == {"mode": "b", "flag": True}
    assert made.with_alternative(call, "mode", LEFT_OUT, "").kwargs == {"flag": True}
    positional = made.with_alternative(Call((X, X > 0)), "mask", None, "")
    assert positional.args == (X, None)
    assert made.with_alternative(positional, "mask", LEFT_OUT, "").args == (X,)


def test_none_stands_in_one_place_and_a_tensor_in_all() -> None:
    example = Call((X, X))
    made = space(example)
    assert made.with_alternative(example, "y", None, "").args == (X, None)
    other = X + 1
    assert made.with_alternative(example, "y", other, "").args == (other, other)


# --- sizes ----------------------------------------------------------------------------------------------------------

BATCH = Dim("batch", min=1, max=20)


def sized() -> tuple[Call, Space]:
    example = Call((X, torch.tensor([[2.0], [0.0], [3.0]])), {"state": {"h": torch.ones(6, 3), "free": torch.ones(3)}})
    shapes = {
        "x": {0: BATCH, 1: Dim.DYNAMIC},
        "y": {0: BATCH},
        "others": {"state": {"h": {0: 2 * BATCH, 1: None}, "free": None}},
    }
    return example, space(example, shapes=shapes)


def test_sizes_and_who_follows_them() -> None:
    example, made = sized()
    found = {name: (one.example, one.low, one.high) for name, one in made.sizes().items()}
    assert found == {"batch": (3, 1, 20), "x.shape[1]": (4, 2, 64)}
    assert made.size_of("x", 0) == made.size_of("x", -2) == made.size_of("y", 0) == "batch"
    assert made.size_of("state['h']", 0) == "batch"
    assert made.size_of("x", 1) == "x.shape[1]"
    assert made.size_of("state['h']", 1) is None
    assert made.size_of("state['free']", 0) is None
    assert made.sizes_of(example) == {"batch": 3, "x.shape[1]": 4}


def test_all_that_follows_a_size_changes() -> None:
    example, made = sized()
    call = made.resized(example, {"batch": 5}, "larger")
    assert [tuple(call.args[0].shape), tuple(call.args[1].shape)] == [(5, 4), (5, 1)]
    assert tuple(call.kwargs["state"]["h"].shape) == (10, 3)
    assert call.kwargs["state"]["free"] is example.kwargs["state"]["free"]
    assert identical(call.args[0], torch.cat([X, X[:2]]))
    assert made.sizes_of(call) == {"batch": 5, "x.shape[1]": 4}
    assert (call.kind, call.label) == ("branch", "larger")
    wider = made.resized(call, {"x.shape[1]": 2}, "")
    assert tuple(wider.args[0].shape) == (5, 2)
    assert wider.args[1] is call.args[1]
    assert identical(made.resized(wider, {"batch": 1}, "").args[0], X[:1, :2])


def test_sizes_stay_within_their_limits() -> None:
    example, made = sized()
    assert made.sizes_of(made.resized(example, {"batch": 0, "x.shape[1]": 10**6}, "")) == {"batch": 1, "x.shape[1]": 64}
    assert made.resized(example, {"unknown": 4}, "").args == example.args


def test_tensors_do_not_become_too_large_together() -> None:
    example = Call((torch.zeros(40, 40, 40),))
    made = space(example, shapes={"x": dict.fromkeys(range(3), Dim.DYNAMIC)})
    call = made.resized(example, {name: one.high for name, one in made.sizes().items()}, "")
    assert call.args[0].numel() <= 4 * 40**3


def test_indices_follow_a_size_that_shrinks() -> None:
    example = Call((torch.rand(6, 2), torch.tensor([0, 5, 3])))
    made = space(example, shapes={"x": {0: Dim("n")}, "y": None})
    call = made.resized(example, {"n": 3}, "")
    assert call.args[1].tolist() == [0, 2, 2]
    assert made.numbers(call)["y"].high == 2
    tokens = made.with_values(example, {"y": torch.tensor([0, 5000, 3])}, "")
    assert made.resized(tokens, {"n": 3}, "").args[1].tolist() == [0, 5000, 2]


def test_a_size_that_is_an_argument_is_no_number() -> None:
    example = Call((X, 4))
    made = space(example, shapes={"x": {1: Dim.DYNAMIC}, "y": Dim.DYNAMIC})
    assert list(made.numbers(example)) == ["x"]
    assert made.size_of("y", -1) == "y"
    assert made.resized(example, {"y": 9}, "").args == (X, 9)
    assert made.sizes_of(Call((X, 9))) == {"x.shape[1]": 4, "y": 9}


def test_a_missing_argument_has_no_size() -> None:
    example = Call((X, X))
    made = space(example, {"y": optional()}, shapes={"x": {0: BATCH}, "y": {0: BATCH}})
    call = made.with_alternative(example, "y", None, "")
    assert made.resized(call, {"batch": 2}, "").args[1] is None
    assert tuple(made.resized(call, {"batch": 2}, "").args[0].shape) == (2, 4)


# --- domains that are code ------------------------------------------------------------------------------------------


def test_arguments_that_are_drawn_as_a_whole() -> None:
    def draw(generator: torch.Generator) -> torch.Tensor:
        return torch.rand(3, 4, generator=generator)

    example = Call((X, IDS))
    made = space(example, {"x": draw})
    first = list(made.wholes("a", 3))
    again = list(space(example, {"x": draw}).wholes("a", 3))
    assert [identical(one.args[0], two.args[0]) for one, two in zip(first, again, strict=True)] == [True] * 3
    assert len({float(one.args[0].sum()) for one in [*first, *made.wholes("b", 3)]}) == 6
    assert all(one.args[1] is IDS and one.kind == "branch" for one in first)
    other = Call((X, IDS + 1))
    assert next(made.wholes("a", 1, other)).args[1] is other.args[1]
    assert not list(space(example).wholes("a", 3))
    assert not list(space(example, {"x": sampled_from([X, X + 1])}).wholes("a", 3))


def test_strategies_are_drawn_as_a_whole() -> None:
    from hypothesis import strategies

    example = Call((X, "a"))
    made = space(example, {"y": strategies.sampled_from(["a", "b", "c"])})
    drawn = {call.args[1] for call in made.wholes("key", 20)}
    assert drawn == {"a", "b", "c"}


def test_a_wrong_declaration_is_an_error() -> None:
    with pytest.raises(UsageError, match="does not fit"):
        space(Call((X,)), {"x": booleans()})


def test_the_example_is_never_changed() -> None:
    example, made = sized()
    before = example.clone()
    call = made.resized(example, {"batch": 7}, "")
    call = made.with_values(call, {path: one.value.detach() * 3 for path, one in made.numbers(call).items()}, "")
    assert identical(bind(FREE, example), bind(FREE, before))
    assert not identical(call.args[0], example.args[0])
