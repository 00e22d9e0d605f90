"""Domains that are a range of numbers: `floats(low, high)` and `integers(low, high)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from pytest_torchexport.inputs.base import Domain, Span, is_int, scalar_remedy
from pytest_torchexport.inputs.values import as_numbers, dense, inward

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_torchexport.inputs.values import Special, Want


_FEW = 16
"""So many integers are listed one by one."""


@dataclass(frozen=True)
class _Range(Domain):
    low: float
    high: float
    name: ClassVar[str]

    def __str__(self) -> str:
        return f"{self.name}({self.low}, {self.high})"

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

    def span(self, example: Any) -> Span | None:
        low, high = self._bounds(example)
        return Span(low, high, integral=False)

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
class Floats(_Range):
    """Floating-point numbers; both parts of a complex one."""

    name = "floats"

    def mismatch(self, example: Any) -> str | None:
        """Why the example holds no floats, or not these."""
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
        return f"floats describes floating tensors and Python floats; {scalar_remedy(example)}"

    def _bounds(self, example: Any) -> tuple[float, float]:
        """Bounds that the dtype can hold: what is drawn between them is still between them when it is rounded."""
        low, high = float(self.low), float(self.high)
        if not isinstance(example, torch.Tensor):
            return low, high
        bounds = inward(low, high, example.dtype.to_real() if example.is_complex() else example.dtype)
        assert bounds is not None, "mismatch() lets no such range through"
        return bounds

    def random(self, example: Any, want: Want) -> Any:
        """Numbers spread over the range, over a narrow window of it, or over its magnitudes."""
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


@dataclass(frozen=True)
class Integers(_Range):
    """Whole numbers, in a floating tensor too."""

    name = "integers"

    def mismatch(self, example: Any) -> str | None:
        """Why the example holds no integers, or not these."""
        if is_int(example):
            return None
        if not isinstance(example, torch.Tensor):
            remedy = "use floats(low, high)" if isinstance(example, float) else scalar_remedy(example)
            return f"integers describes tensors and Python integers; {remedy}"
        if example.dtype is torch.bool:
            return "use booleans()"
        if example.is_complex():
            return "use floats(low, high)"
        info = torch.finfo(example.dtype) if example.is_floating_point() else torch.iinfo(example.dtype)
        if self.low < info.min or self.high > info.max:
            return f"the bounds exceed what the dtype holds, {info.min:g} to {info.max:g}; use bounds within that"
        return None

    def span(self, example: Any) -> Span | None:
        """The bounds, as far as a floating tensor's dtype holds them; without a fraction between them."""
        if not isinstance(example, torch.Tensor) or not example.is_floating_point():
            return Span(self.low, self.high, integral=True)
        bounds = inward(float(self.low), float(self.high), example.dtype)
        return Span(*bounds, integral=True) if bounds else None

    def listed(self, example: Any) -> list[Any]:
        """The numbers, if the argument is a Python integer that takes only a few."""
        few = is_int(example) and self.high - self.low < _FEW
        return list(range(int(self.low), int(self.high) + 1)) if few else []

    @staticmethod
    def number(value: float) -> int:
        """The drawn number as the Python type that the argument has."""
        return int(value)

    def random(self, example: Any, want: Want) -> Any:
        """Numbers spread over the range, now and then over a narrow window of it."""
        low, high = int(self.low), int(self.high)
        if want.below(3) == 0:  # now and then a small window
            width = max(1, (high - low) // 10)
            low += int(want.uniform() * (high - low - width))
            high = min(high, low + width)
        stop = min(high + 1, 2**63 - 1)  # the largest bound that randint takes
        return self._make(
            example, want, lambda shape: torch.randint(low, max(stop, low + 1), shape, generator=want.generator)
        )
