"""An input as source: what it evaluates to has the same bits as the input."""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch

from pytest_torchexport.inputs.paste import as_source
from pytest_torchexport.subject.call import Call
from pytest_torchexport.subject.equality import identical


class Pair(NamedTuple):
    left: torch.Tensor
    right: int


@dataclasses.dataclass
class Box:
    corner: torch.Tensor
    name: str = "b"


class Any2(torch.nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args


MODEL = Any2()


def evaluated(text: str) -> Any:
    return eval(text, {"torch": torch, "Pair": Pair, "Box": Box})


def source(*args: Any, **kwargs: Any) -> str:
    return as_source([Call(args, kwargs)], MODEL, Call(args))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return plain.detach().contiguous().view(torch.uint8) if plain.dim() else plain.detach().reshape(1).view(torch.uint8)


def numbers(dtype: torch.dtype, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if dtype is torch.bool:
        return torch.rand(count, generator=generator) < 0.5
    if dtype.is_complex:
        return torch.randn(count, dtype=dtype, generator=generator)
    if not dtype.is_floating_point:
        info = torch.iinfo(dtype)
        drawn = torch.randint(max(info.min, -(2**62)), min(info.max, 2**62), (count,), generator=generator)
        return drawn.to(dtype)
    drawn = torch.randn(count, dtype=torch.float64, generator=generator)
    return (drawn * 10.0 ** torch.randint(-7, 4, (count,), generator=generator)).to(dtype)


DTYPES = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
]

EDGES = torch.tensor([0.0, -0.0, 1 / 3, -1e-45, 3.4028235e38, 0.1, 1e-30, math.inf, -math.inf, math.nan, 16777217.0])

SPARSE = torch.zeros(3, 64, 64)
SPARSE[1, 2, 3], SPARSE[2, 0, 0] = 0.7, math.nan

TENSORS = {
    **{f"{dtype} of {n}": numbers(dtype, n) for dtype in DTYPES for n in (1, 7, 30)},
    **{f"{dtype} rows": numbers(dtype, 24).reshape(2, 3, 4) for dtype in DTYPES},
    **{f"{dtype} alike": numbers(dtype, 1).expand(500).reshape(5, 100).contiguous() for dtype in DTYPES},
    **{f"{dtype} scalar": numbers(dtype, 1).reshape(()) for dtype in DTYPES},
    "edges": EDGES,
    "edges in half": EDGES.half(),
    "edges in double": EDGES.double(),
    "negative zeros": torch.full((5, 5), -0.0),
    "negative zero among zeros": torch.zeros(100).scatter(0, torch.tensor([7]), torch.tensor([-0.0])),
    "all nan": torch.full((100,), math.nan),
    "empty": torch.zeros(0, 3),
    "zeros": torch.zeros(4, 4),
    "zeros of int": torch.zeros(4, 4, dtype=torch.int32),
    "large zeros": torch.zeros(3, 224, 224),
    "few exceptions": SPARSE,
    "few exceptions in half": SPARSE.half(),
    "few exceptions of flags": SPARSE != 0,
    "few exceptions of ids": (SPARSE != 0).long() * 50256 + 3,
    "counting": torch.arange(1000).reshape(10, 100),
    "counting down": torch.arange(500, 0, -2),
    "repeated rows": numbers(torch.float32, 40).expand(30, 40).contiguous(),
    "repeated batch": numbers(torch.float32, 30).reshape(1, 5, 1, 6).repeat(4, 1, 7, 1),
    "transposed": numbers(torch.float32, 12).reshape(3, 4).t(),
    "channels last": numbers(torch.float32, 48).reshape(2, 3, 2, 4).to(memory_format=torch.channels_last),
    "expanded": numbers(torch.float32, 4).expand(3, 4),
    "strided": numbers(torch.float32, 20)[::3],
    "with gradient": numbers(torch.float32, 3).requires_grad_(),
    "conjugated": numbers(torch.complex64, 3).conj(),
}


@pytest.mark.parametrize("value", TENSORS.values(), ids=list(TENSORS))
def test_a_tensor_comes_back(value: torch.Tensor) -> None:
    (made,) = evaluated(source(value))
    assert made.dtype == value.dtype
    assert made.shape == value.shape
    assert made.requires_grad == value.requires_grad
    assert identical(made.resolve_conj(), value.resolve_conj())
    same = value.isnan() if value.is_floating_point() else torch.zeros((), dtype=torch.bool)
    if not bool(same.any()):
        assert torch.equal(bits(made), bits(value.resolve_conj()))


@pytest.mark.parametrize("name", ["transposed", "channels last", "expanded"])
def test_strides_come_back(name: str) -> None:
    assert evaluated(source(TENSORS[name]))[0].stride() == TENSORS[name].stride()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.tensor([0.1, 2.0]), "(torch.tensor([0.1, 2.0]),)"),
        (torch.tensor([0.1], dtype=torch.float16), "(torch.tensor([0.1], dtype=torch.float16),)"),
        (torch.tensor([0.1], dtype=torch.bfloat16), "(torch.tensor([0.1], dtype=torch.bfloat16),)"),
        (torch.tensor([3, -100]), "(torch.tensor([3, -100]),)"),
        (torch.tensor([True]), "(torch.tensor([True]),)"),
        (torch.zeros(3, 224, 224), "(torch.zeros((3, 224, 224)),)"),
        (torch.ones(9), "(torch.ones((9,)),)"),
        (torch.full((8, 8), 2.5), "(torch.full((8, 8), 2.5),)"),
        (torch.arange(100), "(torch.arange(100),)"),
        ((torch.arange(100).int() % 2 + 0x7FC00001).view(torch.float32), "(torch.full((100,), torch.nan),)"),
        (
            torch.eye(90)[:1],
            "(torch.zeros((90,)).scatter(0, torch.tensor([0]), torch.tensor([1.0])).reshape(1, 90),)",
        ),
    ],
)
def test_it_reads_well(value: torch.Tensor, text: str) -> None:
    assert source(value) == text


def test_a_default_dtype_is_not_assumed() -> None:
    value = torch.tensor([0.1, 0.2], dtype=torch.float32)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        (made,) = evaluated(source(value))
    finally:
        torch.set_default_dtype(before)
    assert identical(made, value)


VALUES = [
    (1, 2.5, "it's", None, True, float("inf"), 2 + 1j, b"x", torch.float16),
    ({"ids": torch.tensor([1, 2]), 3: [torch.tensor(1.0), (torch.tensor(2),)], ("a", 1): ()},),
    (Pair(torch.tensor([1.0]), 3), Box(torch.tensor([2.0]))),
    (OrderedDict(a=torch.tensor(1)),),
    (),
]


@pytest.mark.parametrize("args", VALUES, ids=str)
def test_containers_come_back(args: tuple[Any, ...]) -> None:
    made = evaluated(source(*args))
    assert identical(made, args)


def test_keywords_make_a_pair() -> None:
    x, mask = torch.tensor([1.0]), torch.tensor([True])
    args, kwargs = evaluated(source(x, mask=mask, n=3))
    assert identical(args, (x,))
    assert identical(kwargs, {"mask": mask, "n": 3})
    assert identical(evaluated(source(mask=mask)), {"mask": mask})


def test_a_tensor_in_two_places_stands_in_two_places() -> None:
    x = torch.tensor([1.0, 2.0])
    args, kwargs = evaluated(source(x, {"again": x}, torch.tensor([1.0, 2.0]), y=x))
    assert args[0] is args[1]["again"] is kwargs["y"]
    assert args[2] is not args[0]


def test_long_lists_are_broken_into_lines() -> None:
    value = numbers(torch.float64, 64)
    text = source(value, torch.zeros(2))
    assert max(map(len, text.splitlines())) <= 110
    assert identical(evaluated(text)[0], value)


def test_what_cannot_be_spelled_says_where_it_is() -> None:
    big, other = torch.randn(100, 100), torch.randn(100, 100)
    example = Call((big, torch.tensor([1.0])))
    text = as_source([Call((big.clone(), torch.tensor([2.0])))], MODEL, example, kept="input.npz")
    assert evaluated(text)[0] is None
    assert "None,  # args_0: tensor(float32, [100, 100]), as in the example" in text
    text = as_source([Call((other, torch.tensor([2.0])))], MODEL, example, kept="input.npz")
    assert "None,  # args_0: tensor(float32, [100, 100]), kept in input.npz" in text
    assert identical(evaluated(text)[1], torch.tensor([2.0]))
    inside = as_source([Call(({"deep": [other]},))], MODEL, example, kept="input.npz")
    assert evaluated(inside)[0] == {"deep": [None]}


def test_equal_calls_count_once_and_others_make_a_list() -> None:
    one, other = Call((torch.tensor([1.0]),)), Call((torch.tensor([2.0]),))
    assert identical(evaluated(as_source([one, one], MODEL, one)), one.args)
    assert identical(evaluated(as_source([one, other], MODEL, one)), [one.args, other.args])
