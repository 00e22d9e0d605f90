"""From marker, command line and ini to the items of a test: one `Cell` per backend, device and dtype.

Everything here is decided from names, so that ids are the same on every machine and in every worker. Only `available`
and backends with options need torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchexport.backends.registry import DEFAULT_BACKENDS, backend_names
from pytest_torchexport.errors import NotEquivalent, UsageError
from pytest_torchexport.plugin import names
from pytest_torchexport.plugin.marker import Marker, read_marker
from pytest_torchexport.plugin.marks import MARKER, NO_BACKEND, PARAMETER, device_kind, mark_line, mark_name
from pytest_torchexport.plugin.options import (
    AVAILABLE,
    BACKENDS,
    DEFAULT_BRANCHES,
    DEFAULT_INPUTS,
    DEFAULT_SEED,
    DEVICES,
    DTYPE_NAMES,
)
from pytest_torchexport.plugin.tolerances import tolerance_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_torchexport.backends.base import Backend
    from pytest_torchexport.compare.tolerance import Given
    from pytest_torchexport.plugin.names import BackendEntry
    from pytest_torchexport.plugin.settings import Settings

DEFAULT_DEVICES = ("cpu",)

COMMAND_LINE = "the command line"
THE_MARKER = "the test's marker"
INI = "the ini file"


@dataclass(frozen=True)
class Cell:
    """One item of a test: where to check, and by which policy.

    Attributes:
        backend_from: who asked for the backend by name; empty for a default.
        device_from: who asked for the device by name; empty for a default and for `available`.
        device_implied: whether the device stands for `available`.
        required: the names of `require` that this cell serves; it must not be skipped then.
        xfail: why a mismatch is expected; None if it is not.
    """

    backend: str | Backend
    backend_name: str
    backend_id: str
    device: str
    dtype: str | None = None
    backend_from: str = ""
    device_from: str = ""
    device_implied: bool = False
    required: tuple[str, ...] = ()
    xfail: str | None = None
    tolerance: Given = None
    branches: str = DEFAULT_BRANCHES
    search_budget: int | None = None
    min_coverage: float | None = None
    user_code: tuple[str, ...] = ()
    n_inputs: int = DEFAULT_INPUTS
    seed: int = DEFAULT_SEED
    grad: bool = False

    @property
    def id(self) -> str:
        """What stands in the brackets of the test's id: `compile:mode=max-autotune-cuda-float16`."""
        return "-".join(filter(None, (self.backend_id, self.device, self.dtype)))

    @property
    def keys(self) -> tuple[str, ...]:
        """What this cell can be called, the most precise name first."""
        return tuple(dict.fromkeys((self.id, self.backend_id, self.backend_name)))


@dataclass(frozen=True)
class NoCell:
    """The selection leaves nothing of a test.

    Attributes:
        by_name: whether names that were asked for are to blame, not the machine.
    """

    reason: str
    by_name: bool = True

    @property
    def id(self) -> str:
        """What stands in the brackets of the test's id."""
        return NO_BACKEND if self.by_name else "no-device"


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
        UsageError: a backend's option or a key of `xfail` is not known.
    """
    _check_xfail(marker)
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
    reasons = marker.xfail or {}
    return [replace(cell, xfail=next((reasons[key] for key in cell.keys if key in reasons), None)) for cell in cells]


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
        group = _group(config, cell.device)
        if group:
            marks.append(pytest.mark.xdist_group(group))
        yield pytest.param(cell, id=cell.id, marks=marks)


def _mark(config: pytest.Config, kind: str, name: str) -> pytest.MarkDecorator:
    # Backends of entry points and unregistered instances are not known before this: --strict-markers needs the line.
    line = mark_line(kind, name)
    if line not in config.getini("markers"):
        config.addinivalue_line("markers", line)
    decorator: pytest.MarkDecorator = getattr(pytest.mark, mark_name(kind, name))
    return decorator


def _group(config: pytest.Config, device: str) -> str | None:
    """The group for pytest-xdist that keeps the items of one accelerator on one worker.

    Only `--dist loadgroup` reads it. A plain `cuda` on a machine with several GPUs has none: there each worker has
    its own GPU.
    """
    kind = device_kind(device)
    if not getattr(config.option, "loadgroup", False) or kind == "cpu":
        return None
    if device == kind and device_count(kind) > 1:
        return None
    return f"export-{device}"


def device_count(kind: str) -> int:
    """The number of devices of a kind on this machine."""
    import torch  # noqa: PLC0415 - the plugin loads without torch

    if kind == "cuda":
        return torch.cuda.device_count()
    return torch.xpu.device_count() if kind == "xpu" else 1


def own_device(device: str, worker: str | None, count: int) -> str:
    """The device that an item for a plain `cuda` or `xpu` uses: with several of them, each xdist worker has its own.

    Args:
        device: as listed: `cuda`, `cuda:1`, `cpu`.
        worker: name of the worker, `gw3`; None without pytest-xdist.
        count: devices of this kind on the machine.
    """
    number = (worker or "").removeprefix("gw")
    if device not in ("cuda", "xpu") or not number.isdecimal() or count < 2:
        return device
    return f"{device}:{int(number) % count}"


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


# --- expected failures ---


def _check_xfail(marker: Marker) -> None:
    if marker.backends is None:
        backends = backend_names() if marker.xfail else []
    else:
        backends = [name for entry in marker.backends for name in dict.fromkeys((entry.id, entry.name))]
    for key in marker.xfail or ():
        if not any(_names_cell(key, backend, marker) for backend in backends):
            accepted = f"{', '.join(backends)}, or with a device such as {backends[0]}-cpu"
            msg = f"xfail has the key {key!r}, which is none of this test's items. Accepted: {accepted}."
            raise UsageError(msg)


def _names_cell(key: str, backend: str, marker: Marker) -> bool:
    """Whether the key is the backend, or the backend with a device and perhaps a dtype that the test can have."""
    if key == backend:
        return True
    if not key.startswith(backend + "-"):
        return False
    device, _, dtype = key.removeprefix(backend + "-").partition("-")
    listed = marker.devices is None or AVAILABLE in marker.devices
    known = names.is_device(device) and (listed or any(_narrow(one, device) for one in marker.devices or ()))
    return known and (not dtype or dtype in (marker.dtypes or DTYPE_NAMES))
