"""Models to measure the branch search on: with decisions, and without."""

from __future__ import annotations

import torch
from torch import nn

from tests.benchmarks.models import Example, Residual


class GatedResNet(nn.Module):
    """ResNet-18 with a gate in the middle and one near the end, each open in a band far from what the example gives."""

    def __init__(self) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
        blocks = [Residual(*width) for width in [*widths, (512, 512, 1)]]
        self.first = nn.Sequential(*stem, *blocks[:4])
        self.second = nn.Sequential(*blocks[4:])
        self.head = nn.Linear(512, 1000)
        self.levels = [float("inf"), float("inf")]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if self.levels[0] < x.mean() < 1.02 * self.levels[0]:
            x = x * 0.5
        x = self.second(x)
        if self.levels[1] < x.mean() < 1.02 * self.levels[1]:
            x = x + 1
        return self.head(x.mean((2, 3)))


def gated_resnet18() -> Example:
    """A gated ResNet-18 at 224 x 224, with bands from 1.6 and 1.8 times what the example gives."""
    torch.manual_seed(0)
    model, x = GatedResNet().eval(), torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        middle = model.first(x)
        model.levels = [float(middle.mean()) * 1.6, float(model.second(middle).mean()) * 1.8]
    return model, (x,)


class Talkative(nn.Module):
    """Much Python around little arithmetic: what an observer costs is most visible here."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index, layer in enumerate(self.layers):
            y = layer(x)
            if index % 2 == 0 and y.mean() > 10:
                y = y / 2
            x = torch.relu(y)
        return x
