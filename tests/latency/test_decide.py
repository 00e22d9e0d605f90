"""How often the decision is right, on simulated machines; and that it is no more sure than it may be."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from pytest_torchexport.latency import decide, measure
from pytest_torchexport.latency.budget import Budget
from pytest_torchexport.latency.decide import decided_by, judge_median, judge_p99, judge_ratio, precise, summarise
from pytest_torchexport.latency.measure import Samples, Timing, time_pair
from pytest_torchexport.measured import Standing
from tests.latency.simulated import FAMILIES, Machine, bursts, quickening, quiet, slowing, two_phases, wandering

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Noise = Callable[[random.Random], Iterator[float]]

CALL_S = 0.004


def timed(noise: Noise, ratio: float, seed: int, decided: Callable[[Samples], bool], cap_s: float = 5.0) -> Timing:
    machine = Machine(noise(random.Random(seed)))
    return time_pair(
        *machine.sides(CALL_S, CALL_S * ratio),
        label="example",
        device=torch.device("cpu"),
        seed=seed,
        decided=decided,
        cap_s=cap_s,
        clock=machine.clock,
    )


def decisions(
    noise: Noise, ratio: float, budget: float, runs: int, cap_s: float = 5.0, first_seed: int = 0
) -> Counter[Standing]:
    """How whole measurements end."""
    found: Counter[Standing] = Counter()
    for seed in range(first_seed, first_seed + runs):
        timing = timed(noise, ratio, seed, lambda samples: judge_ratio(samples, budget).final, cap_s)
        found[judge_ratio(timing.samples, budget).standing] += 1
    return found


@pytest.mark.parametrize("noise", FAMILIES)
def test_equal_speeds_are_within_and_a_slow_export_is_found(noise: Noise) -> None:
    equal, slow = decisions(noise, 1.0, 1.1, 100), decisions(noise, 1.3, 1.1, 100)
    assert equal[Standing.OVER] <= 1, equal
    assert equal[Standing.WITHIN] >= 95, equal
    assert slow[Standing.OVER] >= 99, slow


@pytest.mark.parametrize("noise", FAMILIES)
def test_at_the_budget_it_is_inconclusive(noise: Noise) -> None:
    found = decisions(noise, 1.1, 1.1, 100, cap_s=2.0)
    assert found[Standing.OVER] <= 2, found
    assert found[Standing.WITHIN] <= 2, found


def test_many_looks_err_no_more_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = decisions(quiet, 1.1, 1.1, 200, cap_s=2.0)
    assert honest[Standing.OVER] + honest[Standing.WITHIN] <= 4, honest
    # Were each look allowed the whole error, it would add up.
    monkeypatch.setattr(decide, "_error", lambda _: 0.05)
    greedy = decisions(quiet, 1.1, 1.1, 60, cap_s=2.0)
    assert greedy[Standing.OVER] + greedy[Standing.WITHIN] >= 10, greedy


@pytest.mark.parametrize("noise", [slowing, quickening, two_phases, wandering])
def test_it_is_the_pairs_that_decide(noise: Noise) -> None:
    """What times that belong to no pair would tell: on a machine that changes, much less."""
    rng, narrower = np.random.default_rng(0), 0
    for seed in range(20):
        samples = replace(timed(noise, 1.0, seed, lambda samples: len(samples.eager) >= 200).samples, looks=1)
        apart = replace(samples, eager=rng.permutation(samples.eager))
        paired, unpaired = judge_ratio(samples, 1.1).figure, judge_ratio(apart, 1.1).figure
        narrower += unpaired.high / unpaired.low > 1 + 1.5 * (paired.high / paired.low - 1)
    assert narrower >= 18


def test_in_fixed_order_drift_would_look_like_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    def steep(rng: random.Random) -> Iterator[float]:
        for number, factor in enumerate(quiet(rng)):
            yield factor * 1.04 ** (number % 40)

    assert decisions(steep, 1.0, 1.02, 20, cap_s=10)[Standing.OVER] == 0
    monkeypatch.setattr(measure, "_turns", lambda _: itertools.repeat(False))
    assert decisions(steep, 1.0, 1.02, 20, cap_s=10)[Standing.OVER] >= 18


def samples_of(exported: list[float] | np.ndarray, **options: int) -> Samples:
    times = np.asarray(exported, dtype=float)
    return Samples(np.ones_like(times), times, **options)


def test_the_same_samples_give_the_same_decision() -> None:
    samples = timed(wandering, 1.1, 0, lambda samples: len(samples.eager) > 100).samples
    assert judge_ratio(samples, 1.1) == judge_ratio(samples, 1.1)


def test_a_later_look_is_more_careful() -> None:
    times = np.random.default_rng(0).normal(1.0, 0.05, 200)
    widths = [
        judge_ratio(samples_of(times, looks=looks), 1.1).figure.high
        - judge_ratio(samples_of(times, looks=looks), 1.1).figure.low
        for looks in (1, 3, 10)
    ]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_all_over_from_twelve_pairs() -> None:
    over = judge_ratio(samples_of([1.5] * 12), 1.1)
    assert (over.standing, over.why, over.final) == (Standing.OVER, "", True)
    assert over.figure.value == pytest.approx(1.5)
    undecided = judge_ratio(samples_of([1.5] * 6), 1.1)
    assert not undecided.final
    assert undecided.why == "6 pairs do not tell on which side of the budget it is"


@pytest.mark.parametrize("noise", [one for one in FAMILIES if one not in (slowing, quickening)])
def test_a_median_of_seconds(noise: Noise) -> None:
    """Against what the machine's times are over a long while, whatever phase it is in."""
    long = noise(random.Random(1))
    at = CALL_S * float(np.median([next(long) for _ in range(50_000)]))
    found: Counter[tuple[str, Standing]] = Counter()
    for seed in range(60):
        for name, budget in (("far above", 3 * at), ("far below", at / 3), ("at", at)):
            timing = timed(noise, 1.0, seed, lambda samples, limit=budget: judge_median(samples, limit).final)  # type: ignore[misc]
            found[name, judge_median(timing.samples, budget).standing] += 1
    assert found["far above", Standing.OVER] == found["far below", Standing.WITHIN] == 0
    # A phase that lasts longer than the samples is all that they see of the machine.
    in_phases = noise in (two_phases, wandering, bursts)
    assert found["far above", Standing.WITHIN] >= (30 if in_phases else 58), found
    assert found["far below", Standing.OVER] >= 58, found
    assert in_phases or found["at", Standing.WITHIN] + found["at", Standing.OVER] <= 2, found


def test_a_99th_percentile() -> None:
    rng = np.random.default_rng(0)
    times = rng.exponential(size=3000)  # the 99th percentile is 4.6
    assert judge_p99(samples_of(times), 6.0).standing is Standing.WITHIN
    assert judge_p99(samples_of(times), 3.5).standing is Standing.OVER
    assert judge_p99(samples_of(times), 4.6).standing is Standing.INCONCLUSIVE


def test_too_few_calls_for_a_99th_percentile() -> None:
    few = judge_p99(samples_of(np.random.default_rng(0).exponential(size=100)), 100.0)
    assert few.standing is Standing.INCONCLUSIVE
    assert few.why.startswith("100 calls are too few for a 99th percentile, it would take about ")
    assert 500 <= int(few.why.rsplit(" ", 1)[1]) <= 3000
    # Where even most of a few are over, there is no doubt.
    assert judge_p99(samples_of([2.0] * 12), 1.0).standing is Standing.OVER


def test_calls_that_share_their_time_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="4 calls that share"):
        judge_p99(samples_of([1.0] * 12, batch=4), 1.0)


def test_a_comparison_with_another_run_wants_a_precise_ratio_too() -> None:
    noisy = samples_of([0.6, 0.8, 1.2, 1.4] * 10)
    assert decided_by(Budget(ratio=3.0).limits)(noisy)
    assert not decided_by(Budget(ratio=3.0).limits, precisely=True)(noisy)
    steady = samples_of([1.0, 1.01] * 20)
    assert decided_by(Budget(ratio=3.0).limits, precisely=True)(steady)
    assert not decided_by(Budget(ratio=1.005).limits, precisely=True)(steady), "the budget is to be decided as well"


def test_decided_by_all_that_is_limited() -> None:
    samples = samples_of([1.05] * 12)
    assert decided_by(Budget(ratio=1.2).limits)(samples)
    assert decided_by(Budget(ratio=1.2, median="2s", first_call="1s").limits)(samples)
    assert not decided_by(Budget(ratio=1.2, p99="2s").limits)(samples)
    assert not decided_by(Budget(ratio=1.05, median="2s").limits)(samples)


def test_without_a_limit_it_ends_when_the_ratio_is_known() -> None:
    timing = timed(quiet, 1.2, 0, decided_by(()))
    figure = summarise(timing)
    assert precise(timing.samples)
    assert figure.low <= 1.2 <= figure.high
    assert figure.high / figure.low <= 1.041
    assert not precise(samples_of(np.random.default_rng(0).normal(1, 0.1, 30)))
    assert not precise(samples_of([1.0] * 5))


def test_summary() -> None:
    timing = timed(quiet, 1.25, 0, lambda samples: len(samples.eager) >= 400, cap_s=100.0)
    paired = summarise(timing)
    assert paired.input == "example"
    assert paired.low < paired.ratio < paired.high
    assert paired.ratio == pytest.approx(1.25, rel=0.01)
    assert paired.eager.low < paired.eager.median < paired.eager.high
    assert paired.eager.median == pytest.approx(CALL_S, rel=0.01)
    assert paired.exported.median == pytest.approx(1.25 * CALL_S, rel=0.01)
    assert paired.eager.noise == pytest.approx(0.03 * 0.674, rel=0.2)
    assert paired.pairs == paired.eager.calls == len(timing.samples.eager)
    assert len(paired.eager.quantiles) == 101
    assert list(paired.eager.quantiles) == sorted(paired.eager.quantiles)
    assert paired.eager.p99 == paired.eager.quantiles[99]
    assert (paired.batch, paired.warmup, paired.settled) == (1, timing.warmup, True)
    assert json.loads(json.dumps(asdict(paired), allow_nan=False))["pairs"] == paired.pairs


def test_a_summary_of_few_timings_has_finite_ends_and_no_percentile() -> None:
    paired = summarise(Timing("example", samples_of([1.0, 2.0, 3.0, 4.0], batch=5), 3, settled=True, seconds=1.0))
    assert (paired.low, paired.high) == (1.0, 4.0)
    assert (paired.exported.low, paired.exported.high) == (1.0, 4.0)
    assert paired.exported.p99 is None
    assert paired.exported.calls == 20
    json.dumps(asdict(paired), allow_nan=False)
