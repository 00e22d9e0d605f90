"""The user's line behind a refusal that names none: that of the exporter's graph node, or one of forward's source."""

from __future__ import annotations

import inspect
import re
import traceback
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.subject import source

if TYPE_CHECKING:
    from pytest_torchexport.outcome import Location

_FX_FRAME = re.compile(r'File "([^"]+)", line (\d+), in ')
_JIT_FRAME = re.compile(r"^(\S.*?)\((\d+)\): ", re.MULTILINE)
_NODES = ("node", "n", "fx_node")
"""What exporters call the node that they are at."""


def at_node(error: BaseException) -> Location | None:
    """The line of the graph node that an exporter was translating when it raised.

    The exporter's frames on the traceback still hold it, and it knows where it comes from.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        for name in _NODES:
            found = source.innermost(_frames_of(frame.f_locals.get(name)))
            if found is not None:
                return found
    return None


def _frames_of(node: Any) -> list[tuple[str, int | None]]:
    """The frames at which a node was recorded, the innermost last."""
    if isinstance(node, torch.fx.Node):
        return [(file, int(line)) for file, line in _FX_FRAME.findall(str(node.meta.get("stack_trace") or ""))]
    if isinstance(node, torch._C.Node):
        frames: list[tuple[str, str]] = _JIT_FRAME.findall(str(node.sourceRange()))
        return [(file, int(line)) for file, line in reversed(frames)]
    return []


def line_of_model(model: Any, pattern: str) -> Location | None:
    """The line of the model's forward that matches; where none or several do, its first line.

    None where its source cannot be read, or is not the user's.
    """
    forward = getattr(type(model), "forward", None) if isinstance(model, torch.nn.Module) else model
    try:
        forward = inspect.unwrap(forward)  # type: ignore[arg-type]
        lines, start = inspect.getsourcelines(forward)
        file = inspect.getsourcefile(forward)
    except (TypeError, ValueError, OSError):
        return None
    if file is None or not source.is_users(file):
        return None
    matching = [number for number, line in enumerate(lines) if re.search(pattern, line)]
    head = next((number for number, line in enumerate(lines) if re.match(r"\s*(async )?def\b", line)), 0)
    return source.locate(file, start + (matching[0] if len(matching) == 1 else head))
