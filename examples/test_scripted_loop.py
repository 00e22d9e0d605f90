"""Trace and script in turns: a scripted loop around a traced cell, and a traced module around that loop.

A traced loop is unrolled: it runs as many times as it did for the example, whatever the length of the sequence.
Scripted, the loop stays a loop, also inside a module that is traced. Both kinds are saved and loaded before they are
compared.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import Dim

BATCH, FEATURES = 3, 4
LENGTHS = {"sequence": {0: Dim("length", min=1, max=12)}}

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
        self.linear = nn.Linear(FEATURES, FEATURES)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        new_h = torch.tanh(self.gate(self.linear(x)) + h)
        return new_h, new_h


class Loop(nn.Module):
    """Runs a traced cell over a sequence of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = torch.jit.trace(Cell().eval(), (torch.rand(BATCH, FEATURES), torch.rand(BATCH, FEATURES)))

    def forward(self, sequence: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.zeros(sequence.size(1), sequence.size(2))
        h = torch.zeros(sequence.size(1), sequence.size(2))
        for i in range(sequence.size(0)):
            y, h = self.cell(sequence[i], h)
        return y, h


class Network(nn.Module):
    """Calls the scripted loop, and works on its result in a way that needs no control flow."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = torch.jit.script(Loop().eval())
        self.head = nn.Linear(FEATURES, 2)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        y, _ = self.loop(sequence)
        return self.head(torch.relu(y))


@pytest.mark.export_equivalent(
    backends=["trace", "script"],
    xfail={"trace": "the loop is unrolled: it runs as often as for the example"},
)
def test_loop_around_traced_cell(export_check):
    export_check(Loop().eval(), (torch.rand(6, BATCH, FEATURES),), dynamic_shapes=LENGTHS)


@pytest.mark.export_equivalent(backends=["trace", "script"])
def test_traced_module_around_scripted_loop(export_check):
    export_check(Network().eval(), (torch.rand(6, BATCH, FEATURES),), dynamic_shapes=LENGTHS)


# The older ONNX exporter goes through TorchScript: it writes the loop as ONNX `Loop` and the decision as `If`, provided
# that all it is given is scripted.
@pytest.mark.export_equivalent(backends=["onnx-torchscript"])
def test_scripted_network_to_onnx(export_check):
    scripted = torch.jit.script(Network().eval())
    export_check(scripted, (torch.rand(6, BATCH, FEATURES),), dynamic_shapes=LENGTHS)
