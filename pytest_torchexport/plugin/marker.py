"""The marker `export_equivalent`: its keywords, merged from the closest mark outwards, and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, cast

from pytest_torchexport.backends.registry import unknown
from pytest_torchexport.errors import UsageError
from pytest_torchexport.plugin import names
from pytest_torchexport.plugin.marks import MARKER
from pytest_torchexport.plugin.options import BRANCH_MODES

if TYPE_CHECKING:
    import pytest

    from pytest_torchexport.compare.tolerance import Given
    from pytest_torchexport.latency.budget import Budget
    from pytest_torchexport.plugin.names import BackendEntry


@dataclass(frozen=True)
class Marker:
    """What the marks of a test say; None for what none of them sets."""

    backends: tuple[BackendEntry, ...] | None = None
    devices: tuple[str, ...] | None = None
    dtypes: tuple[str, ...] | None = None
    tolerance: Given = None
    branches: str | None = None
    search_budget: int | None = None
    min_coverage: float | None = None
    latency: Budget | Mapping[str, Budget] | None = None
    n_inputs: int | None = None
    seed: int | None = None
    grad: bool | None = None
    require: tuple[str, ...] | None = None
    xfail: Mapping[str, str] | None = None


KEYWORDS = tuple(field.name for field in fields(Marker))


def read_marker(node: pytest.Item) -> Marker | None:
    """What the marks of a test say together: a mark on the test goes before one on its class or module.

    Returns:
        None for a test without the mark.

    Raises:
        UsageError: a mark has a keyword or a value that is not accepted; names the test and what is accepted.
    """
    merged: dict[str, Any] = {}
    marks = list(node.iter_markers(MARKER))
    for mark in marks:
        try:
            said = _parse(mark)
        except UsageError as error:
            msg = f"{node.nodeid}: @pytest.mark.{MARKER}: {error}"
            raise UsageError(msg) from None
        merged = said | merged
    return Marker(**merged) if marks else None


def _parse(mark: pytest.Mark) -> dict[str, Any]:
    if mark.args:
        msg = f"takes keyword arguments only, got {mark.args[0]!r}: write {MARKER}(backends=[...])"
        raise UsageError(msg)
    for keyword in mark.kwargs:
        if keyword not in KEYWORDS:
            raise UsageError(unknown("keyword", keyword, list(KEYWORDS)))
    said = {keyword: _CHECKS[keyword](value) for keyword, value in mark.kwargs.items() if value is not None}
    if said.get("branches") == "off" and "min_coverage" in said:
        msg = f"min_coverage={said['min_coverage']!r} with branches='off': nothing is observed then; leave one out"
        raise UsageError(msg)
    return said


def _several(keyword: str, value: object, what: str) -> list[Any]:
    """The entries of a list; a single string is a list as on the command line."""
    if isinstance(value, str):
        entries: list[Any] = list(names.split_list(value))
    elif isinstance(value, Iterable) and not isinstance(value, Mapping):
        entries = list(value)
    else:
        entries = [value]
    if not entries:
        msg = f"{keyword}={value!r} is empty: list one {what} or more, or leave {keyword} out"
        raise UsageError(msg)
    return entries


def _unique(keyword: str, entries: list[str]) -> None:
    for entry in entries:
        if entries.count(entry) > 1:
            msg = f"{keyword} lists {entry!r} twice"
            raise UsageError(msg)


def _backends(value: object) -> tuple[BackendEntry, ...]:
    entries = [names.backend_entry(one) for one in _several("backends", value, "backend")]
    _unique("backends", [entry.id for entry in entries])
    return tuple(entries)


def _names(keyword: str, what: str, check: Callable[[str], str]) -> Callable[[object], tuple[str, ...]]:
    def parse(value: object) -> tuple[str, ...]:
        # str() takes torch.device and torch.dtype, too.
        entries = [check(str(one)) for one in _several(keyword, value, what)]
        _unique(keyword, entries)
        return tuple(entries)

    return parse


def _integer(keyword: str, at_least: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
            msg = f"{keyword}={value!r} is not accepted: give an integer of {at_least} or more"
            raise UsageError(msg)
        return value

    return parse


def _grad(value: object) -> bool:
    if not isinstance(value, bool):
        msg = f"grad={value!r} is not accepted: give True or False"
        raise UsageError(msg)
    return value


def _tolerance(value: Any) -> Given:
    from pytest_torchexport.compare.tolerance import Rules  # noqa: PLC0415 - only where a mark has one

    Rules.of(value)
    return cast("Given", value)


def _branches(value: object) -> str:
    if value not in BRANCH_MODES:
        msg = f"branches={value!r} is not accepted: choose one of {', '.join(BRANCH_MODES)}"
        raise UsageError(msg)
    return str(value)


def _min_coverage(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        msg = f"min_coverage={value!r} is not accepted: give a fraction from 0 to 1, such as 0.9 for 90 %"
        raise UsageError(msg)
    return float(value)


def _latency(value: object) -> Budget | Mapping[str, Budget]:
    from pytest_torchexport.latency.budget import as_budgets  # noqa: PLC0415 - only where a mark has one

    try:
        return as_budgets(value)
    except UsageError as error:
        msg = f"latency={value!r}: {error}"
        raise UsageError(msg) from None


def _xfail(value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        msg = f"xfail={value!r} is not accepted: give a dict of reasons, xfail={{'trace': 'keeps one branch'}}"
        raise UsageError(msg)
    for key, reason in value.items():
        if not isinstance(key, str) or not isinstance(reason, str) or not reason.strip():
            msg = f"xfail={value!r}: {key!r} needs a reason, a string that is not empty"
            raise UsageError(msg)
    return dict(value)


_CHECKS: dict[str, Callable[[object], object]] = {
    "backends": _backends,
    "devices": _names("devices", "device", names.check_device),
    "dtypes": _names("dtypes", "dtype", names.check_dtype),
    "tolerance": _tolerance,
    "branches": _branches,
    "search_budget": _integer("search_budget", 0),
    "min_coverage": _min_coverage,
    "latency": _latency,
    "n_inputs": _integer("n_inputs", 0),
    "seed": _integer("seed", 0),
    "grad": _grad,
    "require": _names("require", "backend or device", names.check_required),
    "xfail": _xfail,
}
