"""ONNX through torch.export (`torch.onnx.export(..., dynamo=True)`), saved and run by ONNX Runtime."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from pytest_torchexport.backends import torch_warnings
from pytest_torchexport.backends.base import Backend, Exported, ExportRequest, Structure, Suspicion, choose, expect
from pytest_torchexport.backends.convention import grouped_shapes
from pytest_torchexport.backends.onnx_session import Interface, OnnxProgram, leaves, unavailable
from pytest_torchexport.errors import ExportRefused
from pytest_torchexport.outcome import NotChecked
from pytest_torchexport.subject.call import as_module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_LOGGERS = ("torch.onnx", "torch.fx.experimental.symbolic_shapes", "onnxscript", "onnx_ir")


@dataclass
class _Program:
    """An exported model that is not saved yet, and what the exporter said about it."""

    onnx: Any
    interface: Interface
    messages: list[str]
    captured: str
    suspicions: list[Suspicion]


@dataclass(frozen=True)
class Onnx(Backend):
    """`torch.onnx.export(..., dynamo=True)`, saved, and run in ONNX Runtime on the device's execution provider.

    Args:
        opset: version of the ONNX operator set; None for the exporter's own choice.
        optimize: let the exporter optimise the graph.
        custom_translation_table: ONNX Script functions by torch operator, as the exporter takes them.
        external_data: write the weights into a file of their own beside the graph. The exporter does so anyway where
            they are larger than one file can hold.
        provider: ONNX Runtime's execution provider; None for the one that belongs to the device.
    """

    name: ClassVar[str] = "onnx"
    structure: ClassVar[Structure] = Structure.FLAT

    opset: int | None = None
    optimize: bool = True
    custom_translation_table: Mapping[Any, Callable[..., Any]] | None = field(default=None, hash=False)
    external_data: bool = True
    provider: str | None = None

    def __post_init__(self) -> None:
        expect("opset", self.opset, int, "the number of an opset", least=1)
        choose("optimize", self.optimize, (True, False))
        table = self.custom_translation_table
        expect("custom_translation_table", table, Mapping, "a dict of ONNX Script functions by torch operator")
        choose("external_data", self.external_data, (True, False))
        expect("provider", self.provider, str, "the name of an execution provider")

    @property
    def id(self) -> str:
        """The name with the changed options; a translation table by the names of its operators."""
        if not self.custom_translation_table:
            return super().id
        plain = replace(self, custom_translation_table=None).id
        operators = "+".join(str(operator) for operator in self.custom_translation_table)
        table = "custom_translation_table=" + re.sub(r"[^\w.+-]+", "-", operators)
        return f"{plain}{',' if ':' in plain else ':'}{table}"

    def unavailable(self, device: torch.device) -> str | None:
        """Say which package or execution provider is missing."""
        return unavailable(device, self.provider, ("onnx", "onnxscript"))

    def export(self, request: ExportRequest) -> _Program:
        """Export as a user would, quietly, and note which graph input belongs to which argument."""
        call, shapes = request.example, request.dynamic_shapes
        # Without keyword arguments the exporter takes a dict in the last place for them.
        args = (*call.args, {}) if not call.kwargs and call.args and isinstance(call.args[-1], dict) else call.args
        table = None if self.custom_translation_table is None else dict(self.custom_translation_table)
        with torch_warnings.noted() as suspicions, _quiet() as messages:
            try:
                program = torch.onnx.export(
                    as_module(request.model),
                    args,
                    kwargs=dict(call.kwargs),
                    dynamo=True,
                    opset_version=self.opset,
                    optimize=self.optimize,
                    dynamic_shapes=None if shapes is None else grouped_shapes(request.model, call, shapes),
                    custom_translation_table=table,
                    external_data=self.external_data,
                    verbose=False,
                )
            except torch.onnx.OnnxExporterError as error:
                _explain(error)
                raise
        assert program is not None
        captured = str(getattr(program, "_capture_strategy", None))
        return _Program(program, _interface(program, request), messages, captured, suspicions)

    def save(self, program: _Program, directory: Path) -> Path | None:
        """Write `model.onnx`, the weights beside it, and the table of its inputs."""
        path = directory / "model.onnx"
        with torch_warnings.shown(), _quiet() as messages:
            program.onnx.save(path, external_data=self.external_data)
        program.interface.write(path)
        program.messages += messages
        # It may hold folded constants as large as the weights.
        program.onnx = None
        return path

    def load(self, program: _Program | None, path: Path | None, request: ExportRequest) -> Exported:
        """Open the file in ONNX Runtime."""
        if path is None:
            msg = "an ONNX program is loaded from its file: save it first"
            raise ValueError(msg)
        loaded = OnnxProgram(path, request, self.provider)
        if program is not None:
            loaded.details |= {"exporter said": program.messages, "captured by": program.captured}
            loaded.suspicions = program.suspicions
        if self.opset is not None and loaded.details["opset"] != self.opset:
            why = f"the exporter could not convert the model, the file has opset {loaded.details['opset']}"
            loaded.not_checked.append(NotChecked(f"opset {self.opset}", why))
        return loaded


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Keep what the exporter logs.

    Yields:
        A list that fills with the messages, each once.
    """
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage().split("\n", 1)[0]
            # It says so at every export, whether the model has such an operator or not.
            if "torchvision is not installed" not in text and text not in messages:
                messages.append(text)

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        # torch gives its loggers handlers of their own, which print.
        logger.handlers, logger.propagate = [Keep(logging.WARNING)], False
    try:
        yield messages
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate


def _interface(program: Any, request: ExportRequest) -> Interface:
    """Pair the call's leaves with the graph's inputs, through the exported program's signature.

    The names alone would not do: they are made from the arguments' names and then made unique, and an input that is
    an output as well is renamed once more. The order is what torch.export keeps.
    """
    exported, graph = program.exported_program, program.model.graph
    signature = exported.graph_signature
    inputs = [spec.arg for spec in signature.input_specs if spec.kind.name == "USER_INPUT" and not _is_none(spec.arg)]
    outputs = [spec.arg for spec in signature.output_specs if spec.kind.name == "USER_OUTPUT"]
    given = [leaf for leaf in leaves(request.model, request.example) if leaf.value is not None]
    if len(given) != len(inputs):
        keys = ", ".join(leaf.key for leaf in given)
        msg = (
            f"torch.export made {len(inputs)} inputs of the {len(given)} values in the call ({keys}): cannot pair them"
        )
        raise ExportRefused(msg)
    pairs = [(leaf, arg) for leaf, arg in zip(given, inputs, strict=True) if not _is_constant(arg)]
    names = [value.name for value in graph.inputs]
    if len(names) != len(pairs):
        # A pass took inputs out of the graph: what is left can only be told by name.
        names = [str(arg.name) for _, arg in pairs]
    table = {leaf.key: name for (leaf, _), name in zip(pairs, names, strict=True)}
    complex_inputs = [
        table[leaf.key] for leaf, _ in pairs if isinstance(leaf.value, torch.Tensor) and leaf.value.is_complex()
    ]
    kinds = [_kind(exported, arg) for arg in outputs if not _is_constant(arg)]
    return Interface(table, complex_inputs, kinds if len(kinds) == len(graph.outputs) else [])


def _is_constant(arg: Any) -> bool:
    return type(arg).__name__ == "ConstantArgument"


def _is_none(arg: Any) -> bool:
    return _is_constant(arg) and arg.value is None


def _kind(exported: Any, arg: Any) -> str:
    if type(arg).__name__ != "TensorArgument":
        return "number"
    value = next((node.meta.get("val") for node in exported.graph.nodes if node.name == arg.name), None)
    return "complex" if isinstance(value, torch.Tensor) and value.is_complex() else "tensor"


def _explain(error: Exception) -> None:
    """Raise what the exporter means in the user's words, where its own lead nowhere."""
    found = re.search(r"'(int|float|bool|str)' object has no attribute 'name'", str(error))
    if found is not None and "translating node return" in str(error):
        msg = (
            f"the model returns a Python {found[1]} that does not depend on its inputs, and an ONNX graph can return "
            "tensors only: leave it out of the output, or return it as a tensor"
        )
        raise ExportRefused(msg) from error
