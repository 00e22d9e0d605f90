"""Source files are kept only if they are Python: what a user's object says of itself need not be."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class NotPython(Exception):
    """What was to be written is no Python; the message says where."""


def write_source(file: Path, text: str) -> None:
    """Write a source file.

    Raises:
        NotPython: Python does not compile it. Nothing is written.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(text, file.name, "exec", dont_inherit=True)
        file.write_text(text, encoding="utf-8")
    except SyntaxError as error:
        msg = f"what was to be written is no Python: {error.msg} (line {error.lineno})"
        raise NotPython(msg) from error
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        msg = f"what was to be written is no Python: {type(error).__name__}"
        raise NotPython(msg) from error
