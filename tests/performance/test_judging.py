"""What a figure of a budget is worth that was measured beside other work."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pytest_torchexport.latency.budget import Budget
from pytest_torchexport.measured import PeakMemory, Standing
from pytest_torchexport.performance.judging import Bench, judge


class Starts:
    """Starts that take 2 kB on either side of the bus."""

    def __init__(self, device: str) -> None:
        self.sides = SimpleNamespace(plan=SimpleNamespace(device=torch.device(device)))
        self.own: list[Any] = []
        self.memory: list[PeakMemory] = []
        self.again()

    def again(self, _calls: int = 1) -> None:
        self.memory.append(PeakMemory(host=2000, device=2000))


@pytest.mark.parametrize(
    ("device", "crowd", "standing"),
    [
        ("cpu", 0, Standing.OVER),
        ("cpu", 3, Standing.OVER),  # the resident set is this process's own
        ("cuda", 0, Standing.OVER),
        ("cuda", 3, Standing.INCONCLUSIVE),  # the free memory of a device is everybody's
    ],
)
def test_memory_that_others_may_have_taken_is_no_excess(device: str, crowd: int, standing: Standing) -> None:
    starts: Any = Starts(device)
    (judged,) = judge(Budget(peak_memory="1kB"), Bench({}, starts, None, None, crowd))
    assert judged.standing is standing
