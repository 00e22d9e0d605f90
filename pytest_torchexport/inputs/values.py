"""The numbers in a tensor, apart from how the tensor holds them: read as a plain dense tensor, put back the same way.

Drawing then never meets devices, strides, sparse layouts or `requires_grad`.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


@dataclass(frozen=True, eq=False)
class Want:
    """What a draw has to deliver.

    Attributes:
        shape: the shape of the dense values; `()` for a Python scalar.
        generator: the only source of randomness.
        ceiling: largest integer that is still a valid index or length where sizes were drawn smaller than the
            example's; None if no size shrank.
    """

    shape: tuple[int, ...]
    generator: torch.Generator
    ceiling: int | None = None

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """One number in [low, high)."""
        return low + (high - low) * float(torch.rand((), dtype=torch.float64, generator=self.generator))

    def below(self, count: int) -> int:
        """One integer in [0, count)."""
        return int(torch.randint(count, (), generator=self.generator))


def generator(*key: object) -> torch.Generator:
    """A source of randomness of its own for the key: the seed, and what is drawn with it."""
    text = "/".join(map(str, key))
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")
    return torch.Generator().manual_seed(number)


Special = tuple[str, Callable[[Want], Any]]
"""A draw with something particular about it: its label, and how to make it."""


def can_vary(value: object) -> bool:
    """Whether other numbers can be put into the tensor: plain dense and sparse tensors that hold data."""
    if not isinstance(value, torch.Tensor) or type(value) not in (torch.Tensor, torch.nn.Parameter):
        return False
    if value.is_quantized or value.is_nested or value.is_meta or value.dtype.itemsize == 0:
        return False
    kind = (torch.strided, torch.sparse_coo, *_COMPRESSED)
    return value.layout in kind and (value.dtype.is_floating_point or value.is_complex() or _is_counting(value.dtype))


def _is_counting(dtype: torch.dtype) -> bool:
    """Bool and the integer types that torch can compute with (not the packed and the sub-byte ones)."""
    return dtype in {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16,
                     torch.uint32, torch.uint64}  # fmt: skip


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers that can be drawn anew: on the CPU, contiguous, without gradient history, in the same dtype.

    Of a sparse tensor these are the stored values; of an expanded one, one copy of each.
    """
    tensor = tensor.detach()
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce().values()
    elif tensor.layout in _COMPRESSED:
        tensor = tensor.values()
    elif tensor.numel():
        tensor = tensor[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())]
    return tensor.cpu().resolve_conj().resolve_neg().contiguous()


def dense_shape(tensor: torch.Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that `dense` has when the tensor has the given shape."""
    if tensor.layout is not torch.strided or not tensor.numel():
        return tuple(dense(tensor).shape) if tensor.layout is not torch.strided else shape
    return tuple(min(size, 1) if stride == 0 else size for size, stride in zip(shape, tensor.stride(), strict=True))


def like(example: torch.Tensor, numbers: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor with the given numbers and shape that holds them as the example does.

    Device, dtype, layout, the order of the dimensions in memory, gaps between elements (where the shape is the
    example's), expansion and `requires_grad` are the example's.
    """
    numbers = numbers.to(example.device, example.dtype)
    if example.layout is torch.sparse_coo:
        stored = example.detach().coalesce()
        made = torch.sparse_coo_tensor(
            stored.indices(),
            numbers,
            stored.shape,
            device=example.device,
            check_invariants=False,
            is_coalesced=True,
        )
    elif example.layout in _COMPRESSED:
        made = example.detach().clone()
        made.values().copy_(numbers)
    else:
        made = _strided_like(example.detach(), numbers, shape)
    return made.requires_grad_(example.requires_grad)


def _strided_like(example: torch.Tensor, numbers: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if shape == tuple(example.shape) and example.is_contiguous():
        return numbers
    strides = example.stride()
    if shape == tuple(example.shape) and example.numel() and _is_injective(example):
        extent = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        room = numbers.new_zeros(extent).as_strided(tuple(numbers.shape), strides)
        return room.copy_(numbers).expand(shape)
    order = sorted(range(len(shape)), key=lambda dim: -strides[dim])
    back = [order.index(dim) for dim in range(len(shape))]
    return numbers.permute(order).contiguous().permute(back).expand(shape)


def _is_injective(example: torch.Tensor) -> bool:
    """Whether no two elements (expanded dimensions aside) share a place in memory."""
    steps = sorted((stride, size) for size, stride in zip(example.shape, example.stride(), strict=True) if size > 1)
    reach = 0
    for stride, size in steps:
        if stride == 0:
            continue
        if stride <= reach:
            return False
        reach += stride * (size - 1)
    return True


@functools.lru_cache(maxsize=64)
def inward(low: float, high: float, dtype: torch.dtype) -> tuple[float, float] | None:
    """The smallest and the largest number of the floating dtype inside [low, high]; None if there is none."""
    if dtype.itemsize <= 2:
        bits = torch.arange(256, dtype=torch.uint8)
        if dtype.itemsize == 2:
            bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
        every = bits.view(dtype).double()
        inside = every[(every >= low) & (every <= high)]
        return (float(inside.min()), float(inside.max())) if len(inside) else None
    first, last = torch.tensor(low, dtype=dtype), torch.tensor(high, dtype=dtype)
    infinity = torch.tensor(float("inf"), dtype=dtype)
    first = torch.nextafter(first, infinity) if float(first) < low else first
    last = torch.nextafter(last, -infinity) if float(last) > high else last
    return (float(first), float(last)) if first <= last else None


def as_numbers(tensor: torch.Tensor) -> torch.Tensor:
    """The dense values as real float64 or int64 numbers; of a complex tensor with a last dimension (real, imag)."""
    if tensor.is_complex():
        return torch.view_as_real(tensor).double()
    return tensor.double() if tensor.is_floating_point() else tensor.long()
