"""What state the exported program does not carry: the entries by name, and what each of them is."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.diagnose.case import Clue
from pytest_torchexport.outcome import Cause, Evidence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_torchexport.diagnose.case import Case

_LISTED = 3


def lost_entries(case: Case) -> Iterator[Clue]:
    """What eager changes and the program does not carry, where state is what was lost. No cause by itself."""
    model, paths = case.plan.model, [leaf.path for leaf in case.leaves]
    outputs = [path for path in paths if re.match(r"call \d+ output", path)]
    later = bool(outputs) and not any(path.startswith("call 1 ") for path in outputs)
    if not isinstance(model, torch.nn.Module) or not (
        later or any(leaf.cause is Cause.LOST_STATE for leaf in case.leaves)
    ):
        return
    changed = {**case.reference.trials[0].record.state, **case.trial.record.state}
    said: dict[str, str] = {}
    for path, value in changed.items():
        name = re.split(r"\[", path, maxsplit=1)[0]
        if path not in case.record.state and value is not None and name not in said:
            said[name] = _said(model, name, path, value)
    known = [f"{name!r}, {what}" for name, what in said.items() if what]
    if known:
        yield Clue((Evidence(f"the exported program does not carry {'; '.join(known[:_LISTED])}"),))


def _said(model: torch.nn.Module, name: str, path: str, value: Any) -> str:
    """What an entry is; empty if it is no attribute of the model."""
    try:
        held = functools.reduce(getattr, name.split("."), model)
    except AttributeError:
        return ""
    if path != name:
        return f"a {type(held).__name__}" if isinstance(held, list | tuple | dict) else "a container"
    if isinstance(value, torch.Tensor):
        kind = "a buffer" if name in dict(model.named_buffers()) else "a tensor"
        return f"{kind} ({str(value.dtype).removeprefix('torch.')}, {list(value.shape)})"
    return f"a Python {type(value).__name__}"
