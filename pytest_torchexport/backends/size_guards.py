"""At which of the user's lines a size was decided on, when torch.export refuses a dimension that may vary.

Its complaint names the dimension and the condition, but no line. What it notes for its own logs has the stack of each
condition; the export is run once more to read it there.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch._logging import structured

from pytest_torchexport.subject import source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_torchexport.outcome import Location

_EVENTS = ("guard_added", "guard_added_fast")
_LOG = logging.getLogger("torch.__trace")


def note(error: Exception, export: Callable[[], Any]) -> None:
    """Note on the exception at which line a size was decided on, as a frame of a traceback; nothing if in doubt.

    Args:
        error: what the export raised.
        export: does it again.
    """
    reader = _Reader()
    with _reading(reader):
        try:
            export()
        except Exception:  # noqa: BLE001 it raises what it raised before
            place = reader.place()
        else:
            place = None
    if place is not None:
        error.add_note(f'  File "{place.file}", line {place.line}, in forward')


class _Reader(logging.Handler):
    """Notes the conditions on sizes, and where in the user's code they were made."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self._found: list[tuple[str, Location]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take in a record of torch's own log."""
        said: dict[str, Any] = getattr(record, "metadata", None) or {}
        for event in _EVENTS:
            guard = said.get(event)
            if not isinstance(guard, dict):
                continue
            names = {number: name for name, number in structured.INTERN_TABLE.items()}
            frames = [(names.get(frame["filename"], ""), frame["line"]) for frame in guard.get("stack") or ()]
            place = source.innermost(frames)
            if place is not None and not str(guard.get("expr")).startswith("Ne("):
                self._found.append((str(guard.get("expr")), place))

    def place(self) -> Location | None:
        """The line that fixed a size, or else the one that distinguishes sizes; None if there are several."""
        fixing = {place for condition, place in self._found if condition.startswith("Eq(")}
        places = fixing or {place for _, place in self._found}
        return places.pop() if len(places) == 1 else None


@contextmanager
def _reading(handler: logging.Handler) -> Iterator[None]:
    """The structured log is written only while it has a handler."""
    level = _LOG.level
    _LOG.addHandler(handler)
    _LOG.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        _LOG.removeHandler(handler)
        _LOG.setLevel(level)
