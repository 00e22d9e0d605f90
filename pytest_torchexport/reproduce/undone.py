"""Code of the user's that is run beside the check leaves nothing behind: settings, search path and output as before."""

from __future__ import annotations

import io
import os
import sys
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.subject.run import fixed_rng

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (os.getcwd, os.chdir),
)
_FLAGS: tuple[tuple[Any, str], ...] = tuple(
    (torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic")
)


@contextmanager
def undone(device: torch.device) -> Iterator[None]:
    """On the meta device and quietly; random generators, settings, `sys.path`, environment and folder are put back.

    Args:
        device: whose random generator is put back beside the CPU's.
    """
    before = [(read, write, _read(read)) for read, write in _SETTINGS]
    flags = [(owner, name, getattr(owner, name)) for owner, name in _FLAGS]
    path, environment = list(sys.path), dict(os.environ)
    said = io.StringIO()
    try:
        with fixed_rng(0, device), warnings.catch_warnings(), redirect_stdout(said), redirect_stderr(said):
            warnings.simplefilter("ignore")
            with torch.device("meta"), _default_device_kept():
                yield
    finally:
        sys.path[:] = path
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)
        for read, write, value in before:
            if value is not None and _read(read) != value:
                write(value)
        for owner, name, value in flags:
            if getattr(owner, name) != value:
                setattr(owner, name, value)


def _read(setting: Callable[[], Any]) -> Any:
    """Its value; None where it cannot be told, as where torch's old and new settings of precision are mixed."""
    with suppress(RuntimeError, OSError):
        return setting()
    return None


@contextmanager
def _default_device_kept() -> Iterator[None]:
    """Inside of a device's context: one that was set in it and stays would hold it open."""
    before = _default_device()
    try:
        yield
    finally:
        if _default_device() is not before:
            torch.set_default_device(None if before is None else before.device)


def _default_device() -> Any:
    return getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
