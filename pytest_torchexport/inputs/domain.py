"""Domains that a user declares for an argument: what they describe, what they accept, what they draw.

A domain for a tensor describes its elements; dtype, shape, strides and device are the example's. For a Python number
it describes the number. `sampled_from` tensors, callables and Hypothesis strategies describe the argument as a whole.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.errors import UsageError
from pytest_torchexport.inputs.base import Domain, Span, constantly, is_int
from pytest_torchexport.inputs.ranges import Floats, Integers
from pytest_torchexport.inputs.values import dense
from pytest_torchexport.subject import containers

if TYPE_CHECKING:
    from pytest_torchexport.inputs.values import Special, Want

ACCEPTED = (
    "floats(low, high), integers(low, high), booleans(), sampled_from([...]), optional(...), "
    "a function (generator: torch.Generator) -> value, or a Hypothesis strategy"
)


@dataclass(frozen=True)
class _Booleans(Domain):
    def __str__(self) -> str:
        return "booleans()"

    def mismatch(self, example: Any) -> str | None:
        if isinstance(example, bool) or (isinstance(example, torch.Tensor) and example.dtype is torch.bool):
            return None
        return "booleans describes bool tensors and Python flags; for 0/1 numbers use integers(0, 1)"

    def random(self, example: Any, want: Want) -> Any:
        if isinstance(example, bool):
            return want.below(2) == 1
        return torch.rand(want.shape, generator=want.generator) < want.uniform(-0.1, 1.1)

    def specials(self, example: Any) -> list[Special]:
        if isinstance(example, bool):
            return [(str(value), constantly(value)) for value in (not example, example)]
        return [
            ("all True", lambda want: torch.ones(want.shape, dtype=torch.bool)),
            ("all False", lambda want: torch.zeros(want.shape, dtype=torch.bool)),
        ]

    def span(self, example: Any) -> Span | None:
        del example
        return Span(0, 1, integral=True)

    def listed(self, example: Any) -> list[Any]:
        return [not example, example] if isinstance(example, bool) else []


@dataclass(frozen=True, eq=False)
class _SampledFrom(Domain):
    elements: tuple[Any, ...]

    @property
    def whole(self) -> bool:  # type: ignore[override]
        return not all(isinstance(one, (bool, int, float, complex, str, enum.Enum)) for one in self.elements)

    def __str__(self) -> str:
        shown = ", ".join(containers.describe(one, 40) for one in self.elements[:6])
        return f"sampled_from([{shown}{', …' if len(self.elements) > 6 else ''}])"

    def mismatch(self, example: Any) -> str | None:
        for one in self.elements:
            if (reason := _misfit(one, example)) is not None:
                return f"{containers.describe(one, 60)} {reason}"
        return None

    def outside(self, example: Any) -> str | None:
        if self.whole or example is None:
            return None
        if not isinstance(example, torch.Tensor):
            return None if example in self.elements else repr(example)
        numbers = dense(example)
        choices = torch.tensor(self.elements).to(numbers.dtype)
        wrong = numbers[~(numbers.unsqueeze(-1) == choices).any(-1)]
        return str(wrong.reshape(-1)[0].item()) if wrong.numel() else None

    def random(self, example: Any, want: Want) -> Any:
        if self.whole or not isinstance(example, torch.Tensor):
            return self.elements[want.below(len(self.elements))]
        choices = torch.tensor(self.elements).to(example.dtype)
        return choices[torch.randint(len(choices), want.shape, generator=want.generator)]

    def specials(self, example: Any) -> list[Special]:
        if self.whole or not isinstance(example, torch.Tensor):
            return [(containers.describe(one, 60), constantly(one)) for one in self.elements]
        return [(f"all {one}", partial(_filled, one, example.dtype)) for one in self.elements]

    def span(self, example: Any) -> Span | None:
        if self.whole or not isinstance(example, torch.Tensor) or example.is_complex():
            return None
        choices = tuple(torch.tensor(self.elements).to(example.dtype).tolist())
        real = [one for one in choices if one == one] or [0.0]  # noqa: PLR0124 - NaN is no bound
        return Span(min(real), max(real), all(float(one).is_integer() for one in choices), choices)

    def listed(self, example: Any) -> list[Any]:
        return list(self.elements) if self.whole or not isinstance(example, torch.Tensor) else []


def _filled(value: complex, dtype: torch.dtype, want: Want) -> torch.Tensor:
    return torch.full(want.shape, value, dtype=dtype)


def _misfit(value: Any, example: Any) -> str | None:
    """Why a listed value cannot stand where the example stands."""
    if example is None:
        return None
    if isinstance(example, torch.Tensor):
        if isinstance(value, torch.Tensor):
            return None if same_kind(value, example) else f"has another dtype; write tensor.to({example.dtype})"
        if isinstance(value, (bool, int, float, complex)) and _holds(example.dtype, value):
            return None
        return f"is no value of that dtype; list numbers that {example.dtype} holds, or whole tensors"
    if isinstance(example, float) and is_int(value):
        return None
    if containers.is_leaf(example) and type(value) is not type(example):
        return f"is {type(value).__name__}, the example is {type(example).__name__}; list values of one type"
    return None


def same_kind(value: torch.Tensor, example: torch.Tensor) -> bool:
    """Whether the value can be cast to the example's dtype and mean the same: one float width for another."""
    floating = value.is_floating_point() and example.is_floating_point()
    return value.dtype == example.dtype or floating or (value.is_complex() and example.is_complex())


def _holds(dtype: torch.dtype, value: Any) -> bool:
    if dtype.is_complex:
        return True
    if isinstance(value, complex):
        return False
    if dtype is torch.bool:
        return isinstance(value, bool)
    if dtype.is_floating_point:
        return not math.isfinite(value) or abs(value) <= torch.finfo(dtype).max
    info = torch.iinfo(dtype)
    return is_int(value) and info.min <= value <= info.max


@dataclass(frozen=True)
class Optional(Domain):
    """None, or a value of the inner domain (of the domain derived from the example if there is none)."""

    inner: Any = None

    def __str__(self) -> str:
        return f"optional({'' if self.inner is None else self.inner})"

    def mismatch(self, example: Any) -> str | None:
        """Why there is nothing to draw; None if there is."""
        if example is None and self.inner is None:
            return (
                "there is nothing to draw but None; pass an example that has the argument, "
                "or say which values it takes: optional(sampled_from([tensor]))"
            )
        return None

    def random(self, example: Any, want: Want) -> Any:
        """None; the inner domain is drawn as a domain of its own."""
        del example, want


def floats(low: float, high: float) -> Domain:
    """Floating-point numbers from `low` to `high`, both included.

    Args:
        low: the smallest value, finite.
        high: the largest value, finite.

    Raises:
        UsageError: a bound is not a finite number, or `low` is above `high`.
    """
    bounds: tuple[tuple[str, Any], ...] = (("low", low), ("high", high))
    for name, bound in bounds:
        number = isinstance(bound, (int, float)) and not isinstance(bound, bool)
        if not number or not math.isfinite(bound):
            msg = f"floats({low!r}, {high!r}): {name} is not a finite number; for NaN or inf use sampled_from([...])"
            raise UsageError(msg)
    _ordered("floats", low, high)
    return Floats(low, high)


def integers(low: int, high: int) -> Domain:
    """Whole numbers from `low` to `high`, both included; in a floating tensor, numbers without a fraction.

    Args:
        low: the smallest value.
        high: the largest value.

    Raises:
        UsageError: a bound is not an integer or beyond 64 bits, or `low` is above `high`.
    """
    for name, bound in (("low", low), ("high", high)):
        if not is_int(bound) or not -(2**63) <= bound < 2**63:
            msg = f"integers({low!r}, {high!r}): {name} is not a 64-bit integer"
            raise UsageError(msg)
    _ordered("integers", low, high)
    return Integers(low, high)


def _ordered(name: str, low: float, high: float) -> None:
    if low > high:
        msg = f"{name}({low!r}, {high!r}): low is above high; write {name}({high!r}, {low!r})"
        raise UsageError(msg)


def booleans() -> Domain:
    """True and False: the elements of a bool tensor, or a Python flag."""
    return _Booleans()


def sampled_from(elements: Sequence[Any] | enum.EnumType) -> Domain:
    """One of the given values.

    Args:
        elements: numbers, from which each element of a tensor is drawn, or which a Python number takes; or whole
            values of the argument (tensors, strings, enum members, containers). An enum class stands for its members.

    Raises:
        UsageError: there are no elements, or they are not a sequence.
    """
    given: Any = elements
    listable = isinstance(given, (Sequence, enum.EnumType)) and not isinstance(given, (str, bytes))
    if not listable:
        msg = f"sampled_from({elements!r}): pass a list of values, sampled_from([...])"
        raise UsageError(msg)
    listed = tuple(elements)
    if not listed:
        msg = "sampled_from([]): there is nothing to draw from; list at least one value"
        raise UsageError(msg)
    return _SampledFrom(listed)


def optional(domain: Any = None) -> Domain:
    """The argument, or None in its place.

    Args:
        domain: what the argument is when it is not None; without it, the domain is derived from the example.
    """
    return Optional(domain)
