"""What a domain is: it describes the values of an argument, checks them against the example and draws new ones."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_torchexport.inputs.values import Special, Want


@dataclass(frozen=True)
class Span:
    """The numbers of a domain: from `low` to `high`, whole ones only if `integral`, or only the `choices` if there are.

    The bounds are numbers that the argument can hold: in a tensor, of its dtype.
    """

    low: float
    high: float
    integral: bool
    choices: tuple[float, ...] = ()


class Domain(ABC):
    """The values that an argument may take.

    Class attributes:
        whole: the domain gives the value of the argument itself, not the elements of the tensors in it.
        only_special: random draws leave the argument as it is in the example.
    """

    whole: bool = False
    only_special: bool = False

    @abstractmethod
    def mismatch(self, example: Any) -> str | None:
        """Why the domain cannot describe the example, with the remedy; None if it can."""

    @abstractmethod
    def random(self, example: Any, want: Want) -> Any:
        """A value: a dense tensor of the example's dtype and the wanted shape, or a Python scalar."""

    def specials(self, example: Any) -> list[Special]:
        """Draws at the domain's corners."""
        del example
        return []

    def outside(self, example: Any) -> str | None:
        """A value of the example that the domain does not hold, as text; None if it holds all of them."""
        del example
        return None

    def span(self, example: Any) -> Span | None:
        """The limits of the tensor's elements, or of the Python number; None where it is not numbers that vary."""
        del example
        return None

    def listed(self, example: Any) -> list[Any]:
        """The values of the argument where they are few, among them perhaps the example's; empty where they are not."""
        del example
        return []

    def check(self, path: str, example: Any) -> None:
        """Raise a `UsageError` unless the domain can describe the example and holds its values."""
        if (reason := self.mismatch(example)) is not None:
            msg = f"inputs[{path!r}] = {self} does not fit the example's {path}, {_kind(example)}: {reason}"
            raise UsageError(msg)
        if (value := self.outside(example)) is not None:
            msg = (
                f"the example's own {path} holds {value}, outside its declared domain {self}: "
                "widen the domain, or pass an example that lies in it"
            )
            raise UsageError(msg)


class Derived(Domain):
    """A domain that nobody declared: it describes its example by construction."""

    def __str__(self) -> str:
        return "derived from the example"

    def mismatch(self, example: Any) -> str | None:
        """Nothing: the domain was made from the example."""
        del example
        return None


def _kind(example: Any) -> str:
    if isinstance(example, torch.Tensor):
        return f"a {str(example.dtype).removeprefix('torch.')} tensor"
    return "None" if example is None else f"the {type(example).__name__} {example!r}"


def is_int(value: object) -> bool:
    """Whether the value is a Python integer, and not a flag or an enum member."""
    return isinstance(value, int) and not isinstance(value, (bool, enum.Enum))


def constantly(value: Any) -> Callable[[Want], Any]:
    """A draw that always gives the value."""
    return lambda _: value


def scalar_remedy(example: Any) -> str:
    """What to use instead for a Python value that is not described by a range of numbers."""
    if isinstance(example, bool):
        return "for a flag use booleans()"
    if example is None:
        return "to draw values for an argument that is None in the example, pass an example that has it"
    return "use sampled_from([...])"
