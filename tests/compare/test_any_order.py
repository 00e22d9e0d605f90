"""Results whose order means nothing: moved into eager's order, together where they belong together."""

from __future__ import annotations

import pytest
import torch

from pytest_torchexport import Tolerance, check
from pytest_torchexport.compare.any_order import in_order_of
from pytest_torchexport.outcome import Verdict


@pytest.mark.parametrize(("shape", "dim"), [((9,), 0), ((4, 9), -1), ((4, 9), 1), ((9, 4), 0), ((2, 9, 3), 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.complex64])
def test_what_is_moved_is_moved_back(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = (100 * torch.rand(shape, generator=generator)).to(dtype)
    theirs = ours.index_select(dim, torch.randperm(9, generator=generator))
    (moved,) = in_order_of([ours], [theirs], dim)
    assert torch.equal(moved, ours)


def test_each_row_has_its_own_order() -> None:
    ours = torch.tensor([[3, 1, 2], [7, 9, 8]])
    (moved,) = in_order_of([ours], [torch.tensor([[1, 2, 3], [9, 8, 7]])], -1)
    assert torch.equal(moved, ours)


def test_what_differs_still_differs() -> None:
    ours = torch.tensor([1.0, 2.0, 2.0])
    (moved,) = in_order_of([ours], [torch.tensor([2.0, 1.0, 1.0])], 0)
    assert not torch.equal(moved, ours)


def test_small_columns_decide_too() -> None:
    ours = torch.tensor([[1e6, 1e-6], [1e6, 3e-6], [1e6, 2e-6]])
    (moved,) = in_order_of([ours], [ours.flip(0)], 0)
    assert torch.equal(moved, ours)


class Kept(torch.nn.Module):
    """Boxes and their scores, in another order where it is traced; torn apart or changed on request."""

    def __init__(self, *, torn: bool = False, changed: bool = False) -> None:
        super().__init__()
        self.torn, self.changed = torn, changed

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        boxes, scores = x.tanh(), x[:, 0].sigmoid()
        if torch._C._is_tracing():
            boxes = boxes.flip(0) * (1.01 if self.changed else 1.0)
            scores = scores if self.torn else scores.flip(0)
        return boxes, scores


@pytest.mark.parametrize(
    ("model", "tolerance", "verdict"),
    [
        (Kept(), None, Verdict.MISMATCH),
        (Kept(), Tolerance(compare="set"), Verdict.EQUIVALENT),
        (Kept(torn=True), Tolerance(compare="set"), Verdict.MISMATCH),
        (Kept(changed=True), Tolerance(compare="set"), Verdict.MISMATCH),
        (Kept(changed=True), Tolerance(rtol=0.1, atol=0.0, compare="set"), Verdict.EQUIVALENT),
    ],
)
def test_a_check_in_any_order(model: Kept, tolerance: Tolerance | None, verdict: Verdict) -> None:
    outcome = check(model, (torch.linspace(-2, 2, 24).view(8, 3),), n_inputs=3, branches="off", tolerance=tolerance)
    assert outcome.verdict is verdict, outcome.message
