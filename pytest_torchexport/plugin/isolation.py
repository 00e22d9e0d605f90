"""What keeps one item from changing the next: random number generators, memory of accelerators."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from pytest_torchexport.plugin.cell import Cell
from pytest_torchexport.plugin.marks import device_kind

if TYPE_CHECKING:
    from collections.abc import Callable


def seed(cell: Cell, origin: str) -> None:
    """Seed the generators of torch, numpy and Python: alike for all items of one test."""
    import random  # noqa: PLC0415 - the plugin loads without these

    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415

    from pytest_torchexport.plan import derive_seed  # noqa: PLC0415

    value = derive_seed(cell.seed, origin)
    random.seed(value)
    np.random.seed(value)
    if torch.accelerator.current_accelerator() is None:
        # torch's own function keeps a traceback for each kind of accelerator, which takes longer than a small test.
        torch.default_generator.manual_seed(value)
    else:
        torch.manual_seed(value)


def save_rng() -> Callable[[], None]:
    """What puts the generators back to the state in which they are now."""
    import random  # noqa: PLC0415 - the plugin loads without these

    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415

    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    accelerated = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if accelerated is not None:
            torch.cuda.set_rng_state_all(accelerated)

    return restore


def release_memory() -> None:
    """Free what a failed test still holds on an accelerator: its frames are in cycles until they are collected."""
    import torch  # noqa: PLC0415 - the plugin loads without torch

    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def on_accelerator(cell: object) -> bool:
    """Whether a cell's device has memory of its own."""
    return isinstance(cell, Cell) and device_kind(cell.device) != "cpu"
