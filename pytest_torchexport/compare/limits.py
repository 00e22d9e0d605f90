"""Bounds for an element's deviation from eager that need no measurement."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Limit:
    """The bound `|exported - eager| <= atol + rtol * |eager|`; atol is in the unit of the value."""

    rtol: float
    atol: float


EXACT = Limit(0.0, 0.0)

_DEFAULTS = {
    torch.float64: (1e-7, 1e-7),
    torch.float32: (1.3e-6, 1e-5),
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
}
"""rtol and atol by dtype: the documented defaults of `torch.testing.assert_close`."""


def assert_close(dtype: torch.dtype) -> Limit:
    """What `torch.testing.assert_close` accepts by default; exact for what is not floating."""
    real = dtype.to_real() if dtype.is_complex else dtype
    if not real.is_floating_point:
        return EXACT
    return Limit(*_DEFAULTS.get(real, (2 * torch.finfo(real).eps, 1e-5)))


def without_measurement(dtype: torch.dtype, scale: float) -> Limit:
    """The bound where eager's rounding noise cannot be measured.

    It is that of `assert_close`, whose atol fits outputs of the order of one; it is reduced in proportion for smaller
    ones, which would otherwise pass with any error.

    Args:
        dtype: of eager's output; of the real part for complex ones.
        scale: the largest finite magnitude in eager's output.
    """
    limit = assert_close(dtype)
    return Limit(limit.rtol, limit.atol * min(1.0, scale))


def surely_within(dtype: torch.dtype, k: float) -> Limit:
    """What the calibrated rule accepts whatever the noise is, so that it need not be measured.

    The rule is `|z - r| <= k * T` with the scale `T >= max(|r - y|, u * |y|, smallest normal)`. Since
    `|z - r| <= |z - y| + |y - r| <= |z - y| + T`, it holds wherever `|z - y| <= (k - 1) * max(u * |y|, normal)`.
    """
    real = dtype.to_real() if dtype.is_complex else dtype
    if not real.is_floating_point:
        return EXACT
    info = torch.finfo(real)
    # The relative part alone: rtol and atol are added, and the sum of both would accept more.
    return Limit((k - 1) * info.eps / 2, 0.0)
