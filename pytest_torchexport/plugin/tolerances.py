"""The ini setting `export_tolerance`: tolerances by backend, device and dtype, one a line."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

from pytest_torchexport.errors import UsageError
from pytest_torchexport.plugin import names
from pytest_torchexport.plugin.marks import device_kind
from pytest_torchexport.plugin.options import DTYPE_NAMES, TOLERANCE

if TYPE_CHECKING:
    import pytest

    from pytest_torchexport.compare.tolerance import Tolerance

_FORM = "write `onnx: k=10`, `cuda: precision=tf32`, `trace-cuda-float16: rtol=1e-2 atol=1e-3` or `*-cuda: k=8`"

ByCell = tuple[tuple[str, "Tolerance"], ...]
"""Names or patterns of items, with their tolerances; the first that fits counts."""


def read_tolerances(config: pytest.Config) -> ByCell:
    """What the ini file says.

    Raises:
        UsageError: a line is not of the form `name: tolerance`, or its name or tolerance is not accepted.
    """
    return tuple(_read(line) for line in config.getini(TOLERANCE))


def tolerance_of(tolerances: ByCell, backend: str, backend_id: str, device: str, dtype: str | None) -> Tolerance | None:
    """The tolerance of an item; None if no line fits."""
    kinds = dict.fromkeys((device, device_kind(device)))
    backends = dict.fromkeys((backend_id, backend))
    parts = [
        "-".join(filter(None, (one, kind, kind_of_number)))
        for one in (*backends, "")
        for kind in (*kinds, "")
        for kind_of_number in dict.fromkeys((dtype, None))
    ]
    for pattern, tolerance in tolerances:
        # A bracket stands for itself: only * and ? are wild.
        if any(fnmatch.fnmatchcase(part, pattern.replace("[", "[[]")) for part in parts if part):
            return tolerance
    return None


def _read(line: str) -> tuple[str, Tolerance]:
    from pytest_torchexport.compare.tolerance import read_tolerance  # noqa: PLC0415 - only where the setting is used

    name, _, said = line.rpartition(":")
    name = name.strip()
    try:
        _check(name)
        return name, read_tolerance(said)
    except UsageError as error:
        msg = f"ini setting {TOLERANCE}: {line!r}: {error}"
        raise UsageError(msg) from None


def _check(name: str) -> None:
    """Raise unless the name is a pattern, or made of a backend, a device and a dtype, of which any may be missing."""
    if any(sign in name for sign in "*?"):
        return
    if not name:
        raise UsageError(_FORM)
    parts = name.split("-")
    for cut in range(len(parts), -1, -1):
        backend, rest = "-".join(parts[:cut]), parts[cut:]
        if backend and not _is_backend(backend):
            continue
        rest = rest[1:] if rest and names.is_device(rest[0]) else rest
        if not rest or (len(rest) == 1 and rest[0] in DTYPE_NAMES):
            return
    msg = f"{name!r} names no backend, device or dtype: {_FORM}"
    raise UsageError(msg)


def _is_backend(name: str) -> bool:
    try:
        names.check_backend(name)
    except UsageError:
        return False
    return True
