"""Correct exports of models of many kinds: none may turn red."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_torchexport import Verdict, check

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.slow
Made = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
ZOO: dict[str, Callable[[], Made]] = {}


def zoo(make: Callable[[], Made]) -> Callable[[], Made]:
    ZOO[make.__name__] = make
    return make


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(32, 96), nn.Linear(32, 32), nn.LayerNorm(32)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, length, 3, 4, 8).permute(2, 0, 3, 1, 4)
        return x + self.out(
            functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
            .transpose(1, 2)
            .reshape(n, length, 32)
        )


@zoo
def masked_attention() -> Made:
    mask = torch.arange(6)[None] < torch.tensor([[4], [6]])
    # Where a row is masked altogether eager gives zeros, and ONNX Runtime the mean of the values.
    return Attention().eval(), (torch.randn(2, 6, 32), mask), {"assume": lambda x, mask: bool(mask.any(-1).all())}


class Instance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True)
        self.group = nn.GroupNorm(2, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.group(functional.leaky_relu(self.norm(self.conv(x)))))


@zoo
def instance_and_group_norm() -> Made:
    return Instance().eval(), (torch.rand(2, 3, 12, 12),), {}


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(50, 16), nn.LSTM(16, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, (last, _) = self.rnn(self.embed(tokens))
        return self.head(hidden).log_softmax(-1), last


@zoo
def lstm_tagger() -> Made:
    return Tagger().eval(), (torch.randint(0, 50, (2, 7)),), {}


class Upscale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False))


@zoo
def upscale() -> Made:
    return Upscale().eval(), (torch.rand(1, 3, 9, 9),), {}


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.boxes, self.scores = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 3, 1)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        boxes = self.boxes(features).flatten(2).transpose(1, 2).exp() * 100
        scores = self.scores(features).flatten(2).transpose(1, 2).softmax(-1) * 1e-4
        return boxes, scores, scores.max(-1).indices


@zoo
def detection_head_of_mixed_scales() -> Made:
    return Head().eval(), (torch.randn(2, 8, 5, 5),), {}


class Variance(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + 5.0
        return (x * x).mean(dim=-1) - x.mean(dim=-1) ** 2


@zoo
def one_pass_variance() -> Made:
    return Variance(), (torch.rand(4, 256),), {}


class Positional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        position = torch.arange(64)[:, None] * torch.exp(torch.arange(0, 16, 2) * (-math.log(1e4) / 16))
        self.register_buffer("table", torch.cat([position.sin(), position.cos()], dim=1), persistent=False)
        self.linear = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.linear(x + self.table[: x.shape[1]])
        return {"hidden": y, "pooled": y.mean(1)}


@zoo
def dictionary_output() -> Made:
    return Positional().eval(), (torch.randn(2, 10, 16),), {}


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(8, 4), nn.Parameter(torch.randn(4, 8, 8) * 0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(2)
        return torch.einsum("nk,nkij,nj->ni", weights, self.experts[chosen], x)


@zoo
def mixture_of_experts() -> Made:
    return Experts().eval(), (torch.randn(5, 8),), {}


class Integers(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return (x % 7) * 2 - x // 3, (x > 10) & mask, torch.cumsum(x, 0)


@zoo
def integers_and_booleans() -> Made:
    return Integers(), (torch.randint(0, 40, (6,)), torch.tensor([True, False] * 3)), {}


@zoo
def half_precision() -> Made:
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 8)).half().eval()
    return model, (torch.randn(4, 32).half(),), {}


@zoo
def deep_random_convolutions() -> Made:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1)]
    for _ in range(8):
        layers += [nn.BatchNorm2d(16), nn.SiLU(), nn.Conv2d(16, 16, 3, padding=1, groups=4)]
    return nn.Sequential(*layers).eval(), (torch.randn(1, 3, 16, 16),), {}


@zoo
def dynamic_batch() -> Made:
    dim = torch.export.Dim("batch", min=2, max=16)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 2)).eval()
    return model, (torch.randn(4, 6),), {"dynamic_shapes": {"input": {0: dim}}}


@zoo
def gradients() -> Made:
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 2)), (torch.randn(4, 6),), {"grad": True}


BACKENDS = ["trace", "compile:backend=aot_eager", "export", "onnx", "onnx-torchscript"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", list(ZOO))
def test_correct_export(name: str, backend: str) -> None:
    torch.manual_seed(5)
    model, args, options = ZOO[name]()
    if name == "gradients" and "onnx" in backend:
        pytest.skip("ONNX has no gradients")
    if name == "lstm_tagger" and "compile" in backend:
        pytest.skip("torch.compile runs an LSTM in eager")
    if name == "dictionary_output" and backend == "trace":
        backend = "trace:strict=false"
    outcome = check(model, args, backend=backend, **options)
    assert outcome.verdict is Verdict.EQUIVALENT, outcome.message
    assert outcome.compared >= 9, "an input or two may be too chaotic to be judged"


@pytest.mark.parametrize(
    "name", ["masked_attention", "instance_and_group_norm", "one_pass_variance", "mixture_of_experts"]
)
@pytest.mark.parametrize("backend", ["compile", "aoti"])
def test_correct_inductor(name: str, backend: str) -> None:
    torch.manual_seed(5)
    model, args, options = ZOO[name]()
    outcome = check(model, args, backend=backend, **options)
    assert outcome.verdict is Verdict.EQUIVALENT, outcome.message
