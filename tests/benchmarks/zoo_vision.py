"""Architectures that see images."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.benchmarks.zoo import Made, architecture


def _conv(inner: int, outer: int, stride: int = 1, groups: int = 1, size: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(inner, outer, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outer))


class _Basic(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.one, self.two = _conv(inner, outer, stride), _conv(outer, outer)
        self.skip = nn.Identity() if stride == 1 and inner == outer else _conv(inner, outer, stride, size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.two(torch.relu(self.one(x))) + self.skip(x))


@architecture
def resnet() -> Made:
    blocks = [_Basic(16, 16, 1), _Basic(16, 24, 2), _Basic(24, 32, 2), _Basic(32, 32, 1)]
    stem = [nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 20)]
    return nn.Sequential(*stem, *blocks, *head), (torch.randn(2, 3, 48, 48),), {}


class _Inverted(nn.Module):
    """Depthwise separable, with squeeze and excitation."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        wide = 3 * inner
        self.expand, self.depth = _conv(inner, wide, size=1), _conv(wide, wide, stride, wide)
        self.squeeze, self.excite = nn.Conv2d(wide, 8, 1), nn.Conv2d(8, wide, 1)
        self.project = _conv(wide, outer, size=1)
        self.residual = stride == 1 and inner == outer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.hardswish(self.depth(functional.hardswish(self.expand(x))))
        gate = functional.adaptive_avg_pool2d(y, 1)
        y = y * functional.hardsigmoid(self.excite(torch.relu(self.squeeze(gate))))
        y = self.project(y)
        return x + y if self.residual else y


@architecture
def mobilenet() -> Made:
    blocks = [_Inverted(8, 8, 1), _Inverted(8, 12, 2), _Inverted(12, 12, 1), _Inverted(12, 16, 2)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)]
    return nn.Sequential(_conv(3, 8, 2), nn.Hardswish(), *blocks, *head), (torch.randn(2, 3, 32, 32),), {}


class _Unet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
        self.middle, self.norm = nn.Conv2d(16, 16, 3, 2, 1), nn.InstanceNorm2d(16, affine=True)
        self.up, self.mix, self.out = (
            nn.ConvTranspose2d(16, 8, 2, 2),
            nn.Conv2d(16, 8, 3, padding=1),
            nn.Conv2d(8, 2, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = functional.leaky_relu(self.down1(x), 0.1)
        two = functional.leaky_relu(self.norm(self.middle(functional.leaky_relu(self.down2(one), 0.1))), 0.1)
        two = functional.interpolate(two, size=(16, 16), mode="bilinear", align_corners=False)
        return torch.sigmoid(self.out(torch.relu(self.mix(torch.cat([one, self.up(two)], dim=1)))))


@architecture
def unet() -> Made:
    return _Unet(), (torch.randn(1, 3, 32, 32),), {}


class _Srcnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 12, 9, padding=4), nn.Conv2d(12, 8, 1)
        self.three = nn.Conv2d(8, 1, 5, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        big = functional.interpolate(x, scale_factor=2.0, mode="bicubic", align_corners=False)
        return (big + 0.2 * self.three(torch.relu(self.two(torch.relu(self.one(big)))))).clamp(0.05, 0.9)


@architecture
def srcnn_bicubic() -> Made:
    return _Srcnn(), (torch.rand(1, 1, 16, 16),), {}


class _Detector(nn.Module):
    """Boxes in pixels, scores of 1e-6, a mask and classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(3, 16, 2), nn.SiLU(), _conv(16, 16), nn.SiLU())
        self.boxes, self.scores = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 3, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        features = self.body(x)
        boxes = self.boxes(features).flatten(2).transpose(1, 2)
        boxes = torch.cat([boxes[..., :2] * 640.0, boxes[..., 2:].clamp(-4.0, 4.0).exp() * 32.0], dim=-1)
        scores = self.scores(features).flatten(2).transpose(1, 2).softmax(-1)
        return torch.cat([boxes, scores * 1e-6], dim=-1), scores.argmax(-1), scores.amax(-1) > 0.5


@architecture
def detection_head() -> Made:
    return _Detector(), (torch.randn(2, 3, 24, 24),), {}


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, length, width))


class _VitBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(width), nn.LayerNorm(width), _Attention(width, 4)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.scale = nn.Parameter(torch.rand(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.scale * self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Vit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 32, 8, 8), nn.Parameter(torch.randn(1, 1, 32))
        self.position = nn.Parameter(torch.randn(1, 17, 32) * 0.2)
        self.blocks, self.norm = nn.Sequential(_VitBlock(32), _VitBlock(32)), nn.LayerNorm(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


@architecture
def vit() -> Made:
    return _Vit(), (torch.randn(2, 3, 32, 32),), {}


class _Warp(nn.Module):
    """A spatial transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.theta = nn.Conv2d(2, 4, 3, 2, 1), nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        theta = self.theta(functional.gelu(self.conv(x)).mean((2, 3))).view(-1, 2, 3)
        grid = functional.affine_grid(theta * 0.5 + torch.eye(2, 3), list(x.shape), align_corners=False)
        return functional.grid_sample(x, grid, padding_mode="zeros", align_corners=False)


@architecture
def grid_sample() -> Made:
    return _Warp(), (torch.randn(2, 2, 12, 12),), {}


class _Edge(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.pad(x, (1, 2, 2, 1), mode="reflect")
        return functional.avg_pool2d(functional.elu(x), 2)


@architecture
def bfloat16_convolutions() -> Made:
    layers = [_conv(3, 12), nn.ReLU(), _Edge(), _conv(12, 12, 2), nn.ReLU(), nn.Conv2d(12, 6, 1)]
    return nn.Sequential(*layers).bfloat16(), (torch.randn(2, 3, 16, 16).bfloat16(),), {}
