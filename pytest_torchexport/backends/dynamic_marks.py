"""The dims that vary, as torch.compile is told of them: by marks on the tensors of a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch._dynamo as dynamo

from pytest_torchexport.subject import containers


def mark_dynamic(named: Mapping[str, Any], dynamic_shapes: Mapping[str, Any]) -> None:
    """Tell Dynamo that the declared dims of these tensors vary, so that the first compilation covers their range.

    It is a hint (`maybe_mark_dynamic`), because a dim on which the model specialises after all is no error for
    torch.compile: it compiles again for the next size.

    Args:
        named: the call's arguments by name; the marks are attributes of these tensors.
        dynamic_shapes: torch.export's format, by argument name.
    """
    for name, value in named.items():
        _mark(value, dynamic_shapes.get(name))


def _mark(value: Any, shapes: Any) -> None:
    if shapes is None:
        return
    if isinstance(value, torch.Tensor):
        dims = shapes.items() if isinstance(shapes, Mapping) else enumerate(shapes)
        for index, dim in dims:
            if dim is not None and not isinstance(dim, int) and dim is not torch.export.Dim.STATIC:
                dynamo.maybe_mark_dynamic(value, index)
        return
    parts = containers.children(value)
    if parts is None:
        return
    if isinstance(shapes, Mapping):
        for (_, part), key in zip(parts, value if isinstance(value, Mapping) else shapes, strict=False):
            _mark(part, shapes.get(key))
    else:
        for (_, part), inner in zip(parts, shapes, strict=False):
            _mark(part, inner)
