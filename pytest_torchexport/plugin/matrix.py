"""From marker, command line and ini to the items of a test: one `Cell` per backend, device and dtype.

Everything here is decided from names, so that ids are the same on every machine and in every worker. Only `available`
and backends with options need torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchexport.backends import item_names
from pytest_torchexport.backends.item_names import DTYPE_NAMES, names_of
from pytest_torchexport.backends.registry import DEFAULT_BACKENDS, backend_names
from pytest_torchexport.errors import NotEquivalent, UsageError
from pytest_torchexport.plugin import names
from pytest_torchexport.plugin.budgets import budget_of_item
from pytest_torchexport.plugin.cell import COMMAND_LINE, INI, THE_MARKER, Cell, NoCell
from pytest_torchexport.plugin.marker import Marker, read_marker
from pytest_torchexport.plugin.marks import MARKER, PARAMETER, device_kind, mark_line, mark_name
from pytest_torchexport.plugin.options import (
    AVAILABLE,
    BACKENDS,
    DEFAULT_BRANCHES,
    DEFAULT_INPUTS,
    DEFAULT_LATENCY,
    DEFAULT_SEED,
    DEVICES,
)
from pytest_torchexport.plugin.tolerances import tolerance_of
from pytest_torchexport.plugin.workers import group

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_torchexport.plugin.names import BackendEntry
    from pytest_torchexport.plugin.settings import Settings

DEFAULT_DEVICES = ("cpu",)


@dataclass(frozen=True)
class _Device:
    name: str
    source: str = ""
    implied: bool = False


def generate(metafunc: pytest.Metafunc, settings: Settings) -> None:
    """Parametrise a test that requests `export_check`; check the marks of one that does not.

    Raises:
        UsageError: the marks are wrong; names the test.
    """
    marker = read_marker(metafunc.definition)
    if PARAMETER not in metafunc.fixturenames:
        return
    try:
        cells = plan(marker or Marker(), settings)
    except UsageError as error:
        msg = f"{metafunc.definition.nodeid}: @pytest.mark.{MARKER}: {error}"
        raise UsageError(msg) from None
    metafunc.parametrize(PARAMETER, list(params(cells, metafunc.config)), indirect=True)


def nothing_selected(cells: Iterable[Cell | NoCell | None]) -> str | None:
    """What is wrong if the selection by name leaves not one item of the whole run; None otherwise."""
    ours = [cell for cell in cells if cell is not None]
    empty = [cell for cell in ours if isinstance(cell, NoCell) and cell.by_name]
    if not ours or len(empty) < len(ours):
        return None
    more = f" (and the like for {len(empty) - 1} more)" if len(empty) > 1 else ""
    return f"no backend is left in this run: {empty[0].reason}{more}"


def plan(marker: Marker, settings: Settings) -> list[Cell] | NoCell:
    """The cells of a test, in the order in which backends and devices are listed.

    Raises:
        UsageError: a backend's option is not known, or a key of `xfail` or `latency` names none of the test's items.
    """
    _check_keys("xfail", marker.xfail, marker)
    _check_keys("latency", marker.latency, marker)
    backends = _backends(marker, settings)
    devices = _devices(marker, settings)
    for chosen in (backends, devices):
        if isinstance(chosen, NoCell):
            return chosen
    assert not isinstance(backends, NoCell)
    assert not isinstance(devices, NoCell)
    dtypes: tuple[str | None, ...] = settings.dtypes.resolve(marker.dtypes, ()) or (None,)
    required = {*(marker.require or ()), *settings.require.resolve(None, ())}
    policy = Cell(
        backend="",
        backend_name="",
        backend_id="",
        device="",
        branches=settings.branches.resolve(marker.branches, DEFAULT_BRANCHES),
        search_budget=settings.search_budget.resolve(marker.search_budget, None),
        min_coverage=marker.min_coverage,
        user_code=settings.user_code.resolve(None, ()),
        latency_mode=settings.latency.resolve(None, DEFAULT_LATENCY),
        n_inputs=settings.inputs.resolve(marker.n_inputs, DEFAULT_INPUTS),
        seed=settings.seed.resolve(marker.seed, DEFAULT_SEED),
        grad=bool(marker.grad),
    )
    cells = [
        replace(
            policy,
            backend=entry.spec,
            backend_name=entry.name,
            backend_id=entry.id,
            device=device.name,
            dtype=dtype,
            backend_from=source,
            device_from=device.source,
            device_implied=device.implied,
            required=tuple(sorted(name for name in required if serves(name, entry, device.name))),
            tolerance=tolerance_of(settings.tolerances, entry.name, entry.id, device.name, dtype)
            if marker.tolerance is None
            else marker.tolerance,
        )
        for entry, source in backends
        for device in devices
        for dtype in dtypes
    ]
    if marker.latency is None and not settings.budgets and not marker.xfail:
        return cells
    return [
        replace(
            cell,
            xfail=item_names.most_exact(marker.xfail or {}, cell.names),
            latency=budget_of_item(marker.latency, settings.budgets, cell),
        )
        for cell in cells
    ]


def serves(required: str, entry: BackendEntry, device: str) -> bool:
    """Whether a check on this backend and device is one that the required name asks for."""
    return required in (entry.name, entry.id, device, device_kind(device))


def params(cells: list[Cell] | NoCell, config: pytest.Config) -> Iterator[Any]:
    """The arguments of `parametrize`: the cells with their ids and marks."""
    own = getattr(pytest.mark, MARKER)
    if isinstance(cells, NoCell):
        yield pytest.param(cells, id=cells.id, marks=[own, pytest.mark.skip(reason=cells.reason)])
        return
    for cell in cells:
        marks = [own, _mark(config, "backend", cell.backend_name), _mark(config, "device", cell.device)]
        if cell.xfail is not None:
            marks.append(pytest.mark.xfail(reason=cell.xfail, raises=NotEquivalent, strict=True))
        together = group(config, cell)
        if together:
            marks.append(pytest.mark.xdist_group(together))
        yield pytest.param(cell, id=cell.id, marks=marks)


def _mark(config: pytest.Config, kind: str, name: str) -> pytest.MarkDecorator:
    # Backends of entry points and unregistered instances are not known before this: --strict-markers needs the line.
    line = mark_line(kind, name)
    if line not in config.getini("markers"):
        config.addinivalue_line("markers", line)
    decorator: pytest.MarkDecorator = getattr(pytest.mark, mark_name(kind, name))
    return decorator


# --- backends ---


def _backends(marker: Marker, settings: Settings) -> list[tuple[BackendEntry, str]] | NoCell:
    selected = settings.backends.command_line
    if marker.backends is None:
        named = selected or settings.backends.ini
        source = COMMAND_LINE if selected else INI if named else ""
        entries = [names.backend_entry(spec) for spec in named or DEFAULT_BACKENDS]
        return [(entry, source) for entry in _first_of_each(entries)]
    if selected is None:
        return [(entry, THE_MARKER) for entry in marker.backends]
    wanted = [names.backend_entry(spec).id for spec in selected]
    found = [(entry, COMMAND_LINE) for entry in marker.backends if entry.name in wanted or entry.id in wanted]
    if not found:
        listed = ", ".join(entry.id for entry in marker.backends)
        return NoCell(f"{BACKENDS.flag}={','.join(selected)} leaves none of this test's backends ({listed})")
    return found


def _first_of_each(entries: Iterable[BackendEntry]) -> list[BackendEntry]:
    return list({entry.id: entry for entry in reversed(list(entries))}.values())[::-1]


# --- devices ---


def _devices(marker: Marker, settings: Settings) -> list[_Device] | NoCell:
    selected = settings.devices.command_line
    if marker.devices is None:
        named = selected or settings.devices.ini
        if named is None:
            return [_Device(name) for name in DEFAULT_DEVICES]
        return _expand(named, COMMAND_LINE if selected else INI)
    listed = _expand(marker.devices, THE_MARKER)
    if selected is None:
        return listed
    found: dict[str, _Device] = {}
    for wanted in _expand(selected, COMMAND_LINE):
        for device in listed:
            name = _narrow(device.name, wanted.name)
            if name:
                found.setdefault(name, _Device(name, wanted.source, wanted.implied))
    if not found:
        flag = f"{DEVICES.flag}={','.join(selected)}"
        reason = f"{flag} leaves none of this test's devices ({', '.join(device.name for device in listed)})"
        return NoCell(reason, by_name=AVAILABLE not in selected)
    order = [device.name for device in listed]
    return sorted(found.values(), key=lambda d: order.index(d.name) if d.name in order else len(order))


def _narrow(listed: str, wanted: str) -> str | None:
    """The device that both mean: `cuda` stands for any GPU, `cuda:1` for one."""
    if listed == wanted or device_kind(listed) == wanted:
        return listed
    return wanted if device_kind(wanted) == listed else None


def _expand(listed: Iterable[str], source: str) -> list[_Device]:
    found: dict[str, _Device] = {}
    for name in listed:
        if name != AVAILABLE:
            found[name] = _Device(name, source)
            continue
        for one in _available():
            found.setdefault(one, _Device(one, implied=True))
    return list(found.values())


def _available() -> list[str]:
    from pytest_torchexport.subject.devices import available  # noqa: PLC0415 - needs torch

    return available()


# --- names of items ---


def _check_keys(keyword: str, said: object, marker: Marker) -> None:
    """Raise for a name in a dict of the marker that fits none of the items that the test can have.

    The marker's own lists count, not what the command line selects of them: a run of one backend is no error.
    """
    if not isinstance(said, Mapping):
        return
    if marker.backends is None:
        backends = [(name, name) for name in backend_names()]
    else:
        backends = [(entry.name, entry.id) for entry in marker.backends]
    for key in said:
        if not _names_an_item(key, tuple(backends), marker.devices, marker.dtypes or DTYPE_NAMES):
            known = list(dict.fromkeys(name for name, own in backends for name in (own, name)))
            accepted = f"{', '.join(known)}, or with a device such as {known[0]}-cpu"
            msg = f"{keyword} has the key {key!r}, which is none of this test's items. Accepted: {accepted}."
            raise UsageError(msg)


@lru_cache(maxsize=1024)
def _names_an_item(
    key: str, backends: tuple[tuple[str, str], ...], devices: tuple[str, ...] | None, dtypes: tuple[str, ...]
) -> bool:
    """Whether the name, or pattern, fits an item on one of these backends, devices and dtypes."""
    if any(key in (name, own) for name, own in backends):
        return True
    mentioned = item_names.devices_in(key)
    if devices is None or AVAILABLE in devices:
        possible = [*item_names.DEVICE_KINDS, *mentioned]
    else:
        possible = [*devices, *(own for one in mentioned for listed in devices if (own := _narrow(listed, one)))]
    return any(
        item_names.fits(key, names_of(name, own, device, dtype))
        for name, own in backends
        for device in possible
        for dtype in dtypes
    )
