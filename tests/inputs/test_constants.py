"""Constants that decisions may compare with, and the order in which they are worth trying."""

from __future__ import annotations

import dataclasses
import enum
import math
import types
from typing import Any

import pytest
import torch

from pytest_torchexport.inputs.constants import around, mine

LIMIT = 77
UNUSED = 78
SETTINGS = types.SimpleNamespace(window=640)
TABLE = {"narrow": 41, "wide": 43}


class Mode(enum.Enum):
    SUM = "adding"
    MEAN = "averaging"


class Level(enum.IntEnum):
    LOW = 201
    HIGH = 202


@dataclasses.dataclass
class Config:
    eos_token_id: int = 50256
    hidden: int = 333
    inner: dict[str, Any] = dataclasses.field(default_factory=lambda: {"max_length": 128, "deep": {"pad": 19}})
    names: tuple[str, ...] = ("left", "right")


class Cycle:
    def __init__(self) -> None:
        self.size = 55
        self.me = self


def helper(x: Any, floor: float = -3.25, *, ceiling: float = 8.75) -> Any:
    return x if floor < x.sum() < ceiling else -x


def closing(margin: float) -> Any:
    def inner(x: Any) -> Any:
        return x if x.max() > margin else -x

    return inner


class Base(torch.nn.Module):
    threshold = 9.5

    def unused(self, top: int = 12345) -> int:
        return top


class Model(Base):
    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.cycle = Cycle()
        self.linear = torch.nn.Linear(13, 17)
        self.compared_here = 1234
        self.quiet = 4321
        self._hidden = 31
        self._unused = 32
        self.weights = [2.5, 3.5]
        self.log_scale = torch.nn.Parameter(torch.tensor(0.625))
        self.register_buffer("gate", torch.tensor([0.125, 0.375]))
        self.register_buffer("large", torch.arange(100, 200))

    def forward(self, x: torch.Tensor, mode: str = "mean", level: Level = Level.LOW) -> Any:
        """A doc string."""
        if mode == "sum" and x.shape[0] % 6 == 5:
            x = x * 11
        if (x > 0.7).any() or x.gt(0.9).all():
            x = torch.where(x < -0.45, x, x.sum(dim=1, keepdim=True) + 21)
        if x.max() > self.compared_here or len(x) > LIMIT or x.numel() in (501, 502):
            msg = "some message that nobody compares with"
            raise ValueError(msg)
        match x.dim():
            case 4:
                return x
        if self._hidden > 3:
            return helper(x)
        if mode is Mode.SUM or len(x) > SETTINGS.window:
            return x
        return [y for y in x if y > 0.33], TABLE[mode]


SOURCES = [Model.forward.__code__, helper.__code__]


def mined(model: Any = None, sources: Any = None) -> list[Any]:
    return mine(Model() if model is None else model, SOURCES if sources is None else sources)


@pytest.mark.parametrize(
    "value",
    [
        *("sum", 6, 5, 0.7, 0.9, -0.45, 501, 502, 4, 3, 0.33, 11, 21),  # of the code
        *("mean", -3.25, 8.75, 201),  # of defaults
        *(77, 640, 41, 43),  # of globals
        *("adding", "averaging", 201, 202),  # of enumerations
        *(9.5, 1234, 4321, 31, 2.5, 3.5, 50256, 128, 19, 333, "left", "right", 55, 13, 17),  # of attributes
        *(0.125, 0.375, 0.625),  # of buffers and parameters
    ],
)
def test_found(value: Any) -> None:
    assert value in mined()


@pytest.mark.parametrize("value", [78, 32, "A doc string.", "some message that nobody compares with", 150, True])
def test_not_found(value: Any) -> None:
    found = mined()
    assert not any(one == value and type(one) is type(value) for one in found)


def test_the_likeliest_come_first() -> None:
    found = mined()
    place = {value: index for index, value in enumerate(found)}
    compared = [place[one] for one in ("sum", 6, 5, 0.7, 0.9, -0.45, 501, 502, 4, 3, 0.33)]
    named_there = [place[one] for one in ("mean", -3.25, 8.75, 77, 1234, 31, 640)]
    telling = [place[one] for one in (9.5, 50256, 128, 55)]
    others = [place[one] for one in (11, 21)]
    rest = [place[one] for one in (4321, 333, 13, 17)]
    for first, second in zip(
        [compared, named_there, telling, others], [named_there, telling, others, rest], strict=True
    ):
        assert max(first) < min(second)


def test_each_once_and_not_too_many() -> None:
    class Many(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for index in range(1000):
                setattr(self, f"n{index}", index * 1.5)

        def forward(self, x: Any) -> Any:
            return x if x.sum() > 12 else -x

    found = mine(Many(), [Many.forward.__code__])
    assert found[0] == 12
    assert len(found) == len(set(found)) == 256


def test_the_same_each_time() -> None:
    assert mined() == mined()


def test_functions_and_closures() -> None:
    function = closing(6.125)
    assert 6.125 in mine(function, [function.__code__])
    assert mine(helper, [helper.__code__])[:2] == [-3.25, 8.75]


def test_constants_are_found_from_the_code_alone() -> None:
    assert mine(torch.nn.Identity(), [Model.forward.__code__])[:4] == ["sum", 0, 6, 5]
    assert 77 in mine(torch.nn.Identity(), [Model.forward.__code__])


def test_nan_is_none_and_infinity_is_one() -> None:
    class Odd(torch.nn.Module):
        limit, other = math.nan, math.inf

        def forward(self, x: Any) -> Any:
            return x

    assert mine(Odd(), [Odd.forward.__code__]) == [math.inf]


def test_a_model_that_is_an_object() -> None:
    class Callable:
        def __init__(self) -> None:
            self.cutoff = 42

        def __call__(self, x: Any, depth: int = 7) -> Any:
            return x if len(x) > 36 else -x

    assert mine(Callable(), [Callable.__call__.__code__]) == [36, 7, 42]


def test_attributes_that_raise_cost_nothing() -> None:
    class Shy(torch.nn.Module):
        @property
        def broken(self) -> int:
            raise RuntimeError

        def forward(self, x: Any) -> Any:
            return x if x.sum() > 12 else -x

    assert mine(Shy(), [Shy.forward.__code__]) == [12]


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (3, torch.float32, [3, 4, 2, 6]),
        (0, torch.float32, [0, 1, -1]),
        (-100, torch.float32, [-100, -99, -101, -200]),
        ("mean", torch.float32, ["mean"]),
        (0.5, torch.float64, [0.5, math.nextafter(0.5, 1), math.nextafter(0.5, 0), 1.5, -0.5, 1.0]),
        (0.5, torch.float16, [0.5, 0.50048828125, 0.499755859375, 1.5, -0.5, 1.0]),
        (math.inf, torch.float32, [math.inf]),
    ],
)
def test_around(value: Any, dtype: torch.dtype, expected: list[Any]) -> None:
    assert around(value, dtype) == expected


def test_around_is_on_both_sides_in_the_dtype() -> None:
    values = torch.tensor(around(0.1, torch.float32), dtype=torch.float32)
    here = torch.tensor(0.1)
    assert bool((values > here).any())
    assert bool((values < here).any())
    assert bool((values == here).any())
