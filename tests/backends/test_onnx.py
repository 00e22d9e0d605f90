from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any

import onnx
import onnxruntime
import pytest
import torch
from onnxscript import opset18 as op
from torch.export import Dim

from pytest_torchexport.backends.base import Backend, Exported, ExportRequest, FlatOutput, Structure
from pytest_torchexport.backends.onnx import Onnx
from pytest_torchexport.compare.tree import pair
from pytest_torchexport.errors import ConventionError, ExportRefused
from pytest_torchexport.subject.call import Call

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")


class Exporter:
    """Exports, saves and loads as the engine does."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(
        self, model: Any, *args: Any, backend: Backend | None = None, shapes: Any = None, **kwargs: Any
    ) -> Exported:
        backend = backend or Onnx()
        request = ExportRequest(model, Call(args, kwargs).clone(), shapes, CPU, self.directory)
        program = backend.export(request)
        path = backend.save(program, self.directory)
        return backend.load(program, path, request)


@pytest.fixture
def export(tmp_path: Path) -> Exporter:
    return Exporter(tmp_path)


def assert_agrees(model: Any, exported: Exported, *args: Any, **kwargs: Any) -> FlatOutput:
    """Run both on the same call and compare every leaf that the pairing finds."""
    ours, theirs = Call(args, kwargs).clone(), Call(args, kwargs).clone()
    expected, actual = model(*ours.args, **ours.kwargs), exported(*theirs.args, **theirs.kwargs)
    pairs = pair(expected, actual, Structure.FLAT)
    assert pairs.problems == []
    assert pairs.leaves
    for path, one, other in pairs.leaves:
        assert type(one) is type(other), path
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(other, one, msg=f"{path}: {one} and {other}")
        else:
            assert other == pytest.approx(one), path
    assert isinstance(actual, FlatOutput)
    return actual


class Nested(torch.nn.Module):
    def forward(
        self,
        x: torch.Tensor,
        pair: Any,
        parts: dict[str, Any],
        *,
        mask: torch.Tensor | None = None,
        flag: bool = True,
        scale: float = 2.0,
    ) -> Any:
        result = x * scale - pair[0] + 2 * pair[1][0] - 3 * parts["a"] + 4 * parts["b"]["c"]
        if mask is not None:
            result = result * mask
        return result if flag else -result


def nested_call(*, shuffled: bool = False) -> tuple[tuple[Any, ...], dict[str, Any]]:
    x, a, b, c, d, mask = torch.rand(6, 2, 3)
    kwargs = {"scale": 3.0, "mask": mask} if shuffled else {"mask": mask, "scale": 3.0}
    return (x, (a, [b]), {"a": c, "b": {"c": d}}), kwargs


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    args, kwargs = nested_call(shuffled=True)
    return Exporter(tmp_path_factory.mktemp("nested"))(Nested(), *args, **kwargs)


def test_nested_arguments_reach_the_inputs_they_belong_to(nested: Exported) -> None:
    args, kwargs = nested_call()
    assert_agrees(Nested(), nested, *args, **kwargs)


def test_keyword_arguments_are_fed_by_name_in_any_order(export: Exporter) -> None:
    class Keywords(torch.nn.Module):
        def forward(self, x: torch.Tensor, *rest: torch.Tensor, a: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
            return x - 2 * rest[0] + 3 * a - 4 * more["b"]

    x, y, a, b = torch.rand(4, 3)
    exported = export(Keywords(), x, y, b=b, a=a)
    assert_agrees(Keywords(), exported, y, x, a=b, b=a)


def test_a_dict_in_the_last_place_is_an_argument(export: Exporter) -> None:
    class Last(torch.nn.Module):
        def forward(self, x: torch.Tensor, parts: dict[str, torch.Tensor]) -> torch.Tensor:
            return x - parts["a"]

    exported = export(Last(), torch.rand(3), {"a": torch.rand(3)})
    assert_agrees(Last(), exported, torch.rand(3), {"a": torch.rand(3)})


def test_names_that_collide_are_told_apart(export: Exporter) -> None:
    class Colliding(torch.nn.Module):
        def forward(self, x: list[torch.Tensor], d: dict[Any, torch.Tensor], x_0: torch.Tensor) -> torch.Tensor:
            return x[0] - 2 * d["A-b"] + 3 * d["a_b"] - 4 * x_0

    call = [torch.rand(2)], {"A-b": torch.rand(2), "a_b": torch.rand(2)}, torch.rand(2)
    assert_agrees(Colliding(), export(Colliding(), *call), *call)


def test_a_value_that_the_export_fixed_cannot_change(nested: Exported) -> None:
    args, kwargs = nested_call()
    assert "scale" in str(nested.not_checked)
    for changed, argument in [
        ({**kwargs, "scale": 4.0}, "scale"),
        ({**kwargs, "flag": False}, "flag"),
        ({**kwargs, "mask": None}, "mask"),
        ({"scale": 3.0}, "mask"),
    ]:
        with pytest.raises(ConventionError) as error:
            nested(*args, **changed)
        assert error.value.argument == argument
    with pytest.raises(ConventionError):
        nested(args[0], (args[1][0], [args[1][1][0]] * 2), args[2], **kwargs)


def test_a_tensor_for_an_optional_argument_that_was_none_is_not_dropped(export: Exporter) -> None:
    args, kwargs = nested_call()
    exported = export(Nested(), *args, mask=None)
    assert_agrees(Nested(), exported, *args)
    with pytest.raises(ConventionError):
        exported(*args, mask=kwargs["mask"])


DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
DTYPES += [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def test_every_element_type_passes_unchanged(export: Exporter) -> None:
    class Same(torch.nn.Module):
        def forward(self, values: list[torch.Tensor], scalars: list[torch.Tensor], empty: list[torch.Tensor]) -> Any:
            return [x.reshape(-1) for x in values], [x.reshape(1) for x in scalars], scalars, empty

    values = torch.tensor([[0, 1, 2], [3, 100, 1]]).t()
    call = [
        [source.to(dtype, copy=True) for dtype in DTYPES] for source in (values, torch.tensor(1), torch.zeros(0, 3))
    ]
    flat = assert_agrees(Same(), export(Same(), *call), *call)
    assert len(flat.values) == 4 * len(DTYPES)


@pytest.mark.parametrize("optimize", [True, False])
def test_outputs_keep_their_order_when_one_value_stands_in_several(export: Exporter, optimize: bool) -> None:
    class Outputs(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            once = x + y
            return {"b": once, "a": None, "c": (x, once), "d": [y * 2, x]}

    exported = export(Outputs(), torch.rand(3), torch.rand(3), backend=Onnx(optimize=optimize))
    flat = assert_agrees(Outputs(), exported, torch.rand(3), torch.rand(3))
    assert len(flat.values) == 5


def test_numbers_that_are_computed_come_back_as_numbers(export: Exporter) -> None:
    class Numbers(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return x.shape[0], x * 2, x.sum().item()

    exported = export(Numbers(), torch.rand(3, 4), shapes={"x": {0: Dim.AUTO}})
    assert_agrees(Numbers(), exported, torch.rand(5, 4))


def test_an_int_that_may_vary_is_an_input(export: Exporter) -> None:
    class Repeat(torch.nn.Module):
        def forward(self, x: torch.Tensor, n: int) -> torch.Tensor:
            return x * n

    exported = export(Repeat(), torch.rand(3), 4, shapes={"x": None, "n": Dim.DYNAMIC})
    assert_agrees(Repeat(), exported, torch.rand(3), 7)


@pytest.mark.parametrize(("constant", "kind"), [(3, "int"), ("name", "str")])
def test_a_constant_output_is_refused_in_the_users_words(export: Exporter, constant: Any, kind: str) -> None:
    class Constant(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return x + 1, constant

    with pytest.raises(ExportRefused, match=f"returns a Python {kind} that does not depend on its inputs"):
        export(Constant(), torch.rand(3))


def test_another_refusal_keeps_the_exporters_own_words(export: Exporter) -> None:
    class Branch(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(torch.onnx.OnnxExporterError, match="data-dependent") as error:
        export(Branch(), torch.rand(3))
    assert error.value.__cause__ is not error.value


def test_complex_tensors_are_passed_as_pairs_and_come_back_complex(export: Exporter) -> None:
    class Spectrum(torch.nn.Module):
        def forward(self, x: torch.Tensor, phase: torch.Tensor) -> Any:
            return torch.fft.fft(x), phase * 2, x

    call = torch.rand(2, 8), torch.rand(3, dtype=torch.complex64)
    exported = export(Spectrum(), *call)
    x, lazily = torch.rand(2, 8), torch.rand(3, dtype=torch.complex64).conj()
    assert_agrees(Spectrum(), exported, x, lazily)
    torch.testing.assert_close(list(exported(x, lazily).values.values())[1], lazily * 2)
    assert "pairs" in exported.details["complex"]


def test_a_dynamic_size_may_vary(export: Exporter) -> None:
    class Sums(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor, *more: torch.Tensor) -> Any:
            return x + more[0].sum(1, keepdim=True), y.sum(0), more[1].mean()

    batch = Dim("batch")
    shapes = {"x": {0: batch}, "y": {0: Dim.AUTO}, "more_0": {0: batch}, "more_1": {1: Dim.DYNAMIC}}
    exported = export(Sums(), *(torch.rand(size, 4) for size in (3, 5, 3, 2)), shapes=shapes)
    assert_agrees(Sums(), exported, torch.rand(7, 4), torch.rand(2, 4), torch.rand(7, 4), torch.rand(2, 9))


def test_a_fixed_size_cannot_vary(export: Exporter) -> None:
    exported = export(torch.nn.ReLU(), torch.rand(3, 4))
    with pytest.raises(Exception, match="invalid dimensions"):
        exported(torch.rand(7, 4))


def test_updates_of_buffers_and_arguments_are_no_outputs(export: Exporter) -> None:
    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.total = torch.nn.Buffer(torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.total.add_(x)
            x.mul_(2)
            return self.total * 10

    exported = export(Counter(), torch.ones(3))
    (value,) = exported(torch.ones(3)).values.values()
    assert torch.equal(value, torch.full((3,), 10.0))
    assert exported.read_state() == {}


def test_an_attribute_that_export_loses_is_a_suspicion(export: Exporter) -> None:
    class Cache(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = torch.zeros(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.last = x * 2
            return self.last

    exported = export(Cache(), torch.ones(3))
    assert [suspicion.cause for suspicion in exported.suspicions] == ["lost state"]


def test_the_file_is_what_runs(export: Exporter, tmp_path: Path) -> None:
    backend, model = Onnx(external_data=False), torch.nn.Linear(3, 2)
    request = ExportRequest(model, Call((torch.rand(1, 3),)), None, CPU, tmp_path)
    program = backend.export(request)
    path = backend.save(program, tmp_path)
    assert path is not None
    proto = onnx.load(str(path))
    (bias,) = [one for one in proto.graph.initializer if one.name == "bias"]
    bias.CopyFrom(onnx.numpy_helper.from_array(model.bias.detach().numpy() + 1, "bias"))
    onnx.save(proto, str(path))
    x = torch.rand(1, 3)
    (changed,) = backend.load(None, path, request)(x).values.values()
    torch.testing.assert_close(changed, model(x) + 1)


@pytest.mark.parametrize("external", [True, False])
def test_weights_lie_beside_the_graph_on_request(export: Exporter, tmp_path: Path, external: bool) -> None:
    # Large enough that the exporter does not keep the weights in the graph all the same.
    model, x = torch.nn.Linear(64, 64), torch.rand(1, 64)
    assert_agrees(model, export(model, x, backend=Onnx(external_data=external)), x)
    beside = tmp_path / "model.onnx.data"
    assert beside.exists() == external
    if external:
        beside.unlink()
        request = ExportRequest(model, Call((x,)), None, CPU, tmp_path)
        with pytest.raises(Exception, match=r"model\.onnx\.data"):
            Onnx().load(None, tmp_path / "model.onnx", request)


@torch.library.custom_op("torchexport_tests::triple", mutates_args=())
def triple(x: torch.Tensor) -> torch.Tensor:
    return x * 3


@triple.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Tripled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.torchexport_tests.triple(x)
        return result


def test_a_custom_operator_is_translated_by_the_users_table(export: Exporter) -> None:
    def right(x):  # type: ignore[no-untyped-def]
        return op.Mul(x, op.CastLike(op.Constant(value_float=3.0), x))

    def wrong(x):  # type: ignore[no-untyped-def]
        return op.Mul(x, op.CastLike(op.Constant(value_float=4.0), x))

    target, x = torch.ops.torchexport_tests.triple.default, torch.rand(3)
    backend = Onnx(custom_translation_table={target: right})
    assert_agrees(Tripled(), export(Tripled(), x, backend=backend), x)
    assert backend.id == "onnx:custom_translation_table=torchexport_tests.triple.default"
    (value,) = export(Tripled(), x, backend=Onnx(custom_translation_table={target: wrong}))(x).values.values()
    torch.testing.assert_close(value, x * 4)
    with pytest.raises(torch.onnx.OnnxExporterError):
        export(Tripled(), x)


def test_the_report_says_what_the_file_holds(export: Exporter) -> None:
    exported = export(torch.nn.ReLU(), torch.rand(3), backend=Onnx(opset=21))
    facts = {key: exported.details[key] for key in ("opset", "nodes", "provider")}
    assert facts == {"opset": 21, "nodes": 1, "provider": "CPUExecutionProvider"}
    assert exported.not_checked == []


def test_an_opset_that_was_not_reached_is_said(export: Exporter) -> None:
    exported = export(torch.nn.Sigmoid(), torch.rand(3), backend=Onnx(opset=9))
    if exported.details["opset"] != 9:
        assert exported.not_checked[0].what == "opset 9"
    else:
        pytest.fail("the exporter now reaches opset 9: test with another")


def test_the_exporter_is_quiet_and_leaves_no_trace(export: Exporter, capfd: pytest.CaptureFixture[str]) -> None:
    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(3)

        def forward(self, x: torch.Tensor) -> Any:
            return self.norm(x), None

    model = Mixed()
    model.norm.eval()
    logger = logging.getLogger("torch.onnx")
    before = list(logger.handlers), logger.propagate
    exported = export(model, torch.rand(2, 3))
    assert capfd.readouterr() == ("", "")
    assert (model.training, model.norm.training) == (True, False)
    assert (list(logger.handlers), logger.propagate) == before
    assert any("None output" in text for text in exported.details["exporter said"])


def test_a_function_is_exported_too(export: Exporter) -> None:
    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x - 2 * y

    assert_agrees(function, export(function, torch.rand(3), y=torch.rand(3)), torch.rand(3), torch.rand(3))


def test_a_provider_that_runs_no_node_is_a_failure(export: Exporter) -> None:
    # This provider only runs models in the cloud: ONNX Runtime accepts it and runs everything on the CPU.
    with pytest.raises(RuntimeError, match="all fell back to CPUExecutionProvider"):
        export(torch.nn.ReLU(), torch.rand(3), backend=Onnx(provider="AzureExecutionProvider"))


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Onnx().unavailable(CPU) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else object())
    assert Onnx().unavailable(CPU) == "onnxruntime not installed: pip install 'pytest-torchexport[onnx]'"


def test_a_device_without_a_provider_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "onnxruntime-gpu" in str(Onnx().unavailable(torch.device("cuda")))
    assert "mps" in str(Onnx().unavailable(torch.device("mps")))
    assert "has no NopeProvider" in str(Onnx(provider="NopeProvider").unavailable(CPU))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert Onnx().unavailable(torch.device("cuda")) is None
