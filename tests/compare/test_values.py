"""Values of two tensors: exact where the dtype is, in place for NaN and infinities, never as many doubles at once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_torchexport import Tolerance
from pytest_torchexport.compare import values
from pytest_torchexport.compare.tolerance import CALIBRATED
from pytest_torchexport.compare.values import compare_values
from pytest_torchexport.outcome import Cause, Leaf

INFINITE, NAN = math.inf, math.nan


def compared(expected: Any, actual: Any, tolerance: Tolerance = CALIBRATED, dtype: Any = None) -> Leaf:
    one, other = (v if isinstance(v, torch.Tensor) else torch.tensor(v, dtype=dtype) for v in (expected, actual))
    return compare_values("output", one, other, tolerance)


@pytest.mark.parametrize(
    ("expected", "actual", "dtype"),
    [
        (0, 1, torch.int8),
        (-(2**63), 2**63 - 1, torch.int64),
        (-(2**63), 0, torch.int64),
        (2**63 - 1, 2**63 - 2, torch.int64),
        (2**63, 2**63 + 1, torch.uint64),
        (0, 2**64 - 1, torch.uint64),
        (255, 0, torch.uint8),
        (True, False, torch.bool),
    ],
)
def test_integers_that_differ_differ_under_any_tolerance(expected: int, actual: int, dtype: Any) -> None:
    for tolerance in (Tolerance(), Tolerance(rtol=1.0, atol=1e30)):
        leaf = compared([7, expected], [7, actual], tolerance, dtype) if dtype is not torch.bool else None
        leaf = leaf or compared([True, expected], [True, actual], tolerance, dtype)
        assert not leaf.agrees
        assert (leaf.cause, leaf.mismatched, leaf.index) == (Cause.NUMERIC, 1, (1,))
        assert (leaf.expected, leaf.actual) == (str(expected), str(actual))
        assert leaf.max_abs == max(1.0, float(abs(int(actual) - int(expected))))
    assert compared([expected], [expected], dtype=dtype).agrees


def test_the_worst_integer_is_the_one_that_is_furthest_off() -> None:
    leaf = compared([[1, 2], [3, 4]], [[1, 3], [9, 4]])
    assert (leaf.mismatched, leaf.index, leaf.max_abs) == (2, (1, 0), 6.0)


@pytest.mark.parametrize(
    ("expected", "actual", "agrees"),
    [
        ([1.0, NAN], [1.0, NAN], True),
        ([1.0, INFINITE], [1.0 + 1e-7, INFINITE], True),
        ([1.0, NAN], [1.0, 1.0], False),
        ([1.0, 1.0], [1.0, NAN], False),
        ([1.0, INFINITE], [1.0, -INFINITE], False),
        ([1.0, INFINITE], [1.0, 3e38], False),
        ([1.0, NAN], [1.0, INFINITE], False),
    ],
)
def test_nan_and_infinities_stand_in_the_same_places(expected: Any, actual: Any, agrees: bool) -> None:
    for tolerance in (Tolerance(), Tolerance(rtol=1.0, atol=1e30)):
        leaf = compared(expected, actual, tolerance)
        assert leaf.agrees is agrees
        if not agrees:
            assert (leaf.cause, leaf.index, leaf.max_abs) == (Cause.SPECIAL_VALUE, (1,), INFINITE)
            assert leaf.reason == f"{leaf.actual} instead of {leaf.expected} at [1]"


def test_a_value_at_the_limit_passes_and_one_beyond_it_does_not() -> None:
    tolerance = Tolerance(rtol=0.25, atol=0.5)
    assert compared([4.0, -4.0], [5.5, -5.5], tolerance).agrees
    leaf = compared([4.0, -4.0, 0.0], [5.5, -5.75, 0.25], tolerance)
    assert (leaf.mismatched, leaf.index, leaf.max_abs, leaf.allowed) == (1, (1,), 1.75, 1.5)
    assert leaf.max_rel == 1.75 / 4


def test_the_worst_element_is_the_one_furthest_beyond_its_own_limit() -> None:
    leaf = compared([1e6, 1.0], [1e6 + 10, 2.0], Tolerance(rtol=1e-3, atol=0.0))
    assert (leaf.index, leaf.max_abs) == ((1,), 10.0)
    assert leaf.excess == pytest.approx(10.0 / 1e-3)


def test_without_any_allowance_every_difference_counts() -> None:
    leaf = compared([0.0, 1.0], [-0.0, 1.0 + 1e-6], Tolerance(rtol=0.0, atol=0.0))
    assert (leaf.mismatched, leaf.index) == (1, (1,))


def test_a_difference_that_overflows_is_found() -> None:
    assert not compared([1e308], [-1e308], dtype=torch.float64).agrees


KINDS = {
    "half": torch.rand(3, 4).half(),
    "float8": torch.rand(3, 4).to(torch.float8_e4m3fn),
    "complex": torch.randn(3, 4, dtype=torch.complex64),
    "conjugate": torch.randn(3, 4, dtype=torch.complex64).conj(),
    "0-d": torch.tensor(2.0),
    "transposed": torch.rand(4, 3).t(),
    "channels last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "expanded": torch.rand(1, 4).expand(3, 4),
    "sparse": torch.eye(3).to_sparse(),
    "uint16": torch.tensor([1, 5]).to(torch.uint16),
    "empty": torch.rand(0, 3),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_tensor_agrees_with_itself_and_not_with_twice_itself(name: str) -> None:
    one = KINDS[name]
    assert compared(one, one.clone()).agrees
    twice = (one.float() * 2).to(one.dtype) if one.dtype.itemsize <= 2 else one * 2
    assert compared(one, twice).agrees is (name == "empty")


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 1, 5), (7,)])
def test_the_index_is_that_of_the_tensor_in_any_order_of_memory(shape: tuple[int, ...]) -> None:
    one = torch.arange(float(math.prod(shape))).reshape(shape)
    index = tuple(size - 1 if dim % 2 == 0 else 0 for dim, size in enumerate(shape))
    other = one.clone()
    other[index] += 100.0
    layouts = [one, one.flip(0).flip(0)] + ([one.to(memory_format=torch.channels_last)] if one.dim() == 4 else [])
    for mine in layouts:
        assert compared(mine, other).index == index
        assert compared(mine.t().contiguous().t() if mine.dim() == 2 else mine, other).index == index


def test_chunks_give_what_one_look_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    one = torch.randn(50, 7)
    other = one + 1e-4 * torch.randn(50, 7)
    other[31, 5], other[2, 2] = 40.0, NAN
    whole = compared(one, other)
    monkeypatch.setattr(values, "CHUNK", 13)
    assert compared(one, other) == whole
    assert whole.mismatched > 100
    assert whole.index == (2, 2)


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most bytes that one operator made anew."""

    found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, torch.Tensor)}
        for made in result if isinstance(result, tuple) else [result]:
            if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in given:
                self.found = max(self.found, made.untyped_storage().nbytes())
        return result


def test_no_copy_of_a_large_tensor_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "CHUNK", 1000)
    one = torch.rand(2, 3, 100, 100).to(memory_format=torch.channels_last)
    other = one + 1e-6
    with Largest() as mode:  # type: ignore[no-untyped-call]
        assert not compared(one, other, Tolerance(rtol=0.0, atol=1e-9)).agrees
    assert 0 < mode.found <= 1000 * 8


def test_neither_tensor_is_changed() -> None:
    for dtype in (torch.float64, torch.float32, torch.int64):
        one, other = torch.tensor([1, -2], dtype=dtype), torch.tensor([3, -5], dtype=dtype)
        compared(one, other)
        assert (one.tolist(), other.tolist()) == ([1, -2], [3, -5])
