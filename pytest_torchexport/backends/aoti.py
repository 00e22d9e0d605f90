"""AOTInductor: what `torch.export` captures, compiled to a shared library, packaged and loaded again."""

from __future__ import annotations

import tempfile
import time
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from pytest_torchexport.backends import recipes, torch_warnings
from pytest_torchexport.backends.base import (
    Backend,
    Exported,
    ExportRequest,
    Recipe,
    choose,
    expect,
    overwrite,
)
from pytest_torchexport.backends.every_value import Listed, flat, give_every_value, steps_of
from pytest_torchexport.backends.inductor import missing_compiler
from pytest_torchexport.backends.quiet import quiet
from pytest_torchexport.backends.sharing import by_name
from pytest_torchexport.backends.torch_export import Captured, capture, constants, wrapper_prefix
from pytest_torchexport.outcome import NotChecked
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.call import as_module
from pytest_torchexport.subject.fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch.export import ExportedProgram

    from pytest_torchexport.backends.base import Step
    from pytest_torchexport.subject.call import Call


@dataclass(frozen=True)
class Aoti(Backend):
    """AOTInductor: the exported program compiled to a shared library and packaged.

    Args:
        strict: capture with Dynamo, which checks more and accepts less.
        inductor_configs: options of torch._inductor.aoti_compile_and_package.
    """

    name: ClassVar[str] = "aoti"

    strict: bool = False
    inductor_configs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        choose("strict", self.strict, (True, False))
        expect("inductor_configs", self.inductor_configs, Mapping, "a dict of inductor's settings by name")

    def unavailable(self, device: torch.device) -> str | None:
        """A missing C++ compiler."""
        del device
        return missing_compiler()

    def export(self, request: ExportRequest) -> Captured:
        """Capture the model and compile it into the package `model.pt2`."""
        captured = self.capture(request)
        assert captured.program is not None
        self.package(captured.program, request.directory / _PACKAGE)
        captured.program = None
        return captured

    def capture(self, request: ExportRequest) -> Captured:
        """The model as a graph."""
        # The library reads and writes the memory of a smaller tensor beyond its end.
        return capture(request, check_tensors=True, strict=self.strict)

    def package(self, program: ExportedProgram, path: Path) -> None:
        """Compile a graph into a package."""
        with torch_warnings.shown():
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(path),
                inductor_configs=None if self.inductor_configs is None else dict(self.inductor_configs),
            )

    def save(self, program: Captured, directory: Path) -> Path | None:
        """The package, which is on disk already."""
        del program
        return directory / _PACKAGE

    def load(self, program: Captured, path: Path | None, request: ExportRequest) -> Exported:
        """Load the package onto the device."""
        assert path is not None
        return AotiPackage(path, program, request, self)


_PACKAGE = "model.pt2"


class AotiPackage(Exported):
    """A loaded AOTInductor package.

    The library keeps weights and buffers in memory of its own, which cannot be read. So that its state can be
    compared and put back, its buffers are given to it again as tensors that are held here.
    """

    def __init__(self, path: Path, captured: Captured, request: ExportRequest, backend: Aoti) -> None:
        super().__init__()
        self._backend = backend
        self._request = request
        self._convention = captured.convention
        self._prefix = wrapper_prefix(request)
        self.suspicions = captured.suspicions
        self.details = captured.details
        self._path = path
        index = request.device.index if request.device.type != "cpu" and request.device.index is not None else -1
        self._index = index
        self._listed: dict[Any, tuple[tempfile.TemporaryDirectory[str], int, list[Listed]]] = {}
        begun = time.perf_counter()
        self._program: Any = self._load()
        self.load_seconds = time.perf_counter() - begun
        self._state: dict[str, torch.Tensor] | None = {}
        self._taken_over: list[str] = []
        parameters = {name for name, _ in as_module(request.model).named_parameters(remove_duplicate=False)}
        names = [name for name in self._program.get_constant_fqns() if name not in parameters]
        if names:
            self._take_over(names, path, request)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program; `ConventionError` for a value that the export fixed, which the library would not notice."""
        args, kwargs = self._convention.arrange(args, kwargs)
        return self._program(*args, **kwargs)

    def bound_call(self, *args: Any, **kwargs: Any) -> Callable[[], Any]:
        """The package with its arguments."""
        args, kwargs = self._convention.arrange(args, kwargs)
        return partial(self._program, *args, **kwargs)

    def steps(self, *args: Any, **kwargs: Any) -> Iterator[Step]:
        """The operators of the captured graph, compiled once more as a package that gives every value.

        The graph is captured from the model again, with the buffers that this package has now.
        """
        args, kwargs = self._convention.arrange(args, kwargs)
        leaves = tuple(leaf for _, leaf in containers.leaves((args, kwargs)))
        key = (_signature(leaves), fingerprint(self._state))
        with quiet(), torch_warnings.shown():
            if key not in self._listed:
                self._listed[key] = self._list_values(leaves)
            folder, own, listed = self._listed[key]
            # Loaded anew: a run changes the buffers that the library holds.
            path = str(Path(folder.name, _PACKAGE))
            values = torch._inductor.aoti_load_package(path, device_index=self._index)(*leaves)
        return steps_of(listed, values[own:])

    def _list_values(self, leaves: tuple[Any, ...]) -> tuple[tempfile.TemporaryDirectory[str], int, list[Listed]]:
        """Compile a package that gives every value, for arguments like these and the buffers as they are."""
        program = self._backend.capture(self._request).program
        assert program is not None
        graph = flat(program.module())
        for name, buffer in [*graph.named_buffers(), *constants(graph)]:
            if name in (self._state or {}):
                overwrite(buffer, (self._state or {})[name])
        own, listed = give_every_value(graph, self._prefix)
        folder = tempfile.TemporaryDirectory(dir=self._path.parent)
        self._backend.package(torch.export.export(graph, leaves), Path(folder.name, _PACKAGE))
        return folder, own, listed

    def read_state(self) -> dict[str, Any] | None:
        """The buffers that the library has."""
        return None if self._state is None else dict(by_name(self._state, self._prefix))

    def reset(self) -> None:
        """Load the library anew if its state cannot be put back."""
        if self._state is None:
            self._program = None
            self._program = self._load()

    def _load(self) -> Any:
        with torch_warnings.shown():
            return torch._inductor.aoti_load_package(str(self._path), device_index=self._index)

    def reproduction(self, calls: Sequence[Call], folder: Path) -> Recipe:
        """Load the package, and give it its buffers as is done here."""
        del calls, folder
        source = recipes.aoti(self._taken_over, self._index)
        if self._taken_over:
            source += recipes.named_state(f"{self._prefix}." if self._prefix else "")
        return Recipe(source, partial(self._convention.arrange, checked=False))

    def close(self) -> None:
        """Unload the library, and only then the tensors that it uses."""
        self._program = None
        self._state = {}
        for folder, *_ in self._listed.values():
            folder.cleanup()
        self._listed.clear()

    def _take_over(self, names: list[str], path: Path, request: ExportRequest) -> None:
        try:
            self._state = packaged_constants(path, request.device, names)
        except Exception as error:  # noqa: BLE001 a private interface of torch: whatever it raises, it cannot be read
            self._state = None
            first = str(error).strip().split("\n", 1)[0]
            self.not_checked.append(NotChecked("the state", f"the package's buffers cannot be read: {first}"))
            return
        self._program.load_constants(self._state, check_full_update=False, user_managed=True)
        self._taken_over = names


def _signature(leaves: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a package is compiled for: the layout of tensors, and all other values."""
    return tuple(
        (leaf.shape, leaf.stride(), leaf.dtype, leaf.device) if isinstance(leaf, torch.Tensor) else (type(leaf), leaf)
        for leaf in leaves
    )


def packaged_constants(path: Path, device: torch.device, names: Collection[str]) -> dict[str, torch.Tensor]:
    """Copies of weights and buffers inside an AOTInductor package, as the library itself holds them.

    Args:
        path: the package.
        device: the device that it was compiled for.
        names: qualified names of those that are wanted.
    """
    container = getattr(torch._C._aoti, f"AOTIModelContainerRunner{device.type.capitalize()}")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, zipfile.ZipFile(path) as package:
        package.extractall(folder)
        (library,) = Path(folder).rglob("*.so")
        options = () if device.type == "cpu" else (str(device), str(library.parent))
        active = False  # not the second buffer, which is for updates of a running model
        # The tensors are views of the runner's memory: it has to live until they are cloned.
        runner = container(str(library), 1, *options)
        held = runner.extract_constants_map(active)
        return {name: held[name].clone() for name in names}
