"""Whether two values are the same to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pytest_torchexport.subject import containers


def identical(one: Any, other: Any) -> bool:
    """Whether two values have the same type, dtype, shape and bits (every NaN counts as the same)."""
    if one is other:
        return True
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return _identical_tensors(one.detach(), other.detach())
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    if type(one) is not type(other):
        return False
    if containers.is_leaf(one):
        return bool(one == other) or (one != one and other != other)  # noqa: PLR0124 NaN differs from itself
    ours, theirs = list(containers.leaves(one)), list(containers.leaves(other))
    return len(ours) == len(theirs) and all(
        path == path2 and _identical_leaves(leaf, leaf2)
        for (path, leaf), (path2, leaf2) in zip(ours, theirs, strict=True)
    )


def _identical_leaves(one: Any, other: Any) -> bool:
    if containers.is_leaf(one):
        return identical(one, other)
    # A container that leads back to itself ends in a leaf that is one; what it holds was compared on the way there.
    return type(one) is type(other)


def _identical_tensors(one: torch.Tensor, other: torch.Tensor) -> bool:
    if (one.dtype, one.layout, one.device, one.is_nested) != (other.dtype, other.layout, other.device, other.is_nested):
        return False
    if one.is_nested:
        ours, theirs = one.unbind(), other.unbind()
        return len(ours) == len(theirs) and all(map(_identical_tensors, ours, theirs))
    if one.shape != other.shape:
        return False
    if one.is_meta:
        return True
    if one.layout is not torch.strided:
        return bool(torch.equal(one.to_dense(), other.to_dense()))
    if torch.equal(one, other):
        return True
    has_nan = one.is_floating_point() or one.is_complex()
    return has_nan and bool(((one == other) | (one.isnan() & other.isnan())).all())
