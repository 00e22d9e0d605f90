"""ResNet-18 under `torch.compile`: three modes for inference, and a training step.

In training the gradients of the parameters and of the input are compared, and so are the batch statistics that the
forward pass leaves in the buffers.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_torchexport import Tolerance


class BasicBlock(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet18(nn.Module):
    """The eighteen layers of the original, with fewer channels so that the example stays quick."""

    def __init__(self, width: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        blocks: list[nn.Module] = []
        channels_in = width
        for stage, stride in enumerate((1, 2, 2, 2)):
            channels = width * 2**stage
            blocks += [BasicBlock(channels_in, channels, stride), BasicBlock(channels, channels, 1)]
            channels_in = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels_in, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(image)).mean(dim=(2, 3)))


# Options of a backend are written after its name, or as an object: Compile(mode="reduce-overhead").
@pytest.mark.export_equivalent(backends=["compile", "compile:mode=reduce-overhead", "compile:mode=max-autotune"])
def test_inference(export_check):
    export_check(ResNet18().eval(), (torch.randn(2, 3, 64, 64),))


# A tolerance of its own: eager sums the statistics of a batch norm in float64 on the CPU, compiled code in float32. On
# an image that is zero but for one point this costs a digit of the gradients, of which the largest are about 10.
@pytest.mark.export_equivalent(backends=["compile"], grad=True, tolerance=Tolerance(rtol=1e-3, atol=2e-3))
def test_training_step(export_check):
    export_check(ResNet18().train(), (torch.randn(4, 3, 64, 64),))
