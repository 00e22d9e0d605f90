"""How often the interval of a quantile holds it."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pytest_torchexport.latency.interval import likeness, needed, quantile

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def normal(rng: np.random.Generator, length: int) -> NDArray[np.float64]:
    return rng.normal(size=length)


def heavy_tailed(rng: np.random.Generator, length: int) -> NDArray[np.float64]:
    return rng.standard_t(1.2, length)


def two_humps(rng: np.random.Generator, length: int) -> NDArray[np.float64]:
    humps: NDArray[np.float64] = rng.choice((-1.0, 0.0, 0.0, 1.0), length)
    return humps + rng.normal(0, 0.1, length)


def correlated(rng: np.random.Generator, length: int, memory: float = 0.5) -> NDArray[np.float64]:
    noise, value, series = rng.normal(0, math.sqrt(1 - memory**2), length), rng.normal(), np.empty(length)
    for index in range(length):
        value = series[index] = memory * value + noise[index]
    return series


def alternating(rng: np.random.Generator, length: int) -> NDArray[np.float64]:
    return correlated(rng, length, -0.5)


def misses(draw: Callable[..., NDArray[np.float64]], length: int, error: float, runs: int = 1000) -> int:
    """How often the median, zero, is outside of the interval."""
    rng = np.random.default_rng(0)
    found = [quantile(draw(rng, length), 0.5, error) for _ in range(runs)]
    return sum(not one.low <= 0 <= one.high for one in found)


@pytest.mark.parametrize("length", [12, 24, 60, 200])
@pytest.mark.parametrize("draw", [normal, heavy_tailed, two_humps, alternating])
def test_the_interval_holds_the_median(draw: Callable[..., NDArray[np.float64]], length: int) -> None:
    assert misses(draw, length, 0.005) <= 15  # 10 would be right on average


@pytest.mark.parametrize(("length", "most"), [(12, 40), (24, 40), (60, 25), (200, 20), (1000, 20)])
def test_it_holds_the_median_of_what_has_a_memory(length: int, most: int) -> None:
    assert misses(correlated, length, 0.005) <= most


def test_without_blocks_it_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_torchexport.latency.interval.likeness", lambda *_: 1.0)
    assert misses(correlated, 200, 0.005) > 50
    assert misses(normal, 200, 0.005) <= 15


def test_it_is_no_wider_than_it_has_to_be() -> None:
    rng = np.random.default_rng(0)
    found = [quantile(normal(rng, 1000), 0.5, 0.005) for _ in range(200)]
    width = float(np.median([one.high - one.low for one in found]))
    best = 2 * 2.58 * math.sqrt(math.pi / 2) / math.sqrt(1000)
    assert best <= width <= 1.5 * best


def test_ends_are_open_where_there_is_too_little() -> None:
    few = quantile(np.arange(5.0), 0.5, 0.005)
    assert (few.low, few.value, few.high) == (-math.inf, 2.0, math.inf)
    rare = quantile(np.random.default_rng(0).normal(size=100), 0.99, 0.005)
    assert rare.low > 0
    assert rare.high == math.inf


def test_a_rare_quantile_is_held() -> None:
    rng = np.random.default_rng(0)
    at = float(np.quantile(rng.exponential(size=1_000_000), 0.99))
    found = [quantile(rng.exponential(size=2000), 0.99, 0.005) for _ in range(300)]
    assert sum(not one.low <= at <= one.high for one in found) <= 6
    assert all(math.isfinite(one.high) for one in found)


def test_how_many_it_takes() -> None:
    series = np.random.default_rng(0).normal(size=1000)
    apart = needed(series, 0.99, 0.005)
    assert 528 <= apart <= 1100  # 0.99 ** 528 < 0.005
    in_a_burst = np.where(np.arange(1000) // 10 == 50, 10.0, 0.0) + series
    assert needed(in_a_burst, 0.99, 0.005) > 5 * apart


def test_constant_series() -> None:
    same = quantile(np.ones(50), 0.5, 0.005)
    assert (same.low, same.value, same.high) == (1.0, 1.0, 1.0)
    assert likeness(np.ones(50), 0.5, 0.005) == 1.0


def test_likeness_follows_the_memory() -> None:
    rng = np.random.default_rng(0)
    typical = [
        float(np.median([likeness(partial(correlated, memory=memory)(rng, 2000), 0.5, 0.005) for _ in range(30)]))
        for memory in (0.0, 0.5, 0.9)
    ]
    assert typical[0] < 1.5 < typical[1] < 4 < typical[2]
