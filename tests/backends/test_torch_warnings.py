# mypy: disable-error-code="no-any-return,index"
from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from pytest_torchexport.backends import torch_warnings
from pytest_torchexport.backends.aoti import Aoti
from pytest_torchexport.backends.base import ExportRequest
from pytest_torchexport.backends.compile import Compile
from pytest_torchexport.backends.onnx import Onnx
from pytest_torchexport.backends.onnx_torchscript import OnnxTorchScript
from pytest_torchexport.backends.quiet import quiet
from pytest_torchexport.backends.torch_export import Export
from pytest_torchexport.backends.torchscript import Script, Trace
from pytest_torchexport.outcome import Cause
from pytest_torchexport.subject.call import Call

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_torchexport.backends.base import Backend

CPU = torch.device("cpu")


class Library(nn.Module):
    """A library's module: one of its attributes is deprecated, and who reads all attributes is warned."""

    __jit_unused_properties__ = ("old",)  # jit.script would compile it

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    @property
    def old(self) -> int:
        warnings.warn("old is deprecated, use new", DeprecationWarning, stacklevel=1)
        return 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class Sliced(nn.Module):
    """The legacy exporter says that it cannot fold the slice of the constant."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(6.0))
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(x) + self.table[::2]


def warned_by(backend: Backend, model: nn.Module, folder: Path) -> list[str]:
    """What is shown of an export, saving and loading under -W error."""
    request = ExportRequest(model, Call((torch.rand(2, 3),)), None, CPU, folder)
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("error")
        program = backend.export(request)
        backend.load(program, backend.save(program, folder), request).close()
    return [str(one.message) for one in log]


ALL = [Trace(), Script(), Compile(backend="eager"), Export(), Export(strict=True), Onnx(), OnnxTorchScript()]


@pytest.mark.parametrize("backend", ALL, ids=lambda one: one.id)
def test_no_exporter_raises_a_librarys_own_deprecation(backend: Backend, tmp_path: Path) -> None:
    said = warned_by(backend, Library(), tmp_path)
    assert set(said) <= {"old is deprecated, use new"}
    assert bool(said) == (backend.name in ("trace", "script"))  # which read every attribute


@pytest.mark.parametrize("backend", ALL, ids=lambda one: one.id)
def test_a_model_in_training_mode_with_constants_is_exported_without_a_word(backend: Backend, tmp_path: Path) -> None:
    assert warned_by(backend, Sliced().train(), tmp_path) == []


@pytest.mark.slow
def test_aoti_keeps_torchs_deprecated_calls_of_itself_to_itself(tmp_path: Path) -> None:
    assert warned_by(Aoti(), Sliced(), tmp_path) == []


def test_a_warning_is_shown_after_the_block_and_passes_the_callers_filters() -> None:
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "hidden")
        with torch_warnings.shown():
            warnings.warn("mind the gap", UserWarning, stacklevel=1)
            warnings.warn("hidden", UserWarning, stacklevel=1)
            assert log == []
    assert [str(one.message) for one in log] == ["mind the gap"]


def test_a_deprecation_is_dropped_only_where_an_exporter_calls_it() -> None:
    def deprecated(module: str) -> list[str]:
        with warnings.catch_warnings(record=True) as log:
            warnings.simplefilter("always")
            with torch_warnings.shown():
                warnings.warn_explicit("gone soon", FutureWarning, f"{module}.py", 1, module)
        return [str(one.message) for one in log]

    assert deprecated("copyreg") == deprecated("torch.utils._pytree") == deprecated("onnxscript") == []
    assert deprecated("torchvision.ops") == deprecated("mymodel") == ["gone soon"]


def test_what_torch_export_says_of_the_program_is_a_suspicion_also_if_it_fails() -> None:
    def fail() -> None:
        warnings.warn("The tensor attribute self.h was assigned during export. And so on.", UserWarning, stacklevel=1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), torch_warnings.noted() as suspicions:
        fail()
    assert [(one.cause, one.text) for one in suspicions] == [
        (Cause.LOST_STATE, "The tensor attribute self.h was assigned during export.")
    ]


def test_quiet_shows_warnings_of_any_backend_behind_what_it_swallows(capsys: Any) -> None:
    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(message, file=sys.stderr)

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("error")
        patch.setattr(warnings, "showwarning", show)
        with quiet():
            print("progress")
            warnings.warn("mind the gap", UserWarning, stacklevel=1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "mind the gap\n"
