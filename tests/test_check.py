"""The engine through its public surface: verdicts that are true, and the facts that come with them."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import nn

from pytest_torchexport import (
    Cause,
    NotEquivalent,
    Outcome,
    ReferenceInvalid,
    Script,
    Stage,
    Tolerance,
    Trace,
    UsageError,
    Verdict,
    assert_equivalent,
    check,
    floats,
)
from pytest_torchexport.backends.base import Backend, Exported, ExportRequest
from pytest_torchexport.check import Policy, ReferenceStore, Subject, Surroundings, run

X = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        if y.sum() > 0:
            return torch.tanh(y)
        return -torch.tanh(y) - 1


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = nn.Buffer(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(1)
        return x * self.count


class InPlace(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return x * 2


def passes(outcome: Outcome) -> None:
    assert outcome.verdict is Verdict.EQUIVALENT, outcome.message
    assert outcome.compared > 0
    assert Outcome.from_dict(outcome.to_dict()) == outcome


class TestTruth:
    def test_a_trace_that_keeps_one_branch_is_named_with_its_line(self) -> None:
        outcome = check(Gate(), (X,))
        assert outcome.verdict is Verdict.MISMATCH
        assert outcome.cause is Cause.BAKED_BRANCH
        assert outcome.stage is Stage.COMPARE
        assert outcome.location is not None
        assert outcome.location.source == "if y.sum() > 0:"
        assert outcome.location.file == __file__
        assert any(not tried.agrees for tried in outcome.inputs)
        assert outcome.failing_input
        assert Outcome.from_dict(outcome.to_dict()) == outcome

    def test_script_keeps_both_branches(self) -> None:
        passes(check(Gate(), (X,), backend="script"))

    @pytest.mark.parametrize("backend", ["trace", "script"])
    def test_state_and_argument_mutation_start_alike_and_are_compared(self, backend: str) -> None:
        for model in (Counter(), InPlace(), nn.BatchNorm1d(4)):
            outcome = check(model, (X,), backend=backend)
            passes(outcome)
            assert outcome.compared > len(outcome.inputs), "outputs alone are not the contract"

    def test_the_user_s_model_arguments_and_random_state_are_left_alone(self) -> None:
        model, x = Counter(), X.clone()
        before = torch.get_rng_state()
        for backend in ("trace", "script"):
            check(model, (x,), backend=backend)
        assert torch.equal(model.count, torch.zeros(1))
        assert torch.equal(x, X)
        assert model.training
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_state_that_only_later_calls_show(self) -> None:
        class Previous(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.last = torch.zeros(3, 4)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                out = x + self.last
                self.last = x
                return out

        outcome = check(Previous(), (X,))
        assert (outcome.verdict, outcome.cause) == (Verdict.MISMATCH, Cause.LOST_STATE)
        assert check(Previous(), (X,), calls=2).cause is Cause.LOST_STATE

    def test_a_harmless_python_attribute_is_in_the_ledger_not_a_failure(self) -> None:
        class Logs(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                self.seen = x.mean()
                return x + 1

        outcome = check(Logs(), (X,))
        passes(outcome)
        assert any("'seen'" in entry.what for entry in outcome.not_checked)

    def test_same_seed_same_report(self) -> None:
        first, second = (check(Gate(), (X,), seed=3).to_dict() for _ in range(2))
        first.pop("durations"), second.pop("durations")
        assert first["message"] == second["message"]
        assert first["inputs"] == second["inputs"]
        assert first["leaves"] == second["leaves"]

    def test_a_module_that_raises_on_some_inputs_narrows_the_domain(self) -> None:
        class Positive(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                if bool((x < 0).any()):
                    msg = "negative"
                    raise ValueError(msg)
                return x.sqrt()

        outcome = check(Positive(), (X,))
        passes(outcome)
        assert outcome.dropped["eager raises"] > 0

    def test_an_exported_program_that_raises_where_eager_does_not(self) -> None:
        class Rows(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.stack([row * index for index, row in enumerate(x)])

        dim = torch.export.Dim("n", min=2, max=6)
        outcome = check(Rows(), (X,), dynamic_shapes={"x": {0: dim}})
        assert outcome.verdict in (Verdict.MISMATCH, Verdict.FAILED)
        assert outcome.cause in (Cause.BAKED_SHAPE, Cause.BAKED_VALUE)


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@pytest.mark.parametrize(
    "make",
    [
        lambda x: (x, x + 1),
        lambda x: (x, [x * 2, x - 1]),
        lambda x: {"a": x, "b": x * 3},
        lambda x: Pair(x, x * 2),
        lambda x: x.to(torch.complex64) * 1j,
        lambda x: x > 0.5,
        lambda x: x.argmax(),
        lambda x: x[:0],
        lambda x: x.half(),
        lambda x: x.bfloat16(),
        lambda x: x.sum(),
        lambda x: x / (x * 0),
    ],
    ids=[
        "tuple",
        "nested",
        "dict",
        "namedtuple",
        "complex",
        "bool",
        "int0d",
        "empty",
        "half",
        "bfloat16",
        "0d",
        "special",
    ],
)
def test_every_kind_of_output_has_a_rule(make: Any) -> None:
    class Returns(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return make(x * 1)

    passes(check(Returns(), (X,), backend=Trace(strict=False)))


def test_scripted_scalars_strings_and_none() -> None:
    class Mixed(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[int, float, str, None, torch.Tensor]:
            return x.size(0), float(x.sum()), "name", None, x

    passes(check(Mixed(), (X,), backend="script"))


class TestReference:
    def test_dropout_in_training_mode(self) -> None:
        outcome = check(nn.Sequential(nn.Dropout(0.5)), (X,))
        assert outcome.verdict is Verdict.INVALID
        assert "model.eval()" in outcome.message

    def test_random_numbers(self) -> None:
        outcome = check(lambda x: x + torch.rand_like(x), (X,))
        assert outcome.verdict is Verdict.INVALID
        assert "draws random numbers" in outcome.message

    def test_not_deterministic(self) -> None:
        outcome = check(lambda x: x + time.perf_counter_ns() % 1000, (X,))
        assert outcome.verdict is Verdict.INVALID
        assert "not deterministic" in outcome.message

    def test_raises_on_the_example(self) -> None:
        outcome = check(nn.Linear(5, 1), (X,))
        assert outcome.verdict is Verdict.INVALID
        assert "raises on the example" in outcome.message

    def test_output_that_cannot_be_compared(self) -> None:
        outcome = check(lambda x: {"x": x, "callback": iter([x])}, (X,))
        assert outcome.verdict is Verdict.INVALID
        assert "output['callback']" in outcome.message

    def test_forward_that_writes_a_parameter(self) -> None:
        class Writes(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(4))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                self.weight.data += 1
                return x * self.weight

        outcome = check(Writes(), (X,))
        assert outcome.verdict is Verdict.INVALID
        assert "'weight'" in outcome.message

    def test_every_generated_input_dropped(self) -> None:
        outcome = check(nn.Linear(4, 1), (X,), assume=lambda _: False)
        assert outcome.verdict is Verdict.INVALID
        assert "all" in outcome.message
        assert "assume" in outcome.message

    def test_assume_that_raises_on_what_the_search_tries_rules_it_out(self) -> None:
        class Weighted(nn.Module):
            def forward(self, x: torch.Tensor, weight: Any = None) -> torch.Tensor:
                return x if weight is None else x * weight

        outcome = check(Weighted(), (X, X), backend="trace", assume=lambda _, weight: bool(weight.sum() > -100))
        assert outcome.verdict is Verdict.EQUIVALENT

    def test_a_model_that_takes_forces_from_an_energy(self) -> None:
        class Forces(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                y = x.detach().requires_grad_()
                return torch.autograd.grad((y**3).sum(), y)[0]

        assert check(Forces(), (X,), backend="trace").verdict is not Verdict.INVALID


class TestSubjects:
    def test_functions_partials_and_bound_methods(self) -> None:
        passes(check(torch.sin, (X,)))
        passes(check(functools.partial(torch.add, alpha=2), (X, X)))
        passes(check(Gate().linear.forward, (X,)))

    @pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
    def test_modules_that_mix_scripted_and_traced_parts(self) -> None:
        class Around(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.gate = torch.jit.script(Gate())

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                result: torch.Tensor = self.gate(x) * 2
                return result

        passes(check(Around(), (X,)))
        passes(check(Around(), (X,), backend="script"))

    def test_keyword_arguments_and_constants(self) -> None:
        class Scaled(nn.Module):
            def forward(self, x: torch.Tensor, *, mask: torch.Tensor | None = None, scale: float = 1.0) -> torch.Tensor:
                return x * scale if mask is None else x * mask * scale

        outcome = check(Scaled(), (X,), {"mask": X > 0.5, "scale": 2.0})
        passes(outcome)
        assert any("scale" in entry.what for entry in outcome.not_checked)

    def test_a_declared_argument_that_the_trace_fixes_is_a_baked_value(self) -> None:
        outcome = check(lambda x, factor: x * factor, (X, 2.0), inputs={"factor": floats(1, 4)})
        assert (outcome.verdict, outcome.cause) == (Verdict.MISMATCH, Cause.BAKED_VALUE)
        passes(check(_scale, (X, 2.0), inputs={"factor": floats(1, 4)}, backend="script"))

    def test_dtype_places_a_copy(self) -> None:
        model = nn.Linear(4, 2)
        outcome = check(model, (X,), dtype="float64")
        passes(outcome)
        assert outcome.worst is not None
        assert outcome.worst.dtype == "float64"
        assert model.weight.dtype is torch.float32

    def test_gradients_of_parameters_and_inputs(self) -> None:
        for backend in ("trace", "script"):
            outcome = check(nn.Linear(4, 2), (X,), backend=backend, grad=True)
            passes(outcome)
            plain = check(nn.Linear(4, 2), (X,), backend=backend)
            assert outcome.compared == plain.compared + 3 * len(outcome.inputs)

    @pytest.mark.parametrize("backend", [Trace(freeze=True), Script(optimize_for_inference=True)], ids=lambda b: b.id)
    def test_options(self, backend: Any) -> None:
        passes(
            check(nn.Sequential(nn.Conv1d(3, 2, 1), nn.BatchNorm1d(2)).eval(), (torch.rand(2, 3, 4),), backend=backend)
        )


def _scale(x: torch.Tensor, factor: float) -> torch.Tensor:
    return x * factor


class TestToleranceAndRaising:
    def test_hand_set_tolerance_replaces_the_default(self) -> None:
        class Off(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                if torch._C._is_tracing():
                    return x * 1.001
                return x * 1.0

        assert check(Off(), (X,)).cause is Cause.NUMERIC
        passes(check(Off(), (X,), tolerance=Tolerance(rtol=0.01, atol=0.0)))

    def test_assert_equivalent_raises_by_verdict(self) -> None:
        passes(assert_equivalent(nn.Linear(4, 1), (X,)))
        with pytest.raises(NotEquivalent) as caught:
            assert_equivalent(Gate(), (X,))
        assert caught.value.outcome.cause is Cause.BAKED_BRANCH
        with pytest.raises(ReferenceInvalid):
            assert_equivalent(nn.Linear(5, 1), (X,))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check(X, (X,)), "is a Tensor, not a torch.nn.Module or a function"),  # type: ignore[arg-type]
        (lambda: check(nn.Linear, (X,)), "pass Linear()"),
        (lambda: check(nn.Linear(4, 1), {"x": X}), "as a tuple"),
        (lambda: check(nn.Linear(4, 1), (X, X)), "do not fit Linear.forward"),
        (lambda: check(nn.Linear(4, 1), (X,), backend="trac"), "Did you mean 'trace'"),
        (lambda: check(nn.Linear(4, 1), (X,), backend="trace:strct=true"), "Did you mean 'strict'"),
        (lambda: check(nn.Linear(4, 1), (X,), backend=Trace), "pass an instance"),  # type: ignore[arg-type]
        (lambda: check(nn.Linear(4, 1), (X,), device="gpu"), "Accepted: cpu, cuda"),
        (lambda: check(nn.Linear(4, 1), (X,), dtype="float"), "Accepted: float32"),
        (lambda: check(nn.Linear(4, 1), (X,), inputs={"y": floats(0, 1)}), "y"),
        (lambda: check(nn.Linear(4, 1), (X,), calls=0), "calls=0"),
        (lambda: check(nn.Linear(4, 1), (X,), extra_inputs=[3]), "extra_inputs[0]"),
        (lambda: check(nn.Linear(4, 1), (X,), extra_inputs=[(X, X)]), "extra_inputs[0]"),
        (lambda: check(nn.Linear(4, 1), (X,), assume=True), "assume is a bool"),  # type: ignore[arg-type]
        (lambda: check(nn.Linear(4, 1), (X,), tolerance=1e-3), "Tolerance(rtol"),  # type: ignore[arg-type]
        (lambda: check(nn.LazyLinear(1), (X,)), "not initialised"),
        (lambda: Tolerance(rtol=1e-3), "atol is missing"),
        (lambda: Tolerance(rtol=-1, atol=0), "rtol=-1"),
    ],
)
def test_bad_input_is_a_clear_error(call: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert message in str(caught.value)


def test_inside_inference_mode() -> None:
    model = nn.Linear(4, 2)
    for backend in ("trace", "script", "export"):
        with torch.inference_mode():
            outcome = check(model, (torch.ones(3, 4),), backend=backend)
        passes(outcome)


@dataclass(frozen=True)
class Scaled(Backend):
    """A program whose results are off by a factor."""

    name: ClassVar[str] = "scaled"

    factor: float = 1.0

    def export(self, request: ExportRequest) -> Any:
        return request.model

    def load(self, program: Any, path: Any, request: ExportRequest) -> Exported:
        return _ScaledProgram(program, self.factor)


class _ScaledProgram(Exported):
    def __init__(self, model: Any, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs) * self.factor

    @property
    def shares_module(self) -> bool:
        return True


def test_noise_that_another_item_measured_goes_on_with_an_equal_model() -> None:
    """Each item of a test makes its model anew; the parameters are equal, and other objects."""

    def item(factor: float, references: ReferenceStore) -> Outcome:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64))
        subject = Subject(model, (torch.rand(4, 64),))
        policy = Policy(backend=Scaled(factor), branches="off", n_inputs=0)
        return run(subject, policy, Surroundings(references=references))

    alone = item(1 + 2e-5, ReferenceStore())
    shared = ReferenceStore()
    assert item(1 + 5e-7, shared).verdict is Verdict.EQUIVALENT
    together = item(1 + 2e-5, shared)
    assert together.verdict is alone.verdict is Verdict.MISMATCH
    assert together.worst is not None
    assert alone.worst is not None
    assert (together.worst.draws, together.worst.score) == (alone.worst.draws, alone.worst.score)
