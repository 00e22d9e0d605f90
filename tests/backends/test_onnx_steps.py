# mypy: disable-error-code="no-untyped-call,no-any-return,operator,index,arg-type,union-attr,call-overload,has-type"
"""What the nodes of an ONNX program compute, against the same computed by hand."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn
from torch.export import Dim

from pytest_torchexport.backends import onnx_steps
from pytest_torchexport.backends.base import ExportRequest, Step, TooLarge
from pytest_torchexport.backends.onnx import Onnx
from pytest_torchexport.backends.onnx_session import Interface, OnnxProgram
from pytest_torchexport.backends.onnx_steps import ModuleNames
from pytest_torchexport.backends.onnx_torchscript import OnnxTorchScript
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.call import Call

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_torchexport.backends.base import Backend, Exported

CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize("backend", [Onnx(), OnnxTorchScript()], ids=["onnx", "onnx-torchscript"])


def build(
    backend: Backend,
    model: Callable[..., Any],
    folder: Path,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    shapes: dict[str, Any] | None = None,
) -> Exported:
    request = ExportRequest(model, Call(args, kwargs or {}).clone(), shapes, CPU, folder)
    program = backend.export(request)
    return backend.load(program, backend.save(program, folder), request)


def steps(exported: Exported, *args: Any, **kwargs: Any) -> list[Step]:
    found = exported.steps(*containers.clone(args), **containers.clone(kwargs))
    assert found is not None
    return list(found)


def one(found: list[Step], operator: str, index: int = 0) -> tuple[Step, torch.Tensor]:
    step = [step for step in found if step.operator == operator][index]
    return step, next(iter(step.outputs.values()))


def consistent(found: list[Step]) -> None:
    """Names are used once, and what a step reads was computed before."""
    names = [name for step in found for name in step.outputs]
    assert len(names) == len(set(names))
    seen: set[str] = set()
    for step in found:
        assert not (set(step.inputs) & set(names)) - seen
        seen |= set(step.outputs)


def ends_in_the_outputs(found: list[Step], exported: Exported, *args: Any, **kwargs: Any) -> None:
    values = {name: value for step in found for name, value in step.outputs.items()}
    results = exported(*args, **kwargs).values
    assert results
    for name, result in results.items():
        assert torch.allclose(values[name], result, rtol=1e-5, atol=1e-6)


def line_of(function: Any, text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return first + next(index for index, line in enumerate(lines) if text in line)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.act = nn.Sequential(nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.norm(self.linear(x)))
        return y.exp() + x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.heads = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(4, 2)})

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        for block in self.blocks:
            x = block(x)
        return {name: head(x).relu() for name, head in self.heads.items()}


@BOTH
def test_values_operators_and_modules(backend: Backend, tmp_path: Path) -> None:
    model, x = Net().eval(), torch.randn(3, 4)
    exported = build(backend, model, tmp_path, (x,))
    found = steps(exported, x)
    consistent(found)
    ends_in_the_outputs(found, exported, x)
    with torch.no_grad():
        first, second = model.blocks
        linear = first.linear(x)
        normed = first.norm(linear)
        after = first(x)
        last = second(after)
        expected = {
            ("Gemm", 0): (linear, "blocks.0.linear"),
            ("LayerNormalization", 0): (normed, "blocks.0.norm"),
            ("Tanh", 0): (normed.tanh(), "blocks.0.act.0"),
            ("Exp", 0): (normed.tanh().exp(), "blocks.0"),
            ("Add", 0): (after, "blocks.0"),
            ("Gemm", 1): (second.linear(after), "blocks.1.linear"),
            ("Add", 1): (last, "blocks.1"),
            ("Gemm", 2): (model.heads["a"](last), "heads.a"),
            ("Gemm", 3): (model.heads["b"](last), "heads.b"),
            ("Relu", 1): (model.heads["b"](last).relu(), ""),
        }
    for (operator, index), (value, module) in expected.items():
        step, result = one(found, operator, index)
        torch.testing.assert_close(result, value, rtol=1e-5, atol=1e-6)
        assert step.module == module
    step, _ = one(found, "Add", 0)
    assert set(step.inputs) == {*one(found, "Exp", 0)[0].outputs, *_inputs(tmp_path)}


def _inputs(folder: Path) -> list[str]:
    return [value.name for value in onnx.load(folder / "model.onnx", load_external_data=False).graph.input]


def test_lines_of_the_exporter_by_torch_export(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    found = steps(build(Onnx(), Net().eval(), tmp_path, (x,)), x)
    lines = {step.operator: step.location.line for step in found if step.location is not None}
    assert lines["Tanh"] == line_of(Block.forward, "self.act(self.norm(self.linear(x)))")
    assert lines["Add"] == line_of(Block.forward, "y.exp() + x")
    assert lines["Relu"] == line_of(Net.forward, "head(x).relu()")
    assert {step.location.file for step in found if step.location is not None} == {str(Path(__file__).absolute())}


def test_the_legacy_exporter_writes_no_lines(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    found = steps(build(OnnxTorchScript(), Net().eval(), tmp_path, (x,)), x)
    assert {step.location for step in found} == {None}


@pytest.mark.parametrize("options", [{"optimize": False}, {"external_data": False}, {"opset": 20}])
def test_options_of_the_exporter(options: dict[str, Any], tmp_path: Path) -> None:
    model, x = Net().eval(), torch.randn(3, 4)
    exported = build(Onnx(**options), model, tmp_path, (x,))
    found = steps(exported, x)
    consistent(found)
    ends_in_the_outputs(found, exported, x)
    assert "Constant" not in {step.operator for step in found}


def test_weights_beside_the_file_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
    x = torch.randn(2, 64)
    (tmp_path / "artifact").mkdir()
    exported = build(Onnx(), model, tmp_path / "artifact", (x,))
    files = sorted(path.name for path in (tmp_path / "artifact").iterdir())
    assert any(name.endswith(".data") for name in files)
    monkeypatch.chdir(tmp_path)
    found = steps(exported, x)
    ends_in_the_outputs(found, exported, x)
    assert [step.module for step in found] == ["0", "1", "2"]
    assert sorted(path.name for path in (tmp_path / "artifact").iterdir()) == files


@BOTH
def test_other_sizes_than_the_examples(backend: Backend, tmp_path: Path) -> None:
    model = Net().eval()
    exported = build(backend, model, tmp_path, (torch.randn(3, 4),), shapes={"x": {0: Dim("batch", min=2, max=16)}})
    x = torch.randn(7, 4)
    found = steps(exported, x)
    ends_in_the_outputs(found, exported, x)
    with torch.no_grad():
        torch.testing.assert_close(one(found, "Add", 1)[1], model.blocks[1](model.blocks[0](x)))


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_dtypes(backend: Backend, dtype: torch.dtype, tmp_path: Path) -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = x.reshape(2, 2).t()
            return y, y.to(torch.float32) > 1

    x = torch.tensor([0, 1, 2, 3]).to(dtype)
    found = steps(build(backend, Model(), tmp_path, (x,)), x)
    assert [one(found, name)[1].dtype for name in ("Transpose", "Cast", "Greater")] == [
        dtype,
        torch.float32,
        torch.bool,
    ]
    assert torch.equal(one(found, "Transpose")[1], x.reshape(2, 2).t())


@BOTH
def test_arguments_by_keyword_and_numbers(backend: Backend, tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(4, 4)
            self.other = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, *, mask: torch.Tensor) -> torch.Tensor:
            return self.model(x).tanh() + self.other(mask).sigmoid()

    x, mask = torch.rand(2, 4), torch.rand(2, 4)
    exported = build(backend, Model().eval(), tmp_path, (x,), {"mask": mask})
    found = steps(exported, x, mask=mask)
    ends_in_the_outputs(found, exported, x, mask=mask)
    assert sorted(step.module for step in found if step.operator == "Gemm") == ["model", "other"]
    assert {step.module for step in found if step.operator in ("Tanh", "Sigmoid", "Add")} == {""}


@pytest.mark.parametrize("dynamic", [False, True])
@BOTH
def test_values_that_do_not_fit_together_are_counted_first(
    backend: Backend, dynamic: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return (x.sin() * 2).cos()

    x = torch.rand(16, 4)
    shapes: Any = {"x": {0: Dim("n", min=2)}} if dynamic else None
    exported = build(backend, function, tmp_path, (x,), shapes=shapes)
    monkeypatch.setattr(onnx_steps, "LARGEST", 3 * x.nbytes)
    assert steps(exported, x)
    monkeypatch.setattr(onnx_steps, "LARGEST", 3 * x.nbytes - 1)
    with pytest.raises(TooLarge, match="MiB"):
        steps(exported, x)
    if dynamic:
        assert steps(exported, x[:8])


@BOTH
def test_a_function_has_no_modules(backend: Backend, tmp_path: Path) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x.exp().tanh()

    x = torch.rand(3)
    found = steps(build(backend, function, tmp_path, (x,)), x)
    assert [(step.operator, step.module) for step in found] == [("Exp", ""), ("Tanh", "")]
    assert torch.allclose(one(found, "Tanh")[1], x.exp().tanh())


def test_control_flow_is_one_step_that_reads_what_its_body_reads(tmp_path: Path) -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.exp()

            def true(x: torch.Tensor) -> torch.Tensor:
                return (x + y).sin()

            def false(x: torch.Tensor) -> torch.Tensor:
                return (x - y).cos()

            return torch.cond(x.sum() > 0, true, false, (x,)) * 2

    x = torch.rand(3)
    exported = build(Onnx(), Model(), tmp_path, (x,))
    found = steps(exported, x)
    consistent(found)
    ends_in_the_outputs(found, exported, x)
    step, result = one(found, "If")
    assert torch.allclose(result, (x + x.exp()).sin())
    assert set(one(found, "Exp")[0].outputs) <= set(step.inputs)
    assert torch.allclose(one(steps(exported, -x), "If")[1], (-x - (-x).exp()).cos())


class Looping(nn.Module):
    def forward(self, xs: list[torch.Tensor]) -> torch.Tensor:
        total = torch.zeros(3)
        for x in xs:
            total = total.exp() + x
        return total * 2


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_sequences_are_seen_through(tmp_path: Path) -> None:
    xs = [torch.rand(3), torch.rand(3)]
    exported = build(OnnxTorchScript(), torch.jit.script(Looping()), tmp_path, (xs,))
    found = steps(exported, xs)
    consistent(found)
    ends_in_the_outputs(found, exported, xs)
    loop, total = one(found, "Loop")
    assert torch.allclose(total, (torch.ones(3) + xs[0]).exp() + xs[1])
    assert set(one(found, "Mul")[0].inputs) >= set(loop.outputs)


def planted(folder: Path, nodes: list[Any], outputs: list[str], functions: list[Any]) -> OnnxProgram:
    """A file written by hand, for a model of one argument `x`."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
    )
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains, functions=functions, ir_version=9), folder / "model.onnx")
    Interface({"x": "x"}).write(folder / "model.onnx")

    def model(x: torch.Tensor) -> torch.Tensor:
        return x

    return OnnxProgram(folder / "model.onnx", ExportRequest(model, Call((torch.ones(4),)), None, CPU, folder), None)


def test_a_sequence_inside_of_a_graph_of_tensors(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Exp", ["x"], ["y"]),
        helper.make_node("SequenceConstruct", ["y", "x"], ["pair"]),
        helper.make_node("Constant", [], ["zero"], value_int=0),
        helper.make_node("SequenceAt", ["pair", "zero"], ["z"]),
    ]
    program = planted(tmp_path, nodes, ["z"], [])
    x = torch.rand(4)
    found = steps(program, x)
    assert [step.operator for step in found] == ["Exp", "SequenceAt"]
    assert set(found[1].inputs) >= {"y", "x"}
    assert torch.allclose(found[1].outputs["z"], x.exp())


def test_a_function_of_the_model_is_one_step(tmp_path: Path) -> None:
    body = [helper.make_node("Exp", ["a"], ["b"]), helper.make_node("Neg", ["b"], ["c"])]
    function = helper.make_function("own", "NegExp", ["a"], ["c"], body, [helper.make_opsetid("", 18)])
    nodes = [helper.make_node("NegExp", ["x"], ["y"], domain="own"), helper.make_node("Abs", ["y"], ["z"])]
    program = planted(tmp_path, nodes, ["z"], [function])
    x = torch.rand(4)
    found = steps(program, x)
    assert [step.operator for step in found] == ["own::NegExp", "Abs"]
    assert torch.allclose(found[0].outputs["y"], -x.exp())


def test_complex_values_are_pairs(tmp_path: Path) -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * x).abs()

    x = torch.randn(3, dtype=torch.complex64)
    exported = build(Onnx(), Model(), tmp_path, (x,))
    found = steps(exported, x)
    square = torch.view_as_real(x * x)
    values = [value for step in found for value in step.outputs.values()]
    assert any(v.shape == square.shape and torch.allclose(v, square, atol=1e-6) for v in values)
    ends_in_the_outputs(found, exported, x)


@BOTH
def test_a_changed_weight_shows_in_the_step_that_reads_it(backend: Backend, tmp_path: Path) -> None:
    model, x = Net().eval(), torch.randn(3, 4)
    right = steps(build(backend, model, tmp_path, (x,)), x)
    file = onnx.load(tmp_path / "model.onnx")
    weight = next(one for one in file.graph.initializer if one.name == "blocks.1.linear.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.1, weight.name))
    onnx.save(file, tmp_path / "model.onnx")
    request = ExportRequest(model, Call((x,)), None, CPU, tmp_path)
    wrong = steps(backend.load(None, tmp_path / "model.onnx", request), x)
    first = next(ours for theirs, ours in zip(right, wrong, strict=True) if not _same(theirs, ours))
    assert first.operator == "Gemm"
    assert first.module == "blocks.1.linear"
    assert "blocks.1.linear.weight" in first.inputs


def _same(one_: Step, other: Step) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one_.outputs.values(), other.outputs.values(), strict=True))


@BOTH
def test_the_runtimes_optimiser_has_no_part_in_the_steps(backend: Backend, tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.LayerNorm(4)).eval(), torch.randn(3, 4)
    exported = build(backend, model, tmp_path, (x,))
    nodes = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.node
    assert [s.operator for s in steps(exported, x)] == [n.op_type for n in nodes if n.op_type != "Constant"]
    assert exported.optimizer


class Twins(nn.Module):
    """Submodules of the same last name, in a container and beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Linear(2, 2)
        self.inner = nn.ModuleDict({"conv": nn.Linear(2, 2)})
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))])
        self.block = Block()


@pytest.mark.parametrize(
    ("node", "module"),
    [
        ("/block/linear/Gemm", "block.linear"),
        ("/block/Add", "block"),
        ("/layers.0/layers.0.1/layers.0.1.1/Gemm", "layers.0.1.1"),
        ("/layers.0/layers.0.0/Gemm_3", "layers.0.0"),
        ("/Add_1", ""),
        ("Add_1", ""),
        # There are two that it may be.
        ("/conv/Gemm", ""),
        ("/block/nothing/Gemm", "block"),
        ("/block/act/act.0/Tanh", "block.act.0"),
    ],
)
def test_a_submodule_from_a_node_of_the_legacy_exporter(node: str, module: str) -> None:
    assert ModuleNames(Twins()).of_node(node, {}) == module


@pytest.mark.parametrize(
    ("scopes", "module"),
    [
        ("['', 'block', 'block.linear', 'linear_1']", "block.linear"),
        ("['', 'add']", ""),
        ("['', 'block', 'unknown', 'add']", "block"),
        ("no list", ""),
        ("(1, 2)", ""),
    ],
)
def test_a_submodule_from_the_metadata_of_a_node(scopes: str, module: str) -> None:
    assert ModuleNames(Twins()).of_node("node_linear", {"pkg.torch.onnx.name_scopes": scopes}) == module
