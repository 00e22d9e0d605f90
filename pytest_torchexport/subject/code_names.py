"""Files as a user names them: by package, by module or by glob. Standard library only."""

from __future__ import annotations

import fnmatch
import functools
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_torchexport.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable


def matcher(entry: object) -> Callable[[str], bool]:
    """What says whether a file, given by its absolute path with slashes, is one that the entry means.

    Args:
        entry: name of a package or module, or a glob of files; a `-` in front plays no part.

    Raises:
        UsageError: the entry is neither.
    """
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
    places = functools.cache(_places)
    return lambda path: path.startswith(places(name))


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
