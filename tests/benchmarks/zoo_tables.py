"""Architectures of other kinds: tables, graphs, experts, and computations that are hard on rounding."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.benchmarks.zoo import Made, architecture


@architecture
def deep_perceptron() -> Made:
    layers: list[nn.Module] = [nn.Linear(10, 32)]
    for _ in range(10):
        layers += [nn.Tanh(), nn.LayerNorm(32), nn.Linear(32, 32)]
    return nn.Sequential(*layers, nn.SELU(), nn.Linear(32, 4)), (torch.randn(6, 10),), {}


class _Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(12, 4), nn.Parameter(torch.randn(4, 12, 12) * 0.3)
        self.bias = nn.Parameter(torch.randn(4, 12) * 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(2)
        weights = weights / weights.sum(-1, keepdim=True)
        y = torch.einsum("nkij,nj->nki", self.experts[chosen], x) + self.bias[chosen]
        return (functional.silu(y) * weights.unsqueeze(-1)).sum(1)


@architecture
def mixture_of_experts() -> Made:
    return _Experts(), (torch.randn(6, 12),), {}


class _Graph(nn.Module):
    """Message passing: gathered by the edges, summed at their ends, normalised by degree."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.update, self.out = nn.Linear(16, 16), nn.Linear(24, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            messages = torch.relu(self.message(torch.cat([x[source], x[target]], dim=-1)))
            total = x.new_zeros(x.shape[0], 16).index_add(0, target, messages)
            degree = x.new_zeros(x.shape[0]).index_add(0, target, torch.ones_like(messages[:, 0]))
            total = total / degree.clamp(min=1.0).unsqueeze(-1)
            x = torch.tanh(self.update(torch.cat([x, total], dim=-1)))
        return self.out(x)


@architecture
def graph_network() -> Made:
    args = (torch.randn(7, 8), torch.randint(0, 7, (20,)), torch.randint(0, 7, (20,)))
    return _Graph(), args, {}


class _Variance(nn.Module):
    """Differences of nearly equal numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.scale(x) + 6.0
        mean = x.mean(dim=-1)
        return torch.sqrt(torch.relu((x * x).mean(dim=-1) - mean * mean) + 1e-2)


@architecture
def one_pass_variance() -> Made:
    return _Variance(), (torch.randn(8, 32),), {}


class _Scales(nn.Module):
    """Outputs of 1e4, of one, and of 1e-7, in one tensor and apart."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.heads = nn.Linear(6, 24), nn.Linear(24, 9)
        self.register_buffer("unit", torch.tensor([1e4, 1e4, 1e4, 1.0, 1.0, 1.0, 1e-7, 1e-7, 1e-7]))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.heads(functional.mish(self.inner(x)))
        return {"all": y * self.unit, "small": y.sigmoid() * 1e-7, "flags": y > 0.0}


@architecture
def mixed_scales() -> Made:
    return _Scales(), (torch.randn(10, 6),), {}


class _Quantized(nn.Module):
    """Values rounded to a grid, as in quantisation-aware training."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.clamp(torch.round(x / 0.05), -128, 127) * 0.05
        y = torch.relu(self.one(x))
        codes = torch.clamp(torch.floor(y / 0.1), 0, 255)
        return self.two(codes * 0.1), codes.to(torch.int32)


@architecture
def fake_quantized() -> Made:
    return _Quantized(), (torch.randn(6, 8),), {}


class _Fields(nn.Module):
    """Factorisation machine: embeddings of categories, products of pairs, integer features, where."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear, self.mlp = nn.Embedding(30, 8), nn.Linear(5, 8), nn.Linear(8, 1)

    def forward(self, categories: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fields = torch.cat([self.embed(categories), self.linear(numbers).unsqueeze(1)], dim=1)
        pairs = 0.5 * (fields.sum(1).pow(2) - fields.pow(2).sum(1))
        score = self.mlp(torch.where(pairs > 0, pairs, 0.1 * pairs)).squeeze(-1)
        return torch.sigmoid(score), (categories * 3 + 1) // 2 - categories % 4


@architecture
def factorisation_machine() -> Made:
    return _Fields(), (torch.randint(0, 30, (5, 4)), torch.randn(5, 5)), {}


class _Dense(nn.Module):
    """A Gaussian process' mean: distances, a kernel, a linear system."""

    def __init__(self) -> None:
        super().__init__()
        self.points, self.values = nn.Parameter(torch.randn(10, 3)), nn.Parameter(torch.randn(10, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def kernel(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            return torch.exp(-0.5 * (one.unsqueeze(1) - other.unsqueeze(0)).pow(2).sum(-1))

        system = kernel(self.points, self.points) + 0.05 * torch.eye(10)
        return kernel(x, self.points) @ torch.linalg.solve(system, self.values)


@architecture
def gaussian_process() -> Made:
    return _Dense(), (torch.randn(5, 3),), {}
