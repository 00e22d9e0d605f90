from __future__ import annotations

import shutil
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.export import Dim

from pytest_torchexport.backends.base import Exported, ExportRequest, FlatOutput, Structure
from pytest_torchexport.backends.onnx_torchscript import OnnxTorchScript
from pytest_torchexport.compare.tree import pair
from pytest_torchexport.errors import ConventionError
from pytest_torchexport.outcome import Cause
from pytest_torchexport.subject.call import Call

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CPU = torch.device("cpu")


@pytest.fixture
def export(tmp_path: Path) -> Any:
    """Exports, saves and loads as the engine does."""

    def export(model: Any, *args: Any, shapes: Any = None, options: Any = None, **kwargs: Any) -> Exported:
        if isinstance(model, torch.nn.Module) and not isinstance(model, torch.jit.ScriptModule):
            model.train(getattr(model, "keep_training", False))
        backend = OnnxTorchScript(**(options or {}))
        request = ExportRequest(model, Call(args, kwargs).clone(), shapes, CPU, tmp_path)
        program = backend.export(request)
        return backend.load(program, backend.save(program, tmp_path), request)

    return export


def assert_agrees(model: Any, exported: Exported, *args: Any, **kwargs: Any) -> FlatOutput:
    ours, theirs = Call(args, kwargs).clone(), Call(args, kwargs).clone()
    expected, actual = model(*ours.args, **ours.kwargs), exported(*theirs.args, **theirs.kwargs)
    pairs = pair(expected, actual, Structure.FLAT)
    assert pairs.problems == []
    assert pairs.leaves
    for path, one, other in pairs.leaves:
        torch.testing.assert_close(other, one, msg=f"{path}: {one} and {other}")
    assert isinstance(actual, FlatOutput)
    return actual


class Nested(torch.nn.Module):
    def forward(
        self, x: torch.Tensor, parts: Any, mask: torch.Tensor | None = None, n: int = 2, flag: bool = True
    ) -> Any:
        result = x * n - parts["a"][0] + 2 * parts["b"]
        if mask is not None:
            result = result * mask
        return (result, None, {"v": x}) if flag else (result,)


def nested_call() -> tuple[torch.Tensor, dict[str, Any], torch.Tensor]:
    x, a, b, mask = torch.rand(4, 2, 3)
    return x, {"a": (a,), "b": b}, mask


def test_nested_arguments_reach_the_inputs_they_belong_to(export: Any) -> None:
    x, parts, mask = nested_call()
    exported = export(Nested(), x, parts, mask=mask)
    x, parts, mask = nested_call()
    assert_agrees(Nested(), exported, x, parts, mask)
    assert_agrees(Nested(), exported, x, parts, mask=mask, n=5)
    with pytest.raises(ConventionError) as error:
        exported(x, parts)
    assert error.value.argument == "mask"
    with pytest.raises(ConventionError) as error:
        exported(x, parts, mask, flag=False)
    assert error.value.argument == "flag"
    assert [suspicion.cause for suspicion in exported.suspicions] == [Cause.BAKED_BRANCH]


def test_keyword_only_arguments_are_passed(export: Any) -> None:
    class Keywords(torch.nn.Module):
        def forward(self, x: torch.Tensor, *rest: torch.Tensor, a: torch.Tensor, flag: bool = True, **more: Any) -> Any:
            return x - 2 * rest[0] + 3 * a - 4 * more["b"]

    x, y, a, b = torch.rand(4, 3)
    exported = export(Keywords(), x, y, b=b, a=a)
    assert_agrees(Keywords(), exported, y, x, a=b, b=a)


def test_a_dict_in_the_last_place_is_an_argument(export: Any) -> None:
    class Last(torch.nn.Module):
        def forward(self, x: torch.Tensor, parts: dict[str, torch.Tensor]) -> torch.Tensor:
            return x - parts["a"]

    assert_agrees(Last(), export(Last(), torch.rand(3), {"a": torch.rand(3)}), torch.rand(3), {"a": torch.rand(3)})


def test_an_input_that_the_exporter_drops_is_ignored_and_said(export: Any) -> None:
    class Unused(torch.nn.Module):
        def forward(self, x: torch.Tensor, unused: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x - y

    exported = export(Unused(), *torch.rand(3, 2))
    assert_agrees(Unused(), exported, *torch.rand(3, 2))
    assert [entry.what for entry in exported.not_checked] == ["argument unused"]


def test_an_input_that_the_tracer_bakes_is_not_followed(export: Any) -> None:
    class Count(torch.nn.Module):
        def forward(self, x: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
            return x * int(count)

    exported = export(Count(), torch.ones(3), torch.tensor(2))
    (value,) = exported(torch.ones(3), torch.tensor(5)).values.values()
    assert torch.equal(value, torch.full((3,), 2.0))
    assert [entry.what for entry in exported.not_checked] == ["argument count"]
    (suspicion,) = exported.suspicions
    assert suspicion.cause is Cause.BAKED_VALUE
    assert suspicion.location is not None
    assert suspicion.location.source == "return x * int(count)"


def test_dynamic_sizes_may_vary(export: Any) -> None:
    class Sums(torch.nn.Module):
        def forward(self, x: torch.Tensor, parts: Any, y: torch.Tensor) -> Any:
            return x + parts["a"][0].sum(1, keepdim=True), y.sum(0), x[:2], y.reshape(y.shape[0], -1)

    batch = Dim("batch")
    shapes = {"x": {0: batch, 1: None}, "parts": {"a": ({0: batch},)}, "y": (Dim.AUTO, Dim.STATIC, Dim.DYNAMIC)}
    exported = export(Sums(), torch.rand(3, 4), {"a": (torch.rand(3, 2),)}, torch.rand(3, 2, 2), shapes=shapes)
    assert_agrees(Sums(), exported, torch.rand(7, 4), {"a": (torch.rand(7, 2),)}, torch.rand(5, 2, 3))
    with pytest.raises(Exception, match="invalid dimensions"):
        exported(torch.rand(7, 5), {"a": (torch.rand(7, 2),)}, torch.rand(5, 2, 3))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64])
def test_element_types_pass_unchanged(export: Any, dtype: torch.dtype) -> None:
    class Same(torch.nn.Module):
        def forward(self, x: torch.Tensor, scalar: torch.Tensor) -> Any:
            return x.reshape(-1), scalar.reshape(1)

    call = torch.tensor([[0, 1, 2], [3, 100, 1]]).to(dtype).t(), torch.tensor(1).to(dtype)
    assert_agrees(Same(), export(Same(), *call), *call)


def test_a_list_of_unknown_length_is_a_sequence(export: Any) -> None:
    class Lists(torch.nn.Module):
        def forward(self, parts: list[torch.Tensor], y: torch.Tensor) -> list[torch.Tensor]:
            for part in parts:
                y = y + part
            return torch.split(y, 1)  # type: ignore[return-value]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(Lists().eval())
    exported = export(scripted, [torch.rand(3, 2)] * 2, torch.rand(3, 2))
    (value,) = exported([torch.ones(3, 2)] * 4, torch.zeros(3, 2)).values.values()
    assert [part.tolist() for part in value] == [[[4.0, 4.0]]] * 3


class Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x**3

    @staticmethod
    def symbolic(g: Any, x: Any) -> Any:
        return g.op("Mul", x, g.op("Mul", x, x))


def test_the_symbolic_of_an_autograd_function_is_used(export: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = Cubed.apply(x)  # type: ignore[no-untyped-call]
            return result

    exported = export(Model(), torch.rand(3))
    assert exported.details["nodes"] == 2
    assert_agrees(Model(), exported, torch.rand(3))
    monkeypatch.setattr(Cubed, "symbolic", staticmethod(lambda g, x: g.op("Mul", x, x)))
    (value,) = export(Model(), torch.rand(3))(torch.full((3,), 2.0)).values.values()
    assert value.tolist() == [4.0] * 3


@pytest.fixture
def shrink_symbolic() -> Iterator[None]:
    from torch.onnx import symbolic_helper, utils

    @symbolic_helper.parse_args("v", "f")
    def hardshrink(g: Any, x: Any, bound: float) -> Any:
        return g.op("Shrink", x, lambd_f=bound)

    utils.register_custom_op_symbolic("aten::hardshrink", hardshrink, 17)
    yield
    utils.unregister_custom_op_symbolic("aten::hardshrink", 17)


def test_a_registered_symbolic_is_used(export: Any, shrink_symbolic: None) -> None:
    model, x = torch.nn.Hardshrink(0.5), torch.linspace(-1, 1, 11)
    exported = export(model, x, options={"opset": 17})
    assert (exported.details["opset"], exported.details["nodes"]) == (17, 1)
    assert_agrees(model, exported, x)


class Resize(torch.autograd.Function):
    """Bicubic resizing whose factor stays an input of the graph."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        scale = float(factor)
        return torch.nn.functional.interpolate(x, scale_factor=scale, mode="bicubic", align_corners=False)

    @staticmethod
    def symbolic(g: Any, x: Any, factor: Any) -> Any:
        unchanged = g.op("Constant", value_t=torch.ones(2))
        scales = g.op(
            "Concat", unchanged, g.op("Expand", factor, g.op("Constant", value_t=torch.tensor([2]))), axis_i=0
        )
        nothing = g.op("Constant", value_t=torch.zeros(0))
        return g.op(
            "Resize",
            x,
            nothing,
            scales,
            coordinate_transformation_mode_s="half_pixel",
            cubic_coeff_a_f=-0.75,
            mode_s="cubic",
        )


class SuperResolution(torch.nn.Module):
    def __init__(self, *, custom: bool) -> None:
        super().__init__()
        self.custom = custom
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 9, padding=4), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 5)
        )

    def forward(self, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        if self.custom:
            large = Resize.apply(x, factor)  # type: ignore[no-untyped-call]
        else:
            large = torch.nn.functional.interpolate(x, scale_factor=factor.item(), mode="bicubic")
        result: torch.Tensor = self.layers(large)
        return result


def test_a_runtime_factor_is_baked_by_the_naive_export(export: Any) -> None:
    model = SuperResolution(custom=False)
    exported = export(model, torch.rand(1, 3, 16, 16), torch.tensor(3.0))
    image = torch.rand(1, 3, 16, 16)
    assert_agrees(model, exported, image, torch.tensor(3.0))
    (value,) = exported(image, torch.tensor(2.0)).values.values()
    assert value.shape[-1] == 44
    assert Cause.BAKED_VALUE in [suspicion.cause for suspicion in exported.suspicions]


def test_a_runtime_factor_stays_an_input_with_a_resize_of_its_own(export: Any) -> None:
    model = SuperResolution(custom=True)
    exported = export(model, torch.rand(1, 3, 16, 16), torch.tensor(3.0))
    for factor in (3.0, 2.0, 4.0):
        assert_agrees(model, exported, torch.rand(1, 3, 16, 16), torch.tensor(factor))


def test_state_is_lost_and_the_exporters_warning_kept(export: Any) -> None:
    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.total = torch.nn.Buffer(torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.total.add_(x)
            x.mul_(2)
            return self.total * 1

    exported = export(Counter(), torch.ones(3))
    assert {suspicion.cause for suspicion in exported.suspicions} == {Cause.LOST_STATE, Cause.LOST_MUTATION}
    assert exported.read_state() == {}


def test_the_model_is_exported_in_its_own_mode_and_keeps_it(export: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.BatchNorm1d(4))
    model.keep_training = True  # type: ignore[assignment]
    model.train()
    backend = OnnxTorchScript(do_constant_folding=False)

    def modes() -> list[bool]:
        return [module.training for module in model.modules()]

    before = modes()
    exported = export(model, torch.rand(8, 4), options={"do_constant_folding": False})
    assert modes() == before
    assert backend.id == "onnx-torchscript:do_constant_folding=false"
    # In training mode the statistics are those of the batch, whatever the batch is.
    assert_agrees(model, exported, torch.rand(8, 4) * 100)


def test_an_unsupported_operator_is_refused_and_the_graph_not_printed(
    export: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    class Spectrum(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return torch.fft.rfft(x)

    with pytest.raises(torch.onnx.errors.UnsupportedOperatorError, match="fft_rfft"):
        export(Spectrum(), torch.rand(4))
    assert capfd.readouterr() == ("", "")


def test_a_function_is_exported_too(export: Any) -> None:
    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x - 2 * y

    assert_agrees(function, export(function, torch.rand(3), y=torch.rand(3)), torch.rand(3), torch.rand(3))


def test_the_file_is_saved_where_it_is_asked_for(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    model, backend = torch.nn.Linear(3, 2).eval(), OnnxTorchScript()
    request = ExportRequest(model, Call((torch.rand(1, 3),)), None, CPU, first)
    path = backend.save(backend.export(request), second)
    assert path == second / "model.onnx"
    shutil.rmtree(first)
    assert_agrees(model, backend.load(None, path, request), torch.rand(1, 3))
