"""Code of the user's that is run to write a script changes nothing in this process, and libraries' is not run."""

from __future__ import annotations

import os
import random
import sys
import types
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pytest_torchexport import Outcome, Tolerance
from pytest_torchexport.draft import Surroundings
from pytest_torchexport.reproduce.rebuild import construction

engine = import_module("pytest_torchexport.check")  # the package's attribute of that name is the function

made: list[str] = []


class Careless(nn.Module):
    """Its constructor changes whatever it can reach."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        made.append("Careless")
        self.width = width
        self.layer = nn.Linear(width, width)
        if len(made) > 1:  # the test's own call is no concern
            _change()


def _change() -> None:
    print("making")
    warnings.warn("made", stacklevel=1)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(mode=True)
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
    torch.set_default_device("meta")
    sys.path.insert(0, "somewhere")
    os.environ["SET_BY_THE_CONSTRUCTOR"] = "1"
    os.chdir("/")


class Leaving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        if made:
            sys.exit(3)


def _world() -> list[Any]:
    return [
        *(random.getstate(), str(np.random.get_state()), torch.default_generator.get_state().tolist()),
        *(torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()),
        *(torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()),
        *(torch.backends.cudnn.benchmark, torch.get_default_device(), list(sys.path), dict(os.environ), Path.cwd()),
        torch.empty(1).device,
    ]


def test_a_constructor_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    made.clear()
    model = Careless()
    before = _world()
    found = construction(model)
    assert made == ["Careless", "Careless"]
    assert _world() == before
    assert found.expression is not None, found.why
    assert capsys.readouterr() == ("", "")


def test_a_constructor_may_leave() -> None:
    made.clear()
    model = Leaving()
    made.append("once")
    assert "raises SystemExit" in construction(model).why


def test_a_librarys_class_is_not_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = types.ModuleType("some_library")
    library.__file__ = str(tmp_path / "site-packages" / "some_library.py")
    source = (
        "import torch\nmade = []\nclass Net(torch.nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        made.append(1)\n"
    )
    exec(source, library.__dict__)
    monkeypatch.setitem(sys.modules, "some_library", library)
    net = library.Net()
    for model in (net, nn.Sequential(nn.ReLU(), net)):
        assert "Net of the library some_library" in construction(model).why
    assert library.made == [1]


@pytest.mark.slow
def test_a_script_is_tried_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "tried_elsewhere.py").write_text(
        "import torch\n\n\nclass Broken(torch.nn.Module):\n    def forward(self, x):\n"
        "        y = torch.tanh(x) * x.exp().sum()\n        torch._dynamo.graph_break()\n"
        "        return torch.softmax(y * float(x.sum()), -1)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path / "source")
    model = import_module("tried_elsewhere").Broken()
    x = torch.linspace(0.1, 1.2, 12).reshape(3, 4)
    outcome: Outcome = engine.run(
        engine.Subject(model, (x,)),
        engine.Policy(backend="compile", tolerance=Tolerance(rtol=0.0, atol=0.0), n_inputs=0),
        Surroundings(keep_in=tmp_path / "kept", keep="on"),
    )
    del sys.modules["tried_elsewhere"]
    assert outcome.reproduction is not None, outcome.message
    assert "did not show" not in outcome.message
    assert sys.path.count(str(tmp_path / "source")) == 1
