"""Held out: modules over sizes, graphs, trees, optional parts and library code; see `case.py` for the format."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

from pytest_torchexport import booleans, integers, optional, sampled_from
from tests.branches.corpus.case import EXAMPLE, Call, Case, Infeasible, Truth, call, normal, seeded

CASES: list[Case] = []


def ids(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


class TiledDenoiser(nn.Module):
    """Works on overlapping tiles; the last tile is moved back inside the image."""

    def __init__(self, tile: int = 8, overlap: int = 2) -> None:
        super().__init__()
        self.tile = tile
        self.stride = tile - overlap
        self.net = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        height = image.shape[-2]
        if height <= self.tile:
            return self.net(image)
        total = torch.zeros_like(image)
        weight = torch.zeros_like(image)
        for start in range(0, height - self.tile + self.stride, self.stride):
            top = start
            if start + self.tile > height:
                top = height - self.tile
            total[..., top : top + self.tile, :] += self.net(image[..., top : top + self.tile, :])
            weight[..., top : top + self.tile, :] += 1
        return total / weight


CASES.append(
    Case(
        "tiled denoiser",
        make=lambda: seeded(TiledDenoiser),
        args=lambda: (normal(1, 1, 14, 4),),
        decisions=[
            Truth("height <= self.tile", true=lambda: call(normal(1, 1, 8, 4)), false=EXAMPLE),
            Truth(
                "range(0, height - self.tile + self.stride, self.stride)",
                "loop",
                other=lambda: call(normal(1, 1, 22, 4)),
            ),
            Truth("start + self.tile > height", true=lambda: call(normal(1, 1, 17, 4)), false=EXAMPLE),
        ],
        options={"dynamic_shapes": {"image": {2: Dim("height", min=3, max=40)}}},
        wrong={
            "trace": "range(0, height - self.tile + self.stride, self.stride)",
            "onnx-torchscript": "range(0, height - self.tile + self.stride, self.stride)",
            "export": "refused",
            "onnx": "range(0, height - self.tile + self.stride, self.stride)",
        },
        right=("script",),
    )
)


class DecisionTree(nn.Module):
    """Walks a fitted tree to its leaf; categorical features are compared with a category."""

    def __init__(self) -> None:
        super().__init__()
        self.feature = [0, 2, 1]
        self.category = [3, 1, 4]
        self.branches = [(1, 2), (-1, -2), (-3, 1)]
        self.leaves = nn.Parameter(torch.randn(3, 2))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        node = 0
        while node >= 0:
            same = features[self.feature[node]] == self.category[node]
            node = self.branches[node][0 if same else 1]
        return self.leaves[-node - 1]


CASES.append(
    Case(
        "decision tree",
        make=lambda: seeded(DecisionTree),
        args=lambda: (torch.tensor([3, 0, 1]),),
        decisions=[
            Truth("node >= 0", true=EXAMPLE, false=EXAMPLE),
            Truth("node >= 0", "loop", other=lambda: call(torch.tensor([0, 1, 1]))),
            Truth("same", true=EXAMPLE, false=lambda: call(torch.tensor([0, 4, 1]))),
        ],
        options={"inputs": {"features": integers(0, 5)}},
        wrong={"trace": "same", "onnx-torchscript": "same", "export": "refused", "onnx": "refused"},
        right=("script",),
    )
)


class ReachableNodes(nn.Module):
    """Spreads a message from the first node along the edges until no new node is reached."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.message = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        reached = torch.zeros(x.shape[0], dtype=torch.bool)
        reached[0] = True
        frontier = reached
        while frontier.any():
            x = x + frontier.unsqueeze(1) * self.message(x).tanh()
            found = adjacency[frontier].any(0) & ~reached
            reached = reached | found
            frontier = found
        if not reached.all():
            x = torch.where(reached.unsqueeze(1), x, torch.zeros_like(x))
        return x


def graph(*rows: str) -> Call:
    return call(normal(4, 4), torch.tensor([[letter == "1" for letter in row] for row in rows]))


CASES.append(
    Case(
        "reachable nodes",
        make=lambda: seeded(ReachableNodes),
        args=lambda: graph("0110", "0001", "0001", "1000")[0],
        decisions=[
            Truth("frontier.any()", true=EXAMPLE, false=EXAMPLE),
            Truth("frontier.any()", "loop", other=lambda: graph("0100", "0010", "0001", "1000")),
            Truth("reached.all()", true=EXAMPLE, false=lambda: graph("0100", "1000", "0001", "1000")),
        ],
        wrong={"trace": "frontier.any()", "onnx-torchscript": "frontier.any()", "export": "refused", "onnx": "refused"},
        right=("script",),
    )
)


class SequenceClassifier(nn.Module):
    """What a model library's classification model does with labels, ignored ones and its return type."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 8)
        self.classifier = nn.Linear(8, 3)

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> dict[str, Any] | tuple[torch.Tensor, ...]:
        logits = self.classifier(self.embed(input_ids))
        loss = None
        if labels is not None:
            counted = labels != -100
            loss = logits.sum() * 0
            if counted.any():
                loss = F.cross_entropy(logits[counted], labels[counted])
        if not return_dict:
            return (logits,) if loss is None else (loss, logits)
        return {"loss": loss, "logits": logits}


TEXT = ids([4, 17, 29, 8], [1, 0, 22, 13])

CASES.append(
    Case(
        "sequence classifier",
        make=lambda: seeded(SequenceClassifier),
        args=lambda: (TEXT.clone(), ids([0, 2, -100, 1], [-100, 1, 1, 0]), False),
        decisions=[
            Truth("labels is not None", true=EXAMPLE, false=lambda: call(TEXT, None, False)),
            Truth("counted.any()", true=EXAMPLE, false=lambda: call(TEXT, torch.full((2, 4), -100), False)),
            Truth("return_dict", true=lambda: call(TEXT, ids([0, 2, 1, 1], [2, 1, 1, 0]), True), false=EXAMPLE),
            Truth("loss is None", true=lambda: call(TEXT, None, False), false=EXAMPLE),
        ],
        options={"inputs": {"labels": optional(sampled_from([-100, 0, 1, 2])), "return_dict": booleans()}},
        wrong={"trace": "counted.any()", "onnx-torchscript": "counted.any()", "export": "refused", "onnx": "refused"},
    )
)


class RecurrentDecoder(nn.Module):
    """One step of a decoder; without a state it starts from zeros, an all-padding step hands the state on."""

    def __init__(self) -> None:
        super().__init__()
        self.padding = 0
        self.embed = nn.Embedding(20, 6)
        self.cell = nn.GRUCell(6, 6)

    def forward(self, tokens: torch.Tensor, state: torch.Tensor | None) -> torch.Tensor:
        if state is None:
            state = torch.zeros(tokens.shape[0], 6)
        if (tokens == self.padding).all():
            return state
        return self.cell(self.embed(tokens), state)


CASES.append(
    Case(
        "recurrent decoder",
        make=lambda: seeded(RecurrentDecoder),
        args=lambda: (torch.tensor([4, 0, 19]), normal(3, 6)),
        decisions=[
            Truth("state is None", true=lambda: call(torch.tensor([4, 0, 19]), None), false=EXAMPLE),
            Truth(
                "(tokens == self.padding).all()",
                true=lambda: call(torch.tensor([0, 0, 0]), normal(3, 6)),
                false=EXAMPLE,
            ),
        ],
        options={"inputs": {"state": optional()}},
        wrong={
            "trace": "(tokens == self.padding).all()",
            "onnx-torchscript": "(tokens == self.padding).all()",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script",),
    )
)


class RunLength(nn.Module):
    """Durations of a speech synthesiser: frames are repeated, cut at a limit, and nothing gives one silent frame."""

    def __init__(self) -> None:
        super().__init__()
        self.limit = 16
        self.out = nn.Linear(4, 4)

    def forward(self, phonemes: torch.Tensor, durations: torch.Tensor) -> torch.Tensor:
        total = durations.sum()
        if total == 0:
            return phonemes.new_zeros(1, 4)
        frames = phonemes.repeat_interleave(durations, dim=0)
        if total > self.limit:
            frames = frames[: self.limit]
        if frames.shape[0] > self.limit:
            frames = frames.flip(0)
        return self.out(frames)


CASES.append(
    Case(
        "run length",
        make=lambda: seeded(RunLength),
        args=lambda: (normal(4, 4), torch.tensor([2, 1, 6, 3])),
        decisions=[
            Truth("total == 0", true=lambda: call(normal(4, 4), torch.zeros(4, dtype=torch.long)), false=EXAMPLE),
            Truth("total > self.limit", true=lambda: call(normal(4, 4), torch.tensor([6, 6, 6, 3])), false=EXAMPLE),
            Truth("frames.shape[0] > self.limit", true=Infeasible("they have been cut"), false=EXAMPLE),
        ],
        wrong={
            "trace": "total > self.limit",
            "onnx-torchscript": "total > self.limit",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script",),
    )
)


class CrossAttention(nn.Module):
    """Chooses the way to attend by the sizes: own positions for self-attention, none for a single query."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(32))
        self.project = nn.Linear(width, width)

    def forward(self, query: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        scores = query @ self.project(memory).transpose(1, 2)
        if query.shape[1] == memory.shape[1]:
            place = torch.arange(query.shape[1])
            scores = scores + self.bias[(place.unsqueeze(1) - place).abs()]
        elif query.shape[1] > memory.shape[1]:
            scores = scores * 0.5
        return scores.softmax(-1) @ memory


CASES.append(
    Case(
        "cross attention",
        make=lambda: seeded(CrossAttention),
        args=lambda: (normal(1, 4, 6), normal(1, 9, 6)),
        decisions=[
            Truth(
                "query.shape[1] == memory.shape[1]",
                true=lambda: call(normal(1, 7, 6), normal(1, 7, 6)),
                false=EXAMPLE,
            ),
            Truth(
                "query.shape[1] > memory.shape[1]",
                true=lambda: call(normal(1, 9, 6), normal(1, 4, 6)),
                false=EXAMPLE,
            ),
        ],
        options={"dynamic_shapes": ({1: Dim("queries", min=2, max=32)}, {1: Dim("keys", min=2, max=32)})},
        wrong={
            "trace": "query.shape[1] == memory.shape[1]",
            "onnx-torchscript": "query.shape[1] == memory.shape[1]",
            "export": "query.shape[1] == memory.shape[1]",
            "onnx": "query.shape[1] == memory.shape[1]",
        },
        right=("script",),
    )
)


class PaddedAttention(nn.Module):
    """Fast causal path for full batches, an explicit mask for padded ones; mostly empty batches are compacted."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        ratio = attention_mask.float().mean().item()
        if ratio > 1:
            msg = "attention_mask holds something else than zeros and ones"
            raise ValueError(msg)
        if ratio == 1:
            query, key, value = self.qkv(x).chunk(3, dim=-1)
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        used = attention_mask.any(0)
        if ratio < 0.4 and not used.all():
            x, attention_mask = x[:, used], attention_mask[:, used]
        length = x.shape[1]
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        place = torch.arange(length)
        before, itself = place.unsqueeze(1) > place, place.unsqueeze(1) == place
        mask = before & attention_mask.bool().unsqueeze(1) | itself
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def padded(*rows: str) -> Call:
    return call(normal(4, 6, 6), torch.tensor([[int(letter) for letter in row] for row in rows]))


CASES.append(
    Case(
        "padded attention",
        make=lambda: seeded(PaddedAttention),
        args=lambda: padded("111111", "111100", "111000", "111110")[0],
        decisions=[
            Truth("ratio > 1", true=Infeasible("it raises"), false=EXAMPLE),
            Truth("ratio == 1", true=lambda: padded("111111", "111111", "111111", "111111"), false=EXAMPLE),
            Truth("ratio < 0.4", true=lambda: padded("110000", "100000", "111000", "100000"), false=EXAMPLE),
            Truth(
                "used.all()",
                true=lambda: padded("111111", "100000", "100000", "100000"),
                false=lambda: padded("110000", "100000", "111000", "100000"),
            ),
        ],
        wrong={"trace": "ratio < 0.4", "onnx-torchscript": "ratio < 0.4", "export": "refused", "onnx": "refused"},
    )
)


class SpeakerPooling(nn.Module):
    """Attention pooling over tokens feeds a gate: only clear cases take the cheap way."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 8)
        self.attend = nn.Linear(8, 1)
        self.gate = nn.Linear(8, 1)
        self.slow = nn.Linear(8, 8)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(tokens)
        weights = self.attend(hidden).softmax(1)
        pooled = (weights * hidden).sum(1)
        confidence = self.gate(pooled).sigmoid()
        if (confidence > 0.7).all():
            return pooled
        return pooled + self.slow(pooled).relu()


def confident() -> Call:
    model = seeded(SpeakerPooling)
    best = model.gate(model.embed.weight).argmax()
    return call(best.expand(2, 5).clone())


CASES.append(
    Case(
        "speaker pooling",
        make=lambda: seeded(SpeakerPooling),
        args=lambda: (ids([3, 12, 39, 20, 7], [33, 1, 5, 15, 28]),),
        decisions=[Truth("(confidence > 0.7).all()", true=confident, false=EXAMPLE)],
        wrong={
            "trace": "(confidence > 0.7).all()",
            "onnx-torchscript": "(confidence > 0.7).all()",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script",),
    )
)


class LibraryEncoder(nn.Module):
    """A model of a model library inside one's own: a rerank score from its pooled output."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=40,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
        )
        self.separator = 3
        self.encoder = BertModel(config)
        self.score = nn.Linear(8, 1)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=input_ids).last_hidden_state
        ends = input_ids == self.separator
        if ends.sum() > 1:
            return self.score((hidden * ends.unsqueeze(-1)).sum(1))
        if input_ids[0, 0] == 2:
            return self.score(hidden[:, 0])
        return self.score(hidden.mean(1))


CASES.append(
    Case(
        "library encoder",
        make=lambda: seeded(LibraryEncoder),
        args=lambda: (ids([2, 11, 39, 8, 25, 3]),),
        decisions=[
            Truth("ends.sum() > 1", true=lambda: call(ids([2, 11, 3, 8, 25, 3])), false=EXAMPLE),
            Truth("input_ids[0, 0] == 2", true=EXAMPLE, false=lambda: call(ids([11, 11, 39, 8, 25, 3]))),
        ],
        wrong={"trace": "ends.sum() > 1", "onnx-torchscript": "ends.sum() > 1", "export": "refused", "onnx": "refused"},
    )
)


class SensorFusion(nn.Module):
    """A reading per sensor by name; the fusion rule is an argument, and two sensors may be missing."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({"lidar": nn.Linear(3, 4), "radar": nn.Linear(2, 4), "camera": nn.Linear(5, 4)})

    def forward(self, readings: dict[str, torch.Tensor], rule: Literal["mean", "max"]) -> torch.Tensor:
        parts = [self.encoders[name](value) for name, value in readings.items() if name in self.encoders]
        if not parts:
            return torch.zeros(4)
        if len(parts) == 1:
            return parts[0]
        stacked = torch.stack(parts)
        return stacked.mean(0) if rule == "mean" else stacked.amax(0)


def readings() -> list[dict[str, torch.Tensor]]:
    lidar, radar, camera = normal(3), normal(2), normal(5)
    return [
        {"lidar": lidar, "camera": camera},
        {"radar": radar},
        {"sonar": radar},
        {"lidar": lidar, "radar": radar, "camera": camera},
    ]


CASES.append(
    Case(
        "sensor fusion",
        make=lambda: seeded(SensorFusion),
        args=lambda: (readings()[0], "mean"),
        decisions=[
            Truth("readings.items()", "loop", other=lambda: call(readings()[3], "mean")),
            Truth("name in self.encoders", true=EXAMPLE, false=lambda: call(readings()[2], "mean")),
            Truth("parts", true=EXAMPLE, false=lambda: call(readings()[2], "mean")),
            Truth("len(parts) == 1", true=lambda: call(readings()[1], "mean"), false=EXAMPLE),
            Truth('rule == "mean"', true=EXAMPLE, false=lambda: call(readings()[0], "max")),
        ],
        options={"inputs": {"readings": sampled_from(readings())}},
    )
)
