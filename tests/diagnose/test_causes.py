"""The cause that is named, and its evidence: faults that exporters have, and planted ones of every kind, by backend."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional as F

from pytest_torchexport import (
    Aoti,
    Backend,
    Cause,
    Compile,
    Export,
    Exported,
    ExportRequest,
    Onnx,
    OnnxTorchScript,
    Outcome,
    Script,
    Trace,
    Verdict,
    check,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Change = "Callable[[Any], Any]"


def planted(backend: Backend, change: Callable[[Any], Any]) -> Backend:
    """The backend, which exports what `change` makes of a copy of the model."""

    def export(self: Any, request: ExportRequest) -> Any:
        return type(backend).export(self, dataclasses.replace(request, model=change(copy.deepcopy(request.model))))

    made: Any = type("Planted", (type(backend),), {"export": export, "name": backend.name})
    return made(**{one.name: getattr(backend, one.name) for one in dataclasses.fields(backend) if one.init})  # type: ignore[arg-type]


class Wrong(Backend):
    """Runs what `change` makes of a copy of the model: a program that has a state and parameters of its own."""

    name: ClassVar[str] = "wrong"
    gradients: ClassVar[bool] = True

    def __init__(self, change: Callable[[Any], Any]) -> None:
        self.change = change

    def export(self, request: ExportRequest) -> Any:
        return self.change(copy.deepcopy(request.model))

    def load(self, program: Any, path: Path | None, request: ExportRequest) -> Exported:
        return _Ready(program)


class _Ready(Exported):
    def __init__(self, program: Any) -> None:
        super().__init__()
        self._program = program

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._program(*args, **kwargs)

    def read_state(self) -> dict[str, Any] | None:
        return dict(self._program.named_buffers()) if isinstance(self._program, nn.Module) else {}

    def parameters(self) -> dict[str, torch.Tensor] | None:
        return dict(self._program.named_parameters()) if isinstance(self._program, nn.Module) else None


class Around(nn.Module):
    """The model, and something done to its outputs, or to its arguments before."""

    def __init__(
        self, model: nn.Module, after: Callable[[Any], Any] = lambda y: y, before: Callable[..., Any] = lambda *a: a
    ) -> None:
        super().__init__()
        self.model, self.after, self.before = model, after, before

    def forward(self, x: torch.Tensor, *more: torch.Tensor) -> Any:
        return self.after(self.model(*self.before(x, *more)))


def after(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda model: Around(model, change)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.lin(x)
        return y.tanh(), y.sigmoid()


class Swapped(Two):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.lin(x)
        return y.sigmoid(), y.tanh()


class Flags(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (x > 0.5).all(), x.argmax()


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.BatchNorm1d(6), nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x).tanh())


def second_training(model: Norms) -> nn.Module:
    model.two.train()
    return model


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.lin(x)
        return {"logits": y, "best": y.argmax(-1), "hidden": y.relu()}


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.bn, self.drop = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.bn(self.lin(x)))


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


def reflecting(model: Conv) -> Conv:
    model.conv.padding_mode = "reflect"
    model.conv._reversed_padding_repeated_twice = [1, 1, 1, 1]
    return model


class Ema(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))
        self.lin = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return self.lin(x) + self.mean


class NoEma(Ema):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin(x) + (self.mean * 0.9 + x.mean(0) * 0.1)


class LateEma(Ema):
    """Answers with the state before the call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.lin(x) + self.mean
        self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return y


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        return x * self.steps


class Mutates(nn.Module):
    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        memory.add_(x)
        return memory * 2


class MutatesNot(nn.Module):
    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        return (memory + x) * 2


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x * 2
        return x - 1


class Number(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * float(x.max())


class Rows(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / int(x.shape[0])


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.lin(x) * scale


class Logarithm(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(x - 0.5) + 1


class Exponential(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.exp(x * 12) / 1e5


class InHalf(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.exp((x * 12).half()).float() / 1e5


class LinearInHalf(nn.Module):
    def __init__(self, model: Any, dtype: torch.dtype = torch.float16) -> None:
        super().__init__()
        self.lin, self.dtype = model.lin, dtype

    def forward(self, x: torch.Tensor) -> Any:
        y = F.linear(x.to(self.dtype), self.lin.weight.to(self.dtype), self.lin.bias.to(self.dtype)).float()
        return y.tanh(), y.sigmoid()


class Integers(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 3_000_000


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.square().mean()


class Noisy(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> Any:
        return tuple(y + 0.1 * torch.rand_like(y) for y in self.model(x))


class Remembers(nn.Module):
    """Something of the last input is in the next output, and no state tells it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.last = model, [0.0]

    def forward(self, x: torch.Tensor) -> Any:
        before, self.last[0] = self.last[0], float(x.detach().mean())
        return tuple(y + before for y in self.model(x))


class Raises(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        msg = "kernel launch failed"
        raise RuntimeError(msg)


class Cut(Two):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.lin(x)
        return y.tanh(), y.detach().sigmoid()


def into(kind: type[nn.Module]) -> Callable[[Any], Any]:
    """A change to another class with the same attributes."""

    def change(model: Any) -> Any:
        model.__class__ = kind
        return model

    return change


def training(model: nn.Module) -> nn.Module:
    return model.train()


def norms_training(model: Norm) -> nn.Module:
    model.bn.train()
    return model


def with_weight(model: Any) -> Any:
    with torch.no_grad():
        model.lin.weight[2, 3] += 0.01
    return model


def in_half(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    return model


def with_mean(model: Any) -> Any:
    with torch.no_grad():
        model.mean += 0.3
    return model


def one_channel(y: torch.Tensor) -> torch.Tensor:
    factor = torch.ones(4, 1, 1)
    factor[2] = 1.01
    return y * factor


def one_element(y: torch.Tensor) -> torch.Tensor:
    extra = torch.zeros(y.shape[1:])
    extra[1, 2, 3] = 0.5
    return y + extra


X = torch.rand(3, 6, generator=torch.Generator().manual_seed(0)) + 0.6
IMAGE = torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
BRANCH, VALUE, SHAPE = Cause.BAKED_BRANCH, Cause.BAKED_VALUE, Cause.BAKED_SHAPE
STATE, MUTATION = Cause.LOST_STATE, Cause.LOST_MUTATION


@dataclass(frozen=True)
class Divergence:
    """A model, what exports it wrongly, and what is to be said of it."""

    name: str
    make: Callable[[], Any]
    backend: Backend
    cause: Cause
    says: str
    args: tuple[Any, ...] = (X,)
    options: dict[str, Any] = field(default_factory=dict)
    verdict: Verdict = Verdict.MISMATCH


def case(*known: Any, slow: bool = False, **more: Any) -> Any:
    one = Divergence(*known, **more)
    return pytest.param(one, id=f"{one.backend.name}-{one.name}", marks=[pytest.mark.slow] if slow else [])


TWICE = {"calls": 3}
DIVERGENCES = [
    # What exporters do.
    case("branch", Branch, Trace(), BRANCH, "`x.sum() > 0`"),
    case("branch", Branch, OnnxTorchScript(), BRANCH, "`x.sum() > 0`", slow=True),
    case("number", Number, Trace(), VALUE, "float(x.max())"),
    case(
        "size",
        Rows,
        Trace(),
        SHAPE,
        "`x.shape`: [3, 6] in the example",
        options={"dynamic_shapes": {"x": {0: Dim("rows", min=1, max=9)}}},
    ),
    case("buffer", Ema, OnnxTorchScript(), STATE, "finds 'mean' as one call", options=TWICE, slow=True),
    case("buffer", Ema, Onnx(), STATE, "finds 'mean' as it was at first", options=TWICE, slow=True),
    case("buffer-once", Ema, Onnx(), STATE, "state mean: eager changes it", slow=True),
    case("counter", Counter, Trace(), STATE, "'steps'", options=TWICE),
    case("counter", Counter, Export(), STATE, "'steps' as", options=TWICE),
    case("argument", Mutates, Onnx(), MUTATION, "argument memory: eager changes it", args=(X, X + 1), slow=True),
    case("argument", Mutates, OnnxTorchScript(), MUTATION, "argument memory", args=(X, X + 1), slow=True),
    # Planted.
    *(
        case(
            "swapped",
            Two,
            planted(backend, into(Swapped)),
            Cause.STRUCTURE,
            "output[0] and output[1] are swapped",
            slow=slow,
        )
        for backend, slow in (
            *((Trace(), False), (Script(), False), (Export(), False)),
            *((Onnx(), True), (OnnxTorchScript(), True), (Compile(), True), (Aoti(), True)),
        )
    ),
    *(
        case("batch-norm", Norm, planted(backend, norms_training), Cause.NUMERIC, "in training mode", slow=slow)
        for backend, slow in ((Trace(), False), (Export(), False), (Compile(), True))
    ),
    case(
        "dropout",
        lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)),
        planted(Trace(), training),
        Cause.NUMERIC,
        "in training mode",
    ),
    *(
        case("weight", Two, planted(backend, with_weight), Cause.NUMERIC, said, slow=slow)
        for backend, said, slow in (
            (Trace(), "weights are not eager's: 'lin.weight' (off by up to 0.01)", False),
            (Script(), "weights are not eager's: 'lin.weight'", False),
            (Export(), "weights are not eager's: 'lin.weight'", False),
            (Onnx(), "index 2 of axis 1 (of 6)", True),
        )
    ),
    *(
        case("half", Two, planted(backend, LinearInHalf), Cause.DTYPE, "computes in float16", slow=slow)
        for backend, slow in ((Trace(), False), (Export(), False), (Onnx(), True), (OnnxTorchScript(), True))
    ),
    case("flags", Flags, planted(Export(), after(lambda y: (y[1], y[0]))), Cause.STRUCTURE, "are swapped"),
    case("one-norm", Norms, planted(Trace(), second_training), Cause.NUMERIC, "with 'two' in training mode"),
    case("stored", Two, planted(Export(), in_half), Cause.DTYPE, "'lin.weight' and 1 more were stored as float16"),
    case("bfloat16", Two, planted(Export(), lambda m: LinearInHalf(m, torch.bfloat16)), Cause.DTYPE, "bfloat16"),
    case("to-half", Two, planted(Trace(), after(lambda y: (y[0].half(), y[1]))), Cause.DTYPE, "only the dtype"),
    case("to-double", Mean, planted(Export(), after(lambda y: y.double())), Cause.DTYPE, "only the dtype differs"),
    case("0-d", Mean, planted(Trace(), after(lambda y: y[None])), Cause.SHAPE, "only the shape differs"),
    case("transposed", Norm, planted(Export(), after(lambda y: y.T)), Cause.SHAPE, "it is eager's transposed"),
    case("truncated", Norm, planted(Trace(), after(lambda y: y[:, :4])), Cause.SHAPE, "ends early"),
    case("third", Two, planted(Export(), after(lambda y: (*y, y[0]))), Cause.STRUCTURE, "2 parts"),
    case(
        "key",
        Heads,
        planted(Export(), after(lambda y: {"logits": y["logits"], "best": y["best"]})),
        Cause.STRUCTURE,
        "'hidden'",
    ),
    case("list", Two, planted(Export(), after(list)), Cause.STRUCTURE, "list"),
    case(
        "one-channel",
        Conv,
        planted(Export(), after(one_channel)),
        Cause.NUMERIC,
        "index 2 of axis 1 (of 4)",
        args=(IMAGE,),
    ),
    case(
        "one-element",
        Conv,
        planted(Trace(), after(one_element)),
        Cause.NUMERIC,
        "one element, at [0, 1, 2, 3]",
        args=(IMAGE,),
    ),
    case(
        "border", Conv, planted(Trace(), reflecting), Cause.NUMERIC, "only at the border of axes 2 and 3", args=(IMAGE,)
    ),
    case("border", Conv, planted(Onnx(), reflecting), Cause.NUMERIC, "only at the border", args=(IMAGE,), slow=True),
    case(
        "factor",
        Norm,
        planted(Script(), lambda m: m.requires_grad_(False) and scaled(m)),
        Cause.NUMERIC,
        "each is 1.001 x eager's",
    ),
    case("sign", Norm, planted(Trace(), after(torch.neg)), Cause.NUMERIC, "opposite sign"),
    case("clipped", Norm, planted(Export(), after(lambda y: y.clamp(-0.5, 0.5))), Cause.NUMERIC, "cut off at"),
    case("flipped", Norm, planted(Trace(), after(lambda y: y.flip(1))), Cause.NUMERIC, "axis 1 reversed"),
    case(
        "nan",
        Logarithm,
        planted(Trace(), after(torch.nan_to_num)),
        Cause.SPECIAL_VALUE,
        "log.default` makes NaN first",
        args=(X - 0.5,),
    ),
    case(
        "nan", Mean, planted(Trace(), after(lambda y: (y - y) / (y - y))), Cause.SPECIAL_VALUE, "aten::div` makes NaN"
    ),
    case("overflow", Exponential, planted(Export(), into(InHalf)), Cause.SPECIAL_VALUE, "overflow in float16"),
    case(
        "int32",
        Integers,
        planted(Trace(), after(lambda y: y.int().long())),
        Cause.NUMERIC,
        "overflowed in 32 bits",
        args=(torch.arange(900, 912),),
    ),
    case("start", Ema, planted(Export(), with_mean), STATE, "'mean' starts as"),
    case("late", Ema, Wrong(into(LateEma)), STATE, "in the call before", options={"calls": 4}),
    case("never", Ema, planted(Script(), into(NoEma)), STATE, "state mean: eager changes it"),
    case("never", Ema, Wrong(into(NoEma)), STATE, "agree up to call 1", options=TWICE),
    case("writes", NoEma, planted(Trace(), into(Ema)), STATE, "the exported program changes it"),
    case(
        "argument",
        Mutates,
        planted(Export(), into(MutatesNot)),
        MUTATION,
        "argument memory: eager changes",
        args=(X, X + 1),
    ),
    case("argument", MutatesNot, planted(Trace(), into(Mutates)), MUTATION, "eager does not", args=(X, X + 1)),
    case(
        "held",
        Scaled,
        planted(Trace(), lambda m: Around(m, before=lambda x, s: (x, torch.full_like(s, 2.0)))),
        VALUE,
        "argument scale has no effect",
        args=(X, torch.tensor([2.0])),
    ),
    case(
        "held",
        Scaled,
        planted(Export(), lambda m: Around(m, before=lambda x, s: (x, torch.full_like(s, 2.0)))),
        VALUE,
        "argument scale has no effect",
        args=(X, torch.tensor([2.0])),
    ),
    case(
        "constant",
        Scaled,
        Wrong(lambda m: Constant(m, X, torch.tensor([2.0]))),
        VALUE,
        "no argument has an effect",
        args=(X, torch.tensor([2.0])),
    ),
    case("random", Two, planted(Trace(), Noisy), Cause.NUMERIC, "draws random numbers"),
    case("random", Two, planted(Compile(), Noisy), Cause.NUMERIC, "draws random numbers", slow=True),
    case("remembers", Two, Wrong(Remembers), Cause.NUMERIC, "keeps something of earlier runs"),
    case(
        "raises", Two, Wrong(lambda m: Raises()), Cause.EXCEPTION, "raises RuntimeError: kernel", verdict=Verdict.FAILED
    ),
    case("gradient", Two, planted(Trace(), into(Cut)), Cause.NUMERIC, "all outputs agree", options={"grad": True}),
    case("gradient", Two, planted(Export(), into(Cut)), Cause.NUMERIC, "gradients do not", options={"grad": True}),
]


class Constant(nn.Module):
    def __init__(self, model: nn.Module, *args: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("value", model(*args).detach())

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return self.value.clone()


def scaled(model: Any) -> Any:
    with torch.no_grad():
        model.bn.weight *= 1.001
        model.bn.bias *= 1.001
    return model


def told(outcome: Outcome) -> str:
    """All that a failure says of its cause."""
    return "\n".join(
        (*(fact.text for fact in outcome.evidence), *(f"{a.path}: {a.reason}; {a.where}" for a in outcome.leaves))
    )


@pytest.mark.parametrize("known", DIVERGENCES)
def test_cause(known: Divergence) -> None:
    torch.manual_seed(0)
    outcome = check(known.make().eval(), known.args, backend=known.backend, n_inputs=6, **known.options)
    assert outcome.verdict is known.verdict, outcome.message
    assert outcome.cause is known.cause, outcome.message
    assert known.says in told(outcome)


def test_enough_kinds_and_backends() -> None:
    cases = [one.values[0] for one in DIVERGENCES]
    assert len(cases) >= 40
    assert {one.cause for one in cases} == set(Cause)
    assert len({one.backend.name for one in cases}) >= 7


class Relu(Two):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.lin(x)
        return y, y.relu()


class NoRelu(Two):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.lin(x)
        return y, y * 1


class HalfWithoutHarm(Two):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.lin(x) + torch.ones((), dtype=torch.float16) + (x > 0.8).half().float()
        return y.tanh(), y.sigmoid()


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (Relu, into(NoRelu)),  # an output that holds another one is no swap
        (Two, into(HalfWithoutHarm)),  # a narrow type that cannot have brought this
        (Two, after(lambda y: (y[0] * 1.5 + 0.1 * y[1], y[1]))),
        (lambda: nn.Sequential(nn.Linear(6, 6), nn.GELU()), lambda model: nn.Sequential(model[0], nn.GELU("tanh"))),
        (lambda: nn.LayerNorm(6), lambda model: nn.LayerNorm(6, eps=1e-3)),
        (Norm, after(lambda y: y + 0.2 * y.roll(1, 0))),
    ],
)
def test_nothing_is_named_that_was_not_shown(make: Callable[[], Any], change: Callable[[Any], Any]) -> None:
    torch.manual_seed(0)
    outcome = check(make().eval(), (X,), backend=planted(Trace(), change), n_inputs=6)
    assert (outcome.verdict, outcome.cause, outcome.location) == (Verdict.MISMATCH, Cause.NUMERIC, None)
    known = ("computes in float16", "holds what eager returns", "gives differences of this size")
    assert all(any(said in fact.text for said in known) for fact in outcome.evidence[1:])


@pytest.mark.parametrize(
    ("make", "args"),
    [
        *((Two, (X,)), (Norm, (X,)), (Conv, (IMAGE,)), (Ema, (X,)), (Mutates, (X, X + 1))),
        (Scaled, (X, torch.tensor([2.0]))),
    ],
)
def test_right_programs_have_no_cause(make: Callable[[], nn.Module], args: tuple[torch.Tensor, ...]) -> None:
    outcome = check(make().eval(), args, backend="trace", n_inputs=6)
    assert (outcome.verdict, outcome.cause, outcome.evidence) == (Verdict.EQUIVALENT, None, ())
