"""Ini settings that say something of some items, one a line: `onnx-cuda: k=10`, `compile: 1.2x`."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pytest_torchexport.backends import item_names
from pytest_torchexport.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

_T = TypeVar("_T")


def read_lines(
    config: pytest.Config, setting: str, read: Callable[[str], _T], examples: str
) -> tuple[tuple[str, _T], ...]:
    """Names or patterns of items, with what is said of them; the first that fits counts.

    Args:
        config: of this run.
        setting: name of the ini setting.
        read: makes a value of what stands behind a name.
        examples: lines that are accepted, for messages.

    Raises:
        UsageError: a line is not of the form `name: value`, or its name or value is not accepted.
    """
    return tuple(_read(setting, line, read, examples) for line in config.getini(setting))


def _read(setting: str, line: str, read: Callable[[str], _T], examples: str) -> tuple[str, _T]:
    name, _, said = line.rpartition(":")
    name = name.strip()
    try:
        _check(name, examples)
        return name, read(said)
    except UsageError as error:
        msg = f"ini setting {setting}: {line!r}: {error}"
        raise UsageError(msg) from None


def _check(name: str, examples: str) -> None:
    if not item_names.is_known(name):
        problem = f"{name!r} names no backend, device or dtype: " if name else ""
        msg = f"{problem}write {examples}"
        raise UsageError(msg)
