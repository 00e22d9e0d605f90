"""A difference of the size of a lower precision is said to be so, with the setting that asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from pytest_torchexport import Tolerance, check
from pytest_torchexport.outcome import Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def rounded(x: torch.Tensor, bits: int) -> torch.Tensor:
    """The numbers with so many bits of the mantissa left, to the nearest one."""
    high: torch.Tensor = x * (2 ** (23 - bits) + 1)
    return high - (high - x)  # Veltkamp's splitting


class Net(nn.Module):
    """Two layers that compute their products in another precision where the model is traced."""

    def __init__(self, product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.product = product
        self.one, self.two = nn.Linear(32, 64, bias=False), nn.Linear(64, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        traced = torch._C._is_tracing()
        product = self.product if traced else torch.matmul
        return product(torch.relu(product(x, self.one.weight.T)), self.two.weight.T)


def tf32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return rounded(a, 10) @ rounded(b.contiguous(), 10)


def bf16(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.bfloat16() @ b.bfloat16()).float()


def checked(product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], **options: object) -> Outcome:
    torch.manual_seed(0)
    model = Net(product).eval()
    return check(model, (torch.randn(8, 32),), n_inputs=3, branches="off", **options)  # type: ignore[arg-type]


@pytest.fixture
def setting() -> Iterator[Callable[[str], None]]:
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision("highest")


def said(outcome: Outcome) -> str:
    assert outcome.verdict is Verdict.MISMATCH
    return next((fact.text for fact in outcome.evidence if "products in" in fact.text), "")


def test_the_setting_that_asks_for_it_is_named(setting: Callable[[str], None]) -> None:
    setting("high")
    text = said(checked(tf32))
    assert text.startswith(
        "torch.set_float32_matmul_precision('high') allows products in TF32, which gives differences"
    )
    assert "Tolerance(precision='tf32')" in text
    setting("medium")
    assert "allows products in bfloat16" in said(checked(lambda a, b: rounded(a, 7) @ rounded(b.contiguous(), 7)))


def test_without_a_setting_a_small_difference_is_not_said_to_be_one() -> None:
    assert said(checked(tf32)) == ""


def test_the_precision_that_is_allowed_passes_and_a_coarser_one_does_not() -> None:
    assert checked(tf32, tolerance=Tolerance(precision="tf32")).verdict is Verdict.EQUIVALENT
    assert checked(bf16, tolerance=Tolerance(precision="bf16")).verdict is Verdict.EQUIVALENT
    coarser = checked(lambda a, b: rounded(a, 4) @ rounded(b.contiguous(), 4), tolerance=Tolerance(precision="tf32"))
    assert coarser.verdict is Verdict.MISMATCH


def test_another_fault_is_none_of_precision(setting: Callable[[str], None]) -> None:
    setting("high")
    assert said(checked(lambda a, b: torch.tanh(a @ b))) == ""


def test_an_allowed_precision_hides_no_other_fault() -> None:
    outcome = checked(lambda a, b: torch.tanh(a @ b), tolerance=Tolerance(precision="bf16"))
    assert outcome.verdict is Verdict.MISMATCH
