"""Backends, devices, dtypes and files as a user writes them: split and checked by name, without importing torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_torchexport.backends.item_names import DEVICE_KINDS, DTYPE_NAMES, is_device
from pytest_torchexport.backends.registry import make_backend, split_spec, unknown
from pytest_torchexport.errors import UsageError
from pytest_torchexport.plugin.options import AVAILABLE
from pytest_torchexport.subject.code_names import matcher

if TYPE_CHECKING:
    from pytest_torchexport.backends.base import Backend


@dataclass(frozen=True)
class BackendEntry:
    """A backend of a list: what the engine takes (`spec`), its name, and its id, which holds the options."""

    spec: str | Backend
    name: str
    id: str


def split_list(text: str) -> list[str]:
    """The entries of a list that is separated by commas or white space.

    The options of a backend are separated by commas too: `trace,compile:mode=default,fullgraph=true` has two entries.
    """
    entries: list[str] = []
    for part in filter(None, re.split(r"[,\s]+", text)):
        continues = "=" in part and ":" not in part.partition("=")[0]
        if continues and entries and ":" in entries[-1]:
            entries[-1] += "," + part
        else:
            entries.append(part)
    return entries


def check_backend(spec: str) -> str:
    """The spec itself, if its name is known.

    Raises:
        UsageError: no backend has the name; lists the known ones.
    """
    split_spec(spec)
    return spec


def backend_entry(spec: str | Backend) -> BackendEntry:
    """The entry of a name, a string with options, or an instance. Only the last two need torch.

    Raises:
        UsageError: unknown name or option.
    """
    if isinstance(spec, str):
        name, options = split_spec(spec)
        if not options:
            return BackendEntry(name, name, name)
    backend = make_backend(spec)
    return BackendEntry(spec, backend.name, backend.id)


def check_device(name: str) -> str:
    """The name itself, if it is that of a device or `available`.

    Raises:
        UsageError: it is not; lists the accepted ones.
    """
    if name != AVAILABLE and not is_device(name):
        raise UsageError(unknown("device", name, [*DEVICE_KINDS, "cuda:1", AVAILABLE]))
    return name


def check_dtype(name: str) -> str:
    """The name without `torch.`, if floating inputs and weights can be in this dtype.

    Raises:
        UsageError: they cannot; lists the accepted ones.
    """
    short = name.removeprefix("torch.")
    if short not in DTYPE_NAMES:
        raise UsageError(unknown("dtype", name, list(DTYPE_NAMES)))
    return short


def check_required(name: str) -> str:
    """The name itself, if it is that of a backend or a device.

    Raises:
        UsageError: it is neither; lists both.
    """
    if is_device(name):
        return name
    try:
        return check_backend(name)
    except UsageError as error:
        msg = f"{error} Devices: {', '.join(DEVICE_KINDS)}, cuda:1."
        raise UsageError(msg) from None


def check_code(name: str) -> str:
    """The name itself, if it is that of a package or a glob of files, perhaps with a `-` in front.

    Raises:
        UsageError: it is neither.
    """
    matcher(name)
    return name
