"""`grad=True`: right programs of many architectures pass, wrong gradients are found though all outputs agree."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_torchexport import Backend, Cause, Compile, Export, Exported, ExportRequest, Script, Trace, Verdict, check

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, (h, _) = self.rnn(x)
        return self.out(y), h


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(6, 6)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        for i in range(3):
            h = self.cell(x[i], h)
        return h


class Normed(nn.Module):
    """In training mode the gradient of the first bias is zero but for rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(F.relu(self.bn(self.conv(x))))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.lin = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.attention(x, x, x, need_weights=False)
        return self.norm(x + F.gelu(self.lin(y)))


class Words(nn.Module):
    """Integer inputs, a weight that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.out(self.embedding(ids) * scale).log_softmax(-1)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.weight = nn.Linear(6, 3), nn.Parameter(torch.randn(3, 6, 5))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        part, index = self.gate(x).softmax(-1).topk(2, -1)
        return (torch.einsum("bi,bkio->bko", x, self.weight[index]) * part[..., None]).sum(1), index


class Warp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.conv = nn.Linear(4, 6), nn.Conv2d(2, 3, 1)

    def forward(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        theta = self.lin(v).view(-1, 2, 3) * 0.3
        grid = F.affine_grid(theta, [x.shape[0], 2, 8, 8], align_corners=False)
        return self.conv(F.grid_sample(x, grid, align_corners=False))


class Layers(nn.Module):
    """A layer that is used twice, one that is not used, and a parameter that asks for no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.norm, self.unused = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(2, 2)
        self.frozen = nn.Parameter(torch.rand(6), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.lin(self.lin(x)).tanh()) * self.frozen


class Unet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1)
        self.mix, self.slope = nn.Conv2d(4, 2, 3, padding=1), nn.PReLU(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix(torch.cat([x, self.up(self.slope(self.down(x)))], 1))


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        h = self.lin(x)
        return torch.zeros_like(h).index_add(0, edges[0], h[edges[1]]).relu()


class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, dtype=torch.complex64))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.fft.irfft(torch.fft.rfft(x) * self.weight), torch.fft.rfft(x)


class Written(nn.Module):
    """What is computed is changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.lin(x)
        y[:, 0] = 0
        return y.relu_() * 2


class WritesArgument(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        memory.add_(self.lin(x))
        return memory * 2


class Discrete(nn.Module):
    """Outputs that have no gradient beside one that has."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        y = self.lin(x)
        return y.argmax(-1), y, y.detach(), y > 0


class Keeps(nn.Module):
    """A state that was computed from parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 6)
        self.register_buffer("h", torch.zeros(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.h = self.lin(x).mean(0) * 0.5 + self.h * 0.5  # type: ignore[has-type]
        return self.h * x


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 6)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.mean.mul_(0.9).add_(x.mean(0) * 0.1)
        return self.lin(x) - self.mean


class Low(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 6).bfloat16()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin(x.to(torch.bfloat16)).float().softmax(-1)


GENERATOR = torch.Generator().manual_seed(0)
X = torch.rand(5, 6, generator=GENERATOR)
IMAGE = torch.rand(2, 2, 8, 8, generator=GENERATOR)
IDS = torch.randint(0, 11, (3, 4), generator=GENERATOR)
SEQUENCE = torch.rand(2, 5, 8, generator=GENERATOR)
EDGES = torch.tensor([[0, 1, 2, 2], [1, 2, 3, 4]])
RIGHT: dict[type[nn.Module], tuple[torch.Tensor, ...]] = {
    Lstm: (SEQUENCE[..., :6].clone(),),
    Gru: (torch.rand(3, 2, 6, generator=GENERATOR), X[:2]),
    Normed: (IMAGE,),
    Attention: (SEQUENCE,),
    Words: (IDS, torch.rand(3, 4, 6, generator=GENERATOR)),
    Experts: (X,),
    Warp: (IMAGE, X[:2, :4].clone()),
    Layers: (X,),
    Unet: (IMAGE,),
    Graph: (X, EDGES),
    Spectrum: (X,),
    Written: (X,),
    WritesArgument: (X, X + 1),
    Discrete: (X,),
    Low: (X,),
}
EVERYWHERE = [(kind, backend, kind.__name__) for kind in RIGHT for backend in (Trace(), Script(), Export())]
COMPILED = [
    (kind, Compile(), kind.__name__) for kind in RIGHT if kind is not Lstm
]  # Dynamo leaves recurrent layers out


@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        *(pytest.param(kind, backend, id=f"{name}-{backend.name}") for kind, backend, name in EVERYWHERE),
        *(pytest.param(k, b, id=f"{name}-{b.name}", marks=pytest.mark.slow) for k, b, name in COMPILED),
    ],
)
def test_right_gradients_pass(kind: type[nn.Module], backend: Backend) -> None:
    torch.manual_seed(0)
    outcome = check(kind().train(), RIGHT[kind], backend=backend, grad=True, n_inputs=5)
    assert outcome.verdict is Verdict.EQUIVALENT, outcome.message
    assert not [entry for entry in outcome.not_checked if "gradient" in entry.what]


@pytest.mark.parametrize("kind", [Keeps, Mean, Normed])
@pytest.mark.parametrize("backend", [Script(), Export(), pytest.param(Compile(), marks=pytest.mark.slow)])
def test_right_gradients_pass_over_several_calls(kind: type[nn.Module], backend: Backend) -> None:
    torch.manual_seed(0)
    args = RIGHT.get(kind, (X,))
    outcome = check(kind().train(), args, backend=backend, grad=True, calls=3, n_inputs=5)
    assert outcome.verdict is Verdict.EQUIVALENT, outcome.message


class Wrong(Backend):
    """Runs what `change` makes of a copy of the model."""

    name: ClassVar[str] = "wrong"
    gradients: ClassVar[bool] = True

    def __init__(self, change: Callable[[Any], Any]) -> None:
        self.change = change

    def export(self, request: ExportRequest) -> Any:
        return self.change(copy.deepcopy(request.model))

    def load(self, program: Any, path: Path | None, request: ExportRequest) -> Exported:
        return _Ready(program)


class _Ready(Exported):
    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self._program = program

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._program(*args, **kwargs)

    def read_state(self) -> dict[str, Any]:
        return dict(self._program.named_buffers())

    def parameters(self) -> dict[str, torch.Tensor]:
        return dict(self._program.named_parameters())


def planted(backend: Backend, change: Callable[[Any], Any]) -> Backend:
    """The backend, which exports what `change` makes of a copy of the model."""

    def export(self: Any, request: ExportRequest) -> Any:
        return type(backend).export(self, dataclasses.replace(request, model=change(copy.deepcopy(request.model))))

    made: Any = type("Planted", (type(backend),), {"export": export, "name": backend.name})
    return made(**{one.name: getattr(backend, one.name) for one in dataclasses.fields(backend) if one.init})  # type: ignore[arg-type]


class _Scaled(torch.autograd.Function):
    """The values as they are, the gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0] * ctx.factor, None


class Head(nn.Module):
    """Two layers on a common trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.trunk(x).tanh()
        return self.one(y) + self.two(y)


class CutHead(Head):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.trunk(x).tanh()
        return self.one(y) + self.two(y.detach())


class ScaledHead(Head):
    """The same values, to the bit or nearly; the gradient of the trunk is 1.001 times as large on one way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.trunk(x).tanh()
        more = y * 0.001
        return self.one(y) + self.two(y + (more - more.detach()))


class CutInput(Head):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.trunk(x.detach()).tanh()
        return self.one(y) + self.two(y)


class WrongBackward(Head):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.trunk(x).tanh()
        return self.one(y) + self.two(_Scaled.apply(y, 1.001))


class Reversed(Head):
    """A gradient reversal: the class's own backward is what a graph of its forward does not know."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.trunk(x).tanh()
        return self.one(y) + self.two(_Scaled.apply(y, -1.0))


def into(kind: type[nn.Module]) -> Callable[[Any], Any]:
    def change(model: Any) -> Any:
        model.__class__ = kind
        return model

    return change


def without_bias(model: Any) -> Any:
    model.one.bias.requires_grad_(False)
    return model


COMPILED_TOO = [Trace(), Script(), Export(), pytest.param(Compile(), marks=pytest.mark.slow)]


@pytest.mark.parametrize("backend", COMPILED_TOO)
@pytest.mark.parametrize(
    ("fault", "said"), [(CutHead, ""), (ScaledHead, ""), (CutInput, "gradient of x: zero or missing")]
)
def test_wrong_gradients_are_found(backend: Backend, fault: type[nn.Module], said: str) -> None:
    torch.manual_seed(0)
    outcome = check(Head(), (X,), backend=planted(backend, into(fault)), grad=True, n_inputs=5)
    assert (outcome.verdict, outcome.cause) == (Verdict.MISMATCH, Cause.NUMERIC), outcome.message
    assert all(leaf.path.startswith("gradient of ") for leaf in outcome.leaves)
    assert any(said in fact.text for fact in outcome.evidence)
    assert any("all outputs agree" in fact.text for fact in outcome.evidence)
    assert check(Head(), (X,), backend=planted(backend, into(fault)), n_inputs=5).verdict is Verdict.EQUIVALENT


@pytest.mark.parametrize("fault", [WrongBackward, CutHead, ScaledHead, Reversed])
def test_a_wrong_backward_is_found(fault: type[nn.Module]) -> None:
    torch.manual_seed(0)
    outcome = check(Head(), (X,), backend=Wrong(into(fault)), grad=True, n_inputs=5)
    assert outcome.verdict is Verdict.MISMATCH
    assert {leaf.path for leaf in outcome.leaves} == {
        "gradient of trunk.weight",
        "gradient of trunk.bias",
        "gradient of x",
    }


def test_a_parameter_without_gradient_is_found() -> None:
    outcome = check(Head(), (X,), backend=Wrong(without_bias), grad=True, n_inputs=5)
    assert [leaf.path for leaf in outcome.leaves] == ["gradient of one.bias"]
    assert any("gradient of one.bias: zero or missing" in fact.text for fact in outcome.evidence)


def test_a_gradient_is_judged_by_its_own_noise() -> None:
    """The float64 reference and the runs with noise have gone through the backward, too."""
    torch.manual_seed(0)
    outcome = check(Head(), (X,), backend=Wrong(into(WrongBackward)), grad=True, n_inputs=5)
    leaf = outcome.leaves[0]
    assert (leaf.rule, leaf.draws > 0, leaf.reference != "") == ("calibrated", True, True)
    assert 0 < leaf.eager_error < 1e-5 < leaf.exported_error
    assert leaf.noise < 1e-5


class Rearranged(Normed):
    """The same convolution as a product of matrices: right, but rounded in another way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        columns = F.unfold(x, 3, padding=1)
        y = (self.conv.weight.flatten(1) @ columns).unflatten(2, x.shape[2:]) + self.conv.bias[:, None, None]
        return self.last(F.relu(self.bn(y)))


def test_a_gradient_that_is_zero_but_for_rounding_is_no_chaos() -> None:
    torch.manual_seed(0)
    model = Normed().train()
    outcome = check(model, (IMAGE,), backend=Wrong(into(Rearranged)), grad=True, n_inputs=5)
    assert outcome.verdict is Verdict.EQUIVALENT, outcome.message

    def leaning(copied: Any) -> Any:
        copied.conv.bias.register_hook(lambda grad: grad + 0.01)
        return copied

    outcome = check(model, (IMAGE,), backend=Wrong(leaning), grad=True, n_inputs=5)
    assert [leaf.path for leaf in outcome.leaves] == ["gradient of conv.bias"]


def test_no_grad_is_lost_in_a_trace() -> None:
    torch.manual_seed(0)
    outcome = check(Mean(), (X,), backend="trace", grad=True, n_inputs=5)
    assert outcome.verdict is Verdict.MISMATCH
    assert any("does not keep torch.no_grad()" in fact.text for fact in outcome.evidence)


@pytest.mark.parametrize("backend", [Trace(), Export()])
def test_a_backward_of_its_own_is_lost_in_a_graph(backend: Backend) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = check(Reversed(), (X,), backend=backend, grad=True, n_inputs=5)
    assert outcome.verdict in (Verdict.MISMATCH, Verdict.REFUSED), outcome.message
