"""The marks and the hidden fixture by which pytest knows our items."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

MARKER = "export_equivalent"
DESCRIPTION = (
    f"{MARKER}(*, backends=None, devices=None, dtypes=None, tolerance=None, branches=None, search_budget=None, "
    "min_coverage=None, latency=None, n_inputs=None, seed=None, grad=None, require=None, xfail=None): "
    "check the model that the test hands to export_check on these backends and devices."
)
PARAMETER = "_export_cell"
"""The hidden fixture that carries the cell of an item to `export_check`."""
NO_BACKEND = "no-backend"
"""Id of the one item of a test of which the names that were asked for leave nothing."""


def is_marked(item: pytest.Item) -> bool:
    """Whether the item has to check something."""
    return item.get_closest_marker(MARKER) is not None


def device_kind(name: str) -> str:
    """`cuda` of `cuda:1`."""
    return name.partition(":")[0]


def mark_name(kind: str, name: str) -> str:
    """The mark of a backend or device: `export_backend_onnx_torchscript`, `export_device_cuda` (for `cuda:1`, too)."""
    return f"export_{kind}_" + device_kind(name).replace("-", "_")


def mark_line(kind: str, name: str) -> str:
    """How that mark is registered."""
    return f"{mark_name(kind, name)}: checks on the {kind} {device_kind(name)}, set by pytest-torchexport."
