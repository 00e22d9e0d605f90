"""Modules that decide on values of float tensors; see `case.py` for the format."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from tests.branches.corpus.case import EXAMPLE, Case, Truth, call, normal, seeded

if TYPE_CHECKING:
    from torch import Tensor

CASES: list[Case] = []


class MeanGate(nn.Module):
    """A highway unit that opens when the input is bright enough."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0.5:
            return torch.relu(self.transform(x))
        return x


CASES.append(
    Case(
        "mean gate",
        make=lambda: seeded(MeanGate),
        args=lambda: (normal(2, 8),),
        decisions=[Truth("x.mean() > 0.5", true=lambda: call(normal(2, 8, shift=2.0)), false=EXAMPLE)],
        wrong={"trace": "x.mean() > 0.5"},
    )
)
