"""Held out: modules that decide on discrete inputs, by theme; see `case.py` for the format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.branches.corpus import discrete_heldout_rare, discrete_heldout_sequences, discrete_heldout_structures

if TYPE_CHECKING:
    from tests.branches.corpus.case import Case

CASES: list[Case] = [
    *discrete_heldout_sequences.CASES,
    *discrete_heldout_structures.CASES,
    *discrete_heldout_rare.CASES,
]
