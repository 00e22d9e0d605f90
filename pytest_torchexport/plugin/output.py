"""Where files go: a folder for each test in the output directory, and what pytest's cache remembers."""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING

from pytest_torchexport.plugin.settings import not_writable

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from pytest_torchexport.plugin.stash import Run

MEMORY = "torchexport"
"""Name of our folder in pytest's cache; `--cache-clear` empties it."""
GITIGNORE = "# Written by pytest-torchexport, which made this directory and replaces what is in it.\n*\n"


def keep_in(run: Run, test: str) -> Path | None:
    """The folder for what is kept of a test, cleared of what an earlier run left; None if nothing can be written."""
    output = run.settings.output
    if run.settings.artifacts == "off" or not_writable(output):
        return None
    folder = output / slug(test)
    if folder.is_dir() and _is_ours(output):
        shutil.rmtree(folder, ignore_errors=True)
    return folder


def slug(test: str) -> str:
    """A test's id as the name of a folder: readable, at most 100 characters, and unique."""
    readable = "".join(char if char.isalnum() or char in "._-" else "-" for char in test).strip("-.")
    digest = hashlib.sha256(test.encode()).hexdigest()[:8]
    return f"{readable[-90:].lstrip('-.')}-{digest}"


def _is_ours(output: Path) -> bool:
    try:
        return (output / ".gitignore").read_text(encoding="utf-8") == GITIGNORE
    except OSError:
        return False


def was_left_behind(file: Path, config: pytest.Config) -> bool:
    """Whether a file is the test that a failure left, and is not asked for: by its name or by that of its folder.

    Several of one name could not be run together: pytest imports tests by their names.
    """
    if not (file.parent / "outcome.json").is_file():
        return False
    asked_for = {config.invocation_params.dir / argument.partition("::")[0] for argument in config.args}
    return asked_for.isdisjoint((file, file.parent))


def ignore_output(run: Run, kept: Path | None) -> None:
    """Keep an output directory that this run made out of version control."""
    ignore = run.settings.output / ".gitignore"
    if kept is not None and kept.is_dir() and run.output_is_ours and not ignore.exists():
        ignore.write_text(GITIGNORE, encoding="utf-8")


def memory(config: pytest.Config) -> Path | None:
    """The folder in pytest's cache for inputs that failed; None without a cache, or where it cannot be written.

    Workers of pytest-xdist have the same root directory, so the same folder.
    """
    cache = getattr(config, "cache", None)  # missing with -p no:cacheprovider
    if cache is None:
        return None
    try:
        folder: Path = cache.mkdir(MEMORY)
    except OSError:
        return None
    return folder
