"""The most memory that a piece of work takes: the process's resident set, and the memory of an accelerator."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

if TYPE_CHECKING:
    from types import TracebackType

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


class Peak:
    """Measures what its block takes at most, beyond what is held when it begins.

    Memory that the process has freed and not given back is given back first, since it would be taken again unseen.

    Args:
        device: the accelerator whose memory is measured too; the CPU has none of its own.

    Attributes:
        host: bytes of the resident set, by the kernel's own high-water mark (`VmHWM` of proc(5)); None where the
            system has none that can be reset.
        device: bytes of the accelerator's memory; None on the CPU, and where torch cannot tell.
        why: the reason where `host` is None.
    """

    def __init__(self, device: torch.device) -> None:
        self.host: int | None = None
        self.device: int | None = None
        self.why = ""
        self._accelerator = _Accelerator(device) if device.type != "cpu" else None
        self._before: int | None = None

    def __enter__(self) -> Self:
        give_back()
        if self._accelerator is not None:
            self._accelerator.begin()
        try:
            _RESET.write_text("5", "ascii")
            self._before = _bytes_of("VmRSS")
        except (OSError, ValueError) as error:
            self.why = f"{sys.platform} does not let a process reset the peak of its resident set ({error})"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            self.host = max(0, _bytes_of("VmHWM") - self._before)
        if self._accelerator is not None:
            self.device = self._accelerator.end()


class _Accelerator:
    """The memory of one accelerator: torch's own count, and what disappeared of the free memory beside it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module: Any = torch.get_device_module(device)
        self._counts = all(hasattr(self._module, name) for name in ("reset_peak_memory_stats", "max_memory_allocated"))
        self._tells_free = hasattr(self._module, "mem_get_info")
        self._allocated = 0
        self._free = 0

    def begin(self) -> None:
        if self._counts:
            self._module.reset_peak_memory_stats(self._device)
            self._allocated = self._module.memory_allocated(self._device)
        if self._tells_free:
            self._module.empty_cache()
            self._free = self._module.mem_get_info(self._device)[0]

    def end(self) -> int | None:
        found = []
        if self._counts:
            found.append(self._module.max_memory_allocated(self._device) - self._allocated)
        if self._tells_free:
            # Another runtime (ONNX Runtime's arena) allocates past torch, and keeps what it has.
            found.append(self._free - self._module.mem_get_info(self._device)[0])
        return max(0, *found) if found else None


def give_back() -> None:
    """Collect garbage, and give the C library's free memory back to the system where it can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _bytes_of(entry: str) -> int:
    """An entry of `/proc/self/status`, in bytes."""
    for line in _STATUS.read_text("ascii", errors="replace").splitlines():
        name, _, rest = line.partition(":")
        if name == entry:
            return int(rest.split()[0]) * 1024
    msg = f"{_STATUS} has no {entry}"
    raise ValueError(msg)
