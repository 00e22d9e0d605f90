# mypy: disable-error-code="no-untyped-call,no-any-return,operator,index,arg-type,union-attr,call-overload,has-type"
"""What the operators of a TorchScript program compute, against the same computed by hand."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from pytest_torchexport.backends import torchscript_steps
from pytest_torchexport.backends.base import ExportRequest, Step, TooLarge
from pytest_torchexport.backends.torchscript import Script, Trace
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.call import Call

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_torchexport.backends.base import Backend, Exported

CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize("backend", [Trace(), Script()], ids=["trace", "script"])


def build(
    backend: Backend,
    model: Callable[..., Any],
    folder: Path,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
) -> Exported:
    request = ExportRequest(model, Call(args, kwargs or {}).clone(), None, CPU, folder)
    program = backend.export(request)
    return backend.load(program, backend.save(program, folder), request)


def steps(exported: Exported, *args: Any, **kwargs: Any) -> list[Step]:
    with torch.no_grad():
        found = exported.steps(*containers.clone(args), **containers.clone(kwargs))
    assert found is not None
    return list(found)


def one(found: list[Step], operator: str, index: int = 0) -> tuple[Step, torch.Tensor]:
    step = [step for step in found if step.operator == operator][index]
    return step, next(iter(step.outputs.values()))


def line_of(function: Any, text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return first + next(index for index, line in enumerate(lines) if text in line)


def consistent(found: list[Step]) -> None:
    """Names are used once, and what a step reads was computed before."""
    names = [name for step in found for name in step.outputs]
    assert len(names) == len(set(names))
    seen: set[str] = set()
    for step in found:
        assert not (set(step.inputs) & set(names)) - seen
        seen |= set(step.outputs)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.norm(self.conv(x)))
        y.mul_(2)
        return y + x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@BOTH
def test_values_operators_modules_and_lines(backend: Backend, tmp_path: Path) -> None:
    model, x = Net().eval(), torch.randn(2, 3, 2, 2)
    exported = build(backend, model, tmp_path, (x,))
    found = steps(exported, x)
    consistent(found)
    convolution = "aten::_convolution" if backend.name == "trace" else "aten::conv2d"
    with torch.no_grad():
        first, second = model.blocks
        convolved = first.conv(x)
        normed = first.norm(convolved)
        doubled = normed.relu() * 2
        after = doubled + x
        expected = {
            (convolution, 0): (convolved, "blocks.0.conv", "self.act(self.norm(self.conv(x)))"),
            ("aten::batch_norm", 0): (normed, "blocks.0.norm", "self.act(self.norm(self.conv(x)))"),
            ("aten::relu_", 0): (normed.relu(), "blocks.0.act", "self.act(self.norm(self.conv(x)))"),
            ("aten::mul_", 0): (doubled, "blocks.0", "y.mul_(2)"),
            ("aten::add", 0): (after, "blocks.0", "return y + x"),
            (convolution, 1): (second.conv(after), "blocks.1.conv", "self.act(self.norm(self.conv(x)))"),
            ("aten::add", 1): (second(after), "blocks.1", "return y + x"),
        }
        for (operator, index), (value, module, source) in expected.items():
            step, result = one(found, operator, index)
            assert torch.equal(result, value), operator
            assert step.module == module
            assert step.location is not None
            assert step.location.file == str(Path(__file__).absolute())
            assert step.location.line == line_of(Block.forward, source)
            assert source in step.location.source
        step, result = one(found, "aten::linear")
        assert torch.equal(result, model(x))
    assert step.module == "head.1"
    assert step.location is not None
    assert step.location.line == line_of(Net.forward, "self.head(x)")
    assert set(step.inputs) >= {"head.1.weight", "head.1.bias"}


@BOTH
def test_what_is_overwritten_in_place_is_told_from_what_was_there(backend: Backend, tmp_path: Path) -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * 3
            y[:, 0].zero_()
            y.add_(1)
            return y.cos()

    x = torch.rand(2, 3)
    found = steps(build(backend, Model(), tmp_path, (x,)), x)
    consistent(found)
    first, product = one(found, "aten::mul")
    zeroed, zeros = one(found, "aten::zero_")
    added, total = one(found, "aten::add_")
    last, result = one(found, "aten::cos")
    cleared = x * 3
    cleared[:, 0] = 0
    assert torch.equal(product, x * 3)
    assert torch.equal(zeros, torch.zeros(2))
    assert torch.equal(total, cleared + 1)
    assert torch.equal(result, (cleared + 1).cos())
    # The sum is computed from the product and from what was written into a part of it.
    assert set(added.inputs) >= {*first.outputs, *zeroed.outputs}
    assert last.inputs == tuple(added.outputs)


def test_branches_and_loops_are_entered(tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.sin() if bool(x.sum() > 0) else x.cos()
            for _ in range(x.shape[0]):
                x = self.cell(x).tanh()
            return x * 2

    model, x = Model().eval(), torch.rand(4, 3)
    exported = build(Script(), model, tmp_path, (x,))
    found = steps(exported, x)
    consistent(found)
    operators = [step.operator for step in found]
    assert "aten::sin" in operators
    assert "aten::cos" not in operators
    assert "aten::cos" in [step.operator for step in steps(exported, -x)]
    with torch.no_grad():
        value, before = x.sin(), None
        for index in range(4):
            value = model.cell(value).tanh()
            step, result = one(found, "aten::tanh", index)
            assert torch.equal(result, value)
            linear, _ = one(found, "aten::linear", index)
            assert step.inputs == tuple(linear.outputs)
            assert linear.module == "cell"
            assert linear.location is not None
            assert linear.location.line == line_of(Model.forward, "self.cell(x).tanh()")
            # Each turn reads what the one before has left.
            carried = next(s for s in found if set(s.outputs) & set(linear.inputs))
            assert before is None or set(before.outputs) <= set(carried.inputs)
            before = step
    assert len([name for name in operators if name == "aten::tanh"]) == 4
    assert len([step for step in steps(exported, x[:1]) if step.operator == "aten::tanh"]) == 1


class Containers(nn.Module):
    def forward(
        self, xs: list[torch.Tensor], scale: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        found: list[torch.Tensor] = []
        for x in xs:
            y = x if scale is None else x * scale
            found.append(y.relu())
        first, second = torch.stack(found).unbind(0)
        low, high = torch.chunk(first, 2, dim=1)
        largest, where = second.max(0)
        return low - high, {"largest": largest, "where": where}


@pytest.mark.parametrize("scale", [None, torch.full((2, 4), 0.5)], ids=["without", "with"])
def test_through_lists_tuples_dicts_and_optionals(scale: torch.Tensor | None, tmp_path: Path) -> None:
    xs = [torch.randn(2, 4), torch.randn(2, 4)]
    exported = build(Script(), Containers(), tmp_path, (xs, scale))
    found = steps(exported, xs, scale)
    consistent(found)
    given = xs if scale is None else [x * scale for x in xs]
    kept = [name for index in range(2) for name in one(found, "aten::relu", index)[0].outputs]
    stack, stacked = one(found, "aten::stack")
    assert torch.equal(stacked, torch.stack(given).relu())
    assert stack.inputs == tuple(kept)
    unbind, _ = one(found, "aten::unbind")
    parts = list(unbind.outputs)
    assert len(parts) == 2
    assert all(torch.equal(unbind.outputs[name], x.relu()) for name, x in zip(parts, given, strict=True))
    chunk, _ = one(found, "aten::chunk")
    assert chunk.inputs == (parts[0],)
    step, difference = one(found, "aten::sub")
    low, high = given[0].relu().chunk(2, dim=1)
    assert torch.equal(difference, low - high)
    assert step.inputs == tuple(chunk.outputs)
    maximum, _ = one(found, "aten::max")
    assert maximum.inputs == (parts[1],)
    largest, where = maximum.outputs.values()
    assert torch.equal(largest, given[1].relu().max(0).values)
    assert torch.equal(where, given[1].relu().max(0).indices)


class Stateful(nn.Module):
    """State of every kind: a buffer that is added to, one that is bound anew, a number, constants of a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(3))
        self.register_buffer("cache", torch.zeros(0, 3))
        self.calls = 0
        self.hidden = torch.full((3,), 5.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total.add_(x.sum(0))
        self.cache = torch.cat([self.cache, x])
        self.calls += 1
        self.hidden.mul_(2)
        return self.total * self.calls + self.cache.mean(0) + self.hidden


@BOTH
def test_the_state_is_untouched(backend: Backend, tmp_path: Path) -> None:
    x = torch.ones(2, 3)
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    exported, other = (build(backend, Stateful(), folder, (x,)) for folder in folders)
    with torch.no_grad():
        exported(x)
        other(x)
        before = containers.clone(exported.read_state())
        first, second = steps(exported, x), steps(exported, x)
        assert [step.operator for step in first] == [step.operator for step in second]
        for one_, same in zip(first, second, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one_.outputs.values(), same.outputs.values(), strict=True))
        after = exported.read_state()
        assert after is not None
        assert before is not None
        assert after.keys() == before.keys()
        assert all(torch.equal(torch.as_tensor(after[name]), torch.as_tensor(before[name])) for name in before)
        wanted = other(x)
        assert torch.equal(next(iter(first[-1].outputs.values())), wanted)
        assert torch.equal(exported(x), wanted)


@BOTH
def test_the_model_and_its_parameters_are_untouched(backend: Backend, tmp_path: Path) -> None:
    model, x = Net().train(), torch.randn(4, 3, 2, 2)
    exported = build(backend, model, tmp_path, (x,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps(exported, x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@BOTH
@pytest.mark.parametrize("option", ["freeze", "optimize_for_inference"])
def test_frozen_and_optimised_programs(backend: Backend, option: str, tmp_path: Path) -> None:
    model, x = Net().eval(), torch.randn(2, 3, 2, 2)
    exported = build(type(backend)(**{option: True}), model, tmp_path, (x,))
    found = steps(exported, x)
    consistent(found)
    values = [value for step in found for value in step.outputs.values()]
    with torch.no_grad():
        assert any(v.shape == (2, 4) and torch.allclose(v, model(x), rtol=1e-4, atol=1e-5) for v in values)
        between = model.blocks[0](x)
    assert any(v.shape == between.shape and torch.allclose(v, between, rtol=1e-4, atol=1e-5) for v in values)
    assert all(value.layout is torch.strided for value in values)


def scaled(x: torch.Tensor, by: int = 3) -> torch.Tensor:
    return (x * by).cos()


def test_a_function_with_a_default(tmp_path: Path) -> None:
    x = torch.rand(3)
    found = steps(build(Script(), scaled, tmp_path, (x,)), x)
    assert [step.operator for step in found] == ["aten::mul", "aten::cos"]
    assert torch.equal(next(iter(found[-1].outputs.values())), (x * 3).cos())
    assert found[0].module == ""
    found = steps(build(Script(), scaled, tmp_path, (x,)), x, by=2)
    assert torch.equal(next(iter(found[-1].outputs.values())), (x * 2).cos())


def test_methods_and_functions_have_the_module_and_line_of_their_own(tmp_path: Path) -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return scaled(self.shifted(x))

        def shifted(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) + 1

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"a": Inner()})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for part in self.parts.values():
                x = part(x)
            return x

    x = torch.rand(2, 3)
    found = steps(build(Script(), Model().eval(), tmp_path, (x,)), x)
    places = {step.operator: (step.module, step.location.line) for step in found if step.location is not None}
    assert places == {
        "aten::linear": ("parts.a.linear", line_of(Inner.shifted, "self.linear(x) + 1")),
        "aten::add": ("parts.a", line_of(Inner.shifted, "self.linear(x) + 1")),
        "aten::mul": ("parts.a", line_of(scaled, "return")),
        "aten::cos": ("parts.a", line_of(scaled, "return")),
    }


def test_the_tracers_wrapper_is_not_part_of_a_name(tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
            return self.linear(x) * options["scale"] + options["shift"]

    x, options = torch.rand(2, 3), {"scale": 2, "shift": torch.ones(3)}
    found = steps(build(Trace(), Model(), tmp_path, (x, options)), x, options)
    assert [step.module for step in found] == ["linear", "", ""]


@BOTH
def test_a_module_that_is_called_twice(backend: Backend, tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.shared(self.shared(x).relu())

    model, x = Model(), torch.rand(2, 3)
    found = steps(build(backend, model, tmp_path, (x,)), x)
    consistent(found)
    with torch.no_grad():
        assert torch.equal(one(found, "aten::linear", 0)[1], model.shared(x))
        assert torch.equal(one(found, "aten::linear", 1)[1], model(x))
    assert {step.module for step in found if step.operator == "aten::linear"} == {"shared"}


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.int64])
def test_dtypes(backend: Backend, dtype: torch.dtype, tmp_path: Path) -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            y = x * x
            return y, y == x, y.abs().to(torch.float32)

    x = torch.tensor([1, 2, 3]).to(dtype)
    found = steps(build(backend, Model(), tmp_path, (x,)), x)
    assert [one(found, f"aten::{name}")[1].dtype for name in ("mul", "eq", "to")] == [dtype, torch.bool, torch.float32]
    assert torch.equal(one(found, "aten::mul")[1], x * x)


@BOTH
def test_other_sizes_than_the_examples(backend: Backend, tmp_path: Path) -> None:
    model = Net().eval()
    exported = build(backend, model, tmp_path, (torch.randn(2, 3, 2, 2),))
    x = torch.randn(5, 3, 2, 2)
    with torch.no_grad():
        assert torch.equal(one(steps(exported, x), "aten::linear")[1], model(x))


@BOTH
def test_with_autograd_on_the_values_hold_no_graph(backend: Backend, tmp_path: Path) -> None:
    model, x = Net().eval(), torch.randn(2, 3, 2, 2)
    found = build(backend, model, tmp_path, (x,)).steps(x)
    assert found is not None
    assert not any(value.requires_grad for step in found for value in step.outputs.values())


def test_early_returns_leave_no_values_without_contents(tmp_path: Path) -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
            if y is None:
                return x.sin()
            if bool(y.sum() > 0):
                return x.cos()
            return x * y

    x, y = torch.rand(3), torch.rand(3)
    exported = build(Script(), Model(), tmp_path, (x, y))
    assert "aten::cos" in {step.operator for step in steps(exported, x, y)}
    assert torch.equal(one(steps(exported, x, -y), "aten::mul")[1], x * -y)
    assert torch.equal(one(steps(exported, x, None), "aten::sin")[1], x.sin())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, 2, bidirectional=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, (h, _) = self.lstm(x)
        return y * 2, h


@BOTH
@pytest.mark.parametrize(
    ("model", "x"),
    [
        (Recurrent(), torch.rand(3, 2, 4)),
        (nn.GRUCell(4, 5), torch.rand(2, 4)),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.rand(2, 3, 8)),
        (nn.MultiheadAttention(8, 2, batch_first=True), (torch.rand(2, 3, 8),) * 3),
        # Its attention gives an undefined tensor for the weights that nobody wants.
        (nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), (torch.rand(2, 3, 8),) * 2),
    ],
    ids=["lstm", "gru", "encoder", "attention", "decoder"],
)
def test_the_last_values_are_the_outputs(backend: Backend, model: nn.Module, x: Any, tmp_path: Path) -> None:
    args = x if isinstance(x, tuple) else (x,)
    exported = build(backend, model.eval(), tmp_path, args)
    found = steps(exported, *args)
    consistent(found)
    values = [value for step in found for value in step.outputs.values()]
    with torch.no_grad():
        results = [tensor for _, tensor in containers.tensors(exported(*containers.clone(args)))]
    assert results
    for result in results:
        assert any(v.shape == result.shape and torch.allclose(v, result, rtol=1e-5, atol=1e-6) for v in values)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantized_values_are_given_as_numbers(tmp_path: Path) -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8).dequantize().exp()

    x = torch.rand(3)
    found = steps(build(Trace(), Model(), tmp_path, (x,)), x)
    assert torch.equal(one(found, "aten::quantize_per_tensor")[1], one(found, "aten::dequantize")[1])


def test_operators_that_nothing_depends_on_are_no_steps(tmp_path: Path) -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x.cos()
            return x.sin()

    x = torch.rand(3)
    assert [step.operator for step in steps(build(Trace(), Model(), tmp_path, (x,)), x)] == ["aten::sin"]


def test_a_changed_parameter_shows_in_the_step_that_reads_it(tmp_path: Path) -> None:
    model, x = Net().eval(), torch.randn(2, 3, 2, 2)
    right, wrong = build(Trace(), model, tmp_path, (x,)), build(Trace(), model, tmp_path, (x,))
    with torch.no_grad():
        parameter = wrong.parameters()["blocks.1.conv.weight"]
        parameter.data = parameter.data * 1.1
    pairs = zip(steps(right, x), steps(wrong, x), strict=True)
    first = next(ours for theirs, ours in pairs if not _same(theirs, ours))
    assert first.operator == "aten::_convolution"
    assert first.module == "blocks.1.conv"
    assert "blocks.1.conv.weight" in first.inputs


def _same(one_: Step, other: Step) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one_.outputs.values(), other.outputs.values(), strict=True))


@BOTH
def test_values_that_do_not_fit_together_are_not_kept(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        for part in (x.sin() * 2).split(4):
            x = x + part.sum()
        return x

    x = torch.rand(8, 4)
    exported = build(backend, function, tmp_path, (x,))
    kept = sum(tensor.nbytes for step in steps(exported, x) for tensor in step.outputs.values())
    monkeypatch.setattr(torchscript_steps, "LARGEST", kept)
    assert steps(exported, x)
    monkeypatch.setattr(torchscript_steps, "LARGEST", kept - 4)
    with pytest.raises(TooLarge, match="MiB"):
        steps(exported, x)
