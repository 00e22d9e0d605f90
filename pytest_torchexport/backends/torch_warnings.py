"""What torch warns about inside itself, while it captures or compiles."""

from __future__ import annotations

import contextlib
import re
import warnings
from typing import TYPE_CHECKING, Any

from pytest_torchexport.backends.base import Suspicion

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_torchexport.outcome import Cause


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Let warnings in the block be shown, never raised.

    A project that turns warnings into errors means its own code, and that has met its filters when eager ran. Without
    this, a compiler that merely imports a deprecated part of torch would fail, and the user could do nothing about it.
    """
    with warnings.catch_warnings():
        _filter()
        yield


@contextlib.contextmanager
def noted(table: tuple[tuple[str, Cause], ...]) -> Iterator[list[Suspicion]]:
    """Like `shown`, but keep the warnings that say something about the exported program instead of showing them.

    Args:
        table: regular expressions for how such a warning starts, each with what it means for the program.

    Yields:
        A list that holds the suspicions once the block has ended, each once.
    """
    suspicions: list[Suspicion] = []
    others: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as log:
            _filter()
            for pattern, _ in table:
                warnings.filterwarnings("always", pattern)
            yield suspicions
            for warning in log:
                text = str(warning.message)
                cause = next((cause for pattern, cause in table if re.match(pattern, text)), None)
                if cause is None:
                    others.append(warning)
                elif (found := Suspicion(cause, _first_sentence(text))) not in suspicions:
                    suspicions.append(found)
    finally:
        # They have passed the filters already, so they are shown and not warned of a second time.
        for other in others:
            warnings.showwarning(other.message, other.category, other.filename, other.lineno)


def _filter() -> None:
    filters: Any = warnings.filters
    filters[:] = [("default" if action == "error" else action, *rest) for action, *rest in filters]
    warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is (deprecated|not supported)", DeprecationWarning)


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s", text.strip().split("\n", 1)[0], maxsplit=1)[0]
