"""A call from an earlier run is replayed only if the arguments' domains hold it now."""

from __future__ import annotations

import enum
from itertools import islice
from typing import Any, Literal, Optional

import pytest
import torch

from pytest_torchexport import booleans, floats, integers, sampled_from
from pytest_torchexport.inputs import draw
from pytest_torchexport.inputs.fits import fits
from pytest_torchexport.inputs.shapes import normalise
from pytest_torchexport.inputs.space import Space
from pytest_torchexport.subject.call import Call


class Mode(enum.Enum):
    SUM = 1
    MEAN = 2


class Model(torch.nn.Module):
    def forward(
        self,
        x: torch.Tensor,
        mask: Optional[torch.Tensor] = None,  # noqa: UP045 - the form that most code has
        kind: Literal["a", "b"] = "a",
        mode: Mode = Mode.SUM,
        k: int = 3,
        flag: bool = False,
        name: str = "n",
    ) -> torch.Tensor:
        return x


MODEL = Model()
X = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[1, 5, 2], [0, 3, 3]])
ROWS = {"x": {0: torch.export.Dim("b", min=2, max=9)}}


def space(*args: Any, declared: Any = None, shapes: Any = None, **kwargs: Any) -> Space:
    example = Call(args, kwargs)
    return Space.of(MODEL, example, declared, normalise(MODEL, example, shapes), seed=0)


def holds(within: Space, *args: Any, **kwargs: Any) -> bool:
    return fits(within, Call(args, kwargs, "remembered"))


@pytest.mark.parametrize(
    ("args", "kwargs", "declared", "shapes"),
    [
        ((X, X > 0.5), {}, None, None),
        ((IDS,), {"kind": "b", "mode": Mode.SUM, "k": 5, "flag": True}, None, None),
        ((X,), {}, None, ROWS),
        ((IDS, IDS), {}, {"x": integers(0, 20), "k": integers(0, 7)}, None),
        ((X * 0.1,), {}, {"x": floats(0, 0.1), "kind": sampled_from(["a", "b", "c"]), "flag": booleans()}, None),
        ((X,), {}, {"x": lambda generator: torch.rand(5, generator=generator)}, None),
    ],
)
def test_what_is_generated_is_held(args: Any, kwargs: Any, declared: Any, shapes: Any) -> None:
    within = space(*args, declared=declared, shapes=shapes, **kwargs)
    dynamic = normalise(MODEL, within.example, shapes)
    drawn = list(islice(draw.generate(MODEL, within.example, declared, dynamic, seed=0), 60))
    assert len(drawn) == 60
    assert all(fits(within, call) for (call,) in drawn)


def test_sizes() -> None:
    assert holds(space(X), X * 9)
    assert not holds(space(X), X[:2])
    assert not holds(space(X), X[0])
    assert holds(space(X, shapes=ROWS), X[:2])
    assert not holds(space(X, shapes=ROWS), X[:1]), "below the declared minimum"
    assert not holds(space(X, shapes=ROWS), X[:2, :2]), "a dimension that does not vary"


def test_numbers() -> None:
    within = space(X, declared={"x": floats(0, 1)})
    assert holds(within, X.flip(0))
    assert not holds(within, X + 1)
    assert not holds(within, X * torch.nan)
    assert holds(space(X), X * torch.nan), "of what is not declared eager is the judge"
    assert not holds(space(IDS, declared={"x": integers(0, 9)}), IDS * 9)
    assert not holds(space(X, k=3, declared={"k": integers(0, 7)}), X, k=8)


def test_options() -> None:
    within = space(X, kind="a", name="n")
    assert holds(within, X, kind="b", name="n")
    assert not holds(within, X, kind="c", name="n")
    assert not holds(within, X, kind="a", name="other"), "nothing says that it varies"
    assert holds(space(X, mode=Mode.SUM), X, mode=Mode.MEAN)
    assert not holds(space(X, X), X, 1.0)
