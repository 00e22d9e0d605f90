"""Inputs by chance: some numbers of a known input changed, by amounts of all magnitudes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from pytest_torchexport.inputs.space import Space
    from pytest_torchexport.subject.call import Call


def mutated(space: Space, calls: tuple[Call, ...], generator: torch.Generator) -> tuple[Call, ...] | None:
    """The input with some of its numbers changed; None where there is none to change.

    Args:
        space: what may vary.
        calls: the input.
        generator: the source of chance.
    """

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    made = []
    for call in calls:
        values = {}
        for path, one in space.numbers(call).items():
            now = one.value.detach().to("cpu", torch.float64)
            some = uniform(*now.shape) < uniform()
            size = 10 ** (4 * uniform() - 2)
            noise = torch.randn(now.shape, generator=generator, dtype=torch.float64) * size * (1 + now.abs())
            if one.integral:
                low, high = max(one.low, -1e6), min(one.high, 1e6)
                noise = low + (high - low + 1) * uniform(*now.shape) - 0.5 - now
            values[path] = torch.where(some, now + noise, now)
        made.append(space.with_values(call, values, "") if values else call)
    return tuple(made) if any(one is not call for one, call in zip(made, calls, strict=True)) else None
