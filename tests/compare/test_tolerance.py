"""The fixed tolerance: what may be set, and what holds where nothing is."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pytest_torchexport import Tolerance, UsageError
from pytest_torchexport.compare.tolerance import default_for


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"rtol": 1e-3}, "atol is missing"),
        ({"atol": 1e-3}, "rtol is missing"),
        ({}, "atol is missing"),
        ({"rtol": -1e-3, "atol": 0.0}, "rtol=-0.001"),
        ({"rtol": 0.0, "atol": math.nan}, "atol=nan"),
        ({"rtol": math.inf, "atol": 0.0}, "rtol=inf"),
        ({"rtol": "1e-3", "atol": 0.0}, "rtol='1e-3'"),
        ({"rtol": True, "atol": 0.0}, "rtol=True"),
    ],
)
def test_a_wrong_tolerance_is_an_error_that_names_the_number(arguments: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Tolerance(**arguments)


def test_a_tolerance_is_shown_with_both_numbers() -> None:
    assert str(Tolerance(rtol=1, atol=1e-5)) == "rtol=1, atol=1e-05"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_default_is_that_of_assert_close(dtype: torch.dtype) -> None:
    tolerance = default_for(dtype, scale=1.0)
    for value in (1.0, 100.0):
        one = torch.tensor(value, dtype=torch.float64)
        for share, close in ((0.9, True), (1.1, False)):
            off = one + share * (tolerance.atol + tolerance.rtol * value)
            kept = torch.allclose(off, one, rtol=tolerance.rtol, atol=tolerance.atol)
            assert kept is close
    theirs = torch.testing._comparison.default_tolerances(dtype)
    assert (tolerance.rtol, tolerance.atol) == theirs


def test_a_small_output_has_a_smaller_absolute_part_and_a_large_one_no_larger() -> None:
    assert default_for(torch.float32, scale=1e-3).atol == pytest.approx(1e-8)
    assert default_for(torch.float32, scale=1e3).atol == pytest.approx(1e-5)
    assert default_for(torch.float32, scale=0.0).atol == 0


def test_complex_numbers_have_the_tolerance_of_their_parts_and_integers_none() -> None:
    assert default_for(torch.complex64, scale=1.0) == default_for(torch.float32, scale=1.0)
    assert default_for(torch.int32, scale=1.0) == default_for(torch.bool, scale=1.0) == Tolerance(0.0, 0.0)


def test_a_dtype_without_a_known_default_has_one_by_its_precision() -> None:
    assert default_for(torch.float8_e4m3fn, scale=1.0).rtol == 2 * torch.finfo(torch.float8_e4m3fn).eps
