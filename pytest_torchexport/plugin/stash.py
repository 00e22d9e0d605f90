"""What the plugin keeps on pytest's objects: one `Run` on the config, one `ItemState` on each marked item."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_torchexport.check import ReferenceStore
    from pytest_torchexport.plugin.options import Settings


@dataclass
class Run:
    """One run of pytest, in one process.

    Attributes:
        worker: name of the xdist worker that this process is; None for a run without xdist and for its controller.
        stages: folder where workers note the stage that they enter; made by the first that does.
        output_is_ours: whether the output directory did not exist when the run began.
        references: eager results that the items of a test share, by the test's id.
        seeded: an item is being run whose random numbers must not depend on what ran before it.
        collect_garbage: a failed item may still hold memory of an accelerator.
    """

    settings: Settings
    worker: str | None
    stages: Path
    output_is_ours: bool
    references: dict[str, ReferenceStore] = field(default_factory=dict)
    seeded: bool = False
    collect_garbage: bool = False


@dataclass
class ItemState:
    """One marked item while it runs.

    Attributes:
        calls: how often the test called `export_check`.
        record: the outcome as plain data.
        restore_rng: puts the random number generators back to what they were before the item.
    """

    calls: int = 0
    record: dict[str, Any] | None = None
    restore_rng: Callable[[], None] | None = None


RUN: pytest.StashKey[Run] = pytest.StashKey()
STATE: pytest.StashKey[ItemState] = pytest.StashKey()
