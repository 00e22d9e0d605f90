"""What is timed: a call with its arguments in place. It does what a call does, and nothing that is only ours."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from pytest_torchexport.backends import onnx_values
from pytest_torchexport.backends.base import ExportRequest, FlatOutput
from pytest_torchexport.backends.onnx_torchscript import OnnxTorchScript
from pytest_torchexport.backends.registry import make_backend
from pytest_torchexport.backends.torchscript import Script, Trace
from pytest_torchexport.errors import ConventionError
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.call import Call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_torchexport.backends.base import Backend, Exported

CPU = torch.device("cpu")
FAST = ["trace", "script", "compile:backend=aot_eager", "export", "onnx-torchscript"]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("compile", "onnx", "aoti")]


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, factor: float, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.linear(x) * factor
        return out, out.sum(1) - y.double()


class InPlace(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.add_(1.0)
        return x * 2.0


ARGS = (torch.rand(3, 4), 2.0, torch.rand(3))


class Loader:
    """Exports and saves once, then loads anew as the engine does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.open: list[Exported] = []

    def __call__(
        self, backend: str | Backend, model: Callable[..., Any], *args: Any, variant: Backend | None = None
    ) -> Exported:
        made = make_backend(backend)
        request = ExportRequest(model, Call(args).clone(), None, CPU, self.folder)
        program = made.export(request)
        path = made.save(program, self.folder)
        first = made.load(program, path, request)
        first(*Call(args).clone().args)
        first.close()
        self.open.append((variant or made).load_anew(program, path, request))
        return self.open[-1]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Loader]:
    loader = Loader(tmp_path)
    with torch.no_grad():
        yield loader
    for program in loader.open:
        program.close()


def plain(output: Any) -> dict[str, Any]:
    return dict(containers.leaves(output.values if isinstance(output, FlatOutput) else output))


@pytest.mark.parametrize("backend", [*FAST, *SLOW])
def test_it_gives_what_a_call_gives(backend: str, load: Loader) -> None:
    program = load(backend, Scale().eval(), *ARGS)
    bound = program.bound_call(*ARGS)
    outputs = [plain(containers.clone(program.bound_output(bound()))) for _ in range(3)]
    for output in outputs:
        torch.testing.assert_close(output, plain(program(*ARGS)))


@pytest.mark.parametrize("backend", ["trace", "script", "compile:backend=aot_eager", "export"])
def test_its_arguments_are_the_programs_to_change(backend: str, load: Loader) -> None:
    program = load(backend, InPlace(), torch.zeros(2))
    x = torch.zeros(2)
    bound = program.bound_call(x)
    assert [program.bound_output(bound()).tolist() for _ in range(2)] == [[2.0, 2.0], [4.0, 4.0]]
    assert x.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("backend", ["trace", "onnx-torchscript"])
def test_arguments_are_looked_at_once_and_before(backend: str, load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    program: Any = load(backend, Scale().eval(), *ARGS)
    if backend == "trace":
        with pytest.raises(ConventionError, match="factor"):
            program.bound_call(ARGS[0], 3.0, ARGS[2])
    bound = program.bound_call(*ARGS)
    monkeypatch.setattr(program, "_arrange", None, raising=False)
    monkeypatch.setattr(program, "_given", None, raising=False)
    bound()


def test_what_reading_takes_is_known(load: Loader) -> None:
    assert (load("trace", Scale().eval(), *ARGS).load_seconds or 0) > 0
    assert load("compile:backend=eager", Scale().eval(), *ARGS).load_seconds is None, "there is nothing to read"


def is_profiling() -> bool:
    before: bool = torch._C._jit_set_profiling_mode(True)
    torch._C._jit_set_profiling_mode(before)
    return before


def is_planned(program: Any) -> bool:
    """Whether the executor has its last plan; a program that is being profiled has none."""
    try:
        program._loaded.get_debug_state()
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("form", ["call", "bound call"])
@pytest.mark.parametrize("kind", [Trace, Script])
def test_without_profiling_the_first_call_makes_the_last_plan(
    kind: type[Trace | Script], form: str, load: Loader
) -> None:
    for profiling in (True, False):
        program = load(kind(profiling=profiling), Scale().eval(), *ARGS)
        call: Callable[[], Any] = (
            program.bound_call(*ARGS) if form == "bound call" else functools.partial(program, *ARGS)
        )
        call()
        assert is_planned(program) is not profiling
        assert is_profiling(), "the setting is the whole process's"
        call()
        assert is_planned(program)


def test_the_setting_is_put_back_when_the_program_raises(load: Loader) -> None:
    program = load(Trace(profiling=False), Scale().eval(), *ARGS)
    wrong = (torch.rand(3, 5), *ARGS[1:])
    bound: Callable[[], Any] = program.bound_call(*wrong)
    for call in (functools.partial(program, *wrong), bound):
        with pytest.raises(RuntimeError):
            call()
        assert is_profiling()


def test_a_process_that_does_not_profile_is_left_so(load: Loader) -> None:
    before = torch._C._jit_set_profiling_mode(False)
    try:
        for profiling in (True, False):
            program = load(Trace(profiling=profiling), Scale().eval(), *ARGS)
            program(*ARGS)
            assert is_planned(program)
            assert not is_profiling()
    finally:
        torch._C._jit_set_profiling_mode(before)


def test_the_variants_of_a_cold_start_load_the_same_file(load: Loader) -> None:
    assert make_backend("trace:profiling=false").id == "trace:profiling=false"
    assert Script(freeze=True).cold_start_variants() == {"profiling=False": Script(freeze=True, profiling=False)}
    assert Trace(profiling=False).cold_start_variants() == {"profiling=True": Trace()}
    program = load(Trace(), Scale().eval(), *ARGS, variant=Trace().cold_start_variants()["profiling=False"])
    torch.testing.assert_close(program.bound_call(*ARGS)(), program(*ARGS))
    for other in ("compile", "export", "onnx", "aoti", "onnx-torchscript"):
        assert make_backend(other).cold_start_variants() == {}


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated:DeprecationWarning")
def test_the_script_of_a_failure_starts_as_the_program_did(load: Loader, tmp_path: Path) -> None:
    for profiling in (True, False):
        recipe = load(Trace(profiling=profiling), Scale().eval(), *ARGS).reproduction([], tmp_path)
        assert recipe is not None
        made: dict[str, Any] = {"torch": torch}
        exec(recipe.source, made)
        try:
            made["load"](tmp_path / "model.pt", "cpu")
            assert is_profiling() is profiling
        finally:
            torch._C._jit_set_profiling_mode(True)


class Recorded:
    """A session that notes what it is asked, with the methods of onnxruntime's."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="out")]

    def io_binding(self) -> Recorded:
        return self

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.said.append(("input", name, value))

    def bind_output(self, name: str, device: str, index: int) -> None:
        self.said.append(("output", name, device, index))

    def synchronize_inputs(self) -> None:
        self.said.append("wait")

    def run_with_iobinding(self, binding: Any) -> None:
        self.said.append("bound run")

    def run_with_ort_values(self, names: Any, values: dict[str, Any]) -> list[Any]:
        self.said.append(("run", values))
        return []


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    monkeypatch.setattr(onnx_values, "ort_value", lambda tensor: f"value on {tensor.device.type}")
    return Recorded()


def test_on_cuda_inputs_are_bound_once_and_outputs_stay_there(recorded: Recorded) -> None:
    cuda = torch.device("cuda:1")
    feeds: Any = {"x": SimpleNamespace(device=cuda), "n": torch.tensor(3)}
    run = onnx_values.bound_run(recorded, feeds, cuda)
    assert recorded.said == [
        ("input", "x", "value on cuda"),
        ("input", "n", "value on cpu"),
        ("output", "out", "cuda", 1),
        "wait",
    ]
    recorded.said.clear()
    run()
    run()
    assert recorded.said == ["bound run", "bound run"]


def test_arguments_on_the_host_are_copied_in_each_call(recorded: Recorded) -> None:
    run = onnx_values.bound_run(recorded, {"x": torch.rand(2)}, torch.device("cuda"))
    assert recorded.said == []
    run()
    assert recorded.said == [("run", {"x": "value on cpu"})]


def test_on_the_cpu_everything_is_bound_to_the_host(recorded: Recorded) -> None:
    onnx_values.bound_run(recorded, {"x": torch.rand(2)}, CPU)()
    assert recorded.said[1:] == [("output", "out", "cpu", 0), "wait", "bound run"]


class Kinds(nn.Module):
    """Outputs that numpy cannot hold, that are the same, and that have no elements."""

    def forward(self, x: torch.Tensor) -> Any:
        y = x + 1
        return y, y.to(torch.bfloat16), y, x[:0] * 2, x > 0


def test_outputs_of_every_kind_are_the_calls(load: Loader) -> None:
    x = torch.rand(3, 2)
    program = load(OnnxTorchScript(), Kinds(), x)
    assert program.takes_host_arguments
    assert not load("trace", Scale().eval(), *ARGS).takes_host_arguments
    bound = program.bound_call(x)
    output = program.bound_output(bound())
    assert list(output.values) == list(program(x).values)
    torch.testing.assert_close(plain(output), plain(program(x)), rtol=0, atol=0)
    assert [value.dtype for value in output.values.values()].count(torch.bfloat16) == 1


class Joined(nn.Module):
    def forward(self, parts: list[torch.Tensor], scale: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(2)
        for part in parts:
            out = out + part * scale
        return out


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_a_sequence_is_fed_as_it_is(load: Loader) -> None:
    parts, scale = [torch.rand(2) for _ in range(3)], torch.rand(2)
    program = load(OnnxTorchScript(), torch.jit.script(Joined()), parts, scale)
    bound = program.bound_call(parts, scale)
    torch.testing.assert_close(plain(program.bound_output(bound())), plain(program(parts, scale)))


def test_memory_of_bound_inputs_lives_as_long_as_the_call(load: Loader) -> None:
    program = load(OnnxTorchScript(), nn.Linear(64, 64), torch.zeros(8, 64))
    x = torch.rand(8, 64)
    wanted = plain(program(x))
    bound = program.bound_call(x.clone())
    filling = [torch.full((8, 64), -1.0) for _ in range(50)]
    torch.testing.assert_close(plain(program.bound_output(bound())), wanted)
    del filling


@pytest.mark.slow
def test_a_cold_start_of_inductor_finds_no_cache(load: Loader) -> None:
    found = torch._dynamo.utils.counters
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    program = load("compile", Scale().eval(), *ARGS)
    assert "empty caches" in program.cold_start_note
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert str(folder) != before
    found.clear()
    program.bound_call(*ARGS)()
    assert found["aot_autograd"]["autograd_cache_hit"] + found["inductor"]["fxgraph_cache_hit"] == 0
    assert found["aot_autograd"]["autograd_cache_miss"] == 1
    program.close()
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") == before
    assert not folder.exists()
