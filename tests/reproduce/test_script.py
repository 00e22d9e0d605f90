"""repro.py shows the failure in a process that has neither this package nor the model, and says when it is gone."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from pytest_torchexport import Aoti, Compile, Export, Onnx, OnnxTorchScript, Outcome, Script, Tolerance, Trace, Verdict
from pytest_torchexport.backends.base import Backend, Exported, ExportRequest, Recipe
from pytest_torchexport.draft import Surroundings

engine = import_module("pytest_torchexport.check")  # the package's attribute of that name is the function

jit: Any = torch.jit

X = torch.linspace(0.1, 1.2, 12).reshape(3, 4)


def failing(
    folder: Path, model: Any, args: Any = (X,), kwargs: Any = None, *, calls: int = 1, **policy: Any
) -> Outcome:
    subject = engine.Subject(model, args, kwargs, calls=calls, extra_inputs=policy.pop("extra_inputs", ()))
    policy = {"n_inputs": 6, **policy}
    around = Surroundings(keep_in=folder, keep="retain-on-failure", origin="a test")
    outcome: Outcome = engine.run(subject, engine.Policy(**policy), around)
    assert outcome.failed, outcome.message
    return outcome


@dataclass
class Shown:
    """What a script printed: its code, its text, and the worst difference of each result."""

    code: int
    text: str

    @property
    def worst(self) -> dict[str, float]:
        found = re.findall(r"^(.+): worst difference (\S+) at", self.text, re.MULTILINE)
        return {path: float(number) for path, number in found}


def reproduced(outcome: Outcome, tmp_path: Path) -> Shown:
    """Run the script as someone who got the folder by mail would: moved, isolated, from an empty directory."""
    assert outcome.reproduction is not None, outcome.message
    assert f"\n  reproduce: python {outcome.reproduction}\n" in outcome.message
    moved, empty = tmp_path / "moved", tmp_path / "empty"
    shutil.copytree(outcome.kept_in or "", moved, dirs_exist_ok=True)
    empty.mkdir(exist_ok=True)
    wanted = ("PATH", "HOME", "TMPDIR", "SYSTEMROOT", "LD_LIBRARY_PATH", "TORCHINDUCTOR_CACHE_DIR")
    clean = {name: value for name, value in os.environ.items() if name in wanted} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-I", moved / "repro.py"], cwd=empty, env=clean, capture_output=True, text=True, check=False
    )
    text = done.stdout + done.stderr
    assert "pytest_torchexport" not in (moved / "repro.py").read_text(encoding="utf-8")
    assert ("The difference is there." if done.returncode else "The difference is gone.") in done.stdout, text
    return Shown(done.returncode, text)


def same_numbers(outcome: Outcome, shown: Shown) -> bool:
    """Whether the script shows each difference that the outcome has, as large as it has it."""
    numeric = {leaf.path: leaf.max_abs for leaf in outcome.leaves if leaf.mismatched}
    return bool(numeric) and all(shown.worst[path] == pytest.approx(value, 1e-6) for path, value in numeric.items())


# --- planted faults: what is exported is another model than the one that is checked ----------------------------------


class Linear(nn.Module):
    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.linspace(-1, 1, size * size).reshape(size, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ self.weight)


def wrong_weights(backend: Any) -> Any:
    """The backend, but for one weight that it changes."""

    class Wrong(type(backend)):  # type: ignore[misc]
        def export(self, request: ExportRequest) -> Any:
            model: Any = copy.deepcopy(request.model)
            with torch.no_grad():
                model.weight[1, 2] += 0.5
            return super().export(dataclasses.replace(request, model=model))

    return Wrong()


KINDS = [Trace(), Script(), Export(), Onnx(), OnnxTorchScript(), pytest.param(Aoti(), marks=pytest.mark.slow)]


@pytest.mark.parametrize("backend", KINDS, ids=lambda backend: backend.name)
def test_changed_weights_show_and_a_right_artifact_is_right(backend: Backend, tmp_path: Path) -> None:
    outcome = failing(tmp_path / "kept", Linear(), backend=wrong_weights(backend))
    shown = reproduced(outcome, tmp_path)
    assert shown.code == 1
    assert same_numbers(outcome, shown)
    right = engine.run(
        engine.Subject(Linear(), (X,)),
        engine.Policy(backend=backend, n_inputs=0),
        Surroundings(keep_in=tmp_path / "right", keep="on"),
    )
    assert right.verdict is Verdict.EQUIVALENT
    shutil.rmtree(tmp_path / "kept" / "artifact")
    shutil.copytree(tmp_path / "right" / "artifact", tmp_path / "kept" / "artifact")
    shutil.rmtree(tmp_path / "moved")
    assert reproduced(outcome, tmp_path).code == 0


# --- real faults -----------------------------------------------------------------------------------------------------


class Gate(nn.Module):
    def forward(self, x: torch.Tensor, *, flag: bool = True, mask: Any = None) -> dict[str, Any]:
        y = -x if x.sum() > 100 else torch.tanh(x)
        return {"logits": y, "half": y.bfloat16(), "count": (y > 0).sum(), "flag": flag}


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class Item(nn.Module):
    def forward(self, x: torch.Tensor) -> Pair:
        return Pair(x * x.max().item(), x)


class Counter(nn.Module):
    """Its Python number is lost, its buffer is not."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.total: torch.Tensor
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        self.total += x.sum() * self.seen
        return x + self.total


class Mutating(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return x * 2


def test_a_baked_branch_under_trace_with_dict_outputs_and_keywords(tmp_path: Path) -> None:
    class Traced(nn.Module):
        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
            y = -x if x.sum() > 100 else torch.tanh(x)
            return {"logits": y * scale, "half": y.abs()}

    outcome = failing(
        tmp_path / "kept",
        Traced(),
        (),
        {"scale": torch.tensor(2.0), "x": X},
        backend=Trace(strict=False),
        extra_inputs=[{"scale": torch.tensor(3.0), "x": X * 100}],
    )
    shown = reproduced(outcome, tmp_path)
    assert shown.code == 1
    assert same_numbers(outcome, shown)
    assert set(shown.worst) == {"output['logits']", "output['half']"}


def test_a_baked_value_in_a_named_tuple(tmp_path: Path) -> None:
    outcome = failing(tmp_path / "kept", Item(), backend="trace", extra_inputs=[(X * 3,)])
    shown = reproduced(outcome, tmp_path)
    assert shown.code == 1
    assert same_numbers(outcome, shown)


def test_a_baked_value_in_onnx(tmp_path: Path) -> None:
    outcome = failing(tmp_path / "kept", Item(), backend="onnx-torchscript", extra_inputs=[(X * 3,)])
    shown = reproduced(outcome, tmp_path)
    assert shown.code == 1
    assert same_numbers(outcome, shown)
    assert "onnxruntime" in Path(outcome.reproduction or "").read_text(encoding="utf-8")


@pytest.mark.parametrize("backend", ["trace", "export"])
def test_lost_state_over_several_calls(backend: str, tmp_path: Path) -> None:
    outcome = failing(tmp_path / "kept", Counter(), backend=backend, calls=3)
    shown = reproduced(outcome, tmp_path)
    assert shown.code == 1
    assert same_numbers(outcome, shown)
    assert "call 1 output: no difference" in shown.text
    assert {"call 2 output", "call 3 output", "state total"} <= set(shown.worst)


def test_a_state_that_the_program_does_not_carry(tmp_path: Path) -> None:
    outcome = failing(tmp_path / "kept", Counter(), backend="onnx")
    shown = reproduced(outcome, tmp_path)
    assert shown.code == 1
    assert "state total: eager a tensor of shape [], exported 'not there'   DIFFERS" in shown.text


def test_a_lost_mutation(tmp_path: Path) -> None:
    outcome = failing(tmp_path / "kept", Mutating(), backend="onnx")
    shown = reproduced(outcome, tmp_path)
    assert shown.code == 1
    assert same_numbers(outcome, shown)
    assert shown.worst == {"argument x": pytest.approx(1.0, abs=1e-6)}


def test_an_exception_at_run(tmp_path: Path) -> None:
    class Shaped(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.ones(int(x.shape[0]), 4)

    outcome = failing(tmp_path / "kept", Shaped(), backend="trace", extra_inputs=[(torch.rand(5, 4),)])
    assert outcome.verdict is Verdict.FAILED
    shown = reproduced(outcome, tmp_path)
    assert shown.code == 1
    assert "call 1: eager runs, the program raises RuntimeError" in shown.text


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_dtypes_come_back(dtype: str, tmp_path: Path) -> None:
    outcome = failing(tmp_path / "kept", Linear(), backend=wrong_weights(Trace()), dtype=dtype)
    shown = reproduced(outcome, tmp_path)
    assert shown.code == 1
    assert same_numbers(outcome, shown)


class Kinds(nn.Module):
    """Takes arguments of every kind, and is wrong where the trace keeps the branch."""

    def forward(self, parts: list[torch.Tensor], more: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        empty, number, flags, waves = parts
        scale = 2.0 if number.item() > 0 else 3.0
        return [empty * scale, number * scale, flags.logical_not(), waves * scale, more["b"].float() * scale, more["a"]]


def test_arguments_of_every_kind_come_back(tmp_path: Path) -> None:
    def call(sign: float) -> tuple[Any, ...]:
        parts = [torch.ones(0, 3), torch.tensor(sign), torch.tensor([True, False]), torch.tensor([1 + 2j, 3 - 1j])]
        more = {"b": torch.tensor([1.5, -2.0]), "a": torch.arange(6.0).reshape(2, 3).t()}
        return parts, more

    outcome = failing(tmp_path / "kept", Kinds(), call(1.0), backend="trace", n_inputs=0, extra_inputs=[call(-1.0)])
    shown = reproduced(outcome, tmp_path)
    assert shown.code == 1
    assert same_numbers(outcome, shown)
    assert "output[0]: empty" in shown.text
    assert "output[5]: no difference" in shown.text
    assert "strides=(1, 3)" in Path(outcome.reproduction or "").read_text(encoding="utf-8")


def test_arguments_of_the_users_classes_need_their_module(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "batches.py").write_text(
        "import dataclasses, enum, torch\n\n\nclass Kind(enum.Enum):\n    BIG = 1\n\n\n"
        "@dataclasses.dataclass\nclass Batch:\n    x: torch.Tensor\n    kind: Kind\n\n\n"
        "torch.export.register_dataclass(Batch)\n",
        encoding="utf-8",
    )
    sys.path.insert(0, str(tmp_path / "source"))
    recipe = Recipe("def load(path, device):\n    return lambda batch: batch.x * 2.5\n")
    try:
        batches = import_module("batches")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Doubled, "recipe", recipe)
            patch.setattr(Doubled, "__call__", lambda self, batch: batch.x * 2.5)
            batch = batches.Batch(X, batches.Kind.BIG)
            outcome = failing(tmp_path / "kept", lambda batch: batch.x * 2, (batch,), backend=Doubling())
    finally:
        sys.path.remove(str(tmp_path / "source"))
        sys.modules.pop("batches")
    shown = reproduced(outcome, tmp_path)
    assert shown.code == 1
    assert same_numbers(outcome, shown)
    assert "batches (classes of the input)" in Path(outcome.reproduction or "").read_text(encoding="utf-8")


def test_scripted_models_take_numbers_strings_and_none(tmp_path: Path) -> None:
    class Options(nn.Module):
        def forward(self, x: torch.Tensor, factor: float, name: str, mask: torch.Tensor | None = None) -> torch.Tensor:
            if torch.jit.is_scripting():  # type: ignore[attr-defined]
                factor = factor + 1.0
            return x * factor if name == "it's" and mask is None else x

    outcome = failing(tmp_path / "kept", Options(), (X, 2.0, "it's"), {"mask": None}, backend="script")
    shown = reproduced(outcome, tmp_path)
    assert shown.code == 1
    assert same_numbers(outcome, shown)


def test_a_structure_that_differs(tmp_path: Path) -> None:
    class Container(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return (x, x) if jit.is_tracing() else {"x": x}

    outcome = failing(tmp_path / "kept", Container(), backend="trace")
    shown = reproduced(outcome, tmp_path)
    assert shown.code == 1
    assert "output: eager returns dict, the program tuple   DIFFERS" in shown.text


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = ctx.saved_tensors[0]
        return 3 * grad * x


def test_gradients(tmp_path: Path) -> None:
    class Surrogate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * self.weight
            return y * y if jit.is_tracing() else Squared.apply(y)  # type: ignore[no-untyped-call]

    outcome = failing(tmp_path / "kept", Surrogate(), backend="trace", grad=True, n_inputs=0)
    shown = reproduced(outcome, tmp_path)
    assert shown.code == 1
    assert same_numbers(outcome, shown)
    assert {"gradient of x", "gradient of weight"} <= set(shown.worst)


def test_a_fixed_argument(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor, factor: float = 2.0) -> torch.Tensor:
            return x * factor

    outcome = failing(tmp_path / "kept", Scaled(), (X, 2.0), backend="trace", extra_inputs=[(X, 3.0)])
    assert reproduced(outcome, tmp_path).code == 1


# --- torch.compile, which has no file --------------------------------------------------------------------------------

EXACT = Tolerance(rtol=0.0, atol=0.0)


class Rounded(nn.Module):
    """Compiled, its last digits are others."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(torch.tanh(x) * x.exp().sum(), -1)


@pytest.mark.slow
@pytest.mark.parametrize("backend", [Compile(), Aoti()], ids=lambda backend: backend.name)
def test_compiled_code_is_compiled_again(backend: Backend, tmp_path: Path) -> None:
    outcome = failing(tmp_path / "kept", Rounded(), backend=backend, tolerance=EXACT, n_inputs=0)
    shown = reproduced(outcome, tmp_path)
    assert shown.code == 1
    assert same_numbers(outcome, shown)


@pytest.mark.slow
def test_what_torch_export_does_not_capture_is_made_from_its_source(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "broken_graph.py").write_text(
        "import torch\n\n\nclass Broken(torch.nn.Module):\n    def forward(self, x):\n"
        "        y = torch.tanh(x) * x.exp().sum()\n        torch._dynamo.graph_break()\n"
        "        return torch.softmax(y * float(x.sum()), -1)\n",
        encoding="utf-8",
    )
    sys.path.insert(0, str(tmp_path / "source"))
    try:
        model = import_module("broken_graph").Broken()
        outcome = failing(tmp_path / "kept", model, backend="compile", tolerance=EXACT, n_inputs=0)
    finally:
        sys.path.remove(str(tmp_path / "source"))
        sys.modules.pop("broken_graph", None)
    shown = reproduced(outcome, tmp_path)
    assert shown.code == 1
    assert same_numbers(outcome, shown)
    assert "broken_graph (the model's source)" in Path(outcome.reproduction or "").read_text(encoding="utf-8")


# --- tolerances that are no bounds -----------------------------------------------------------------------------------


class Boxes(nn.Module):
    """Traced, it gives its boxes from the last to the first, `wrong` of them another score, and another note."""

    def __init__(self, wrong: float) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        kept = {"boxes": x * 2, "scores": x.sum(1), "note": torch.arange(3)}
        if not jit.is_tracing():
            return kept
        kept["scores"] = kept["scores"] + self.wrong * torch.tensor([0.0, 1.0, 0.0])
        return {name: value.flip(0) for name, value in kept.items()}


def test_in_another_order_the_right_results_are_right(tmp_path: Path) -> None:
    tolerance = {name: Tolerance(compare="set") for name in ("boxes", "scores")}
    tolerance["note"] = Tolerance(compare="ignore")
    backend = Trace(strict=False)
    outcome = failing(tmp_path / "kept", Boxes(0.5), backend=backend, tolerance=tolerance, n_inputs=0)
    shown = reproduced(outcome, tmp_path)
    assert shown.code == 1
    assert same_numbers(outcome, shown)
    assert "output['boxes']: no difference" in shown.text
    right = engine.run(
        engine.Subject(Boxes(0.0), (X,)),
        engine.Policy(backend=backend, tolerance=tolerance, n_inputs=0),
        Surroundings(keep_in=tmp_path / "right", keep="on"),
    )
    assert right.verdict is Verdict.EQUIVALENT, right.message
    shutil.rmtree(tmp_path / "kept" / "artifact")
    shutil.copytree(tmp_path / "right" / "artifact", tmp_path / "kept" / "artifact")
    shutil.rmtree(tmp_path / "moved")
    assert reproduced(outcome, tmp_path).code == 0


# --- other people's backends -----------------------------------------------------------------------------------------


class Doubled(Exported):
    recipe: ClassVar[Recipe | None] = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2.5

    def reproduction(self, calls: Any, folder: Path) -> Recipe | None:
        return self.recipe


@dataclass(frozen=True)
class Doubling(Backend):
    name: ClassVar[str] = "doubling"

    def export(self, request: ExportRequest) -> Any:
        return None

    def save(self, program: Any, directory: Path) -> Path:
        (directory / "factor.txt").write_text("2.5", encoding="utf-8")
        return directory / "factor.txt"

    def load(self, program: Any, path: Path | None, request: ExportRequest) -> Exported:
        return Doubled()


def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def test_another_backend_may_say_how_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "def load(path, device):\n    factor = float(Path(path).read_text())\n    return lambda scaled: scaled * factor"
    )
    recipe = Recipe(source, lambda args, kwargs: ((), {"scaled": args[0]}))
    monkeypatch.setattr(Doubled, "recipe", recipe)
    outcome = failing(tmp_path / "kept", doubled, backend=Doubling())
    shown = reproduced(outcome, tmp_path)
    assert shown.code == 1
    assert same_numbers(outcome, shown)
    (tmp_path / "kept" / "artifact" / "factor.txt").write_text("2", encoding="utf-8")
    shutil.rmtree(tmp_path / "moved")
    assert reproduced(outcome, tmp_path).code == 0


def test_without_that_there_is_the_test_only(tmp_path: Path) -> None:
    outcome = failing(tmp_path / "kept", doubled, backend=Doubling())
    assert outcome.reproduction is None
    assert not (tmp_path / "kept" / "repro.py").exists()
    assert f"reproduce: pytest {tmp_path / 'kept' / 'test_repro.py'}" in outcome.message


def test_what_no_file_holds_is_said(tmp_path: Path) -> None:
    class Opaque:
        def __call__(self) -> float:
            return 2.0

    def function(x: torch.Tensor, by: Any) -> Any:
        return x * by()

    recipe = Recipe("def load(path, device):\n    return None\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Doubled, "recipe", recipe)
        patch.setattr(Doubled, "__call__", lambda self, x, by: x * 2.5)
        outcome = failing(tmp_path / "kept", function, (X, Opaque()), backend=Doubling())
    assert outcome.reproduction is None
    assert "no repro.py: the input holds a " in outcome.message


def test_a_large_tensor_is_written_once(tmp_path: Path) -> None:
    outcome = failing(tmp_path / "kept", Counter(), (torch.rand(100, 100),), backend="trace", calls=3, n_inputs=0)
    with np.load(Path(outcome.kept_in or "") / "input.npz") as kept:
        assert kept.files == ["0.x"]
    assert reproduced(outcome, tmp_path).code == 1
