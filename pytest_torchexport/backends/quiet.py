"""Exporters talk: progress lines, graphs on stderr, thousands of debug records. None of it tells a user anything."""

from __future__ import annotations

import contextlib
import io
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOGGERS = ("torch.__trace", "torch.fx.experimental.symbolic_shapes", "torch.onnx", "onnxscript", "onnx_ir")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what is printed or logged in the block from the terminal; exceptions and warnings pass.

    Torch's own handlers stay: who sets TORCH_TRACE or TORCH_LOGS wants the files and lines that they write.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.propagate, logger.handlers) for logger in loggers]
    for logger in loggers:
        logger.propagate = False
        logger.handlers = [one for one in logger.handlers if type(one).__module__.startswith("torch")]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, (propagate, handlers) in zip(loggers, before, strict=True):
            logger.propagate, logger.handlers = propagate, handlers
