"""What the search for the first difference costs, and what is said where it would cost too much."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pytest_torchexport import Outcome, Verdict, check
from pytest_torchexport.backends import aoti, every_value, torchscript_steps
from pytest_torchexport.localize import first_difference, matching


class Settling(nn.Module):
    """A loop that comes to rest: most of its values are nearly equal."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self.rounds = rounds
        self.fc = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.rounds):
            x = torch.tanh(self.fc(x)) * 1.01
        return x + 0.5 if torch._C._is_tracing() else x


def outcome_of(rounds: int = 10) -> Outcome:
    torch.manual_seed(0)
    model, x = Settling(rounds).eval(), torch.randn(4, 32)
    outcome = check(model, (x,), backend="trace", n_inputs=0, branches="off")
    assert outcome.verdict is Verdict.MISMATCH
    assert "localization" not in outcome.details
    return outcome


def test_a_loop_that_comes_to_rest_is_matched_in_linear_work(monkeypatch: pytest.MonkeyPatch) -> None:
    compared, original = [], matching.score_of

    def counted(known: matching.Known, numbers: torch.Tensor) -> tuple[float, int]:
        compared.append(known)
        return original(known, numbers)

    monkeypatch.setattr(matching, "score_of", counted)
    divergence = outcome_of(60).divergence
    assert divergence is not None
    assert divergence.operator == "aten::add"
    assert len(compared) < 10 * 3 * 60


def test_the_search_ends_when_its_budget_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_difference, "_WORK", 100_000)
    outcome = outcome_of()
    assert outcome.divergence is not None
    assert not outcome.divergence.operator
    assert "too many operators" in outcome.message


def test_a_program_of_too_large_values_is_not_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchscript_steps, "LARGEST", 4096)
    outcome = outcome_of()
    assert outcome.divergence is not None
    assert not outcome.divergence.operator
    assert "too large to look inside" in outcome.message


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["compile", "aoti"])
def test_the_program_that_shows_its_values_is_compiled_once(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, original = [], every_value.give_every_value

    def counted(*args: Any) -> Any:
        listed.append(args)
        return original(*args)

    monkeypatch.setattr(every_value, "give_every_value", counted)
    monkeypatch.setattr(aoti, "give_every_value", counted)

    def model(x: torch.Tensor) -> torch.Tensor:
        y = x.sin() * 2
        return y * 1.01 if torch.compiler.is_compiling() else y

    outcome = check(model, (torch.rand(4, 8),), backend=backend, n_inputs=0, branches="off")
    assert outcome.verdict is Verdict.MISMATCH
    assert outcome.divergence is not None
    assert outcome.divergence.operator
    assert len(listed) == 1
