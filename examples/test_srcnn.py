"""SRCNN, super-resolution by a factor of three: bicubic upscaling, then three convolutions.

Interpolation is where exporters differ most: the coordinates' convention and the cubic coefficient have to be carried
over. The size of the image may vary, so the exported form is also run on images of other sizes.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional

from pytest_torchexport import floats


class SuperResolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, kernel_size=9, padding=4)
        self.mapping = nn.Conv2d(16, 8, kernel_size=1)
        self.reconstruction = nn.Conv2d(8, 3, kernel_size=5, padding=2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image = functional.interpolate(image, scale_factor=3.0, mode="bicubic", align_corners=False)
        features = torch.relu(self.patches(image))
        features = torch.relu(self.mapping(features))
        return self.reconstruction(features)


# `inputs` says what images look like here, values from 0 to 1; `dynamic_shapes` is the argument of torch.export.export.
@pytest.mark.export_equivalent(backends=["trace", "script", "compile", "export", "onnx", "onnx-torchscript"])
def test_srcnn(export_check):
    export_check(
        SuperResolution().eval(),
        (torch.rand(1, 3, 12, 16),),
        inputs={"image": floats(0.0, 1.0)},
        dynamic_shapes={"image": {2: Dim("height", min=4, max=24), 3: Dim("width", min=4, max=24)}},
    )
