"""Turns, batches, warm-up and looks, by a clock that only the timed calls move."""

from __future__ import annotations

import gc
import itertools
import random
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from pytest_torchexport.latency import measure
from pytest_torchexport.latency.measure import LEAST_PAIRS, MOST_RESTORED, Samples, Side, Timing, first_calls, time_pair
from pytest_torchexport.subject import devices
from tests.latency.simulated import Machine, quickening, quiet, slowing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CPU = torch.device("cpu")


def timed(
    machine: Machine,
    eager: Side,
    exported: Side,
    decided: Callable[[Samples], bool] = lambda _: True,
    *,
    seed: int = 0,
    device: torch.device = CPU,
    single: bool = False,
    cap_s: float = 5.0,
) -> Timing:
    return time_pair(
        eager,
        exported,
        label="example",
        device=device,
        seed=seed,
        decided=decided,
        single=single,
        cap_s=cap_s,
        clock=machine.clock,
    )


def turns_of(machine: Machine) -> list[str]:
    """Who had the first turn, in each of the pairs that count."""
    return machine.log[-2 * LEAST_PAIRS :: 2]


def test_times_are_those_of_one_call() -> None:
    machine = Machine()
    timing = timed(machine, *machine.sides(0.010, 0.013))
    assert timing.label == "example"
    assert timing.samples.batch == 1
    assert timing.samples.eager == pytest.approx([0.010] * 12)
    assert timing.samples.exported == pytest.approx([0.013] * 12)
    assert timing.settled
    assert timing.seconds == pytest.approx(machine.now / 1e9)


def test_short_calls_are_timed_together() -> None:
    machine = Machine(tick=50)
    timing = timed(machine, *machine.sides(2e-6, 4e-6))
    assert timing.samples.batch == pytest.approx(100, abs=5)
    assert timing.samples.eager == pytest.approx(2e-6, rel=0.01)
    assert timing.samples.exported == pytest.approx(4e-6, rel=0.01)


def test_single_calls_where_that_is_asked_for() -> None:
    machine = Machine()
    assert timed(machine, *machine.sides(2e-6, 4e-6), single=True).samples.batch == 1


@pytest.mark.parametrize("of", ["eager", "exported"])
@pytest.mark.parametrize("single", [True, False])
def test_a_side_is_made_ready_before_each_of_its_timings(of: str, *, single: bool) -> None:
    machine = Machine()
    sides = dict(zip(("eager", "exported"), machine.sides(2e-6, 2e-6), strict=True))
    sides[of] = Side(sides[of].call, machine.takes(1e-3, "before"))
    timing = timed(machine, sides["eager"], sides["exported"], single=single)
    batch = timing.samples.batch
    assert batch == (1 if single else MOST_RESTORED)
    assert timing.samples.eager == pytest.approx(2e-6)  # what comes before is not timed
    assert timing.samples.exported == pytest.approx(2e-6)
    for name, following in itertools.pairwise(machine.log):
        assert name != "before" or following == of
    calls = [part.split().count(of) for part in " ".join(machine.log).split("before")[1:]]
    assert set(calls) == {1, batch}  # one by one while they warm up


def test_turns_are_random_and_balanced() -> None:
    seen: Counter[tuple[str, ...]] = Counter()
    for seed in range(40):
        machine = Machine()
        timed(machine, *machine.sides(0.02, 0.02), seed=seed)
        turns = turns_of(machine)
        assert Counter(turns) == {"eager": 6, "exported": 6}
        seen[tuple(turns)] += 1
    assert len(seen) > 30


def test_the_seed_decides_the_turns() -> None:
    logs = []
    for seed in (1, 1, 2):
        machine = Machine()
        timed(machine, *machine.sides(0.02, 0.02), seed=seed)
        logs.append(machine.log)
    assert logs[0] == logs[1] != logs[2]


def _bias(noise: Callable[[random.Random], Iterator[float]]) -> float:
    """The ratio that is measured of two equal programs."""
    machine = Machine(noise(random.Random(0)))
    samples = timed(
        machine, *machine.sides(0.001, 0.001), decided=lambda samples: len(samples.eager) > 1600, cap_s=1000
    ).samples
    return float(np.median(samples.exported / samples.eager))


def second_turns(rng: random.Random) -> Iterator[float]:
    """Whoever comes second finds a cold cache."""
    for number, factor in enumerate(quiet(rng)):
        yield factor * (1.2 if number % 2 else 1.0)


@pytest.mark.parametrize("noise", [slowing, quickening, second_turns])
def test_what_changes_with_time_is_in_both(
    noise: Callable[[random.Random], Iterator[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _bias(noise) == pytest.approx(1.0, abs=0.02 if noise is second_turns else 0.005)
    monkeypatch.setattr(measure, "_turns", lambda _: itertools.repeat(False))
    assert abs(_bias(noise) - 1) > (0.1 if noise is second_turns else 0.007)


def test_calls_before_the_times_settle_do_not_count() -> None:
    machine = Machine()
    compiling = Side(machine.takes(lambda number: (0.3, 2.0)[number] if number < 2 else 0.02))
    timing = timed(machine, Side(machine.takes(0.02)), compiling)
    assert timing.settled
    assert timing.warmup >= 2
    assert timing.samples.exported == pytest.approx(0.02)


def test_a_slow_warm_up_is_waited_for() -> None:
    machine = Machine()
    slow = Side(machine.takes(lambda number: 0.001 + 0.004 * 0.98**number))
    timing = timed(machine, Side(machine.takes(0.001)), slow)
    assert timing.settled
    assert timing.samples.exported[0] < 1.1e-3


def test_a_warm_up_without_end_is_cut_off() -> None:
    machine = Machine()
    never = Side(machine.takes(lambda number: 10 * 0.7**number + 0.0001))
    timing = timed(machine, Side(machine.takes(2.0)), never)
    assert not timing.settled
    assert timing.warmup == 3


def test_it_ends_when_it_is_decided() -> None:
    machine, looks = Machine(), []

    def decided(samples: Samples) -> bool:
        looks.append((samples.looks, len(samples.eager)))
        return len(looks) == 4

    timing = timed(machine, *machine.sides(0.01, 0.01), decided)
    assert looks == [(1, 12), (2, 20), (3, 32), (4, 48)]
    assert len(timing.samples.eager) == 48
    assert timing.samples.looks == 4


def test_it_ends_when_the_time_is_over() -> None:
    machine = Machine()
    timing = timed(machine, *machine.sides(0.01, 0.01), lambda _: False, cap_s=2.0)
    assert 100 <= len(timing.samples.eager) <= 104
    # The last look is one more, also where the times are not looked at again.
    assert timing.samples.looks == 5 + 1


def test_it_lasts_a_tenth_of_a_second_at_least() -> None:
    machine = Machine()
    timing = timed(machine, *machine.sides(0.0005, 0.0005))
    assert 100 <= len(timing.samples.eager) <= 104
    assert timing.samples.looks == 1


def test_slow_calls_are_few() -> None:
    machine = Machine()
    timing = timed(machine, *machine.sides(2.0, 2.0), lambda _: False)
    assert len(timing.samples.eager) == LEAST_PAIRS
    assert timing.warmup == 3


def test_a_clock_that_stands_still_does_not_hang_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MOST_PAIRS", 100)
    monkeypatch.setattr(measure, "WARMUP_S", 0.0)
    machine = Machine()
    timing = timed(machine, *machine.sides(0.0, 0.0), lambda _: False)
    assert len(timing.samples.eager) == 100
    assert (timing.samples.eager > 0).all()


def test_no_collection_while_it_is_timed() -> None:
    seen: list[bool] = []
    timing = timed(machine := Machine(), Side(lambda: seen.append(gc.isenabled())), machine.sides(0.01, 0.01)[1])
    assert timing.samples.eager.size
    assert set(seen) == {False}
    assert gc.isenabled()


class _Cycle:
    alive = 0

    def __init__(self) -> None:
        self.own = self
        _Cycle.alive += 1

    def __del__(self) -> None:
        _Cycle.alive -= 1


def test_cycles_that_calls_leave_behind_do_not_pile_up() -> None:
    machine, most = Machine(), 0

    def leaves_cycles() -> None:
        nonlocal most
        for _ in range(100):
            _Cycle()
        most = max(most, _Cycle.alive)
        machine.now += 1_000_000

    timed(machine, Side(leaves_cycles), machine.sides(0.001, 0.001)[1])
    assert most <= 2 * gc.get_threshold()[0] + 100  # out of more than 10,000


def test_an_error_comes_through_and_the_collector_is_on_again() -> None:
    def fails() -> None:
        msg = "no such kernel"
        raise RuntimeError(msg)

    machine = Machine()
    with pytest.raises(RuntimeError, match="no such kernel"):
        timed(machine, Side(fails), machine.sides(0.01, 0.01)[1])
    assert gc.isenabled()


class Accelerator:
    """A device that works on while Python goes on."""

    def __init__(self) -> None:
        self.host = self.done_at = 0

    def launch(self, launch_s: float, work_s: float) -> Callable[[], None]:
        def call() -> None:
            self.host += round(launch_s * 1e9)
            self.done_at = max(self.done_at, self.host) + round(work_s * 1e9)

        return call

    def synchronize(self, device: torch.device) -> None:
        assert device.type == "cuda"
        self.host = max(self.host, self.done_at)


def test_calls_on_an_accelerator_are_timed_until_the_result_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Accelerator()
    monkeypatch.setattr(devices, "synchronize", fake.synchronize)
    monkeypatch.setattr("time.perf_counter_ns", lambda: fake.host)
    timing = time_pair(
        Side(fake.launch(5e-6, 20e-6)),
        Side(fake.launch(5e-6, 40e-6)),
        label="example",
        device=torch.device("cuda"),
        seed=0,
        decided=lambda _: True,
    )
    # Neither is a launch all of it, nor do the calls of a batch overlap.
    assert timing.samples.batch == 1
    assert timing.samples.eager == pytest.approx(25e-6)
    assert timing.samples.exported == pytest.approx(45e-6)
    assert first_calls(Side(fake.launch(5e-6, 20e-6)), torch.device("cuda"), 3) == pytest.approx((25e-6,) * 3)


def test_first_calls() -> None:
    machine = Machine()
    side = Side(machine.takes(lambda number: (3.0, 5.0, 1.0)[min(number, 2)]), machine.takes(9.0))
    assert first_calls(side, CPU, 5, clock=machine.clock) == (3.0, 5.0, 1.0, 1.0, 1.0)
    assert gc.isenabled()


def test_first_calls_that_take_long_are_fewer() -> None:
    machine = Machine()
    assert first_calls(Side(machine.takes(10.0)), CPU, 20, cap_s=25.0, clock=machine.clock) == (10.0, 10.0, 10.0)
