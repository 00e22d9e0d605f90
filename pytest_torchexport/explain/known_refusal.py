"""What is known of one way in which exporters refuse: their words, the user's terms for it, and what helps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

RETURN = r"^\s*return\b"
"""The line at which what the model returns is to be seen."""
SIGNATURE = r"^\s*(async )?def forward\b"


@dataclass(frozen=True)
class Known:
    """A refusal that is known.

    Attributes:
        pattern: what its text matches, the exception's type in front.
        plain: what it means, `{0}` standing for the pattern's first group; empty where the exporter says it well.
        way_out: what helps.
        at: the line of forward to show where the exporter names none; `{0}` as above.
        ways: other ways out for certain backends.
    """

    pattern: str
    plain: str = ""
    way_out: str = ""
    at: str = ""
    ways: Mapping[str, str] = field(default_factory=dict)

    def way_for(self, backend: str) -> str:
        """The way out on a backend, by its name."""
        return self.ways.get(backend, self.way_out)
