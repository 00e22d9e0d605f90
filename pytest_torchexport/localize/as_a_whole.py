"""A program that is right operator by operator, and wrong when it runs as a whole: its runtime rewrites it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_torchexport.outcome import Divergence

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from pytest_torchexport.backends.base import Step


def rewritten(
    optimizer: str,
    differing: Sequence[tuple[torch.Tensor, torch.Tensor]],
    walk: Callable[[Callable[[int, Step], None]], bool],
) -> Divergence | None:
    """Say that the runtime is at fault, if what the steps give is eager's result and not the program's own.

    Args:
        optimizer: what rewrites the program for a call and not for its steps; empty if nothing does.
        differing: the results that differ: eager's, the program's.
        walk: runs the steps of the program.
    """
    pairs = [_Pair(mine, theirs) for mine, theirs in differing]
    if not optimizer or not pairs:
        return None

    def see(_: int, step: Step) -> None:
        for tensor in step.outputs.values():
            for pair in pairs:
                pair.meet(tensor)

    if not walk(see) or not all(pair.is_eagers for pair in pairs):
        return None
    note = f"operator by operator the program computes what eager does: the difference comes from {optimizer}"
    return Divergence(note=note)


@dataclass
class _Pair:
    """A result that differs, and how near the values of the steps come to either form of it."""

    mine: torch.Tensor
    theirs: torch.Tensor
    to_mine: float = field(default=math.inf, init=False)
    to_theirs: float = field(default=math.inf, init=False)

    def meet(self, value: torch.Tensor) -> None:
        self.to_mine = min(self.to_mine, _distance(value, self.mine))
        self.to_theirs = min(self.to_theirs, _distance(value, self.theirs))

    @property
    def is_eagers(self) -> bool:
        """Whether the steps give eager's form of the result, and nothing like the program's."""
        apart = _distance(self.mine, self.theirs)
        return math.isfinite(apart) and self.to_mine <= apart / 10 and self.to_theirs >= apart / 2


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    if one.shape != other.shape or not one.numel() or one.is_complex() or other.is_complex():
        return math.inf
    distance = float((one.double() - other.to(one.device).double()).abs().max())
    return math.inf if math.isnan(distance) else distance
