# mypy: disable-error-code="arg-type"
from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch

from pytest_torchexport.backends.aoti import Aoti
from pytest_torchexport.backends.base import Backend, Exported, overwrite
from pytest_torchexport.backends.compile import Compile
from pytest_torchexport.backends.onnx import Onnx
from pytest_torchexport.backends.onnx_torchscript import OnnxTorchScript
from pytest_torchexport.backends.registry import make_backend, register_backend
from pytest_torchexport.backends.torch_export import Export
from pytest_torchexport.backends.torchscript import Script, Trace
from pytest_torchexport.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

CPU = torch.device("cpu")


class Buffers(Exported):
    def __init__(self) -> None:
        super().__init__()
        self.state: dict[str, Any] = {"h": torch.zeros(2), "n": 0}

    def __call__(self) -> None:
        self.state["h"] = torch.cat([self.state["h"], torch.ones(1)])

    def read_state(self) -> dict[str, Any]:
        return self.state


def test_state_is_written_in_place_also_where_its_size_changed() -> None:
    exported = Buffers()
    saved: dict[str, Any] = {"h": torch.zeros(2), "n": 0}
    live = exported.state["h"]
    live.add_(1)
    exported.write_state(saved)
    assert exported.state["h"] is live
    assert live.tolist() == [0, 0]
    exported()
    live = exported.state["h"]
    exported.write_state(saved)
    assert exported.state["h"] is live
    assert live.tolist() == [0, 0]
    live.add_(1)
    assert saved["h"].tolist() == [0, 0]


@pytest.mark.parametrize("value", [torch.ones(3), torch.ones(2, dtype=torch.float64), torch.ones(2), torch.ones(0)])
def test_overwrite_gives_values_shape_and_dtype(value: torch.Tensor) -> None:
    tensor = torch.zeros(2, requires_grad=True)
    overwrite(tensor, value)
    assert tensor.dtype is value.dtype
    assert torch.equal(tensor.detach(), value)


def test_class_variables_and_computed_fields_are_no_options() -> None:
    @dataclass(frozen=True)
    class Own(Backend):
        name: ClassVar[str] = "own-options"
        shared: ClassVar[int] = 1
        level: int = 3
        computed: int = field(init=False, default=4)

        def export(self, request: Any) -> Any: ...
        def load(self, program: Any, path: Any, request: Any) -> Any: ...

    register_backend("own-options", Own)
    assert make_backend("own-options").id == "own-options"
    assert make_backend("own-options:level=5").id == "own-options:level=5"
    for wrong in ("shared", "name", "gradients", "computed"):
        with pytest.raises(UsageError, match=f"unknown option .* '{wrong}'.*Accepted: level\\."):
            make_backend(f"own-options:{wrong}=2")


def test_a_backend_that_is_no_dataclass_has_no_options() -> None:
    class Plain(Backend):
        name = "plain-backend"

        def export(self, request: Any) -> Any: ...
        def load(self, program: Any, path: Any, request: Any) -> Any: ...

    register_backend("plain-backend", Plain)
    assert make_backend("plain-backend").id == "plain-backend"
    with pytest.raises(UsageError, match=r"unknown option .* 'x'\. Accepted: none"):
        make_backend("plain-backend:x=1")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: make_backend("trace:strict=maybe"), "strict='maybe' is not accepted: choose one of True, False"),
        (lambda: make_backend("trace:freeze=yes"), "freeze='yes' is not accepted: choose one of True, False"),
        (lambda: Trace(optimize_for_inference=1), "optimize_for_inference=1 is not accepted"),
        (lambda: Script(freeze=None), "freeze=None is not accepted"),
        (
            lambda: make_backend("compile:recompile_limit=abc"),
            "recompile_limit='abc' .*: give a number from 1 on, or N",
        ),
        (lambda: Compile(recompile_limit=0), "recompile_limit=0 is not accepted"),
        (lambda: Compile(recompile_limit=True), "recompile_limit=True is not accepted"),
        (lambda: Compile(options="max_autotune"), "options='max_autotune' is not accepted: give a dict"),
        (lambda: Compile(backend=print), "backend=<built-in function print> is not accepted: give the name"),
        (lambda: Compile(backend="inductr").unavailable(CPU), "backend='inductr' is not accepted: choose.*'inductor'"),
        (lambda: Export(strict="yes"), "strict='yes' is not accepted"),
        (lambda: Aoti(inductor_configs=[1]), r"inductor_configs=\[1\] is not accepted: give a dict"),
        (lambda: make_backend("onnx:opset=latest"), "opset='latest' is not accepted: give the number of an opset"),
        (lambda: Onnx(optimize="no"), "optimize='no' is not accepted"),
        (lambda: Onnx(external_data=0), "external_data=0 is not accepted"),
        (lambda: Onnx(provider=3), "provider=3 is not accepted"),
        (lambda: Onnx(custom_translation_table=[1]), "custom_translation_table=.* is not accepted: give a dict"),
        (lambda: OnnxTorchScript(opset=17.5), "opset=17.5 is not accepted"),
        (lambda: OnnxTorchScript(do_constant_folding="x"), "do_constant_folding='x' is not accepted"),
        (lambda: OnnxTorchScript(custom_opsets=1), "custom_opsets=1 is not accepted"),
    ],
)
def test_every_option_is_checked_when_it_is_given(make: Callable[[], object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()


@pytest.mark.parametrize("name", ["inductor", "eager", "aot_eager", "cudagraphs"])
def test_a_dynamo_backend_that_exists_is_accepted(name: str) -> None:
    assert Compile(backend=name).unavailable(CPU) is None
