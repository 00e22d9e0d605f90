"""A cell with a decision: a trace keeps the branch that the example took, a script keeps both.

`torch.jit.trace` records the operations that one call performs. Python's `if` is not an operation, so the recording
holds one of the two branches and applies it to every later input, without an error. A test that compares only on the
example input passes. Here the plugin draws more inputs, some of which take the other branch.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn


class DecisionGate(nn.Module):
    """Passes its input on, with the sign flipped if the sum is not positive."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x
        return -x


class WhereGate(nn.Module):
    """The same decision as an operation on tensors, which every exporter understands."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x.sum() > 0, x, -x)


class Cell(nn.Module):
    """One step of a recurrent network: the new hidden state is also the output."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        new_h = torch.tanh(self.gate(self.linear(x)) + h)
        return new_h, new_h


# The ONNX exporter captures the program with torch.export, which refuses such a branch. That is an honest failure:
# nothing wrong can be shipped. The trace is the dangerous one, and only a comparison on other inputs shows it.
@pytest.mark.export_equivalent(
    backends=["trace", "script", "compile", "onnx"],
    xfail={
        "trace": "keeps only the branch that the example took",
        "onnx": "torch.export refuses a branch on a tensor's value",
    },
)
def test_branch_in_python(export_check):
    export_check(Cell(DecisionGate()).eval(), (torch.rand(3, 4), torch.rand(3, 4)))


# The remedy: no branch in Python, and nothing is lost on any backend.
@pytest.mark.export_equivalent(backends=["trace", "script", "compile", "export", "aoti", "onnx", "onnx-torchscript"])
def test_branch_as_operation(export_check):
    export_check(Cell(WhereGate()).eval(), (torch.rand(3, 4), torch.rand(3, 4)))
