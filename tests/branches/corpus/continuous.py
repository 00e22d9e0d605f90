"""Modules that decide on a statistic of a float tensor: gates, ranges, counts, equality. See `case.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from tests.branches.corpus.case import EXAMPLE, Case, Infeasible, Truth, call, normal, seeded, uniform

if TYPE_CHECKING:
    from torch import Tensor

CASES: list[Case] = []


class MeanGate(nn.Module):
    """A highway unit that opens when the input is bright enough."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0.5:
            return torch.relu(self.transform(x))
        return x


CASES.append(
    Case(
        "mean gate",
        make=lambda: seeded(MeanGate),
        args=lambda: (normal(2, 8),),
        decisions=[Truth("x.mean() > 0.5", true=lambda: call(normal(2, 8, shift=2.0)), false=EXAMPLE)],
        wrong={"trace": "x.mean() > 0.5", "onnx-torchscript": "x.mean() > 0.5", "export": "refused", "onnx": "refused"},
        right=("script", "compile"),
    )
)


class SignalTriage(nn.Module):
    """Sensor windows go to one of four heads by level, peak and spread."""

    def __init__(self) -> None:
        super().__init__()
        self.quiet = nn.Linear(16, 4)
        self.steady = nn.Linear(16, 4)
        self.burst = nn.Linear(16, 4)
        self.clipped = nn.Linear(16, 4)

    def forward(self, window: Tensor) -> Tensor:
        if window.abs().mean() > 1.5:
            if window.abs().max() > 8.0:
                return self.clipped(window.clamp(-8.0, 8.0))
            if window.std() < 0.3:
                return self.steady(window)
            return self.burst(window)
        return self.quiet(window)


CASES.append(
    Case(
        "signal triage",
        make=lambda: seeded(SignalTriage),
        args=lambda: (normal(3, 16),),
        decisions=[
            Truth("window.abs().mean() > 1.5", true=lambda: call(normal(3, 16, scale=2.2)), false=EXAMPLE),
            Truth(
                "window.abs().max() > 8.0",
                true=lambda: call(normal(3, 16, scale=9.0)),
                false=lambda: call(normal(3, 16, scale=2.2)),
            ),
            Truth(
                "window.std() < 0.3",
                true=lambda: call(normal(3, 16, scale=0.1, shift=3.0)),
                false=lambda: call(normal(3, 16, scale=2.2)),
            ),
        ],
        wrong={
            "trace": "window.abs().mean() > 1.5",
            "onnx-torchscript": "window.abs().mean() > 1.5",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script", "compile"),
    )
)


class ContrastBoost(nn.Module):
    """Stretches the contrast of images that are bright but flat, or that have no black."""

    def forward(self, image: Tensor) -> Tensor:
        bright = image.mean() > 0.2
        if bright and (image.std() < 0.25 or not image.amin() < 0.1):
            low, high = image.amin(), image.amax()
            return (image - low) / (high - low + 1e-6)
        return image


CASES.append(
    Case(
        "contrast boost",
        make=lambda: seeded(ContrastBoost),
        args=lambda: (uniform(1, 3, 8, 8),),
        decisions=[
            Truth("bright", true=EXAMPLE, false=lambda: call(uniform(1, 3, 8, 8, high=0.3))),
            Truth("image.std() < 0.25", true=lambda: call(uniform(1, 3, 8, 8, low=0.5, high=0.6)), false=EXAMPLE),
            Truth(
                "image.amin() < 0.1",
                true=EXAMPLE,
                false=lambda: call(uniform(1, 3, 8, 8, seed=1, low=0.5, high=1.6)),
            ),
        ],
        wrong={
            "trace": "image.std() < 0.25",
            "onnx-torchscript": "image.std() < 0.25",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script", "compile"),
    )
)


class ActivityCount(nn.Module):
    """Counts strong activations; many of them, or a mostly silent input, change the normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(12, 24)
        self.out = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.features(x)
        if (h > 2).sum() > 5:
            h = h / h.norm(dim=-1, keepdim=True)
        elif (h.abs() < 0.1).float().mean() > 0.5:
            h = h * 10
        return self.out(h)


CASES.append(
    Case(
        "activity count",
        make=lambda: seeded(ActivityCount),
        args=lambda: (normal(4, 12),),
        decisions=[
            Truth("(h > 2).sum() > 5", true=lambda: call(normal(4, 12, scale=8.0)), false=EXAMPLE),
            Truth(
                "(h.abs() < 0.1).float().mean() > 0.5",
                # the bias alone is too large: it takes the input that cancels it
                true=lambda: call(_silencing(seeded(ActivityCount)).expand(4, 12).contiguous()),
                false=EXAMPLE,
            ),
        ],
        effort="hard",
        wrong={
            "trace": "(h > 2).sum() > 5",
            "onnx-torchscript": "(h > 2).sum() > 5",
            "export": "refused",
            "onnx": "refused",
            "script": "refused",
        },
        right=("compile",),
    )
)


def _silencing(model: nn.Module) -> Tensor:
    """An input that makes more than half of the features of an `ActivityCount` almost zero."""
    with torch.no_grad():
        weight, bias = model.features.weight, model.features.bias
        chosen = list(range(24))
        for _ in range(8):  # leave out the worst, least squares on the rest
            x = torch.linalg.lstsq(weight[chosen], -bias[chosen]).solution
            rest = (weight @ x + bias).abs()
            chosen = rest.argsort()[: max(13, len(chosen) - 2)].tolist()
        return x


class SafeLog(nn.Module):
    """A log-spectrum that shifts negative values up, and skips blank frames."""

    def forward(self, spectrum: Tensor) -> Tensor:
        if spectrum.eq(0).all():
            return torch.full_like(spectrum, -10.0)
        if (spectrum < 0).any():
            spectrum = spectrum - spectrum.min()
        return torch.log(spectrum + 1e-4)


CASES.append(
    Case(
        "safe log",
        make=lambda: seeded(SafeLog),
        args=lambda: (uniform(2, 10),),
        decisions=[
            Truth("spectrum.eq(0).all()", true=lambda: call(torch.zeros(2, 10)), false=EXAMPLE),
            Truth("(spectrum < 0).any()", true=lambda: call(normal(2, 10)), false=EXAMPLE),
        ],
        wrong={
            "trace": "(spectrum < 0).any()",
            "onnx-torchscript": "(spectrum < 0).any()",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script", "compile"),
    )
)


class FrameSkipper(nn.Module):
    """Video features: an unchanged frame gives no motion, a nearly unchanged one the previous features."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, frame: Tensor, previous: Tensor) -> Tensor:
        if torch.equal(frame, previous):
            return torch.zeros(frame.shape[0], 4)
        if torch.allclose(frame, previous, rtol=0.0, atol=0.02):
            return self.encode(previous).mean((2, 3))
        return self.encode(frame - previous).mean((2, 3))


CASES.append(
    Case(
        "frame skipper",
        make=lambda: seeded(FrameSkipper),
        args=lambda: (uniform(1, 1, 6, 6), uniform(1, 1, 6, 6, seed=1)),
        decisions=[
            Truth(
                "torch.equal(frame, previous)",
                true=lambda: call(uniform(1, 1, 6, 6), uniform(1, 1, 6, 6)),
                false=EXAMPLE,
            ),
            Truth(
                "torch.allclose(frame, previous, rtol=0.0, atol=0.02)",
                true=lambda: call(uniform(1, 1, 6, 6), uniform(1, 1, 6, 6) + 0.01),
                false=EXAMPLE,
            ),
        ],
        wrong={
            "trace": "torch.allclose(frame, previous, rtol=0.0, atol=0.02)",
            "onnx-torchscript": "torch.allclose(frame, previous, rtol=0.0, atol=0.02)",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script", "compile"),
    )
)


class GreyCard(nn.Module):
    """White balance: a calibrated picture is left alone, a grey one too, everything else is scaled."""

    def forward(self, image: Tensor) -> Tensor:
        peak = image.abs().max()
        if peak == 1.0:
            return image
        level = image.mean()
        if 0.49 < level < 0.51:
            return image * 2 - 1
        return image / peak


CASES.append(
    Case(
        "grey card",
        make=lambda: seeded(GreyCard),
        args=lambda: (uniform(3, 5, 5, high=0.7),),
        decisions=[
            Truth("peak == 1.0", true=lambda: call(torch.linspace(-0.5, 1.0, 75).view(3, 5, 5)), false=EXAMPLE),
            Truth("0.49 < level < 0.51", true=lambda: call(torch.linspace(0.1, 0.9, 75).view(3, 5, 5)), false=EXAMPLE),
        ],
        wrong={
            "trace": "0.49 < level < 0.51",
            "onnx-torchscript": "0.49 < level < 0.51",
            "export": "refused",
            "onnx": "refused",
        },  # the peak of 1 changes nothing
        right=("script", "compile"),
    )
)


class BoundedHead(nn.Module):
    """Checks left over from debugging: none of them can ever fail."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.hidden(x))
        if h.min() < 0:
            h = h.abs()
        gate = torch.sigmoid(h)
        if (gate > 1).any():
            gate = gate.clamp(max=1.0)
        weights = torch.softmax(h * gate, -1)
        if weights.sum(-1).max() > 2:
            weights = weights / 2
        return weights


CASES.append(
    Case(
        "bounded head",
        make=lambda: seeded(BoundedHead),
        args=lambda: (normal(2, 6),),
        decisions=[
            Truth("h.min() < 0", true=Infeasible("relu is not negative"), false=EXAMPLE),
            Truth("(gate > 1).any()", true=Infeasible("a sigmoid is at most 1"), false=EXAMPLE),
            Truth("weights.sum(-1).max() > 2", true=Infeasible("a softmax sums up to 1"), false=EXAMPLE),
        ],
        wrong={"export": "refused", "onnx": "refused"},
        right=("trace", "onnx-torchscript", "script", "compile"),
    )
)


class FusionBatch(nn.Module):
    """Camera and lidar in a nested batch: the weaker sensor is left out, contradicting ones are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.camera = nn.Linear(6, 4)
        self.lidar = nn.Linear(5, 4)

    def forward(self, batch: dict[str, Tensor | tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        points, intensity = batch["lidar"]
        a = self.camera(batch["image"])
        b = self.lidar(points * intensity)
        if b.norm() > 3 * a.norm():
            return {"fused": b, "weight": intensity.mean()}
        if torch.cosine_similarity(a, b).mean() < -0.5:
            return {"fused": (a + b) / 2, "weight": intensity.mean()}
        return {"fused": a, "weight": intensity.amax()}


def _scene(seed: int, reach: float = 1.0) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
    points = normal(2, 5, seed=seed + 10, scale=reach)
    return {"image": normal(2, 6, seed=seed), "lidar": (points, uniform(2, 1, seed=seed + 20))}


CASES.append(
    Case(
        "fusion batch",
        make=lambda: seeded(FusionBatch),
        args=lambda: (_scene(1),),
        decisions=[
            Truth("b.norm() > 3 * a.norm()", true=lambda: call(_scene(1, reach=30.0)), false=EXAMPLE),
            Truth(
                "torch.cosine_similarity(a, b).mean() < -0.5",
                true=lambda: call(_scene(2)),
                false=EXAMPLE,
            ),
        ],
        wrong={
            "trace": "refused",
            "onnx-torchscript": "b.norm() > 3 * a.norm()",
            "export": "refused",
            "onnx": "refused",
            "script": "refused",
        },
        right=("compile",),
    )
)


@dataclass(frozen=True)
class Limits:
    """Configuration of a `DriftMonitor`."""

    drift: float = 0.8
    spread: float = 2.5


class DriftMonitor(nn.Module):
    """Compares features with stored statistics; the limits stand in a buffer and in a configuration."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self.limits = limits
        self.project = nn.Linear(10, 6)
        self.register_buffer("centre", torch.randn(6) * 0.1)
        self.register_buffer("tolerance", torch.tensor([1.5]))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.project(x))
        drift = (h.mean(0) - self.centre).norm()
        h = h - self.centre if drift > self.limits.drift else h
        distance = (h - self.centre).norm(dim=-1).max()
        if distance > self.tolerance:
            h = h * (self.tolerance / distance)
        return h


CASES.append(
    Case(
        "feature drift",
        make=lambda: seeded(DriftMonitor, Limits()),
        args=lambda: (normal(8, 10, scale=0.5),),
        decisions=[
            Truth("drift > self.limits.drift", true=lambda: call(normal(8, 10, scale=0.5, shift=3.0)), false=EXAMPLE),
            Truth("distance > self.tolerance", true=lambda: call(normal(8, 10, scale=6.0)), false=EXAMPLE),
        ],
        wrong={
            "trace": "drift > self.limits.drift",
            "onnx-torchscript": "drift > self.limits.drift",
            "export": "refused",
            "onnx": "refused",
            "script": "refused",
        },
        right=("compile",),
    )
)


def squash(values: Tensor, limit: float) -> Tensor:
    """Scales values down only where they need it."""
    peak = values.detach().abs().max()
    if peak <= limit:
        return values
    return values * (limit / peak)


class Mixer(nn.Module):
    """A block that guards its range; it is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        with torch.no_grad():
            saturated = (y.data.abs() > 1.5).float().mean()
        if saturated > 0.25:
            return torch.tanh(y)
        return y + x


class TwoPass(nn.Module):
    """The same block twice, with a range guard in a function between."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Mixer()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(squash(self.block(x) * 4, 6.0))


CASES.append(
    Case(
        "two pass",
        make=lambda: seeded(TwoPass),
        args=lambda: (normal(2, 8, scale=0.2),),
        decisions=[
            Truth("peak <= limit", true=EXAMPLE, false=lambda: call(normal(2, 8, scale=3.0))),
            Truth("saturated > 0.25", true=lambda: call(normal(2, 8, scale=6.0)), false=EXAMPLE),
        ],
        wrong={"trace": "peak <= limit", "onnx-torchscript": "peak <= limit", "export": "refused", "onnx": "refused"},
        right=("script", "compile"),
    )
)


class NumpyGuard(nn.Module):
    """A guard that somebody wrote with numpy."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(7, 7)

    def forward(self, x: Tensor) -> Tensor:
        y = self.scale(x)
        values = y.detach().cpu().numpy()
        if values.max() > 3.0:
            y = y / float(values.max())
        return y


CASES.append(
    Case(
        "numpy guard",
        make=lambda: seeded(NumpyGuard),
        args=lambda: (normal(3, 7),),
        decisions=[Truth("values.max() > 3.0", true=lambda: call(normal(3, 7, scale=12.0)), false=EXAMPLE)],
        wrong={
            "trace": "values.max() > 3.0",
            "onnx-torchscript": "values.max() > 3.0",
            "export": "refused",
            "onnx": "refused",
            "script": "refused",
        },
        right=("compile",),
    )
)
