"""The formats of a report, by the suffix of its file."""

from __future__ import annotations

import importlib.util
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

MODULES = {".json": "json", ".html": "html", ".md": "markdown"}
"""The module of this package that writes each format."""
INSTALL = "pip install 'pytest-torchexport[html]'"


def missing(suffix: str) -> str | None:
    """What has to be installed before a report of this format can be written; None if all is there."""
    if suffix == ".html" and importlib.util.find_spec("jinja2") is None:
        return f"an HTML report needs jinja2: {INSTALL}"
    return None


def write(path: Path, document: dict[str, Any]) -> None:
    """Write the report in the format of the file's suffix, whole or not at all. Missing folders are made.

    Args:
        path: the file; its suffix is one of `MODULES`.
        document: what `json.document` made.

    Raises:
        OSError: the file cannot be written.
    """
    import_module(f"{__package__}.{MODULES[path.suffix.lower()]}").write(path, document)
