"""A scripted gate inside a traced cell: the part with the branch is scripted, the rest may be traced.

A trace records a call of a scripted module as a call, not as the operations inside it. So only the small part with
control flow has to be written in what TorchScript's compiler accepts.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

# PyTorch announces the end of TorchScript with a warning, and here warnings are errors.
pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.:DeprecationWarning")


class DecisionGate(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x
        return -x


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = torch.jit.script(DecisionGate())
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        new_h = torch.tanh(self.gate(self.linear(x)) + h)
        return new_h, new_h


# The other way round it does not work: torch.compile does not look into scripted modules and leaves the whole cell to
# eager. Its results are right, but nothing was compiled, so there is nothing that an `ok` could be about.
@pytest.mark.export_equivalent(
    backends=["trace", "script", "compile"],
    xfail={"compile": "nothing is compiled: torch.compile gives up on a function that calls a scripted module"},
)
def test_scripted_gate_in_traced_cell(export_check):
    export_check(Cell().eval(), (torch.rand(3, 4), torch.rand(3, 4)))
