"""Where the user's code decides: places in a source file, at the level of single conditions. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What kind of decision a place is."""

    CONDITION = "condition"
    LOOP = "loop"
    NUMBER = "number"
    EXCEPTION = "exception"


@dataclass(frozen=True, order=True, slots=True)
class Site:
    """A place in a source file where control flow, or a number, may depend on the input.

    Positions are those of the expression in the file as `ast` gives them: 1-based lines, 0-based UTF-8 columns.
    """

    file: str
    line: int
    column: int
    end_line: int
    end_column: int
    kind: Kind
