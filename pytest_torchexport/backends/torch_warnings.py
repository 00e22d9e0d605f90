"""What torch warns about inside itself, while it captures or compiles.

A project that turns warnings into errors means its own code, and that has met its filters when eager ran. An exporter
runs the same code in its own way, reads every attribute of every module, and calls deprecated parts of itself: if that
were an error, the export would be refused for what the user can do nothing about. So no warning is raised in here.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from typing import TYPE_CHECKING, Any

from pytest_torchexport.backends.base import Suspicion
from pytest_torchexport.outcome import Cause

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CAUSES = (
    (r"The tensor attributes? self\.", Cause.LOST_STATE),
    (r"While compiling, we found certain side effects", Cause.LOST_STATE),
)
"""How torch.export's warnings about the program start, and what they mean for it."""

_EXPORTERS = r"(torch|functorch|onnx|onnxscript|onnx_ir|copyreg)(\.|$)"
"""Modules whose own deprecated calls are no news to a user; `copyreg` is where deep copies come from."""

_NO_NEWS: tuple[tuple[str, type[Warning]], ...] = (
    (r"`torch\.jit\.\w+` is (deprecated|not supported)", DeprecationWarning),
    (r"You are using the legacy TorchScript-based ONNX export", DeprecationWarning),
    (r"The feature will be removed\. Please remove usage of this function", DeprecationWarning),
    # The model is exported in the mode in which the user hands it over.
    (r"Exporting a model while it is in training mode", UserWarning),
    (r"(ONNX export mode is set to|Setting `training` to something other than default)", UserWarning),
    # What it does not fold, the graph computes: the program is the same.
    (r"(Warning: )?Constant folding|It is recommended that constant folding be turned off", UserWarning),
    # How the exporter calls an axis of two inputs that share a Dim does not change what it exports.
    (r"# The axis name: .* will not be used", UserWarning),
)


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Show what is warned of in the block after it, and raise nothing."""
    with recorded(lambda _: False):
        yield


@contextlib.contextmanager
def noted() -> Iterator[list[Suspicion]]:
    """Like `shown`, but keep what torch.export warns about the program instead of showing it.

    Yields:
        A list that holds the suspicions once the block has ended, each once.
    """
    suspicions: list[Suspicion] = []

    def note(warning: warnings.WarningMessage) -> bool:
        text = str(warning.message)
        cause = next((cause for pattern, cause in _CAUSES if re.match(pattern, text)), None)
        if cause is not None and (found := Suspicion(cause, _first_sentence(text))) not in suspicions:
            suspicions.append(found)
        return cause is not None

    with recorded(note):
        for pattern, _ in _CAUSES:
            warnings.filterwarnings("always", pattern)
        yield suspicions


@contextlib.contextmanager
def recorded(keep: Callable[[warnings.WarningMessage], bool]) -> Iterator[None]:
    """Record the warnings of the block, raise none, and show after it those that are not kept.

    Args:
        keep: takes a warning once the block has ended, with an exception or without; True if it has a use for it.
    """
    others: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as log:
            _never_raise()
            try:
                yield
            finally:
                others = [warning for warning in log if not keep(warning)]
    finally:
        # They have passed the filters already, so they are shown and not warned of a second time.
        for one in others:
            warnings.showwarning(one.message, one.category, one.filename, one.lineno)


def _never_raise() -> None:
    """Change the filters in force: what would be raised is shown, and what says nothing to a user is dropped."""
    filters: Any = warnings.filters
    filters[:] = [("default" if action == "error" else action, *rest) for action, *rest in filters]
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category, module=_EXPORTERS)
    for pattern, kind in _NO_NEWS:
        warnings.filterwarnings("ignore", pattern, kind)


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s", text.strip().split("\n", 1)[0], maxsplit=1)[0]
