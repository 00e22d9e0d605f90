"""Programs that are right, and compute in another order than eager: none may be called wrong."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from pytest_torchexport.backends.base import Backend, Exported, ExportRequest, Structure
from pytest_torchexport.backends.onnx import Onnx
from pytest_torchexport.backends.torch_export import Export, ExportedModule, capture

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True)
class Decomposed(Export):
    """torch.export, its composite operators taken apart."""

    name: ClassVar[str] = "decomposed"

    def export(self, request: ExportRequest) -> Any:
        return capture(request)

    def save(self, program: Any, directory: Path) -> Path | None:
        return None

    def load(self, program: Any, path: Path | None, request: ExportRequest) -> Exported:
        module = program.program.run_decompositions().module()
        return ExportedModule(module, program, request)


@dataclass(frozen=True)
class OnnxAsWritten(Onnx):
    """ONNX, run node by node: ONNX Runtime rewrites nothing."""

    name: ClassVar[str] = "onnx-as-written"

    def load(self, program: Any, path: Path | None, request: ExportRequest) -> Exported:
        import onnxruntime

        loaded: Any = super().load(program, path, request)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        loaded._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return loaded


class Elsewise(Backend):
    """Eager itself, computed by other kernels.

    Args:
        name: for the table.
        surroundings: what is switched while it runs.
        change: what is done to an argument.
    """

    structure: ClassVar[Structure] = Structure.SAME

    def __init__(
        self,
        name: str,
        surroundings: Callable[[], AbstractContextManager[Any]] = nullcontext,
        change: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
    ) -> None:
        self.name = name  # type: ignore[misc]
        self._surroundings, self._change = surroundings, change

    def export(self, request: ExportRequest) -> Any:
        return copy.deepcopy(request.model)

    def load(self, program: Any, path: Path | None, request: ExportRequest) -> Exported:
        return _Elsewise(program, self._surroundings, self._change)


class _Elsewise(Exported):
    def __init__(self, model: Any, surroundings: Any, change: Any) -> None:
        super().__init__()
        self._model, self._surroundings, self._change = model, surroundings, change

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = torch.utils._pytree.tree_map_only(torch.Tensor, self._change, (args, kwargs))
        with self._surroundings():
            return self._model(*args, **kwargs)

    def read_state(self) -> dict[str, Any]:
        return dict(self._model.named_buffers())


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def without_onednn() -> Any:
    """Convolutions and products by torch's own kernels."""
    return torch.backends.mkldnn.flags(enabled=False)


QUICK: tuple[str | Backend, ...] = (
    "trace:strict=false",
    "trace:strict=false,optimize_for_inference=true",
    "script",
    "script:freeze=true",
    "export",
    Decomposed(),
    "compile:backend=aot_eager",
    "onnx",
    "onnx:optimize=false",
    OnnxAsWritten(),
    "onnx-torchscript",
    Elsewise("eager-without-onednn", without_onednn),
    Elsewise("eager-channels-last", change=_channels_last),
)
"""Backends that take a second or two; those that call a C++ compiler take more and see fewer models."""
COMPILED: tuple[str, ...] = ("compile", "aoti")
