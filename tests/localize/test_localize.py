# mypy: disable-error-code="no-any-return,arg-type,union-attr"
"""Faults are planted in the graph of an exported program, and found where they were planted."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch import nn
from torch._inductor import config, lowering
from torch._inductor.decomposition import select_decomp_table
from torch.export.graph_signature import TensorArgument

from pytest_torchexport import Verdict, check
from pytest_torchexport.backends.torch_export import Captured, Export
from tests.localize.layered_models import Detector, Encoder, Experts, ResNet, Smoothed, Tagger, UNet, make

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import fx
    from torch.export import ExportedProgram

    from pytest_torchexport.backends.base import ExportRequest
    from pytest_torchexport.outcome import Divergence

aten = torch.ops.aten


@dataclass(frozen=True)
class Planted(Export):
    """torch.export, with a fault planted in its graph; `decomposed` takes the graph apart before."""

    name: ClassVar[str] = "planted"
    plant: Callable[[ExportedProgram], None] | None = None
    decomposed: bool = False

    def export(self, request: ExportRequest) -> Captured:
        captured = super().export(request)
        assert captured.program is not None
        if self.decomposed:
            captured.program = captured.program.run_decompositions(select_decomp_table())
        if self.plant is not None:
            self.plant(captured.program)
            captured.program.graph_module.recompile()
        return captured


def node_of(program: ExportedProgram, name: str) -> fx.Node:
    return next(node for node in program.graph.nodes if node.name == name)


def argument(name: str, place: int, value: Any) -> Callable[[ExportedProgram], None]:
    def plant(program: ExportedProgram) -> None:
        node = node_of(program, name)
        node.args = (*node.args[:place], value, *node.args[place + 1 :])

    return plant


def operator(name: str, target: Any) -> Callable[[ExportedProgram], None]:
    def plant(program: ExportedProgram) -> None:
        node = node_of(program, name)
        node.target = target
        node.args = node.args[: len(target._schema.arguments)]

    return plant


def dropped(name: str, kept: int = 0) -> Callable[[ExportedProgram], None]:
    def plant(program: ExportedProgram) -> None:
        node = node_of(program, name)
        stays = node.args[kept]
        rename(program, name, stays.name)
        node.replace_all_uses_with(stays)
        program.graph.erase_node(node)

    return plant


def weight(name: str, factor: float = 1.01) -> Callable[[ExportedProgram], None]:
    def plant(program: ExportedProgram) -> None:
        changed = program.state_dict[name].detach().clone()
        changed.view(-1)[::3] *= factor
        program.state_dict[name] = nn.Parameter(changed)

    return plant


def half(name: str) -> Callable[[ExportedProgram], None]:
    """The layer computes on operands that were rounded to bfloat16."""

    def plant(program: ExportedProgram) -> None:
        node = node_of(program, name)
        first = node.args[0]
        assert isinstance(first, torch.fx.Node)
        with program.graph.inserting_before(node):
            narrow = program.graph.call_function(aten._to_copy.default, (first,), {"dtype": torch.bfloat16})
            wide = program.graph.call_function(aten._to_copy.default, (narrow,), {"dtype": torch.float32})
        narrow.meta = {**node.meta, "val": first.meta["val"].to(torch.bfloat16)}
        wide.meta = {**node.meta, "val": first.meta["val"]}
        node.args = (wide, *node.args[1:])

    return plant


def rename(program: ExportedProgram, old: str, new: str) -> None:
    for spec in program.graph_signature.output_specs:
        if getattr(spec.arg, "name", None) == old:
            spec.arg = TensorArgument(name=new)


def found(model: type[nn.Module], plant: Callable[[ExportedProgram], None], **options: Any) -> Divergence:
    made, args = make(model)
    decomposed = options.pop("decomposed", False)
    backend = Planted(plant=plant, decomposed=decomposed)
    outcome = check(made, args, backend=backend, n_inputs=0, branches="off", **options)
    assert outcome.verdict is Verdict.MISMATCH, outcome.message
    assert outcome.divergence is not None, outcome.details.get("localization")
    return outcome.divergence


@pytest.mark.parametrize(
    ("model", "name", "plant", "module", "line"),
    [
        (ResNet, "conv2d_2", weight("layers.0.conv2.weight"), "layers.0.conv2", "y = self.bn2(self.conv2(y))"),
        (ResNet, "batch_norm_3", argument("batch_norm_3", 7, 1e-2), "layers.1.bn1", "self.bn1(self.conv1(x))"),
        (ResNet, "relu_2", operator("relu_2", aten.sigmoid.default), "layers.0", "functional.relu(x + y)"),
        (ResNet, "mean", operator("mean", aten.amax.default), "", "x = x.mean((2, 3))"),
        (Encoder, "embedding", weight("embedding.weight"), "embedding", "x = self.embedding(ids)"),
        (Encoder, "div_1", argument("div_1", 1, 2.5), "layers.1", "math.sqrt"),
        (Encoder, "softmax", argument("softmax", 1, -2), "layers.0", "torch.softmax(weights, -1)"),
        (Encoder, "layer_norm_2", argument("layer_norm_2", 4, 1e-2), "layers.1.norm1", "self.qkv(self.norm1(x))"),
        (Encoder, "gelu", operator("gelu", aten.silu.default), "layers.0.feed.1", "self.feed(self.norm2(x))"),
        (Tagger, "lstm.0", weight("lstm.weight_hh_l0_reverse"), "lstm", "self.lstm(self.embedding(ids))"),
        (Tagger, "log_softmax", argument("log_softmax", 1, 1), "", "functional.log_softmax"),
        (UNet, "group_norm_1", argument("group_norm_1", 4, 1e-2), "down2.1", "self.down2("),
        (UNet, "conv_transpose2d", weight("up.weight"), "up", "self.up(b)"),
        (Experts, "topk.0", argument("topk", 1, 1), "", "chances.topk(2, -1)"),
        (Experts, "silu", operator("silu", aten.relu.default), "", "functional.silu"),
        (Detector, "leaky_relu", argument("leaky_relu", 1, 0.2), "body.2", "self.body(x)"),
        (Detector, "exp", operator("exp", aten.sigmoid.default), "", "size = torch.exp("),
        (Detector, "mul_1", argument("mul_1", 1, 12), "", "size = torch.exp("),
        (Smoothed, "mean", operator("mean", aten.amax.default), "", "self.average.mul_"),
    ],
)
def test_a_changed_operator_is_named(
    model: type[nn.Module], name: str, plant: Callable[[ExportedProgram], None], module: str, line: str
) -> None:
    divergence = found(model, plant)
    assert divergence.name == name or any(f"({name})" in one for one in divergence.group)
    assert divergence.module == module
    assert divergence.location is not None
    assert line in divergence.location.source
    assert divergence.score > 6 > divergence.inputs_score
    assert len(divergence.group) <= 3


@pytest.mark.parametrize(
    ("model", "plant", "eager", "line"),
    [
        (ResNet, dropped("add_1", 1), "aten.add.Tensor", "functional.relu(x + y)"),
        (ResNet, dropped("relu_3"), "aten.relu.default", "functional.relu(self.bn1"),
        (Encoder, dropped("add_1"), "aten.add.Tensor", "return x + self.feed"),
        (Encoder, dropped("masked_fill"), "aten.masked_fill.Scalar", "weights.masked_fill(mask"),
        (Encoder, dropped("layer_norm_1"), "aten.native_layer_norm.default", "self.feed(self.norm2(x))"),
        (Experts, dropped("div"), "aten.div.Tensor", "kept / kept.sum"),
        (UNet, dropped("sigmoid"), "aten.sigmoid.default", "torch.sigmoid(self.out(y))"),
        (Smoothed, dropped("tanh"), "aten.tanh.default", "return torch.tanh(z)"),
    ],
)
def test_an_operator_that_the_program_lacks_is_named_as_eagers(
    model: type[nn.Module], plant: Callable[[ExportedProgram], None], eager: str, line: str
) -> None:
    divergence = found(model, plant)
    assert divergence.eager == eager
    assert divergence.location is not None
    assert line in divergence.location.source
    assert f"nothing in the program is what {eager} computes" in divergence.note


@pytest.mark.parametrize(("model", "name"), [(ResNet, "conv2d_4"), (Encoder, "linear_5"), (UNet, "conv2d_2")])
def test_a_layer_of_low_precision_begins_where_it_is_rounded(model: type[nn.Module], name: str) -> None:
    divergence = found(model, half(name))
    assert divergence.operator == "aten._to_copy.default"
    assert not divergence.group


@pytest.mark.parametrize(
    ("model", "name"),
    [(Encoder, "rsqrt_2"), (Encoder, "sum_1"), (Encoder, "erf"), (Encoder, "mul_11"), (UNet, "rsqrt")],
)
def test_a_fault_inside_of_decomposed_operators_is_in_the_group(model: type[nn.Module], name: str) -> None:
    """The steps of a decomposed norm, softmax or activation have no counterparts in eager, right or wrong."""

    def plant(program: ExportedProgram) -> None:
        node = node_of(program, name)
        with program.graph.inserting_after(node):
            scaled = program.graph.call_function(aten.mul.Tensor, (node, 1.01), name="planted")
        scaled.meta = dict(node.meta)
        node.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled)

    divergence = found(model, plant, decomposed=True)
    assert divergence.name == "planted" or any("(planted)" in one for one in divergence.group)
    assert len(divergence.group) < 12


def test_a_write_that_the_program_lost_shows_in_the_next_call() -> None:
    made, args = make(Smoothed)

    def plant(program: ExportedProgram) -> None:
        write = node_of(program, "add_")
        write.replace_all_uses_with(write.args[0])
        program.graph.erase_node(write)

    outcome = check(made, args, backend=Planted(plant=plant), calls=2, n_inputs=0, branches="off")
    assert outcome.verdict is Verdict.MISMATCH
    assert outcome.divergence is not None
    assert outcome.divergence.location is not None
    assert "self.average.mul_(0.5).add_" in outcome.divergence.location.source


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("model", [ResNet, Encoder, Tagger, UNet, Experts, Detector, Smoothed])
def test_a_right_program_is_not_localized(
    model: type[nn.Module], decomposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        pytest.fail("there is nothing to find")

    monkeypatch.setattr(sys.modules["pytest_torchexport.check"], "localize", never)
    made, args = make(model)
    outcome = check(made, args, backend=Planted(decomposed=decomposed), n_inputs=2)
    assert outcome.verdict is Verdict.EQUIVALENT
    assert outcome.divergence is None


def test_a_search_that_fails_leaves_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        msg = "no"
        raise RuntimeError(msg)

    monkeypatch.setattr(sys.modules["pytest_torchexport.check"], "localize", fails)
    made, args = make(Smoothed)
    plant = operator("tanh", aten.sigmoid.default)
    outcome = check(made, args, backend=Planted(plant=plant), n_inputs=0, branches="off")
    assert outcome.verdict is Verdict.MISMATCH
    assert outcome.divergence is None


def test_large_values_are_kept_as_sketches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_torchexport.localize.first_difference._NUMBERS", 100_000)
    divergence = found(ResNet, weight("layers.1.conv2.weight"))
    assert divergence.name == "conv2d_4"
    divergence = found(UNet, dropped("silu_1"))
    assert divergence.eager == "aten.silu.default"


class Wide(nn.Module):
    """Norm, product, two activations: each can be made wrong in a compiler of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 8)
        self.act = nn.Tanh()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.fc(self.norm(x)))
        z = torch.softmax(y * 3, -1)
        return z + x.sigmoid()


def compiled(backend: str) -> Divergence:
    torch.manual_seed(0)
    outcome = check(Wide().eval(), (torch.rand(3, 8),), backend=backend, n_inputs=0, branches="off")
    assert outcome.verdict is Verdict.MISMATCH, outcome.message
    assert outcome.divergence is not None, outcome.details.get("localization")
    return outcome.divergence


def replaced(old: Any, new: Any) -> Callable[[fx.Graph], None]:
    def change(graph: fx.Graph) -> None:
        for node in graph.nodes:
            if node.target == old:
                node.target = new

    return change


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")
@pytest.mark.parametrize("backend", ["compile", "aoti"])
def test_a_wrong_pass_of_the_compiler(backend: str) -> None:
    wrong = replaced(aten.tanh.default, aten.sigmoid.default)
    with config.patch(force_disable_caches=True, post_grad_custom_post_pass=wrong):
        divergence = compiled(backend)
    assert divergence.eager == "aten.tanh.default"
    assert "tanh" in divergence.operator
    assert divergence.location is not None
    assert "self.act(self.fc" in divergence.location.source


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")
@pytest.mark.parametrize("backend", ["compile", "aoti"])
def test_wrong_code_for_an_operator(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lowering.lowerings, aten.sigmoid.default, lowering.lowerings[aten.tanh.default])
    with config.patch(force_disable_caches=True):
        divergence = compiled(backend)
    assert divergence.eager == "aten.sigmoid.default"
    assert "sigmoid" in divergence.operator


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")
@pytest.mark.parametrize("backend", ["compile", "aoti"])
def test_a_wrong_step_inside_of_a_decomposed_norm(backend: str) -> None:
    wrong = replaced(aten.rsqrt.default, aten.sqrt.default)
    with config.patch(force_disable_caches=True, post_grad_custom_post_pass=wrong):
        divergence = compiled(backend)
    assert divergence.eager == "aten.native_layer_norm.default"
    assert divergence.module == "norm"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")
def test_a_fault_that_only_the_whole_program_has_is_found_by_submodules() -> None:
    """With every value given, the compiler fuses in another way, and the fault is gone."""
    wrong = replaced(aten.tanh.default, aten.sigmoid.default)

    def only_with_one_output(graph: fx.Graph) -> None:
        (outputs,) = graph.output_node().args
        if len(outputs) == 1:
            wrong(graph)

    with config.patch(force_disable_caches=True, post_grad_custom_post_pass=only_with_one_output):
        divergence = compiled("compile")
    assert (divergence.module, divergence.operator) == ("act", "")
    assert "together" in divergence.note
