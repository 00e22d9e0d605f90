"""What an outcome depends on beside the code: versions of packages, and the machine. Imports no package for it."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript", "transformers")
_CPU_INFO = Path("/proc/cpuinfo")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_MODEL_KEYS = ("model name", "cpu model", "model", "hardware")
"""Of /proc/cpuinfo, by architecture: x86 and s390, MIPS, ARM boards. On x86, `model` is a number and comes second."""


@cache
def versions() -> dict[str, str]:
    """Version of Python and of each installed package that takes part, by name."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What a time depends on, as far as it can be read; what cannot is left out.

    Neither torch nor an accelerator is initialised for it: what they know is there once they are in use.

    Returns:
        `cpu` (model), `cpus` (logical ones), `usable_cpus` (of this process), `threads` (of torch), `gpus` (a list, by
        index), `governor` (of the first CPU's frequency), `load` (mean number of waiting processes in the last minute).
    """
    found: dict[str, Any] = {"cpu": cpu_model(), "cpus": os.cpu_count() or 1}
    if hasattr(os, "sched_getaffinity"):
        found["usable_cpus"] = len(os.sched_getaffinity(0))
    torch = sys.modules.get("torch")
    if torch is not None:
        found["threads"] = torch.get_num_threads()
        found |= _accelerators(torch)
    with contextlib.suppress(OSError):  # virtual machines and systems other than Linux have none
        found["governor"] = _GOVERNOR.read_text(encoding="utf-8").strip()
    if hasattr(os, "getloadavg"):
        with contextlib.suppress(OSError):
            found["load"] = round(os.getloadavg()[0], 2)
    return found


@cache
def cpu_model() -> str:
    """The name of the CPU, else of its architecture."""
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
        except (OSError, subprocess.SubprocessError):
            return platform.machine()
        return done.stdout.strip()
    try:
        text = _CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return model_in(text) or platform.processor() or platform.machine()


def model_in(cpu_info: str) -> str:
    """The model in the text of /proc/cpuinfo; empty where it has none."""
    entries: dict[str, str] = {}
    for line in cpu_info.splitlines():
        key, _, value = line.partition(":")
        entries.setdefault(key.strip().lower(), " ".join(value.split()))
    for key in _MODEL_KEYS:
        if entries.get(key) and not entries[key].isdigit():
            return entries[key]
    if "cpu part" in entries:  # ARM servers name their cores by numbers
        return f"ARM implementer {entries.get('cpu implementer', '?')} part {entries['cpu part']}"
    return ""


def _accelerators(torch: Any) -> dict[str, list[str]]:
    for kind in ("cuda", "xpu"):
        module = getattr(torch, kind, None)
        if module is not None and module.is_initialized():
            return {"gpus": [module.get_device_name(index) for index in range(module.device_count())]}
    return {}
