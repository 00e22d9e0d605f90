"""Modules that decide on discrete inputs, by theme; see `case.py` for the format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.branches.corpus import (
    discrete_decoding,
    discrete_options,
    discrete_rare,
    discrete_selection,
    discrete_shapes,
    discrete_tokens,
)

if TYPE_CHECKING:
    from tests.branches.corpus.case import Case

CASES: list[Case] = [
    *discrete_tokens.CASES,
    *discrete_decoding.CASES,
    *discrete_shapes.CASES,
    *discrete_selection.CASES,
    *discrete_options.CASES,
    *discrete_rare.CASES,
]
