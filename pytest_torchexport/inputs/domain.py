"""Domains that a user declares for an argument: what they describe, what they accept, what they draw.

A domain for a tensor describes its elements; dtype, shape, strides and device are the example's. For a Python number
it describes the number. `sampled_from` tensors, callables and Hypothesis strategies describe the argument as a whole.
"""

from __future__ import annotations

import enum
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from pytest_torchexport.errors import UsageError
from pytest_torchexport.inputs.values import Special, Want, as_numbers, dense, inward
from pytest_torchexport.subject import containers

ACCEPTED = (
    "floats(low, high), integers(low, high), booleans(), sampled_from([...]), optional(...), "
    "a function (generator: torch.Generator) -> value, or a Hypothesis strategy"
)


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


def _kind(example: Any) -> str:
    if isinstance(example, torch.Tensor):
        return f"a {str(example.dtype).removeprefix('torch.')} tensor"
    return "None" if example is None else f"the {type(example).__name__} {example!r}"


def is_int(value: object) -> bool:
    """Whether the value is a Python integer, and not a flag or an enum member."""
    return isinstance(value, int) and not isinstance(value, (bool, enum.Enum))


@dataclass(frozen=True)
class _Range(Domain):
    low: float
    high: float

    def __str__(self) -> str:
        name = "integers" if isinstance(self, _Integers) else "floats"
        return f"{name}({self.low}, {self.high})"

    def outside(self, example: Any) -> str | None:
        numbers = as_numbers(dense(example)) if isinstance(example, torch.Tensor) else torch.tensor(example)
        low, high = self.low, self.high
        if isinstance(example, torch.Tensor) and (example.is_floating_point() or example.is_complex()):
            real = example.dtype.to_real() if example.is_complex() else example.dtype
            # The example cannot hold a bound better than its dtype does: 0.3 as a float16 lies above 0.3.
            low, high = (min(low, _cast(low, real)), max(high, _cast(high, real)))
        inside = (numbers >= low) & (numbers <= high)
        wrong = numbers[~inside]
        return str(wrong.reshape(-1)[0].item()) if wrong.numel() else None

    def _make(self, example: Any, want: Want, draw: Callable[[tuple[int, ...]], torch.Tensor]) -> Any:
        if not isinstance(example, torch.Tensor):
            return type(self).number(draw(()).item())
        if example.is_complex():
            return torch.view_as_complex(draw((*want.shape, 2)).to(example.dtype.to_real()).contiguous())
        return draw(want.shape).to(example.dtype)

    @staticmethod
    def number(value: float) -> float:
        return float(value)

    def specials(self, example: Any) -> list[Special]:
        low, high = self._bounds(example)
        corners = [low, high] + [value for value in (0, 1, -1) if low < value < high]
        made: list[Special] = [(_spell(value), self._constant(example, value)) for value in corners]
        if isinstance(example, torch.Tensor) and low < high:
            made.insert(2, ("lower and upper bound mixed", self._mixed(example, low, high)))
        return made

    def _bounds(self, example: Any) -> tuple[float, float]:
        del example
        return self.low, self.high

    def _constant(self, example: Any, value: float) -> Callable[[Want], Any]:
        return lambda want: self._make(example, want, lambda shape: _full(shape, value))

    def _mixed(self, example: Any, low: float, high: float) -> Callable[[Want], Any]:
        def make(want: Want) -> Any:
            def draw(shape: tuple[int, ...]) -> torch.Tensor:
                coin = torch.rand(shape, generator=want.generator) < 0.5
                return torch.where(coin, _full(shape, low), _full(shape, high))

            return self._make(example, want, draw)

        return make


def _full(shape: tuple[int, ...], value: float) -> torch.Tensor:
    return torch.full(shape, value, dtype=torch.int64 if isinstance(value, int) else torch.float64)


def _cast(value: float, dtype: torch.dtype) -> float:
    return float(torch.tensor(value, dtype=dtype))


def _spell(value: float) -> str:
    if value in (0, 1):
        return "ones" if value else "zeros"
    return f"all {value:.6g}" if abs(value) < 1e6 else f"all {value}"


@dataclass(frozen=True)
class _Floats(_Range):
    def mismatch(self, example: Any) -> str | None:
        if isinstance(example, torch.Tensor) and (example.is_floating_point() or example.is_complex()):
            real = example.dtype.to_real() if example.is_complex() else example.dtype
            limit = torch.finfo(real).max
            if max(abs(self.low), abs(self.high)) > limit:
                return f"the bounds exceed what the dtype holds, ±{limit:g}; use bounds within that"
            if inward(float(self.low), float(self.high), real) is None:
                return "the dtype has no number between the bounds; widen them"
            return None
        if isinstance(example, torch.Tensor):
            return "use booleans()" if example.dtype is torch.bool else "use integers(low, high)"
        if isinstance(example, float):
            return None
        if is_int(example):
            return "use integers(low, high), or pass the example as a float"
        return f"floats describes floating tensors and Python floats; {_scalar_remedy(example)}"

    def _bounds(self, example: Any) -> tuple[float, float]:
        low, high = float(self.low), float(self.high)
        if not isinstance(example, torch.Tensor):
            return low, high
        bounds = inward(low, high, example.dtype.to_real() if example.is_complex() else example.dtype)
        assert bounds is not None, "mismatch() lets no such range through"
        return bounds

    def random(self, example: Any, want: Want) -> Any:
        low, high = self._bounds(example)
        style = want.below(3)

        def draw(shape: tuple[int, ...]) -> torch.Tensor:
            part = torch.rand(shape, dtype=torch.float64, generator=want.generator)
            if style == 1:  # a narrow window, so that means and sums do not all end up in the middle
                centre, width = want.uniform(), 10 ** want.uniform(-3, 0)
                part = (centre + width * (part - 0.5)).clamp(0, 1)
            if style == 2:  # small magnitudes, which a uniform draw over a wide range never shows
                largest = max(abs(low), abs(high))
                size = largest * 10 ** (-4 * part)
                coin = torch.rand(shape, generator=want.generator) < 0.5
                return torch.where(coin, size, -size).clamp(low, high)
            return (low * (1 - part) + high * part).clamp(low, high)

        return self._make(example, want, draw)

    def _make(self, example: Any, want: Want, draw: Callable[[tuple[int, ...]], torch.Tensor]) -> Any:
        made = super()._make(example, want, draw)
        return self._inside(example, made) if isinstance(made, torch.Tensor) else made

    def _inside(self, example: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        """Rounding to the dtype may have left the range by one step."""
        low, high = self._bounds(example)
        numbers = as_numbers(made)
        if not ((numbers < low) | (numbers > high)).any():
            return made
        numbers = numbers.clamp(low, high)
        if made.is_complex():
            return torch.view_as_complex(numbers.to(made.dtype.to_real()))
        return numbers.to(made.dtype)


@dataclass(frozen=True)
class _Integers(_Range):
    def mismatch(self, example: Any) -> str | None:
        if is_int(example):
            return None
        if not isinstance(example, torch.Tensor):
            remedy = "use floats(low, high)" if isinstance(example, float) else _scalar_remedy(example)
            return f"integers describes tensors and Python integers; {remedy}"
        if example.dtype is torch.bool:
            return "use booleans()"
        if example.is_complex():
            return "use floats(low, high)"
        info = torch.finfo(example.dtype) if example.is_floating_point() else torch.iinfo(example.dtype)
        if self.low < info.min or self.high > info.max:
            return f"the bounds exceed what the dtype holds, {info.min:g} to {info.max:g}; use bounds within that"
        return None

    @staticmethod
    def number(value: float) -> int:
        return int(value)

    def random(self, example: Any, want: Want) -> Any:
        low, high = int(self.low), int(self.high)
        if want.below(3) == 0:  # now and then a small window
            width = max(1, (high - low) // 10)
            low = low + want.below(max(1, high - low - width + 1))
            high = min(int(self.high), low + width)
        stop = min(high + 1, 2**63 - 1)  # the largest bound that randint takes
        return self._make(
            example, want, lambda shape: torch.randint(low, max(stop, low + 1), shape, generator=want.generator)
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


def constantly(value: Any) -> Callable[[Want], Any]:
    """A draw that always gives the value."""
    return lambda _: value


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


def _scalar_remedy(example: Any) -> str:
    if isinstance(example, bool):
        return "for a flag use booleans()"
    if example is None:
        return "to draw values for an argument that is None in the example, pass an example that has it"
    return "use sampled_from([...])"


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
    return _Floats(low, high)


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
    return _Integers(low, high)


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
