"""The clock that latency is read from, and the garbage collector, which must not run between two readings."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_torchexport.subject import devices

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

Clock = Callable[[], int]
"""Nanoseconds, read once everything that was given to the device before is done."""


def clock_of(device: torch.device) -> Clock:
    """The clock of a device: wall time, on an accelerator after waiting for it.

    This is `torch.utils.benchmark.timer` for the device that is asked for: that one waits for the current accelerator,
    also where the work is on the CPU.
    """
    if device.type == "cpu":
        return time.perf_counter_ns

    def synchronised() -> int:
        devices.synchronize(device)
        return time.perf_counter_ns()

    return synchronised


@contextlib.contextmanager
def collector_held() -> Iterator[Callable[[], None]]:
    """No garbage collection but where it is asked for.

    Yields:
        To be called where time does not count: collects if that is due. Models that leave cycles behind would fill the
        memory otherwise.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield _collect_if_due
    finally:
        if was_on:
            gc.enable()


def _collect_if_due() -> None:
    due = gc.get_threshold()[0]
    if due and gc.get_count()[0] > due:
        gc.collect(1)
