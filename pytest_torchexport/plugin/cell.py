"""One item of a test: where and how the model is checked. Made by `matrix`, read by everything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_torchexport.backends.item_names import names_of
from pytest_torchexport.plugin.marks import NO_BACKEND
from pytest_torchexport.plugin.options import DEFAULT_BRANCHES, DEFAULT_INPUTS, DEFAULT_LATENCY, DEFAULT_SEED

if TYPE_CHECKING:
    from pytest_torchexport.backends.base import Backend
    from pytest_torchexport.compare.tolerance import Given
    from pytest_torchexport.latency.budget import Budget

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
        latency: what the exported program may take; None where nothing is said of it.
        latency_mode: `off`, `report` or `enforce`.
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
    latency: Budget | None = None
    latency_mode: str = DEFAULT_LATENCY
    n_inputs: int = DEFAULT_INPUTS
    seed: int = DEFAULT_SEED
    grad: bool = False

    @property
    def id(self) -> str:
        """What stands in the brackets of the test's id: `compile:mode=max-autotune-cuda-float16`."""
        return "-".join(filter(None, (self.backend_id, self.device, self.dtype)))

    @property
    def names(self) -> tuple[str, ...]:
        """What this cell can be called, the most exact name first."""
        return names_of(self.backend_name, self.backend_id, self.device, self.dtype)


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
