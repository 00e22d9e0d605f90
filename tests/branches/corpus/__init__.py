"""Branching modules of the kinds real models have, with the truth about each outcome.

The files with `heldout` in their name are only for judging the search, the others for building it. How a file is laid
out, and what a case says, stands in `case.py`; `tests/branches/test_corpus.py` checks by machine that it is true.

Import it as `tests.branches.corpus` with the repository's root on `sys.path`: `tests/branches/conftest.py` puts it
there for the tests, a script that runs from the root has it by `PYTHONPATH=.`.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.branches.corpus.case import Case

_FILES = sorted(module.name for module in iter_modules(__path__) if module.name.startswith(("continuous", "discrete")))
TUNING = tuple(name for name in _FILES if "heldout" not in name)
HELD_OUT = tuple(name for name in _FILES if "heldout" in name)


def cases(*names: str) -> list[Case]:
    """The cases of the files with these names (`*TUNING`, `*HELD_OUT`, "continuous"), of all if there is none."""
    found = [case for name in names or _FILES for case in import_module(f"{__name__}.{name}").CASES]
    return list({id(case): case for case in found}.values())  # a file may gather the cases of others
