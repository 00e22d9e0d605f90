"""A network with an early exit: where the first classifier is sure, the rest is not computed.

No ordinary input comes near the threshold, neither the example nor what is drawn from it: with such inputs a trace,
which has the long way only, passes. The plugin searches for an input that takes the exit, along the gradient of the
condition, and runs it on every backend.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn


class Network(nn.Module):
    """Two classifiers, one after two layers and one after four."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU())
        self.first = nn.Linear(16, 10)
        self.rest = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.second = nn.Linear(32, 10)

    def early(self, features: torch.Tensor) -> torch.Tensor:
        return self.first(features.mean(dim=(2, 3))).softmax(dim=-1)

    def late(self, features: torch.Tensor) -> torch.Tensor:
        return self.second(self.rest(features)).softmax(dim=-1)


class EarlyExit(Network):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.stem(image)
        classes = self.early(features)
        if classes.max() > 0.99:
            return classes
        return self.late(features)


class Selected(Network):
    """The same results from one graph: both classifiers run, and the first is taken where it is sure."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.stem(image)
        classes = self.early(features)
        return torch.where(classes.max() > 0.99, classes, self.late(features))


# The trace is wrong, and only the search shows it. `min_coverage` makes sure that both ways were compared.
@pytest.mark.export_equivalent(
    backends=["trace", "script", "compile", "onnx"],
    min_coverage=1.0,
    xfail={
        "trace": "has no exit: the example did not take it",
        "onnx": "torch.export refuses a branch on a tensor's value",
    },
)
def test_branch_in_python(export_check):
    export_check(EarlyExit().eval(), (torch.rand(1, 3, 32, 32),))


# What the search is for: with ordinary inputs alone, the wrong trace passes.
@pytest.mark.export_equivalent(backends=["trace"], branches="observe")
def test_ordinary_inputs_do_not_show_it(export_check):
    outcome = export_check(EarlyExit().eval(), (torch.rand(1, 3, 32, 32),))
    assert outcome.branches.reached == 1
    assert [missing.outcome for _, missing in outcome.branches.unreached] == ["true"]


# The remedy where the saved time does not matter. Where it does, script the model or use torch.cond.
@pytest.mark.export_equivalent(backends=["trace", "script", "compile", "export", "onnx"])
def test_selected(export_check):
    export_check(Selected().eval(), (torch.rand(1, 3, 32, 32),))
