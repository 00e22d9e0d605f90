from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from pytest_torchexport.compare.where import where

if TYPE_CHECKING:
    from collections.abc import Callable

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(2, 8, 16, 16, generator=GENERATOR)
NOISE = torch.rand(2, 8, 16, 16, generator=GENERATOR) + 0.5
CHANGED = torch.rand(X.shape, generator=GENERATOR) < 0.01


def said(actual: torch.Tensor, expected: torch.Tensor = X) -> str:
    bad = ~torch.isclose(expected, actual, rtol=1e-5, atol=1e-7, equal_nan=True)
    return where(bad, expected, actual)


def at(index: Any) -> torch.Tensor:
    """The tensor with other values at the index."""
    mask = torch.zeros_like(X, dtype=torch.bool)
    mask[index] = True
    return torch.where(mask, X + NOISE, X)


@pytest.mark.parametrize(
    ("index", "places"),
    [
        ((0, 3, 2, 1), "one element, at [0, 3, 2, 1]"),
        ((slice(None), 3), "index 3 of axis 1 (of 8), all elements there"),
        ((slice(None), slice(2, 5)), "indices 2 to 4 of axis 1 (of 8), all elements there"),
        ((..., slice(0, 5)), "the first 5 of axis 3 (of 16), all elements there"),
        ((..., slice(13, 16), slice(None)), "the last 3 of axis 2 (of 16), all elements there"),
        ((..., [0, 15]), "the first index and the last index of axis 3 (of 16), all elements there"),
        ((..., slice(0, None, 2)), "every 2nd index of axis 3 (of 16), from 0, all elements there"),
        ((1, slice(5, None)), "index 1 of axis 0 (of 2) and the last 3 of axis 1 (of 8), all elements there"),
        ((...,), "all 4096 elements"),
        ((slice(None), [1, 4, 6]), "indices 1, 4, 6 of axis 1 (of 8), all elements there"),
    ],
)
def test_places(index: Any, places: str) -> None:
    assert said(at(index)) == places


def test_border() -> None:
    frame = torch.ones_like(X, dtype=torch.bool)
    frame[..., 1:-1, 1:-1] = False
    assert said(torch.where(frame, X + NOISE, X)).startswith("only at the border of axes 2 and 3 (1 wide), 960 of 4096")
    frame[..., 0, :] = frame[..., 0] = False
    assert "border of axes 2 and 3 (bottom 1, right 1)" in said(torch.where(frame, X + NOISE, X))


def test_scattered_elements() -> None:
    assert "of 4096 elements (1" in said(torch.where(CHANGED, X + NOISE, X))
    assert said(torch.where(CHANGED, X + NOISE, X)).endswith("scattered")


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda x: 1.001 * x, "each is 1.001 x eager's"),
        (lambda x: -x, "each has the opposite sign"),
        (lambda x: x + 0.25, "each is 0.25 more than eager's"),
        (lambda x: x.clamp(-1, 1), "eager's values are cut off at -1 and 1"),
        (lambda x: x.relu(), "eager's values are cut off at 0"),
        (lambda x: x.transpose(2, 3), "the axes in the order 0, 1, 3, 2"),
        (lambda x: x.permute(0, 2, 3, 1).reshape(x.shape), "another memory layout (axes in the order 0, 2, 3, 1)"),
        (lambda x: x.flip(1), "axis 1 reversed"),
        (lambda x: x.roll(1, 3), "shifted by 1 along axis 3"),
        (lambda x: x[:, [3, 0, 1, 2, 5, 4, 7, 6]], "axis 1 in the order 3, 0, 1, 2, 5, 4, ..."),
        (lambda x: x.bfloat16().float(), "values are all bfloat16 numbers"),
        (lambda x: x.half().float(), "values are all float16 numbers"),
        (lambda x: x.round(), "all whole numbers"),
        (lambda x: torch.where(CHANGED, torch.nan, x), "gives NaN instead of finite numbers"),
        (lambda x: torch.where(CHANGED, -torch.inf, x + 1), "gives -inf instead of finite numbers at some of them"),
    ],
)
def test_how_the_values_relate(change: Callable[[torch.Tensor], torch.Tensor], fact: str) -> None:
    assert fact in said(change(X))


def test_constant_values() -> None:
    assert said(torch.zeros_like(NOISE), NOISE) == "all 4096 elements; the exported program gives 0 at each of them"
    assert (
        said(torch.arange(5) % 256, torch.arange(5) + 256).endswith("modulo 2**16: it overflowed in 16 bits") is False
    )
    wide = torch.arange(1, 40) * 10_000
    assert said(wide.short().long(), wide).endswith("each is eager's modulo 2**16: it overflowed in 16 bits")


def test_unlimited_values() -> None:
    assert "goes beyond 0 and 1, where eager's values end" in said(X, X.clamp(0, 1))


def test_nothing_is_claimed_of_unrelated_values() -> None:
    other = torch.randn(X.shape, generator=GENERATOR)
    assert said(other) == "all 4096 elements"
    assert said(X[0, 0, 0, :2] * 2, X[0, 0, 0, :2]) == "all 2 elements"


def test_small_and_odd_tensors() -> None:
    assert where(torch.tensor(True), torch.tensor(1.0), torch.tensor(2.0)) == "the only element"
    assert where(torch.zeros(3, dtype=torch.bool)) == ""
    assert where(torch.zeros(0, dtype=torch.bool)) == ""
    assert said(torch.arange(20), torch.arange(20) + 1) == "all 20 elements; each is 1 less than eager's"
    numbers = torch.view_as_complex(X[..., :2].contiguous())
    mask = torch.view_as_real(numbers) != torch.view_as_real(numbers.conj().resolve_conj())
    found = where(mask, numbers, numbers.conj())
    assert found == "index 1 of axis 3 (of 2), all elements there; each has the opposite sign"


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_numbers_that_torch_only_stores(dtype: torch.dtype) -> None:
    x = (X[0, 0] * 8).to(dtype)
    other = (x.float() + 16).to(dtype)
    assert where(x.float() != other.float(), x, other).startswith("all 256 elements")
    assert "each has the opposite sign" in where(torch.ones(16, 16, dtype=torch.bool), x, (-x.float()).to(dtype))
