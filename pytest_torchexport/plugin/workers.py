"""The workers of pytest-xdist: which items share one, which device it has, and what can be measured beside others."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_torchexport.latency.budget import Budget
from pytest_torchexport.plugin.budgets import is_measured
from pytest_torchexport.plugin.marks import device_kind
from pytest_torchexport.plugin.options import LATENCY
from pytest_torchexport.plugin.stash import RUN

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from pytest_torchexport.plugin.cell import Cell
    from pytest_torchexport.plugin.stash import Run


def group(config: pytest.Config, cell: Cell) -> str | None:
    """The group for pytest-xdist that keeps the items of one accelerator, and what is measured, on one worker.

    Only `--dist loadgroup` reads it. A plain `cuda` on a machine with several GPUs has none: there each worker has
    its own GPU. An item has one group only: pytest-xdist would make a third one of two.
    """
    if not getattr(config.option, "loadgroup", False):
        return None
    device, kind = cell.device, device_kind(cell.device)
    if device == f"{kind}:0" and device_count(kind) == 1:
        device = kind  # two names of one GPU
    measured = f"export-latency-{device}" if is_measured(cell) else None
    if kind == "cpu" or (device == kind and device_count(kind) > 1):
        return measured
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


@dataclass(frozen=True)
class Measuring:
    """What the engine is told of an item.

    Attributes:
        budget: what is measured is held against it; None where nothing is measured.
        enforce: whether an excess fails.
        crowd: number of other processes of this run that work at the same time.
        left_out: why nothing is measured of an item of which it was to be; empty otherwise.
    """

    budget: Budget | None = None
    enforce: bool = True
    crowd: int = 0
    left_out: str = ""


@contextlib.contextmanager
def turn(run: Run, device: str) -> Iterator[None]:
    """Wait until no other worker measures on the device, and keep the others waiting.

    The group alone does not do: not every version of pytest-xdist groups tests under every version of pytest.
    """
    if run.workers < 2 or sys.platform == "win32":
        yield
        return
    import fcntl  # noqa: PLC0415 - Windows has none

    run.stages.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (run.stages / f"measuring-{device.replace(':', '-')}").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed, also if the process dies
        yield


def measuring(item: pytest.Item, cell: Cell) -> Measuring:
    """Whether the item is measured in this run, and how."""
    said = f" (budget: {cell.latency})" if cell.latency is not None and cell.latency.limits else ""
    if not is_measured(cell):
        return Measuring(left_out="" if cell.latency is None else f"{LATENCY.flag}=off{said}")
    workers = item.config.stash[RUN].workers
    alone = "-n0, -n1 or --dist loadgroup measure it"
    if workers > 1 and not getattr(item.config.option, "loadgroup", False):
        return Measuring(left_out=f"{workers} workers of pytest-xdist run side by side: {alone}{said}")
    if workers > 1 and sys.platform == "win32":
        return Measuring(
            left_out=f"this system has no locks that keep {workers} workers apart: -n0 or -n1 measure it{said}"
        )
    own = [name for name in _groups(item) if name != group(item.config, cell)] if workers > 1 else []
    if own:
        why = f"its xdist_group {own[0]!r} may run beside other checks that are measured: -n0 or -n1 measure it"
        return Measuring(left_out=why + said)
    return Measuring(cell.latency or Budget(), cell.latency_mode == "enforce", workers - 1)


def _groups(item: pytest.Item) -> list[str]:
    marks = item.iter_markers("xdist_group")
    return [str(mark.args[0] if mark.args else mark.kwargs.get("name", "default")) for mark in marks]
