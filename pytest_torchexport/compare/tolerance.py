"""How far a value may be off: `Tolerance`, and its defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pytest_torchexport.errors import UsageError


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
