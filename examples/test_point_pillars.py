"""PointPillars, object detection in lidar point clouds, to ONNX with a dynamic number of pillars.

Points are grouped into pillars on a grid seen from above. Each pillar becomes a feature vector, the vectors are
scattered to their places in an image, and a 2-D network finds objects in it. How many pillars have points differs from
scan to scan, so that dimension is dynamic in three inputs at once.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import Dim

from pytest_torchexport import floats, integers

GRID = 32
POINTS = 8  # at most, in a pillar


class PillarFeatures(nn.Module):
    """A linear layer on each point, then the maximum over the points of the pillar."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4 + 3, channels, bias=False)
        self.norm = nn.BatchNorm1d(channels, eps=1e-3)

    def forward(self, points: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        real = torch.arange(points.shape[1], device=points.device) < counts.unsqueeze(1)
        points = points * real.unsqueeze(-1)
        centre = points[..., :3].sum(dim=1, keepdim=True) / counts.reshape(-1, 1, 1)
        features = torch.cat([points, points[..., :3] - centre], dim=-1) * real.unsqueeze(-1)
        features = self.norm(self.linear(features).transpose(1, 2))
        return torch.relu(features).amax(dim=2)


class Scatter(nn.Module):
    """Puts the features of the pillars at their cells of an empty image."""

    def forward(self, features: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        image = features.new_zeros(GRID * GRID, features.shape[1])
        image[cells[:, 0] * GRID + cells[:, 1]] = features
        return image.t().reshape(1, -1, GRID, GRID)


class Backbone(nn.Module):
    """Two scales, brought to the same size and concatenated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fine = self.block(channels, channels)
        self.coarse = self.block(channels, 2 * channels)
        self.up_fine = nn.ConvTranspose2d(channels, channels, kernel_size=1, stride=1)
        self.up_coarse = nn.ConvTranspose2d(2 * channels, channels, kernel_size=2, stride=2)

    @staticmethod
    def block(channels_in: int, channels: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        fine = self.fine(image)
        return torch.cat([self.up_fine(fine), self.up_coarse(self.coarse(fine))], dim=1)


class PointPillars(nn.Module):
    def __init__(self, channels: int = 8, anchors: int = 2, classes: int = 3) -> None:
        super().__init__()
        self.features = PillarFeatures(channels)
        self.scatter = Scatter()
        self.backbone = Backbone(channels)
        self.classes = nn.Conv2d(2 * channels, anchors * classes, 1)
        self.boxes = nn.Conv2d(2 * channels, anchors * 7, 1)
        self.directions = nn.Conv2d(2 * channels, anchors * 2, 1)

    def forward(self, points: torch.Tensor, counts: torch.Tensor, cells: torch.Tensor) -> dict[str, torch.Tensor]:
        image = self.backbone(self.scatter(self.features(points, counts), cells))
        return {"classes": self.classes(image), "boxes": self.boxes(image), "directions": self.directions(image)}


def each_cell_once(points: torch.Tensor, counts: torch.Tensor, cells: torch.Tensor) -> bool:
    """Two pillars in one cell do not occur, and which of them would win is not defined."""
    return len(torch.unique(cells, dim=0)) == len(cells)


def example(pillars: int) -> tuple[torch.Tensor, ...]:
    cells = torch.randperm(GRID * GRID)[:pillars]
    return (
        torch.rand(pillars, POINTS, 4) * 6 - 3,
        torch.randint(1, POINTS + 1, (pillars,)),
        torch.stack([cells // GRID, cells % GRID], dim=1),
    )


@pytest.mark.export_equivalent(backends=["onnx", "onnx-torchscript", "export", "trace:strict=false"])
def test_point_pillars(export_check):
    pillars = Dim("pillars", min=1, max=40)
    export_check(
        PointPillars().eval(),
        example(20),
        dynamic_shapes={"points": {0: pillars}, "counts": {0: pillars}, "cells": {0: pillars}},
        inputs={"points": floats(-3.0, 3.0), "counts": integers(1, POINTS), "cells": integers(0, GRID - 1)},
        extra_inputs=[example(7), example(33)],
        assume=each_cell_once,
    )
