"""Modules whose other outcomes are rare among random inputs: ids of a large vocabulary, relations, exact codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

from pytest_torchexport import integers
from tests.branches.corpus.case import EXAMPLE, Call, Case, Infeasible, Truth, call, normal, seeded

CASES: list[Case] = []


def ids(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


class ToolCallGate(nn.Module):
    """A language model's head that masks the text of a tool call, which two special tokens in a row open."""

    def __init__(self) -> None:
        super().__init__()
        self.open_id = 151657
        self.name_id = 151659
        self.vocab = 512
        self.embed = nn.Embedding(self.vocab, 8)
        self.tool = nn.Linear(8, 8)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(input_ids % self.vocab)
        opens = input_ids[:, :-1] == self.open_id
        named = input_ids[:, 1:] == self.name_id
        if (opens & named).any():
            hidden = hidden + self.tool(hidden).tanh()
        return hidden.mean(1)


CASES.append(
    Case(
        "tool call gate",
        make=lambda: seeded(ToolCallGate),
        args=lambda: (ids([872, 9906, 151644, 198, 77091, 25, 151660]),),
        decisions=[
            Truth(
                "(opens & named).any()",
                true=lambda: call(ids([872, 9906, 151657, 151659, 77091, 25, 151660])),
                false=EXAMPLE,
            )
        ],
        effort="hard",
        wrong={
            "trace": "(opens & named).any()",
            "onnx-torchscript": "(opens & named).any()",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script",),
    )
)


class VisionTokens(nn.Module):
    """Puts image features in the place of image tokens; the numbers of both need not agree."""

    def __init__(self) -> None:
        super().__init__()
        self.image_token_id = 31999
        self.embed = nn.Embedding(32000, 4)
        self.project = nn.Linear(6, 4)

    def forward(self, input_ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(input_ids)
        place = input_ids == self.image_token_id
        count = int(place.sum())
        if count == 0:
            return hidden
        features = self.project(pixels)
        if count > features.shape[0]:
            features = F.pad(features, (0, 0, 0, count - features.shape[0]))
        return hidden.masked_scatter(place.unsqueeze(-1), features[:count])


CASES.append(
    Case(
        "vision tokens",
        make=lambda: seeded(VisionTokens),
        args=lambda: (torch.tensor([1, 733, 31999, 31999, 28804, 12, 5]), normal(3, 6)),
        decisions=[
            Truth(
                "count == 0",
                true=lambda: call(torch.tensor([1, 733, 8, 9, 28804, 12, 5]), normal(3, 6)),
                false=EXAMPLE,
            ),
            Truth(
                "count > features.shape[0]",
                true=lambda: call(torch.tensor([1, 31999, 31999, 31999, 31999, 12, 5]), normal(3, 6)),
                false=EXAMPLE,
            ),
        ],
        wrong={
            "trace": "count > features.shape[0]",
            "onnx-torchscript": "count > features.shape[0]",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script",),
    )
)


class StopAfterParagraphs(nn.Module):
    """Switches to the summary head after the fourth line break."""

    def __init__(self) -> None:
        super().__init__()
        self.newline = 198
        self.limit = 4
        self.embed = nn.Embedding(5000, 4)
        self.text = nn.Linear(4, 3)
        self.summary = nn.Linear(4, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(ids).mean(1)
        if (ids == self.newline).sum().item() >= self.limit:
            return self.summary(hidden)
        return self.text(hidden)


CASES.append(
    Case(
        "stop after paragraphs",
        make=lambda: seeded(StopAfterParagraphs),
        args=lambda: (ids([4120, 33, 198, 2750, 999, 18, 640, 4811]),),
        decisions=[
            Truth(
                "(ids == self.newline).sum().item() >= self.limit",
                true=lambda: call(ids([4120, 198, 198, 2750, 198, 198, 640, 4811])),
                false=EXAMPLE,
            )
        ],
        wrong={
            "trace": "(ids == self.newline).sum().item() >= self.limit",
            "onnx-torchscript": "(ids == self.newline).sum().item() >= self.limit",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script",),
    )
)


class WakeWord(nn.Module):
    """Phonemes of the wake word at the start wake the assistant."""

    trigger: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("trigger", torch.tensor([17, 4, 31]))
        self.embed = nn.Embedding(48, 6)
        self.assistant = nn.Linear(6, 6)

    def forward(self, phonemes: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(phonemes)
        if torch.equal(phonemes[0, :3], self.trigger):
            return self.assistant(hidden)
        return hidden * 0.1


CASES.append(
    Case(
        "wake word",
        make=lambda: seeded(WakeWord),
        args=lambda: (ids([45, 12, 31, 8, 20, 3]),),
        decisions=[
            Truth(
                "torch.equal(phonemes[0, :3], self.trigger)",
                true=lambda: call(ids([17, 4, 31, 8, 20, 3])),
                false=EXAMPLE,
            )
        ],
        wrong={
            "trace": "torch.equal(phonemes[0, :3], self.trigger)",
            "onnx-torchscript": "torch.equal(phonemes[0, :3], self.trigger)",
            "export": "refused",
            "onnx": "refused",
        },
    )
)


class PromptFormat(nn.Module):
    """A translation prompt: begin token, language, text, end token; each part is checked inside the other."""

    BOS, EOS = 0, 2

    def __init__(self) -> None:
        super().__init__()
        self.languages = {"de": 1014, "fr": 1019}
        self.embed = nn.Embedding(1200, 4)
        self.french = nn.Linear(4, 4)
        self.closed = nn.Linear(4, 4)

    def forward(self, prompt: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(prompt).mean(1)
        if prompt[0, 0] == self.BOS:
            hidden = hidden * 2
            if prompt[0, 1] == self.languages["fr"]:
                hidden = self.french(hidden)
                if prompt[0, -1] == self.EOS:
                    hidden = self.closed(hidden)
        return hidden


CASES.append(
    Case(
        "prompt format",
        make=lambda: seeded(PromptFormat),
        args=lambda: (ids([600, 88, 1100, 742, 15, 931]),),
        decisions=[
            Truth("prompt[0, 0] == self.BOS", true=lambda: call(ids([0, 88, 1100, 742, 15, 931])), false=EXAMPLE),
            Truth(
                'prompt[0, 1] == self.languages["fr"]',
                true=lambda: call(ids([0, 1019, 1100, 742, 15, 931])),
                false=lambda: call(ids([0, 88, 1100, 742, 15, 931])),
            ),
            Truth(
                "prompt[0, -1] == self.EOS",
                true=lambda: call(ids([0, 1019, 1100, 742, 15, 2])),
                false=lambda: call(ids([0, 1019, 1100, 742, 15, 931])),
            ),
        ],
        wrong={
            "trace": "prompt[0, 0] == self.BOS",
            "onnx-torchscript": "prompt[0, 0] == self.BOS",
            "export": "refused",
            "onnx": "refused",
        },
    )
)


class RotaryPositions(nn.Module):
    """Positions come as an argument; beyond the trained context they are squeezed into it."""

    def __init__(self, width: int = 6, context: int = 2048) -> None:
        super().__init__()
        self.context = context
        self.register_buffer("inverse", 1 / 10000 ** (torch.arange(0, width, 2) / width))

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        positions = position_ids.to(x.dtype)
        longest = int(position_ids.max()) + 1
        if longest > self.context:
            positions = positions * (self.context / longest)
        angle = positions.unsqueeze(-1) * self.inverse
        first, second = x.chunk(2, dim=-1)
        return torch.cat(
            [first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()], dim=-1
        )


CASES.append(
    Case(
        "rotary positions",
        make=lambda: seeded(RotaryPositions),
        args=lambda: (normal(1, 5, 6), ids([0, 1, 2, 3, 4])),
        decisions=[
            Truth(
                "longest > self.context",
                true=lambda: call(normal(1, 5, 6), ids([4000, 4001, 4002, 4003, 4004])),
                false=EXAMPLE,
            )
        ],
        wrong={
            "trace": "longest > self.context",
            "onnx-torchscript": "longest > self.context",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script",),
    )
)


class BucketedLength(nn.Module):
    """Static shapes for an accelerator: lengths are padded to a bucket, those above the last are cut."""

    def __init__(self) -> None:
        super().__init__()
        self.buckets = (32, 96, 320)
        self.net = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[1]
        for bucket in self.buckets:
            if length <= bucket:
                x = F.pad(x, (0, 0, 0, bucket - length))
                break
        else:
            x = x[:, : self.buckets[-1]]
        if length % 32 == 0 and length % 96 == 40:
            x = -x
        return self.net(x).cumsum(1)[:, -1]


CASES.append(
    Case(
        "bucketed length",
        make=lambda: seeded(BucketedLength),
        args=lambda: (normal(1, 20, 2),),
        decisions=[
            Truth("self.buckets", "loop", other=lambda: call(normal(1, 50, 2))),
            Truth("length <= bucket", true=EXAMPLE, false=lambda: call(normal(1, 400, 2))),
            Truth("length % 32 == 0", true=lambda: call(normal(1, 32, 2)), false=EXAMPLE),
            Truth(
                "length % 96 == 40",
                true=Infeasible("a multiple of 32 leaves 0, 32 or 64"),
                false=lambda: call(normal(1, 32, 2)),
            ),
        ],
        options={"dynamic_shapes": {"x": {1: Dim("length", min=4, max=512)}}},
        wrong={
            "trace": "self.buckets",
            "onnx-torchscript": "self.buckets",
            "export": "refused",
            "onnx": "self.buckets",
        },
    )
)


class AspectAware(nn.Module):
    """Detector preprocessing: square images as they are, long ones split, large ones made smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.max_area = 900
        self.net = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[-2:]
        if height * width > self.max_area:
            image = F.avg_pool2d(image, 2)
        if max(height, width) / min(height, width) > 3:
            image = image[..., : min(height, width) // 2, : min(height, width) // 2]
        elif height == width:
            return self.net(image)
        return self.net(image).mean((-1, -2))


CASES.append(
    Case(
        "aspect-aware",
        make=lambda: seeded(AspectAware),
        args=lambda: (normal(1, 1, 12, 18),),
        decisions=[
            Truth("height * width > self.max_area", true=lambda: call(normal(1, 1, 40, 36)), false=EXAMPLE),
            Truth(
                "max(height, width) / min(height, width) > 3",
                true=lambda: call(normal(1, 1, 8, 32)),
                false=EXAMPLE,
            ),
            Truth("height == width", true=lambda: call(normal(1, 1, 16, 16)), false=EXAMPLE),
        ],
        options={"dynamic_shapes": {"image": {2: Dim("height", min=4, max=64), 3: Dim("width", min=4, max=64)}}},
        wrong={
            "trace": "height * width > self.max_area",
            "onnx-torchscript": "height * width > self.max_area",
            "export": "height * width > self.max_area",
            "onnx": "refused",
        },
        right=("script",),
    )
)


class WeightedChecksum(nn.Module):
    """A record with a checksum modulo a prime; only records that hold are embedded."""

    weights: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor([3, 7, 1, 9, 5]))
        self.embed = nn.Embedding(100, 4)

    def forward(self, record: torch.Tensor) -> torch.Tensor:
        check = (int((record[:-1] * self.weights).sum()) + 29) % 97
        if check == int(record[-1]):
            return self.embed(record[:-1]).sum(0)
        return torch.zeros(4)


CASES.append(
    Case(
        "weighted checksum",
        make=lambda: seeded(WeightedChecksum),
        args=lambda: (torch.tensor([40, 12, 99, 7, 63, 18]),),
        decisions=[
            Truth(
                "check == int(record[-1])",
                true=lambda: call(torch.tensor([40, 12, 99, 7, 63, 31])),
                false=EXAMPLE,
            )
        ],
        options={"inputs": {"record": integers(0, 99)}},
        wrong={
            "trace": "check == int(record[-1])",
            "onnx-torchscript": "check == int(record[-1])",
            "export": "refused",
            "onnx": "refused",
        },
    )
)


class RaggedBatch(nn.Module):
    """Rows of one length take the fast way; a mask that lets almost everything through counts as full."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
        lengths = mask.sum(1)
        if lengths.min() == lengths.max():
            x = self.mix(x)
        if mask.sum() > 0.9 * mask.numel():
            return x.mean(1)
        both = mask & segments
        if torch.equal(mask, segments):
            return (x * both.unsqueeze(-1)).amax(1)
        if not both.any():
            return x[:, 0]
        return (x * both.unsqueeze(-1)).sum(1)


def masked(first: tuple[str, ...], second: tuple[str, ...]) -> Call:
    mask, segments = (torch.tensor([[letter == "1" for letter in row] for row in rows]) for rows in (first, second))
    return call(normal(3, 5, 6), mask, segments)


CASES.append(
    Case(
        "ragged batch",
        make=lambda: seeded(RaggedBatch),
        args=lambda: masked(("11010", "01110", "10010"), ("00110", "11001", "01011"))[0],
        decisions=[
            Truth(
                "lengths.min() == lengths.max()",
                true=lambda: masked(("11010", "01110", "10011"), ("00110", "11001", "01011")),
                false=EXAMPLE,
            ),
            Truth(
                "mask.sum() > 0.9 * mask.numel()",
                true=lambda: masked(("11111", "11111", "10111"), ("00110", "11001", "01011")),
                false=EXAMPLE,
            ),
            Truth(
                "torch.equal(mask, segments)",
                true=lambda: masked(("11010", "01110", "10010"), ("11010", "01110", "10010")),
                false=EXAMPLE,
            ),
            Truth(
                "both.any()",
                true=EXAMPLE,
                false=lambda: masked(("11010", "01110", "10010"), ("00101", "10001", "01001")),
            ),
        ],
        wrong={
            "trace": "lengths.min() == lengths.max()",
            "onnx-torchscript": "lengths.min() == lengths.max()",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script",),
    )
)


class NightMode(nn.Module):
    """Time stamps in seconds of a day: outside office hours another calibration applies."""

    def __init__(self) -> None:
        super().__init__()
        self.day = nn.Linear(3, 3)
        self.night = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        hour = int(second) // 3600
        if hour >= 22 or hour < 6:
            return self.night(x)
        if 12 <= hour < 13:
            return (self.day(x) + self.night(x)) / 2
        return self.day(x)


CASES.append(
    Case(
        "night mode",
        make=lambda: seeded(NightMode),
        args=lambda: (normal(2, 3), torch.tensor(36_000)),
        decisions=[
            Truth("hour >= 22", true=lambda: call(normal(2, 3), torch.tensor(82_000)), false=EXAMPLE),
            Truth("hour < 6", true=lambda: call(normal(2, 3), torch.tensor(100)), false=EXAMPLE),
            Truth("12 <= hour < 13", true=lambda: call(normal(2, 3), torch.tensor(44_000)), false=EXAMPLE),
        ],
        options={"inputs": {"second": integers(0, 86_399)}},
        wrong={"trace": "hour >= 22", "onnx-torchscript": "hour >= 22", "export": "refused", "onnx": "refused"},
        right=("script",),
    )
)


class Permuter(nn.Module):
    """Applies an order of the channels; what is no permutation is used as a selection and scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        if order.sort().values.equal(torch.arange(order.shape[0])):
            return self.out(x[:, order])
        return self.out(x[:, order]) / order.unique().numel()


CASES.append(
    Case(
        "permuter",
        make=lambda: seeded(Permuter),
        args=lambda: (normal(2, 5), torch.tensor([4, 0, 0, 2, 1])),
        decisions=[
            Truth(
                "order.sort().values.equal(torch.arange(order.shape[0]))",
                true=lambda: call(normal(2, 5), torch.tensor([4, 0, 3, 2, 1])),
                false=EXAMPLE,
            )
        ],
        wrong={
            "trace": "order.sort().values.equal(torch.arange(order.shape[0]))",
            "onnx-torchscript": "order.sort().values.equal(torch.arange(order.shape[0]))",
            "export": "refused",
            "onnx": "refused",
        },
    )
)
