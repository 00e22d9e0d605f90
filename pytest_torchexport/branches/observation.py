"""One observed run: what it did, and which outcomes of which decisions it took. Nothing in the run is changed."""

from __future__ import annotations

import math
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import torch
from torch.overrides import TorchFunctionMode

from pytest_torchexport.branches.observe import Observer
from pytest_torchexport.branches.sites import Kind, Site, source_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from pytest_torchexport.subject.run import Record

Taken = dict[Site, Any]
"""By decision: the set of truth values (conditions, exceptions), or the tuple of counts or values in order."""


class Endless(BaseException):
    """A run takes far longer than the example did: its loop may never end. No `Exception`, which the code may catch."""


_ELEMENTS = 20_000
"""Elements of results that take about as long as calling one of torch's functions."""
_VALUES = 64
"""Counts and values that are kept of one decision."""


@dataclass
class Observing(AbstractContextManager["Observing"]):
    """Entered around each call of a run.

    Args:
        is_users: whether the code of a file counts as the user's.
        limit: how many of torch's functions the run may call; `Endless` is raised beyond.

    Attributes:
        taken: what was taken at each decision.
        path: the conditions in the order in which they were decided.
        functions: how many of torch's functions were called.
        decides: code of the user's ran that holds a decision.
        work: how much the run was, in torch's functions; the elements that they return count too.
    """

    is_users: Callable[[str], bool]
    limit: float = math.inf
    functions: int = 0
    decides: bool = False
    work: float = 0.0
    taken: Taken = field(default_factory=dict)
    path: list[tuple[Site, bool]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._mode = _NumberMode(self.is_users, self.limit - self.functions)
        self._mode.__enter__()  # type: ignore[no-untyped-call]  # torch gives no types
        self._observer = Observer(self.is_users)
        self._observer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._observer.__exit__(kind, error, traceback)
        self._mode.__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]  # torch gives no types
        self.functions += self._mode.functions
        self.work += self._mode.functions + self._mode.elements / _ELEMENTS
        self.decides |= self._observer.decides
        self._add(self._mode.seen)
        self._add(self._observer.events)

    def _add(self, events: Iterable[tuple[Site, Any]]) -> None:
        for site, outcome in events:
            if site.kind in (Kind.CONDITION, Kind.EXCEPTION):
                self.taken.setdefault(site, set()).add(bool(outcome))
                if site.kind is Kind.CONDITION:
                    self.path.append((site, bool(outcome)))
            elif len(now := self.taken.get(site, ())) < _VALUES:
                self.taken[site] = (*now, outcome)


@dataclass
class Observation:
    """A run under observation: its record, and what it took."""

    record: Record
    taken: Taken
    path: list[tuple[Site, bool]]


class _NumberMode(TorchFunctionMode):
    """Notes numbers that the user's code takes out of tensors, and hands everything on as it is."""

    def __init__(self, is_users: Callable[[str], bool], limit: float) -> None:
        super().__init__()
        self._is_users, self._limit = is_users, limit
        self.functions = self.elements = 0
        self.seen: list[tuple[Site, str]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.functions += 1
        if self.functions > self._limit:
            raise Endless
        value = func(*args, **(kwargs or {}))
        if isinstance(value, torch.Tensor):
            self.elements += value.numel()
        if getattr(func, "__name__", "") in _TAKES and len(self.seen) < 10_000:
            site = self._where()
            if site is not None:
                self.seen.append((site, repr(value)))
        return value

    def _where(self) -> Site | None:
        frame = sys._getframe(2)
        if not self._is_users(frame.f_code.co_filename):
            return None
        source = source_of(frame.f_code.co_filename)
        positions = list(frame.f_code.co_positions())[frame.f_lasti // 2]
        if source is None or positions[1] is None or positions[3] is None:
            return None
        return source.numbers_at(positions[1], positions[3])


_TAKES = frozenset(("item", "tolist", "__float__", "__int__", "__index__"))
