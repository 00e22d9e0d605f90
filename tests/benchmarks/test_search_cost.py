"""What the branch search costs, beside chance and Hypothesis, and what it costs where there is nothing to find."""

from __future__ import annotations

import statistics
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from pytest_torchexport import check
from pytest_torchexport.branches.observation import Observing
from pytest_torchexport.draft import Surroundings
from pytest_torchexport.inputs.draw import generate
from pytest_torchexport.inputs.space import Space
from pytest_torchexport.plan import derive_seed
from pytest_torchexport.subject.call import Call
from pytest_torchexport.subject.source import is_users
from tests.benchmarks import gated, models
from tests.branches.corpus import TUNING, cases
from tests.branches.corpus.case import Infeasible
from tests.branches.corpus.probe import taken, takes
from tests.branches.judge import Eager, tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.branches.corpus.case import Case, Span, Truth

pytestmark = [pytest.mark.benchmark, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(1200)]
BUDGET = 400
ROUNDS = 5


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- beside chance ----------------------------------------------------------------------------------------------------


@dataclass
class Score:
    """What a way to find inputs reached: outcomes, at which cost."""

    name: str
    reached: int = 0
    runs: int = 0
    seconds: float = 0.0

    def line(self, of: int) -> str:
        each = max(self.reached, 1)
        return (
            f"{self.name:12s} {self.reached:4d} of {of} outcomes"
            f"  {self.runs:6d} eager runs, {self.runs / each:6.1f} each"
            f"  {self.seconds:6.1f} s, {self.seconds / each * 1000:6.0f} ms each"
        )


class _Enough(BaseException):
    """Everything is reached, or the budget is spent; no exception that a search may catch."""


@dataclass
class Oracle:
    """Runs inputs on a case, counts them, and knows which outcomes they take."""

    case: Case
    missing: set[tuple[Truth, Span, str]]
    example: Any
    runs: int = 0

    @classmethod
    def of(cls, case: Case, drawn: int) -> Oracle:
        example = taken(case, case.example)
        every = {
            (truth, span, outcome)
            for truth, span in case.spans().items()
            for outcome, witness in truth.outcomes.items()
            if not isinstance(witness, Infeasible) and not takes(truth, span, outcome, example, example)
        }
        oracle = cls(case, every, example)
        with suppress(_Enough):
            for (call,) in islice(_drawn(case), drawn):
                oracle.run(call)
        oracle.runs = 0
        return oracle

    def run(self, call: Call) -> None:
        """Run an input; `_Enough` where there is no more to do."""
        self.runs += 1
        try:
            took = taken(self.case, (call.args, dict(call.kwargs)))
        except Exception:  # noqa: BLE001 - eager is the judge of what is an input
            took = {}
        self.missing = {one for one in self.missing if not takes(*one, took, self.example)}
        if not self.missing or self.runs >= BUDGET:
            raise _Enough


def _drawn(case: Case) -> Iterator[tuple[Call, ...]]:
    """The generated inputs of a check."""
    example = Call(*case.example)
    return generate(case.make(), example, case.options.get("inputs"), None, seed=derive_seed(0, Surroundings().origin))


def by_chance(case: Case, oracle: Oracle) -> None:
    """The generator of the package, which knows special values, too."""
    for (call,) in _drawn(case):
        oracle.run(call)


def by_hypothesis(case: Case, oracle: Oracle) -> None:
    """Arrays of everything that is in the domain."""
    import numpy as np
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st
    from hypothesis.extra.numpy import arrays

    example = Call(*case.example)
    space = Space.of(case.make(), example, case.options.get("inputs"), None, seed=0)

    def leaf(one: Any) -> Any:
        low, high = one.low, one.high
        if one.integral:
            return arrays(
                np.int64, tuple(one.value.shape), elements=st.integers(int(max(low, -(2**31))), int(min(high, 2**31)))
            )
        bounds = {"min_value": low, "max_value": high} if low > -1e30 and high < 1e30 else {}
        return arrays(np.float32, tuple(one.value.shape), elements=st.floats(width=32, **bounds))

    strategies = {path: leaf(one) for path, one in space.numbers(example).items()}

    @settings(
        max_examples=BUDGET,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.fixed_dictionaries(strategies))
    def look(values: dict[str, Any]) -> None:
        made = {path: torch.from_numpy(np.array(value)).to(torch.float64) for path, value in values.items()}
        oracle.run(space.with_values(example, made, "") if made else example)

    look()


WAYS = {"chance": by_chance, "Hypothesis": by_hypothesis}


@pytest.mark.parametrize("drawn", [0, 10])
def test_beside_chance_and_hypothesis(drawn: int) -> None:
    """The cases whose values alone decide; each way has the same budget of eager runs for a case.

    Counted are the outcomes that the example, and as many generated inputs as said, do not take.
    """
    chosen = [case for case in cases(*TUNING) if not set(case.options) - {"inputs"}]
    chosen = [case for case in chosen if not any("Sampled" in type(one).__name__ for one in _domains(case))]
    chosen = [case for case in chosen if Oracle.of(case, drawn).missing]
    wanted = sum(len(Oracle.of(case, drawn).missing) for case in chosen)
    start = time.perf_counter()
    found = tally(chosen, n_inputs=drawn, search_budget=BUDGET)
    ours = Score("search", found.by["search"], found.runs, time.perf_counter() - start)
    others = []
    for name, look in WAYS.items():
        score = Score(name)
        for case in chosen:
            oracle = Oracle.of(case, drawn)
            before, start = len(oracle.missing), time.perf_counter()
            with suppress(_Enough):
                look(case, oracle)
            score.seconds += time.perf_counter() - start
            score.reached += before - len(oracle.missing)
            score.runs += oracle.runs
        others.append(score)
    print(f"\n{len(chosen)} cases, at most {BUDGET} eager runs each, beyond the example and {drawn} generated inputs")
    for score in (ours, *others):
        print(score.line(wanted))
    for score in others:
        assert ours.reached > score.reached
        assert ours.runs / ours.reached < score.runs / max(score.reached, 1)


def _domains(case: Case) -> list[Any]:
    return list((case.options.get("inputs") or {}).values())


# --- on models --------------------------------------------------------------------------------------------------------


def _seconds(run: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Median over some runs, after one to warm up."""
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _ratio(one: Callable[[], Any], other: Callable[[], Any], rounds: int = ROUNDS) -> tuple[float, float]:
    """Median seconds of the second, and the median ratio of neighbouring runs of the first to the second."""
    one(), other()
    ratios, times = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        other()
        middle = time.perf_counter()
        one()
        times.append(middle - start)
        ratios.append((time.perf_counter() - middle) / times[-1])
    return statistics.median(times), statistics.median(ratios)


def _eager(model: nn.Module, args: tuple[Any, ...]) -> Callable[[], Any]:
    def run() -> None:
        with torch.no_grad():
            model(*args)

    return run


def test_two_gates_in_a_resnet() -> None:
    """The whole search, its observation of the inputs included, in runs of eager by the clock."""
    model, args = gated.gated_resnet18()
    once = _seconds(_eager(model, args))
    seconds: dict[str, float] = {}
    for mode in ("off", "search", "off", "search"):
        start = time.perf_counter()
        outcome = check(model, args, backend=Eager(), branches=mode)
        took = time.perf_counter() - start
        extra = len(outcome.inputs) - 11  # found inputs are run once more by eager and once by the program
        seconds[mode] = min(took - 2 * max(extra, 0) * once, seconds.get(mode, float("inf")))
    assert outcome.branches is not None
    assert not outcome.branches.unreached
    runs = (seconds["search"] - seconds["off"]) / once
    flips = outcome.branches.by_kind().get("search", 0)
    print(
        f"\nResNet-18 at 224 x 224, {flips} outcomes by search: {outcome.branches.eager_runs} eager runs counted, "
        f"{runs:.0f} by the clock (an eager run takes {once * 1000:.0f} ms)"
    )
    assert runs <= 60


def test_where_there_is_nothing_to_find() -> None:
    """A whole check with the search and without it, in neighbouring runs, on models that decide nothing."""
    print()
    for name, (model, args) in {
        "nn.Sequential, perceptron": models.perceptron(),
        "nn.Sequential, ResNet-18": models.resnet18(),
        "own forward, U-Net": models.unet(),
        "own forward, two inputs": models.fusion(),
    }.items():
        run = partial(check, model, args, backend="trace")
        rounds = 5 if "ResNet" in name else 25
        seconds, ratio = _ratio(partial(run, branches="search"), partial(run, branches="off"), rounds)
        added = seconds * (ratio - 1)
        print(f"{name:28s} {seconds * 1000:6.0f} ms without the search, {added * 1000:+5.1f} ms with it ({ratio:.3f})")
        assert ratio < 1.1


def test_the_observer() -> None:
    """One eager run, observed and not observed."""
    print()
    gated_model, image = gated.gated_resnet18()
    for name, model, args, rounds in (
        ("ResNet-18, two gates", gated_model, image, 5),
        ("much Python, 8 small layers", gated.Talkative().eval(), (torch.randn(4, 16),), 200),
        ("transformer encoder", *models.encoder(), 25),
    ):
        run = _eager(model, args)

        def observed(run: Callable[[], Any] = run) -> None:
            with Observing(is_users):
                run()

        seconds, ratio = _ratio(observed, run, rounds)
        print(f"{name:28s} {seconds * 1000:8.2f} ms, {ratio:.2f} times that under observation")
        assert ratio < 15


def test_a_model_of_a_library() -> None:
    """A small BERT, all of whose Python code counts as the user's."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    tokens = {"input_ids": torch.randint(0, 100, (2, 16)), "attention_mask": torch.ones(2, 16, dtype=torch.long)}
    coverage = None

    def run(mode: str) -> None:
        nonlocal coverage
        outcome = check(model, (), tokens, backend=Eager(), branches=mode)
        coverage = outcome.branches or coverage

    seconds, ratio = _ratio(lambda: run("search"), lambda: run("off"), 3)
    assert coverage is not None
    print(
        f"\nBERT of 2 layers: {seconds:.2f} s without the search, {ratio:.1f} times that with it "
        f"({coverage.eager_runs} eager runs, {coverage.reached} of {coverage.known} outcomes)"
    )
