"""Eager's rounding noise as a second opinion: it excuses another order of adding, and no fault."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from pytest_torchexport import Tolerance, check
from pytest_torchexport.backends.base import Structure
from pytest_torchexport.compare.double import InDouble
from pytest_torchexport.compare.jitter import Jitter
from pytest_torchexport.compare.leaf import compare_leaf
from pytest_torchexport.compare.noise import RoundingNoise, TooChaotic
from pytest_torchexport.compare.opinion import Opinion, without_measurement
from pytest_torchexport.compare.records import StateView, compare_records, named_leaves
from pytest_torchexport.compare.rerun import Eager, in_double
from pytest_torchexport.compare.tolerance import Rules
from pytest_torchexport.outcome import Cause, Leaf, Verdict
from pytest_torchexport.subject.call import Call, bind
from pytest_torchexport.subject.run import Record, run
from pytest_torchexport.subject.state import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

CPU = torch.device("cpu")


class Measured:
    """A model's noise on one input, and how to ask about another result."""

    def __init__(self, model: Callable[..., Any], *args: Any, seed: int = 0) -> None:
        self.runs = 0
        snapshot = Snapshot(model)

        def rerun(mode: AbstractContextManager[Any] | None, dtype: torch.dtype | None = None) -> Record:
            self.runs += 1
            try:
                return run(model, [Call(args).place(CPU, dtype)], device=CPU, mode=mode)
            finally:
                snapshot.restore()

        parameters = model.parameters if isinstance(model, nn.Module) else tuple
        self.eager = Eager(rerun, self.leaves, parameters)
        self.expected = self.leaves(rerun(None))
        self.runs = 0
        self.noise = RoundingNoise(self.expected, seed)

    @staticmethod
    def leaves(record: Record) -> dict[str, Any]:
        assert record.error is None, record.error
        return {"output": record.outputs[0]}

    def opinion(self, actual: Any) -> Opinion:
        found = self.noise.opinion("output", self.expected["output"], actual, self.eager)
        assert found is not None
        return found

    def judge(self, actual: Any) -> Leaf:
        expected = self.expected["output"]
        return self.noise.judge(compare_leaf("output", expected, actual), expected, actual, self.eager)


def one_pass_variance(x: torch.Tensor) -> torch.Tensor:
    return (x * x).mean(-1) - x.mean(-1) ** 2


def other_order(x: torch.Tensor) -> torch.Tensor:
    """The same, summed one element after the other."""
    squares, total = torch.zeros(x.shape[:-1]), torch.zeros(x.shape[:-1])
    for column in x.unbind(-1):
        squares, total = squares + column * column, total + column
    return squares / x.shape[-1] - (total / x.shape[-1]) ** 2


def norm_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 5)).eval()


def test_another_order_of_adding_is_explained() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 300) + 10
    measured = Measured(one_pass_variance, x)
    assert not without_measurement(compare_leaf("output", one_pass_variance(x), other_order(x))).agrees
    leaf = measured.judge(other_order(x))
    assert leaf.agrees
    assert leaf.cause is None
    assert leaf.reason.startswith("explained by rounding: ")
    assert leaf.excess <= 1


def test_a_norm_of_a_constant_input_is_explained_and_its_fault_is_not() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.InstanceNorm2d(4, affine=True), nn.Conv2d(4, 6, 3)).eval()
    x = torch.full((2, 4, 9, 9), 0.7)
    measured = Measured(model, x)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double()).float()
    assert not without_measurement(compare_leaf("output", model(x).detach(), exact)).agrees
    assert measured.judge(exact).agrees
    wrong = exact.clone()
    wrong[1, 2, 3, 4] += 0.05
    assert measured.judge(wrong).cause is Cause.NUMERIC


@pytest.mark.parametrize("fault", ["weight", "bias", "eps", "gelu", "pixel"])
def test_faults_just_beyond_the_noise_are_reported(fault: str) -> None:
    model = norm_net()
    x = torch.randn(16, 8)
    measured = Measured(model, x)
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        if fault == "weight":
            wrong[3].weight *= 1.0001  # type: ignore[index]
        elif fault == "bias":
            wrong[3].bias.zero_()  # type: ignore[index]
        elif fault == "eps":
            wrong[1].eps = 1e-3  # type: ignore[index]
        elif fault == "gelu":
            wrong[2].approximate = "tanh"  # type: ignore[index]
        result = wrong(x)
        if fault == "pixel":
            result[3, 2] *= 1.001
    opinion = measured.opinion(result)
    assert not opinion.agrees
    leaf = measured.judge(result)
    assert leaf.cause is Cause.NUMERIC
    assert f"x the rounding noise of eager, limit {opinion.limit:g}x" in leaf.reason
    assert opinion.draws == (2 if opinion.score > 600 else 8), "what is far beyond the noise is settled early"


def test_the_same_seed_gives_the_same_opinion() -> None:
    model, x = norm_net(), torch.randn(16, 8)
    off = model(x).detach() * (1 + 3e-6)
    assert Measured(model, x, seed=3).opinion(off) == Measured(model, x, seed=3).opinion(off)
    assert Measured(model, x, seed=3).opinion(off).score != Measured(model, x, seed=4).opinion(off).score


def test_the_opinion_does_not_depend_on_what_was_asked_before() -> None:
    model, x = norm_net(), torch.randn(16, 8)
    eager, r = model(x).detach(), model.double()(x.double()).detach()
    model.float()
    direction = torch.where(eager > 0, 1.0, -1.0)
    for size in (4e-7, 8e-7, 1e-6, 1.2e-6, 1.6e-6):
        off = (r + direction * size).float()
        fresh, used = Measured(model, x), Measured(model, x)
        used.opinion(eager * 2)
        assert fresh.opinion(off).agrees == used.opinion(off).agrees


def test_few_runs_are_made_and_shared() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 300) + 10
    measured = Measured(one_pass_variance, x)
    measured.judge(other_order(x))
    first = measured.runs
    assert first <= 4
    measured.judge(other_order(x))
    assert measured.runs == first


def test_too_chaotic_is_neither_pass_nor_failure() -> None:
    x = torch.full((2, 4, 9, 9), 0.7)
    model = nn.GroupNorm(2, 4)
    measured = Measured(model, x)
    with pytest.raises(TooChaotic, match="too chaotic"):
        measured.judge(measured.expected["output"] * 1.5 + 1e-4)
    assert measured.judge(torch.ones(2, 4, 9, 9)).cause is Cause.NUMERIC


def test_special_values_count_only_where_noise_makes_them_too() -> None:
    torch.manual_seed(0)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def near_zero(value: torch.Tensor) -> torch.Tensor:
        # The first element's difference is rounding, its square root NaN for half of all roundings.
        off = torch.stack([value[0] * 1.1 / 1.1 - value[0], value[1], value[2], value[3]])
        return torch.sqrt(off)

    measured = Measured(near_zero, x)
    eager = measured.expected["output"]
    flipped = eager.clone()
    flipped[0] = 0.0 if eager[0].isnan() else math.nan
    assert measured.opinion(flipped).agrees
    wrong = eager.clone()
    wrong[2] = math.nan
    assert measured.opinion(wrong).score == math.inf
    assert "in none of 8 runs" in measured.judge(wrong).reason


def test_discrete_outputs_flip_only_at_near_ties() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(32, 64)
    ties = copy.deepcopy(layer)
    with torch.no_grad():
        ties.weight[1::2] = ties.weight[::2]
        ties.bias[1::2] = ties.bias[::2] + torch.randn(32) * 1e-6
    x = torch.randn(4000, 32)
    tied = Measured(lambda v: ties(v).argmax(-1), x)
    eager = tied.expected["output"]
    with torch.no_grad():
        double = copy.deepcopy(ties).double()(x.double()).argmax(-1)
    assert not torch.equal(double, eager)
    assert tied.judge(double).agrees
    clear = Measured(lambda v: layer(v).argmax(-1), x)
    wrong = clear.expected["output"].clone()
    wrong[:20] = (wrong[:20] + 1) % 64
    assert clear.judge(wrong).cause is Cause.NUMERIC


class Stateful(nn.Module):
    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("mean", torch.ones(4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        self.mean[:2] += 1
        out = torch.empty(x.shape)
        torch.mul(self.linear(x), self.mean, out=out)
        x += 1
        return out, x.argmax(-1)


@pytest.mark.parametrize("mode", [Jitter(0, 1), InDouble()], ids=["jitter", "double"])
def test_writes_in_place_arrive_and_the_parameters_stay(mode: AbstractContextManager[Any]) -> None:
    torch.manual_seed(0)
    model = Stateful()
    before = [(p._version, p.detach().clone(), p.dtype) for p in model.parameters()]
    x = torch.randn(3, 4)
    twin, plain = copy.deepcopy(model), x.clone()
    with torch.no_grad():
        expected = twin(plain)
    buffer = model.mean
    record = run(model, [Call((x,))], device=CPU, mode=mode)
    assert record.error is None
    assert model.mean is buffer
    assert buffer.dtype is torch.float32
    torch.testing.assert_close(buffer, twin.mean)
    assert record.arguments[0].args[0].dtype is torch.float32
    torch.testing.assert_close(record.arguments[0].args[0], plain)
    torch.testing.assert_close(record.outputs[0][0].float(), expected[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(record.outputs[0][1], expected[1])
    for (version, value, dtype), parameter in zip(before, model.parameters(), strict=True):
        assert parameter._version == version
        assert parameter.dtype is dtype
        assert torch.equal(parameter, value)


def test_exact_operators_and_whole_numbers_get_no_noise() -> None:
    x = torch.arange(-6.0, 6.0).view(3, 4)
    with Jitter(0, 1):
        moved = torch.cat([x, x.relu()]).t().flip(0)[..., 1:].clamp(-3, 3).contiguous()
        steps = torch.ones(5).cumsum(0) * 3 / 3
        index = (torch.arange(8) * 0.5).long()
    assert torch.equal(moved, torch.cat([x, x.relu()]).t().flip(0)[..., 1:].clamp(-3, 3))
    assert torch.equal(steps.long(), torch.arange(1, 6))
    assert torch.equal(index, torch.arange(8) // 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_noise_has_the_size_of_the_dtype(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(1000, dtype=torch.complex128 if dtype.is_complex else torch.float64).to(dtype)
    with Jitter(0, 1):
        y = x * 1.0
    real = dtype.to_real() if dtype.is_complex else dtype
    off = ((y.to(torch.complex128) - x.to(torch.complex128)) / x.to(torch.complex128)).abs()
    assert 0.1 < float(off.mean()) / torch.finfo(real).eps < 2
    assert float(off.max()) < 6 * torch.finfo(real).eps


def test_large_whole_numbers_get_noise() -> None:
    # Squares far beyond 2**23 are whole numbers, each of them rounded.
    x = torch.linspace(1e4, 1.1e4, 1000)
    with Jitter(0, 1):
        y = x * x
    assert int((y != x * x).sum()) > 500


def test_a_tensor_is_moved_alike_in_all_its_uses() -> None:
    x = nn.Parameter(torch.rand(4, 6) + 0.5)
    with torch.no_grad(), Jitter(0, 1):
        difference = x.t().mul(2).t() - x * 2
    # Independent moves of the two uses would leave more than the four roundings of a unit each.
    assert float((difference / x).abs().max().detach()) < 6 * torch.finfo(torch.float32).eps


def test_double_precision_is_that_of_a_double_model() -> None:
    model = norm_net()
    x = torch.randn(16, 8)
    record = run(lambda v: model(v.float()).float(), [Call((x.double(),))], device=CPU, mode=InDouble())
    assert record.error is None
    expected = copy.deepcopy(model).double()(x.double()).detach()
    torch.testing.assert_close(record.outputs[0], expected, rtol=1e-12, atol=1e-12)


def test_recurrent_layers_have_a_double_form() -> None:
    torch.manual_seed(0)
    model, x = nn.GRU(4, 8), torch.randn(5, 2, 4)
    measured = Measured(lambda v: model(v)[0], x)
    measured.eager = Eager(measured.eager.rerun, measured.leaves, model.parameters)
    opinion = measured.opinion(measured.expected["output"])
    assert opinion.centred
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_without_a_double_form_eager_is_the_centre() -> None:
    def bits(x: torch.Tensor) -> torch.Tensor:
        return (x.view(torch.int32) + 0).view(torch.float32) * 1.7

    x = torch.randn(64)
    measured = Measured(bits, x)
    opinion = measured.opinion(bits(x) * (1 + 1e-7))
    assert opinion.agrees
    assert not opinion.centred
    assert "view(dtype)" in (measured.noise.without_reference or "")
    assert not measured.opinion(bits(x) * (1 + 1e-4)).agrees


def test_gradients_have_noise_and_a_reference() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    call = Call((torch.randn(4, 8),))

    def rerun(mode: AbstractContextManager[Any] | None, dtype: torch.dtype | None = None) -> Record:
        parameters = dict(model.named_parameters())
        return run(model, [call.place(CPU, dtype)], device=CPU, parameters=parameters, names=["x"], mode=mode)

    plain, noisy = rerun(None), rerun(Jitter(0, 1))
    double, _ = in_double(Eager(rerun, Measured.leaves, model.parameters))
    for record in (noisy, double):
        assert record.error is None
        assert record.gradients.keys() == plain.gradients.keys()
        for name, gradient in plain.gradients.items():
            torch.testing.assert_close(record.gradients[name].float(), gradient, rtol=1e-4, atol=1e-5)
    assert double.gradients["gradient of x"].dtype is torch.float64
    assert any(not torch.equal(noisy.gradients[name], plain.gradients[name]) for name in plain.gradients)


def test_a_condition_in_the_model_is_seen_through() -> None:
    def either(x: torch.Tensor) -> Any:
        return torch.cond(x.sum() > 0, one_pass_variance, lambda v: v.sum(-1) * 2, (x,))

    torch.manual_seed(0)
    x = torch.randn(16, 300) + 10
    measured = Measured(either, x)
    assert measured.judge(other_order(x)).agrees
    assert measured.opinion(other_order(x)).centred
    assert not measured.judge(other_order(x) * 1.001).agrees


def test_no_opinion_where_the_noise_does_not_reach() -> None:
    sparse = torch.eye(8).to_sparse()
    x = torch.randn(8, 8)
    measured = Measured(lambda v: torch.sparse.mm(sparse, v) * 1.5, x)
    off = measured.expected["output"] * (1 + 1e-4)
    leaf = measured.judge(off)
    assert leaf.cause is Cause.NUMERIC
    assert "noise" not in leaf.reason


class Remembering(Stateful):
    def forward(self, x: torch.Tensor, counts: list[torch.Tensor]) -> dict[str, Any]:  # type: ignore[override]
        self.mean.mul_(0.9)
        counts[0] += 1
        return {"y": self.linear(x) * self.mean, "n": 3, "parts": (x, None)}


@pytest.mark.parametrize("count", [1, 2])
def test_leaves_have_the_names_of_the_comparison(count: int) -> None:
    model = Remembering()
    snapshot = Snapshot(model)
    calls = tuple(Call((torch.randn(3, 4), [torch.zeros(3, dtype=torch.int64)])) for _ in range(count))
    record = run(model, calls, device=CPU, parameters=dict(model.named_parameters()), names=["x", "counts"])
    assert record.error is None
    record.state = snapshot.changes()
    comparison = compare_records(
        record,
        record,
        calls,
        structure=Structure.SAME,
        states=StateView(snapshot.values, snapshot.values, frozenset({"mean"})),
        names=lambda call: bind(model, call),
        rules=Rules(),
    )
    named = named_leaves(record, count, snapshot.values, lambda call: bind(model, call))
    assert {leaf.path for leaf in comparison.leaves} <= named.keys()
    kinds = " ".join(leaf.path for leaf in comparison.leaves)
    assert all(kind in kinds for kind in ("output['y']", "argument counts[0]", "state mean", "gradient of x"))


class OnePass(nn.Module):
    def __init__(self, *, wrong: bool = False) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch._C._get_tracing_state() is not None:
            scale = 1.001 if self.wrong else 1.0
            parts = x.flip(-1).reshape(x.shape[0], -1, 5)
            return scale * ((parts * parts).sum(1).sum(-1) / 300 - (parts.sum(1).sum(-1) / 300) ** 2)
        return one_pass_variance(x)


def test_the_engine_asks_for_a_second_opinion() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 300) + 10
    outcome = check(OnePass(), (x,), n_inputs=0)
    assert outcome.verdict is Verdict.EQUIVALENT
    assert outcome.worst is not None
    assert "explained by rounding" in outcome.worst.reason
    set_by_hand = check(OnePass(), (x,), n_inputs=0, tolerance=Tolerance(rtol=1e-7, atol=1e-9))
    assert set_by_hand.verdict is Verdict.MISMATCH
    fault = check(OnePass(wrong=True), (x,), n_inputs=0)
    assert fault.verdict is Verdict.MISMATCH
    assert "the rounding noise" in fault.message


def test_the_engine_calls_a_chaotic_example_invalid() -> None:
    torch.manual_seed(0)
    outcome = check(OnePass(), (torch.randn(16, 300) + 1000,), n_inputs=0)
    assert outcome.verdict is Verdict.INVALID
    assert "too chaotic" in outcome.message


def test_attention_that_asks_for_dtypes_has_a_double_form() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    with torch.no_grad():
        measured = Measured(lambda x: attention(x, x, x, need_weights=False)[0], torch.randn(2, 8, 16))
        measured.eager = dataclasses.replace(measured.eager, parameters=attention.parameters)
        opinion = measured.opinion(measured.expected["output"] * (1 + 1e-6))
    assert opinion.centred
    assert measured.noise.without_reference is None


class Chosen(nn.Module):
    """One of two nearly equal weights, chosen by a number that is zero but for rounding."""

    def __init__(self, off: float) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))
        self.other = nn.Parameter((self.one * (1 + 1e-3)).detach().clone())
        self.off = off

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = (x * 1.1).sum() - (x * 1.1).flip(0).sum()
        if torch._C._is_tracing():
            return x @ self.other * (1 + self.off)
        return x @ (self.one if gate > 0 else self.other)


@pytest.mark.parametrize("seed", range(4))
def test_runs_on_another_branch_are_no_noise(seed: int) -> None:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed))
    outcome = check(Chosen(8e-4), (x,), n_inputs=0, branches="off")
    assert outcome.verdict in (Verdict.INVALID, Verdict.MISMATCH)
    assert outcome.verdict is Verdict.MISMATCH or "rounding decides which branch" in outcome.message


class Residual(nn.Module):
    """Uses a Python float that is rounding noise."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(8)])
        for layer in self.layers:
            nn.init.normal_(layer[0].weight, std=0.4)  # type: ignore[index]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch._C._is_tracing():
            return torch.cat([self.layers(x[i : i + 1]) for i in range(len(x))])
        y = self.layers(x)
        return torch.add(y, (y - y.mean()).mean().item() * 1e-6)


def test_a_float_that_is_noise_is_no_other_branch() -> None:
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    outcome = check(Residual(), (x,), n_inputs=0, branches="off")
    assert outcome.verdict is Verdict.EQUIVALENT, outcome.message
    assert outcome.worst is not None
    assert outcome.worst.reference


class Masked(nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        exact = torch._C._is_tracing()
        scores = (q.double() @ k.double().mT).float() if exact else q @ k.mT
        return scores.masked_fill(torch.ones(16, 16).triu(1) > 0, torch.finfo(scores.dtype).min)


def test_the_smallest_number_of_a_dtype_stands_for_infinity() -> None:
    torch.manual_seed(0)
    outcome = check(Masked(), (torch.randn(2, 16, 64) * 10, torch.randn(2, 16, 64) * 10), n_inputs=0, branches="off")
    assert outcome.verdict is Verdict.EQUIVALENT, outcome.message


class HalfBody(nn.Module):
    """A body in bfloat16 and a head in float32, which is summed otherwise where it is traced."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(4)]).bfloat16()
        self.head = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.body(x.bfloat16()).float()
        if torch._C._is_tracing():
            return torch.add((self.head.weight.double() @ z.double().T).T.float(), self.head.bias)
        return self.head(z)  # type: ignore[no-any-return]


def test_a_body_in_half_precision_is_not_chaotic_under_a_head_in_float32() -> None:
    outcome = check(HalfBody(), (torch.randn(16, 64),), n_inputs=0, branches="off")
    assert outcome.verdict is Verdict.EQUIVALENT, outcome.message


class Together(nn.Module):
    """A large and a small number in one short row; the small one is off on request."""

    def __init__(self, off: float) -> None:
        super().__init__()
        self.off = off

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        loss = (x.tanh() ** 2).mean()
        if torch._C._is_tracing():
            loss = (x.double().tanh() ** 2).mean().float() * (1 + self.off)
        return torch.stack([x.exp().sum() * 1e4, loss, x.max()])


def test_a_small_number_beside_a_large_one_has_a_noise_of_its_own() -> None:
    x = torch.randn(400, generator=torch.Generator().manual_seed(0))
    assert check(Together(0.0), (x,), n_inputs=3, branches="off").verdict is Verdict.EQUIVALENT
    assert check(Together(1e-3), (x,), n_inputs=3, branches="off").verdict is Verdict.MISMATCH
