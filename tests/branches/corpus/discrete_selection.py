"""Modules that select and route: boxes, experts, masks, levels, graphs with isolated nodes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.branches.corpus.case import EXAMPLE, Case, Truth, call, normal, seeded

CASES: list[Case] = []


def ids(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


def overlap(box: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    low = torch.maximum(box[:2], others[:, :2])
    high = torch.minimum(box[2:], others[:, 2:])
    common = (high - low).clamp_min(0).prod(1)
    area = (others[:, 2:] - others[:, :2]).prod(1)
    return common / ((box[2:] - box[:2]).prod() + area - common).clamp_min(1e-6)


class DetectorHead(nn.Module):
    """Scores and boxes per anchor, a score threshold, and non-maximum suppression written in Python."""

    def __init__(self, anchors: int = 6) -> None:
        super().__init__()
        self.score = nn.Linear(8, 1)
        self.offset = nn.Linear(8, 4)
        with torch.no_grad():
            self.score.weight.mul_(3)
        centre = torch.arange(anchors, dtype=torch.float32).unsqueeze(1).expand(anchors, 2) * 0.5
        self.register_buffer("anchors", torch.cat([centre - 1, centre + 1], dim=1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        scores = self.score(features).squeeze(1).sigmoid()
        boxes = self.anchors + 0.1 * self.offset(features).tanh()
        keep = torch.nonzero(scores > 0.5).squeeze(1)
        if keep.numel() == 0:
            return boxes.new_zeros((0, 5))
        order = keep[scores[keep].argsort(descending=True)]
        chosen = []
        while order.numel() > 0:
            best = order[0]
            chosen.append(torch.cat([boxes[best], scores[best].unsqueeze(0)]))
            if order.numel() == 1:
                break
            order = order[1:][overlap(boxes[best], boxes[order[1:]]) < 0.4]
        return torch.stack(chosen)


CASES.append(
    Case(
        "detector head",
        make=lambda: seeded(DetectorHead),
        args=lambda: (normal(6, 8, seed=3),),
        decisions=[
            Truth("keep.numel() == 0", true=lambda: call(normal(6, 8, seed=70)), false=EXAMPLE),
            Truth("order.numel() > 0", true=EXAMPLE, false=lambda: call(normal(6, 8, seed=16))),
            Truth("order.numel() > 0", "loop", other=lambda: call(normal(6, 8, seed=2))),
            Truth("order.numel() == 1", true=EXAMPLE, false=EXAMPLE),
        ],
        wrong={
            "trace": "keep.numel() == 0",
            "onnx-torchscript": "keep.numel() == 0",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script",),
    )
)


class MixtureOfExperts(nn.Module):
    """Top-1 routing, expert by expert, as in the reference code of sparse transformers."""

    def __init__(self, width: int = 6, experts: int = 3) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(experts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        weight, chosen = self.router(tokens).softmax(-1).max(-1)
        out = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            where = torch.nonzero(chosen == index).squeeze(1)
            if len(where) == 0:
                continue
            out.index_add_(0, where, expert(tokens[where]) * weight[where].unsqueeze(1))
        return out.reshape(x.shape)


CASES.append(
    Case(
        "mixture of experts",
        make=lambda: seeded(MixtureOfExperts),
        args=lambda: (normal(2, 6, 6),),
        decisions=[Truth("len(where) == 0", true=lambda: call(normal(1, 1, 6).expand(2, 6, 6).clone()), false=EXAMPLE)],
        wrong={"export": "refused", "onnx": "refused"},
        right=(
            "trace",
            "onnx-torchscript",
        ),
    )
)


class CapacityRouter(nn.Module):
    """An expert takes so many tokens and no more; those above are passed through."""

    def __init__(self, width: int = 4, experts: int = 2, capacity: int = 5) -> None:
        super().__init__()
        self.capacity = capacity
        self.gate = nn.Linear(width, experts)
        self.experts = nn.Parameter(torch.randn(experts, width, width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        chosen = self.gate(tokens).argmax(-1)
        load = torch.bincount(chosen, minlength=self.experts.shape[0])
        out = torch.einsum("tw,twv->tv", tokens, self.experts[chosen])
        if load.max().item() > self.capacity:
            rank = F.one_hot(chosen, self.experts.shape[0]).cumsum(0).gather(1, chosen.unsqueeze(1)).squeeze(1)
            out = torch.where((rank > self.capacity).unsqueeze(1), tokens, out)
        return out


CASES.append(
    Case(
        "capacity router",
        make=lambda: seeded(CapacityRouter),
        args=lambda: (normal(8, 4, seed=1),),
        decisions=[
            Truth(
                "load.max().item() > self.capacity",
                true=lambda: call(normal(1, 4).expand(8, 4).clone()),
                false=EXAMPLE,
            )
        ],
        wrong={
            "trace": "load.max().item() > self.capacity",
            "onnx-torchscript": "load.max().item() > self.capacity",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script",),
    )
)


class PyramidPooler(nn.Module):
    """Assigns regions to the levels of a feature pyramid by their size, as FPN does."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Linear(4, 5) for _ in range(3))

    def forward(self, boxes: torch.Tensor) -> torch.Tensor:
        size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp_min(1e-6).sqrt()
        level = (2 + torch.log2(size / 56)).floor().clamp(0, 2).long()
        result = boxes.new_zeros((boxes.shape[0], 5))
        for index, layer in enumerate(self.levels):
            of_level = level == index
            if not of_level.any():
                continue
            result[of_level] = layer(boxes[of_level] / 224)
        return result


PROPOSALS = torch.tensor(
    [[0.0, 0, 20, 20], [10, 10, 50, 60], [5, 0, 180, 210], [30, 2, 49, 9], [0, 0, 40, 35], [7, 90, 200, 150]]
)

CASES.append(
    Case(
        "pyramid pooler",
        make=lambda: seeded(PyramidPooler),
        args=lambda: (PROPOSALS,),
        decisions=[
            Truth(
                "of_level.any()",
                true=EXAMPLE,
                false=lambda: call(PROPOSALS / 20),
            )
        ],
        wrong={"export": "refused", "onnx": "refused"},
        right=(
            "trace",
            "onnx-torchscript",
        ),
    )
)


class MaskedMean(nn.Module):
    """Mean of the valid rows; with no valid row the mean of all."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        rows = x[valid]
        if rows.shape[0] == 0:
            return self.out(x.mean(0))
        if valid.all():
            return self.out(x.mean(0)) * 1.0
        return self.out(rows.mean(0))


CASES.append(
    Case(
        "masked mean",
        make=lambda: seeded(MaskedMean),
        args=lambda: (normal(6, 5), torch.tensor([True, False, True, True, False, True])),
        decisions=[
            Truth(
                "rows.shape[0] == 0",
                true=lambda: call(normal(6, 5), torch.zeros(6, dtype=torch.bool)),
                false=EXAMPLE,
            ),
            Truth("valid.all()", true=lambda: call(normal(6, 5), torch.ones(6, dtype=torch.bool)), false=EXAMPLE),
        ],
        wrong={
            "trace": "rows.shape[0] == 0",
            "onnx-torchscript": "rows.shape[0] == 0",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script", "compile"),
    )
)


class GraphLayer(nn.Module):
    """Mean of the neighbours; nodes without an edge, where there are any, keep a self loop."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.own = nn.Linear(width, width)
        self.neighbour = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        source, target = edge_index
        degree = torch.zeros(x.shape[0]).index_add(0, target, torch.ones(target.shape[0]))
        summed = torch.zeros_like(x).index_add(0, target, x[source])
        if (degree == 0).any():
            alone = degree == 0
            summed = torch.where(alone.unsqueeze(1), x, summed)
        out = self.own(x) + self.neighbour(summed / degree.clamp_min(1).unsqueeze(1))
        if bool((source == target).any()):
            out = out * 0.5
        return out.relu()


CASES.append(
    Case(
        "graph layer",
        make=lambda: seeded(GraphLayer),
        args=lambda: (normal(5, 4), ids([0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 3])),
        decisions=[
            Truth(
                "(degree == 0).any()",
                true=lambda: call(normal(5, 4), ids([0, 1, 2, 3, 4, 0], [1, 2, 3, 3, 0, 3])),
                false=EXAMPLE,
            ),
            Truth(
                "bool((source == target).any())",
                true=lambda: call(normal(5, 4), ids([0, 1, 2, 3, 4, 3], [1, 2, 3, 4, 0, 3])),
                false=EXAMPLE,
            ),
        ],
        wrong={"trace": "(degree == 0).any()", "onnx-torchscript": "refused", "export": "refused", "onnx": "refused"},
    )
)
