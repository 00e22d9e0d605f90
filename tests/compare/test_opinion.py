"""What is said of a leaf that noise does not explain."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_torchexport import Verdict, check
from pytest_torchexport.compare import opinion
from pytest_torchexport.compare.leaf import compare_leaf
from pytest_torchexport.compare.opinion import Opinion, told

if TYPE_CHECKING:
    import pytest


def test_words_that_cannot_be_found_change_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> str:
        msg = "not implemented for this dtype"
        raise NotImplementedError(msg)

    expected, actual = torch.ones(4), torch.ones(4) * 2
    found = Opinion(agrees=False, score=math.inf, limit=6, draws=8, index=(0,), beyond=expected != actual)
    leaf = compare_leaf("output", expected, actual)
    assert told(leaf, found, expected, actual).where
    monkeypatch.setattr(opinion, "where", fails)
    said = told(leaf, found, expected, actual)
    assert not said.agrees
    assert said.where == ""


class Stored(nn.Module):
    """Its output is in a dtype in which torch does not compute."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 8 + (1 if torch._C._is_tracing() else 0)
        return y.to(torch.float8_e4m3fn)


def test_float8_outputs_that_differ_are_a_mismatch() -> None:
    outcome = check(Stored(), (torch.rand(4, 8),), n_inputs=1, branches="off")
    assert outcome.verdict is Verdict.MISMATCH
