"""After how many calls times have settled."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from pytest_torchexport.latency.settle import falls, settled_after


def noisy(levels: list[float], rng: random.Random, noise: float = 0.05) -> list[float]:
    return [level * math.exp(rng.gauss(0, noise)) for level in levels]


@pytest.mark.parametrize(
    ("levels", "after"),
    [
        ([1.0] * 20, 0),
        ([50.0] + [1.0] * 19, 1),
        ([3.0, 50.0] + [1.0] * 18, 2),
        ([1.0, 50.0] + [1.0] * 18, 2),  # the first call is the one that is watched, the second compiles
        ([9.0] * 8 + [1.0] * 12, 8),
        ([5.0] + [1.0] * 9 + [8.0] + [1.0] * 9, 1),  # one slow call is no warm-up
        ([3.0, 50.0] + [1.0] * 17 + [8.0], 2),
        ([5.0] + [1.0] * 5 + [8.0] + [1.0] * 6 + [9.0] + [1.0] * 6, 7),  # one is noise, several are not
        ([9.0] * 18 + [1.0] * 2, None),
        ([9.0] * 17 + [1.0] * 3, None),
        ([1.0, 5.0] * 10, None),
        ([2.0 ** (20 - call) for call in range(20)], None),
        ([1.0] * 4, None),
    ],
)
def test_settled_after(levels: list[float], after: int | None) -> None:
    assert settled_after(levels) == after
    rng = random.Random(0)
    found = Counter(settled_after(noisy(levels, rng)) for _ in range(50))
    assert found[after] >= 48, found


def test_two_levels_are_both_settled() -> None:
    rng = random.Random(0)
    found = Counter(settled_after(noisy([rng.choice((1.0, 1.4)) for _ in range(20)], rng)) for _ in range(100))
    assert found[0] >= 75, found


def test_times_that_approach_their_level_have_settled_near_it() -> None:
    after = settled_after([1 + 5 * math.exp(-call / 2) for call in range(20)])
    assert after is not None
    assert 5 <= after <= 9


def test_falls() -> None:
    assert falls([2.0, 2.0, 2.0, 1.0, 1.0, 1.0])
    assert falls([1 - 0.01 * call for call in range(60)])
    assert not falls([1.0] * 9)
    assert not falls([1.0, 1.0, 1.0, 2.0, 2.0, 2.0])
    assert not falls([1.0, 8.0, 1.0, 1.0, 1.0, 1.0])
    assert falls([1.0])  # nothing is known yet


@pytest.mark.parametrize("length", [9, 30, 300])
def test_noise_does_not_fall(length: int) -> None:
    rng = random.Random(0)
    streams = [[rng.choice((1.0, 1.3, 1.5)) * math.exp(rng.gauss(0, 0.1)) for _ in range(length)] for _ in range(200)]
    assert sum(map(falls, streams)) <= 20
