"""Check that an exported PyTorch model is equivalent to the eager one, on inputs that were generated for it.

The names below are loaded on first use: importing the package (as pytest does at every start) costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_torchexport.backends.aoti import Aoti
    from pytest_torchexport.backends.base import Backend, Exported, ExportRequest, Recipe, Structure, Suspicion
    from pytest_torchexport.backends.compile import Compile
    from pytest_torchexport.backends.onnx import Onnx
    from pytest_torchexport.backends.onnx_torchscript import OnnxTorchScript
    from pytest_torchexport.backends.registry import register_backend
    from pytest_torchexport.backends.torch_export import Export
    from pytest_torchexport.backends.torchscript import Script, Trace
    from pytest_torchexport.check import assert_equivalent, check
    from pytest_torchexport.compare.tolerance import Tolerance
    from pytest_torchexport.conformance import check_backend
    from pytest_torchexport.errors import (
        BackendUnavailable,
        ConventionError,
        ExportRefused,
        NotEquivalent,
        ReferenceInvalid,
        TorchExportError,
        UsageError,
    )
    from pytest_torchexport.inputs.domain import booleans, floats, integers, optional, sampled_from
    from pytest_torchexport.latency.budget import Budget
    from pytest_torchexport.outcome import (
        BranchCoverage,
        BranchOutcome,
        Cause,
        Decision,
        Evidence,
        Input,
        Leaf,
        Location,
        NotChecked,
        Outcome,
        Stage,
        Verdict,
    )

__version__ = "0.1.0"

_HOME = {
    "outcome": (
        "BranchCoverage BranchOutcome Cause Decision Evidence Input Leaf Location NotChecked Outcome Stage Verdict"
    ),
    "errors": (
        "BackendUnavailable ConventionError ExportRefused NotEquivalent ReferenceInvalid TorchExportError UsageError"
    ),
    "check": "assert_equivalent check",
    "compare.tolerance": "Tolerance",
    "latency.budget": "Budget",
    "inputs.domain": "booleans floats integers optional sampled_from",
    "backends.base": "Backend Exported ExportRequest Recipe Structure Suspicion",
    "conformance": "check_backend",
    "backends.registry": "register_backend",
    "backends.torchscript": "Script Trace",
    "backends.compile": "Compile",
    "backends.torch_export": "Export",
    "backends.aoti": "Aoti",
    "backends.onnx": "Onnx",
    "backends.onnx_torchscript": "OnnxTorchScript",
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = [
    "Aoti",
    "Backend",
    "BackendUnavailable",
    "BranchCoverage",
    "BranchOutcome",
    "Budget",
    "Cause",
    "Compile",
    "ConventionError",
    "Decision",
    "Evidence",
    "Export",
    "ExportRefused",
    "ExportRequest",
    "Exported",
    "Input",
    "Leaf",
    "Location",
    "NotChecked",
    "NotEquivalent",
    "Onnx",
    "OnnxTorchScript",
    "Outcome",
    "Recipe",
    "ReferenceInvalid",
    "Script",
    "Stage",
    "Structure",
    "Suspicion",
    "Tolerance",
    "TorchExportError",
    "Trace",
    "UsageError",
    "Verdict",
    "__version__",
    "assert_equivalent",
    "booleans",
    "check",
    "check_backend",
    "floats",
    "integers",
    "optional",
    "register_backend",
    "sampled_from",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps `pytest_torchexport.check` the function: importing check.py would bind the module to that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "check" and isinstance(value, ModuleType):
            value = value.check
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
