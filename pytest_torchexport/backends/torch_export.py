"""`torch.export`: a program captured from the example call, saved and loaded again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch._dynamo.exc import UserError

from pytest_torchexport.backends import recipes, size_guards, torch_warnings
from pytest_torchexport.backends.base import (
    Backend,
    Exported,
    ExportRequest,
    Recipe,
    Suspicion,
    choose,
    overwrite,
)
from pytest_torchexport.backends.convention import Convention, grouped_shapes
from pytest_torchexport.backends.fx_steps import interpret
from pytest_torchexport.backends.sharing import by_name, free_buffers, share_parameters
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.call import FunctionModule, as_module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from torch.export import ExportedProgram

    from pytest_torchexport.backends.base import Step
    from pytest_torchexport.subject.call import Call


@dataclass
class Captured:
    """An exported program, with what is known of it before it is saved."""

    program: ExportedProgram | None
    convention: Convention
    suspicions: list[Suspicion]
    details: dict[str, Any]


@dataclass(frozen=True)
class Export(Backend):
    """`torch.export.export`, saved with `torch.export.save` and loaded again.

    Args:
        strict: capture with Dynamo, which checks more and accepts less.
        prefer_deferred_runtime_asserts_over_guards: as in torch.export.export.
    """

    name: ClassVar[str] = "export"
    gradients: ClassVar[bool] = True

    strict: bool = False
    prefer_deferred_runtime_asserts_over_guards: bool = False

    def __post_init__(self) -> None:
        choose("strict", self.strict, (True, False))
        name = "prefer_deferred_runtime_asserts_over_guards"
        choose(name, getattr(self, name), (True, False))

    def export(self, request: ExportRequest) -> Captured:
        """Capture the model as a graph."""
        return capture(
            request,
            strict=self.strict,
            prefer_deferred_runtime_asserts_over_guards=self.prefer_deferred_runtime_asserts_over_guards,
        )

    def save(self, program: Captured, directory: Path) -> Path | None:
        """Write `model.pt2`."""
        assert program.program is not None
        path = directory / "model.pt2"
        with torch_warnings.shown():
            torch.export.save(program.program, path)
        program.program = None
        return path

    def load(self, program: Captured, path: Path | None, request: ExportRequest) -> Exported:
        """Read `model.pt2` back. Its parameters become the user's own where they have the same bits."""
        assert path is not None
        begun = time.perf_counter()
        with torch_warnings.shown():
            module = torch.export.load(path).module()
        seconds = time.perf_counter() - begun
        loaded = ExportedModule(module, program, request)
        loaded.load_seconds = seconds
        return loaded


def capture(request: ExportRequest, *, check_tensors: bool = False, **options: Any) -> Captured:
    """Run torch.export.export on the example.

    Args:
        request: what is exported.
        check_tensors: whether a call with other sizes or dtypes than the exported ones has to be stopped.
        options: further keyword arguments of torch.export.export.
    """
    model, example = request.model, request.example
    shapes = request.dynamic_shapes

    def export() -> Any:
        return torch.export.export(
            as_module(model),
            example.args,
            dict(example.kwargs),
            dynamic_shapes=None if shapes is None else grouped_shapes(model, example, shapes),
            **options,
        )

    with torch_warnings.noted() as suspicions:
        try:
            program = export()
        except UserError as error:
            if shapes is not None:
                size_guards.note(error, export)
            raise
    signature = program.graph_signature
    # Neither a tensor nor a constant: an int that became a symbol.
    inputs = [spec.arg for spec in signature.input_specs if spec.kind.name == "USER_INPUT"]
    symbols = frozenset(i for i, arg in enumerate(inputs) if type(arg).__name__ in _SYMBOLS)
    taken = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    sizes = {
        i: [size if isinstance(size, int) else None for size in taken[arg.name].shape]
        for i, arg in enumerate(inputs)
        if check_tensors and isinstance(taken.get(getattr(arg, "name", "")), torch.Tensor)
    }
    details = {
        "graph_nodes": len(program.graph.nodes),
        "dynamic_dims": {str(symbol): str(bounds) for symbol, bounds in program.range_constraints.items()},
    }
    return Captured(program, Convention(model, example, symbols, sizes), suspicions, details)


_SYMBOLS = ("SymIntArgument", "SymFloatArgument", "SymBoolArgument")


class ExportedModule(Exported):
    """A program that torch.export loaded, as a module.

    It holds as constants the tensors that are no buffers, and it may write to them. Those that are attributes of the
    user's modules belong to its state, the others (tensors in lists, in closures, of the user's Python module) have
    names of their own and are put back by `reset`.
    """

    def __init__(self, module: torch.nn.Module, captured: Captured, request: ExportRequest) -> None:
        super().__init__()
        self._module = module
        self._convention = captured.convention
        self._prefix = wrapper_prefix(request)
        self.suspicions = captured.suspicions
        self.details = captured.details
        original = as_module(request.model)
        share_parameters(module, original)
        free_buffers(module)
        self._state = dict(module.named_buffers())
        self._hidden: list[tuple[torch.Tensor, torch.Tensor]] = []
        for name, tensor in constants(module):
            if _attribute(original, name) is not None:
                self._state[name] = tensor
            else:
                self._hidden.append((tensor, tensor.detach().clone()))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program; `ConventionError` for a value that the export fixed."""
        args, kwargs = self._convention.arrange(args, kwargs)
        return self._module(*args, **kwargs)

    def bound_call(self, *args: Any, **kwargs: Any) -> Callable[[], Any]:
        """The module with its arguments."""
        args, kwargs = self._convention.arrange(args, kwargs)
        return partial(self._module, *args, **kwargs)

    def steps(self, *args: Any, **kwargs: Any) -> Iterator[Step]:
        """The operators of the program, interpreted."""
        args, kwargs = self._convention.arrange(args, kwargs)
        assert isinstance(self._module, torch.fx.GraphModule)
        return interpret(self._module, [leaf for _, leaf in containers.leaves((args, kwargs))], prefix=self._prefix)

    def read_state(self) -> dict[str, Any]:
        """The buffers, and tensor attributes of the user's modules that the program keeps as constants."""
        return dict(by_name(self._state, self._prefix))

    def reset(self) -> None:
        """Put back the constants that the state does not name."""
        for tensor, before in self._hidden:
            overwrite(tensor, before)

    def parameters(self) -> dict[str, torch.Tensor]:
        """The program's parameters."""
        return by_name(dict(self._module.named_parameters()), self._prefix)

    def reproduction(self, calls: Sequence[Call], folder: Path) -> Recipe:
        """Load the file as it is."""
        del calls, folder
        source, needs = recipes.torch_export(self._module)
        state = recipes.module_state(f"{self._prefix}." if self._prefix else "")
        return Recipe(source + state, partial(self._convention.arrange, checked=False), needs)


def wrapper_prefix(request: ExportRequest) -> str:
    """What stands in front of the user's names in the program: a bound method is exported inside a wrapper."""
    module = as_module(request.model)
    return "owner" if isinstance(module, FunctionModule) and hasattr(module, "owner") else ""


def constants(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The tensors that a program holds beside its parameters and buffers, by their names in it."""
    return [
        (f"{prefix}.{name}" if prefix else name, value)
        for prefix, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, torch.Tensor)
    ]


def _attribute(module: torch.nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    try:
        return getattr(module.get_submodule(owner), name, None)
    except AttributeError:
        return None
