"""Refusals that are known, from all exporters; each says how it is worded, what it means and what helps."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_torchexport.explain.refusals_captured import CAPTURED, COMPILED
from pytest_torchexport.explain.refusals_script import ATTRIBUTES, SCRIPTED
from pytest_torchexport.explain.refusals_values import VALUES

if TYPE_CHECKING:
    from pytest_torchexport.explain.known_refusal import Known

KNOWN = (*CAPTURED, *ATTRIBUTES, *VALUES, *SCRIPTED, *COMPILED)
"""First match wins, so the particular ones stand before the general ones."""


def known(text: str) -> tuple[Known, re.Match[str]] | None:
    """The first that fits the text of an exception, with what it matched."""
    found = ((one, re.search(one.pattern, text, re.DOTALL | re.IGNORECASE)) for one in KNOWN)
    return next(((one, match) for one, match in found if match is not None), None)
