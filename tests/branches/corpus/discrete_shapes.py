"""Modules that decide on sizes and state: parity, windows, chunks, caches that grow or fill, counters of calls."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

from tests.branches.corpus.case import EXAMPLE, Case, Truth, call, normal, seeded

CASES: list[Case] = []


class EvenLength(nn.Module):
    """Downsamples by two; an odd sequence gets one frame of padding first."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.merge = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] % 2:
            x = F.pad(x, (0, 0, 0, 1))
        batch, time, width = x.shape
        return self.merge(x.reshape(batch, time // 2, 2 * width))


CASES.append(
    Case(
        "even length",
        make=lambda: seeded(EvenLength),
        args=lambda: (normal(2, 8, 4),),
        decisions=[Truth("x.shape[1] % 2", true=lambda: call(normal(2, 7, 4)), false=EXAMPLE)],
        options={"dynamic_shapes": {"x": {1: Dim("time", min=2, max=64)}}},
        wrong={
            "trace": "x.shape[1] % 2",
            "onnx-torchscript": "x.shape[1] % 2",
            "export": "refused",
            "onnx": "x.shape[1] % 2",
        },
        right=("script", "compile"),
    )
)


class ShiftedWindows(nn.Module):
    """One Swin block: pads to whole windows, shifts unless the window covers the map, attends inside windows."""

    def __init__(self, width: int = 8, window: int = 4) -> None:
        super().__init__()
        self.window = window
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1], x.shape[2]
        hidden = self.norm(x)
        below, right = -height % self.window, -width % self.window
        if below or right:
            hidden = F.pad(hidden, (0, 0, 0, right, 0, below))
        batch, rows, columns, channels = hidden.shape
        shift = 0 if min(height, width) <= self.window else self.window // 2
        if shift > 0:
            hidden = hidden.roll((-shift, -shift), dims=(1, 2))
        size = self.window
        windows = hidden.reshape(batch, rows // size, size, columns // size, size, channels)
        windows = windows.permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, channels)
        query, key, value = self.qkv(windows).chunk(3, dim=-1)
        windows = self.proj(F.scaled_dot_product_attention(query, key, value))
        hidden = windows.reshape(batch, rows // size, columns // size, size, size, channels)
        hidden = hidden.permute(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, channels)
        if shift > 0:
            hidden = hidden.roll((shift, shift), dims=(1, 2))
        return x + hidden[:, :height, :width]


CASES.append(
    Case(
        "shifted windows",
        make=lambda: seeded(ShiftedWindows),
        args=lambda: (normal(1, 8, 8, 8),),
        decisions=[
            Truth("below", true=lambda: call(normal(1, 7, 8, 8)), false=EXAMPLE),
            Truth("right", true=lambda: call(normal(1, 8, 10, 8)), false=EXAMPLE),
            Truth("min(height, width) <= self.window", true=lambda: call(normal(1, 4, 8, 8)), false=EXAMPLE),
            Truth("shift > 0", true=EXAMPLE, false=lambda: call(normal(1, 4, 8, 8))),
            Truth("shift > 0", nth=1, true=EXAMPLE, false=lambda: call(normal(1, 4, 8, 8))),
        ],
        options={"dynamic_shapes": {"x": {1: Dim("height", min=2, max=32), 2: Dim("width", min=2, max=32)}}},
        wrong={"trace": "below", "onnx-torchscript": "below", "export": "refused", "onnx": "refused"},
        right=("script",),
    )
)


class ChunkedAttention(nn.Module):
    """Attention in one piece up to a length, in chunks of the queries above it to save memory."""

    def __init__(self, width: int = 8, max_len: int = 16, chunk: int = 6) -> None:
        super().__init__()
        self.max_len = max_len
        self.chunk = chunk
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        length = x.shape[1]
        if length > self.max_len:
            pieces = []
            for start in range(0, length, self.chunk):
                piece = query[:, start : start + self.chunk]
                pieces.append(F.scaled_dot_product_attention(piece, key, value))
            return torch.cat(pieces, dim=1)
        return F.scaled_dot_product_attention(query, key, value)


CASES.append(
    Case(
        "chunked attention",
        make=lambda: seeded(ChunkedAttention),
        args=lambda: (normal(1, 18, 8),),
        decisions=[
            Truth("length > self.max_len", true=EXAMPLE, false=lambda: call(normal(1, 10, 8))),
            Truth("range(0, length, self.chunk)", "loop", other=lambda: call(normal(1, 31, 8))),
        ],
        options={"dynamic_shapes": {"x": {1: Dim("length", min=2, max=48)}}},
        wrong={
            "trace": "range(0, length, self.chunk)",
            "onnx-torchscript": "range(0, length, self.chunk)",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script",),
    )
)


class GrowingPositions(nn.Module):
    """Sinusoidal positions, kept in a buffer that grows with the longest sequence seen."""

    table: torch.Tensor

    def __init__(self, width: int = 8, length: int = 12) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("table", self.build(length), persistent=False)
        self.out = nn.Linear(width, width)

    def build(self, length: int) -> torch.Tensor:
        angle = torch.arange(length).unsqueeze(1) / 1000 ** (torch.arange(0, self.width, 2) / self.width)
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] > self.table.shape[0]:
            self.table = self.build(2 * x.shape[1])
        return self.out(x + self.table[: x.shape[1]])


CASES.append(
    Case(
        "growing positions",
        make=lambda: seeded(GrowingPositions),
        args=lambda: (normal(2, 6, 8),),
        decisions=[
            Truth("x.shape[1] > self.table.shape[0]", true=lambda: call(normal(2, 13, 8)), false=EXAMPLE),
        ],
        options={"dynamic_shapes": {"x": {1: Dim.AUTO}}},
        wrong={
            "trace": "x.shape[1] > self.table.shape[0]",
            "onnx-torchscript": "x.shape[1] > self.table.shape[0]",
            "export": "x.shape[1] > self.table.shape[0]",
            "onnx": "x.shape[1] > self.table.shape[0]",
        },
    )
)


class SqueezedBatch(nn.Module):
    """Serving code: a single request comes back without its batch dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        scores = self.net(features).softmax(-1)
        if len(features) == 1:
            return scores.squeeze(0)
        return scores


CASES.append(
    Case(
        "squeezed batch",
        make=lambda: seeded(SqueezedBatch),
        args=lambda: (normal(3, 6),),
        decisions=[Truth("len(features) == 1", true=lambda: call(normal(1, 6)), false=EXAMPLE)],
        options={"dynamic_shapes": {"features": {0: Dim("batch", min=1, max=32)}}},
        wrong={
            "trace": "len(features) == 1",
            "onnx-torchscript": "len(features) == 1",
            "export": "refused",
            "onnx": "len(features) == 1",
        },
        right=("script", "compile"),
    )
)


class SpectralMixer(nn.Module):
    """Mixes tokens with an FFT; other lengths than powers of two are padded up to the next one."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[1]
        if length & (length - 1) != 0:
            padded = 1 << length.bit_length()
            x = F.pad(x, (0, 0, 0, padded - length))
        spectrum = torch.fft.rfft(x, dim=1)
        frequency = torch.linspace(0, 1, spectrum.shape[1]).unsqueeze(1)
        mixed = spectrum * torch.exp(-self.decay * frequency)
        return torch.fft.irfft(mixed, n=x.shape[1], dim=1)[:, :length]


CASES.append(
    Case(
        "spectral mixer",
        make=lambda: seeded(SpectralMixer),
        args=lambda: (normal(1, 8, 4),),
        decisions=[Truth("length & (length - 1) != 0", true=lambda: call(normal(1, 11, 4)), false=EXAMPLE)],
        options={"dynamic_shapes": ({1: Dim("length", min=2, max=40)},)},
        wrong={
            "trace": "length & (length - 1) != 0",
            "onnx-torchscript": "refused",
            "export": "refused",
            "onnx": "length & (length - 1) != 0",
        },
    )
)


class PatchEmbed(nn.Module):
    """Image to patches: images below one patch are enlarged, others padded where the patch does not divide them."""

    def __init__(self, patch: int = 8) -> None:
        super().__init__()
        self.patch = patch
        self.project = nn.Conv2d(3, 6, patch, stride=patch)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[-2:]
        if height < self.patch or width < self.patch:
            image = F.interpolate(image, size=(self.patch, self.patch), mode="bilinear")
        elif height % self.patch != 0:
            image = F.pad(image, (0, 0, 0, self.patch - height % self.patch))
        return self.project(image).flatten(2).transpose(1, 2)


CASES.append(
    Case(
        "patch embedding",
        make=lambda: seeded(PatchEmbed),
        args=lambda: (normal(1, 3, 16, 16),),
        decisions=[
            Truth("height < self.patch", true=lambda: call(normal(1, 3, 6, 16)), false=EXAMPLE),
            Truth("width < self.patch", true=lambda: call(normal(1, 3, 16, 5)), false=EXAMPLE),
            Truth("height % self.patch != 0", true=lambda: call(normal(1, 3, 18, 16)), false=EXAMPLE),
        ],
        options={"dynamic_shapes": {"image": {2: Dim("height", min=4, max=40), 3: Dim("width", min=4, max=40)}}},
        wrong={
            "trace": "height < self.patch",
            "onnx-torchscript": "height < self.patch",
            "export": "refused",
            "onnx": "height < self.patch",
        },
        right=("script",),
    )
)


class StreamingAttention(nn.Module):
    """One frame a call; keys and values of the last frames are kept, the oldest goes when the cache is full."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, width: int = 6, capacity: int = 3) -> None:
        super().__init__()
        self.capacity = capacity
        self.qkv = nn.Linear(width, 3 * width)
        self.register_buffer("keys", torch.zeros(1, 0, width))
        self.register_buffer("values", torch.zeros(1, 0, width))

    def forward(self, frame: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(frame).chunk(3, dim=-1)
        if self.keys.shape[1] == 0:
            self.keys, self.values = key, value
            return value
        if self.keys.shape[1] >= self.capacity:
            self.keys, self.values = self.keys[:, 1:], self.values[:, 1:]
        self.keys = torch.cat([self.keys, key], dim=1)
        self.values = torch.cat([self.values, value], dim=1)
        return F.scaled_dot_product_attention(query, self.keys, self.values)


CASES.append(
    Case(
        "streaming attention",
        make=lambda: seeded(StreamingAttention),
        args=lambda: (normal(1, 1, 6),),
        decisions=[
            Truth(
                "self.keys.shape[1] == 0",
                true=EXAMPLE,
                false=lambda: [call(normal(1, 1, 6, seed=n)) for n in range(2)],
            ),
            Truth(
                "self.keys.shape[1] >= self.capacity",
                true=lambda: [call(normal(1, 1, 6, seed=n)) for n in range(4)],
                false=lambda: [call(normal(1, 1, 6, seed=n)) for n in range(2)],
            ),
        ],
        effort="hard",
        wrong={"trace": "self.keys.shape[1] == 0"},
    )
)


class WarmUp(nn.Module):
    """Counts its calls; the correction joins in after the third."""

    steps: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.base = nn.Linear(4, 4)
        self.correction = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        out = self.base(x)
        if self.steps > 3:
            out = out + self.correction(x)
        return out


CASES.append(
    Case(
        "warm up",
        make=lambda: seeded(WarmUp),
        args=lambda: (normal(2, 4),),
        decisions=[Truth("self.steps > 3", true=EXAMPLE, false=EXAMPLE)],
        options={"calls": 6},
        wrong={"export": "refused", "onnx": "refused"},
    )
)
