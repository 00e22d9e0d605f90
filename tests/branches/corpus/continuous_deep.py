"""Modules that decide deep inside: after convolutions, attention, recurrence, normalisation. See `case.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from tests.branches.corpus.case import EXAMPLE, Case, Truth, call, normal, seeded

if TYPE_CHECKING:
    from torch import Tensor

CASES: list[Case] = []


def convolution(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
    """Convolution, normalisation with statistics as after some training, ReLU."""
    norm = nn.BatchNorm2d(outer)
    norm.running_mean.normal_(0.0, 0.3)
    norm.running_var.uniform_(0.3, 1.2)
    return nn.Sequential(nn.Conv2d(inner, outer, 3, stride, 1, bias=False), norm, nn.ReLU())


class ThreeExits(nn.Module):
    """A small classifier that stops at the first head that is sure enough."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([convolution(3, 8), convolution(8, 8, 2), convolution(8, 16, 2)])
        self.heads = nn.ModuleList([nn.Linear(8, 5), nn.Linear(8, 5), nn.Linear(16, 5)])
        self.thresholds = (0.6, 0.5)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stages[0](image)
        logits = self.heads[0](x.mean((2, 3)))
        if logits.softmax(-1).max() > self.thresholds[0]:
            return logits, logits.argmax(-1)
        x = self.stages[1](x)
        logits = self.heads[1](x.mean((2, 3)))
        confidence = logits.softmax(-1).amax(-1)
        if confidence.min() > self.thresholds[1]:
            return logits, logits.argmax(-1)
        logits = self.heads[2](self.stages[2](x).mean((2, 3)))
        return logits, logits.argmax(-1)


CASES.append(
    Case(
        "three exits",
        make=lambda: seeded(ThreeExits),
        args=lambda: (normal(1, 3, 12, 12),),
        decisions=[
            Truth(
                "logits.softmax(-1).max() > self.thresholds[0]",
                true=lambda: call(normal(1, 3, 12, 12, scale=60.0)),
                false=EXAMPLE,
            ),
            Truth(
                "confidence.min() > self.thresholds[1]",
                true=lambda: call(normal(1, 3, 12, 12, scale=12.0)),
                false=EXAMPLE,
            ),
        ],
        wrong={
            "trace": "logits.softmax(-1).max() > self.thresholds[0]",
            "onnx-torchscript": "logits.softmax(-1).max() > self.thresholds[0]",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script", "compile"),
    )
)


class FocusAttention(nn.Module):
    """Attention that falls back to uniform weights where it is too sharp, and picks its temperature by entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.query, self.key, self.value = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(tokens)
        scores = self.query(x) @ self.key(tokens).transpose(1, 2) / 4.0
        weights = scores.softmax(-1)
        entropy = -(weights * (weights + 1e-9).log()).sum(-1).mean()
        temperature = 0.5 if entropy > 1.75 else 1.0
        weights = (scores / temperature).softmax(-1)
        if weights.amax() > 0.97:
            weights = torch.full_like(weights, 1 / weights.shape[-1])
        return weights @ self.value(x)


CASES.append(
    Case(
        "focus attention",
        make=lambda: seeded(FocusAttention),
        args=lambda: (normal(1, 6, 16, scale=3.0),),
        decisions=[
            Truth("entropy > 1.75", true=lambda: call(normal(1, 6, 16, scale=0.2)), false=EXAMPLE),
            Truth("weights.amax() > 0.97", true=lambda: call(normal(1, 6, 16, scale=30.0)), false=EXAMPLE),
        ],
        wrong={"trace": "entropy > 1.75", "onnx-torchscript": "entropy > 1.75", "export": "refused", "onnx": "refused"},
        right=("script", "compile"),
    )
)


class KeywordSpotter(nn.Module):
    """An LSTM over audio features; a detector that is unsure listens again backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 12, batch_first=True)
        self.detect = nn.Linear(12, 3)

    def forward(self, frames: Tensor) -> Tensor:
        output, (hidden, cell) = self.lstm(frames)
        logits = self.detect(hidden[-1])
        best = logits.topk(2, -1).values
        if (best[:, 0] - best[:, 1]).min() < 0.04:
            _, (again, _) = self.lstm(frames.flip(1))
            logits = (logits + self.detect(again[-1])) / 2
        if cell.abs().max() > 1.6:
            logits = logits - output.mean(1) @ self.detect.weight.T
        return logits


CASES.append(
    Case(
        "keyword spotter",
        make=lambda: seeded(KeywordSpotter),
        args=lambda: (normal(1, 9, 5),),
        decisions=[
            Truth(
                "(best[:, 0] - best[:, 1]).min() < 0.04",
                true=lambda: call(normal(1, 9, 5, seed=6, scale=2.0)),
                false=EXAMPLE,
            ),
            Truth("cell.abs().max() > 1.6", true=lambda: call(normal(1, 9, 5, scale=8.0)), false=EXAMPLE),
        ],
        wrong={
            "trace": "cell.abs().max() > 1.6",
            "onnx-torchscript": "cell.abs().max() > 1.6",
            "export": "refused",
            "onnx": "refused",
            "compile": "refused",
        },
        right=("script",),
    )
)


class StableEncoder(nn.Module):
    """Exponentials, and roots of a predicted variance; a simpler path where they overflow or are undefined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(1, 4), convolution(4, 4))
        self.plain = nn.Conv2d(1, 4, 1)
        self.variance = nn.Linear(4, 4)
        nn.init.constant_(self.variance.bias, 0.5)

    def forward(self, image: Tensor) -> Tensor:
        h = self.stem(image)
        energy = torch.exp(h * h)
        if torch.isinf(energy).any():
            return self.plain(image).clamp(-1, 1)
        spread = torch.sqrt(self.variance(h.mean((2, 3))))
        if torch.isnan(spread).any():
            spread = h.std((2, 3))
        return spread / energy.log1p().mean((2, 3))


CASES.append(
    Case(
        "stable encoder",
        make=lambda: seeded(StableEncoder),
        args=lambda: (normal(2, 1, 8, 8),),
        decisions=[
            Truth("torch.isinf(energy).any()", true=lambda: call(normal(2, 1, 8, 8, scale=60.0)), false=EXAMPLE),
            Truth("torch.isnan(spread).any()", true=lambda: call(normal(2, 1, 8, 8, scale=8.0)), false=EXAMPLE),
        ],
        wrong={
            "trace": "torch.isinf(energy).any()",
            "onnx-torchscript": "torch.isinf(energy).any()",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script", "compile"),
    )
)


class InputSanitiser(nn.Module):
    """Rejects inputs that are not finite, as services do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))

    def forward(self, features: Tensor) -> Tensor:
        if not torch.isfinite(features).all():
            features = torch.nan_to_num(features, nan=0.0, posinf=1.0, neginf=-1.0)
        return self.net(features)


CASES.append(
    Case(
        "input sanitiser",
        make=lambda: seeded(InputSanitiser),
        args=lambda: (normal(3, 4),),
        decisions=[
            Truth(
                "torch.isfinite(features).all()",
                true=EXAMPLE,
                false=lambda: call(torch.tensor([[1.0, float("nan"), 0.0, 2.0]]).repeat(3, 1)),
            ),
        ],
        wrong={
            "trace": "torch.isfinite(features).all()",
            "onnx-torchscript": "torch.isfinite(features).all()",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script", "compile"),
    )
)


class SwitchLayer(nn.Module):
    """A mixture of experts: the whole batch goes to the expert that it likes best."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 3, bias=False)
        self.experts = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        choice = int(self.router(x).mean(0).argmax())
        for index, expert in enumerate(self.experts):
            if index == choice:
                return x + expert(x)
        return x


CASES.append(
    Case(
        "switch layer",
        make=lambda: seeded(SwitchLayer),
        args=lambda: (normal(4, 6),),
        decisions=[
            Truth(
                "int(self.router(x).mean(0).argmax())",
                "number",
                other=lambda: call(-normal(4, 6) + normal(4, 6, seed=2)),
            ),
            Truth("index == choice", true=EXAMPLE, false=EXAMPLE),
            Truth("enumerate(self.experts)", "loop", other=lambda: call(-normal(4, 6) + normal(4, 6, seed=2))),
        ],
        wrong={
            "trace": "int(self.router(x).mean(0).argmax())",
            "onnx-torchscript": "int(self.router(x).mean(0).argmax())",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script", "compile"),
    )
)


class TopTwoRouter(nn.Module):
    """Top-2 routing: the two experts of the strongest routes, by index."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))
        self.experts = nn.ModuleList([nn.Linear(6, 3) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x.mean(0)).softmax(-1).topk(2)
        first, second = chosen.tolist()
        return weights[0] * self.experts[first](x) + weights[1] * self.experts[second](x)


CASES.append(
    Case(
        "top two router",
        make=lambda: seeded(TopTwoRouter),
        args=lambda: (normal(2, 6),),
        decisions=[Truth("chosen.tolist()", "number", other=lambda: call(normal(2, 6, seed=3, scale=3.0)))],
        wrong={
            "trace": "chosen.tolist()",
            "onnx-torchscript": "chosen.tolist()",
            "export": "refused",
            "onnx": "refused",
            "script": "refused",
        },
        right=("compile",),
    )
)


class ClassHeads(nn.Module):
    """Detector whose classes are refined by their own heads; only one of ten classes has a special one."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(convolution(1, 6), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 10))
        self.fine = nn.Linear(10, 4)
        self.coarse = nn.Linear(10, 4)

    def forward(self, crop: Tensor) -> Tensor:
        scores = self.backbone(crop)
        pred = scores.argmax(-1)
        if pred == 7:
            return self.fine(scores)
        return self.coarse(scores)


CASES.append(
    Case(
        "class heads",
        make=lambda: seeded(ClassHeads),
        args=lambda: (normal(1, 1, 8, 8),),
        decisions=[Truth("pred == 7", true=lambda: call(normal(1, 1, 8, 8, seed=66)), false=EXAMPLE)],
        effort="hard",
        wrong={"trace": "pred == 7", "onnx-torchscript": "pred == 7", "export": "refused", "onnx": "refused"},
        right=("script", "compile"),
    )
)


class SkippingResidual(nn.Module):
    """Residual blocks that are left out where they would change little."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU()) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        skipped = 0
        for block in self.blocks:
            delta = block(x)
            if delta.norm() < 0.08 * x.norm():
                skipped += 1
                continue
            x = x + delta
        return x / (1 + skipped)


CASES.append(
    Case(
        "skipping residual",
        make=lambda: seeded(SkippingResidual),
        args=lambda: (normal(2, 8),),
        decisions=[Truth("delta.norm() < 0.08 * x.norm()", true=lambda: call(normal(2, 8, scale=40.0)), false=EXAMPLE)],
        wrong={
            "trace": "delta.norm() < 0.08 * x.norm()",
            "onnx-torchscript": "delta.norm() < 0.08 * x.norm()",
            "export": "refused",
            "onnx": "refused",
            "script": "refused",
            "compile": "refused",
        },
    )
)


class AnomalyFallback(nn.Module):
    """An autoencoder that hands back what it cannot reconstruct."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 2))
        self.decode = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 12))
        self.limit = 1.8

    def error(self, x: Tensor, y: Tensor) -> float:
        return (x - y).pow(2).mean().item()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        code = self.encode(x)
        y = self.decode(code)
        report = {"error": self.error(x, y), "limit": self.limit}
        if report["error"] > report["limit"]:
            return {"output": x, "code": torch.zeros_like(code)}
        return {"output": y, "code": code}


CASES.append(
    Case(
        "anomaly fallback",
        make=lambda: seeded(AnomalyFallback),
        args=lambda: (normal(4, 12),),
        decisions=[
            Truth('report["error"] > report["limit"]', true=lambda: call(normal(4, 12, scale=3.0)), false=EXAMPLE)
        ],
        wrong={
            "trace": "refused",
            "onnx-torchscript": 'report["error"] > report["limit"]',
            "export": "refused",
            "onnx": "refused",
        },
        right=("script", "compile"),
    )
)


class ResidualBlock(nn.Module):
    """The basic block of a ResNet."""

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.first = convolution(inner, outer, stride)
        self.second = convolution(outer, outer)[:2]
        self.skip: nn.Module = nn.Conv2d(inner, outer, 1, stride) if stride > 1 or inner != outer else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.skip(x))


class GatedResNet(nn.Module):
    """A ResNet of eight blocks: one gate after the second stage, one on the pooled features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(3, 16)
        self.early = nn.Sequential(ResidualBlock(16, 16), ResidualBlock(16, 16), ResidualBlock(16, 32, 2))
        self.detail = nn.Sequential(ResidualBlock(32, 32), ResidualBlock(32, 32))
        self.late = nn.Sequential(ResidualBlock(32, 64, 2), ResidualBlock(64, 64))
        self.out = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.early(self.stem(image))
        if x.mean() > 1.0:
            x = self.detail(x)
        features = self.late(x).mean((2, 3))
        if features.norm(dim=-1).min() > 4.5:
            features = F.normalize(features, dim=-1)
        return self.out(features)


CASES.append(
    Case(
        "gated resnet",
        make=lambda: seeded(GatedResNet),
        args=lambda: (normal(1, 3, 32, 32),),
        decisions=[
            Truth("x.mean() > 1.0", true=lambda: call(normal(1, 3, 32, 32, scale=10.0)), false=EXAMPLE),
            Truth(
                "features.norm(dim=-1).min() > 4.5",
                true=lambda: call(normal(1, 3, 32, 32, scale=5.0)),
                false=EXAMPLE,
            ),
        ],
        wrong={
            "trace": "x.mean() > 1.0",
            "onnx-torchscript": "x.mean() > 1.0",
            "export": "refused",
            "onnx": "refused",
            "script": "refused",
        },
        right=("compile",),
    )
)


class ExitingEncoder(nn.Module):
    """A transformer encoder that stops when its [CLS] token hardly changes from one layer to the next."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).layers
        for parameter in self.layers.parameters():
            nn.init.normal_(parameter, 0.0, 0.15) if parameter.dim() > 1 else None
        self.head = nn.Linear(32, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        previous = tokens[:, 0]
        for layer in self.layers:
            tokens = layer(tokens)
            change = (tokens[:, 0] - previous).norm() / previous.norm()
            if change < 0.25:
                break
            previous = tokens[:, 0]
        return self.head(tokens[:, 0])


CASES.append(
    Case(
        "exiting encoder",
        make=lambda: seeded(ExitingEncoder),
        args=lambda: (normal(2, 10, 32),),
        decisions=[
            Truth("change < 0.25", true=lambda: call(normal(2, 10, 32, scale=10.0)), false=EXAMPLE),
            Truth("self.layers", "loop", other=lambda: call(normal(2, 10, 32, scale=10.0))),
        ],
        wrong={
            "trace": "change < 0.25",
            "onnx-torchscript": "refused",
            "export": "refused",
            "onnx": "refused",
            "script": "refused",
            "compile": "refused",
        },
    )
)
