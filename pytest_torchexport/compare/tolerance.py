"""How far a value may be off: `Tolerance`, and the comparison of one leaf under it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from pytest_torchexport.compare.tree import as_tensor
from pytest_torchexport.errors import UsageError
from pytest_torchexport.outcome import Cause, Leaf
from pytest_torchexport.subject import containers


@dataclass(frozen=True)
class Tolerance:
    """The bound `|exported - eager| <= atol + rtol * |eager|`, element by element.

    Args:
        rtol: relative part, no unit.
        atol: absolute part, in the unit of the output.

    Raises:
        UsageError: only one of the two is given, or one is negative, NaN or no number.
    """

    rtol: float
    atol: float

    def __init__(self, rtol: float | None = None, atol: float | None = None) -> None:
        if rtol is None or atol is None:
            missing = "atol" if atol is None else "rtol"
            msg = f"Tolerance needs both rtol and atol, {missing} is missing: write Tolerance(rtol=1e-4, atol=1e-5)"
            raise UsageError(msg)
        for name, value in (("rtol", rtol), ("atol", atol)):
            if type(value) not in (int, float) or not 0 <= value < math.inf:
                msg = f"Tolerance {name}={value!r}: give a finite number that is not negative"
                raise UsageError(msg)
        object.__setattr__(self, "rtol", float(rtol))
        object.__setattr__(self, "atol", float(atol))

    def __str__(self) -> str:
        """`rtol=0.0001, atol=1e-05`."""
        return f"rtol={self.rtol:g}, atol={self.atol:g}"


_DEFAULTS = {
    torch.float64: (1e-7, 1e-7),
    torch.float32: (1.3e-6, 1e-5),
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
}
"""rtol and atol by dtype: the documented defaults of `torch.testing.assert_close`."""


def default_for(dtype: torch.dtype, scale: float) -> Tolerance:
    """The tolerance where none is set.

    The numbers are those of `torch.testing.assert_close`. Its atol fits outputs of the order of one; it is reduced in
    proportion for smaller ones, which would otherwise pass with any error.

    Args:
        dtype: of eager's output; of the real part for complex ones. Any that is not floating gives an exact tolerance.
        scale: the largest finite magnitude in eager's output.
    """
    real = dtype.to_real() if dtype.is_complex else dtype
    if not real.is_floating_point:
        return Tolerance(0.0, 0.0)
    rtol, atol = _DEFAULTS.get(real, (2 * torch.finfo(real).eps, 1e-5))
    return Tolerance(rtol, atol * min(1.0, scale))


def compare_leaf(path: str, expected: Any, actual: Any, tolerance: Tolerance | None) -> Leaf:
    """Compare one leaf: kind, dtype and shape exactly, values by the tolerance, NaN and infinities in place.

    Args:
        path: what the result is called.
        expected: eager's leaf.
        actual: the exported program's leaf.
        tolerance: None takes the default for the dtype.
    """
    if isinstance(expected, (str, bytes, type(None))) or as_tensor(expected) is None:
        return _compare_object(path, expected, actual)
    if not isinstance(expected, torch.Tensor) and isinstance(actual, torch.Tensor) and actual.numel() == 1:
        # A number that the exported form can only return as a tensor.
        actual = actual.reshape(()).item()
    ours, theirs = as_tensor(expected), as_tensor(actual)
    if ours is None or theirs is None:
        reason = f"eager returns {type(expected).__name__}, the exported program {type(actual).__name__}"
        return _differs(path, Cause.STRUCTURE, reason, expected, actual)
    kind = _compare_kind(path, expected, actual, ours, theirs)
    return kind or _compare_values(path, ours, theirs, tolerance)


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
    same = type(expected) is type(actual) and bool(expected == actual)
    if same:
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


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """The values as a plain real tensor on the CPU's or its own device: sparse, quantized and complex ones unfolded."""
    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _compare_values(path: str, ours: torch.Tensor, theirs: torch.Tensor, tolerance: Tolerance | None) -> Leaf:
    ours, theirs = _dense(ours), _dense(theirs)
    shape = tuple(ours.shape)
    facts = {"dtype": str(ours.dtype).removeprefix("torch."), "shape": shape, "elements": ours.numel()}
    if ours.device != theirs.device:
        theirs = theirs.to(ours.device)
    if not ours.numel() or torch.equal(ours, theirs):
        return Leaf(path, agrees=True, **facts)  # type: ignore[arg-type]
    exact = not ours.is_floating_point()
    wide = torch.int64 if exact and ours.dtype is not torch.uint64 else torch.float64
    if ours.device.type == "mps":
        ours, theirs = ours.cpu(), theirs.cpu()
    mine, other = ours.to(wide), theirs.to(wide)
    special = torch.zeros_like(mine, dtype=torch.bool) if exact else ~(mine.isfinite() & other.isfinite())
    same_special = special & ((mine == other) | (mine.isnan() & other.isnan()) if not exact else special)
    finite = mine[~special].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    limit = tolerance or default_for(ours.dtype, scale)
    error = (mine - other).abs().double()
    error = torch.where(special, torch.zeros_like(error), error)
    magnitude = torch.where(special, torch.zeros_like(error), mine.abs().double())
    allowed = limit.atol + limit.rtol * magnitude
    bad_special = special & ~same_special
    bad = (error > allowed) | bad_special
    excess = torch.where(allowed > 0, error / allowed.clamp_min(torch.finfo(torch.float64).tiny), error * math.inf)
    excess = torch.where(error == 0, torch.zeros_like(excess), excess)
    excess = torch.where(bad_special, torch.full_like(excess, math.inf), excess)
    worst = int(excess.argmax())
    where = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), shape)) if shape else ()
    relative = torch.where(magnitude > 0, error / magnitude.clamp_min(torch.finfo(torch.float64).tiny), error * 0)
    mismatched = int(bad.sum())
    one, two = mine.flatten()[worst].item(), other.flatten()[worst].item()
    cause, reason = None, ""
    if mismatched:
        if bool(bad_special.any()):
            cause, reason = Cause.SPECIAL_VALUE, f"{two} instead of {one} at {list(where)}"
        else:
            cause = Cause.NUMERIC
            reason = f"{mismatched} of {ours.numel()} elements ({mismatched / ours.numel():.1%}) differ"
    return Leaf(
        path,
        agrees=not mismatched,
        cause=cause,
        reason=reason,
        mismatched=mismatched,
        max_abs=math.inf if bool(bad_special.any()) else float(error.max()),
        max_rel=float(relative.max()),
        allowed=float(allowed.flatten()[worst]),
        index=where,
        expected=_spell(one, ours.dtype),
        actual=_spell(two, ours.dtype),
        **facts,  # type: ignore[arg-type]
    )


def _spell(number: float, dtype: torch.dtype) -> str:
    if dtype is torch.bool:
        return str(bool(number))
    if not dtype.is_floating_point:
        return str(int(number))
    return f"{number:.9g}" if dtype is not torch.float64 else f"{number:.17g}"
