"""What the TorchScript tracer and the legacy ONNX exporter warn about, as evidence instead of noise."""

from __future__ import annotations

import contextlib
import linecache
import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.jit._trace import TracerWarning

from pytest_torchexport.backends import torch_warnings
from pytest_torchexport.backends.base import Suspicion
from pytest_torchexport.outcome import Cause, Location

if TYPE_CHECKING:
    from collections.abc import Iterator

_TORCH = str(Path(torch.__file__).parent) + os.sep

_CAUSES: tuple[tuple[str, Cause], ...] = (
    (r"Converting a tensor to a Python boolean", Cause.BAKED_BRANCH),
    (r"Converting a tensor to a (Python|NumPy)", Cause.BAKED_VALUE),
    (r"\S+ results are registered as constants in the trace", Cause.BAKED_VALUE),
    (r"(Iterating over a tensor|Using len to get tensor shape)", Cause.BAKED_SHAPE),
    (r"resize(_as)?_ can't be represented", Cause.BAKED_SHAPE),
    (r"There are \d+ live references to the data region", Cause.LOST_MUTATION),
    (r"Encountering a (list|dict) at the output", Cause.STRUCTURE),
)
"""What a TracerWarning starts with, and what it means for the program. First match wins."""

_CHECK_FAILED = r"(Output nr \d+\. of the traced function does not match|Trace had nondeterministic nodes)"
"""What tracing says after it has run its own check: about the whole program, from a line inside torch."""

_EXPORTER_CAUSES: tuple[tuple[str, Cause], ...] = (
    (r"ONNX Preprocess - Removing mutation from node \S+ on block input: '\d+'", Cause.LOST_MUTATION),
    (r"ONNX Preprocess - Removing mutation", Cause.LOST_STATE),
    (r"This model contains a squeeze operation on dimension", Cause.BAKED_SHAPE),
    (r"Exporting a model to ONNX with a batch_size other than 1", Cause.BAKED_SHAPE),
    (r"The model seems to have string inputs", Cause.BAKED_VALUE),
    (r"We detected that you are modifying a dictionary that is an input", Cause.LOST_MUTATION),
    (r"Warning: ONNX export does not support duplicated values in 'index'", Cause.NUMERIC),
    (r"Exporting aten::index operator (with indices of type Byte|of advanced indexing)", Cause.NUMERIC),
    (r"You are trying to export the model with .* for ONNX opset version", Cause.NUMERIC),
)
"""The same for what the legacy ONNX exporter says without a category of its own."""

_ADVICE = (
    r" (We can't record the data flow|Consider using|Recommended usage|You can safely ignore|\(Triggered internally)"
)


def classify(warning: warnings.WarningMessage) -> Suspicion | None:
    """What a recorded warning says about the traced program.

    Args:
        warning: a warning as `warnings.catch_warnings(record=True)` records it.

    Returns:
        The suspicion, with the user's line where the warning came from one. None for a warning of another kind,
        and for a TracerWarning about code inside torch: torch itself hides those, they are known to be harmless.
    """
    text = str(warning.message)
    inside_torch = warning.filename.startswith(_TORCH)
    if not issubclass(warning.category, TracerWarning):
        cause = _first_match(_EXPORTER_CAUSES, text)
        return None if cause is None else Suspicion(cause, _shorten(text), None if inside_torch else _locate(warning))
    if re.match(_CHECK_FAILED, text):
        return Suspicion(Cause.NUMERIC, _shorten(text))
    if inside_torch:
        return None
    cause = _first_match(_CAUSES, text) or Cause.BAKED_VALUE
    return Suspicion(cause, _shorten(text), _locate(warning))


@contextlib.contextmanager
def capture() -> Iterator[list[Suspicion]]:
    """Keep what the tracer warns about in the block; other warnings are shown after it, and none is raised.

    Yields:
        A list that holds the suspicions once the block has ended, also if it ended with an exception; each once.
    """
    suspicions: list[Suspicion] = []

    def note(warning: warnings.WarningMessage) -> bool:
        suspicion = classify(warning)
        if suspicion is not None and suspicion not in suspicions:
            suspicions.append(suspicion)
        return suspicion is not None or issubclass(warning.category, TracerWarning)

    with torch_warnings.recorded(note):
        for pattern, _ in _EXPORTER_CAUSES:
            warnings.filterwarnings("always", pattern)
        warnings.filterwarnings("always", category=TracerWarning)
        yield suspicions


def _first_match(table: tuple[tuple[str, Cause], ...], text: str) -> Cause | None:
    return next((cause for pattern, cause in table if re.match(pattern, text)), None)


def _locate(warning: warnings.WarningMessage) -> Location:
    source = linecache.getline(warning.filename, warning.lineno).strip()
    return Location(str(Path(warning.filename).absolute()), warning.lineno, source)


def _shorten(text: str) -> str:
    """The first sentence or two: what happens, without torch's general advice."""
    first = text.strip().split("\n", 1)[0]
    first = re.split(_ADVICE, first)[0]
    return first.rstrip()
