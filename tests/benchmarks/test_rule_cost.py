"""What the calibrated rule costs beside a fixed tolerance: of a whole check, and of its comparisons alone."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch

from pytest_torchexport import Tolerance
from pytest_torchexport.check import Policy, Subject, Surroundings, run
from pytest_torchexport.outcome import Verdict
from tests.benchmarks import models
from tests.benchmarks.zoo_all import build

if TYPE_CHECKING:
    from pytest_torchexport.outcome import Outcome

pytestmark = [pytest.mark.benchmark, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(3600)]
ROUNDS = int(os.environ.get("TORCHEXPORT_BENCHMARK_ROUNDS", "3"))
SMALL = (
    "resnet",
    "mobilenet",
    "unet",
    "srcnn_bicubic",
    "vit",
    "gru",
    "transformer_encoder",
    "masked_attention",
    "bert",
)
"""Architectures of the zoo; those of `models` are larger: their runs take longer than what surrounds them."""
WIDE = Tolerance(rtol=1.0, atol=1.0)
"""A fixed tolerance that always passes. It takes as long as the one of `assert_close`, which does not always: a failure
is explained, and that is not the rule's cost."""


@dataclass(frozen=True)
class Cost:
    """Of one check with ten generated inputs, the only one of its test: nothing is known of the model before.

    `whole` is the time of the check as a multiple of the same with a fixed tolerance; `more` the seconds that comparing
    takes longer, and `runs` the same in runs of eager for each input.
    """

    whole: float
    fixed: float
    more: float
    runs: float
    identical: bool
    draws: int


def _checked(name: str, backend: str, tolerance: Tolerance | None) -> tuple[Outcome, float]:
    model, args, options = build(name) if name in SMALL else (*models.MODELS[name](), {})
    subject, policy = Subject(model, args, **options), Policy(backend, branches="off", tolerance=tolerance)
    start = time.perf_counter()
    outcome = run(subject, policy, Surroundings())
    return outcome, time.perf_counter() - start


def _eager(name: str) -> float:
    model, args, _ = build(name) if name in SMALL else (*models.MODELS[name](), {})
    times = []
    with torch.no_grad():
        for _ in range(7):
            start = time.perf_counter()
            model(*args)
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def _cost(name: str, backend: str) -> Cost:
    whole, fixed, more = [], [], []
    identical, draws = True, 0
    for _ in range(ROUNDS):
        plain, plain_seconds = _checked(name, backend, WIDE)
        ours, seconds = _checked(name, backend, None)
        assert ours.verdict is Verdict.EQUIVALENT, ours.message
        draws += 0 if ours.worst is None else ours.worst.draws
        identical &= ours.worst is None or not ours.worst.max_abs
        whole.append(seconds / plain_seconds)
        fixed.append(plain.durations["compare"])
        more.append(ours.durations["compare"] - plain.durations["compare"])
    extra = statistics.median(more)
    runs = extra / _eager(name) / len(ours.inputs)
    return Cost(statistics.median(whole), statistics.median(fixed), extra, runs, identical, draws)


def test_cost_of_the_rule() -> None:
    """trace computes what eager does, bit by bit, and ONNX Runtime does not."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _checked("gru", "trace", None)  # what is imported on first use
    _checked("gru", "onnx", None)
    columns = f"{'whole check':>12s}{'compare, fixed':>16s}{'calibrated adds':>17s}{'eager runs/input':>18s}"
    print(f"\n{'':20s}{'backend':10s}{columns}")
    found: dict[tuple[str, str], Cost] = {}
    try:
        for name in [*SMALL, *(name for name in models.MODELS if name not in SMALL)]:
            for backend in ("trace", "onnx"):
                cost = found[name, backend] = _cost(name, backend)
                print(
                    f"{name:20s}{backend:10s}{cost.whole:11.2f}x{cost.fixed * 1000:13.1f} ms{cost.more * 1000:14.1f} ms"
                    f"{cost.runs:18.1f}{'  bit-identical' if cost.identical else ''}",
                    flush=True,
                )
    finally:
        torch.set_num_threads(threads)
    same = [cost for cost in found.values() if cost.identical]
    other = [cost for cost in found.values() if not cost.identical]
    print(f"bit-identical: {statistics.median(cost.more for cost in same) * 1000:.1f} ms more, median of {len(same)}")
    whole = [cost.whole for cost in other]
    runs = statistics.median(cost.runs for cost in other)
    print(f"else: whole check {statistics.median(whole):.2f}x, up to {max(whole):.2f}x; {runs:.1f} eager runs an input")
    assert same
    assert other
    assert not any(cost.draws for cost in same), "eager is run again where nothing is to be explained"
