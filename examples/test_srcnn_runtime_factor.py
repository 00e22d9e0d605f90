"""SRCNN with the upscale factor as an input: the naive export freezes the factor, a custom ONNX `Resize` does not.

PyTorch's `interpolate` takes the factor as a Python number. A number read out of a tensor is a constant to a tracer:
the exported model scales by the example's factor, whatever it is given. ONNX itself has no such limit, its `Resize`
reads the scales from a tensor. So the export is taught to write that operator: once for the exporter that goes through
TorchScript, where an `autograd.Function` brings its own `symbolic`, and once for the one that goes through
torch.export, where a custom operator is translated by a table.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from onnxscript import FLOAT
from onnxscript import opset18 as op
from torch import nn
from torch.nn import functional

from pytest_torchexport import Onnx, floats, integers

RESIZE: dict[str, Any] = {
    "mode": "cubic",
    "coordinate_transformation_mode": "pytorch_half_pixel",
    "cubic_coeff_a": -0.75,  # PyTorch's bicubic kernel; ONNX and PyTorch both allow others
}


def upscale(image: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(image, scale_factor=float(factor.item()), mode="bicubic", align_corners=False)


class ResizeFunction(torch.autograd.Function):
    """The same computation, with an ONNX operator of its own for the TorchScript-based exporter."""

    @staticmethod
    def forward(ctx: Any, image: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        return upscale(image, factor)

    @staticmethod
    def symbolic(g: Any, image: Any, factor: Any) -> Any:
        keep = g.op("Constant", value_t=torch.ones(2))  # batch and channels
        factor = g.op("Cast", factor, to_i=torch.onnx.TensorProtoDataType.FLOAT)
        factor = g.op("Expand", factor, g.op("Constant", value_t=torch.tensor([2])))  # height and width
        scales = g.op("Concat", keep, factor, axis_i=0)
        roi = g.op("Constant", value_t=torch.empty(0))
        return g.op(
            "Resize",
            image,
            roi,
            scales,
            mode_s=RESIZE["mode"],
            coordinate_transformation_mode_s=RESIZE["coordinate_transformation_mode"],
            cubic_coeff_a_f=RESIZE["cubic_coeff_a"],
        )


@torch.library.custom_op("srcnn::resize", mutates_args=())
def resize_operator(image: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """The same computation as an operator, which torch.export leaves in the program as it is."""
    return upscale(image, factor)


@resize_operator.register_fake
def _(image: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    context = torch.library.get_ctx()
    return image.new_empty(*image.shape[:2], context.new_dynamic_size(), context.new_dynamic_size())


def translate_resize(image: Any, factor: Any) -> Any:
    """`srcnn::resize` in ONNX, written with onnxscript."""
    scales = op.Concat(
        op.Constant(value_floats=[1.0, 1.0]),
        op.Expand(op.Cast(factor, to=FLOAT.dtype), op.Constant(value_ints=[2])),
        axis=0,
    )
    return op.Resize(image, None, scales, None, **RESIZE)


class SuperResolution(nn.Module):
    def __init__(self, resize: Any) -> None:
        super().__init__()
        self.resize = resize
        self.patches = nn.Conv2d(3, 16, kernel_size=9, padding=4)
        self.mapping = nn.Conv2d(16, 8, kernel_size=1)
        self.reconstruction = nn.Conv2d(8, 3, kernel_size=5, padding=2)

    def forward(self, image: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.patches(self.resize(image, factor)))
        features = torch.relu(self.mapping(features))
        return self.reconstruction(features)


EXAMPLE = (torch.linspace(0, 1, 3 * 12 * 12).reshape(1, 3, 12, 12), torch.tensor(3))
INPUTS = {"image": floats(0.0, 1.0), "factor": integers(1, 4)}


@pytest.mark.export_equivalent(
    backends=["trace", "onnx-torchscript", "onnx"],
    xfail={
        "trace": "the factor becomes a constant",
        "onnx-torchscript": "the factor becomes a constant",
        "onnx": "torch.export refuses an image size that depends on a tensor's value",
    },
)
def test_naive(export_check):
    export_check(SuperResolution(upscale).eval(), EXAMPLE, inputs=INPUTS)


@pytest.mark.export_equivalent(backends=["onnx-torchscript"])
def test_autograd_function_with_symbolic(export_check):
    export_check(SuperResolution(ResizeFunction.apply).eval(), EXAMPLE, inputs=INPUTS)


@pytest.mark.export_equivalent(
    backends=[Onnx(custom_translation_table={torch.ops.srcnn.resize.default: translate_resize})]
)
def test_custom_operator_with_translation(export_check):
    export_check(SuperResolution(resize_operator).eval(), EXAMPLE, inputs=INPUTS)
