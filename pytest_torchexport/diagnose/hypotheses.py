"""What may be behind a difference, tested: each hypothesis runs eager in another way, or compares values.

A hypothesis is taken for the cause only if eager, run as it says, gives what the exported program gave.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pytest_torchexport.diagnose.case import TooMany
from pytest_torchexport.diagnose.inside import inside
from pytest_torchexport.diagnose.other_runs import (
    frozen_state,
    held_arguments,
    lost_no_grad,
    other_mode,
    other_start,
    other_weights,
    own_ways,
)
from pytest_torchexport.diagnose.other_values import cut_gradients, precision, same_values, swapped_outputs
from pytest_torchexport.diagnose.reduced_precision import reduced_precision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pytest_torchexport.diagnose.case import Case, Clue

_HYPOTHESES: tuple[Callable[[Case], Iterable[Clue]], ...] = (
    swapped_outputs,
    same_values,
    lost_no_grad,
    cut_gradients,
    other_start,
    frozen_state,
    held_arguments,
    other_weights,
    other_mode,
    own_ways,
    inside,
    precision,
    reduced_precision,
)
"""In the order in which they are tried: what costs nothing first."""


def examine(case: Case) -> list[Clue]:
    """The clues to what is behind the difference, certain causes first.

    Once one is certain, eager is run no more for others. What goes wrong in the search stands in `case.errors`.
    """
    if case.trial.record.error is not None or case.record.error is not None or not case.leaves:
        return []
    found: list[Clue] = []
    with torch.no_grad():
        for hypothesis in _HYPOTHESES:
            try:
                found += hypothesis(case)
            except TooMany:
                pass
            except Exception as error:  # noqa: BLE001 what goes wrong here must not hide what was found
                first = (str(error).strip() or "no message").split("\n", 1)[0]
                case.errors.append(f"{hypothesis.__name__}: {type(error).__name__}: {first}")
            if any(clue.cause is not None for clue in found):
                case.left = 0
    return sorted(found, key=lambda clue: clue.cause is None)
