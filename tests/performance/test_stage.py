"""The stage `latency` through `check`, on a simulated clock: models and programs say how long their calls take."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch import nn

from pytest_torchexport import Budget, UsageError, check
from pytest_torchexport.backends.base import Backend, Exported, ExportRequest
from pytest_torchexport.check import Policy, Subject, Surroundings, run
from pytest_torchexport.latency import measure, peak
from pytest_torchexport.measured import Performance, Standing
from pytest_torchexport.outcome import Outcome, Stage, Verdict
from pytest_torchexport.performance import judging

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

X = torch.ones(2, 3)
US = 1_000
MS = 1_000_000


class Time:
    """Nanoseconds that pass only where a call says so."""

    now = 0
    noise = 0.0
    rng = random.Random(0)

    @classmethod
    def spend(cls, nanoseconds: float) -> None:
        cls.now += int(nanoseconds * (1 + cls.noise * cls.rng.random()))


@pytest.fixture(autouse=True)
def _simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    Time.now, Time.noise, Time.rng = 0, 0.0, random.Random(0)
    monkeypatch.setattr(measure, "clock_of", lambda device: lambda: Time.now)
    monkeypatch.setattr(peak, "give_back", lambda: None)  # collecting garbage takes longer than these models


class Twice(nn.Module):
    """Takes 100 us."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Time.spend(100 * US)
        return x * 2


class _Program(Exported):
    def __init__(self, model: Callable[..., Any], backend: Simulated, starts: int) -> None:
        super().__init__()
        self.model, self.backend, self.starts, self.calls = model, backend, starts, 0
        self.cold_start_note = "as simulated"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before = Time.now
        output = self.model(*args, **kwargs)
        Time.now = before
        Time.spend(self.backend.time_of(self.starts, self.calls))
        self.calls += 1
        return output

    @property
    def shares_module(self) -> bool:
        return True

    @property
    def recompiles(self) -> int | None:
        return self.backend.recompiled

    def close(self) -> None:
        self.backend.open[:] = [one for one in self.backend.open if one is not self]


@dataclass(frozen=True)
class Simulated(Backend):
    """Runs the model itself, and takes `warm` nanoseconds; the first calls of a start take what `cold` says of it."""

    name: ClassVar[str] = "simulated"

    warm: float = 100 * US
    cold: Sequence[Sequence[float]] = ()
    recompiled: int | None = None
    size: int | None = None
    starts: list[int] = field(default_factory=list)
    open: list[Exported] = field(default_factory=list)
    most_open: list[int] = field(default_factory=list)

    @property
    def id(self) -> str:
        return "simulated"

    def export(self, request: ExportRequest) -> Any:
        return request.model

    def save(self, program: Any, directory: Path) -> Path | None:
        if self.size is None:
            return None
        (directory / "program").write_bytes(bytes(self.size))
        return directory / "program"

    def load(self, program: Any, path: Path | None, request: ExportRequest) -> Exported:
        loaded = _Program(program, self, len(self.starts))
        self.open.append(loaded)
        self.most_open.append(len(self.open))
        return loaded

    def load_anew(self, program: Any, path: Path | None, request: ExportRequest) -> Exported:
        self.starts.append(0)
        return self.load(program, path, request)

    def time_of(self, start: int, call: int) -> float:
        series = self.cold[min(start, len(self.cold)) - 1] if self.cold and start else ()
        return series[call] if call < len(series) else self.warm


def checked(backend: Backend, latency: Any, model: nn.Module | None = None, **options: Any) -> Outcome:
    return check(model or Twice(), (X,), backend=backend, latency=latency, branches="off", n_inputs=2, **options)


def words(outcome: Outcome) -> str:
    """The message without its line breaks."""
    return " ".join(outcome.message.split())


def performance_of(outcome: Outcome) -> Performance:
    assert outcome.performance is not None
    return outcome.performance


def test_a_slower_program_is_over_its_budget_and_the_message_says_what_was_timed() -> None:
    outcome = checked(Simulated(warm=134 * US), "1.2x")
    assert outcome.verdict is Verdict.OVER_BUDGET
    assert outcome.failed
    assert outcome.stage is Stage.LATENCY
    assert "over-budget: ratio 1.34x (1.34x to 1.34x), the budget is 1.2x" in outcome.summary
    assert "eager 100 us, exported 134 us" in words(outcome)
    assert "what to do" in words(outcome)
    timed = performance_of(outcome).paired[0]
    assert timed.input == "example"
    assert timed.ratio == pytest.approx(1.34)
    assert outcome.durations["latency"] > 0


def test_a_program_within_its_budget_passes() -> None:
    outcome = checked(Simulated(warm=110 * US), "1.2x")
    assert outcome.verdict is Verdict.EQUIVALENT
    (judged,) = performance_of(outcome).judged
    assert judged.standing is Standing.WITHIN
    assert judged.measured == "1.10x (1.10x to 1.10x)"


def test_a_program_exactly_at_its_budget_is_inconclusive_and_does_not_fail() -> None:
    Time.noise = 0.3
    outcome = checked(Simulated(warm=120 * US), "1.2x")
    assert outcome.verdict is Verdict.INCONCLUSIVE
    assert not outcome.failed
    assert "do not tell on which side" in words(outcome)


def test_without_a_budget_nothing_is_measured_and_an_empty_one_judges_nothing() -> None:
    backend = Simulated()
    assert checked(backend, None).performance is None
    assert backend.starts == []
    outcome = checked(backend, Budget())
    assert outcome.verdict is Verdict.EQUIVALENT
    assert performance_of(outcome).judged == ()
    assert performance_of(outcome).paired[0].ratio == pytest.approx(1)
    assert performance_of(outcome).machine["threads"] == torch.get_num_threads()


def test_a_program_that_is_wrong_is_not_timed() -> None:
    class Wrong(Simulated):
        def export(self, request: ExportRequest) -> Any:
            return lambda x: x * 2.5

    backend = Wrong()
    outcome = checked(backend, "1.2x")
    assert outcome.verdict is Verdict.MISMATCH
    assert outcome.performance is None
    assert backend.starts == []


def test_a_budget_in_seconds_is_held_against_the_exported_programs_own_times() -> None:
    outcome = checked(Simulated(warm=2 * MS), "median=1ms p99=3ms")
    assert outcome.verdict is Verdict.OVER_BUDGET
    median, p99 = performance_of(outcome).judged
    assert (median.standing, median.measured) == (Standing.OVER, "2.00 ms (2.00 ms to 2.00 ms)")
    assert p99.standing is Standing.WITHIN


def test_one_program_is_loaded_at_a_time() -> None:
    backend = Simulated(cold=[[5 * MS]])
    checked(backend, "1.2x first_call=4ms")
    assert len(backend.starts) == judging.SURE
    assert max(backend.most_open) == 1
    assert backend.open == []


# --- cold start ---


def test_the_first_calls_are_those_of_a_new_start() -> None:
    backend = Simulated(cold=[[5 * MS, 9 * MS, 300 * US]])
    start = performance_of(checked(backend, Budget())).cold_starts[0]
    assert start.calls[:4] == pytest.approx((5e-3, 9e-3, 3e-4, 1e-4))
    assert len(start.calls) == 20
    assert start.first_call == pytest.approx(5e-3)
    assert start.settled_after == 3
    assert start.load is None  # there is no file to read
    assert start.note == "as simulated"


def test_a_slow_first_call_is_over_its_budget_only_when_it_is_slow_in_every_start() -> None:
    always = Simulated(cold=[[5 * MS]])
    outcome = checked(always, "first_call=4ms")
    assert outcome.verdict is Verdict.OVER_BUDGET
    assert len(always.starts) == judging.SURE
    assert performance_of(outcome).cold_starts[0].loads == judging.SURE

    once = Simulated(cold=[[5 * MS], [3 * MS]])
    outcome = checked(once, "first_call=4ms")
    assert outcome.verdict is Verdict.INCONCLUSIVE
    assert "some starts are over and some are not" in words(outcome)

    far = Simulated(cold=[[50 * MS]])
    assert checked(far, "first_call=4ms").verdict is Verdict.OVER_BUDGET
    assert len(far.starts) == 3

    fast = Simulated(cold=[[3 * MS], [50 * MS]])
    assert checked(fast, "first_call=4ms").verdict is Verdict.EQUIVALENT
    assert len(fast.starts) == 1


class Switchable(Simulated):
    """Has an option that makes its first call fast."""

    def cold_start_variants(self) -> dict[str, Backend]:
        return {"lazy=True": replace(self, cold=[[1 * MS]], starts=[])}


def test_the_first_calls_under_an_option_stand_beside_the_programs_own() -> None:
    backend = Switchable(cold=[[5 * MS]])
    own, lazy = performance_of(checked(backend, Budget())).cold_starts
    assert (own.variant, lazy.variant) == ("", "lazy=True")
    assert (own.first_call, lazy.first_call) == pytest.approx((5e-3, 1e-3))
    assert len(lazy.calls) == 20
    assert backend.open == []


def test_one_figure_over_the_budget_decides_whatever_the_others_leave_open() -> None:
    outcome = checked(Simulated(warm=134 * US, cold=[[5 * MS], [3 * MS]]), "1.2x first_call=4ms")
    assert {one.standing for one in performance_of(outcome).judged} == {Standing.OVER, Standing.INCONCLUSIVE}
    assert outcome.verdict is Verdict.OVER_BUDGET


def test_starts_that_take_too_long_are_not_repeated_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "LONGEST_S", -1.0)
    outcome = checked(Simulated(cold=[[5 * MS]]), "first_call=4ms")
    assert outcome.verdict is Verdict.INCONCLUSIVE
    assert "take too long" in words(outcome)


@pytest.mark.parametrize(("slow_calls", "verdict"), [(2, Verdict.EQUIVALENT), (6, Verdict.OVER_BUDGET)])
def test_the_calls_until_the_times_settle_have_a_budget(slow_calls: int, verdict: Verdict) -> None:
    outcome = checked(Simulated(cold=[[3 * MS] * slow_calls]), "warmup_calls=3")
    assert outcome.verdict is verdict
    assert performance_of(outcome).judged[0].measured.startswith(str(slow_calls))


# --- what is counted ---


def test_size_and_recompiles_are_held_against_the_budget() -> None:
    outcome = checked(Simulated(size=3000, recompiled=2), Budget(artifact_size="2kB", recompiles=2))
    recompiles, size = performance_of(outcome).judged
    assert (recompiles.standing, recompiles.measured) == (Standing.WITHIN, "2")
    assert (size.standing, size.measured) == (Standing.OVER, "3.00 kB")
    assert outcome.verdict is Verdict.OVER_BUDGET
    assert checked(Simulated(recompiled=3), "recompiles=2").verdict is Verdict.OVER_BUDGET


def test_a_figure_that_the_backend_does_not_have_is_in_the_ledger() -> None:
    outcome = checked(Simulated(), "artifact_size=2kB")
    assert performance_of(outcome).judged[0].standing is Standing.NOT_CHECKED
    assert any("artifact_size" in entry.what and "no file" in entry.why for entry in outcome.not_checked)


# --- models that are not called over and over alike ---


class Counter(nn.Module):
    """Takes longer with each call since its start."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        Time.spend(100 * US * self.count)
        return x * self.count


def test_each_timing_of_a_model_with_state_starts_from_the_same_state() -> None:
    model = Counter()
    outcome = checked(Simulated(warm=100 * US), Budget(), model)
    timed = performance_of(outcome).paired[0]
    assert timed.batch == 2  # the first call and the second: 100 us and 200 us
    assert timed.eager.median == pytest.approx(1.5e-4)
    assert timed.eager.noise == 0
    assert model.count == 0


class Room(nn.Module):
    """A cache with room for three calls."""

    def __init__(self) -> None:
        super().__init__()
        self.position = 0
        self.rows = nn.Buffer(torch.zeros(3, 2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Time.spend(10 * US)
        self.rows[self.position] = x
        self.position += 1
        return self.rows.sum(0)


def test_a_state_that_has_room_for_a_few_calls_is_put_back_before_each() -> None:
    outcome = checked(Simulated(warm=15 * US), "1.2x", Room())
    assert outcome.verdict is Verdict.OVER_BUDGET, outcome.message
    timed = performance_of(outcome).paired[0]
    assert timed.batch == 1
    assert timed.ratio == pytest.approx(1.5)


class Cache(nn.Module):
    """Its first call fills a cache, which takes long."""

    def __init__(self) -> None:
        super().__init__()
        self.table: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.table is None:
            self.table = torch.full((3,), 2.0)
            Time.spend(100 * MS)
        Time.spend(100 * US)
        return x * self.table


def test_a_cache_is_filled_once_and_not_in_each_timing() -> None:
    timed = performance_of(checked(Simulated(), Budget(), Cache())).paired[0]
    assert timed.eager.median == pytest.approx(1e-4)


class InPlace(nn.Module):
    """Takes as long as its argument is large, and makes it larger."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x += 1
        Time.spend(20 * US * float(x[0, 0]))
        return x * 1


class Appending(nn.Module):
    """Takes as long as its list is long, and makes it longer."""

    def forward(self, x: list[torch.Tensor]) -> torch.Tensor:
        x.append(x[0] + 1)
        Time.spend(20 * US * len(x))
        return x[-1]


@pytest.mark.parametrize(("model", "argument"), [(InPlace(), X), (Appending(), [X])])
def test_no_call_has_arguments_that_another_one_has_changed(model: nn.Module, argument: Any) -> None:
    backend = Simulated(warm=40 * US)
    outcome = check(model, (argument,), backend=backend, latency=Budget(), branches="off", n_inputs=1)
    timed = performance_of(outcome).paired[0]
    assert timed.batch == 5
    assert timed.eager.median == pytest.approx(4e-5)
    assert timed.eager.noise == 0


class Force(nn.Module):
    """Needs autograd in its forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Time.spend(100 * US)
        with_grad = x.clone().requires_grad_()
        (force,) = torch.autograd.grad((with_grad**2).sum(), with_grad)
        return force


def test_a_model_that_needs_autograd_is_timed_with_it_and_the_report_says_so() -> None:
    assert performance_of(checked(Simulated(), Budget(), Force())).mode == "autograd"
    assert performance_of(checked(Simulated(), Budget())).mode == "inference mode"


class NoInference(nn.Module):
    """Raises in inference mode, as code does that looks at version counters."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Time.spend(100 * US)
        y = x * 2
        assert y._version == 0
        return y


def test_a_model_that_cannot_run_in_inference_mode_is_timed_without_it() -> None:
    assert performance_of(checked(Simulated(), Budget(), NoInference())).mode == "no_grad"


# --- inputs ---


class BySize(nn.Module):
    """Takes 100 us a row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Time.spend(100 * US * x.shape[0])
        return x * 2


def test_the_inputs_that_the_budget_names_are_timed() -> None:
    budget = Budget("1.2x", inputs=("example", "extra_inputs[0]"))
    outcome = checked(Simulated(warm=300 * US), budget, BySize(), extra_inputs=[(torch.ones(5, 3),)])
    on_example, on_extra = performance_of(outcome).judged
    assert (on_example.input, on_example.standing) == ("example", Standing.OVER)
    assert (on_extra.input, on_extra.standing) == ("extra_inputs[0]", Standing.WITHIN)


def test_an_input_that_is_not_there_is_an_error_that_lists_those_that_are() -> None:
    with pytest.raises(UsageError, match=r"'extra_inputs\[3\]'; the check has example, extra_inputs\[0\]"):
        checked(Simulated(), Budget("1.2x", inputs=("extra_inputs[3]",)), extra_inputs=[(X,)])


# --- memory ---


class Written(nn.Module):
    """Writes to an argument that is large."""

    def forward(self, table: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        Time.spend(5 * MS)
        table[0, 0] += x[0, 0]
        return x * 2


class Read(nn.Module):
    """Reads an argument that is large."""

    def forward(self, table: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        Time.spend(5 * MS)
        return x * 2 + table[0, 0]


@pytest.mark.parametrize("model", [Written, Read])
def test_copies_of_arguments_are_no_memory_of_the_program(model: type[nn.Module]) -> None:
    table, backend = torch.zeros(2000, 1000), Simulated(warm=5 * MS)
    outcome = check(model(), (table, X), backend=backend, latency=Budget(), branches="off", n_inputs=0)
    memory = performance_of(outcome).memory
    assert memory is not None
    if memory.host is None:
        pytest.skip(memory.note)
    assert memory.host < table.nbytes / 2


# --- what cannot be told ---


def test_a_program_that_cannot_be_loaded_anew_leaves_its_budget_open() -> None:
    class Once(Simulated):
        def load_anew(self, program: Any, path: Path | None, request: ExportRequest) -> Exported:
            msg = "the file is gone"
            raise OSError(msg)

    outcome = checked(Once(), "1.2x")
    assert outcome.verdict is Verdict.INCONCLUSIVE
    assert "could not be checked, to time it raises OSError: the file is gone" in words(outcome)
    assert checked(Once(), Budget()).verdict is Verdict.EQUIVALENT


class Unusable(Simulated):
    """Its program raises when it is loaded anew and called."""

    def time_of(self, start: int, call: int) -> float:
        if start:
            msg = "illegal instruction"
            raise RuntimeError(msg)
        return super().time_of(start, call)


def test_a_program_that_raises_when_it_is_timed_is_closed() -> None:
    backend = Unusable()
    assert checked(backend, "1.2x").verdict is Verdict.INCONCLUSIVE
    assert len(backend.starts) == 2  # in inference mode, and without it
    assert backend.open == []


def test_the_outcome_survives_its_plain_form() -> None:
    outcome = checked(Simulated(warm=134 * US, size=10), "1.2x first_call=1s")
    assert Outcome.from_dict(outcome.to_dict()).performance == outcome.performance


def test_budgets_are_given_by_backend_and_device() -> None:
    slow = functools.partial(checked, Simulated(warm=134 * US))
    assert slow({"onnx": "1.2x"}).performance is None
    assert slow({"*-cpu": "1.2x"}).verdict is Verdict.OVER_BUDGET


def run_with(backend: Backend, **policy: Any) -> Outcome:
    """A check as the plugin runs it."""
    return run(Subject(Twice(), (X,)), Policy(backend=backend, branches="off", n_inputs=2, **policy), Surroundings())


def test_a_budget_that_is_only_reported_fails_nothing() -> None:
    outcome = run_with(Simulated(warm=134 * US), latency=Budget("1.2x"), enforce=False)
    assert outcome.verdict is Verdict.EQUIVALENT
    assert performance_of(outcome).judged[0].standing is Standing.OVER
    assert not performance_of(outcome).enforced


def test_what_is_left_out_is_in_the_ledger() -> None:
    backend = Simulated(warm=134 * US)
    outcome = run_with(backend, latency_left_out="--export-latency=off (budget: 1.2x)")
    assert outcome.verdict is Verdict.EQUIVALENT
    assert outcome.performance is None
    assert backend.starts == []
    assert [entry.why for entry in outcome.not_checked] == ["--export-latency=off (budget: 1.2x)"]


def test_beside_other_processes_a_ratio_is_judged_and_an_excess_in_seconds_is_not() -> None:
    outcome = run_with(Simulated(warm=134 * US), latency=Budget("1.2x", median="120us"), crowd=3)
    ratio, median = performance_of(outcome).judged
    assert ratio.standing is Standing.OVER
    assert median.standing is Standing.INCONCLUSIVE
    assert "beside 3 other test processes" in median.why
    kept = performance_of(run_with(Simulated(), latency=Budget(median="120us"), crowd=3)).judged[0]
    assert kept.standing is Standing.WITHIN


@pytest.mark.parametrize("pace", [0.99, 0.995, 0.998])
def test_times_that_never_settle_decide_nothing(pace: float) -> None:
    """Neighbours that are all alike count for few: the interval is as wide as the times are."""

    class Cooling(Simulated):
        def time_of(self, start: int, call: int) -> float:
            return 200 * MS * pace**call

    outcome = checked(Cooling(), "1.2x")
    assert outcome.verdict is Verdict.INCONCLUSIVE
