"""Real programs on the real clock: far from a budget there is one verdict, whatever else the machine does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch import nn

from pytest_torchexport import Budget, check
from pytest_torchexport.backends.torchscript import Trace
from pytest_torchexport.outcome import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_torchexport.backends.base import Exported, ExportRequest

pytestmark = pytest.mark.slow


class Perceptron(nn.Module):
    """Some hundred microseconds of work."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Sequential(nn.Linear(192, 192), nn.GELU()) for _ in range(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@dataclass(frozen=True)
class ThreeTimes(Trace):
    """A trace that does its work three times in a timed call: right, and slow."""

    name: ClassVar[str] = "three-times"

    def load(self, program: Any, path: Any, request: ExportRequest) -> Exported:
        loaded = super().load(program, path, request)
        bind = loaded.bound_call

        def bound(*args: Any, **kwargs: Any) -> Callable[[], Any]:
            call = bind(*args, **kwargs)
            return lambda: [call() for _ in range(3)]

        loaded.bound_call = bound  # type: ignore[method-assign]
        return loaded


X = torch.rand(32, 192)


@pytest.mark.parametrize("backend", ["trace", "script", "export", "onnx", "onnx-torchscript", "compile", "aoti"])
def test_every_backend_is_measured(backend: str) -> None:
    outcome = check(Perceptron().eval(), (X,), backend=backend, latency="100x first_call=300s", branches="off")
    assert outcome.verdict is Verdict.EQUIVALENT
    performance = outcome.performance
    assert performance is not None
    assert performance.mode == "inference mode"
    (timed,) = performance.paired
    assert timed.low <= timed.ratio <= timed.high
    assert timed.eager.calls == timed.exported.calls >= 12
    start = performance.cold_starts[0]
    assert len(start.calls) == 20
    assert start.export > 0
    assert (start.load is None) == (backend == "compile")
    variants = [one.variant for one in performance.cold_starts[1:]]
    assert variants == (["profiling=False"] if backend in ("trace", "script") else [])
    assert (performance.recompiles is not None) == (backend == "compile")


def test_a_program_that_does_its_work_three_times_is_over_a_budget_that_its_own_trace_keeps() -> None:
    model = Perceptron().eval()
    slow = check(model, (X,), backend=ThreeTimes(), latency="1.8x", branches="off")
    assert slow.verdict is Verdict.OVER_BUDGET, slow.message
    assert check(model, (X,), backend="trace", latency="1.8x", branches="off").verdict is Verdict.EQUIVALENT


def test_the_weights_of_a_loaded_program_are_in_its_peak_and_not_in_eagers() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Linear(2048, 4096)  # 32 MiB

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.wide(x)

    outcome = check(Wide().eval(), (torch.rand(1, 2048),), backend="onnx", latency=Budget(), branches="off", n_inputs=1)
    assert outcome.performance is not None
    assert outcome.performance.memory is not None
    peak = outcome.performance.memory
    if peak.host is None or peak.host_eager is None:
        pytest.skip(peak.note)
    assert peak.host > 30 * 2**20
    assert peak.host_eager < 15 * 2**20
