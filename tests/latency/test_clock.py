"""What stands still between two readings of the clock, and what is waited for."""

from __future__ import annotations

import gc
import time
import weakref

import pytest
import torch

from pytest_torchexport.latency import clock
from pytest_torchexport.subject import devices


def test_on_the_cpu_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(devices, "synchronize", waited.append)
    assert clock.clock_of(torch.device("cpu")) is time.perf_counter_ns
    assert not waited


def test_an_accelerator_is_waited_for_before_each_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(devices, "synchronize", lambda device: order.append(f"waits for {device}"))
    monkeypatch.setattr(time, "perf_counter_ns", lambda: len(order))
    read = clock.clock_of(torch.device("cuda:1"))
    assert [read(), read()] == [1, 2]  # the wait comes before the reading
    assert order == ["waits for cuda:1"] * 2


class _Cycle:
    def __init__(self) -> None:
        self.own = self


def test_garbage_is_collected_only_where_it_is_asked_for() -> None:
    with clock.collector_held() as collect:
        assert not gc.isenabled()
        gc.collect()
        one = weakref.ref(_Cycle())
        kept = [_Cycle() for _ in range(2 * gc.get_threshold()[0])]
        assert one() is not None
        collect()
        assert one() is None
        assert kept
    assert gc.isenabled()


def test_the_collector_is_as_it_was_after_an_error() -> None:
    with pytest.raises(KeyError), clock.collector_held():
        raise KeyError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with clock.collector_held():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
