"""Which decision is named: on real traces, and on programs that bake, or break, exactly what their code says."""

from __future__ import annotations

import functools
import inspect
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch import nn
from torch.export import Dim

from pytest_torchexport import Backend, Cause, Exported, ExportRequest, Location, Outcome, Suspicion, Verdict
from pytest_torchexport import check as check_fully
from pytest_torchexport.branches.replay import Replay
from pytest_torchexport.diagnose import baked
from pytest_torchexport.subject.state import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

check = functools.partial(check_fully, search_budget=80)
BRANCH, VALUE, SHAPE = Cause.BAKED_BRANCH, Cause.BAKED_VALUE, Cause.BAKED_SHAPE


def vector(*shape: int, shift: float = 0.0) -> torch.Tensor:
    return torch.rand(shape or (2, 4), generator=torch.Generator().manual_seed(1)) + shift


@dataclass(frozen=True)
class Known:
    """A model, whose line with `# HERE` a trace bakes, and what kind of decision that is."""

    make: Callable[[], Any]
    cause: Cause = BRANCH
    args: tuple[Any, ...] = field(default_factory=lambda: (vector(),))
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return getattr(self.make, "__name__", "model")

    @property
    def lines(self) -> list[str]:
        return [line.strip() for line in inspect.getsource(self.make).splitlines() if "# HERE" in line]


ROWS = {"dynamic_shapes": {"x": {0: Dim("rows", min=1, max=12)}}}


class Selected(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.where(x.mean() > 3.0, x * 2, x)
        if x.mean() > 3.0:  # HERE
            y = y + 1
        return y


class SelectedAfter(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.amax() > 3.0:  # HERE
            x = x - 1
        return torch.where(x.amax() > 2.5, x.cos(), x)


class Nested(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > -1e30:
            x = x + 1
            if x.std() > 5:  # HERE
                return x / x.std()
        return x * 3


class Outer(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:  # HERE
            if x.sum() > -1:
                return x * 2
            return x * 5
        return x * 3


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        peak = x.abs().max().item()  # HERE
        return x / (peak + 1)


class Arithmetic(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        level = 20 * math.log10(1 + float(x.pow(2).mean()))  # HERE
        return x * level


class ScaledNotGated(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        peak = x.abs().max().item()  # HERE
        if peak > 1e9:
            return x
        return x * peak


class GatedByNumber(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        peak = x.abs().max().item()
        if peak > 3:  # HERE
            return x - 1
        return x


class Counted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(int(x.abs().sum()) % 7):  # HERE
            x = torch.tanh(x + 1)
        return x


class Reversed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels = 1 + int(x.abs().max() > 2) + int(x.abs().max() > 4)
        for level in reversed(range(levels)):  # HERE
            x = x * (level + 2)
        return x


class Settles(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = 0
        while x.norm() > 1 and steps < 9:  # HERE
            x, steps = x * 0.6, steps + 1
        return x


class Stops(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(8):
            x = x / 2
            if x.abs().max() < 0.3:  # HERE
                break
        return x


class Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scales = (1.0, 2.0, 3.0, 4.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scales[int(x.sum(0).argmax())]  # HERE


class Sized(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > 4:  # HERE
            return x * 2
        return x + 1


class Unrolled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = x.sum(0)
        for row in range(x.shape[0]):  # HERE
            total = total + row
        return total


class Measured(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / math.sqrt(int(x.shape[0]))  # HERE


class Lengthy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if len(x) % 2 else x  # HERE


class ShapeThenValue(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.reshape(x.shape[0] * x.shape[1])
        if y.mean() > 3:  # HERE
            y = -y
        return y


class Ternary(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sign = 1 if x.mean() > -3 else -1  # HERE
        return x * sign


class Compound(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.min() > -9 and x.max() < 5:  # HERE
            return x
        return x.clamp(-9, 5)


class Either(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.min() < -1 or x.max() > 3:  # HERE
            return x.clamp(-1, 3)
        return x


class Negated(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (x > 3).any():  # HERE
            return x
        return x.sin()


class Filtered(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = [row for row in x.unbind(0) if row.sum() > 0]  # HERE
        return torch.stack(rows).sum(0) if rows else torch.zeros(4)


class Matched(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        match int(x.abs().mean() > 2):
            case 0:  # HERE
                return x
            case _:
                return x * 3


class Chained(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if -2 < x.mean() < 2:  # HERE
            return x * 2
        return x


class Factored(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            return torch.linalg.cholesky(x @ x.T + x.sum() * torch.eye(2))
        except RuntimeError:  # HERE
            return torch.zeros(2, 2)


def helper(x: torch.Tensor) -> torch.Tensor:
    return x.relu() if x.mean() > -2 else x  # HERE


class Helped(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return helper(x) + 1


class Inside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Chained()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) - 1


class Array(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = x.detach().numpy()  # HERE
        return x * float(values.max())


class Listed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *_ = x[0].tolist()  # HERE
        return x * first


class Flagged(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        large = bool(x.mean() > 3)
        if large:  # HERE
            return x / 10
        return x


class Largest(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * max(x[0, 0], x[1, 1])  # HERE


def doubled(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(function)
    def twice(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return function(self, x) * 2

    return twice


class Decorated(nn.Module):
    @doubled
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.mean() > 3:  # HERE
            return x.exp()
        return x


class Warmed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add_(1)
        if self.seen > 2:  # HERE
            return x * self.seen
        return x


KNOWN = [
    *map(Known, (Selected, SelectedAfter, Nested, Outer, GatedByNumber, Settles, Stops, Ternary, Compound, Either)),
    *map(Known, (Negated, Filtered, Matched, Chained, Flagged, Largest, Decorated, Warmed)),
    *(Known(make, VALUE) for make in (Scaled, Arithmetic, ScaledNotGated, Counted, Reversed, Routed, Array, Listed)),
    *(Known(make, SHAPE, (vector(3, 4),), ROWS) for make in (Sized, Unrolled, Measured, Lengthy)),
    Known(ShapeThenValue, BRANCH, (vector(3, 4),), ROWS),
    Known(Factored, BRANCH, (vector(2, 2),)),
]


@pytest.mark.parametrize("known", KNOWN, ids=str)
def test_a_trace_is_told_the_line_that_it_baked(known: Known) -> None:
    outcome = check(known.make(), known.args, **known.options)
    assert (outcome.cause, named(outcome)) == (known.cause, known.lines[0]), outcome.message
    assert is_proven(outcome), outcome.message


@pytest.mark.parametrize(("make", "at"), [(Helped, helper), (Inside, Chained)])
def test_the_line_may_be_in_a_helper_or_a_submodule(make: Callable[[], nn.Module], at: Callable[..., Any]) -> None:
    outcome = check(make(), (vector(),))
    assert (outcome.cause, named(outcome)) == (BRANCH, Known(at).lines[0])
    assert is_proven(outcome)


class Behind(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.mean() > 3:  # HERE
            return x * 2
        if x.amax() > 2:
            return x - 1
        return x


def test_decisions_behind_the_one_that_is_held_go_as_in_the_example() -> None:
    outcome = check(Behind(), (vector(),), extra_inputs=[(vector(shift=4),)], n_inputs=0, branches="observe")
    assert (outcome.cause, named(outcome)) == (BRANCH, Known(Behind).lines[0])
    assert is_proven(outcome)


def named(outcome: Outcome) -> str | None:
    return outcome.location.source if outcome.location is not None else None


def is_proven(outcome: Outcome) -> bool:
    return any("what eager" in fact.text for fact in outcome.evidence)


class TwoGates(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.mean() > 3:
            x = x * 2
        if x.mean() > 3:
            x = x + 1
        return x


def test_two_decisions_that_are_baked_together_are_both_told() -> None:
    outcome = check(TwoGates(), (vector(),))
    assert named(outcome) == "if x.mean() > 3:"
    first = [fact for fact in outcome.evidence if "false in the example, true on this input" in fact.text]
    assert [fact.location.line - outcome.location.line for fact in first if fact.location and outcome.location] == [
        0,
        2,
    ]
    assert "these 2 are forced together" in outcome.message


class Independent(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        if x[0].mean() > 3:
            y = y * 2
        if x[1].mean() < -3:
            y = y + 1
        return y


def test_other_inputs_tell_of_other_decisions() -> None:
    outcome = check(Independent(), (vector(),))
    texts = " ".join(fact.text for fact in outcome.evidence)
    assert "x[0].mean() > 3" in texts
    assert "x[1].mean() < -3" in texts
    assert "baked as well" in texts


# --- programs whose fault is known, because it is written down -------------------------------------------------------


class Runs(Exported):
    def __init__(self, function: Callable[..., Any], state: dict[str, Any] | None, suspects: list[Suspicion]) -> None:
        super().__init__()
        self._function, self._state, self.suspicions = function, state, suspects

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def read_state(self) -> dict[str, Any] | None:
        return self._state


class Fake(Backend):
    """Runs a function in place of an exported program."""

    name: ClassVar[str] = "fake"

    def __init__(
        self,
        function: Callable[..., Any],
        state: dict[str, Any] | None = None,
        suspicions: Sequence[Suspicion] = (),
    ) -> None:
        self._function, self._state, self._suspicions = function, state, list(suspicions)

    def export(self, request: ExportRequest) -> Any:
        return None

    def load(self, program: Any, path: Path | None, request: ExportRequest) -> Exported:
        return Runs(self._function, self._state, self._suspicions)


class Twice(nn.Module):
    """Two decisions that always go the same way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.mean() > 3:
            x = x * 2
        if x.mean() > 3.0:
            x = x + 1
        return x


@pytest.mark.parametrize(
    ("program", "line"),
    [
        (lambda x: x + 1 if x.mean() > 3 else x, "if x.mean() > 3:"),
        (lambda x: x * 2 if x.mean() > 3 else x, "if x.mean() > 3.0:"),
    ],
)
def test_of_decisions_that_go_together_the_one_that_is_baked(program: Callable[..., Any], line: str) -> None:
    outcome = check(Twice(), (vector(),), backend=Fake(program))
    assert (outcome.cause, named(outcome)) == (BRANCH, line)
    assert is_proven(outcome)


class Gate(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.mean() > 3:
            return x * 2
        return x.sin()


def test_a_fault_in_the_other_branch_is_not_the_decision() -> None:
    def wrong(x: torch.Tensor) -> torch.Tensor:
        return x * 2.01 if x.mean() > 3 else x.sin()

    outcome = check(Gate(), (vector(),), backend=Fake(wrong))
    assert (outcome.verdict, outcome.cause, outcome.location) == (Verdict.MISMATCH, Cause.NUMERIC, None)


def test_a_program_that_raises_in_the_other_branch_has_not_baked_the_decision() -> None:
    def wrong(x: torch.Tensor) -> torch.Tensor:
        if x.mean() > 3:
            msg = "no kernel for this"
            raise RuntimeError(msg)
        return x.sin()

    outcome = check(Gate(), (vector(),), backend=Fake(wrong))
    assert (outcome.verdict, outcome.cause, outcome.location) == (Verdict.FAILED, Cause.EXCEPTION, None)


def test_a_fault_on_large_inputs_is_not_the_decision_that_they_take() -> None:
    def wrong(x: torch.Tensor) -> torch.Tensor:
        return (x * 2 if x.mean() > 3 else x.sin()).clamp(max=4)

    outcome = check(Gate(), (vector(),), backend=Fake(wrong))
    assert (outcome.cause, outcome.location) == (Cause.NUMERIC, None)


def warning(make: Callable[..., Any], text: str) -> Suspicion:
    """What a tracer says of a line."""
    lines, first = inspect.getsourcelines(make)
    number = next(number for number, line in enumerate(lines, first) if text in line)
    return Suspicion(BRANCH, "a branch", Location(str(Path(__file__).absolute()), number, ""))


def test_a_warned_line_is_not_to_blame_where_the_failing_input_goes_as_the_example() -> None:
    def wrong(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.mean() > 3 else x.sin() + (x.min() < -0.5) * 0.1

    warned = [warning(Gate, "x.mean() > 3")]
    extra = [(vector(shift=-1),), (vector(shift=-1.1),)]
    outcome = check(Gate(), (vector(),), backend=Fake(wrong, None, warned), extra_inputs=extra, n_inputs=0)
    assert (outcome.cause, outcome.location) == (Cause.NUMERIC, None)


def test_a_warned_line_is_to_blame_where_nothing_was_proven() -> None:
    def wrong(x: torch.Tensor) -> torch.Tensor:
        return x.sin() + (x.mean() > 3) * 0.1

    outcome = check(Gate(), (vector(),), backend=Fake(wrong, None, [warning(Gate, "x.mean() > 3")]))
    assert (outcome.cause, named(outcome)) == (BRANCH, "")
    assert not is_proven(outcome)


def test_where_the_example_fails_nothing_is_baked() -> None:
    outcome = check(Gate(), (vector(),), backend=Fake(lambda x: x.cos()))
    assert (outcome.cause, outcome.location) == (Cause.NUMERIC, None)


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2 if x.mean() > 3 else x
        y = y + self.mean
        self.mean.add_(y.mean())
        return y


def test_a_lost_buffer_is_not_the_decision() -> None:
    outcome = check(Remembers(), (vector(),), backend=Fake(lambda x: x * 2 if x.mean() > 3 else x))
    assert (outcome.cause, outcome.location) == (Cause.LOST_STATE, None)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return x * 2 if self.seen > 2 else x


def test_a_decision_on_state_that_the_program_has_not_is_lost_state() -> None:
    outcome = check(Counts(), (vector(),))
    assert (outcome.cause, outcome.location) == (Cause.LOST_STATE, None)


class Adapts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.mean() > 3:  # HERE
            self.mean.add_(x.mean())
        return x + self.mean


def test_state_that_is_lost_in_the_branch_alone_is_a_baked_branch() -> None:
    outcome = check(Adapts(), (vector(),))
    assert (outcome.cause, named(outcome)) == (BRANCH, Known(Adapts).lines[0])
    assert is_proven(outcome)


def test_state_that_is_lost_though_the_branch_is_taken_is_lost() -> None:
    kept = {"mean": torch.zeros(())}

    def wrong(x: torch.Tensor) -> torch.Tensor:
        return x + x.mean() if x.mean() > 3 else x

    outcome = check(Adapts(), (vector(),), backend=Fake(wrong, kept))
    assert (outcome.cause, outcome.location) == (Cause.LOST_STATE, None)


# --- what cannot be replayed ------------------------------------------------------------------------------------------


def test_sizes_that_an_export_refuses_are_likely_those_of_a_decision() -> None:
    outcome = check(Sized(), (vector(3, 4),), backend="export", dynamic_shapes={"x": {0: Dim.AUTO}})
    assert (outcome.verdict, outcome.cause, named(outcome)) == (Verdict.FAILED, SHAPE, Known(Sized).lines[0])
    assert not is_proven(outcome)
    assert "likely, not proven" in outcome.message


class Checked(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.mean() > 3:  # HERE
            return x.abs().sqrt()
        assert x.mean() < 3.5, "out of range"
        return x * 2


def test_a_branch_that_eager_cannot_take_on_the_input_is_likely() -> None:
    outcome = check(Checked(), (vector(),), extra_inputs=[(vector(shift=k),) for k in (4.0, 5.0)])
    assert (outcome.cause, named(outcome)) == (BRANCH, Known(Checked).lines[0])


# --- it leaves no trace -----------------------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was() -> None:
    model = Adapts()
    code, before = Adapts.forward.__code__, Snapshot(model)
    assert check(model, (vector(),)).failed
    assert Adapts.forward.__code__ is code
    assert not before.changes()


def test_nothing_is_replayed_where_branches_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    monkeypatch.setattr(baked, "Replay", lambda *_: runs.append(1))
    outcome = check(Gate(), (vector(),), extra_inputs=[(vector(shift=4),)], branches="off")
    assert outcome.failed
    assert not runs


def test_a_replay_that_cannot_be_made_hides_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baked, "Replay", lambda *_: 1 / 0)
    outcome = check(Gate(), (vector(),))
    assert (outcome.verdict, named(outcome)) == (Verdict.MISMATCH, "if x.mean() > 3:")
    assert not is_proven(outcome)


def test_a_pass_costs_no_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baked, "Replay", lambda *_: pytest.fail("a replay"))
    assert check(Gate(), (vector(),), backend="script").verdict is Verdict.EQUIVALENT


def test_replays_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []

    class Counting(Replay):
        def __init__(self, model: Any, is_users: Any, hold: Any = None) -> None:
            held.append(bool(hold))
            super().__init__(model, is_users, hold)

    monkeypatch.setattr(baked, "Replay", Counting)

    class Many(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for index in range(8):
                for other in range(4):
                    if x[index, other] > 3:
                        x = x + 1
            return x * x.mean().item()

    wrong = Fake(lambda x: x * x.mean() + (x.abs().max() > 2))
    assert check(Many(), (vector(8, 4),), backend=wrong).failed
    assert 0 < sum(held) <= baked.RUNS
