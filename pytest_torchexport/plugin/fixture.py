"""The fixture `export_check`, and the hidden one that tells it where to check."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from pytest_torchexport.plugin.marks import PARAMETER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_torchexport.plugin.cell import Cell
    from pytest_torchexport.plugin.checker import ExportCheck


@pytest.fixture(name=PARAMETER)
def export_cell(request: pytest.FixtureRequest) -> Cell:
    """Where and how this item is checked."""
    from pytest_torchexport.plugin.cell import Cell  # noqa: PLC0415 - not needed at each start

    cell = getattr(request, "param", None)
    if not isinstance(cell, Cell):
        msg = "export_check was requested by a running test: name it among the test's arguments, test_x(export_check)"
        raise pytest.UsageError(msg)
    return cell


@pytest.fixture
def export_check(request: pytest.FixtureRequest, _export_cell: Cell) -> Iterator[ExportCheck]:
    """Check that the exported form of a model is equivalent to eager: call it with the model and example arguments."""
    from pytest_torchexport.plugin.checker import ExportCheck  # noqa: PLC0415 - not needed at each start

    with ExitStack() as resources:
        yield ExportCheck(request.node, _export_cell, resources)
