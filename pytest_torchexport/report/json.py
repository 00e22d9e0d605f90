"""All outcomes of a run as one JSON file; `schema.json` beside this file describes it."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib import metadata, resources
from typing import TYPE_CHECKING, Any

import pytest_torchexport
from pytest_torchexport.outcome import SCHEMA
from pytest_torchexport.report.files import whole

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_PACKAGES = ("torch", "numpy", "onnx", "onnxruntime", "onnxscript", "pytest", "pytest-xdist", "hypothesis")


def document(
    outcomes: Sequence[dict[str, Any]],
    machine: dict[str, Any],
    trend: Sequence[dict[str, Any]] = (),
    backends: Sequence[str] = (),
) -> dict[str, Any]:
    """The report.

    Args:
        outcomes: what `Outcome.to_dict` returns, each with `result` (what became of the test), `cell` (backend, device
            and dtype as in the test's id) and `origin` (the test's id without them).
        machine: what is known about the machine, names and values.
        trend: each ratio to eager beside that of an earlier run.
        backends: the known backends' names, in their order.
    """
    return {
        "schema": SCHEMA,
        "tool": {"name": "pytest-torchexport", "version": pytest_torchexport.__version__},
        "versions": versions(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "backends": list(backends),
        "outcomes": list(outcomes),
        "trend": list(trend),
    }


def machine() -> dict[str, Any]:
    """What the standard library knows about the machine."""
    return {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """The versions of the packages that decide the results, of those that are installed. Imports none of them."""
    found = {"python": ".".join(str(part) for part in sys.version_info[:3])}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def write(path: Path, report: dict[str, Any]) -> None:
    """Write the report, whole or not at all, each outcome in a line of its own. Missing folders are made.

    Raises:
        OSError: the file cannot be written.
    """
    with whole(path) as file:
        for number, (key, value) in enumerate(report.items()):
            file.write(f'{"," if number else "{"}\n"{key}": ')
            if isinstance(value, list) and value and isinstance(value[0], dict):
                # Python's library indents in Python, and writes lines in C: a tenth of the time.
                for place, one in enumerate(value):
                    file.write(f"{',' if place else '['}\n{json.dumps(one, default=str)}")
                file.write("\n]")
            else:
                file.write(json.dumps(value, default=str))
        file.write("\n}\n")


def schema() -> dict[str, Any]:
    """The JSON Schema of the report."""
    text = resources.files("pytest_torchexport.report").joinpath("schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found
