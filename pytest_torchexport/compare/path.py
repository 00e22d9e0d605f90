"""The way that a run takes through a model, by which runs on different branches are told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_torchexport.compare.operators import branch, computes

if TYPE_CHECKING:
    from collections.abc import Iterable


class Path:
    """The way that a run takes through the model: its operators with their shapes and Python arguments.

    Two runs of one model on one input take the same way unless a number taken out of a tensor, or a condition on one,
    came out differently. Such a run says nothing about rounding.
    """

    def __init__(self) -> None:
        self._digest = 0

    def step(self, func: Any, args: Iterable[Any], kwargs: dict[str, Any]) -> None:
        """Go one operator further."""
        self._digest = hash((self._digest, str(func), _shown([*args, *kwargs.values()])))

    def __eq__(self, other: object) -> bool:
        """Whether the way is the same so far."""
        return isinstance(other, Path) and self._digest == other._digest

    def __hash__(self) -> int:
        """A way that goes on is another one: only finished ones are keys."""
        return self._digest


def _shown(value: Any) -> Any:
    """An operator's argument without what noise may change: numbers to three digits, tensors as shapes."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, (list, tuple)):
        return tuple(_shown(part) for part in value)
    if isinstance(value, float):
        return f"{value:.2e}"
    return value if isinstance(value, (bool, int, str)) else None


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Changes nothing, and notes the way that the run takes."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.path = Path()
        self.computed = Path()
        """The same without operators that only move or cast values, which a run in double precision does not share."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator."""
        if func is torch.ops.higher_order.cond:
            with self:
                return branch(*args)
        self.path.step(func, args, kwargs or {})
        if computes(func):
            self.computed.step(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))
