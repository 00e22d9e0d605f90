"""TorchScript by trace and by script: `torch.jit.trace`, `torch.jit.script`, saved and loaded again."""

from __future__ import annotations

import contextlib
import functools
import time
import types
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from pytest_torchexport.backends import recipes
from pytest_torchexport.backends.base import Backend, Exported, ExportRequest, Recipe, Structure, Suspicion, choose
from pytest_torchexport.backends.convention import Convention
from pytest_torchexport.backends.sharing import share_parameters
from pytest_torchexport.backends.torchscript_steps import steps
from pytest_torchexport.backends.tracer_warnings import capture
from pytest_torchexport.outcome import NotChecked
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.call import Call, as_module, bind, signature_of
from pytest_torchexport.subject.state import identical, script_attributes, write_script_attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pytest_torchexport.backends.base import Step

    _Arranged = tuple[tuple[Any, ...], dict[str, Any]]
    _Arrange = Callable[..., _Arranged]


@dataclass
class _Program:
    """A TorchScript program with how it is called.

    Attributes:
        scripted: the program; None once it is saved.
        arrange: makes a call's arguments those of the program; with `checked=False`, without a look at values
            that the trace holds as constants.
        suspicions: what the tracer warned about.
        constants: arguments that the trace holds as constants.
        owner: name of the submodule that is the user's model, where the tracer was given a module around it.
    """

    scripted: Any
    arrange: _Arrange
    suspicions: list[Suspicion]
    constants: tuple[str, ...] = ()
    owner: str = ""


def _as_given(args: tuple[Any, ...], kwargs: Mapping[str, Any], *, checked: bool) -> _Arranged:
    del checked
    return args, dict(kwargs)


class _Tensors(torch.nn.Module):
    """The model as a function of its tensors alone; everything else in the call is constant."""

    def __init__(self, model: torch.nn.Module, call: Call) -> None:
        super().__init__()
        self.model = model
        self._call = (call.args, dict(call.kwargs))
        self._paths = [path for path, _ in containers.tensors(self._call)]

    def forward(self, *tensors: torch.Tensor) -> Any:
        """Call the model with the tensors put into the places of the example's."""
        args, kwargs = containers.replace(self._call, dict(zip(self._paths, tensors, strict=True)))
        return self.model(*args, **kwargs)


def _traceable(value: Any) -> bool:
    """Whether jit.trace takes the value as an input: a tensor, or a tuple, list or dict of such."""
    if isinstance(value, torch.Tensor):
        return True
    if type(value) in (tuple, list) and value:
        return all(_traceable(part) for part in value)
    return type(value) is dict and bool(value) and all(isinstance(part, torch.Tensor) for part in value.values())


class _ScriptExported(Exported):
    """A loaded TorchScript program.

    A trace holds as constants the tensors that are no buffers, and it may write to them. They have no name by which
    they could be given to the engine, so a program that has changed one is loaded anew.

    Args:
        load: reads the program back, and gives the seconds that this took beside it.
        program: what was saved.
        profiling: whether the executor profiles the first calls.
        recipe: source that reads it back.
    """

    optimizer: ClassVar[str] = "TorchScript's graph executor, which fuses and folds"

    def __init__(
        self, load: Callable[[], tuple[Any, float]], program: _Program, *, profiling: bool, recipe: str
    ) -> None:
        super().__init__()
        self._recipe = recipe
        self._arrange = program.arrange
        self._load = load
        self._loaded, self.load_seconds = load()
        self._planned = self._profiling = profiling
        self._constants = _constants(self._loaded)
        self._prefix = f"{program.owner}." if program.owner else ""
        self.suspicions = program.suspicions
        if program.constants:
            names = ", ".join(program.constants)
            self.not_checked.append(NotChecked(f"other values of {names}", "the trace holds them as constants"))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self._loaded, args, kwargs)

    def _call(self, loaded: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        arranged, keywords = self._arrange(args, kwargs, checked=True)
        with contextlib.nullcontext() if self._profiling else without_profiling():
            return loaded(*arranged, **keywords)

    def bound_call(self, *args: Any, **kwargs: Any) -> Callable[[], Any]:
        arranged, keywords = self._arrange(args, kwargs, checked=True)
        call: Callable[[], Any] = functools.partial(self._loaded, *arranged, **keywords)
        if self._planned:
            return call

        def planned_first() -> Any:
            if self._planned:
                return call()
            with without_profiling():
                output = call()
            # A plan that was made without profiling stays: the later calls have nothing to switch.
            self._planned = True
            return output

        return planned_first

    def read_state(self) -> dict[str, Any] | None:
        if not isinstance(self._loaded, torch.jit.ScriptModule):
            return {}
        state: dict[str, Any] = dict(self._loaded.named_buffers()) | script_attributes(self._loaded)
        return {name.removeprefix(self._prefix): value for name, value in state.items()}

    def write_state(self, state: Mapping[str, Any]) -> None:
        super().write_state(state)
        if isinstance(self._loaded, torch.jit.ScriptModule):
            write_script_attributes(self._loaded, {self._prefix + name: value for name, value in state.items()})

    def reset(self) -> None:
        if any(tensor._version != version for tensor, version in self._constants):
            self._loaded, _ = self._load()
            self._planned = self._profiling
            self._constants = _constants(self._loaded)

    def parameters(self) -> dict[str, torch.Tensor] | None:
        if not isinstance(self._loaded, torch.nn.Module):
            return {}
        return {name.removeprefix(self._prefix): p for name, p in self._loaded.named_parameters()}

    def steps(self, *args: Any, **kwargs: Any) -> Iterator[Step] | None:
        before = containers.clone(self.read_state() or {})
        try:
            owner = self._prefix.removesuffix(".")
            return steps(self._loaded, lambda program: self._call(program, args, kwargs), owner=owner)
        finally:
            self.write_state(before)

    def reproduction(self, calls: Sequence[Call], folder: Path) -> Recipe:
        del calls, folder

        def arranged(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Arranged:
            return self._arrange(args, kwargs, checked=False)

        # TorchScript takes a tuple for a named one.
        return Recipe(self._recipe + recipes.module_state(self._prefix), arranged, plain=True)


@contextlib.contextmanager
def without_profiling() -> Iterator[None]:
    """TorchScript plans what is called for the first time without profiling it; the setting is the whole process's."""
    before = torch._C._jit_set_profiling_mode(False)  # noqa: FBT003 it takes no keyword
    try:
        yield
    finally:
        torch._C._jit_set_profiling_mode(before)


def _constants(loaded: Any) -> list[tuple[torch.Tensor, int]]:
    """The tensors that a program holds as constants, each with the number of writes to it so far."""
    graph = getattr(loaded, "inlined_graph", None)
    nodes = [] if graph is None else graph.findAllNodes("prim::Constant")
    tensors = [node.t("value") for node in nodes if node.hasAttribute("value") and node.kindOf("value") == "t"]
    return [(tensor, tensor._version) for tensor in tensors if not tensor.is_inference()]


@dataclass(frozen=True)
class _TorchScript(Backend):
    """What trace and script have in common.

    Args:
        freeze: run `torch.jit.freeze`: parameters and attributes become constants.
        optimize_for_inference: run `torch.jit.optimize_for_inference`, which freezes too.
        profiling: let TorchScript's executor watch the first call and specialise the graph in the second, as it does
            unless it is told otherwise. False runs the program as a deployment does that starts with
            `torch::jit::getProfilingMode() = false` (C++) or `torch._C._jit_set_profiling_mode(False)` (Python): the
            graph is planned once, in the first call, and not fused.
    """

    structure: ClassVar[Structure] = Structure.SCRIPT
    gradients: ClassVar[bool] = True

    freeze: bool = False
    optimize_for_inference: bool = False
    profiling: bool = True

    def __post_init__(self) -> None:
        choose("freeze", self.freeze, (True, False))
        choose("optimize_for_inference", self.optimize_for_inference, (True, False))
        choose("profiling", self.profiling, (True, False))

    def save(self, program: _Program, directory: Path) -> Path | None:
        """Write `model.pt` with `torch.jit.save`."""
        path = directory / "model.pt"
        with capture():
            torch.jit.save(program.scripted, str(path))
        program.scripted = None
        return path

    def load(self, program: _Program, path: Path | None, request: ExportRequest) -> Exported:
        """Read `model.pt` back; its parameters become views of the model's own where they have the same bits."""

        def loaded() -> tuple[Any, float]:
            begun = time.perf_counter()
            with capture():
                read: Any = torch.jit.load(str(path), map_location=request.device)  # type: ignore[no-untyped-call]
                if self.optimize_for_inference:
                    # Its operators cannot be serialised: what is saved is frozen, and optimised where it is loaded.
                    read = torch.jit.optimize_for_inference(read)
            seconds = time.perf_counter() - begun
            if isinstance(request.model, torch.nn.Module) and isinstance(read, torch.nn.Module):
                share_parameters(read, request.model, prefix=program.owner)
            return read, seconds

        recipe = recipes.torchscript(optimize=self.optimize_for_inference, profiling=self.profiling)
        return _ScriptExported(loaded, program, profiling=self.profiling, recipe=recipe)

    def cold_start_variants(self) -> dict[str, Backend]:
        """The same file under an executor that profiles, or does not."""
        return {f"profiling={not self.profiling}": replace(self, profiling=not self.profiling)}

    def _finish(self, scripted: Any) -> Any:
        if self.freeze or self.optimize_for_inference:
            return torch.jit.freeze(scripted)
        return scripted


@dataclass(frozen=True)
class Trace(_TorchScript):
    """`torch.jit.trace`, saved with `torch.jit.save` and loaded again.

    Args:
        strict: passed to `torch.jit.trace`; False lets it record lists and dicts in the output.
    """

    name: ClassVar[str] = "trace"

    strict: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("strict", self.strict, (True, False))

    def export(self, request: ExportRequest) -> _Program:
        """Trace the model on the example; what is no tensor in the call becomes a constant of the trace."""
        call = request.example
        with capture() as suspicions:
            program = self._trace(_nameable(request.model), call)
            program.scripted = self._finish(program.scripted)
        program.suspicions = suspicions
        return program

    def _trace(self, model: Callable[..., Any], call: Call) -> _Program:
        """Trace with the arguments as they are if jit.trace takes them, else by keyword, else as a list of tensors."""
        trace = functools.partial(torch.jit.trace, check_trace=False, strict=self.strict)
        convention = Convention(model, call)

        def positional(args: Any, kwargs: Mapping[str, Any], *, checked: bool) -> _Arranged:
            return convention.arrange(args, kwargs, checked=checked)[0], {}

        if not call.kwargs and call.args and all(_traceable(arg) for arg in call.args):
            return _Program(trace(model, call.args), positional, [])
        named = bind(model, call)
        tensors = {name: value for name, value in named.items() if _traceable(value)}
        constants = tuple(name for name in named if name not in tensors)

        def by_name(args: Any, kwargs: Mapping[str, Any], *, checked: bool) -> _Arranged:
            arranged = bind(model, Call(*convention.arrange(args, kwargs, checked=checked)))
            return (), {name: arranged[name] for name in tensors}

        if tensors and _can_go_by_name(model, call) and all(_is_default(model, n, named[n]) for n in constants):
            return _Program(trace(model, example_kwarg_inputs=tensors), by_name, [], constants)

        def flat(args: Any, kwargs: Mapping[str, Any], *, checked: bool) -> _Arranged:
            arranged = convention.arrange(args, kwargs, checked=checked)
            return tuple(tensor for _, tensor in containers.tensors(arranged)), {}

        wrapped = _Tensors(as_module(model), call)
        wrapped.training = wrapped.model.training
        parts = tuple(tensor for _, tensor in containers.tensors((call.args, dict(call.kwargs))))
        return _Program(trace(wrapped, parts), flat, [], constants, "model")


def _nameable(model: Callable[..., Any]) -> Callable[..., Any]:
    """The model, or a plain function around a callable that the tracer cannot name (a partial, an object)."""
    if isinstance(model, (torch.nn.Module, types.FunctionType, types.BuiltinFunctionType, types.MethodType)):
        return model

    def function(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    signature = signature_of(model)
    if signature is not None:
        function.__signature__ = signature  # type: ignore[attr-defined]
    return function


def _can_go_by_name(model: Callable[..., Any], call: Call) -> bool:
    """Whether every argument of the call has a parameter of its own that takes a keyword."""
    signature = signature_of(model)
    if signature is None or not isinstance(model, torch.nn.Module):
        return False
    # jit.trace does not know keyword-only parameters.
    keyword = {n for n, p in signature.parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
    return set(bind(model, call)) <= keyword


def _is_default(model: Callable[..., Any], name: str, value: Any) -> bool:
    signature = signature_of(model)
    return signature is not None and identical(signature.parameters[name].default, value)


@dataclass(frozen=True)
class Script(_TorchScript):
    """`torch.jit.script`, saved with `torch.jit.save` and loaded again."""

    name: ClassVar[str] = "script"

    def export(self, request: ExportRequest) -> _Program:
        """Compile the model's source to TorchScript."""
        with capture() as suspicions:
            scripted = self._finish(torch.jit.script(request.model))
        if isinstance(scripted, torch.nn.Module):
            return _Program(scripted, _as_given, suspicions)

        def filled(args: Any, kwargs: Mapping[str, Any], *, checked: bool) -> _Arranged:
            del checked
            # A function loses the defaults of its parameters when it is saved.
            return (), dict(_with_defaults(request.model, Call(args, kwargs)))

        return _Program(scripted, filled, suspicions)


def _with_defaults(model: Callable[..., Any], call: Call) -> Mapping[str, Any]:
    signature = signature_of(model)
    if signature is None:
        return bind(model, call)
    bound = signature.bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    return bound.arguments
