"""How a script compiles a model again whose source it has not: from what torch.export captures of it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.backends import recipes, torch_export, torch_warnings
from pytest_torchexport.backends.base import ExportRequest, Recipe
from pytest_torchexport.subject.state import parameters

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_LARGEST = 2**30
"""Bytes: weights that are larger are not written into a captured form."""


def captured_recipe(request: ExportRequest, folder: Path, settings: Mapping[str, Any]) -> Recipe:
    """Write the captured model, and give the source that compiles it.

    Args:
        request: the model, and the call for which it is captured.
        folder: where the script will be.
        settings: of torch.compile.

    Returns:
        The recipe; without a file, for a script that has the model, where torch.export does not capture it.
    """
    made = recipes.compiling(settings)
    try:
        return _captured(request, folder, made)
    except Exception as error:  # noqa: BLE001 torch.export refuses much that torch.compile takes
        first = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
        return Recipe("", model=made, note=f"torch.export does not capture the model ({first[:120]})")


def _captured(request: ExportRequest, folder: Path, made: str) -> Recipe:
    weights = sum(tensor.nbytes for tensor in parameters(request.model).values())
    if weights > _LARGEST:
        msg = f"its weights have {weights / 2**30:.1f} GiB"
        raise ValueError(msg)
    with torch_warnings.shown():
        captured = torch_export.capture(request)
        assert captured.program is not None
        imports, needs = recipes.classes(captured.program.module())
        path = folder / "artifact" / "captured.pt2"
        path.parent.mkdir(exist_ok=True)
        torch.export.save(captured.program, path)
    arrange = functools.partial(captured.convention.arrange, checked=False)
    return Recipe(imports + recipes.compiled(made), arrange, needs, file="artifact/captured.pt2", model=made)
