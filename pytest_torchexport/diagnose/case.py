"""A failing input with the means to ask eager and the program further, and what such a question tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_torchexport.diagnose.likeness import explains
from pytest_torchexport.eager import eager_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pytest_torchexport.outcome import Cause, Evidence, Leaf
    from pytest_torchexport.plan import Plan
    from pytest_torchexport.program import Program
    from pytest_torchexport.subject.call import Call
    from pytest_torchexport.subject.output import Structure
    from pytest_torchexport.subject.run import Record
    from pytest_torchexport.subject.state import Snapshot
    from pytest_torchexport.trials import Reference, Trial

RUNS = 40
"""Runs of eager for one failing check."""


class TooMany(Exception):  # no error: the budget is spent
    """No more runs of eager may be made."""


@dataclass(frozen=True)
class Clue:
    """What a hypothesis that holds says.

    Attributes:
        evidence: the facts.
        cause: what it makes the cause; None where it only adds to what is known.
        tested: eager, or a comparison, showed it; else it is the cause only where nothing else is.
    """

    evidence: tuple[Evidence, ...]
    cause: Cause | None = None
    tested: bool = True


@dataclass
class Case:
    """A failing input, what both sides did on it, and the means to ask eager further.

    Attributes:
        plan: of the check.
        snapshot: the model's starting state.
        reference: eager's side.
        program: the exported side.
        structure: what the program's outputs keep of eager's structure.
        trial: the input, with what eager did.
        record: what the program did.
        leaves: what differs.
        others: further failing inputs, with what the program did on each.
        left: runs of eager that may still be made.
        errors: what went wrong in the search for a cause: a hypothesis by its name, and the error.
    """

    plan: Plan
    snapshot: Snapshot
    reference: Reference
    program: Program
    structure: Structure
    trial: Trial
    record: Record
    leaves: Sequence[Leaf]
    others: Sequence[tuple[Trial, Record]] = ()
    left: int = field(default=RUNS)
    errors: list[str] = field(default_factory=list)

    def eager(
        self, calls: Iterable[Call] | None = None, program: Callable[..., Any] | None = None, **how: Any
    ) -> Record:
        """Run eager on other calls, or something else in its place, from the starting state.

        Raises:
            TooMany: the budget is spent.
        """
        if self.left <= 0:
            raise TooMany
        self.left -= 1
        chosen = self.trial.calls if calls is None else tuple(calls)
        return eager_run(self.plan, self.snapshot, self.reference, chosen, program=program, **how)

    def gives(self, outputs: Sequence[Any], calls: slice = slice(None)) -> bool:
        """Whether the program's outputs in these calls are the given ones, and not those that eager gave."""
        return explains(self.trial.record.outputs[calls], outputs, self.record.outputs[calls], self.structure)

    def explained_by(self, record: Record) -> bool:
        """Whether eager, run in another way, gave what the program gave."""
        return record.error is None and self.gives(record.outputs)
