"""test_repro.py fails in the same way as the test that left it; where the model cannot be made again, it says so."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from pytest_torchexport import Compile, Onnx, Outcome, Tolerance, Verdict
from pytest_torchexport.draft import Surroundings
from pytest_torchexport.reproduce.rebuild import construction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

engine = import_module("pytest_torchexport.check")  # the package's attribute of that name is the function

X = torch.linspace(0.1, 1.2, 12).reshape(3, 4)

MODELS = '''
import torch
from torch import nn


class Gate(nn.Module):
    """Random weights, a constructor with arguments, a part of its own."""

    def __init__(self, width, scale=1.0, bias=True):
        super().__init__()
        self.width, self.scale = width, scale
        self.part = nn.Sequential(nn.Linear(4, width, bias=bias), nn.Dropout(0.25))
        self.bias = self.part[0].bias
        self.table = torch.rand(width)

    def forward(self, x, mask=None):
        y = self.part(x) * self.scale + self.table
        return torch.tanh(y) if x.sum() > 0 else -y


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, x):
        self.seen += 1
        return x * self.seen


class Listed(nn.Module):
    def forward(self, x):
        return (lambda y: y + 1)(x)


class Hidden(nn.Module):
    def __init__(self, secret):
        super().__init__()
        self.layer = nn.Linear(secret, secret)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x


class Rounded(nn.Module):
    def forward(self, x):
        return torch.softmax(torch.tanh(x) * x.exp().sum(), -1)


def shifted(x, by):
    return x + 1 if x.sum() > 0 else x - by
'''


@pytest.fixture
def models(tmp_path: Path) -> Iterator[Any]:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "models_of_mine.py").write_text(MODELS, encoding="utf-8")
    sys.path.insert(0, str(tmp_path / "source"))
    yield import_module("models_of_mine")
    sys.path.remove(str(tmp_path / "source"))
    del sys.modules["models_of_mine"]


def failing(folder: Path, model: Any, args: Any = (X,), kwargs: Any = None, **options: Any) -> Outcome:
    given = {name: options.pop(name) for name in ("calls", "extra_inputs", "dynamic_shapes") if name in options}
    around = Surroundings(keep_in=folder, keep="retain-on-failure", origin="a test")
    outcome: Outcome = engine.run(
        engine.Subject(model, args, kwargs, **given), engine.Policy(**{"n_inputs": 6} | options), around
    )
    assert outcome.failed, outcome.message
    return outcome


def pytest_on(folder: Path) -> tuple[int, str]:
    """Run the test in a process of its own, not by pytester: that makes this process import compilers twice."""
    command = [sys.executable, "-m", "pytest", str(folder / "test_repro.py"), "-p", "no:cacheprovider", "-q"]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def rerun(folder: Path) -> str:
    """The first line of what the test fails with."""
    code, text = pytest_on(folder)
    found = [line for line in text.splitlines() if line.startswith("E ")]
    assert (code, bool(found)) == (1, True), text
    return found[0]


def cases(models: Any) -> dict[str, Callable[[Path], Outcome]]:
    torch.manual_seed(3)
    dynamic = {"x": {0: torch.export.Dim("batch", min=2, max=9)}, "by": None}
    return {
        "branch": lambda f: failing(f, models.Gate(3, scale=2.0).eval(), backend="trace"),
        "bfloat16": lambda f: failing(f, models.Gate(3, bias=False).eval(), backend="trace", dtype="bfloat16"),
        "calls": lambda f: failing(f, models.Counter(), backend="trace", calls=3),
        "function": lambda f: failing(f, models.shifted, (X,), {"by": X[0]}, backend="trace"),
        "refused": lambda f: failing(f, models.Listed(), backend="script"),
        "dynamic": lambda f: failing(
            f, models.shifted, (X,), {"by": X[0]}, backend="export", dynamic_shapes=dynamic, n_inputs=2
        ),
        "opset": lambda f: failing(f, models.Counter(), backend=Onnx(opset=20), calls=2),
    }


@pytest.mark.parametrize("case", ["branch", "bfloat16", "calls", "function", "refused", "dynamic", "opset"])
def test_it_fails_in_the_same_way(case: str, models: Any, tmp_path: Path) -> None:
    outcome = cases(models)[case](tmp_path / "kept")
    assert "fill in" not in outcome.message
    first = rerun(tmp_path / "kept")
    head = f"({outcome.device}): {outcome.verdict}: "
    assert head in first
    if outcome.cause is not None:
        assert f"{head}{outcome.cause}" in first


def test_the_refused_have_the_test_only(models: Any, tmp_path: Path) -> None:
    outcome = failing(tmp_path / "kept", models.Listed(), backend="script")
    assert outcome.verdict is Verdict.REFUSED
    assert outcome.reproduction is None
    assert f"  reproduce: pytest {tmp_path / 'kept' / 'test_repro.py'}" in outcome.message


def test_it_passes_once_the_model_is_right(models: Any, tmp_path: Path) -> None:
    failing(tmp_path / "kept", models.Gate(3).eval(), backend="trace")
    file = tmp_path / "source" / "models_of_mine.py"
    right = "torch.where(x.sum() > 0, torch.tanh(y), -y)"
    file.write_text(MODELS.replace("torch.tanh(y) if x.sum() > 0 else -y", right), encoding="utf-8")
    code, text = pytest_on(tmp_path / "kept")
    assert code == 0, text
    assert "1 passed" in text


def test_a_model_of_which_nobody_knows_how_it_was_made_is_a_line_to_fill_in(models: Any, tmp_path: Path) -> None:
    failing(tmp_path / "kept", models.Hidden(4), backend="trace")
    file = tmp_path / "kept" / "test_repro.py"
    text = file.read_text(encoding="utf-8")
    assert "takes 'secret', which no attribute of that name tells" in text
    assert "has to be filled in" in rerun(tmp_path / "kept")
    filled, count = text.replace(text[text.index("    raise SystemExit") :].split("\n")[0], ""), 1
    filled = filled.replace(
        "def make_model():", "def make_model():\n    import models_of_mine\n    return models_of_mine.Hidden(4)", count
    )
    file.write_text(
        f"import sys\nsys.path.insert(0, {str(tmp_path / 'source')!r})\n{filled}".replace(
            "from __future__ import annotations", ""
        ),
        encoding="utf-8",
    )
    assert "mismatch: baked branch" in rerun(tmp_path / "kept")


@pytest.mark.slow
def test_options_and_a_tolerance_stay(models: Any, tmp_path: Path) -> None:
    backend = Compile(dynamic=False, options={"epilogue_fusion": False})
    exact = Tolerance(rtol=0.0, atol=0.0)
    failing(tmp_path / "kept", models.Rounded(), backend=backend, tolerance=exact, n_inputs=0)
    text = (tmp_path / "kept" / "test_repro.py").read_text(encoding="utf-8")
    assert "pytest_torchexport.Compile(dynamic=False, options={'epilogue_fusion': False})" in text
    assert "is allowed" in rerun(tmp_path / "kept")


# --- how a model is made ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "expression"),
    [
        (nn.Linear(3, 4, bias=False), "torch.nn.modules.linear.Linear(in_features=3, out_features=4, bias=False)"),
        (nn.Conv2d(3, 4, 3, padding=1), None),
        (nn.BatchNorm2d(4, affine=False), None),
        (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Sequential(nn.LayerNorm(3))), None),
        (nn.MultiheadAttention(8, 2, batch_first=True), None),
        (nn.Embedding(10, 3, padding_idx=0), None),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), ""),
        (nn.GRU(3, 4, num_layers=2, bidirectional=True), ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_is_made_has_the_same_tensors_and_attributes(model: nn.Module, expression: str | None) -> None:
    made = construction(model)
    if expression == "":  # an argument that no attribute tells
        assert made.expression is None
        assert made.why
        return
    assert made.expression is not None, made.why
    assert expression in (None, made.expression)
    names: dict[str, Any] = {}
    exec("\n".join(made.imports), names)
    twin = eval(made.expression, names)
    twin.load_state_dict(model.state_dict())
    assert repr(twin) == repr(model)


def test_what_was_changed_after_it_was_made_is_no_longer_known(models: Any) -> None:
    model = models.Gate(3)
    assert construction(model).expression is not None
    model.part[1].p = 0.5
    assert construction(model).why == "part.1.p is another one when its constructor is called as the attributes tell"
    model.part.append(nn.ReLU())
    assert construction(model).why == "its constructor makes other submodules when it is called as the attributes tell"
    other = models.Gate(3)
    other.table = torch.rand(5)
    assert construction(other).why.startswith("table is another one")


def test_modes_and_dtypes_are_set_again(models: Any) -> None:
    model = models.Gate(3).double()
    model.part[1].eval()
    model.part[0].weight.requires_grad_(requires_grad=False)
    made = construction(model)
    assert "model.get_submodule('part.1').training = False" in made.settings
    assert "model.to(torch.float64)" in made.settings
    assert "model.get_parameter('part.0.weight').requires_grad_(False)" in made.settings


def test_classes_that_cannot_be_imported_have_no_source() -> None:
    class Local(nn.Module):
        pass

    assert "cannot be imported" in construction(Local()).why
    assert "neither a module nor a function" in construction(Local().forward).why
    assert "cannot be imported" in construction(lambda x: x).why
