"""Modules that decide on signals and images, kept unused while the search is built. See `case.py`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from tests.branches.corpus.case import EXAMPLE, Case, Truth, call, normal, seeded, uniform

if TYPE_CHECKING:
    from torch import Tensor

CASES: list[Case] = []


class PitchTracker(nn.Module):
    """The loudest frequency decides which filter bank is used; noise and silence have none."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Linear(17, 4)
        self.high = nn.Linear(17, 4)

    def forward(self, frame: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(frame * torch.hann_window(32)).abs()
        total = spectrum.sum()
        if total < 0.05:
            return torch.zeros(4)
        share, bin_ = spectrum.max(-1)
        if share / total < 0.2:
            return self.low(spectrum) + self.high(spectrum)
        return self.low(spectrum) if bin_.item() < 6 else self.high(spectrum)


def _tone(cycles: float, noise: float = 0.0) -> Tensor:
    return torch.sin(torch.arange(32) * (2 * math.pi * cycles / 32)) + noise * normal(32)


CASES.append(
    Case(
        "pitch tracker",
        make=lambda: seeded(PitchTracker),
        args=lambda: (_tone(3.0),),
        decisions=[
            Truth("total < 0.05", true=lambda: call(torch.zeros(32)), false=EXAMPLE),
            Truth("share / total < 0.2", true=lambda: call(normal(32)), false=EXAMPLE),
            Truth("bin_.item() < 6", true=EXAMPLE, false=lambda: call(_tone(11.0))),
        ],
        wrong={"trace": "bin_.item() < 6", "onnx-torchscript": "refused", "export": "refused", "onnx": "refused"},
        right=("script", "compile"),
    )
)


class DepthNormaliser(nn.Module):
    """Depth maps are normalised between quantiles; constant ones and ones that are all invalid are not."""

    def __init__(self) -> None:
        super().__init__()
        self.smooth = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, depth: Tensor, confidence: Tensor) -> Tensor:
        valid = confidence > 0.3
        values = self.smooth(depth)[valid]
        if values.numel() == 0:
            return torch.zeros_like(depth)
        low = torch.quantile(values, 0.05)
        high = torch.quantile(values, 0.95)
        span = (high - low).item()
        coverage = valid.sum().item() / valid.numel()
        if span < 1e-2 or coverage < 0.15:
            return depth - low
        return ((depth - low) / span).clamp(0, 1)


CASES.append(
    Case(
        "depth normaliser",
        make=lambda: seeded(DepthNormaliser),
        args=lambda: (uniform(1, 1, 5, 5), uniform(1, 1, 5, 5, seed=1)),
        decisions=[
            Truth(
                "values.numel() == 0", true=lambda: call(uniform(1, 1, 5, 5), torch.zeros(1, 1, 5, 5)), false=EXAMPLE
            ),
            Truth(
                "span < 1e-2",
                true=lambda: call(0.01 * uniform(1, 1, 5, 5), uniform(1, 1, 5, 5, seed=1)),
                false=EXAMPLE,
            ),
            Truth(
                "coverage < 0.15",
                true=lambda: call(uniform(1, 1, 5, 5), torch.tensor([0.9, 0.8] + [0.1] * 23).view(1, 1, 5, 5)),
                false=EXAMPLE,
            ),
        ],
        wrong={"trace": "span < 1e-2", "onnx-torchscript": "refused", "export": "refused", "onnx": "refused"},
        right=("script", "compile"),
    )
)


class RangeReduction(nn.Module):
    """Phases are wrapped into one turn, turn by turn, before a table of learned waves is read."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Linear(3, 2)
        self.register_buffer("table", torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        phase = self.phase(x)
        turns = 0
        while (phase.abs() > math.pi).any():
            phase = torch.where(phase.abs() > math.pi, phase - 2 * math.pi * phase.sign(), phase)
            turns += 1
            if turns == 6:
                phase = torch.remainder(phase, math.pi)
        cell = ((phase + math.pi) / (2 * math.pi) * 7).long().clamp(0, 7)
        return self.table[cell] * torch.cos(phase) + turns


CASES.append(
    Case(
        "range reduction",
        make=lambda: seeded(RangeReduction),
        args=lambda: (normal(2, 3),),
        decisions=[
            Truth("(phase.abs() > math.pi).any()", true=lambda: call(normal(2, 3, scale=9.0)), false=EXAMPLE),
            Truth("(phase.abs() > math.pi).any()", "loop", other=lambda: call(normal(2, 3, scale=9.0))),
            Truth(
                "turns == 6",
                true=lambda: call(normal(2, 3, scale=200.0)),
                false=lambda: call(normal(2, 3, scale=9.0)),
            ),
        ],
        wrong={
            "trace": "(phase.abs() > math.pi).any()",
            "onnx-torchscript": "(phase.abs() > math.pi).any()",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script", "compile"),
    )
)


class SqueezeSelect(nn.Module):
    """Squeeze and excite that computes only the channels whose gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.InstanceNorm2d(6, affine=True), nn.ReLU())
        self.gate = nn.Sequential(nn.Linear(12, 6), nn.Sigmoid())
        self.filters = nn.ModuleList([nn.Conv2d(1, 1, 3, padding=1) for _ in range(6)])

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        gates = self.gate(torch.cat([x.mean((0, 2, 3)), image.std().log().expand(6)]))
        open_ = (gates > 0.65).nonzero().flatten().tolist()
        result = torch.zeros_like(x[:, :1])
        for channel in open_:
            result = result + gates[channel] * self.filters[channel](x[:, channel : channel + 1])
        return result if open_ else x.mean(1, keepdim=True)


CASES.append(
    Case(
        "squeeze select",
        make=lambda: seeded(SqueezeSelect, seed=3),
        args=lambda: (normal(1, 3, 6, 6, scale=10.0),),
        decisions=[
            Truth(
                "(gates > 0.65).nonzero().flatten().tolist()",
                "number",
                other=lambda: call(normal(1, 3, 6, 6, scale=0.1)),
            ),
            Truth("open_", "loop", other=lambda: call(normal(1, 3, 6, 6, scale=0.1))),
            Truth("open_", true=EXAMPLE, false=lambda: call(normal(1, 3, 6, 6))),
        ],
        wrong={
            "trace": "open_",
            "onnx-torchscript": "open_",
            "export": "refused",
            "onnx": "refused",
            "script": "refused",
        },
        right=("compile",),
    )
)


class Relighting(nn.Module):
    """A free-form exposure pipeline: median exposure, two tone curves, a vignette only for landscape scenes."""

    def __init__(self) -> None:
        super().__init__()
        self.curve = nn.Parameter(torch.tensor([0.9, 1.4]))

    def tone(self, x: Tensor, key: float) -> Tensor:
        if key < 0.15:
            return x.clamp_min(0) ** self.curve[0]
        if key > 0.85:
            return 1 - (1 - x).clamp_min(0) ** self.curve[1]
        return x

    def forward(self, scene: dict[str, Tensor]) -> Tensor:
        image = scene["image"]
        key = float(image.median())
        above, below = image.chunk(2, dim=-2)
        image = self.tone(image, key)
        horizon = above.mean() - below.mean()
        if horizon > 0.3 and key != 0.5:
            image = image * scene["vignette"]
        return image


def _halves(above: float, below: float) -> dict[str, Tensor]:
    image = torch.cat([torch.full((2, 4), above), torch.full((2, 4), below)])
    return {"image": image, "vignette": uniform(4, 4, seed=2)}


CASES.append(
    Case(
        "relighting",
        make=lambda: seeded(Relighting),
        args=lambda: ({"image": uniform(4, 4), "vignette": uniform(4, 4, seed=1)},),
        decisions=[
            Truth("key < 0.15", true=lambda: call(_halves(0.1, 0.1)), false=EXAMPLE),
            Truth("key > 0.85", true=lambda: call(_halves(0.9, 0.9)), false=EXAMPLE),
            Truth("horizon > 0.3", true=lambda: call(_halves(0.8, 0.2)), false=EXAMPLE),
            Truth("key != 0.5", true=lambda: call(_halves(0.8, 0.2)), false=lambda: call(_halves(0.9, 0.5))),
        ],
        effort="hard",
        wrong={"trace": "horizon > 0.3", "onnx-torchscript": "horizon > 0.3", "export": "refused", "onnx": "refused"},
        right=("script", "compile"),
    )
)
