"""Modules with loops that stop by themselves, and with numbers taken out of tensors. See `case.py`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from tests.branches.corpus.case import EXAMPLE, Case, Truth, call, normal, seeded, uniform

if TYPE_CHECKING:
    from torch import Tensor

CASES: list[Case] = []


class NewtonRoot(nn.Module):
    """The positive root of t² + b t = c for learned b and c, by Newton's method."""

    def __init__(self) -> None:
        super().__init__()
        self.coefficients = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        b, c = nn.functional.softplus(self.coefficients(x)).unbind(-1)
        t = torch.ones_like(b)
        residual = t * t + b * t - c
        while residual.abs().max() > 1e-3:
            t = t - residual / (2 * t + b)
            residual = t * t + b * t - c
        return t


CASES.append(
    Case(
        "newton root",
        make=lambda: seeded(NewtonRoot),
        args=lambda: (normal(3, 4),),
        decisions=[
            Truth("residual.abs().max() > 1e-3", true=EXAMPLE, false=EXAMPLE),
            Truth("residual.abs().max() > 1e-3", "loop", other=lambda: call(normal(3, 4, scale=40.0))),
        ],
        wrong={
            "trace": "residual.abs().max() > 1e-3",
            "onnx-torchscript": "residual.abs().max() > 1e-3",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script", "compile"),
    )
)


class SpectralScale(nn.Module):
    """Divides a matrix by its largest singular value: power iteration until the estimate settles."""

    def forward(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        v = F.normalize(torch.ones(matrix.shape[1]), dim=0)
        sigma = torch.zeros(())
        for _ in range(30):
            u = F.normalize(matrix @ v, dim=0)
            v = F.normalize(matrix.T @ u, dim=0)
            estimate = u @ matrix @ v
            if (estimate - sigma).abs() < 0.02 * estimate:
                break
            sigma = estimate
        if estimate > 1:
            matrix = matrix / estimate
        return matrix, estimate


CASES.append(
    Case(
        "spectral scale",
        make=lambda: seeded(SpectralScale),
        args=lambda: (normal(5, 4),),
        decisions=[
            Truth("range(30)", "loop", other=lambda: call(torch.ones(5, 4))),
            Truth("(estimate - sigma).abs() < 0.02 * estimate", true=EXAMPLE, false=EXAMPLE),
            Truth("estimate > 1", true=EXAMPLE, false=lambda: call(normal(5, 4, scale=0.1))),
        ],
        wrong={
            "trace": "estimate > 1",
            "export": "refused",
            "onnx": "refused",
            "script": "refused",
            "compile": "refused",
        },
    )
)


class Sinkhorn(nn.Module):
    """Soft matching: rows and columns are normalised in turns until both sum up to one."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        plan = torch.exp(self.left(a) @ self.right(b).T)
        steps = 0
        while steps < 20:
            plan = plan / plan.sum(1, keepdim=True)
            plan = plan / plan.sum(0, keepdim=True)
            steps += 1
            if (plan.sum(1) - 1).abs().max() < 0.02:
                break
        return plan / steps


CASES.append(
    Case(
        "sinkhorn",
        make=lambda: seeded(Sinkhorn),
        args=lambda: (normal(4, 6), normal(4, 6, seed=1)),
        decisions=[
            Truth(
                "steps < 20",
                true=EXAMPLE,
                false=lambda: call(normal(4, 6, scale=4.0), normal(4, 6, seed=1, scale=4.0)),
            ),
            Truth("steps < 20", "loop", other=lambda: call(torch.zeros(4, 6), torch.zeros(4, 6))),
            Truth("(plan.sum(1) - 1).abs().max() < 0.02", true=EXAMPLE, false=EXAMPLE),
        ],
        wrong={
            "trace": "steps < 20",
            "onnx-torchscript": "steps < 20",
            "export": "refused",
            "onnx": "refused",
            "compile": "refused",
        },
        right=("script",),
    )
)


class Equilibrium(nn.Module):
    """A deep equilibrium layer: z = tanh(W z + U x) iterated until it stands still."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6, bias=False)
        self.outer = nn.Linear(3, 6)
        with torch.no_grad():
            self.inner.weight.mul_(1.2)

    def forward(self, x: Tensor, tolerance: float = 1e-2) -> Tensor:
        drive = self.outer(x)
        z = torch.zeros_like(drive)
        for _ in range(40):
            following = torch.tanh(self.inner(z) + drive)
            gap = (following - z).norm().item()
            z = following
            if gap < tolerance:
                break
        return z


CASES.append(
    Case(
        "equilibrium",
        make=lambda: seeded(Equilibrium),
        args=lambda: (normal(2, 3),),
        decisions=[
            Truth("range(40)", "loop", other=lambda: call(normal(2, 3, scale=40.0))),
            Truth("gap < tolerance", true=EXAMPLE, false=EXAMPLE),
        ],
        wrong={
            "trace": "range(40)",
            "onnx-torchscript": "range(40)",
            "export": "refused",
            "onnx": "refused",
            "compile": "refused",
        },
        right=("script",),
    )
)


class GainControl(nn.Module):
    """Automatic gain: the level becomes a Python number, goes through decibels and scales the signal."""

    def __init__(self) -> None:
        super().__init__()
        self.target = -20.0
        self.state = {"gain": 0.0}

    def forward(self, signal: Tensor) -> Tensor:
        level = 20 * math.log10(max(signal.pow(2).mean().sqrt().item(), 1e-6))
        gain = min(self.target - level, 30.0)
        self.state["gain"] = gain
        if abs(self.state["gain"]) < 1.0:
            return signal
        return signal * 10 ** (gain / 20)


CASES.append(
    Case(
        "gain control",
        make=lambda: seeded(GainControl),
        args=lambda: (normal(64, scale=0.5),),
        decisions=[
            Truth("signal.pow(2).mean().sqrt().item()", "number", other=lambda: call(normal(64, scale=0.2))),
            Truth('abs(self.state["gain"]) < 1.0', true=lambda: call(normal(64, seed=4, scale=0.1)), false=EXAMPLE),
        ],
        wrong={
            "trace": "signal.pow(2).mean().sqrt().item()",
            "onnx-torchscript": "signal.pow(2).mean().sqrt().item()",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script", "compile"),
    )
)


class BitShift(nn.Module):
    """Fixed point: the exponent of the peak is a whole number, and out-of-range values are saturated."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x)
        low, high = y.min().item(), y.max().item()
        if low < -8.0 or high >= 8.0:
            y = y.clamp(-8.0, 7.99)
        shift = math.floor(math.log2(max(abs(low), abs(high), 1e-3)))
        step = 2.0 ** (shift - 6)
        return torch.round(y / step) * step


CASES.append(
    Case(
        "bit shift",
        make=lambda: seeded(BitShift),
        args=lambda: (normal(2, 5),),
        decisions=[
            Truth("low < -8.0", true=lambda: call(normal(2, 5, scale=40.0)), false=EXAMPLE),
            Truth("high >= 8.0", true=lambda: call(normal(2, 5, seed=2, scale=15.5)), false=EXAMPLE),
            Truth("y.min().item()", "number", other=lambda: call(normal(2, 5, scale=4.0))),
            Truth("y.max().item()", "number", other=lambda: call(normal(2, 5, scale=4.0))),
        ],
        wrong={
            "trace": "y.min().item()",
            "onnx-torchscript": "y.min().item()",
            "export": "refused",
            "onnx": "refused",
            "script": "refused",
        },
        right=("compile",),
    )
)


class LengthRegulator(nn.Module):
    """Speech synthesis: each phoneme is repeated for its predicted duration."""

    def __init__(self) -> None:
        super().__init__()
        self.duration = nn.Linear(4, 1)

    def forward(self, phonemes: Tensor) -> Tensor:
        durations = torch.exp(self.duration(phonemes)).squeeze(-1)
        frames = []
        for phoneme, duration in zip(phonemes, durations, strict=True):
            count = max(1, round(duration.item()))
            frames.append(phoneme.expand(count, -1))
        return torch.cat(frames)


CASES.append(
    Case(
        "length regulator",
        make=lambda: seeded(LengthRegulator),
        args=lambda: (normal(5, 4),),
        decisions=[Truth("duration.item()", "number", other=lambda: call(normal(5, 4, seed=1, scale=2.0)))],
        wrong={
            "trace": "duration.item()",
            "onnx-torchscript": "duration.item()",
            "export": "refused",
            "onnx": "refused",
            "compile": "refused",
        },
        right=("script",),
    )
)


class ExposureLevels(nn.Module):
    """Tone mapping by the whole number of stops above middle grey."""

    def forward(self, image: Tensor) -> Tensor:
        stops = torch.log2(image.clamp_min(1e-4).mean() / 0.18)
        match round(stops.item()):
            case 0:
                return image
            case 1:
                return image * 0.6
            case 2:
                return image.sqrt() * 0.5
            case _:
                return image / image.amax().clamp_min(1e-4)


CASES.append(
    Case(
        "exposure levels",
        make=lambda: seeded(ExposureLevels),
        args=lambda: (uniform(3, 4, 4),),
        decisions=[
            Truth("0", true=lambda: call(uniform(3, 4, 4, high=0.36)), false=EXAMPLE),
            Truth("1", true=EXAMPLE, false=lambda: call(uniform(3, 4, 4, high=8.0))),
            Truth("2", true=lambda: call(uniform(3, 4, 4, high=1.5)), false=lambda: call(uniform(3, 4, 4, high=8.0))),
        ],
        wrong={"trace": "0", "onnx-torchscript": "0", "export": "refused", "onnx": "refused", "script": "refused"},
        right=("compile",),
    )
)


class RobustMean(nn.Module):
    """A mean without outliers, in Python: chunk means are sorted, and those far from their median left out."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        means = [chunk.mean() for chunk in x.chunk(5)]
        centre = sorted(mean.item() for mean in means)[2]
        kept = [mean for mean in means if abs(mean - centre) < 0.5]
        if len(kept) < 3:
            kept = means
        average = sum(kept) / len(kept)
        spread = max(kept) - min(kept)
        return self.out(x - average) / (1 + spread)


CASES.append(
    Case(
        "robust mean",
        make=lambda: seeded(RobustMean),
        args=lambda: (normal(10, 6, scale=0.5),),
        decisions=[
            Truth("mean.item()", "number", other=lambda: call(normal(10, 6, seed=1, scale=0.5))),
            Truth("abs(mean - centre) < 0.5", true=EXAMPLE, false=lambda: call(normal(10, 6, scale=4.0))),
            Truth("len(kept) < 3", true=lambda: call(normal(10, 6, scale=30.0)), false=EXAMPLE),
        ],
        wrong={
            "trace": "abs(mean - centre) < 0.5",
            "onnx-torchscript": "abs(mean - centre) < 0.5",
            "export": "refused",
            "onnx": "refused",
            "script": "refused",
            "compile": "refused",
        },
    )
)


class OutlierRejection(nn.Module):
    """Points far from the centre are dropped; if that leaves too few, none is."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, points: Tensor) -> Tensor:
        distance = (points - points.mean(0)).norm(dim=-1)
        keep = points[distance < 1.6 * distance.mean()]
        if keep.shape[0] < points.shape[0]:
            if len(keep) <= points.shape[0] // 2:
                keep = points
            keep = keep - keep.mean(0)
        return self.head(keep.mean(0)) + keep.std()


def _one_far(count: int) -> Tensor:
    points = normal(count, 3, scale=0.1)
    points[0] += 20.0
    return points


def _ring(inside: int, around: int) -> Tensor:
    angle = torch.arange(around) * (2 * math.pi / around)
    ring = torch.stack([angle.cos(), angle.sin(), torch.zeros(around)], -1)
    return torch.cat([torch.zeros(inside, 3), ring])


CASES.append(
    Case(
        "outlier rejection",
        make=lambda: seeded(OutlierRejection),
        args=lambda: (uniform(9, 3),),
        decisions=[
            Truth("keep.shape[0] < points.shape[0]", true=lambda: call(_one_far(9)), false=EXAMPLE),
            Truth(
                "len(keep) <= points.shape[0] // 2",
                true=lambda: call(_ring(4, 5)),
                false=lambda: call(_one_far(9)),
            ),
        ],
        effort="hard",
        wrong={
            "trace": "keep.shape[0] < points.shape[0]",
            "onnx-torchscript": "keep.shape[0] < points.shape[0]",
            "export": "refused",
            "onnx": "refused",
            "script": "refused",
        },
        right=("compile",),
    )
)


class Whitening(nn.Module):
    """Whitens features by Cholesky; a covariance that is not positive definite gets a ridge first."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ridge", torch.eye(3) * 0.05)

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(0)
        covariance = centred.T @ centred / x.shape[0]
        try:
            factor = torch.linalg.cholesky(covariance - 0.01 * torch.eye(3))
        except RuntimeError:
            factor = torch.linalg.cholesky(covariance + self.ridge)
        return torch.linalg.solve_triangular(factor, centred.T, upper=False).T


CASES.append(
    Case(
        "whitening",
        make=lambda: seeded(Whitening),
        args=lambda: (normal(12, 3),),
        decisions=[
            Truth("except RuntimeError", "exception", true=lambda: call(normal(12, 3, scale=0.01)), false=EXAMPLE)
        ],
        wrong={
            "trace": "except RuntimeError",
            "onnx-torchscript": "refused",
            "export": "except RuntimeError",
            "onnx": "refused",
            "script": "refused",
            "compile": "except RuntimeError",
        },
    )
)


class ClippedUpdate(nn.Module):
    """One step of a learned optimiser, clipped by norm; the step size falls with the logarithm of the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.rule = nn.Linear(2, 1)
        self.max_norm = 1.0

    def forward(self, weight: Tensor, gradient: Tensor) -> Tensor:
        update = self.rule(torch.stack([weight, gradient], -1)).squeeze(-1)
        norm = float(update.norm())
        rate = 0.1
        if norm > self.max_norm:
            update = update * (self.max_norm / (norm + 1e-6))
            rate = rate / (1 + math.log(norm))
        ratio = float(weight.norm()) / max(norm, 1e-6)
        if 2 * ratio - norm > 10.0:
            rate *= 2
        return weight - rate * update


CASES.append(
    Case(
        "clipped update",
        make=lambda: seeded(ClippedUpdate, seed=1),
        args=lambda: (normal(6), normal(6, seed=1)),
        decisions=[
            Truth("norm > self.max_norm", true=EXAMPLE, false=lambda: call(normal(6) * 0, normal(6) * 0)),
            Truth("2 * ratio - norm > 10.0", true=lambda: call(normal(6) * 9, normal(6) * 9), false=EXAMPLE),
            Truth("float(update.norm())", "number", other=lambda: call(normal(6) * 2, normal(6, seed=1))),
        ],
        wrong={
            "trace": "float(update.norm())",
            "onnx-torchscript": "float(update.norm())",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script", "compile"),
    )
)
