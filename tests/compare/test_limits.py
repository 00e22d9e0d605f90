"""Bounds that need no measurement: those of assert_close, and what the calibrated rule accepts in any case."""

from __future__ import annotations

import pytest
import torch

from pytest_torchexport.compare.limits import EXACT, assert_close, surely_within, without_measurement


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_bound_without_a_measurement_is_that_of_assert_close(dtype: torch.dtype) -> None:
    limit = without_measurement(dtype, scale=1.0)
    assert limit == assert_close(dtype)
    for value in (1.0, 100.0):
        one = torch.tensor(value, dtype=torch.float64)
        for share, close in ((0.9, True), (1.1, False)):
            off = one + share * (limit.atol + limit.rtol * value)
            kept = torch.allclose(off, one, rtol=limit.rtol, atol=limit.atol)
            assert kept is close
    theirs = torch.testing._comparison.default_tolerances(dtype)
    assert (limit.rtol, limit.atol) == theirs


def test_a_small_output_has_a_smaller_absolute_part_and_a_large_one_no_larger() -> None:
    assert without_measurement(torch.float32, scale=1e-3).atol == pytest.approx(1e-8)
    assert without_measurement(torch.float32, scale=1e3).atol == pytest.approx(1e-5)
    assert without_measurement(torch.float32, scale=0.0).atol == 0


def test_complex_numbers_have_the_bound_of_their_parts_and_integers_none() -> None:
    assert without_measurement(torch.complex64, scale=1.0) == without_measurement(torch.float32, scale=1.0)
    assert without_measurement(torch.int32, scale=1.0) == without_measurement(torch.bool, scale=1.0) == EXACT
    assert surely_within(torch.int32, k=6) == EXACT


def test_a_dtype_without_a_known_default_has_one_by_its_precision() -> None:
    eps = torch.finfo(torch.float8_e4m3fn).eps
    assert without_measurement(torch.float8_e4m3fn, scale=1.0).rtol == 2 * eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.complex64])
def test_what_surely_agrees_is_a_few_roundings(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    assert surely_within(dtype, k=6).rtol == 2.5 * eps
    assert surely_within(dtype, k=1).rtol == 0
