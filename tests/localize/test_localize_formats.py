# mypy: disable-error-code="no-untyped-call,no-any-return,operator,index,arg-type,union-attr,call-overload,has-type"
"""Faults planted in TorchScript programs and ONNX files: each is found where it is, or in the group that holds it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pytest_torchexport import Onnx, OnnxTorchScript, Script, Trace, Verdict, check
from tests.localize.format_models import FILE, source_line, subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from pytest_torchexport import Backend, Outcome
    from pytest_torchexport.outcome import Divergence


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a fault was planted.

    Attributes:
        values: what the program calls the results of the planted node, or of those that read what was changed.
        operators: the same as operators, for a format whose values have no stable names.
        module: the submodule.
        line: a part of the user's line.
        dropped: eager's operator that the program does not have.
    """

    values: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()
    module: str = ""
    line: str = ""
    dropped: str = ""


def faulty(backend: Backend, method: str, plant: Callable[..., Any]) -> Backend:
    """The backend with a fault that `plant` makes of what a method returns."""

    def changed(self: Any, *args: Any) -> Any:
        result = getattr(type(backend), method)(self, *args)
        plant(result)
        return result

    made = type("Faulty", (type(backend),), {method: changed})
    return made(**{one.name: getattr(backend, one.name) for one in dataclasses.fields(backend) if one.init})


def listed(faults: Iterable[str], *quick: str) -> list[Any]:
    """The faults as parameters; all but a few are left out of a quick run."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in faults]


def found_at(outcome: Outcome, place: Place, model: nn.Module, *, knows_lines: bool = True) -> None:
    assert outcome.verdict is Verdict.MISMATCH, outcome.message
    found = outcome.divergence
    assert found is not None, outcome.details
    shown = f"{found}"
    if place.dropped:
        assert place.dropped in found.eager or _named(found, place), shown
    else:
        assert _named(found, place), shown
    # Who reads what was dropped may stand in a submodule of its own.
    assert found.module == place.module or place.dropped, shown
    if knows_lines:
        assert found.location is not None, shown
        assert found.location.file == FILE, shown
        assert found.location.line == source_line(model, place.line), shown


def _named(found: Divergence, place: Place) -> bool:
    if place.values:
        return found.name in place.values or any(f"({name})" in one for name in place.values for one in found.group)
    return found.operator in place.operators or any(one.split(" ")[0] in place.operators for one in found.group)


# TorchScript: faults in the saved program, which is read, changed and written again.


def archive(change: Callable[[Any], None]) -> Callable[[Path], None]:
    def plant(path: Path) -> None:
        loaded = torch.jit.load(str(path))
        with torch.no_grad():
            change(loaded)
        torch.jit.save(loaded, str(path))

    return plant


def parameter(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def plant(loaded: Any) -> None:
        found = dict(loaded.named_parameters())[name]
        found.copy_(change(found))

    return archive(plant)


def node(submodule: str, kind: str, change: Callable[[Any, Any], None], index: int = 0) -> Callable[[Path], None]:
    """Change a node in the graph of one submodule."""

    def plant(loaded: Any) -> None:
        for part in submodule.split(".") if submodule else ():
            loaded = getattr(loaded, part)
        change(loaded.graph, list(loaded.graph.findAllNodes(kind))[index])

    return archive(plant)


def constant(position: int, value: Any) -> Callable[[Any, Any], None]:
    """Give a node another constant as one of its inputs."""

    def change(graph: Any, one: Any) -> None:
        with graph.insert_point_guard(one):
            one.replaceInput(position, graph.insertConstant(value))

    return change


def drop(graph: Any, one: Any) -> None:
    """Let the readers of a node read its first input."""
    one.output().replaceAllUsesWith(one.inputsAt(0))


def swap(graph: Any, one: Any) -> None:
    """Exchange the first two inputs of a node."""
    first, second = one.inputsAt(0), one.inputsAt(1)
    one.replaceInput(0, second)
    one.replaceInput(1, first)


CONVOLUTIONS = ("aten::_convolution", "aten::conv2d")

TORCHSCRIPT: dict[str, tuple[str, Callable[[Path], None], Place]] = {
    "a weight": (
        "resnet",
        parameter("layer1.1.conv2.weight", lambda w: w * 1.02),
        Place(operators=CONVOLUTIONS, module="layer1.1.conv2", line="y = self.bn2(self.conv2(y))"),
    ),
    "one element of a weight": (
        "encoder",
        parameter("layers.1.up.weight", lambda w: torch.where(w == w.max(), w * 1.5, w)),
        Place(operators=("aten::linear",), module="layers.1.up", line="self.down(F.gelu(self.up(self.norm2(x))))"),
    ),
    "a recurrent weight": (
        "recurrent",
        parameter("lstm.weight_hh_l0", lambda w: -w),
        Place(operators=("aten::lstm",), module="lstm", line="y, _ = self.lstm(x * 0.5)"),
    ),
    "a bias of one head of two": (
        "detector",
        parameter("classes.bias", lambda b: b.flip(0)),
        Place(operators=CONVOLUTIONS, module="classes", line="scores = self.classes(features)"),
    ),
    "the weight of a summand": (
        "resnet",
        node("layer2.0", "aten::add", constant(2, 2)),
        Place(operators=("aten::add",), module="layer2.0", line="return F.leaky_relu(y + self.short(x), 0.1)"),
    ),
    "a factor": (
        "detector",
        node("", "aten::mul", constant(1, 0.26)),
        Place(operators=("aten::mul",), line="boxes[..., 2:].exp() * 0.25"),
    ),
    "a dimension": (
        "encoder",
        node("layers.0", "aten::softmax", constant(1, -2)),
        Place(operators=("aten::softmax",), module="layers.0", line="weights = torch.softmax("),
    ),
    "swapped inputs": (
        "unet",
        node("", "prim::ListConstruct", swap, index=-1),
        Place(operators=("aten::cat",), line="joined = torch.cat([high, self.up(low)], dim=1)"),
    ),
    "a constant": (
        "mlp",
        node("", "aten::sub", constant(1, 0.3)),
        Place(operators=("aten::sub",), line="x = (x - 0.25) / 2.5"),
    ),
    "a dropped activation": (
        "unet",
        node("", "aten::sigmoid", drop),
        Place(
            operators=CONVOLUTIONS,
            dropped="sigmoid",
            line="return torch.sigmoid(self.leave(joined))",
        ),
    ),
    "a dropped activation in the middle": (
        "recurrent",
        node("", "aten::tanh", drop),
        Place(operators=("aten::linear",), dropped="tanh", line="return self.head(torch.tanh(y)).log_softmax(-1)"),
    ),
}


@pytest.mark.parametrize("backend", [Trace(), Script()], ids=["trace", "script"])
@pytest.mark.parametrize("fault", listed(TORCHSCRIPT, "a constant", "a dropped activation in the middle"))
def test_torchscript(fault: str, backend: Backend) -> None:
    name, plant, place = TORCHSCRIPT[fault]
    model, x = subject(name)
    outcome = check(model, (x,), backend=faulty(backend, "save", plant), n_inputs=0, branches="off")
    found_at(outcome, place, model)


# ONNX: faults in the saved file.


def file(edit: Callable[[Any], list[str]], values: list[str]) -> Callable[[Path], None]:
    """Change the graph of a file; the names of the values that are wrong then are added to `values`."""

    def plant(path: Path) -> None:
        model = onnx.load(str(path))
        values.extend(edit(model.graph))
        onnx.checker.check_model(model)
        onnx.save(model, str(path))

    return plant


def nth(graph: Any, operator: str, index: int) -> Any:
    return [node for node in graph.node if node.op_type == operator][index]


def weight(operator: str, index: int, change: Callable[[Any], Any], position: int = 1) -> Any:
    """Change the initializer that a node reads."""

    def edit(graph: Any) -> list[str]:
        node = nth(graph, operator, index)
        old = next(one for one in graph.initializer if one.name == node.input[position])
        value = np.ascontiguousarray(change(numpy_helper.to_array(old)))
        graph.initializer.append(numpy_helper.from_array(value, "planted"))
        node.input[position] = "planted"
        return list(node.output)

    return edit


def constant_input(operator: str, index: int, position: int, value: float) -> Any:
    """Let a node read another number."""

    def edit(graph: Any) -> list[str]:
        node = nth(graph, operator, index)
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), "planted"))
        node.input[position] = "planted"
        return list(node.output)

    return edit


def attribute(operator: str, index: int, name: str, value: Any) -> Any:
    def edit(graph: Any) -> list[str]:
        node = nth(graph, operator, index)
        kept = [one for one in node.attribute if one.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])
        return list(node.output)

    return edit


def another_operator(operator: str, index: int, name: str) -> Any:
    def edit(graph: Any) -> list[str]:
        node = nth(graph, operator, index)
        node.op_type = name
        return list(node.output)

    return edit


def swapped(operator: str, index: int) -> Any:
    def edit(graph: Any) -> list[str]:
        node = nth(graph, operator, index)
        node.input[0], node.input[1] = node.input[1], node.input[0]
        return list(node.output)

    return edit


def dropped(operator: str, index: int) -> Any:
    """Take a node out: who read it reads its input. Where it was the output, who made the input gets its name."""

    def edit(graph: Any) -> list[str]:
        node = nth(graph, operator, index)
        source, result = node.input[0], node.output[0]
        graph.node.remove(node)
        if result in {one.name for one in graph.output}:
            maker = next(one for one in graph.node if source in one.output)
            maker.output[:] = [result if name == source else name for name in maker.output]
            return [result]
        values: list[str] = []
        for reader in graph.node:
            if result in reader.input:
                reader.input[:] = [source if name == result else name for name in reader.input]
                values += reader.output
        return values

    return edit


def in_half(operator: str, index: int) -> Any:
    """Put the result of a node through float16."""

    def edit(graph: Any) -> list[str]:
        node = nth(graph, operator, index)
        result = node.output[0]
        node.output[0] = "before"
        position = list(graph.node).index(node) + 1
        graph.node.insert(position, helper.make_node("Cast", ["before"], ["half"], to=TensorProto.FLOAT16))
        graph.node.insert(position + 1, helper.make_node("Cast", ["half"], [result], to=TensorProto.FLOAT))
        return ["half", result]

    return edit


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault in a file.

    Attributes:
        subject: name of the model.
        edit: plants it, and gives the names of the values that are wrong then.
        module: the submodule; by torch.export and by the legacy exporter, where they differ.
        line: a part of the user's line; empty where the file does not know it.
        dropped: eager's operator that the program does not have.
        opset: of the file.
    """

    subject: str
    edit: Any
    module: str | tuple[str, str] = ""
    line: str = ""
    dropped: str = ""
    opset: int | None = None


ONNX = {
    "a weight": Fault(
        "resnet",
        weight("Conv", 4, lambda w: w * 1.02),
        # The exporters fold the normalisation into the convolution.
        ("layer1.1.bn2", "layer1.1.conv2"),
        "y = self.bn2(self.conv2(y))",
    ),
    "the slope of an activation": Fault(
        "resnet", attribute("LeakyRelu", 2, "alpha", 0.12), "layer2.0", "return F.leaky_relu(y + self.short(x), 0.1)"
    ),
    "epsilon": Fault(
        "encoder", attribute("LayerNormalization", 2, "epsilon", 1e-2), "layers.1.norm1", "self.qkv(self.norm1(x))"
    ),
    "an axis": Fault("encoder", attribute("Softmax", 1, "axis", -2), "layers.1", "weights = torch.softmax("),
    "part of a decomposed operator": Fault(
        "encoder",
        another_operator("Erf", 0, "Tanh"),
        "layers.0",
        "self.down(F.gelu(self.up(self.norm2(x))))",
        opset=18,
    ),
    "recurrent weights": Fault("recurrent", weight("LSTM", 0, lambda w: -w, 2), "lstm", "y, _ = self.lstm(x * 0.5)"),
    "a cast to float16": Fault("recurrent", in_half("Tanh", 0)),
    "a dropped activation": Fault(
        "recurrent", dropped("Tanh", 0), "", "self.head(torch.tanh(y)).log_softmax(-1)", dropped="tanh"
    ),
    "swapped inputs": Fault("unet", swapped("Concat", -1), "", "joined = torch.cat([high, self.up(low)], dim=1)"),
    "alpha": Fault("unet", attribute("Elu", 1, "alpha", 0.9), "", "low = F.elu(self.down(high))"),
    "a weight of a transposed convolution": Fault(
        "unet", weight("ConvTranspose", 0, lambda w: w[::-1]), "up", "joined = torch.cat([high, self.up(low)], dim=1)"
    ),
    "a dropped activation at the end": Fault(
        "unet", dropped("Sigmoid", 0), "", "return torch.sigmoid(self.leave(joined))", dropped="sigmoid"
    ),
    "a factor": Fault("detector", constant_input("Mul", -1, 1, 0.26), "", "boxes[..., 2:].exp() * 0.25"),
    "one head of two": Fault(
        "detector", weight("Conv", 2, lambda b: b[::-1], 2), "classes", "scores = self.classes(features)"
    ),
    "swapped operands": Fault("mlp", swapped("Sub", 0), "", "x = (x - 0.25) / 2.5"),
    "a factor of a product": Fault("mlp", attribute("Gemm", 1, "alpha", 1.01), "layers.2", "return self.layers(x)"),
}


@pytest.mark.parametrize("kind", [Onnx, OnnxTorchScript], ids=["onnx", "onnx-torchscript"])
@pytest.mark.parametrize("name", listed(ONNX, "swapped operands", "a cast to float16", "one head of two"))
def test_onnx(name: str, kind: type[Onnx | OnnxTorchScript]) -> None:
    fault, values = ONNX[name], list[str]()
    model, x = subject(fault.subject)
    backend = faulty(kind(opset=fault.opset), "save", file(fault.edit, values))
    outcome = check(model, (x,), backend=backend, n_inputs=0, branches="off")
    by_export = kind is Onnx
    modules = fault.module if isinstance(fault.module, tuple) else (fault.module, fault.module)
    place = Place(tuple(values), (), modules[0 if by_export else 1], fault.line, fault.dropped)
    found_at(outcome, place, model, knows_lines=bool(fault.line))


@pytest.mark.parametrize("kind", [Onnx, OnnxTorchScript], ids=["onnx", "onnx-torchscript"])
def test_what_goes_wrong_only_in_the_optimised_session(kind: type[Onnx | OnnxTorchScript]) -> None:
    """A session that runs another graph than the file holds stands for an optimiser that rewrites it wrongly."""
    fault, model_and_input = ONNX["swapped operands"], subject("mlp")
    plant, held = file(fault.edit, []), list[bytes]()

    class Rewriting(kind):  # type: ignore[misc, valid-type]
        def save(self, program: Any, directory: Path) -> Path:
            path: Path = super().save(program, directory)
            held.append(path.read_bytes())
            plant(path)
            return path

        def load(self, program: Any, path: Path, request: Any) -> Any:
            loaded = super().load(program, path, request)
            path.write_bytes(held[0])
            return loaded

    model, x = model_and_input
    outcome = check(model, (x,), backend=Rewriting(), n_inputs=0, branches="off")
    assert outcome.verdict is Verdict.MISMATCH
    assert outcome.divergence is not None
    assert not outcome.divergence.operator
    assert "ONNX Runtime's graph optimiser" in outcome.divergence.note
    assert "first diverging layer: none" in outcome.message


def test_exchanged_results_are_not_put_down_to_the_optimiser() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x.sin(), x.cos()

    def exchange(graph: Any) -> list[str]:
        first, second = (node.output[0] for node in graph.node)
        graph.node[0].output[0], graph.node[1].output[0] = second, first
        return [first, second]

    backend = faulty(Onnx(), "save", file(exchange, []))
    outcome = check(Model(), (torch.rand(4, 5),), backend=backend, n_inputs=0, branches="off")
    assert outcome.verdict is Verdict.MISMATCH
    assert outcome.divergence is None or "optimiser" not in outcome.divergence.note
