"""The ini setting `export_tolerance`: tolerances by backend, device and dtype, one a line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_torchexport.backends.item_names import first_that_fits, names_of
from pytest_torchexport.plugin.by_item import read_lines
from pytest_torchexport.plugin.options import TOLERANCE

if TYPE_CHECKING:
    import pytest

    from pytest_torchexport.compare.tolerance import Tolerance

_EXAMPLES = "`onnx: k=10`, `cuda: precision=tf32`, `trace-cuda-float16: rtol=1e-2 atol=1e-3` or `*-cuda: k=8`"

ByItem = tuple[tuple[str, "Tolerance"], ...]
"""Names or patterns of items, with their tolerances; the first that fits counts."""


def read_tolerances(config: pytest.Config) -> ByItem:
    """What the ini file says.

    Raises:
        UsageError: a line is not of the form `name: tolerance`, or its name or tolerance is not accepted.
    """
    if not config.getini(TOLERANCE):
        return ()
    from pytest_torchexport.compare.tolerance import read_tolerance  # noqa: PLC0415 - only where the setting is used

    return read_lines(config, TOLERANCE, read_tolerance, _EXAMPLES)


def tolerance_of(tolerances: ByItem, backend: str, backend_id: str, device: str, dtype: str | None) -> Tolerance | None:
    """The tolerance of an item; None if no line fits."""
    return first_that_fits(tolerances, names_of(backend, backend_id, device, dtype)) if tolerances else None
