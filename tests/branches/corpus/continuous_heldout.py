"""Modules that decide on values of float tensors, kept unused while the search is built. See `case.py`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from tests.branches.corpus.case import EXAMPLE, Case, Infeasible, Truth, call, normal, seeded, uniform

if TYPE_CHECKING:
    from torch import Tensor

CASES: list[Case] = []


class PonderCell(nn.Module):
    """Adaptive computation: a recurrent cell runs until its halting probabilities sum up to almost one."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(5, 10)
        self.halt = nn.Linear(10, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        state = x.new_zeros(x.shape[0], 10)
        remaining = 1.0
        output = torch.zeros_like(state)
        steps = 0
        while remaining > 0.05 and steps < 8:
            state = self.cell(x, state)
            p = torch.sigmoid(self.halt(state)).mean().item()
            share = min(p, remaining)
            output = output + share * state
            remaining -= share
            steps += 1
        return output, steps


CASES.append(
    Case(
        "ponder cell",
        make=lambda: seeded(PonderCell),
        args=lambda: (normal(2, 5),),
        decisions=[
            Truth("remaining > 0.05", true=EXAMPLE, false=EXAMPLE),
            Truth("steps < 8", true=EXAMPLE, false=Infeasible("it halts with at least 0.27 a step")),
            Truth("remaining > 0.05 and steps < 8", "loop", other=lambda: call(normal(2, 5, seed=9, scale=20.0))),
            Truth("torch.sigmoid(self.halt(state)).mean().item()", "number", other=lambda: call(normal(2, 5, seed=2))),
        ],
        wrong={
            "trace": "refused",
            "onnx-torchscript": "refused",
            "export": "refused",
            "onnx": "refused",
            "compile": "refused",
        },
    )
)


class Codebook(nn.Module):
    """Vector quantisation: far from every code, the encoder's output passes unquantised; a rare code is replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv1d(2, 8, 3, padding=1), nn.SiLU(), nn.Conv1d(8, 4, 3, padding=1))
        self.codes = nn.Parameter(torch.randn(6, 4) * 0.3)
        self.dead = 5

    def forward(self, wave: Tensor) -> Tensor:
        z = self.encoder(wave).transpose(1, 2)
        distance = torch.cdist(z, self.codes.expand(z.shape[0], -1, -1))
        nearest, index = distance.min(-1)
        if nearest.median() > 1.0:
            return z
        if (index == self.dead).any():
            index = torch.where(index == self.dead, 0, index)
        return F.embedding(index, self.codes)


CASES.append(
    Case(
        "codebook",
        make=lambda: seeded(Codebook),
        args=lambda: (normal(1, 2, 6),),
        decisions=[
            Truth("nearest.median() > 1.0", true=lambda: call(normal(1, 2, 6, scale=15.0)), false=EXAMPLE),
            Truth("(index == self.dead).any()", true=lambda: call(normal(1, 2, 6, seed=1, scale=3.0)), false=EXAMPLE),
        ],
        wrong={
            "trace": "nearest.median() > 1.0",
            "onnx-torchscript": "nearest.median() > 1.0",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script", "compile"),
    )
)


class Verification(NamedTuple):
    """What a `SpeakerVerifier` says."""

    accepted: bool
    score: Tensor


class SpeakerVerifier(nn.Module):
    """Two recordings: too short on speech is refused, else accepted by the angle between the embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.LayerNorm(8))
        self.calibration = {"offset": 0.4, "slope": 5.0}

    def speech(self, frames: Tensor) -> Tensor:
        energy = 10 * torch.log10(frames.pow(2).mean(-1) + 1e-8)
        return frames[energy > -12.0]

    def forward(self, enrolled: Tensor, test: Tensor) -> Verification:
        voices = []
        for frames in (enrolled, test):
            active = self.speech(frames)
            if len(active) < 3:
                return Verification(accepted=False, score=torch.tensor(-1.0))
            voices.append(self.embed(active).mean(0))
        score = torch.cosine_similarity(voices[0], voices[1], dim=0)
        calibrated = self.calibration["slope"] * (score - self.calibration["offset"])
        accepted = bool(calibrated > 0)
        return Verification(accepted, torch.sigmoid(calibrated) if accepted else score)


CASES.append(
    Case(
        "speaker verifier",
        make=lambda: seeded(SpeakerVerifier),
        args=lambda: (normal(5, 6), normal(5, 6, seed=50, scale=0.5, shift=2.0)),
        decisions=[
            Truth("len(active) < 3", true=lambda: call(normal(5, 6), normal(5, 6, scale=0.01)), false=EXAMPLE),
            Truth("(enrolled, test)", "loop", other=lambda: call(normal(5, 6, scale=0.01), normal(5, 6))),
            Truth("accepted", true=lambda: call(normal(5, 6), normal(5, 6, seed=50)), false=EXAMPLE),
            Truth("bool(calibrated > 0)", "number", other=lambda: call(normal(5, 6), normal(5, 6, seed=50))),
        ],
        wrong={
            "trace": "refused",
            "onnx-torchscript": "refused",
            "export": "refused",
            "onnx": "refused",
            "script": "refused",
        },
        right=("compile",),
    )
)


class Backtracking(nn.Module):
    """A proximal step whose length is halved until the objective has fallen enough (Armijo)."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(6, 4))

    def objective(self, w: Tensor, target: Tensor) -> Tensor:
        return (self.matrix @ w - target).pow(2).sum() / 2 + 0.1 * w.pow(4).sum()

    def forward(self, w: Tensor, target: Tensor) -> Tensor:
        slope = self.matrix.T @ (self.matrix @ w - target) + 0.4 * w.pow(3)
        start = self.objective(w, target)
        length = 1.0
        for _ in range(12):
            trial = w - length * slope
            if self.objective(trial, target) <= start - 0.3 * length * slope.dot(slope):
                return trial
            length /= 2
        return w


CASES.append(
    Case(
        "backtracking",
        make=lambda: seeded(Backtracking),
        args=lambda: (normal(4), normal(6, seed=1)),
        decisions=[
            Truth("range(12)", "loop", other=lambda: call(normal(4, scale=10.0), normal(6, seed=1))),
            Truth(
                "self.objective(trial, target) <= start - 0.3 * length * slope.dot(slope)", true=EXAMPLE, false=EXAMPLE
            ),
        ],
        wrong={"trace": "range(12)", "onnx-torchscript": "range(12)", "export": "refused", "onnx": "refused"},
        right=("script",),
    )
)


class PyramidFlow(nn.Module):
    """Optical flow: the larger the coarse motion, the more levels its pyramid has."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse = nn.Conv2d(2, 2, 3, padding=1)
        self.refine = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        pair = torch.cat([first, second], 1)
        flow = self.coarse(pair)
        reach = flow.norm(dim=1).max().item()
        levels = 1 + max(0, min(2, math.ceil(math.log2(reach + 1e-3))))
        for level in reversed(range(levels)):
            size = pair.shape[-1] >> level
            small = F.interpolate(pair, size=(size, size), mode="bilinear", align_corners=False)
            flow = F.interpolate(flow, size=(size, size), mode="bilinear", align_corners=False)
            flow = flow + self.refine(torch.cat([small, flow], 1))
        return flow


CASES.append(
    Case(
        "pyramid flow",
        make=lambda: seeded(PyramidFlow),
        args=lambda: (uniform(1, 1, 8, 8), uniform(1, 1, 8, 8, seed=1)),
        decisions=[
            Truth(
                "reversed(range(levels))",
                "loop",
                other=lambda: call(uniform(1, 1, 8, 8, high=9.0), uniform(1, 1, 8, 8, seed=1)),
            ),
            Truth(
                "flow.norm(dim=1).max().item()",
                "number",
                other=lambda: call(uniform(1, 1, 8, 8, high=9.0), uniform(1, 1, 8, 8, seed=1)),
            ),
        ],
        wrong={
            "trace": "reversed(range(levels))",
            "onnx-torchscript": "reversed(range(levels))",
            "export": "refused",
            "onnx": "refused",
            "script": "refused",
        },
        right=("compile",),
    )
)


class Committee(nn.Module):
    """Three members vote; if they do not agree, the softest opinion is averaged in."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList([nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 4)) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        opinions = [member(x).mean(0) for member in self.members]
        votes = {int(opinion.argmax()) for opinion in opinions}
        if len(votes) == 1:
            return opinions[0].softmax(0)
        if 2 in votes and len(votes) != 3:
            return torch.stack(opinions).amax(0).softmax(0)
        return (torch.stack(opinions).mean(0) / 2).softmax(0)


CASES.append(
    Case(
        "committee",
        make=lambda: seeded(Committee),
        args=lambda: (normal(1, 7, scale=4.0),),
        decisions=[
            Truth("len(votes) == 1", true=lambda: call(normal(1, 7, seed=1, scale=4.0)), false=EXAMPLE),
            Truth("2 in votes", true=EXAMPLE, false=lambda: call(normal(1, 7, seed=2))),
            Truth("len(votes) != 3", true=lambda: call(normal(1, 7, seed=30, scale=4.0)), false=EXAMPLE),
            Truth("int(opinion.argmax())", "number", other=lambda: call(normal(1, 7, seed=1, scale=4.0))),
        ],
        wrong={
            "trace": "len(votes) == 1",
            "onnx-torchscript": "len(votes) == 1",
            "export": "refused",
            "onnx": "refused",
            "script": "refused",
        },
        right=("compile",),
    )
)


class SpikingLayer(nn.Module):
    """Leaky integrate and fire: membranes above the threshold are reset; a silent step costs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.synapses = nn.Linear(6, 8)
        self.register_buffer("threshold", torch.full((8,), 1.2))

    def forward(self, current: Tensor) -> Tensor:
        membrane = torch.zeros(8)
        spikes = []
        for step in current:
            membrane = 0.8 * membrane + self.synapses(step)
            fired = membrane > self.threshold
            if torch.any(fired):
                membrane = torch.where(fired, membrane - self.threshold, membrane)
            spikes.append(fired.float())
        rate = torch.stack(spikes).mean(0)
        assert rate.max() <= 1.0
        return rate if rate.sum() > 0 else membrane


CASES.append(
    Case(
        "spiking layer",
        make=lambda: seeded(SpikingLayer),
        args=lambda: (normal(4, 6, scale=0.2),),
        decisions=[
            Truth("torch.any(fired)", true=lambda: call(normal(4, 6, scale=4.0)), false=EXAMPLE),
            Truth("rate.sum() > 0", true=lambda: call(normal(4, 6, scale=4.0)), false=EXAMPLE),
            Truth("rate.max() <= 1.0", true=EXAMPLE, false=Infeasible("it is a mean of zeros and ones")),
        ],
        wrong={
            "trace": "rate.sum() > 0",
            "onnx-torchscript": "rate.sum() > 0",
            "export": "refused",
            "onnx": "refused",
            "compile": "refused",
        },
        right=("script",),
    )
)


def solve(system: Tensor, right: Tensor) -> Tensor:
    """The solution, by least squares where the system is badly conditioned."""
    condition = torch.linalg.cond(system)
    if not condition < 300.0:
        return torch.linalg.pinv(system, rcond=1e-3) @ right
    return torch.linalg.solve(system, right)


class Triangulate(nn.Module):
    """Localisation from ranges: normal equations, checked before they are solved."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.rand(6) + 0.5)

    def forward(self, anchors: Tensor, ranges: Tensor) -> Tensor:
        a = 2 * (anchors[1:] - anchors[0])
        b = ranges[0] ** 2 - ranges[1:] ** 2 + anchors[1:].pow(2).sum(-1) - anchors[0].pow(2).sum()
        w = self.weights.unsqueeze(-1)
        return solve(a.T @ (w * a), a.T @ (self.weights * b))


CASES.append(
    Case(
        "triangulate",
        make=lambda: seeded(Triangulate),
        args=lambda: (normal(7, 3), uniform(7, low=0.5, high=2.0)),
        decisions=[
            Truth(
                "condition < 300.0",
                true=EXAMPLE,
                false=lambda: call(
                    normal(7, 3) * torch.tensor([1.0, 1.0, 0.01]), uniform(7, seed=1, low=0.5, high=2.0)
                ),
            )
        ],
        wrong={"trace": "condition < 300.0", "onnx-torchscript": "refused", "export": "refused", "onnx": "refused"},
        right=("script", "compile"),
    )
)
