"""A block of pointwise operators: eager goes through memory once for each of them, a compiler once for all.

The export has to be worth its while: it may not take longer than eager, a service has to answer its first call in time,
and an input of another size may cost one more compilation, not one for each size.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_torchexport import Budget


class Companding(nn.Module):
    """Compress the loud parts of a signal and gate the silent ones."""

    def __init__(self, threshold: float = 0.1, ratio: float = 4.0):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))
        self.ratio = nn.Parameter(torch.tensor(ratio))

    def forward(self, signal):
        level = torch.sqrt(signal * signal + 1e-8)
        over = torch.clamp(torch.log(level) - torch.log(self.threshold), min=0)
        gain = torch.exp(-over * (1 - 1 / self.ratio))
        gate = torch.sigmoid((level - self.threshold / 4) * 50)
        return torch.tanh(signal * gain * gate)


@pytest.mark.export_equivalent(
    backends=["trace", "script", "compile", "onnx"],
    latency={
        "trace": "1.5x",
        "script": "1.5x",
        "onnx": Budget(ratio="1.5x", first_call="5s", artifact_size="100kB"),
        "compile": Budget(ratio="1.5x", recompiles=1),
    },
)
def test_companding(export_check):
    signal = torch.randn(2, 48_000)
    export_check(Companding().eval(), (signal,), dynamic_shapes={"signal": {1: torch.export.Dim("samples", min=2)}})
