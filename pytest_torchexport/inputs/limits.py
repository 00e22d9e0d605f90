"""How the numbers of one argument may vary: limits, whole or not, and values made to lie in them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.inputs.values import as_numbers, can_vary

if TYPE_CHECKING:
    from pytest_torchexport.inputs.base import Span

_INDICES = 2**19
"""Undeclared integers of a tensor are tried up to this: beyond the largest vocabularies."""

_COUNTS = 2**12
"""Undeclared single integers: they may be sizes, and the square of one must still be a tensor that fits."""

_BELOW = 128
"""How far below zero undeclared integers are tried."""


@dataclass(frozen=True)
class Limits:
    """What the numbers of an argument may be.

    Attributes:
        low: the smallest value that the domain holds; -inf where nothing bounds it.
        high: the largest one.
        reach: wider limits for undeclared integers, for which eager is the judge; elsewhere (low, high). On an
            accelerator they are no wider: an index out of range would end the process.
        integral: whole numbers only.
        boolean: a bool tensor or a Python flag.
        declared: the user declared the domain.
        choices: the only values, where the domain lists them; else empty.
    """

    low: float
    high: float
    reach: tuple[float, float]
    integral: bool
    boolean: bool
    declared: bool
    choices: tuple[float, ...] = ()

    @classmethod
    def of(cls, example: Any, span: Span, *, declared: bool) -> Limits:
        """The limits of a leaf with the domain's span."""
        tensor = isinstance(example, torch.Tensor)
        boolean = isinstance(example, bool) or (tensor and example.dtype is torch.bool)
        reach = (span.low, span.high)
        if span.integral and not declared and not boolean and not (tensor and example.device.type != "cpu"):
            wide = _INDICES if tensor and example.dim() else _COUNTS
            reach = (min(2 * span.low, -_BELOW), max(2 * span.high, wide))
            if tensor and not example.is_floating_point():
                info = torch.iinfo(example.dtype)
                reach = (max(reach[0], info.min), min(reach[1], info.max))
        return cls(span.low, span.high, reach, span.integral, boolean, declared, span.choices)

    def below(self, ceiling: int | None) -> Limits:
        """The limits where nothing above the ceiling is a valid index any more."""
        if ceiling is None or self.declared or not self.integral or self.boolean:
            return self
        high = max(self.low, min(self.high, ceiling))
        same = self.reach == (self.low, self.high)
        return replace(self, high=high, reach=(self.low, high) if same else self.reach)

    def fit(self, values: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
        """The values moved into the reach, as numbers of the current tensor's dtype.

        What equals the current value stays as it is, and what has no place in the domain (NaN among whole numbers, or
        where a range is declared) becomes it.

        Args:
            values: any numbers, of the current tensor's shape.
            current: the dense values that stand there now.
        """
        if self.boolean:
            made = values if values.dtype is torch.bool else (values >= 0.5) | (values.isnan() & current)
            return made.to(torch.bool)
        before = as_numbers(current)
        made = values.to(torch.float64) if values.is_floating_point() else values.to(torch.int64)
        if self.choices:
            made = self._chosen(made.double(), before.double())
        elif made.is_floating_point():
            made = self._float(made, before.double(), current.dtype)
        else:
            low, high = max(self.reach[0], -(2**63)), min(self.reach[1], 2**63 - 1)
            made = made.clamp(math.ceil(low), math.floor(high))
        if not before.is_floating_point() and made.is_floating_point():
            made = made.clamp(-(2.0**63), 2.0**63 - 1024).long()
        return torch.where(values == before.to(values.dtype), current, made.to(current.dtype))

    def _float(self, made: torch.Tensor, before: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if self.integral:
            made = made.round()
        if self.integral or self.declared:
            made = torch.where(made.isnan(), before, made)
        elif dtype.is_floating_point and dtype.itemsize < 8:  # what is finite stays so
            limit = torch.finfo(dtype).max
            made = torch.where(made.isfinite(), made.clamp(-limit, limit), made)
        return made.clamp(*self.reach)

    def _chosen(self, made: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """The nearest of the choices."""
        choices = torch.tensor(self.choices, dtype=torch.float64)
        apart = torch.where(made.unsqueeze(-1) == choices, 0.0, (made.unsqueeze(-1) - choices).abs())
        nearest = choices[apart.nan_to_num(nan=math.inf, posinf=math.inf).argmin(-1)]
        return torch.where(made.isnan() & ~choices.isnan().any(), before, torch.where(made.isnan(), made, nearest))


@dataclass(frozen=True, eq=False, kw_only=True)
class Numbers(Limits):
    """The numbers of one leaf of a call, with what they may be.

    Attributes:
        value: the leaf itself if it is a tensor, never to be written to; of a Python number a tensor of no dimension.
    """

    value: torch.Tensor


def can_move(leaf: object) -> bool:
    """Whether the leaf is a tensor or a Python number whose values can be varied one by one."""
    if isinstance(leaf, torch.Tensor):
        return can_vary(leaf) and leaf.layout is torch.strided and not leaf.is_complex()
    return isinstance(leaf, (bool, int, float))
