"""What the plugin keeps on pytest's objects: one `Run` on the config, one `ItemState` on each marked item.

Not dataclasses: this module is loaded at each start of pytest, and making one takes a millisecond.
"""

from __future__ import annotations

import os
import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_torchexport.check import ReferenceStore
    from pytest_torchexport.plugin.baseline import Baseline
    from pytest_torchexport.plugin.progress import Progress
    from pytest_torchexport.plugin.settings import Settings

PROPERTY = "torchexport"
"""Name of the user property that carries an outcome as plain data."""
WORKERINPUT = "torchexport"
"""Key of what the controller of pytest-xdist tells its workers."""


class Run:
    """One run of pytest, in one process.

    Attributes:
        worker: name of the xdist worker that this process is; None for a run without xdist and for its controller.
        workers: how many there are; 1 without pytest-xdist.
        stages: folder where workers note the stage that they enter; made by the first that does.
        output_is_ours: whether the output directory was not there when the settings were read.
        references: eager results that the items of a test share, by the test's id.
        seeded: an item is being run whose random numbers must not depend on what ran before it.
        collect_garbage: a failed item may still hold memory of an accelerator.
        progress: shows what a long check is doing; None where nobody would see it.
        baseline: the earlier run's times; None where none is asked for, and in workers.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        told = getattr(config, "workerinput", None)
        self.worker: str | None = told["workerid"] if told else None
        self.workers: int = told["workercount"] if told else 1
        self._told: dict[str, Any] = told[WORKERINPUT] if told else {}
        unique = f"pytest-torchexport-{os.urandom(8).hex()}"
        self.stages = Path(self._told.get("stages") or Path(tempfile.gettempdir(), unique))
        self.output_is_ours = bool(self._told.get("output_is_ours"))
        self.references: dict[str, ReferenceStore] = {}
        self.seeded = False
        self.collect_garbage = False
        self.progress: Progress | None = None
        self.baseline: Baseline | None = None

    @cached_property
    def settings(self) -> Settings:
        """What command line and ini say."""
        from pytest_torchexport.plugin.settings import read_settings  # noqa: PLC0415 - not needed at each start

        settings = read_settings(self._config)
        if "output_is_ours" not in self._told:
            self.output_is_ours = not settings.output.exists()
        return settings

    def for_workers(self) -> dict[str, Any]:
        """What the controller tells its workers."""
        # Each worker would find out too late: another one may have made the directory by then.
        _ = self.settings
        return {"stages": str(self.stages), "output_is_ours": self.output_is_ours}


class ItemState:
    """One marked item while it runs.

    Attributes:
        calls: how often the test called `export_check`.
        record: the outcome as plain data.
        restore_rng: puts the random number generators back to what they were before the item.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.record: dict[str, Any] | None = None
        self.restore_rng: Callable[[], None] | None = None


RUN: pytest.StashKey[Run] = pytest.StashKey()
STATE: pytest.StashKey[ItemState] = pytest.StashKey()
