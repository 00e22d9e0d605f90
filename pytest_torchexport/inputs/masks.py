"""Domains of masks for which none was declared: bool tensors, and integers that are only 0 and 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.inputs.base import Derived, Span

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_torchexport.inputs.values import Special, Want


@dataclass(frozen=True)
class Mask(Derived):
    """Flags, or integers that are only 0 and 1.

    Attributes:
        alive: every row of the example has a flag set.
        padding: every row of the example is set up to some place and clear behind it, as the mask of a padded batch
            is. A row of ones shows that only where the flags are integers, the form of attention masks.
    """

    alive: bool
    padding: bool

    @classmethod
    def of(cls, example: torch.Tensor) -> Mask:
        """Read whether the example looks like the mask of a padded batch."""
        flags = example != 0
        if not example.dim() or not example.numel():
            return cls(alive=False, padding=False)
        falling = bool((flags[..., :-1] | ~flags[..., 1:]).all()) and bool(flags[..., 0].all())
        shown = example.dtype is not torch.bool or not bool(flags.all())
        return cls(alive=bool(flags.any(-1).all()), padding=falling and shown and example.shape[-1] > 2)

    def span(self, example: Any) -> Span | None:
        """0 and 1."""
        del example
        return Span(0, 1, integral=True)

    def random(self, example: Any, want: Want) -> Any:
        """Flags at random, or a prefix of each row."""
        shape = want.shape
        if shape and shape[-1] and (self.padding or want.below(3) == 0):  # a prefix of each row
            lengths = torch.randint(shape[-1] + 1, (*shape[:-1], 1), generator=want.generator)
            flags = torch.arange(shape[-1]) < lengths
        else:
            flags = torch.rand(shape, dtype=torch.float64, generator=want.generator) < want.uniform(0.05, 0.95)
        if self.alive and shape and shape[-1]:
            flags[..., 0] |= ~flags.any(-1)
        return flags.to(example.dtype)

    def specials(self, example: Any) -> list[Special]:
        """All set, none, and parts of each row; of the mask of a padded batch only prefixes."""

        def made(flags: Callable[[tuple[int, ...]], torch.Tensor]) -> Callable[[Want], Any]:
            return lambda want: flags(want.shape).to(example.dtype)

        half: list[Special] = [
            ("first half set", made(lambda shape: _position(shape) < 0.5)),
            ("last half set", made(lambda shape: _position(shape) >= 0.5)),
            ("only the first set", made(lambda shape: _position(shape) <= 0)),
        ]
        names = ("all True", "all False") if example.dtype is torch.bool else ("ones", "zeros")
        if self.padding:
            return [(names[0], made(torch.ones)), half[0], half[2]]
        return [(names[0], made(torch.ones)), *(half if example.dim() else []), (names[1], made(torch.zeros))]


def _position(shape: tuple[int, ...]) -> torch.Tensor:
    """Where each element stands in its row: from 0 to below 1."""
    return (torch.arange(shape[-1]) / max(shape[-1], 1)).expand(shape)
