"""What shape a program's output has: how much of eager's structure it can carry."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Structure(StrEnum):
    """How much of an output's structure the exported form's calling convention can carry."""

    SAME = "same"
    """Everything: the types, keys and order of eager's containers."""
    SCRIPT = "script"
    """TorchScript: sequences and mappings, without the Python class (a named tuple may come back as a tuple)."""
    FLAT = "flat"
    """ONNX: the tensors in order, with names; None, strings and constants are not part of the program."""


@dataclass(frozen=True)
class FlatOutput:
    """The outputs of a `FLAT` program, by name and in the program's order.

    A value is a tensor, or, for a sequence output, a list of tensors.
    """

    values: dict[str, Any]
