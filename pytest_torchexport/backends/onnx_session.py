"""An ONNX file as a program: run by ONNX Runtime, its inputs matched by name with the arguments of a call.

A graph has a flat list of named inputs, a call has nested arguments. Which is which is decided once, at export, and
written beside the file; from then on the file and that table are all that is run.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from pytest_torchexport.backends.base import Exported, ExportRequest, FlatOutput, Recipe
from pytest_torchexport.backends.convention import Convention
from pytest_torchexport.backends.onnx_recipe import onnx_recipe
from pytest_torchexport.backends.onnx_steps import ModuleNames, WatchedGraph
from pytest_torchexport.backends.onnx_values import (
    bound_results,
    bound_run,
    from_numpy,
    ort_value,
    tensor_of,
    to_numpy,
)
from pytest_torchexport.outcome import NotChecked
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.call import Call, positional_names

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pytest_torchexport.backends.base import Step

INSTALL = "pip install 'pytest-torchexport[onnx]'"

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# How ONNX Runtime spells the element types that a Python number can be given as.
_NUMBERS = {
    "tensor(bool)": torch.bool,
    "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64,
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
}


def unavailable(device: torch.device, provider: str | None, needed: tuple[str, ...]) -> str | None:
    """Why ONNX Runtime cannot run on the device here, with the remedy; None if it can.

    Args:
        device: where the program has to run.
        provider: the execution provider that the user asks for; None for the device's own.
        needed: the packages that the exporter needs, besides ONNX Runtime.
    """
    missing = [name for name in (*needed, "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed: {INSTALL}"
    if provider is None and device.type not in _PROVIDERS:
        return f"ONNX Runtime has no execution provider of its own for device {device}: use cpu or cuda"
    import onnxruntime  # noqa: PLC0415 - an extra

    wanted, here = provider or _PROVIDERS[device.type], onnxruntime.get_available_providers()
    if wanted in here:
        return None
    remedy = "uninstall onnxruntime and pip install onnxruntime-gpu" if wanted == _PROVIDERS["cuda"] else "choose one"
    return f"this onnxruntime {onnxruntime.__version__} has no {wanted} (it has {', '.join(here)}): {remedy}"


@dataclass(frozen=True)
class Leaf:
    """One part of a call that is no container: the argument that it belongs to, its path from there, its value."""

    argument: str
    path: str
    value: Any

    @property
    def key(self) -> str:
        """The name under which it is kept: `d['b'][0]`."""
        return self.argument + self.path


def leaves(model: Any, call: Call, whole: Collection[str] = ()) -> list[Leaf]:
    """The leaves of a call in its own order: positional arguments, then keywords as they are passed.

    Args:
        model: the model, for the names of the positional arguments.
        call: the call.
        whole: arguments that are not taken apart.
    """
    named = dict(zip(positional_names(model, call), call.args, strict=True)) | dict(call.kwargs)
    return [
        Leaf(name, path, leaf)
        for name, value in named.items()
        for path, leaf in ([("", value)] if name in whole else containers.leaves(value))
    ]


@dataclass(frozen=True)
class Interface:
    """How a call of the model becomes a run of the graph, and what its outputs stand for.

    Attributes:
        inputs: name of the graph's input, by the key of the argument's leaf.
        complex_inputs: names of the inputs that hold a complex tensor as pairs of real numbers.
        outputs: what each of the graph's outputs is to eager: `tensor`, `complex` (pairs of real numbers), or
            `number` (a Python number that is computed at run time). Empty if all are tensors.
        sequences: arguments that the graph takes whole, as sequences of tensors.
    """

    inputs: dict[str, str]
    complex_inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    sequences: list[str] = field(default_factory=list)

    def write(self, model: Path) -> None:
        """Write it beside the ONNX file."""
        model.with_suffix(".interface.json").write_text(json.dumps(asdict(self), indent=1), "utf-8")

    @classmethod
    def read(cls, model: Path) -> Interface:
        """Read what `write` wrote beside the ONNX file."""
        return cls(**json.loads(model.with_suffix(".interface.json").read_text("utf-8")))


class OnnxProgram(Exported):
    """An ONNX file in an ONNX Runtime session.

    Args:
        path: the file; its interface and its external data lie beside it.
        request: what was exported.
        provider: the execution provider that the user asks for; None for the device's own.
        example: the call in the form in which the exporter saw it; None for the request's own.
    """

    optimizer: ClassVar[str] = "ONNX Runtime's graph optimiser"
    takes_host_arguments: ClassVar[bool] = True

    def __init__(self, path: Path, request: ExportRequest, provider: str | None, example: Call | None = None) -> None:
        super().__init__()
        example = example or request.example
        self._device = request.device
        self._model = request.model
        self._interface = Interface.read(path)
        self._provider = provider or _PROVIDERS[request.device.type]
        self._path = path
        begun = time.perf_counter()
        self._session = _open(path, request.device, self._provider)
        self.load_seconds = time.perf_counter() - begun
        self._types = {one.name: one.type for one in self._session.get_inputs()}
        self._outputs = self._session.get_outputs()
        given = leaves(self._model, example)
        fed = {key for key, name in self._interface.inputs.items() if name in self._types}
        numbers = [i for i, leaf in enumerate(given) if leaf.key in fed and not isinstance(leaf.value, torch.Tensor)]
        self._convention = Convention(self._model, example, frozenset(numbers))
        # The legacy exporter is given a module around the model where the call has keyword arguments.
        self._modules = ModuleNames(self._model, wrapped=bool(example.kwargs))
        self.details.update(_facts(path), **_runtime_facts(self._session))
        self._account(given, fed)

    def _account(self, given: list[Leaf], fed: set[str]) -> None:
        known = self._interface.inputs
        if orphans := [name for name in self._types if name not in known.values()]:
            msg = f"the graph asks for {', '.join(orphans)}, which belongs to no argument of the model"
            raise RuntimeError(msg)
        tensors = {leaf.key for leaf in given if isinstance(leaf.value, torch.Tensor)}
        why = "the graph does not use it and the exporter removed it: the program runs without"
        self.not_checked += [NotChecked(f"argument {key}", why) for key in known if key in tensors - fed]
        whole = self._interface.sequences
        if fixed := [leaf.key for leaf in given if leaf.key not in tensors | fed and leaf.argument not in whole]:
            what = f"other values of {', '.join(fixed)}"
            self.not_checked.append(NotChecked(what, "the export fixed them: an ONNX graph takes tensors only"))
        if self._interface.complex_inputs or "complex" in self._interface.outputs:
            self.details["complex"] = "passed as pairs of real numbers, ONNX has no complex tensors"
        self.not_checked += _fallback(self._session, self.details["provider"], self.details)

    def __call__(self, *args: Any, **kwargs: Any) -> FlatOutput:
        """Run the graph once.

        Returns:
            The graph's outputs in its order. One that eager computes as a Python number is a number here too, one
            that eager has as a complex tensor is complex again.

        Raises:
            ConventionError: an argument differs from what the export fixed, or is missing.
        """
        feeds = {name: self._feed(value, name) for name, value in self._given(args, kwargs).items()}
        if self._has_sequences:
            plain = {name: to_numpy(value) for name, value in feeds.items()}
            results = [from_numpy(value, self._device) for value in self._session.run(None, plain)]
        else:
            values = {name: ort_value(value) for name, value in feeds.items()}
            results = [tensor_of(value, self._device) for value in self._session.run_with_ort_values(None, values)]
        return self._as_flat(results)

    @property
    def _has_sequences(self) -> bool:
        """Whether a value of the graph's inputs or outputs is a sequence, which only the plain call can carry."""
        return bool(self._interface.sequences) or any(one.type.startswith("seq(") for one in self._outputs)

    def _as_flat(self, results: Iterable[Any]) -> FlatOutput:
        results = list(results)
        kinds = self._interface.outputs or ["tensor"] * len(results)
        named: dict[str, Any] = {}
        for one, result, kind in zip(self._outputs, results, kinds, strict=True):
            named[_unused(one.name, named)] = _as_eager(result, kind)
        return FlatOutput(named)

    def bound_call(self, *args: Any, **kwargs: Any) -> Callable[[], Any]:
        """A run with bound inputs and outputs; of a graph with sequences, a plain run of inputs on the host."""
        feeds = {name: self._feed(value, name) for name, value in self._given(args, kwargs).items()}
        if self._has_sequences:
            return functools.partial(self._session.run, None, {name: to_numpy(value) for name, value in feeds.items()})
        return bound_run(self._session, feeds, self._device)

    def bound_output(self, result: Any) -> FlatOutput:
        """The outputs of a bound run as a call gives them."""
        if self._has_sequences:
            return self._as_flat(from_numpy(value, self._device) for value in result)
        return self._as_flat(bound_results(result, [one.name for one in self._outputs], self._device))

    def _given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, checked: bool = True) -> dict[str, Any]:
        """The values of the graph's inputs by name, as the call has them."""
        if not self._interface.sequences:
            # The length of a sequence is free, all else in a call has the form of the example.
            args, kwargs = self._convention.arrange(args, kwargs, checked=checked)
        given = {
            self._interface.inputs.get(leaf.key, ""): leaf.value
            for leaf in leaves(self._model, Call(args, kwargs), self._interface.sequences)
        }
        return {name: value for name, value in given.items() if name in self._types}

    def _feed(self, value: Any, name: str) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._feed(part, name) for part in value]
        tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=_NUMBERS[self._types[name]])
        tensor = tensor.detach().resolve_conj().resolve_neg()
        return torch.view_as_real(tensor) if name in self._interface.complex_inputs else tensor

    def steps(self, *args: Any, **kwargs: Any) -> Iterator[Step] | None:
        """Run the graph once without the runtime's optimiser, with every value as an output."""
        feeds = {name: self._feed(value, name) for name, value in self._given(args, kwargs).items()}
        watched = WatchedGraph(self._path, self._modules)

        def counted(model: bytes, names: list[str]) -> list[int]:
            session = _open(model, self._device, self._provider, folder=self._path.parent)
            return [int(one) for one in self._values(session, names, feeds)]

        watched.check_size(counted)
        session = _open(watched.serialized(), self._device, self._provider, folder=self._path.parent)
        types = {one.name: one.type for one in session.get_outputs()}
        names = [name for name in watched.names if types[name].startswith("tensor(")]
        return watched.steps(zip(names, self._values(session, names, feeds), strict=True))

    def _values(self, session: Any, names: list[str], feeds: Mapping[str, Any]) -> Iterable[torch.Tensor]:
        """Run a session; the outputs that are named, as they are asked for."""
        if self._interface.sequences:
            plain = {name: to_numpy(value) for name, value in feeds.items()}
            return (from_numpy(value, self._device) for value in session.run(names, plain))
        values = {name: ort_value(value) for name, value in feeds.items()}
        return (tensor_of(value, self._device) for value in session.run_with_ort_values(names, values))

    def reproduction(self, calls: Sequence[Call], folder: Path) -> Recipe:
        """Open the file in a session like this one, and feed it by the names of the graph's inputs."""
        del calls, folder

        def arranged(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return (self._given(args, kwargs, checked=False),), {}

        source = onnx_recipe(
            provider=self._provider,
            options=_provider_options(self._provider, self._device),
            complex_inputs=self._interface.complex_inputs,
            outputs=self._interface.outputs,
        )
        return Recipe(source, arranged, needs=("onnxruntime",))

    def close(self) -> None:
        """Release the session with its weights."""
        del self._session


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    """The name, or with a number behind it: a graph may give out one value several times under one name."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}#{number}"
    return free


def _as_eager(result: Any, kind: str) -> Any:
    if kind == "number":
        return result.item()
    return torch.view_as_complex(result.contiguous()) if kind == "complex" else result


def _provider_options(provider: str, device: torch.device) -> dict[str, str]:
    return {"device_id": str(device.index or 0)} if provider == _PROVIDERS["cuda"] else {}


def _open(model: Path | bytes, device: torch.device, wanted: str, *, folder: Path | None = None) -> Any:
    """A session.

    Args:
        model: the file, or its contents.
        device: where it runs.
        wanted: the execution provider.
        folder: of the contents' external data. With it the graph is run as it is written, nothing is optimised.
    """
    import onnxruntime  # noqa: PLC0415 - an extra

    options = onnxruntime.SessionOptions()
    if folder is not None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.absolute()))
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    if wanted != _PROVIDERS["cpu"]:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    own = _provider_options(wanted, device)
    # Without this, a provider that fails is replaced by the CPU, which says so on stdout only.
    source = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(source, options, providers=[(wanted, own)], enable_fallback=0)
    session.disable_fallback()
    ran = session.get_providers()[0]
    if ran != wanted:
        msg = f"ONNX Runtime was asked for {wanted} and runs on {ran}: its libraries are missing or do not fit"
        raise RuntimeError(msg)
    return session


def _fallback(session: Any, provider: str, details: dict[str, Any]) -> list[NotChecked]:
    """What ran elsewhere than on the provider: an operator that a provider lacks runs on the CPU, silently."""
    if provider == _PROVIDERS["cpu"]:
        return []
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return [NotChecked(f"which nodes ran on {provider}", "this version of onnxruntime does not tell")]
    counts: dict[str, int] = {}
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] = counts.get(part.ep_name, 0) + len(part.get_nodes())
    details["nodes by provider"] = counts
    if counts and provider not in counts:
        msg = f"no node of the graph runs on {provider}: all fell back to {', '.join(counts)}"
        raise RuntimeError(msg)
    total = sum(counts.values())
    why = f"{provider} has no kernel for them, or they compute shapes"
    return [
        NotChecked(f"{count} of {total} nodes on {provider}", f"they ran on {name}: {why}")
        for name, count in counts.items()
        if name != provider
    ]


def _facts(path: Path) -> dict[str, Any]:
    import onnx  # noqa: PLC0415 - an extra

    proto = onnx.load(str(path), load_external_data=False)
    opsets = {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}
    return {
        "opset": opsets.pop("ai.onnx", None),
        "other opsets": opsets,
        "ir_version": proto.ir_version,
        "nodes": len(proto.graph.node),
    }


def _runtime_facts(session: Any) -> dict[str, Any]:
    import onnxruntime  # noqa: PLC0415 - an extra

    return {"provider": session.get_providers()[0], "onnxruntime": onnxruntime.__version__}
