"""A value as localisation compares it: flat, since reshapes keep the order, and of a bounded size."""

from __future__ import annotations

import functools

import torch

from pytest_torchexport.compare.spread import wide

_LEAST_DISTINCT = 4
"""A value with fewer different numbers may equal another one by chance."""


def sketch(tensor: torch.Tensor, cap: int) -> torch.Tensor:
    """The numbers of a tensor in a row, as doubles; of a large one sums over pieces of it, with random signs.

    A sum with random signs tells a piece from nearly every other, one with its elements in another order too, and is
    as far off as the elements' errors are. Two tensors with equally many elements have comparable sketches.

    Args:
        tensor: of any dtype, device and layout.
        cap: the most numbers that are kept.
    """
    row = wide(tensor).reshape(-1)
    count = row.numel()
    if count <= cap:
        return row.clone()
    length = -(-count // cap)
    padded = torch.nn.functional.pad(row * _signs(count, row.device), (0, -count % length))
    return padded.view(-1, length).sum(1)


@functools.lru_cache(maxsize=4)
def _signs(count: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    bits = torch.randint(2, (count,), generator=generator, dtype=torch.int8, device="cpu")
    return (bits * 2 - 1).to(device, torch.float64)


def tells_something(tensor: torch.Tensor) -> bool:
    """Whether two values that are equal to this one will hardly be equal by chance.

    A constant says nothing, neither do a few flags. A single number does if it is not a round one.
    """
    if not tensor.numel():
        return False
    row = wide(tensor).reshape(-1)
    row = row[row.isfinite()][:100_000]
    if tensor.dtype is torch.bool:
        return bool(min(row.sum(), row.numel() - row.sum()) >= _LEAST_DISTINCT)
    distinct: torch.Tensor = torch.unique(row[:64])  # as a rule enough
    if distinct.numel() < _LEAST_DISTINCT:
        distinct = torch.unique(row)
    if distinct.numel() >= _LEAST_DISTINCT:
        return True
    return bool((distinct * 1024 != (distinct * 1024).round()).any())
