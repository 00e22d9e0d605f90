# mypy: disable-error-code="no-untyped-call,no-any-return,operator,index,arg-type,union-attr,call-overload,has-type"
from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from pytest_torchexport.backends.base import ExportRequest
from pytest_torchexport.backends.torchscript import Script, Trace
from pytest_torchexport.errors import ConventionError
from pytest_torchexport.outcome import Cause
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.call import Call

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_torchexport.backends.base import Backend, Exported

CPU = torch.device("cpu")
X = torch.ones(2, 3)


def build(
    backend: Backend,
    model: Callable[..., Any],
    folder: Path,
    args: tuple[Any, ...] = (X,),
    kwargs: dict[str, Any] | None = None,
) -> Exported:
    request = ExportRequest(model, Call(args, kwargs or {}).clone(), None, CPU, folder)
    program = backend.export(request)
    return backend.load(program, backend.save(program, folder), request)


class Counter(nn.Module):
    """A buffer and a Python number that scripted code updates."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("seen", torch.zeros(3))
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add_(x.sum(0))
        self.calls += 1
        return self.linear(x) + self.seen * self.calls


class Growing(nn.Module):
    """A buffer that gets longer with each call, as a cache does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(0, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.cache = torch.cat([self.cache, x])
        return self.cache.sum(0)


class Hidden(nn.Module):
    """Tensors that are no buffers and are changed in place: a trace holds them as constants."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.total = torch.zeros(3)
        self.parts = [torch.full((3,), 5.0)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total.add_(x.mean(0))
        self.parts[0][1:].mul_(2)
        return self.linear(x) + self.total + self.parts[0]


@pytest.mark.parametrize("backend", [Script(), Script(freeze=True)], ids=lambda one: one.id)
def test_the_state_of_a_scripted_module_is_read_and_put_back(backend: Backend, tmp_path: Path) -> None:
    exported = build(backend, Counter().eval(), tmp_path)
    before = containers.clone(exported.read_state())
    assert before["seen"].tolist() == [0, 0, 0]
    assert before["calls"] == 0
    first = exported(X)
    assert exported.read_state()["calls"] == 1
    assert exported.read_state()["seen"].tolist() == [2, 2, 2]
    assert not torch.equal(exported(X), first)
    exported.write_state(before)
    assert torch.equal(exported(X), first)


def test_a_buffer_that_grows_is_put_back_to_its_size(tmp_path: Path) -> None:
    exported = build(Script(), Growing(), tmp_path)
    before = containers.clone(exported.read_state())
    first = exported(X)
    assert exported.read_state()["cache"].shape == (2, 3)
    exported.write_state(before)
    assert exported.read_state()["cache"].shape == (0, 3)
    assert torch.equal(exported(X), first)


@pytest.mark.parametrize(
    "backend", [Trace(), Trace(freeze=True), Trace(optimize_for_inference=True)], ids=lambda one: one.id
)
def test_constants_that_a_trace_writes_to_are_as_loaded_after_reset(backend: Backend, tmp_path: Path) -> None:
    model = Hidden().eval()
    with torch.no_grad():
        exported = build(backend, model, tmp_path)
        first = exported(X)
        assert not torch.equal(exported(X), first)
        exported.reset()
        assert torch.equal(exported(X), first)
        exported.reset()
        assert torch.equal(exported(X), first)


def test_a_program_that_writes_to_no_constant_is_not_loaded_anew(tmp_path: Path) -> None:
    exported = build(Trace(), Counter(), tmp_path)
    exported(X)
    (tmp_path / "model.pt").unlink()
    exported.reset()
    assert exported.read_state()["seen"].tolist() == [4, 4, 4]  # tracing itself ran the module once


def test_a_program_that_was_loaded_anew_still_uses_the_models_weights(tmp_path: Path) -> None:
    model = Hidden()
    exported = build(Trace(), model, tmp_path)
    exported(X)
    exported.reset()
    weight = exported.parameters()["linear.weight"]
    assert weight.data_ptr() == model.linear.weight.data_ptr()


def test_a_trace_follows_the_grad_mode_of_its_caller(tmp_path: Path) -> None:
    seen = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        seen.append(torch.is_grad_enabled())
        return x + 1

    with torch.no_grad():
        build(Trace(), forward, tmp_path)
    with torch.enable_grad():
        build(Trace(), forward, tmp_path)
    assert seen == [False, True]


class Keywords(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None, *, scale: float = 2.0) -> torch.Tensor:
        return x * scale if y is None else x * scale + y


def scaled(x: torch.Tensor, factor: float = 3.0) -> torch.Tensor:
    return x * factor


@pytest.mark.parametrize(
    ("model", "args", "kwargs"),
    [
        (Keywords(), (X,), {}),
        (Keywords(), (X, X), {}),
        (Keywords(), (), {"x": X, "y": X}),
        (Keywords(), (X,), {"y": X, "scale": 4.0}),
        (scaled, (X, 5.0), {}),
        (partial(scaled, factor=7.0), (X,), {}),
    ],
)
def test_a_trace_is_called_as_the_model_is(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], tmp_path: Path
) -> None:
    exported = build(Trace(), model, tmp_path, args, kwargs)
    assert torch.equal(exported(*args, **kwargs), model(*args, **kwargs))


def test_another_value_of_a_traced_number_is_a_convention_error(tmp_path: Path) -> None:
    exported = build(Trace(), scaled, tmp_path, (X, 5.0))
    assert [entry.what for entry in exported.not_checked] == ["other values of factor"]
    with pytest.raises(ConventionError, match=r"the export fixed factor to 5\.0"):
        exported(X, 6.0)


@pytest.mark.parametrize("kwargs", [{}, {"factor": 4.0}])
def test_a_scripted_function_keeps_its_defaults(kwargs: dict[str, Any], tmp_path: Path) -> None:
    assert torch.equal(build(Script(), scaled, tmp_path)(X, **kwargs), scaled(X, **kwargs))


def test_a_weight_that_the_exporter_changes_is_not_shared(tmp_path: Path) -> None:
    class Spoiled(Trace):
        def export(self, request: ExportRequest) -> Any:
            program = super().export(request)
            spoiled = ExportRequest(nn.Linear(3, 3), request.example, None, CPU, tmp_path)
            program.scripted = super().export(spoiled).scripted
            return program

    model = nn.Linear(3, 3)
    exported = build(Spoiled(), model, tmp_path)
    assert exported.parameters()["weight"].data_ptr() != model.weight.data_ptr()
    assert not torch.allclose(exported(X), model(X))


def test_what_the_tracer_warns_of_is_suspected(tmp_path: Path) -> None:
    def branch(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x

    assert [one.cause for one in build(Trace(), branch, tmp_path).suspicions] == [Cause.BAKED_BRANCH]
