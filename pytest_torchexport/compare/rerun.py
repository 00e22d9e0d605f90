"""Eager again on one input: how a measurement runs it, and what it does in double precision."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from pytest_torchexport.compare.double import InDouble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager

    from pytest_torchexport.compare.path import Path
    from pytest_torchexport.subject.run import Record


class Rerun(Protocol):
    """Runs eager once more on the input, from the same state and random numbers."""

    def __call__(self, mode: AbstractContextManager[Any], dtype: torch.dtype | None = None) -> Record:
        """The record of a run under the mode, with floating arguments in the dtype if one is given."""


@dataclass
class Known:
    """What runs of a model showed, so that it need not be found out again on the next input.

    Attributes:
        ways: eager's way and the largest eps that it computes in, by the way of the run in double precision.
        compares_dtypes: the run in double precision needs all parameters in it.
    """

    ways: dict[Path, tuple[Path, float]] = field(default_factory=dict)
    compares_dtypes: bool = False


@dataclass(frozen=True)
class Eager:
    """How to run eager again on one input, and to read what it did.

    Attributes:
        rerun: runs it under a mode.
        leaves: the leaves of a record, by the paths that `compare_records` uses.
        parameters: the model's parameters.
        known: what earlier runs of the model showed.
        decides: values may decide on the model's way, as far as is known.
    """

    rerun: Rerun
    leaves: Callable[[Record], Mapping[str, Any]]
    parameters: Callable[[], Iterable[torch.nn.Parameter]] = tuple
    known: Known = field(default_factory=Known)
    decides: bool = True


def in_double(eager: Eager, way: Path | None = None) -> tuple[Record, Path]:
    """What eager does in double precision; the record holds an error where an operator has no such form.

    Parameters are converted where they are read. Code that compares dtypes stumbles over that (convolutions and
    recurrent layers do), or goes another way (attention does); it is run again with all parameters converted for the
    time of the run.

    Args:
        eager: how to run it.
        way: eager's own, by what it computes; None where it is not known.

    Returns:
        The record, and the way that the run takes, which has to be eager's: its results are those of another branch
        otherwise.
    """
    first = eager.known.compares_dtypes
    for converted in (first, not first):
        mode = InDouble(eager.parameters() if converted else ())
        record = eager.rerun(mode, torch.float64)
        if record.error is None and (way is None or mode.computed == way):
            eager.known.compares_dtypes = converted
            return record, mode.computed
    return record, mode.computed
