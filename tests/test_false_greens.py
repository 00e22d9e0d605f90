"""Programs that are wrong in ways that once looked like rounding, or like nothing at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pytest_torchexport import Cause, Verdict, check, sampled_from


class Temperature(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if t == 1.0:
            return x.argmax(-1)
        return (x / t).argmin(-1)


class Offset(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * 100 if t == 1.0 else x * 100 + 0.05


class Masked(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if (mask == 1).all():
            return x.softmax(-1)
        return nn.functional.normalize(x * mask, dim=-1)


class Overflow(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = x.exp() / x.exp().sum(-1, keepdim=True)
        return p if x.max() > 80 else torch.nan_to_num(p, nan=0.123)


def rows() -> torch.Tensor:
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(3))


def spike() -> torch.Tensor:
    x = torch.zeros(4, 4)
    x[0, 0] = 95.0
    return x


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model", "example", "extra"),
    [
        (Temperature(), (rows(), torch.tensor(0.7)), (rows(), torch.tensor(1.0))),
        (Offset(), (rows(), torch.tensor(0.7)), (rows(), torch.tensor(1.0))),
        (Masked(), (rows(), torch.tensor([1.0, 1.0, 0.0, 1.0])), (rows(), torch.ones(4))),
        (Overflow(), (rows(),), (spike(),)),
    ],
    ids=["discrete", "small", "mask", "overflow"],
)
def test_another_branch_is_not_rounding(model: nn.Module, example: Any, extra: Any) -> None:
    """A jittered or a float64 run that takes the other branch explains nothing."""
    with torch.no_grad():
        traced = torch.jit.trace(model, example, check_trace=False)  # type: ignore[no-untyped-call]
        assert not torch.equal(traced(*extra), model(*extra))
    outcome = check(model, example, extra_inputs=[extra], n_inputs=0)
    assert outcome.verdict is Verdict.MISMATCH, outcome.message
    assert outcome.cause is Cause.BAKED_BRANCH


def test_a_domain_that_holds_the_threshold() -> None:
    outcome = check(Temperature(), (rows(), torch.tensor(0.7)), inputs={"t": sampled_from([0.7, 1.0, 2.0])})
    assert outcome.cause is Cause.BAKED_BRANCH


def test_statistics_of_a_batch_norm_in_training_mode_are_judged() -> None:
    """A cumulative average divides by the number of batches, which a trace holds as a constant."""
    model = nn.BatchNorm1d(4, momentum=None)
    assert check(model, (rows(),)).verdict is Verdict.MISMATCH
    assert check(model, (rows(),), backend="script").verdict is Verdict.EQUIVALENT


def test_a_list_that_grows_is_a_lost_mutation() -> None:
    class Appends(nn.Module):
        def forward(self, x: torch.Tensor, seen: list[torch.Tensor]) -> torch.Tensor:
            seen.append(x * 2)
            return seen[0] + x

    outcome = check(Appends(), (rows(), [rows()]), backend="export")
    assert (outcome.verdict, outcome.cause) == (Verdict.MISMATCH, Cause.LOST_MUTATION)
