# mypy: disable-error-code="no-untyped-call,no-any-return,union-attr"
"""Models of different architectures, in which faults are planted by format."""

from __future__ import annotations

import inspect

import torch
from torch import nn
from torch.nn import functional as F

FILE = __file__


class ResidualBlock(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.short = nn.Conv2d(before, after, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.leaky_relu(y + self.short(x), 0.1)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(ResidualBlock(3, 8), ResidualBlock(8, 8))
        self.layer2 = nn.Sequential(ResidualBlock(8, 12))
        self.fc = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer2(self.layer1(x))
        return self.fc(x.mean((2, 3)))


class EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(query @ key.transpose(-2, -1) * 0.5, dim=-1)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, length, width)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.layers = nn.ModuleList([EncoderLayer(16, 4), EncoderLayer(16, 4)])
        self.norm = nn.LayerNorm(16)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 10, batch_first=True)
        self.head = nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.lstm(x * 0.5)
        return self.head(torch.tanh(y)).log_softmax(-1)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 6, 3, padding=1)
        self.down = nn.Conv2d(6, 12, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.leave = nn.Conv2d(12, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        high = F.elu(self.enter(x))
        low = F.elu(self.down(high))
        joined = torch.cat([high, self.up(low)], dim=1)
        return torch.sigmoid(self.leave(joined))


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, padding=1)
        self.boxes = nn.Conv2d(8, 4, 1)
        self.classes = nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        features = F.hardswish(self.body(x))
        boxes = self.boxes(features).flatten(2).transpose(1, 2)
        boxes = torch.cat([boxes[..., :2].sigmoid(), boxes[..., 2:].exp() * 0.25], dim=-1)
        scores = self.classes(features).flatten(2).transpose(1, 2).softmax(-1)
        return boxes, scores, scores.amax(-1)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x - 0.25) / 2.5
        return self.layers(x)


def subject(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A model in eval mode, with statistics and biases that are not trivial, and its example."""
    torch.manual_seed(3)
    model, x = {
        "resnet": lambda: (ResNet(), torch.randn(2, 3, 6, 6)),
        "encoder": lambda: (Encoder(), torch.randint(0, 20, (2, 7))),
        "recurrent": lambda: (Recurrent(), torch.randn(2, 5, 6)),
        "unet": lambda: (UNet(), torch.randn(2, 3, 8, 8)),
        "detector": lambda: (Detector(), torch.randn(2, 3, 5, 5)),
        "mlp": lambda: (Mlp(), torch.randn(4, 8)),
    }[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval(), x


def source_line(model: nn.Module, text: str) -> int:
    for kind in {type(module) for module in model.modules()}:
        if kind.__module__ == __name__:
            lines, first = inspect.getsourcelines(kind)
            for number, line in enumerate(lines):
                if text in line:
                    return first + number
    raise AssertionError(text)
