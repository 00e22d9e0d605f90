"""Compare one leaf: a tensor, an array, a number or another Python value."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pytest_torchexport.compare.tolerance import CALIBRATED, Tolerance
from pytest_torchexport.compare.tree import as_tensor
from pytest_torchexport.compare.values import compare_values
from pytest_torchexport.outcome import Cause, Leaf
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.output import Structure

_NUMBERS = (bool, int, float, complex)


def compare_leaf(
    path: str,
    expected: Any,
    actual: Any,
    tolerance: Tolerance = CALIBRATED,
    structure: Structure = Structure.SAME,
) -> Leaf:
    """Compare one leaf: kind, dtype and shape exactly, values by the tolerance, NaN and infinities in place.

    Args:
        path: what the result is called.
        expected: eager's leaf.
        actual: the exported program's leaf.
        tolerance: by what the values are judged.
        structure: what the exported form can carry; not all forms have numbers that are no tensors.
    """
    if isinstance(expected, (str, bytes, type(None))) or as_tensor(expected) is None:
        return _compare_object(path, expected, actual)
    if structure is not Structure.SAME and isinstance(expected, _NUMBERS) and _is_bare(actual):
        actual = actual.item()
    ours, theirs = as_tensor(expected), as_tensor(actual)
    if ours is None or theirs is None:
        reason = f"eager returns {type(expected).__name__}, the exported program {type(actual).__name__}"
        return _differs(path, Cause.STRUCTURE, reason, expected, actual)
    kind = _compare_kind(path, expected, actual, ours, theirs)
    return kind or compare_values(path, ours, theirs, tolerance)


def _differs(path: str, cause: Cause, reason: str, expected: Any, actual: Any) -> Leaf:
    tensor = as_tensor(expected)
    return Leaf(
        path,
        agrees=False,
        cause=cause,
        reason=reason,
        dtype="" if tensor is None else str(tensor.dtype).removeprefix("torch."),
        shape=() if tensor is None else tuple(tensor.shape),
        expected=containers.describe(expected),
        actual=containers.describe(actual),
    )


def _compare_object(path: str, expected: Any, actual: Any) -> Leaf:
    arrays = isinstance(expected, np.ndarray) and isinstance(actual, np.ndarray)
    if type(expected) is type(actual) and (np.array_equal(expected, actual) if arrays else bool(expected == actual)):
        return Leaf(path, agrees=True, elements=1, expected=containers.describe(expected))
    reason = f"eager returns {containers.describe(expected)}, the exported program {containers.describe(actual)}"
    return _differs(path, Cause.STRUCTURE, reason, expected, actual)


def _compare_kind(path: str, expected: Any, actual: Any, ours: torch.Tensor, theirs: torch.Tensor) -> Leaf | None:
    if isinstance(expected, torch.Tensor) and not isinstance(actual, torch.Tensor):
        reason = f"eager returns a tensor, the exported program {type(actual).__name__}"
        return _differs(path, Cause.STRUCTURE, reason, expected, actual)
    if ours.dtype != theirs.dtype and isinstance(expected, torch.Tensor):
        return _differs(path, Cause.DTYPE, f"dtype {theirs.dtype} instead of {ours.dtype}", expected, actual)
    if not isinstance(expected, torch.Tensor) and type(expected) is not type(actual):
        reason = f"{type(actual).__name__} instead of {type(expected).__name__}"
        return _differs(path, Cause.DTYPE, reason, expected, actual)
    if ours.shape != theirs.shape:
        reason = f"shape {list(theirs.shape)} instead of {list(ours.shape)}"
        return _differs(path, Cause.SHAPE, reason, expected, actual)
    if ours.layout != theirs.layout:
        reason = f"layout {theirs.layout} instead of {ours.layout}"
        return _differs(path, Cause.STRUCTURE, reason, expected, actual)
    return None


def _is_bare(value: Any) -> bool:
    """Whether it is a tensor that stands for one number, without any dimension."""
    return isinstance(value, torch.Tensor) and value.dim() == 0
