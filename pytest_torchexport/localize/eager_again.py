"""Eager once more, with noise or in double precision: the values of a recorded run, as this run has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.utils._python_dispatch import _disable_current_modes

from pytest_torchexport.compare.operators import computes
from pytest_torchexport.localize.eager_steps import Watcher, is_plain
from pytest_torchexport.localize.sketch import sketch

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from pytest_torchexport.localize.eager_steps import Operation, Recorder


@dataclass
class _Found:
    """The sketches of an operator's written operands, by the index of the value, and of its results."""

    operands: dict[int, torch.Tensor]
    results: list[torch.Tensor | None]


class Follower(Watcher):
    """Finds the values of a recorded run in another run of eager: one with noise, or in double precision.

    Operators that only move or cast values may be fewer or more in the other run; what lies between two computing
    operators counts only if it is the same. From where the two runs part for good on, nothing is found.

    Args:
        recorded: the run to compare with.
        cap: as there.
        see: given the index of a value and its sketch in this run.
    """

    def __init__(self, recorded: Recorder, cap: int, see: Callable[[int, torch.Tensor], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorded = recorded.operations
        self._values = recorded.values
        self._cap = cap
        self._see = see
        self._next = 0
        self._between: list[tuple[str, _Found]] = []
        self._operands: dict[int, torch.Tensor] = {}
        self.parted = False

    def before(self, func: Any, given: list[torch.Tensor]) -> None:
        """Take the operands that were written in place since they were computed."""
        at = self._next + len(self._between)
        likely = self._recorded[at] if not self.parted and at < len(self._recorded) else None
        if likely is None or likely.name != str(func):
            self._operands = {}
            return
        # Under no noise: what is done here is no part of the run.
        with _disable_current_modes():
            self._operands = {
                index: sketch(given[place], self._cap)
                for place, index in likely.operands.items()
                if place < len(given) and is_plain(given[place])
            }

    def after(
        self, func: Any, given: list[torch.Tensor], written: list[torch.Tensor], fresh: list[torch.Tensor]
    ) -> None:
        """Look for the operator in the recorded run."""
        del given
        if self.parted:
            return
        with _disable_current_modes():
            self._follow(func, written, fresh)

    def _follow(self, func: Any, written: list[torch.Tensor], fresh: list[torch.Tensor]) -> None:
        results = [sketch(t, self._cap) if is_plain(t) else None for t in (*written, *fresh)]
        found = _Found(self._operands, results)
        if not computes(func):
            self._between.append((str(func), found))
            return
        self._settle()
        if self._next >= len(self._recorded) or self._recorded[self._next].name != str(func):
            self.parted = True
            return
        self._report(self._recorded[self._next], found)
        self._next += 1

    def finish(self) -> None:
        """The run is over."""
        if not self.parted:
            self._settle()

    def _settle(self) -> None:
        """Report what was only moved since the last computing operator, if it was the same in the recorded run."""
        begin = self._next
        while self._next < len(self._recorded) and not self._recorded[self._next].computes:
            self._next += 1
        theirs = self._recorded[begin : self._next]
        if [one.name for one in theirs] == [name for name, _ in self._between]:
            for operation, (_, found) in zip(theirs, self._between, strict=True):
                self._report(operation, found)
        self._between.clear()

    def _report(self, operation: Operation, found: _Found) -> None:
        for index, numbers in [*found.operands.items(), *zip(operation.results, found.results, strict=False)]:
            if index is not None and numbers is not None and numbers.shape == self._values[index].numbers.shape:
                self._see(index, numbers)
