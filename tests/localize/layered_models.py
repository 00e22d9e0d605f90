# mypy: disable-error-code="no-untyped-call,no-any-return"
"""Architectures in which faults are planted, small and with every weight and statistic at random."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional


class Residual(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.down = nn.Conv2d(inside, outside, 1, stride, bias=False) if inside != outside else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.down is not None:
            x = self.down(x)
        return functional.relu(x + y)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.bn = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.layers = nn.Sequential(Residual(8, 8), Residual(8, 16, 2), Residual(16, 16))
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(functional.relu(self.bn(self.stem(x))))
        x = self.layers(x)
        x = x.mean((2, 3))
        return self.fc(x)


class EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        weights = q @ k.transpose(-1, -2) / math.sqrt(width // self.heads)
        weights = weights.masked_fill(mask, float("-inf"))
        weights = torch.softmax(weights, -1)
        y = (weights @ v).transpose(1, 2).reshape(batch, length, width)
        x = x + self.out(y)
        return x + self.feed(self.norm2(x))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.layers = nn.ModuleList([EncoderLayer(16, 4) for _ in range(2)])
        self.head = nn.Linear(16, 40)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 12)
        self.lstm = nn.LSTM(12, 10, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(20)
        self.fc = nn.Linear(20, 7)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x, _ = self.lstm(self.embedding(ids))
        x = self.norm(x)
        return functional.log_softmax(self.fc(x), -1)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = self.block(3, 8), self.block(8, 16)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.last = self.block(16, 8)
        self.out = nn.Conv2d(8, 2, 1)

    @staticmethod
    def block(inside: int, outside: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1), nn.GroupNorm(4, outside), nn.SiLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.down1(x)
        b = self.down2(functional.avg_pool2d(a, 2))
        y = self.last(torch.cat([self.up(b), a], 1))
        return torch.sigmoid(self.out(y))


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(12, 4)
        self.first = nn.Parameter(torch.randn(4, 12, 24) * 0.3)
        self.second = nn.Parameter(torch.randn(4, 24, 12) * 0.3)
        self.norm = nn.LayerNorm(12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chances = torch.softmax(self.gate(x), -1)
        top, index = chances.topk(2, -1)
        kept = torch.zeros_like(chances).scatter(-1, index, top)
        kept = kept / kept.sum(-1, keepdim=True)
        hidden = functional.silu(torch.einsum("bd,edf->bef", x, self.first))
        mixed = torch.einsum("bef,efd->bed", hidden, self.second)
        mixed = (mixed * kept.unsqueeze(-1)).sum(1)
        return self.norm(x + mixed)


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        first, second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.body = nn.Sequential(first, nn.BatchNorm2d(8), nn.LeakyReLU(0.1), second)
        self.classes = nn.Conv2d(16, 6, 1)
        self.box = nn.Conv2d(16, 4, 1)
        self.register_buffer("anchors", torch.rand(16, 2) * 8)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.body(x)
        scores = torch.sigmoid(self.classes(found)).flatten(2).transpose(1, 2)
        moves = self.box(found).flatten(2).transpose(1, 2)
        centre = self.anchors + moves[..., :2] * 4
        size = torch.exp(moves[..., 2:].clamp(max=4)) * 8
        boxes = torch.cat([centre - size / 2, centre + size / 2], -1)
        return {"boxes": boxes.clamp(0, 64), "scores": scores}


class Smoothed(nn.Module):
    average: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.register_buffer("average", torch.ones(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        self.average.mul_(0.5).add_(y.mean(0))
        z = y.clone()
        z[:, 2:] = z[:, 2:] - self.average[2:]
        return torch.tanh(z)


INPUTS = {
    ResNet: lambda: torch.randn(2, 3, 16, 16),
    Encoder: lambda: torch.randint(0, 40, (2, 9)),
    Tagger: lambda: torch.randint(0, 30, (2, 7)),
    UNet: lambda: torch.randn(1, 3, 16, 16),
    Experts: lambda: torch.randn(6, 12),
    Detector: lambda: torch.randn(2, 3, 16, 16),
    Smoothed: lambda: torch.randn(4, 6),
}


def make(model: type[nn.Module]) -> tuple[nn.Module, tuple[torch.Tensor]]:
    """A model with an example."""
    torch.manual_seed(0)
    made = model().eval()
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 1.5)
    return made, (INPUTS[model](),)
