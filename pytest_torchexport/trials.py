"""Eager's side of a check as data: the inputs that eager accepts, and what it did on each."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_torchexport.compare.records import StateView
from pytest_torchexport.compare.rerun import Known

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_torchexport.branches.observation import Taken
    from pytest_torchexport.branches.sites import Site
    from pytest_torchexport.compare.noise import RoundingNoise
    from pytest_torchexport.outcome import BranchCoverage
    from pytest_torchexport.subject.call import Call
    from pytest_torchexport.subject.run import Record


@dataclass
class Trial:
    """One input that eager accepts: a sequence of calls, and what eager did on it.

    `noise` is eager's rounding noise on it, by the precision that it is measured for and the orders that mean nothing.
    `taken` is what it took at each decision, where that was observed; `goals` are the outcomes that the search found it
    for.
    """

    calls: tuple[Call, ...]
    record: Record
    kind: str
    label: str
    noise: dict[tuple[str | None, str], RoundingNoise] = field(default_factory=dict)
    taken: Taken | None = None
    goals: tuple[tuple[Site, Any], ...] = ()

    def describe(self) -> str:
        """The arguments, call by call; those of equal calls once."""
        said = [(text, len(list(same))) for text, same in itertools.groupby(call.describe() for call in self.calls)]
        return "; then ".join(text if count == 1 else f"{text}, {count} times" for text, count in said)


@dataclass
class Reference:
    """What eager does.

    Attributes:
        trials: the example first, then extra, remembered and generated inputs.
        dropped: number of inputs that are outside of the domain, by reason.
        invalid: why no verdict is possible; None if one is.
        needs_grad_mode: eager needs autograd on, though no gradients are asked for.
        writes_arguments: eager changes arguments in place, which a leaf of autograd does not allow.
        start: eager's starting state by name.
        buffers: names of the registered buffers in it.
        notes: what the reference leaves unchecked, as (what, why).
        coverage: which branches the inputs took; None where they were not observed.
        known: what measurements of rounding noise found out about the model.
        reuses_memory: eager returns the same memory from each run, so that every output has to be copied at once.
    """

    trials: list[Trial] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    invalid: str | None = None
    needs_grad_mode: bool = False
    writes_arguments: bool = False
    start: dict[str, Any] = field(default_factory=dict)
    buffers: frozenset[str] = frozenset()
    notes: list[tuple[str, str]] = field(default_factory=list)
    reuses_memory: bool = False
    coverage: BranchCoverage | None = None
    known: Known = field(default_factory=Known)

    @property
    def decides(self) -> bool:
        """Whether an input may decide on the model's way, as far as is known."""
        return self.coverage is None or bool(self.coverage.decisions)

    def states(self, exported: Mapping[str, Any] | None, *, complete: bool = False) -> StateView:
        """Eager's starting state beside the loaded program's; complete if that is the module's own."""
        return StateView(self.start, exported, self.buffers, complete)
