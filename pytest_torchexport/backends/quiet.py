"""Exporters talk: progress lines, graphs on stderr, thousands of debug records. None of it tells a user anything.

What they warn of is shown and never raised, whichever backend it is; see `torch_warnings`.
"""

from __future__ import annotations

import contextlib
import io
import logging
from typing import TYPE_CHECKING

from pytest_torchexport.backends import torch_warnings

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOGGERS = ("torch.__trace", "torch.fx.experimental.symbolic_shapes", "torch.onnx", "onnxscript", "onnx_ir")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what is printed or logged in the block from the terminal; exceptions pass, and warnings are shown.

    Torch's own handlers stay: who sets TORCH_TRACE or TORCH_LOGS wants the files and lines that they write.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.propagate, logger.handlers) for logger in loggers]
    for logger in loggers:
        logger.propagate = False
        logger.handlers = [one for one in logger.handlers if type(one).__module__.startswith("torch")]
    try:
        said = io.StringIO()
        # In this order: a warning that is shown in a script is printed on stderr.
        with torch_warnings.shown(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            yield
    finally:
        for logger, (propagate, handlers) in zip(loggers, before, strict=True):
            logger.propagate, logger.handlers = propagate, handlers
