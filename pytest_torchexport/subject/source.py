"""Whose line is it: the user's source lines among the frames of torch, of the exporters and of this package."""

from __future__ import annotations

import fnmatch
import functools
import importlib.util
import linecache
import sysconfig
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pytest_torchexport.errors import UsageError
from pytest_torchexport.outcome import Location

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
        return False
    path = Path(filename)
    installed = next((i for i, part in enumerate(path.parts) if part in _INSTALLED), None)
    if installed is not None:
        return path.parts[installed + 1] not in MACHINERY and not filename.startswith(_ROOTS[1])
    return not filename.startswith(_ROOTS)


def user_code(entries: Iterable[str]) -> Callable[[str], bool]:
    """Whether a file is the user's, as `is_users` says, changed by the entries.

    Args:
        entries: names of packages or modules (`timm`, `timm.layers`) or globs of files (`src/kernels/*.py`; a relative
            one begins in any folder) that are the user's, too; with a `-` in front, those that are not. Where several
            fit, the last one counts. A package that is not here fits no file.

    Raises:
        UsageError: an entry is neither a name nor a glob.
    """
    rules = [(_matcher(entry), not entry.startswith("-")) for entry in entries]
    if not rules:
        return is_users

    def decide(filename: str) -> bool:
        absolute = Path(filename).absolute().as_posix()
        found = [users for fits, users in rules if not filename.startswith("<") and fits(absolute)]
        return found[-1] if found else is_users(filename)

    return functools.cache(decide)


def _matcher(entry: object) -> Callable[[str], bool]:
    """Whether an entry fits a file, given by its absolute path with slashes."""
    name = entry.removeprefix("-") if isinstance(entry, str) else ""
    if "/" in name or "*" in name or name.endswith(".py"):
        glob = name if name.startswith(("/", "*")) or ":" in name else f"*/{name}"
        return lambda path: fnmatch.fnmatchcase(path, glob) or fnmatch.fnmatchcase(path, glob.rstrip("/") + "/*")
    if not name or not all(part.isidentifier() for part in name.split(".")):
        msg = (
            f"user_code holds {entry!r}: give the name of a package (timm, timm.layers) or a glob of files "
            "(src/kernels/*.py), with a - in front to leave it out"
        )
        raise UsageError(msg)
    return lambda path: path.startswith(_places(name))


@functools.cache
def _places(name: str) -> tuple[str, ...]:
    """How the paths of a package's or module's files begin; empty where it is not installed. Imports nothing."""
    top, *inner = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # ValueError: a module that was made by hand, or __main__
        return ()
    if spec is None:
        return ()
    if spec.submodule_search_locations is None:
        return (Path(spec.origin).absolute().as_posix(),) if spec.origin and not inner else ()
    found = [Path(place, *inner).absolute().as_posix() for place in spec.submodule_search_locations]
    return tuple(path + end for path in found for end in ("/", ".py"))


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
