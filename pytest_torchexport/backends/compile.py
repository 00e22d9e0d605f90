"""`torch.compile`: the user's own module, run through compiled graphs.

There is no artifact. The danger here is a comparison of eager with eager: Dynamo falls back to Python for whatever
it cannot capture, and for every call beyond the recompile limit, without an error. So the compiler is wrapped: each
graph that it makes counts its runs, and a call in which no graph ran is no comparison.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch._dynamo as dynamo
from torch._dynamo import eval_frame
from torch._dynamo import utils as dynamo_utils

from pytest_torchexport.backends import torch_warnings
from pytest_torchexport.backends.base import Backend, Exported, ExportRequest, Recipe, choose, expect
from pytest_torchexport.backends.compile_recipe import captured_recipe
from pytest_torchexport.backends.dynamic_marks import mark_dynamic
from pytest_torchexport.backends.dynamo_log import DynamoLog
from pytest_torchexport.backends.every_value import Listing
from pytest_torchexport.backends.inductor import from_nothing, missing_compiler
from pytest_torchexport.errors import NothingCompiled, UsageError
from pytest_torchexport.outcome import NotChecked
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.call import Call, bind, name_of
from pytest_torchexport.subject.run import WRITTEN_LEAF, require_grad, writable
from pytest_torchexport.subject.state import parameters

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_torchexport.backends.base import Step
    from pytest_torchexport.outcome import Location

_LIMIT_OF_STEPS = 256
"""Compilations of one function that may be made to look inside: those of other backends count too."""

MODES = (None, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass(frozen=True)
class Compile(Backend):
    """`torch.compile`.

    Args:
        mode: as in torch.compile; with `backend="inductor"` only.
        dynamic: as in torch.compile. None compiles for one size and generalises when another comes, except that
            the dims which `dynamic_shapes` declares are dynamic from the start.
        fullgraph: refuse a model of which not everything can be compiled.
        backend: name of a Dynamo backend (`inductor`, `aot_eager`, `eager`, `cudagraphs`, ...).
        options: as in torch.compile; not together with `mode`.
        recompile_limit: number of compilations of one function after which torch.compile gives up and runs eager;
            None for torch's own limit.
    """

    name: ClassVar[str] = "compile"
    gradients: ClassVar[bool] = True

    mode: str | None = None
    dynamic: bool | None = None
    fullgraph: bool = False
    backend: str = "inductor"
    options: Mapping[str, Any] | None = None
    recompile_limit: int | None = None

    def __post_init__(self) -> None:
        choose("mode", self.mode, MODES)
        choose("dynamic", self.dynamic, (None, True, False))
        choose("fullgraph", self.fullgraph, (True, False))
        backend: object = self.backend
        if not isinstance(backend, str):
            msg = f"backend={backend!r} is not accepted: give the name of a Dynamo backend, such as 'inductor'"
            raise UsageError(msg)
        if self.mode is not None and self.options is not None:
            msg = f"mode={self.mode!r} and options exclude each other: a mode is a name for a set of options"
            raise UsageError(msg)
        if self.mode not in (None, "default") and self.backend != "inductor":
            msg = f"mode={self.mode!r} belongs to backend='inductor', not to backend={self.backend!r}: leave one out"
            raise UsageError(msg)
        expect("options", self.options, Mapping, "a dict of the compiler's settings by name")
        expect("recompile_limit", self.recompile_limit, int, "a number from 1 on", least=1)

    def unavailable(self, device: torch.device) -> str | None:
        """A missing C++ compiler: inductor generates C++ on the CPU, and its launchers elsewhere.

        Raises:
            UsageError: there is no such Dynamo backend. It is said here, because to list them imports all compilers,
                which is too much for the collection of tests.
        """
        del device
        if self.backend not in ("inductor", "aot_eager", "eager"):
            choose("backend", self.backend, tuple(dynamo.list_backends(exclude_tags=())))
        return missing_compiler() if self.backend == "inductor" else None

    def export(self, request: ExportRequest) -> Exported:
        """Compile, by running the example once: what the compiler refuses, it refuses here."""
        program = Compiled(self, request)
        try:
            program.warm_up(request)
        except BaseException:
            program.close()
            raise
        return program

    def load(self, program: Exported, path: Path | None, request: ExportRequest) -> Exported:
        """The compiled callable itself."""
        del path, request
        return program

    def load_anew(self, program: Exported, path: Path | None, request: ExportRequest) -> Exported:
        """Another callable that has compiled nothing yet: its first call does, with empty caches."""
        del program, path
        return Compiled(self, request, anew=True)


class _Counting:
    """A Dynamo backend around another one, which counts the graphs that it compiles and their runs."""

    def __init__(self, name: str, compiler: Callable[..., Any]) -> None:
        self.__name__ = name
        self.compiler = compiler
        self.graphs = 0
        self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        compiled = self.compiler(graph, inputs)
        self.graphs += 1

        # No functools.wraps: Dynamo would follow `_torchdynamo_orig_callable` past this function.
        def run(*args: Any) -> Any:
            self.runs += 1
            return compiled(*args)

        return run

    def reset(self) -> None:
        if hasattr(self.compiler, "reset"):
            self.compiler.reset()


class Compiled(Exported):
    """A model behind torch.compile, with the account of what was compiled.

    Args:
        backend: the options.
        request: what is compiled.
        anew: compile with empty caches, until it is closed.
    """

    def __init__(self, backend: Compile, request: ExportRequest, *, anew: bool = False) -> None:
        super().__init__()
        dynamo.reset()
        self._until_closed = contextlib.ExitStack()
        self._watched = True
        self._model = request.model
        self._request = request
        self._options = backend
        self._dynamic_shapes = request.dynamic_shapes if backend.dynamic is None else None
        self._counting = _Counting(backend.backend, _compiler(backend))
        self._log = DynamoLog()
        self._calls_without_graph = 0
        # The compiler knows mode and options; torch.compile itself reads one option only.
        own = {key: value for key, value in (backend.options or {}).items() if key == "guard_filter_fn"}
        with _attributes_kept(request.model):
            self._compiled = torch.compile(
                request.model,
                backend=self._counting,
                dynamic=backend.dynamic,
                fullgraph=backend.fullgraph,
                options=own or None,
            )
        self._cudagraphs = request.device.type == "cuda" and _uses_cudagraphs(backend, self._counting.compiler)
        self._account()
        # Last, since whoever cannot be made is not closed; so far nothing has been compiled.
        if anew and backend.backend not in ("eager", "aot_eager"):
            self._until_closed.enter_context(from_nothing())
            self.cold_start_note = "compiled with empty caches: where the model was compiled before, it starts faster"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the compiled model; `NothingCompiled` where Dynamo would run, or ran, all of it in eager."""
        before = self._counting.runs
        try:
            output = self._run(args, kwargs)
        except dynamo.exc.FailOnRecompileLimitHit as error:
            raise NothingCompiled(self._limit_reached(), self._log.limit_location) from error
        if self._counting.runs == before:
            if not self._captured_without_graph():
                raise NothingCompiled(self._why_nothing(), self._first_break())
            self._calls_without_graph += 1
            self._account()
        return output

    def bound_call(self, *args: Any, **kwargs: Any) -> Callable[[], Any]:
        """The compiled callable with its arguments, and with two numbers read that tell whether it did run compiled.

        The first call is watched as others are, because it may compile. So is one after Dynamo was at work again.
        """
        if self._dynamic_shapes:
            mark_dynamic(bind(self._model, Call(args, kwargs)), self._dynamic_shapes)
        counting, seen, compiled = self._counting, dynamo_utils.counters, self._compiled
        # A stance of the user's has the compiled callable do something else; only the watched call overrides it.
        always = eval_frame._stance.stance != "default"
        begin = torch.compiler.cudagraph_mark_step_begin if self._cudagraphs else None

        def call() -> Any:
            if self._watched or always:
                output = self(*args, **kwargs)
                self._watched, self._frames = False, seen["frames"]["total"]
                self._log.begin()
                return output
            if begin is not None:
                begin()  # type: ignore[no-untyped-call]
            runs = counting.runs
            output = compiled(*args, **kwargs)
            if counting.runs == runs or seen["frames"]["total"] != self._frames:
                self._look_back(runs)
            return output

        return call

    def _look_back(self, runs: int) -> None:
        """After a bound call in which Dynamo was at work, or no graph ran: raise if something ran in eager instead."""
        self._watched, limits = True, self._log.limits
        self._log.collect()
        self._account()
        if self._log.limits > limits:
            raise NothingCompiled(self._limit_reached(), self._log.limit_location)
        if self._counting.runs == runs and not self._captured_without_graph():
            raise NothingCompiled(self._why_nothing(), self._first_break())

    def bound_output(self, result: Any) -> Any:
        """The output, apart from the memory that the next replay of a CUDA graph writes over."""
        return containers.rebuild(result, _cloned) if self._cudagraphs else result

    @property
    def recompiles(self) -> int:
        """Recompilations since the example's first run, also of its own: a function may be compiled for each layer."""
        return len(self._log.recompiles)

    def steps(self, *args: Any, **kwargs: Any) -> Iterator[Step]:
        """The operators that Dynamo captures, from graphs that are compiled once more so that they give every value."""
        with torch_warnings.shown(), dynamo.config.patch(recompile_limit=_LIMIT_OF_STEPS):
            if self._dynamic_shapes:
                mark_dynamic(bind(self._model, Call(args, kwargs)), self._dynamic_shapes)
            listing, compiled = self._listing
            listing.taken()
            compiled(*args, **kwargs)
        return iter(listing.taken())

    @functools.cached_property
    def _listing(self) -> tuple[Listing, Callable[..., Any]]:
        """The model behind a compiler whose graphs give every value; kept, so that each is compiled once."""
        listing = Listing(self._counting.compiler)
        with _attributes_kept(self._model):
            compiled = torch.compile(
                self._model, backend=listing, dynamic=self._options.dynamic, fullgraph=self._options.fullgraph
            )
        return listing, compiled

    def warm_up(self, request: ExportRequest) -> None:
        """Compile for the example. That nothing could be compiled is for the first call to say."""
        own = request.example.clone()
        if request.grad:
            require_grad(own)
        with contextlib.suppress(dynamo.exc.FailOnRecompileLimitHit):
            try:
                self._run(own.args, dict(own.kwargs))
            except Exception as error:
                if not (request.grad and WRITTEN_LEAF in str(error)):
                    raise
                own = writable(own)
                self._run(own.args, dict(own.kwargs))
        # What the example needs, once for each layer perhaps, no other input has caused.
        self._log.recompiles.clear()
        self._account()
        # It counts again with the first call; said now, it would stand in the ledger twice, with two counts.
        self.not_checked.clear()

    @property
    def shares_module(self) -> bool:
        """The compiled code runs on the user's module."""
        return True

    def parameters(self) -> dict[str, torch.Tensor]:
        """The parameters of the user's own modules."""
        return dict(parameters(self._model))

    def reproduction(self, calls: Sequence[Call], folder: Path) -> Recipe:
        """There is no file: what torch.export captures of the model for these calls is written, and compiled again."""
        settings = {
            name: getattr(self._options, name) for name in ("backend", "mode", "dynamic", "fullgraph", "options")
        }
        return captured_recipe(replace(self._request, example=calls[0].clone()), folder, settings)

    def close(self) -> None:
        """Drop the compiled code: it hangs on the code objects of the user's functions, not on this object."""
        dynamo.reset()
        self._until_closed.close()

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._dynamic_shapes:
            mark_dynamic(bind(self._model, Call(args, kwargs)), self._dynamic_shapes)
        if self._cudagraphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with torch_warnings.shown(), self._no_silent_fallback():
            self._log.begin()
            try:
                output = self._compiled(*args, **kwargs)
            finally:
                self._log.collect()
                self._account()
        # The next replay of a CUDA graph writes over its outputs.
        return containers.rebuild(output, _cloned) if self._cudagraphs else output

    @contextlib.contextmanager
    def _no_silent_fallback(self) -> Iterator[None]:
        """Dynamo raises where its settings would have it run eager without a word."""
        settings: dict[str, Any] = {"fail_on_recompile_limit_hit": True, "suppress_errors": False}
        if self._options.recompile_limit is not None:
            settings["recompile_limit"] = self._options.recompile_limit
        patched = dynamo.config.patch(settings)
        with patched, torch.compiler.set_stance("default"):
            yield

    def _captured_without_graph(self) -> bool:
        """Whether this call took a path that Dynamo captured in full and that has no tensor operation to compile.

        An early `return x` behind a Python flag is such a path. A model that has no graph at all is none.
        """
        return self._counting.graphs > 0 and self._log.empty_functions > 0 and not self._log.breaks

    def _account(self) -> None:
        self.details.update(
            graphs=self._counting.graphs,
            graph_runs=self._counting.runs,
            graph_breaks=len(self._log.breaks),
            graph_break_reasons=[str(one) for one in self._log.breaks],
            recompiles=self.recompiles,
            recompile_reasons=list(self._log.recompiles),
        )
        self.not_checked[:] = []
        if self._log.breaks:
            places = list(dict.fromkeys(one.place for one in self._log.breaks))
            what = f"{len(self._log.breaks)} graph break{'s' if len(self._log.breaks) > 1 else ''}"
            shown = ", ".join(places[:5]) + (f" and {len(places) - 5} more" if len(places) > 5 else "")
            self.not_checked.append(NotChecked(what, f"the code at {shown} ran in eager: {self._log.breaks[0].reason}"))
        if self._calls_without_graph:
            what = f"{self._calls_without_graph} call{'s' if self._calls_without_graph > 1 else ''}"
            self.not_checked.append(NotChecked(what, "their path through the model has no tensor operation to compile"))

    def _limit_reached(self) -> str:
        limit = self._options.recompile_limit or dynamo.config.recompile_limit
        return (
            f"torch.compile's limit of {limit} compilations was reached, so that it would run this call in eager. "
            f"What differs from the compilations that it has: {self._log.limit}. Make what varies a tensor, or raise "
            f"the limit: Compile(recompile_limit={4 * limit})"
        )

    def _first_break(self) -> Location | None:
        return next((one.location for one in self._log.breaks if one.location is not None), None)

    def _why_nothing(self) -> str:
        name = name_of(self._model)
        if os.environ.get("TORCHDYNAMO_DISABLE") == "1" or dynamo.config.disable:
            return "nothing was compiled: torch.compile is off (TORCHDYNAMO_DISABLE or torch._dynamo.config.disable)"
        if isinstance(self._model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
            return f"{name} is TorchScript already, which torch.compile leaves as it is: give it the Python module"
        if self._log.breaks:
            reasons = "\n".join(f"  {one}" for one in self._log.breaks)
            return f"torch.compile compiled nothing of {name} in this call; everything ran in eager:\n{reasons}"
        if self._counting.graphs:
            return f"no compiled graph of {name} ran in this call: this path through it ran in eager"
        return f"torch.compile found no tensor operation in {name} to compile"


def _compiler(backend: Compile) -> Callable[..., Any]:
    """The compiler that torch.compile would use for the backend, mode and options."""
    options = {key: value for key, value in (backend.options or {}).items() if key != "guard_filter_fn"}
    if backend.backend == "inductor":
        mode = backend.mode or (None if options else "default")
        wrapper: Callable[..., Any] = torch._TorchCompileInductorWrapper(mode, options, backend.dynamic)  # type: ignore[no-untyped-call]
        return wrapper
    compiler: Callable[..., Any] = dynamo.lookup_backend(backend.backend)
    return functools.partial(compiler, options=options) if options else compiler


@contextlib.contextmanager
def _attributes_kept(model: object) -> Iterator[None]:
    """torch.compile marks the module itself (`_is_torch_compile`); to the state comparison that is a new attribute."""
    before = set(vars(model)) if isinstance(model, torch.nn.Module) else None
    yield
    if before is not None:
        for name in vars(model).keys() - before:
            del vars(model)[name]


def _uses_cudagraphs(backend: Compile, compiler: Callable[..., Any]) -> bool:
    from torch._inductor import config  # noqa: PLC0415 loads inductor

    chosen = getattr(compiler, "config", {})
    return backend.backend == "cudagraphs" or bool(chosen.get("triton.cudagraphs", config.triton.cudagraphs))


def _cloned(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf
