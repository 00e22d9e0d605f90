"""Whose line is it: the user's source lines among the frames of torch, of the exporters and of this package."""

from __future__ import annotations

import functools
import linecache
import os
import sysconfig
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pytest_torchexport.outcome import Location
from pytest_torchexport.subject.code_names import matcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MACHINERY = frozenset(
    (
        *("functorch", "jinja2", "ml_dtypes", "mpmath", "networkx", "numpy", "onnx", "onnx_ir", "onnxruntime"),
        *("onnxscript", "pluggy", "_pytest", "pytest", "sympy", "torch", "torchgen", "triton", "typing_extensions.py"),
    )
)
"""Installed packages in which an exporter runs. Every other package (a model library) counts as the user's code."""

_ROOTS = tuple(
    str(folder)
    for folder in (
        Path(torch.__file__).parent,
        Path(__file__).parent.parent,
        sysconfig.get_path("stdlib"),
    )
)
_INSTALLED = ("site-packages", "dist-packages")


def is_users(filename: str) -> bool:
    """Whether a file holds code that the user can act on: it is no part of torch, an exporter or Python itself."""
    if filename.startswith("<"):
        # What was typed at a prompt or in a notebook is kept there; generated code (of a dataclass, say) is not, but
        # for that of torch.fx.
        return filename in linecache.cache and not filename.startswith("<eval_with_key>")
    path = Path(filename)
    installed = next((i for i, part in enumerate(path.parts) if part in _INSTALLED), None)
    if installed is not None:
        return path.parts[installed + 1] not in MACHINERY and not filename.startswith(_ROOTS[1])
    return not filename.startswith((*_ROOTS, *_generated()))


def _generated() -> tuple[str, ...]:
    """The folder into which Inductor writes the code that it generates; none before it has done so.

    It sets the variable itself. Asking for its function would import all of torch.compile, which takes seconds.
    """
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    return (str(Path(folder).absolute()),) if folder else ()


def is_installed(filename: str) -> bool:
    """Whether a file is part of an installed package: a library, that is, and not the code under development."""
    return any(part in _INSTALLED for part in Path(filename).parts)


def user_code(entries: Iterable[str]) -> Callable[[str], bool]:
    """Whether a file is the user's, as `is_users` says, changed by the entries.

    Args:
        entries: names of packages or modules (`timm`, `timm.layers`) or globs of files (`src/kernels/*.py`; a relative
            one begins in any folder) that are the user's, too; with a `-` in front, those that are not. Where several
            fit, the last one counts. A package that is not here fits no file.

    Raises:
        UsageError: an entry is neither a name nor a glob.
    """
    rules = [(matcher(entry), not entry.startswith("-")) for entry in entries]
    if not rules:
        return is_users

    def decide(filename: str) -> bool:
        absolute = Path(filename).absolute().as_posix()
        found = [users for fits, users in rules if not filename.startswith("<") and fits(absolute)]
        return found[-1] if found else is_users(filename)

    return functools.cache(decide)


def is_machinery(filename: str) -> bool:
    """Whether a file is part of torch, an exporter, a test runner, this package or Python itself."""
    return not filename.startswith("<") and not is_users(filename)


def locate(filename: str, line: int) -> Location:
    """The location with its source text, read from the file."""
    return Location(str(Path(filename).absolute()), line, linecache.getline(filename, line).strip())


def innermost(frames: Iterable[tuple[str, int | None]]) -> Location | None:
    """The last of the frames (file, line; outermost first) that is the user's, or None if none is."""
    found = [(filename, line) for filename, line in frames if line is not None and is_users(filename)]
    return locate(*found[-1]) if found else None


def of_exception(error: BaseException) -> Location | None:
    """The user's innermost line in the exception's traceback."""
    return innermost((frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__))
