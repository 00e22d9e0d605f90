"""Six models of the usual kinds, each with its example call. Weights are random and fixed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

Example = tuple[nn.Module, tuple[torch.Tensor, ...]]


class Residual(nn.Module):
    """A basic block of a ResNet."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inner, outer, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outer),
            nn.ReLU(),
            nn.Conv2d(outer, outer, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outer),
        )
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inner != outer:
            self.skip = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def resnet18() -> Example:
    """ResNet-18 at 112 x 112."""
    widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks = [Residual(*width) for width in [*widths, (512, 512, 1)]]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)]
    return nn.Sequential(*stem, *blocks, *head).eval(), (torch.randn(2, 3, 112, 112),)


def perceptron() -> Example:
    """A multilayer perceptron."""
    layers = [nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 10)]
    return nn.Sequential(*layers).eval(), (torch.randn(32, 256),)


class Encoder(nn.Module):
    """Token embedding, two attention layers, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, 128)
        self.attention = nn.ModuleList(nn.MultiheadAttention(128, 4, batch_first=True) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(128) for _ in range(2))
        self.head = nn.Linear(128, 1000)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for attention, norm in zip(self.attention, self.norms, strict=True):
            x = norm(x + attention(x, x, x, need_weights=False)[0])
        return self.head(x)


def encoder() -> Example:
    """A small transformer encoder on token ids."""
    return Encoder().eval(), (torch.randint(0, 1000, (2, 64)),)


class Unet(nn.Module):
    """One level down, one level up, with a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.out = nn.Conv2d(32, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.down(x)
        return torch.sigmoid(self.out(torch.cat([skip, self.up(self.middle(skip))], dim=1)))


def unet() -> Example:
    """A small U-Net at 64 x 64."""
    return Unet().eval(), (torch.randn(2, 3, 64, 64),)


def mobile() -> Example:
    """Depthwise separable convolutions."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 2, 1), nn.Hardswish()]
    for inner, outer in [(16, 32), (32, 64)]:
        layers += [nn.Conv2d(inner, inner, 3, 2, 1, groups=inner), nn.BatchNorm2d(inner), nn.Hardswish()]
        layers += [nn.Conv2d(inner, outer, 1), nn.BatchNorm2d(outer), nn.Hardswish()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 100)]
    return nn.Sequential(*layers).eval(), (torch.randn(4, 3, 64, 64),)


class Fusion(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.table = nn.Sequential(nn.Linear(20, 64), nn.LayerNorm(64), nn.SiLU())
        self.scores, self.box = nn.Linear(192, 5), nn.Linear(192, 4)

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        joint = torch.cat([self.image(image), self.table(table)], dim=1)
        return self.scores(joint).softmax(dim=-1), self.box(joint)


def fusion() -> Example:
    """An image and a table row in, scores and a box out."""
    return Fusion().eval(), (torch.randn(4, 3, 32, 32), torch.randn(4, 20))


MODELS: dict[str, Callable[[], Example]] = {
    "resnet18": resnet18,
    "perceptron": perceptron,
    "encoder": encoder,
    "unet": unet,
    "mobile": mobile,
    "fusion": fusion,
}
BACKENDS = ("trace", "script", "compile", "onnx")
N_INPUTS = 10
