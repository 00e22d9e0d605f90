"""Branching modules of the kinds real models have, with the truth about each outcome.

The files without `heldout` are for building the search, those with it only for judging it. How a file is laid out, and
what a case says, stands in `case.py`; `tests/branches/test_corpus.py` checks by machine that what they say is true.

Import it as `tests.branches.corpus` with the repository's root on `sys.path`: `tests/branches/conftest.py` puts it
there for the tests, a script that runs from the root has it by `python -m` or `PYTHONPATH=.`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.branches.corpus.case import Case

TUNING = ("continuous", "discrete")
"""Files whose cases may be looked at while the search is built; a file of a longer theme is `continuous_loops` etc."""

HELD_OUT = ("continuous_heldout", "discrete_heldout")
"""Files whose cases only judge."""


def cases(*names: str) -> list[Case]:
    """The cases of the files with these names, all files if there is none; each file has a list `CASES`."""
    return [
        case for name in names or TUNING + HELD_OUT for case in import_module(f"tests.branches.corpus.{name}").CASES
    ]
