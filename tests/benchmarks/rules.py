"""The rules that the calibrated one is compared with, as their users call them. Each says whether two results agree."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch._dynamo.utils import same
from torch.utils._pytree import tree_map

from tests.benchmarks.planted import leaves


def assert_close(eager: list[Any], exported: list[Any]) -> bool:
    """`torch.testing.assert_close` with its defaults."""
    try:
        for one, other in zip(eager, exported, strict=True):
            torch.testing.assert_close(other, one, equal_nan=True)
    except (AssertionError, ValueError, TypeError):
        return False
    return True


def dynamo_same(eager: list[Any], exported: list[Any], double: list[Any] | None) -> bool:
    """`torch._dynamo.utils.same` as the benchmarks of Dynamo call it for inference: tol 1e-4, for half types 1e-3."""
    half = any(isinstance(one, torch.Tensor) and one.dtype in (torch.float16, torch.bfloat16) for one in eager)
    if len(eager) != len(exported):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return bool(
                same(eager, exported, double, equal_nan=True, tol=1e-3 if half else 1e-4, log_error=lambda *_: None)
            )
        except (AssertionError, RuntimeError):  # shapes that cannot be compared
            return False


def in_plain_double(model: torch.nn.Module, args: tuple[Any, ...]) -> list[Any] | None:
    """What Dynamo's benchmarks take for the float64 reference: a copy of the model as `double()`; None if it raises."""

    def wide(value: Any) -> Any:
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    try:
        with torch.no_grad():
            return leaves(copy.deepcopy(model).double()(*tree_map(wide, args)))
    except RuntimeError:
        return None
