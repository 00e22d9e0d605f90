"""Programs with a fault in them as backends, so that the public engine checks them; and programs that are overheard."""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from pytest_torchexport.backends.base import Backend, Exported, ExportRequest, FlatOutput, Structure
from pytest_torchexport.backends.convention import Convention
from pytest_torchexport.backends.onnx import Onnx
from pytest_torchexport.backends.onnx_session import OnnxProgram
from pytest_torchexport.backends.torch_export import Captured, ExportedModule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch.fx import GraphModule


class PlantedGraph(Backend):
    """The model's graph from torch.export after an edit, run as it is.

    Args:
        clean: the exported program's module; it is left as it is.
        edit: changes a copy of it in place.
    """

    name: ClassVar[str] = "planted-graph"

    def __init__(self, clean: GraphModule, edit: Callable[[GraphModule], None]) -> None:
        self._clean, self._edit = clean, edit

    def export(self, request: ExportRequest) -> Any:
        return planted(self._clean, self._edit)

    def load(self, program: Any, path: Path | None, request: ExportRequest) -> Exported:
        convention = Convention(request.model, request.example, frozenset(), {})
        return ExportedModule(program, Captured(None, convention, [], {}), request)


def planted(clean: GraphModule, edit: Callable[[GraphModule], None]) -> GraphModule:
    """A copy of a graph after an edit."""
    module = copy.deepcopy(clean)
    edit(module)
    module.graph.lint()
    module.recompile()
    return module


class PlantedOnnx(Backend):
    """The model's ONNX file after an edit, run in ONNX Runtime with all its optimisations.

    Args:
        folder: where `Onnx(external_data=False)` saved the right file.
        edit: changes the file's protobuf message in place; None for no edit.
    """

    name: ClassVar[str] = "planted-onnx"
    structure: ClassVar[Structure] = Onnx.structure

    def __init__(self, folder: Path, edit: Callable[[Any], None] | None) -> None:
        self._folder, self._edit = folder, edit

    def export(self, request: ExportRequest) -> Any:
        import onnx

        proto = onnx.load(self._folder / "model.onnx")
        if self._edit is not None:
            self._edit(proto)
        return proto

    def save(self, program: Any, directory: Path) -> Path:
        import onnx

        onnx.save(program, directory / "model.onnx")
        shutil.copy(self._folder / "model.interface.json", directory)
        return directory / "model.onnx"

    def load(self, program: Any, path: Path | None, request: ExportRequest) -> Exported:
        assert path is not None
        return OnnxProgram(path, request, None)


@dataclass
class Overheard(Backend):
    """Another backend, of whose program every result is kept: what the other rules judge is what the engine judged.

    Attributes:
        seen: what each call returned, as a list of leaves, or the exception that it raised.
    """

    name: ClassVar[str] = "overheard"

    inner: Backend
    seen: list[list[Any] | Exception] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.structure = self.inner.structure  # type: ignore[misc]

    @property
    def id(self) -> str:
        return self.inner.id

    def unavailable(self, device: torch.device) -> str | None:
        return self.inner.unavailable(device)

    def export(self, request: ExportRequest) -> Any:
        return self.inner.export(request)

    def save(self, program: Any, directory: Path) -> Path | None:
        return self.inner.save(program, directory)

    def load(self, program: Any, path: Path | None, request: ExportRequest) -> Exported:
        return _Overheard(self.inner.load(program, path, request), self.seen)


class _Overheard(Exported):
    def __init__(self, inner: Exported, seen: list[list[Any] | Exception]) -> None:
        self.inner, self._seen = inner, seen
        self.suspicions, self.not_checked, self.details = inner.suspicions, inner.not_checked, inner.details

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            result = self.inner(*args, **kwargs)
        except Exception as error:
            self._seen.append(error)
            raise
        self._seen.append(leaves(result))
        return result

    def read_state(self) -> dict[str, Any] | None:
        return self.inner.read_state()

    def write_state(self, state: Mapping[str, Any]) -> None:
        self.inner.write_state(state)

    def reset(self) -> None:
        self.inner.reset()

    @property
    def shares_module(self) -> bool:
        return self.inner.shares_module

    def parameters(self) -> dict[str, torch.Tensor] | None:
        return self.inner.parameters()

    def close(self) -> None:
        self.inner.close()


def leaves(output: Any) -> list[Any]:
    """The leaves of a result, copied."""
    plain = list(output.values.values()) if isinstance(output, FlatOutput) else output
    found = torch.utils._pytree.tree_leaves(plain)
    return [one.detach().clone() if isinstance(one, torch.Tensor) else one for one in found]
