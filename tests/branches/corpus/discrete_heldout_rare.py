"""Held out: modules whose other outcomes are rare among random inputs; see `case.py` for the format."""

from __future__ import annotations

import torch
from torch import nn
from torch.export import Dim

from pytest_torchexport import integers
from tests.branches.corpus.case import EXAMPLE, Call, Case, Infeasible, Truth, call, normal, seeded

CASES: list[Case] = []


class BracketReader(nn.Module):
    """Reads an expression with brackets: the depth must end at zero and never fall below it."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.close = 40, 41
        self.embed = nn.Embedding(96, 4)
        self.broken = nn.Parameter(torch.randn(4))

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        depth = (text == self.open).long().cumsum(0) - (text == self.close).long().cumsum(0)
        if depth.min() < 0:
            return self.broken * 2
        if depth[-1] != 0:
            return self.broken * 1.0
        hidden = self.embed(text)
        if depth.max() >= 2:
            hidden = hidden / (1 + depth).unsqueeze(1)
        return hidden.sum(0)


CASES.append(
    Case(
        "bracket reader",
        make=lambda: seeded(BracketReader),
        args=lambda: (torch.tensor([49, 43, 40, 50, 45, 51, 41, 55, 56]),),
        decisions=[
            Truth(
                "depth.min() < 0",
                true=lambda: call(torch.tensor([49, 43, 41, 50, 45, 51, 40, 55, 56])),
                false=EXAMPLE,
            ),
            Truth(
                "depth[-1] != 0",
                true=lambda: call(torch.tensor([49, 43, 40, 50, 45, 51, 43, 55, 56])),
                false=EXAMPLE,
            ),
            Truth(
                "depth.max() >= 2",
                true=lambda: call(torch.tensor([49, 40, 40, 50, 45, 51, 41, 41, 56])),
                false=EXAMPLE,
            ),
        ],
        effort="hard",
        wrong={
            "trace": "depth.min() < 0",
            "onnx-torchscript": "depth.min() < 0",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script", "compile"),
    )
)


class TurnTaking(nn.Module):
    """Diarisation: many changes of the speaker mean cross talk, a single one a monologue."""

    def __init__(self) -> None:
        super().__init__()
        self.speaker = nn.Embedding(6, 4)

    def forward(self, x: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
        changes = int((speaker.diff() != 0).sum())
        out = x + self.speaker(speaker)
        if changes >= 6:
            return out.median(0).values
        if changes == 0:
            return out.mean(0) * 2
        if torch.bincount(speaker).max() > 5:
            return out[speaker == torch.bincount(speaker).argmax()].mean(0)
        return out.mean(0)


def turns(*speaker: int) -> Call:
    return call(normal(8, 4), torch.tensor(speaker))


CASES.append(
    Case(
        "turn taking",
        make=lambda: seeded(TurnTaking),
        args=lambda: turns(0, 0, 2, 2, 1, 1, 5, 5)[0],
        decisions=[
            Truth("changes >= 6", true=lambda: turns(0, 1, 2, 3, 1, 4, 5, 0), false=EXAMPLE),
            Truth("changes == 0", true=lambda: turns(3, 3, 3, 3, 3, 3, 3, 3), false=EXAMPLE),
            Truth(
                "torch.bincount(speaker).max() > 5",
                true=lambda: turns(0, 3, 3, 3, 3, 3, 3, 3),
                false=EXAMPLE,
            ),
        ],
        wrong={"trace": "changes >= 6", "onnx-torchscript": "changes >= 6", "export": "refused", "onnx": "refused"},
        right=("script",),
    )
)


class PaddingSide(nn.Module):
    """Works out on which side a batch is padded, from its tokens, to find the last one of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = 50256
        self.rows = 1024
        self.embed = nn.Embedding(self.rows, 4)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(input_ids % self.rows)
        padding = input_ids == self.pad
        if padding[:, 0].any() and padding[:, -1].any():
            return hidden.mean(1)
        if padding[:, 0].any():
            return hidden[:, -1]
        last = (~padding).sum(1) - 1
        return hidden[torch.arange(input_ids.shape[0]), last]


CASES.append(
    Case(
        "padding side",
        make=lambda: seeded(PaddingSide),
        args=lambda: (torch.tensor([[15496, 11, 995, 0], [40, 716, 50256, 50256]]),),
        decisions=[
            Truth(
                "padding[:, 0].any()",
                true=lambda: call(torch.tensor([[50256, 11, 995, 0], [40, 716, 13, 7]])),
                false=EXAMPLE,
            ),
            Truth(
                "padding[:, -1].any()",
                true=lambda: call(torch.tensor([[50256, 11, 995, 0], [40, 716, 13, 50256]])),
                false=lambda: call(torch.tensor([[50256, 11, 995, 0], [40, 716, 13, 7]])),
            ),
            Truth(
                "padding[:, 0].any()",
                nth=1,
                true=lambda: call(torch.tensor([[50256, 11, 995, 0], [40, 716, 13, 7]])),
                false=EXAMPLE,
            ),
        ],
        wrong={
            "trace": "padding[:, 0].any()",
            "onnx-torchscript": "padding[:, 0].any()",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script",),
    )
)


class SinkWindow(nn.Module):
    """Streaming attention that keeps the first tokens and a window of the last ones."""

    def __init__(self, sinks: int = 4, window: int = 24) -> None:
        super().__init__()
        self.sinks = sinks
        self.window = window
        self.out = nn.Linear(4, 4)

    def forward(self, cache: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        whole = torch.cat([cache, frames], dim=0)
        extra = whole.shape[0] - self.sinks - self.window
        if extra > 0:
            whole = torch.cat([whole[: self.sinks], whole[-self.window :]], dim=0)
            if extra > frames.shape[0]:
                whole = whole * 0.5
        if cache.shape[0] % self.window == 0:
            whole = whole - whole.mean(0)
        if whole.shape[0] > self.sinks + self.window:
            whole = -whole
        return self.out(whole)


CASES.append(
    Case(
        "sink window",
        make=lambda: seeded(SinkWindow),
        args=lambda: (normal(10, 4), normal(3, 4)),
        decisions=[
            Truth("extra > 0", true=lambda: call(normal(27, 4), normal(3, 4)), false=EXAMPLE),
            Truth(
                "extra > frames.shape[0]",
                true=lambda: call(normal(40, 4), normal(3, 4)),
                false=lambda: call(normal(27, 4), normal(3, 4)),
            ),
            Truth(
                "cache.shape[0] % self.window == 0",
                true=lambda: call(normal(24, 4), normal(2, 4)),
                false=EXAMPLE,
            ),
            Truth(
                "whole.shape[0] > self.sinks + self.window",
                true=Infeasible("what is above has been cut"),
                false=EXAMPLE,
            ),
        ],
        options={
            "dynamic_shapes": {"cache": {0: Dim("cached", min=1, max=64)}, "frames": {0: Dim("new", min=1, max=8)}}
        },
        wrong={"trace": "extra > 0", "onnx-torchscript": "extra > 0", "export": "refused", "onnx": "extra > 0"},
        right=("script",),
    )
)


class GameState(nn.Module):
    """Board of a game: a full board or three in a row end it, then the value is exact."""

    lines: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer(
            "lines",
            torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 3, 6], [1, 4, 7], [2, 5, 8], [0, 4, 8], [2, 4, 6]]),
        )
        self.net = nn.Sequential(nn.Embedding(3, 4), nn.Flatten(0), nn.Linear(36, 1))

    def forward(self, board: torch.Tensor) -> torch.Tensor:
        rows = board[self.lines]
        if (rows == 1).all(1).any():
            return torch.ones(1)
        if (rows == 2).all(1).any():
            return -torch.ones(1)
        if not (board == 0).any():
            return torch.zeros(1)
        return self.net(board).tanh()


CASES.append(
    Case(
        "game state",
        make=lambda: seeded(GameState),
        args=lambda: (torch.tensor([1, 0, 2, 0, 1, 0, 0, 0, 2]),),
        decisions=[
            Truth(
                "(rows == 1).all(1).any()",
                true=lambda: call(torch.tensor([1, 1, 1, 0, 2, 0, 0, 0, 2])),
                false=EXAMPLE,
            ),
            Truth(
                "(rows == 2).all(1).any()",
                true=lambda: call(torch.tensor([1, 0, 2, 0, 1, 2, 0, 1, 2])),
                false=EXAMPLE,
            ),
            Truth(
                "(board == 0).any()",
                true=EXAMPLE,
                false=lambda: call(torch.tensor([1, 2, 1, 1, 2, 2, 2, 1, 1])),
            ),
        ],
        wrong={
            "trace": "(rows == 1).all(1).any()",
            "onnx-torchscript": "(rows == 1).all(1).any()",
            "export": "refused",
            "onnx": "refused",
        },
    )
)


class MagicHeader(nn.Module):
    """A weight file's header in bytes: magic number, endianness, version, each read only if the last one fits."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4))

    def forward(self, header: torch.Tensor) -> torch.Tensor:
        first, second, third, fourth = header[:4].tolist()
        magic = first << 8 | second
        if magic != 0x4747:
            return self.scale * 0
        version = fourth if third == 0 else third
        if version > 3:
            return self.scale * -1
        return self.scale * (version + 1)


def header(*values: int) -> torch.Tensor:
    return torch.tensor([*values, 7, 7], dtype=torch.int32)


CASES.append(
    Case(
        "magic header",
        make=lambda: seeded(MagicHeader),
        args=lambda: (torch.tensor([0x12, 0x34, 0, 2, 7, 7], dtype=torch.int32),),
        decisions=[
            Truth("header[:4].tolist()", "number", other=lambda: call(header(0x47, 0x47, 0, 2))),
            Truth("magic != 0x4747", true=EXAMPLE, false=lambda: call(header(0x47, 0x47, 0, 2))),
            Truth(
                "third == 0",
                true=lambda: call(header(0x47, 0x47, 0, 2)),
                false=lambda: call(header(0x47, 0x47, 3, 2)),
            ),
            Truth(
                "version > 3",
                true=lambda: call(header(0x47, 0x47, 0, 9)),
                false=lambda: call(header(0x47, 0x47, 0, 2)),
            ),
        ],
        options={"inputs": {"header": integers(0, 255)}},
        effort="hard",
        wrong={
            "trace": "header[:4].tolist()",
            "onnx-torchscript": "header[:4].tolist()",
            "export": "refused",
            "onnx": "refused",
        },
    )
)


class TokenBudget(nn.Module):
    """Costs of tokens in a buffer: over budget the tail is dropped, on the dot a bonus is paid."""

    cost: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.budget = 150
        self.register_buffer("cost", (torch.arange(64) * 37) % 50 + 1)
        self.embed = nn.Embedding(64, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        spent = int(self.cost[tokens].sum())
        hidden = self.embed(tokens)
        if spent == self.budget:
            return hidden.sum(0) * 2
        if spent > self.budget:
            return hidden[self.cost[tokens].cumsum(0) <= self.budget].sum(0)
        return hidden.sum(0)


def spending(budget: int) -> Call:
    cost = (torch.arange(64) * 37) % 50 + 1
    dear, cheap = int(cost.argmax()), int(cost.argmin())
    rest = next(n for n in range(64) if int(cost[n]) == budget - 2 * int(cost[dear]) - 3 * int(cost[cheap]))
    return call(torch.tensor([dear, dear, cheap, cheap, cheap, rest]))


CASES.append(
    Case(
        "token budget",
        make=lambda: seeded(TokenBudget),
        args=lambda: (torch.tensor([0, 0, 11, 11, 20, 4]),),
        decisions=[
            Truth("spent == self.budget", true=lambda: spending(150), false=EXAMPLE),
            Truth(
                "spent > self.budget",
                true=lambda: call(torch.tensor([4, 4, 4, 4, 4, 63])),
                false=EXAMPLE,
            ),
        ],
        options={"inputs": {"tokens": integers(0, 63)}},
        wrong={
            "trace": "spent == self.budget",
            "onnx-torchscript": "spent == self.budget",
            "export": "refused",
            "onnx": "refused",
        },
    )
)
