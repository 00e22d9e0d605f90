"""Indices of equal candidates: which one is chosen is not promised; which number is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from pytest_torchexport import check
from pytest_torchexport.outcome import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

CHOOSERS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "topk": (lambda x: x.topk(4).indices, lambda x: x.shape[-1] - 1 - x.flip(-1).topk(4).indices),
    "topk along rows": (lambda x: x.topk(2, 0).indices, lambda x: x.shape[0] - 1 - x.flip(0).topk(2, 0).indices),
    "sort": (lambda x: x.sort(-1)[1], lambda x: x.shape[-1] - 1 - x.flip(-1).sort(-1)[1]),
    "argsort": (lambda x: x.argsort(-1), lambda x: x.shape[-1] - 1 - x.flip(-1).argsort(-1)),
    "argmax": (lambda x: x.argmax(-1), lambda x: x.shape[-1] - 1 - x.flip(-1).argmax(-1)),
    "argmax of all": (lambda x: x.argmax(), lambda x: x.numel() - 1 - x.flatten().flip(0).argmax()),
    "max": (lambda x: x.max(-1)[1], lambda x: x.shape[-1] - 1 - x.flip(-1).max(-1)[1]),
}


class Chooser(nn.Module):
    """Chooses from the other end where it is traced; another one than the best on request."""

    def __init__(self, name: str, off: int = 0) -> None:
        super().__init__()
        self.eager, self.exported = CHOOSERS[name]
        self.off = off

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch._C._is_tracing():
            return self.eager(x)  # type: ignore[no-any-return]
        found = self.exported(x)
        return (found + self.off) % x.shape[-1] if self.off else found  # type: ignore[no-any-return]


def masked() -> torch.Tensor:
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)).round()
    return x.masked_fill(torch.arange(40) >= 7, -1e9)


@pytest.mark.parametrize("name", list(CHOOSERS))
@pytest.mark.parametrize("x", [masked(), torch.zeros(6, 40)], ids=["masked", "zeros"])
def test_an_equal_candidate_is_as_good(name: str, x: torch.Tensor) -> None:
    outcome = check(Chooser(name), (x,), n_inputs=0, branches="off")
    assert outcome.verdict is Verdict.EQUIVALENT, outcome.message


@pytest.mark.parametrize("name", list(CHOOSERS))
def test_a_worse_candidate_is_not(name: str) -> None:
    outcome = check(Chooser(name, off=9), (masked(),), n_inputs=0, branches="off")
    assert outcome.verdict is not Verdict.EQUIVALENT


def test_one_candidate_may_not_be_chosen_twice() -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = x.topk(4).indices
            return found[:, :1].expand(-1, 4).contiguous() if torch._C._is_tracing() else found

    assert check(Twice(), (torch.zeros(3, 40),), n_inputs=0, branches="off").verdict is not Verdict.EQUIVALENT
