"""What a second opinion costs: far differences are settled by few runs, those that a jump may explain by all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from pytest_torchexport import Verdict, check
from pytest_torchexport.compare import jitter
from pytest_torchexport.compare.jitter import Jitter
from pytest_torchexport.compare.leaf import compare_leaf
from pytest_torchexport.compare.noise import RoundingNoise
from pytest_torchexport.compare.rerun import Eager
from pytest_torchexport.subject.call import Call
from pytest_torchexport.subject.run import Record, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from pytest_torchexport.compare.opinion import Opinion

CPU = torch.device("cpu")


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def smooth(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh((x - x.mean(-1, keepdim=True)) * 1.7)


def masked(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x * 1.1 / 1.1 > x.mean(), x * 1.7, x * 3)


class Measured:
    """A function's noise on an input, by the runs that it took."""

    def __init__(self, model: Callable[..., Any], x: torch.Tensor) -> None:
        self.runs: list[str] = []

        def rerun(mode: AbstractContextManager[Any] | None, dtype: torch.dtype | None = None) -> Record:
            self.runs.append(type(mode).__name__)
            return run(model, [Call((x,)).place(CPU, dtype)], device=CPU, mode=mode)

        self.eager = Eager(rerun, lambda record: {"output": record.outputs[0]})
        self.expected = rerun(None).outputs[0]
        self.noise = RoundingNoise({"output": self.expected}, 0)
        self.runs.clear()

    def opinion(self, actual: torch.Tensor) -> Opinion:
        found = self.noise.opinion("output", self.expected, actual, self.eager)
        assert found is not None
        return found

    def is_far(self, actual: torch.Tensor) -> bool:
        leaf = compare_leaf("output", self.expected, actual)
        assert not leaf.agrees
        return self.noise.rules_out(leaf, self.expected, actual, self.eager)


def test_a_gross_difference_takes_two_draws() -> None:
    measured = Measured(smooth, drawn(8, 16))
    opinion = measured.opinion(measured.expected + 0.1)
    assert not opinion.agrees
    assert measured.runs == ["Watch", "InDouble", "Jitter", "Jitter"]


@pytest.mark.parametrize("model", [masked, torch.floor, lambda x: x[x > 0], lambda x: x * (x > 0.1).float()])
def test_where_values_may_jump_all_draws_are_made(model: Callable[[torch.Tensor], torch.Tensor]) -> None:
    measured = Measured(lambda x: model(x) * 1.3, drawn(8, 16))
    opinion = measured.opinion(measured.expected + 0.1)
    assert not opinion.agrees
    assert opinion.draws == 8


def test_without_a_run_in_double_precision_all_draws_are_made() -> None:
    measured = Measured(lambda x: (x.view(torch.int32) + 0).view(torch.float32) * 1.7, drawn(8, 16))
    opinion = measured.opinion(measured.expected + 0.1)
    assert not opinion.centred
    assert opinion.draws == 8


def test_a_jump_that_only_late_draws_show_is_explained() -> None:
    x = torch.full((40,), 0.7)
    explained = 0
    for place in range(40):
        measured = Measured(masked, x + 1e-7 * drawn(40))
        other = measured.expected.clone()
        other[place] = x[place] * (1.7 if other[place] > 1.5 else 3)
        opinion = measured.opinion(other)
        explained += opinion.agrees
        assert opinion.agrees or opinion.draws == 8
    assert explained > 20


def test_a_condition_that_python_takes_is_no_jump() -> None:
    measured = Measured(lambda x: smooth(x) if x.sum() > -1000 else x, drawn(8, 16))
    assert measured.opinion(measured.expected + 0.1).draws == 2


def test_a_special_value_beside_gross_differences_changes_nothing() -> None:
    measured = Measured(smooth, drawn(8, 16))
    off = measured.expected + 0.1
    off[0, 0] = torch.nan
    opinion = measured.opinion(off)
    assert opinion.draws == 2
    assert opinion.score == torch.inf


def test_indices_that_are_all_wrong_take_two_loud_draws() -> None:
    measured = Measured(lambda x: x.argmax(-1), drawn(400, 16))
    wrong = (measured.expected + 1) % 16
    assert not measured.opinion(wrong).agrees
    assert measured.runs.count("Jitter") == 2
    few = measured.expected.clone()
    few[:4] = (few[:4] + 1) % 16
    assert not measured.opinion(few).agrees
    assert measured.runs.count("Jitter") == 8


def test_a_first_look_takes_one_draw_and_more_where_values_jump() -> None:
    measured = Measured(smooth, drawn(8, 16))
    assert measured.is_far(measured.expected + 0.1)
    assert measured.runs == ["Jitter"]
    measured = Measured(masked, drawn(8, 16))
    assert measured.is_far(measured.expected + 0.1)
    assert measured.runs == ["Jitter"] * 3
    measured = Measured(smooth, drawn(8, 16))
    assert not measured.is_far(measured.expected + 2e-4)
    assert measured.runs == ["Jitter"]


def test_a_first_look_changes_no_opinion() -> None:
    for model in (smooth, masked):
        for size in (3e-6, 3e-5, 1e-3, 0.1):
            fresh, used = Measured(model, drawn(8, 16)), Measured(model, drawn(8, 16))
            used.is_far(used.expected + 0.1)
            assert used.opinion(used.expected + size).agrees == fresh.opinion(fresh.expected + size).agrees


def test_a_first_look_at_another_branch_is_forgotten() -> None:
    x = torch.full((16,), 0.7)

    def torn(x: torch.Tensor) -> torch.Tensor:
        return x * 1.7 if x.mean() * 1.1 / 1.1 >= x.mean() else x * 30

    for seed in range(8):
        fresh, used = Measured(torn, x), Measured(torn, x)
        fresh.noise, used.noise = (RoundingNoise({"output": fresh.expected}, seed) for _ in range(2))
        used.is_far(used.expected + 0.1)
        assert used.opinion(used.expected + 0.1) == fresh.opinion(fresh.expected + 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_noise_does_not_depend_on_the_pieces(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x = (drawn(60, 70) * 3).to(dtype)

    def noisy() -> list[torch.Tensor]:
        with Jitter(3, 1):
            return [x + x, x.t() * 2, x[:, ::2] * 2, x[3:] * 2]

    monkeypatch.setattr(jitter, "_POOL", 1000)
    jitter._uniform.cache_clear()
    jitter._signs.cache_clear()
    whole = noisy()
    monkeypatch.setattr(jitter, "_PIECE", 7)
    assert all(torch.equal(one, other) for one, other in zip(noisy(), whole, strict=True))
    jitter._uniform.cache_clear()
    jitter._signs.cache_clear()


def test_sums_of_many_lengths_share_the_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_sizes: list[int] = []
    before = torch.rand

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        numbers = before(*args, **kwargs)
        drawn_sizes.append(numbers.numel())
        return numbers

    monkeypatch.setattr(torch, "rand", counted)
    jitter._uniform.cache_clear()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for loudness in (1, 8):
            with Jitter(0, 1, loudness):
                moved = [torch.ones(length, dtype=dtype).sum() * 0.1 for length in (8, 300, 5000, 60_000)]
            assert all(one.isfinite() for one in moved)
    assert len(drawn_sizes) == 1


# --- through the whole check ----------------------------------------------------------------------------------------


class Halved(nn.Module):
    """Wrong as soon as a value is positive: on nearly all inputs but the example."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x * 0.5) if x.max() > 0 else torch.tanh(x)


def test_many_failing_inputs_cost_little_more_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_for: list[int] = []
    before = Jitter.__init__

    def counted(self: Jitter, *args: Any) -> None:
        drawn_for.append(0)
        before(self, *args)

    monkeypatch.setattr(Jitter, "__init__", counted)
    costs = {}
    for count in (2, 30):
        drawn_for.clear()
        outcome = check(Halved(), (-torch.rand(3, 4),), n_inputs=count, branches="off")
        failing = sum(not one.agrees for one in outcome.inputs)
        costs[failing] = len(drawn_for)
    (few, cheap), (many, dear) = sorted(costs.items())
    assert many > few + 5
    assert dear - cheap <= (many - few) + 10, "one draw for each further input; made simple, an input is looked at too"


class OtherOrder(nn.Module):
    """Exported, it adds up in another order, and the difference of nearly equal numbers shows it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch._C._get_tracing_state() is not None:
            parts = x.flip(-1).reshape(x.shape[0], -1, 5)
            return (parts * parts).sum(1).sum(-1) / 300 - (parts.sum(1).sum(-1) / 300) ** 2
        return (x * x).mean(-1) - x.mean(-1) ** 2


def test_a_first_look_that_is_wrong_changes_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RoundingNoise, "rules_out", lambda *_: True)
    outcome = check(OtherOrder(), (torch.randn(16, 300) + 10,), n_inputs=0)
    assert outcome.verdict is Verdict.EQUIVALENT
    assert [one.agrees for one in outcome.inputs] == [True]
    outcome = check(OtherOrder(), (torch.randn(16, 300) + 1000,), n_inputs=0)
    assert outcome.verdict is Verdict.INVALID
    assert "too chaotic" in outcome.message
