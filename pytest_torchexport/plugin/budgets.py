"""Budgets of items: what marker and ini file say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pytest_torchexport.backends.item_names import first_that_fits, most_exact
from pytest_torchexport.backends.registry import backend_class, split_spec
from pytest_torchexport.errors import UsageError
from pytest_torchexport.latency.budget import read_budget
from pytest_torchexport.plugin.by_item import read_lines
from pytest_torchexport.plugin.options import BUDGET

if TYPE_CHECKING:
    import pytest

    from pytest_torchexport.backends.base import Backend
    from pytest_torchexport.latency.budget import Budget
    from pytest_torchexport.plugin.cell import Cell

_EXAMPLES = "`compile: 1.2x`, `onnx: 5ms` or `*-cuda: median=5ms first_call=2s`"

ByItem = tuple[tuple[str, "Budget"], ...]
"""Names or patterns of items, with their budgets; the first that fits counts."""


def read_budgets(config: pytest.Config) -> ByItem:
    """What the ini file says.

    Raises:
        UsageError: a line is not of the form `name: budget`, or its name or budget is not accepted.
    """
    return read_lines(config, BUDGET, read_budget, _EXAMPLES)


def budget_of_item(marker: Budget | Mapping[str, Budget] | None, ini: ByItem, cell: Cell) -> Budget | None:
    """The budget of an item: the marker's, or if that says nothing of the item the ini file's; None without one.

    Raises:
        UsageError: it limits something that the backend does not have.
    """
    said = most_exact(marker, cell.names) if isinstance(marker, Mapping) else marker
    found = first_that_fits(ini, cell.names) if said is None else said
    if found is not None and found.recompiles is not None and not _recompiles(cell.backend):
        where = "latency" if said is not None else f"ini setting {BUDGET}"
        msg = (
            f"{where}: recompiles={found.recompiles} is for torch.compile, and {cell.backend_name!r} compiles once: "
            "give it by backend, latency={'compile': Budget(recompiles=0)}"
        )
        raise UsageError(msg)
    return found


def _recompiles(backend: str | Backend) -> bool:
    """Whether a backend compiles when it is called: `compile`, and what others derive from it."""
    if backend == "compile":
        return True
    compiling = backend_class("compile")
    return issubclass(backend_class(split_spec(backend)[0]) if isinstance(backend, str) else type(backend), compiling)


def is_measured(cell: Cell) -> bool:
    """Whether an item is one to measure, as far as options and budgets say."""
    return cell.latency_mode == "report" or (cell.latency_mode == "enforce" and cell.latency is not None)
