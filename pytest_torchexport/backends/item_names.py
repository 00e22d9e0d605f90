"""What an item of a test can be called where the user says something of some items: in a dict, or in the ini file.

A name is a backend (with its options or without), a device, a dtype, or these with `-` between them as in the test's
id; or a pattern of such names, in which `*` and `?` stand for anything. Standard library only.
"""

from __future__ import annotations

import fnmatch
import re
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from pytest_torchexport.backends.registry import backend_names, split_spec
from pytest_torchexport.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DEVICE_KINDS = ("cpu", "cuda", "mps", "xpu")
DTYPE_NAMES = ("float64", "float32", "float16", "bfloat16")
_DEVICE = re.compile(rf"({'|'.join(DEVICE_KINDS)})(:\d+)?")

_T = TypeVar("_T")


def is_device(name: str) -> bool:
    """Whether the name is that of one device: `cpu`, `cuda`, `cuda:1`."""
    return _DEVICE.fullmatch(name) is not None


def devices_in(name: str) -> list[str]:
    """The devices that a name or pattern mentions: `cuda:1` of `onnx-cuda:1`."""
    return [part for part in name.split("-") if is_device(part)]


@lru_cache(maxsize=4096)
def names_of(backend: str, backend_id: str, device: str, dtype: str | None) -> tuple[str, ...]:
    """Everything that an item can be called, the most exact name first.

    Args:
        backend: its name, `compile`.
        backend_id: its name with the options, `compile:mode=max-autotune`.
        device: `cpu`, `cuda:1`.
        dtype: `float16`; None where the test does not set it.
    """
    found = (
        "-".join(filter(None, (one, where, kind_of_number)))
        for one in (backend_id, backend, "")
        for where in (device, device.partition(":")[0], "")
        for kind_of_number in (dtype, None)
    )
    return tuple(dict.fromkeys(filter(None, found)))


def fits(name: str, names: Iterable[str]) -> bool:
    """Whether a name, or a pattern, is one of an item's names."""
    return any(fnmatch.fnmatchcase(one, _pattern(name)) for one in names)


def first_that_fits(said: Iterable[tuple[str, _T]], names: Sequence[str]) -> _T | None:
    """What is said of an item in a list, whose first entry that fits counts; None if none does."""
    return next((one for name, one in said if fits(name, names)), None)


def most_exact(said: Mapping[str, _T], names: Sequence[str]) -> _T | None:
    """What is said of an item in a dict: the most exact name counts; None if none fits.

    A name goes before every pattern, and of patterns the one that spells out the most.
    """
    exact = next((said[name] for name in names if name in said), None)
    by_length = sorted(said.items(), key=lambda pair: -len(pair[0].replace("*", "").replace("?", "")))
    return first_that_fits(by_length, names) if exact is None else exact


def is_pattern(name: str) -> bool:
    """Whether the name has signs that stand for anything."""
    return any(sign in name for sign in "*?")


def is_known(name: str) -> bool:
    """Whether the name is made of a known backend, a device and a dtype, of which any may be missing.

    A pattern is known if it fits such a name; what it says of options or of the number of a device is not looked at.
    """
    if is_pattern(name):
        return ":" in name or any(
            fits(name, names_of(backend, backend, device, dtype))
            for backend in backend_names()
            for device in DEVICE_KINDS
            for dtype in DTYPE_NAMES
        )
    parts = name.split("-")
    for cut in range(len(parts) if name else -1, -1, -1):
        backend, rest = "-".join(parts[:cut]), parts[cut:]
        if backend and not _is_backend(backend):
            continue
        rest = rest[1:] if rest and is_device(rest[0]) else rest
        if not rest or (len(rest) == 1 and rest[0] in DTYPE_NAMES):
            return True
    return False


def _pattern(name: str) -> str:
    # A bracket stands for itself: only * and ? are wild.
    return name.replace("[", "[[]")


def _is_backend(name: str) -> bool:
    try:
        split_spec(name)
    except UsageError:
        return False
    return True
