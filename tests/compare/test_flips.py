"""Orders of nearly equal scores are no fault, other orders are, also where a half type makes most scores equal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from pytest_torchexport import Verdict, check
from pytest_torchexport.compare.flips import Flips

if TYPE_CHECKING:
    from collections.abc import Callable

CHOICES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "argsort": lambda y: y.argsort(-1),
    "tied": lambda y: (y * 8).round().argsort(-1),
    "topk": lambda y: y.topk(8)[1],
    "topk of ties": lambda y: y.relu().topk(3)[1],
    "sort": lambda y: (y * 64).sort(-1)[0].round().to(torch.int64),
    "argmax": lambda y: y.view(-1, 16, 16).argmax(-1),
    "round": lambda y: (y * 100).round().to(torch.int64),
    "mask": lambda y: y > 0.1,
    "count": lambda y: (y > 0).sum(-1),
}
FAULTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "reversed": lambda y: y.argsort(-1, descending=True),
    "not sorted": lambda y: torch.arange(y.shape[-1]).expand_as(y).contiguous(),
    "rolled": lambda y: y.argsort(-1).roll(3, -1),
    "of magnitudes": lambda y: y.abs().argsort(-1),
    "of other scores": lambda y: (y + 0.3 * torch.sin(torch.arange(y.shape[-1]))).argsort(-1),
}


class Scores(nn.Module):
    """What it says of its scores; exported, they are added up in another order, or what it says is another thing."""

    def __init__(
        self, choose: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype, exported: Any = None, seed: int = 0
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.choose, self.exported, self.dtype = choose, exported, dtype
        self.first, self.last = nn.Linear(64, 64).to(dtype), nn.Linear(64, 256).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x.to(self.dtype)).tanh()
        if not torch.compiler.is_compiling() and torch._C._get_tracing_state() is None:
            return self.choose(self.last(hidden))
        if self.exported is not None:
            faulty: torch.Tensor = self.exported(self.last(hidden))
            return faulty
        weight = self.last.weight.float()
        parts = [hidden[:, i::4].float() @ weight[:, i::4].t() for i in range(4)]
        return self.choose((sum(parts) + self.last.bias.float()).to(self.dtype))


def verdict(model: nn.Module, backend: str = "trace", seed: int = 0) -> Verdict:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed))
    return check(model.eval(), (x,), backend=backend, n_inputs=0, branches="off", seed=seed).verdict


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("choice", CHOICES)
def test_the_same_scores_in_another_order_of_adding(choice: str, dtype: torch.dtype, seed: int) -> None:
    assert verdict(Scores(CHOICES[choice], dtype, seed=seed), seed=seed) is Verdict.EQUIVALENT


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnx", "compile:backend=aot_eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("choice", CHOICES)
def test_other_exporters(choice: str, dtype: torch.dtype, backend: str) -> None:
    if backend == "onnx" and dtype is torch.bfloat16:
        pytest.skip("ONNX Runtime's CPU kernels know no bfloat16")
    assert verdict(Scores(CHOICES[choice], dtype), backend) is Verdict.EQUIVALENT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("fault", FAULTS)
def test_another_order_is_a_fault(fault: str, dtype: torch.dtype) -> None:
    assert verdict(Scores(CHOICES["argsort"], dtype, FAULTS[fault])) is Verdict.MISMATCH


def test_where_noise_would_explain_any_order_nothing_is_said() -> None:
    model = Scores(CHOICES["topk"], torch.bfloat16, lambda y: y.topk(8)[1].roll(1, -1))
    model.last = nn.Linear(64, 2048).to(torch.bfloat16)
    assert verdict(model) in (Verdict.INVALID, Verdict.MISMATCH)
    flips = Flips(torch.arange(8).repeat(4, 1))
    for seed in range(8):
        flips.add(flips.ours[:, torch.randperm(8, generator=torch.Generator().manual_seed(seed))], loud=True)
    assert flips.score(flips.ours.flip(-1)) <= 1
    assert flips.is_free()


def test_a_value_is_explained_between_the_places_that_it_took() -> None:
    ours = torch.arange(40).repeat(2, 1)
    flips = Flips(ours)
    moved = ours.clone()
    moved[:, 10:14] = torch.tensor([12, 13, 10, 11])
    for _ in range(8):
        flips.add(moved, loud=True)
    near, far = ours.clone(), ours.clone()
    near[:, 10:12] = torch.tensor([11, 10])
    far[:, [10, 30]] = far[:, [30, 10]]
    assert flips.score(near) == 0
    assert flips.score(far) == torch.inf
    assert not flips.is_free()


def test_runs_are_kept_in_the_narrowest_type() -> None:
    flips = Flips(torch.zeros(9, dtype=torch.int64))
    flips.add(torch.ones(9, dtype=torch.int64))
    flips.add(torch.full((9,), 1 << 40), loud=True)
    assert flips.quiet[0].dtype is torch.int8
    assert flips.loud[0].dtype is torch.int64
