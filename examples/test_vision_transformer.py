"""A vision transformer in the style of DeiT: a class token, a distillation token, two heads that are averaged.

The model is scripted and saved, as for a mobile application, and checked on the other backends besides.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        x = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.projection(x.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class DistilledTransformer(nn.Module):
    def __init__(self, size: int = 32, patch: int = 8, width: int = 48, depth: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        self.tokens = nn.Parameter(torch.randn(1, 2, width) * 0.02)  # class and distillation
        self.positions = nn.Parameter(torch.randn(1, 2 + (size // patch) ** 2, width) * 0.02)
        self.blocks = nn.Sequential(*[Block(width, heads=3) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)
        self.distillation_head = nn.Linear(width, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.tokens.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        x = self.norm(self.blocks(x))
        return (self.head(x[:, 0]) + self.distillation_head(x[:, 1])) / 2


@pytest.mark.export_equivalent(backends=["script", "trace", "compile", "export", "onnx"])
def test_vision_transformer(export_check):
    export_check(DistilledTransformer().eval(), (torch.randn(2, 3, 32, 32),))
