"""ONNX through TorchScript (`torch.onnx.export(..., dynamo=False)`), the legacy exporter."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar
from unittest import mock

import torch
from torch.export import Dim
from torch.onnx import TrainingMode

from pytest_torchexport.backends.base import Backend, Exported, ExportRequest, Structure, Suspicion, choose, expect
from pytest_torchexport.backends.onnx_session import Interface, Leaf, OnnxProgram, unavailable
from pytest_torchexport.backends.tracer_warnings import capture
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.call import Call, as_module, positional_names, signature_of

if TYPE_CHECKING:
    import contextlib
    from pathlib import Path


@dataclass
class _Program:
    """A written ONNX file, what goes beside it, and what the tracer said."""

    path: Path
    interface: Interface
    suspicions: list[Suspicion]


class _Positional(torch.nn.Module):
    """The model as a function of positional arguments only: the exporter has no other way to pass them."""

    def __init__(self, model: torch.nn.Module, count: int, keywords: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self._count = count
        self._keywords = keywords
        self.training = model.training

    def forward(self, *args: Any) -> Any:
        """Call the model with the last arguments as keywords."""
        return self.model(*args[: self._count], **dict(zip(self._keywords, args[self._count :], strict=True)))


@dataclass(frozen=True)
class OnnxTorchScript(Backend):
    """`torch.onnx.export(..., dynamo=False)`, run in ONNX Runtime on the device's execution provider.

    Symbolics registered with `torch.onnx.register_custom_op_symbolic` and `symbolic` methods of autograd functions
    take effect as they do without this package. The model is exported in the mode (train or eval) that it is in.

    Args:
        opset: version of the ONNX operator set; None for the exporter's own choice.
        do_constant_folding: let the exporter compute constant parts of the graph.
        custom_opsets: versions of custom operator domains, as the exporter takes them.
        provider: ONNX Runtime's execution provider; None for the one that belongs to the device.
    """

    name: ClassVar[str] = "onnx-torchscript"
    structure: ClassVar[Structure] = Structure.FLAT

    opset: int | None = None
    do_constant_folding: bool = True
    custom_opsets: Mapping[str, int] | None = field(default=None, hash=False)
    provider: str | None = None

    def __post_init__(self) -> None:
        expect("opset", self.opset, int, "the number of an opset", least=1)
        choose("do_constant_folding", self.do_constant_folding, (True, False))
        expect("custom_opsets", self.custom_opsets, Mapping, "a dict of versions by operator domain")
        expect("provider", self.provider, str, "the name of an execution provider")

    def unavailable(self, device: torch.device) -> str | None:
        """Say which package or execution provider is missing."""
        return unavailable(device, self.provider, ("onnx",))

    def export(self, request: ExportRequest) -> _Program:
        """Trace the model and write the file: this exporter does both in one."""
        model, call = as_module(request.model), _as_exported(request)
        if model is not request.model:
            # A function has no mode of its own.
            model.training = any(part.training for part in model.children())
        if call.kwargs:
            model = _Positional(model, len(call.args), tuple(call.kwargs))
        named = dict(zip(positional_names(request.model, call), call.args, strict=True)) | dict(call.kwargs)
        sequences = [key for key, value in named.items() if _is_sequence(model, value)]
        inputs = _name(_inputs(named, sequences, request.dynamic_shapes or {}))
        path = request.directory / "model.onnx"
        with _silent(), capture() as suspicions:
            torch.onnx.export(
                model,
                tuple(named.values()),
                str(path),
                # Without keyword arguments the exporter takes a dict in the last place for them.
                kwargs={},
                dynamo=False,
                verbose=False,
                input_names=list(inputs),
                dynamic_axes=_dynamic_axes(inputs),
                opset_version=self.opset,
                do_constant_folding=self.do_constant_folding,
                custom_opsets=None if self.custom_opsets is None else dict(self.custom_opsets),
                training=TrainingMode.PRESERVE if _training(model) else TrainingMode.EVAL,
            )
        table = {one.leaf.key: name for name, one in inputs.items()}
        return _Program(path, Interface(table, sequences=sequences), suspicions)

    def save(self, program: _Program, directory: Path) -> Path | None:
        """Put the file where it is asked for, and the table of its inputs beside it."""
        if program.path.parent != directory:
            for file in list(program.path.parent.iterdir()):
                shutil.move(file, directory / file.name)
        path = directory / program.path.name
        program.interface.write(path)
        return path

    def load(self, program: _Program | None, path: Path | None, request: ExportRequest) -> Exported:
        """Open the file in ONNX Runtime."""
        if path is None:
            msg = "an ONNX program is loaded from its file: save it first"
            raise ValueError(msg)
        loaded = OnnxProgram(path, request, self.provider, _as_exported(request))
        if program is not None:
            loaded.suspicions = program.suspicions
        return loaded


def _as_exported(request: ExportRequest) -> Call:
    """The example as the exporter sees it: every argument by position, with the defaults, which it would fill in too.

    A call of a model with keyword-only arguments stays as it is.
    """
    signature = signature_of(request.model)
    if signature is None:
        return request.example
    parameters = signature.parameters.values()
    if any(parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD) for parameter in parameters):
        return request.example
    bound = signature.bind(*request.example.args, **request.example.kwargs)
    bound.apply_defaults()
    return Call(bound.args)


def _is_sequence(model: torch.nn.Module, value: Any) -> bool:
    """Whether the graph takes the value as one sequence: scripted code loops over a list, traced code unrolls it."""
    return isinstance(model, torch.jit.ScriptModule) and isinstance(value, list)


@dataclass(frozen=True)
class _Input:
    """What becomes an input of the graph, and which of its dimensions vary."""

    leaf: Leaf
    spec: Any


def _inputs(named: Mapping[str, Any], sequences: list[str], shapes: Mapping[str, Any]) -> list[_Input]:
    """The tensors and numbers of a call; None and strings do not become inputs."""
    found: list[_Input] = []
    for name, value in named.items():
        if name in sequences:
            found.append(_Input(Leaf(name, "", value), None))
            continue
        for path, leaf, spec in _walk(value, shapes.get(name)):
            if isinstance(leaf, (torch.Tensor, bool, int, float)):
                found.append(_Input(Leaf(name, path, leaf), spec))
    return found


def _walk(value: Any, spec: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every leaf with its path and the part of `dynamic_shapes` that belongs to it."""
    parts = containers.children(value)
    if parts is None:
        yield path, value, spec
        return
    keys = list(value) if isinstance(value, Mapping) else [step.lstrip(".") for step, _ in parts]
    for index, (key, (step, part)) in enumerate(zip(keys, parts, strict=True)):
        inner = None
        if isinstance(spec, Mapping):
            inner = spec.get(key)
        elif isinstance(spec, (tuple, list)) and index < len(spec):
            inner = spec[index]
        yield from _walk(part, inner, path + step)


def _name(inputs: list[_Input]) -> dict[str, _Input]:
    """The inputs by a name for the graph: `d['b'][0]` is `d_b_0`."""
    named: dict[str, _Input] = {}
    for one in inputs:
        plain = name = re.sub(r"\W+", "_", one.leaf.key).strip("_")
        number = 1
        while name in named:
            number += 1
            name = f"{plain}_{number}"
        named[name] = one
    return named


def _dynamic_axes(inputs: Mapping[str, _Input]) -> dict[str, dict[int, str]] | None:
    """The exporter's `dynamic_axes`. The outputs' are left out: the exporter derives them, as far as it can."""
    axes: dict[str, dict[int, str]] = {}
    for name, one in inputs.items():
        spec = one.spec if isinstance(one.spec, (Mapping, tuple, list)) else ()
        entries = spec.items() if isinstance(spec, Mapping) else enumerate(spec)
        if found := {dim: _axis(name, dim, entry) for dim, entry in entries if _varies(entry)}:
            axes[name] = found
    return axes or None


def _varies(entry: Any) -> bool:
    return entry is not None and not isinstance(entry, int) and entry is not Dim.STATIC


def _axis(name: str, dim: int, entry: Any) -> str:
    """A name for the axis: axes of one named `Dim` are equal, every other axis is its own."""
    named = isinstance(entry, str) or isinstance(getattr(entry, "__name__", None), str)
    return re.sub(r"\W+", "_", getattr(entry, "__name__", str(entry))) if named else f"{name}_dim_{dim}"


def _training(model: torch.nn.Module) -> bool:
    return any(module.training for module in model.modules())


def _silent() -> contextlib.AbstractContextManager[Any]:
    """Keep the exporter from printing the whole graph when it fails, which `verbose=False` does not."""
    return mock.patch.object(torch._C, "_jit_onnx_log", create=True)
