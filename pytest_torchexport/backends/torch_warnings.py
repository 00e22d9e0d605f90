"""What torch warns about inside itself, while it compiles."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Let torch's own warnings be shown in the block, never raised.

    A project that turns warnings into errors means its own code. Without this, a compiler that merely imports a
    deprecated part of torch would fail, and the user could do nothing about it. Warnings that the user's code
    gives keep their filters.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("default", module=r"torch(\.|$)")
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is (deprecated|not supported)", DeprecationWarning)
        yield
