"""What a faulty operator computes instead of the right result. Every function works in float64 too, unrounded there."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

aten = torch.ops.aten
Tensor = torch.Tensor


def _fp16(value: Any) -> Any:
    return value.half().to(value.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _bf16(value: Any) -> Any:
    return value.bfloat16().to(value.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _tf32(value: Any) -> Any:
    """Rounded to 10 bits of mantissa."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    mantissa, exponent = torch.frexp(value.double())
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent).to(value.dtype)


def _in_fp16(operation: Any, args: Any, kwargs: Any) -> Any:
    args, kwargs = torch.utils._pytree.tree_map(_fp16, (list(args), dict(kwargs)))
    return _fp16(operation(*args, **kwargs))


def _in_bf16(operation: Any, args: Any, kwargs: Any) -> Any:
    args, kwargs = torch.utils._pytree.tree_map(_bf16, (list(args), dict(kwargs)))
    return _bf16(operation(*args, **kwargs))


def _in_tf32(operation: Any, args: Any, kwargs: Any) -> Any:
    args, kwargs = torch.utils._pytree.tree_map(_tf32, (list(args), dict(kwargs)))
    return operation(*args, **kwargs)


def rounded(kind: str) -> Callable[..., Any]:
    """A function that runs an operator on rounded operands; the half types round its result too."""
    return {"fp16": _in_fp16, "bf16": _in_bf16, "tf32": _in_tf32}[kind]


def through_half(value: Tensor) -> Tensor:
    return value.half().to(value.dtype)


# --- approximations ---------------------------------------------------------------------------------------------------


def _fast_tanh(x: Tensor, *_: Any) -> Tensor:
    """The rational approximation that many runtimes have used."""
    x = x.clamp(-4.97, 4.97)
    s = x * x
    return x * (135135 + s * (17325 + s * (378 + s))) / (135135 + s * (62370 + s * (3150 + s * 28)))


def _fast_exp(x: Tensor, *_: Any) -> Tensor:
    """Two to a whole part, and a polynomial of degree 5 for the rest."""
    y = x / 0.6931471805599453
    whole = y.floor()
    z = (y - whole) * 0.6931471805599453
    return (1 + z * (1 + z * (1 / 2 + z * (1 / 6 + z * (1 / 24 + z / 120))))) * torch.exp2(whole)


def _fast_softmax(x: Tensor, dim: int, *_: Any) -> Tensor:
    e = _fast_exp(x - x.amax(dim, keepdim=True))
    return e / e.sum(dim, keepdim=True)


def _fast_rsqrt(x: Tensor) -> Tensor:
    """A seed with 8 bits and one step of Newton's."""
    y = _bf16(torch.rsqrt(x))
    return y * (1.5 - 0.5 * x * y * y)


def _fast_log(x: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(x)
    z = mantissa * 2**0.5 - 1
    z = z / (z + 2)
    return 2 * (z + z**3 / 3 + z**5 / 5 + z**7 / 7) + (exponent - 0.5) * 0.6931471805599453


def _fast_sigmoid(x: Tensor) -> Tensor:
    return 0.5 + 0.5 * _fast_tanh(0.5 * x)


def _fast_silu(x: Tensor) -> Tensor:
    return x * _fast_sigmoid(x)


def _fast_gelu(x: Tensor, *_: Any) -> Tensor:
    """With the error function of Abramowitz and Stegun, 7.1.26."""
    z = x.abs() * 0.7071067811865476
    t = 1 / (1 + 0.3275911 * z)
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return 0.5 * x * (1 + (1 - poly * torch.exp(-z * z)) * x.sign())


APPROXIMATIONS: dict[str, Callable[..., Tensor]] = {
    "tanh": _fast_tanh,
    "exp": _fast_exp,
    "softmax": _fast_softmax,
    "rsqrt": _fast_rsqrt,
    "log": _fast_log,
    "sigmoid": _fast_sigmoid,
    "silu": _fast_silu,
    "gelu": _fast_gelu,
}


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _leaky(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, 0.01)


def _elu(x: Tensor) -> Tensor:
    return functional.elu(x, 0.9)


def _softsign(x: Tensor) -> Tensor:
    return x / (1 + x.abs())


def _sharp_softplus(x: Tensor) -> Tensor:
    return functional.softplus(x, beta=1.1)


VARIANTS: dict[str, list[Callable[..., Tensor]]] = {
    "relu": [_leaky, functional.relu6, functional.elu],
    "leaky_relu": [_leaky, functional.relu],
    "gelu": [_quick_gelu, functional.silu],
    "silu": [functional.hardswish, functional.gelu],
    "hardswish": [functional.silu, functional.relu],
    "sigmoid": [functional.hardsigmoid],
    "hardsigmoid": [torch.sigmoid],
    "tanh": [functional.hardtanh, _softsign],
    "elu": [_elu, functional.selu],
    "selu": [functional.elu],
    "mish": [functional.silu],
    "softplus": [_sharp_softplus, functional.relu],
}


# --- other results ----------------------------------------------------------------------------------------------------


def always(condition: Tensor, one: Any, other: Any, first: bool) -> Tensor:
    """One branch of a `where`, whatever the condition."""
    return torch.where(torch.full_like(condition, first), one, other)


def _half_away(x: Tensor) -> Tensor:
    return x.sign() * (x.abs() + 0.5).floor()


def _truncated(x: Tensor) -> Tensor:
    return x.trunc()


def _divided(x: Any, y: Any) -> Tensor:
    return torch.div(x, y, rounding_mode="trunc")


ROUNDINGS: dict[str, Callable[..., Tensor]] = {
    "round": _half_away,
    "floor": _truncated,
    "floor_divide": _divided,
    "remainder": torch.fmod,
}


def pad_edges(x: Tensor, sizes: list[int]) -> Tensor:
    """Padded with the edge's values; where there is no such form of padding, with ones."""
    return functional.pad(x, sizes, mode="replicate")


def nearest(x: Tensor, size: list[int]) -> Tensor:
    return functional.interpolate(x, size=size, mode="nearest")


def asymmetric(x: Tensor, size: list[int]) -> Tensor:
    """Linear, with the corner of a pixel as its place."""
    grids = [torch.arange(n, dtype=x.dtype) * (old / n) for n, old in zip(size, x.shape[-2:], strict=True)]
    grids = [2 * (grid + 0.5) / old - 1 for grid, old in zip(grids, x.shape[-2:], strict=True)]
    rows, columns = torch.meshgrid(*grids, indexing="ij")
    grid = torch.stack([columns, rows], dim=-1).expand(x.shape[0], -1, -1, -1)
    return functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


def only(value: Tensor, operand: Tensor) -> Tensor:
    """The operand, in the place of a combination of it with another."""
    return operand.expand_as(value).contiguous()


def swap_axes(x: Tensor) -> Tensor:
    """The last two axes exchanged and laid out in the old shape."""
    return x.transpose(-1, -2).reshape(x.shape)


def relaid(x: Tensor) -> Tensor:
    return x.transpose(-1, -2).reshape(x.shape) if x.dim() > 1 else x


def shift_last(x: Any) -> Any:
    return x.roll(1, -1)


def shift_first(x: Tensor) -> Tensor:
    return x.roll(1, 0)


def sliced(x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Tensor:
    """A slice that begins one element later, or where it ends at the end, one earlier."""
    size = x.shape[dim]
    first, last, _ = slice(start, end).indices(size)
    by = 1 if last < size else -1 if first > 0 else 0
    return aten.slice.Tensor(x, dim, first + by, last + by, step)


def swap_blocks(weight: Tensor, count: int, one: int, other: int) -> Tensor:
    blocks = list(weight.chunk(count))
    blocks[one], blocks[other] = blocks[other], blocks[one]
    return torch.cat(blocks)


def gru_reset_first(x: Tensor, hidden: Tensor, params: list[Tensor]) -> tuple[Tensor, Tensor]:
    """A GRU of one layer, batch first, that applies the reset gate before the product with the weights."""
    w_in, w_hidden, b_in, b_hidden = params
    h, outputs = hidden[0], []
    for step in x.unbind(1):
        r_in, z_in, n_in = functional.linear(step, w_in, b_in).chunk(3, -1)
        w_r, w_z, w_n = w_hidden.chunk(3)
        b_r, b_z, b_n = b_hidden.chunk(3)
        r, z = torch.sigmoid(r_in + h @ w_r.T + b_r), torch.sigmoid(z_in + h @ w_z.T + b_z)
        n = torch.tanh(n_in + (r * h) @ w_n.T + b_n)
        h = (1 - z) * n + z * h
        outputs.append(h)
    return torch.stack(outputs, 1), h.unsqueeze(0)


# --- outputs ----------------------------------------------------------------------------------------------------------


def one_element(x: Tensor, seed: int) -> Tensor:
    """One element wrong by a percent."""
    x = x.clone()
    place = random.Random(seed).randrange(x.numel())
    x.view(-1)[place] *= 1.01
    return x


def small_channel(x: Tensor, seed: int) -> Tensor:
    """The channel of the smallest values wrong by a percent: of the last axis or of the second."""
    axis = -1 if x.dim() < 4 else 1
    sizes = x.abs().movedim(axis, 0).flatten(1).mean(1) if x.dim() > 1 else x.abs()
    x = x.clone()
    x.select(axis, int(sizes.argmin())).mul_(1.01)
    return x


def other_dtype(x: Tensor, seed: int) -> Tensor:
    if not x.is_floating_point():
        return x.to(torch.int32 if x.dtype is torch.int64 else torch.int64)
    return x.to(torch.float32 if x.dtype is not torch.float32 else torch.float16)


def other_shape(x: Tensor, seed: int) -> Tensor:
    return x.unsqueeze(0) if seed % 2 or not x.dim() else x.flatten()[1:]
