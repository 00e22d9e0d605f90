"""`and` and `or` as values in the code of a twin: their operands are told, and what they give stays what it was.

Standard library only. `a and b` is written as `held(hold(a) and box(b))`: where `a` ends it, it is the value.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class _Box:
    """Something true that holds a value."""

    value: Any


class ShortCircuit(ABC):
    """The part of a twin's runtime that `and` and `or` need."""

    _last: Any = None

    @abstractmethod
    def test(self, site: int, value: Any) -> bool:
        """Decide a condition."""

    def hold(self, site: int, value: Any) -> bool:
        """Decide an operand of `and`; where it ends the evaluation, it is the value."""
        going_on = self.test(site, value) if site >= 0 else bool(value)
        if not going_on:
            self._last = value
        return going_on

    def hold_or(self, site: int, value: Any) -> bool:
        """Decide an operand of `or`: whether to go on."""
        ends = self.test(site, value) if site >= 0 else bool(value)
        if ends:
            self._last = value
        return not ends

    def noted(self, site: int, value: Any) -> Any:
        """Decide a condition whose value is needed itself."""
        outcome = self.test(site, value)
        return value if outcome == bool(value) else outcome

    def box(self, value: Any) -> Any:
        """The last operand, as something true."""
        return _Box(value)

    def held(self, result: Any) -> Any:
        """The value of `and` or `or`."""
        if isinstance(result, _Box):
            return result.value
        value, self._last = self._last, None
        return value
