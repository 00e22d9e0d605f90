from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from pytest_torchexport.backends.aoti import Aoti, packaged_constants
from pytest_torchexport.backends.base import Backend, Exported, ExportRequest
from pytest_torchexport.backends.sharing import share_parameters
from pytest_torchexport.backends.torch_export import Export
from pytest_torchexport.errors import ConventionError, UsageError
from pytest_torchexport.outcome import Cause
from pytest_torchexport.subject.call import Call

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

CPU = torch.device("cpu")


class Average(nn.Module):
    """Keeps a running average of its inputs, counts its calls, and changes its argument."""

    average: torch.Tensor
    calls: torch.Tensor
    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("average", torch.zeros(3))
        self.register_buffer("calls", torch.zeros(2))
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0]), persistent=False)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        self.average.mul_(0.5).add_(x.mean(0))
        self.calls.add_(1)
        y = self.linear(x) * self.scale + self.average
        x.mul_(2)
        return {"y": y, "doubled": x, "nothing": None}


class Options(nn.Module):
    def forward(
        self,
        x: torch.Tensor,
        factor: int = 2,
        mask: torch.Tensor | None = None,
        *,
        mode: str = "sum",
        extra: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        y = x * factor
        if mask is not None:
            y = y * mask
        if extra is not None:
            y = y + sum(extra)
        return y.sum() if mode == "sum" else y


class Method(nn.Module):
    total: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("total", torch.zeros(3))

    def step(self, x: torch.Tensor, *, scale: float = 2.0) -> torch.Tensor:
        self.total.add_(x.sum(0))
        y: torch.Tensor = self.linear(x) * scale + self.total
        return y


class Assigning(nn.Module):
    """State in a plain attribute: torch.export warns and loses it."""

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.zeros(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = self.last + x
        return self.last


class WritingAttribute(nn.Module):
    """The same, written in place: torch.export keeps it as a constant that it writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.zeros(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last.add_(x)
        return self.last * 1


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Exported]:
    def make(
        model: Callable[..., Any],
        *args: Any,
        backend: Backend | None = None,
        shapes: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Exported:
        backend = backend or Export()
        request = ExportRequest(model, Call(args, kwargs), shapes, CPU, tmp_path)
        program = backend.export(request)
        path = backend.save(program, tmp_path)
        assert path is not None
        assert path.is_file()
        return backend.load(program, path, request)

    return make


def _same_over_calls(model: Average, program: Exported, sizes: tuple[int, ...]) -> None:
    """Outputs, the changed argument and the state, call after call."""
    for size in sizes:
        x = torch.rand(size, 3)
        ours, theirs = x.clone(), x.clone()
        with torch.no_grad():
            torch.testing.assert_close(program(ours), model(theirs))
        torch.testing.assert_close(ours, theirs)
        state = program.read_state()
        assert state is not None
        torch.testing.assert_close(state["average"], model.average)
        torch.testing.assert_close(state["calls"], model.calls)


def _stateful(build: Callable[..., Exported], backend: Backend) -> None:
    model = Average().eval()
    program = build(model, torch.rand(4, 3), backend=backend, shapes={"x": {0: Dim("batch", max=64)}})
    assert model.calls.tolist() == [0, 0], "exporting ran nothing on the user's buffers"
    before = {name: value.clone() for name, value in (program.read_state() or {}).items()}
    assert before.keys() >= {"average", "calls"}
    _same_over_calls(model, program, (2, 5, 1))
    program.write_state(before)
    assert (program.read_state() or {})["calls"].tolist() == [0, 0]
    _same_over_calls(_fresh(model), program, (3, 4))
    assert model.calls.tolist() == [3, 3], "the program's state is its own"
    program.close()


def _fresh(model: Average) -> Average:
    other = Average().eval()
    other.linear.load_state_dict(model.linear.state_dict())
    return other


@pytest.mark.parametrize("strict", [False, True])
def test_state_mutation_and_structure(build: Callable[..., Exported], strict: bool) -> None:
    _stateful(build, Export(strict=strict))


def test_aoti_state_mutation_and_structure(build: Callable[..., Exported]) -> None:
    _stateful(build, Aoti())


def test_a_changed_weight_is_neither_shared_nor_hidden(build: Callable[..., Exported], tmp_path: Path) -> None:
    """The planted fault: one bit of one weight in the artifact."""
    model = nn.Linear(3, 3)
    x = torch.rand(2, 3)
    request = ExportRequest(model, Call((x,)), None, CPU, tmp_path)
    captured = Export().export(request)
    with torch.no_grad():
        captured.program.state_dict["weight"] = nn.Parameter(model.weight.clone())  # type: ignore[union-attr]
        captured.program.state_dict["weight"][0, 0] += 0.5  # type: ignore[union-attr]
    program = Export().load(captured, Export().save(captured, tmp_path), request)
    parameters = program.parameters()
    assert parameters is not None
    assert parameters["weight"].data_ptr() != model.weight.data_ptr()
    assert parameters["bias"].data_ptr() == model.bias.data_ptr()
    assert not torch.allclose(program(x), model(x))


def test_parameters_are_the_users_memory_with_their_own_gradients(build: Callable[..., Exported]) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[0].weight.requires_grad_(False)
    x = torch.rand(2, 3)
    program = build(model, x)
    parameters = program.parameters()
    assert parameters is not None
    wanted = dict(model.named_parameters())
    assert list(parameters) == list(wanted)
    assert all(parameters[name].data_ptr() == wanted[name].data_ptr() for name in wanted)
    assert not parameters["0.weight"].requires_grad
    program(x).sum().backward()
    assert all(parameter.grad is None for parameter in wanted.values())
    model(x).sum().backward()
    torch.testing.assert_close(parameters["2.weight"].grad, wanted["2.weight"].grad)


def test_tied_weights_are_one_parameter_again(build: Callable[..., Exported]) -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False))
    model[2].weight = model[0].weight
    x = torch.rand(2, 3)
    program = build(model, x)
    parameters = program.parameters()
    assert parameters is not None
    assert list(parameters) == ["0.weight"]
    program(x).sum().backward()
    model(x).sum().backward()
    torch.testing.assert_close(parameters["0.weight"].grad, model[0].weight.grad)


def test_sharing_looks_behind_a_prefix_and_keeps_what_differs() -> None:
    model = nn.Linear(2, 2)
    wrapped = nn.ModuleDict({"model": nn.Linear(2, 2)})
    wrapped.load_state_dict({"model.weight": model.weight.detach().clone(), "model.bias": model.bias.detach() + 1})
    share_parameters(wrapped, model, prefix="model")
    loaded = dict(wrapped.named_parameters())
    assert loaded["model.weight"].data_ptr() == model.weight.data_ptr()
    assert loaded["model.bias"].data_ptr() != model.bias.data_ptr()


@pytest.mark.parametrize(
    ("changed", "argument"),
    [
        ({"factor": 3}, "factor"),
        ({"factor": 2.0}, "factor"),
        ({"mode": "none"}, "mode"),
        ({"mask": torch.ones(3)}, "mask"),
        ({"extra": [torch.ones(3)]}, "extra"),
        ({"extra": None}, "extra"),
        ({"x": 1}, "x"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_value_that_the_export_fixed(build: Callable[..., Exported], changed: dict[str, Any], argument: str) -> None:
    x = torch.rand(3)
    program = build(Options(), x, 2, mode="sum", extra=[x, x])
    given: dict[str, Any] = {"x": x, "factor": 2, "mode": "sum", "extra": [x, x]}
    torch.testing.assert_close(program(**given), Options()(**given))
    with pytest.raises(ConventionError) as caught:
        program(**(given | changed))
    assert caught.value.argument == argument


def test_a_call_in_another_form_is_the_same_call(build: Callable[..., Exported]) -> None:
    x = torch.rand(3)
    program = build(Options(), x, mode="none", factor=2)
    expected = x * 2
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((x, 2), {"mode": "none"}),
        ((x,), {"mode": "none"}),
        ((), {"factor": 2, "mode": "none", "x": x, "mask": None}),
    ]
    for args, kwargs in calls:
        torch.testing.assert_close(program(*args, **kwargs), expected)
    with pytest.raises(ConventionError, match="leaves mask to its default, which is None"):
        program(x, 2, torch.ones(3), mode="none")


def test_a_dynamic_int_is_not_fixed(build: Callable[..., Exported]) -> None:
    class Head(nn.Module):
        def forward(self, x: torch.Tensor, n: int, flag: bool) -> torch.Tensor:
            return x[:n] * n if flag else x

    x = torch.rand(8)
    program = build(Head(), x, 3, True, shapes={"x": None, "n": Dim.DYNAMIC, "flag": None})
    torch.testing.assert_close(program(x, 5, True), x[:5] * 5)
    with pytest.raises(ConventionError, match="flag"):
        program(x, 5, False)
    with pytest.raises(ConventionError, match="of type int"):
        program(x, 5.0, True)


def test_a_shape_outside_of_the_exported_ones_is_the_programs_failure(build: Callable[..., Exported]) -> None:
    program = build(Options(), torch.rand(4), mode="none", shapes={"x": {0: Dim("n", max=8)}})
    assert program(torch.rand(7), mode="none").shape == (7,)
    with pytest.raises(AssertionError, match="<= 8"):
        program(torch.rand(9), mode="none")


def test_dynamic_shapes_of_variadic_arguments(build: Callable[..., Exported]) -> None:
    class Sum(nn.Module):
        def forward(self, *parts: torch.Tensor) -> torch.Tensor:
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            return total

    n = {0: Dim("n")}
    x = torch.rand(3)
    program = build(Sum(), x, x, shapes={"parts_0": n, "parts_1": n})
    y = torch.rand(6)
    torch.testing.assert_close(program(y, y), 2 * y)
    with pytest.raises(ConventionError, match="parts_2"):
        program(y, y, y)


def test_functions_and_bound_methods(build: Callable[..., Exported]) -> None:
    x = torch.rand(2, 3)
    torch.testing.assert_close(build(torch.nn.functional.relu, x - 0.5)(x - 0.5), torch.relu(x - 0.5))
    model = Method()
    program = build(model.step, x, scale=3.0)
    torch.testing.assert_close(program(x, scale=3.0), model.step(x, scale=3.0))
    state, parameters = program.read_state(), program.parameters()
    assert state is not None
    torch.testing.assert_close(state["total"], model.total)
    assert parameters is not None
    assert parameters.keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("strict", [False, True])
def test_state_in_a_plain_attribute_is_suspected(build: Callable[..., Exported], strict: bool) -> None:
    program = build(Assigning(), torch.rand(3), backend=Export(strict=strict))
    (suspicion,) = program.suspicions
    assert suspicion.cause is Cause.LOST_STATE
    assert not build(Options(), torch.rand(3), backend=Export(strict=strict)).suspicions


def test_a_plain_attribute_written_in_place_is_state(build: Callable[..., Exported]) -> None:
    program = build(WritingAttribute(), torch.rand(3))
    program(torch.ones(3))
    program(torch.ones(3))
    state = program.read_state()
    assert state is not None
    assert state["last"].tolist() == [2, 2, 2]
    program.write_state({"last": torch.zeros(3)})
    assert program(torch.ones(3)).tolist() == [1, 1, 1]


class WritingHidden(nn.Module):
    """Writes to a tensor in a list: the program has it as a constant with a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = [torch.zeros(3)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.parts[0].add_(x)
        return self.parts[0] * 2


@pytest.mark.parametrize("strict", [False, True])
def test_constants_that_have_no_name_of_the_users_are_put_back(build: Callable[..., Exported], strict: bool) -> None:
    program = build(WritingHidden(), torch.zeros(3), backend=Export(strict=strict))
    assert program.read_state() == {}
    assert program(torch.ones(3)).tolist() == [2, 2, 2]
    assert program(torch.ones(3)).tolist() == [4, 4, 4]
    program.reset()
    assert program(torch.ones(3)).tolist() == [2, 2, 2]


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="strict"):
        Export(strict="yes")  # type: ignore[arg-type]
    assert Export(strict=True).id == "export:strict=true"


def test_aoti_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert Aoti().unavailable(CPU) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "g++" in (Aoti().unavailable(CPU) or "")


@pytest.mark.slow
def test_aoti_takes_no_notice_of_constants_but_we_do(build: Callable[..., Exported]) -> None:
    x = torch.rand(3)
    program = build(Options(), x, 2, mode="none", backend=Aoti(inductor_configs={"epilogue_fusion": False}))
    torch.testing.assert_close(program(x, mode="none"), x * 2)
    assert program.read_state() == {}
    with pytest.raises(ConventionError, match="factor"):
        program(x, 3, mode="none")
    program.close()


@pytest.mark.slow
def test_aoti_reads_the_state_that_is_in_the_package(build: Callable[..., Exported], tmp_path: Path) -> None:
    """The planted fault: another model's package. Its buffers must show, not the user's."""

    class Other(Average):
        def __init__(self) -> None:
            super().__init__()
            self.average.fill_(7)

    x = torch.rand(4, 3)
    program = build(Other().eval(), x, backend=Aoti())
    state = program.read_state()
    assert state is not None
    assert state["average"].tolist() == [7, 7, 7]
    request = ExportRequest(Average().eval(), Call((x,)), None, CPU, tmp_path)
    (tmp_path / "again").mkdir()
    captured = Aoti().export(ExportRequest(request.model, request.example, None, CPU, tmp_path / "again"))
    swapped = Aoti().load(captured, tmp_path / "model.pt2", request)
    assert (swapped.read_state() or {})["average"].tolist() == [7, 7, 7]


@pytest.mark.slow
def test_an_unreadable_aoti_state_is_said(build: Callable[..., Exported], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C._aoti, "AOTIModelContainerRunnerCpu")
    program = build(Average().eval(), torch.rand(4, 3), backend=Aoti())
    assert program.read_state() is None
    (entry,) = program.not_checked
    assert entry.what == "the state"
    first = program(torch.ones(4, 3))
    assert not torch.equal(program(torch.ones(4, 3))["y"], first["y"])
    program.reset()
    torch.testing.assert_close(program(torch.ones(4, 3))["y"], first["y"])
    program.close()


@pytest.mark.slow
def test_aoti_takes_no_notice_of_sizes_and_dtypes_but_we_do(build: Callable[..., Exported]) -> None:
    program = build(nn.Linear(3, 2), torch.rand(4, 3), backend=Aoti(), shapes={"input": {0: Dim("n", min=2)}})
    assert program(torch.rand(7, 3)).shape == (7, 2)
    for wrong in (torch.rand(4, 2), torch.rand(4), torch.rand(4, 3).double()):
        with pytest.raises(ConventionError, match=r"the export fixed input to tensor\(float32, \[any, 3\]\)"):
            program(wrong)
    program.close()


@pytest.mark.slow
def test_of_an_aoti_package_only_what_is_asked_for_is_copied(build: Callable[..., Exported], tmp_path: Path) -> None:
    build(Average().eval(), torch.rand(4, 3), backend=Aoti()).close()
    (package,) = tmp_path.rglob("*.pt2")
    assert set(packaged_constants(package, CPU, ["average"])) == {"average"}
