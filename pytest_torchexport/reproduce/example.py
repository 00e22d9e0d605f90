"""The example beside the failing input: kept, but for the tensors that both have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.subject import containers
from pytest_torchexport.subject.equality import identical

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_torchexport.plan import Plan
    from pytest_torchexport.reproduce.keep import Kept
    from pytest_torchexport.subject.call import Call


def example_keys(plan: Plan, calls: Sequence[Call], kept: Kept) -> Callable[[Any], str | None]:
    """Where the tensors of the failing input and of the example are kept; what only the example has is written now.

    Args:
        plan: the test's.
        calls: the failing input; none where the export is refused.
        kept: the folder, with the group `input` if there are calls.

    Returns:
        Of a tensor, its key for `standalone.Archives`; None where it is not kept.
    """
    at: dict[int, tuple[str, Any]] = {}
    known: dict[str, Any] = {}
    if calls:
        for path, leaf in containers.leaves([plan.names(call) for call in calls]):
            if path in kept.keys["input"]:
                at[id(leaf)] = (kept.keys["input"][path], leaf)
                known.setdefault(path.removeprefix("[0]"), leaf)
    rest = []
    for path, leaf in containers.leaves(plan.names(plan.example)):
        if path in known and isinstance(leaf, torch.Tensor) and identical(known[path], leaf):
            at[id(leaf)] = (at[id(known[path])][0], leaf)
        else:
            rest.append((path, leaf))
    if "example" not in kept.keys and any(isinstance(leaf, torch.Tensor) for _, leaf in rest):
        kept.add("example", rest)
    for path, leaf in rest:
        if path in kept.keys.get("example", {}):
            at[id(leaf)] = (f"example:{kept.keys['example'][path]}", leaf)
    return lambda value: at[id(value)][0] if id(value) in at else None
