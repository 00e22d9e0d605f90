"""Python's own functions of numbers, for numbers that remember where they come from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pytest_torchexport.branches import formulas, tracked
from pytest_torchexport.branches.formulas import Origin
from pytest_torchexport.branches.tracked import TrackedBool, TrackedInt

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_torchexport.branches.margins import MarginMode


class Builtins(ABC):
    """`float`, `len`, `any`, `range`, `math.sqrt` and their like; the part of the instruments that calls them."""

    mode: MarginMode
    _ranges: dict[int, tuple[range, Any]]

    @abstractmethod
    def _judge(self, value: Any) -> tuple[bool, torch.Tensor | None, bool, bool]:
        """Truth, margin, whether it depends on sizes alone, whether it depends on the input."""

    @abstractmethod
    def _length_of(self, value: Any) -> TrackedInt | None:
        """The length of a collection that tests decided; None of any other value."""

    @abstractmethod
    def _taken(self, made: Any) -> Any:
        """Note a number that the call which is on takes out of a tensor; it is returned."""

    def cast(self, function: Any, value: Any, *rest: Any) -> Any:
        """`float(value)`, `int(value)`, `bool(value)`."""
        if rest:
            return function(tracked.plain(value), *rest)
        if isinstance(value, torch.Tensor) and self.mode.info(value) is not None:
            value = self._taken_from(function, value)
        elif isinstance(value, np.ndarray | np.generic):
            return tracked.track(function(value), None)
        if isinstance(value, TrackedBool):
            return value if function is bool else self.cast(function, value.number())
        if not tracked.is_tracked(value):
            return function(value)
        if function is bool:
            return TrackedBool(bool(tracked.plain(value)), tracked.margin_of(value), size=tracked.is_size(value))
        torchs = _as_it_is if function is float else tracked.ROUNDED["trunc"]
        made = tracked.through(function(tracked.plain(value)), torchs, value)
        origin = value.origin
        count = origin.count
        if function is int and count is not None and not float(count.unit).is_integer():
            count = None  # what is cut off is no count any more
        made.origin = Origin(made.origin.real, count, origin.choice, size=origin.size)
        return made

    def _taken_from(self, function: Any, tensor: torch.Tensor) -> Any:
        """The element of a tensor that is given to `function`; what `bool` takes is a condition, and no number."""
        with torch._C.DisableTorchFunction():
            value = tensor.detach().item()
        made = self.mode.number(tensor, value)
        return made if function is bool else self._taken(made)

    def length(self, function: Any, value: Any) -> Any:
        """`len(value)`; of a tensor it is a size."""
        if isinstance(value, torch.Tensor):
            own: Callable[[], Any] = value.__len__
            return own()  # `len` would make a plain number of it
        length = self._length_of(value)
        return function(value) if length is None else length

    def quantify(self, function: Any, values: Any) -> Any:
        """`any` or `all` of truth values."""
        if isinstance(values, torch.Tensor):
            return function(values)
        parts: list[TrackedBool | bool] = []
        sizes: list[bool] = []
        for value in values:
            outcome, margin, of_size, known = self._judge(value)
            sizes += [of_size] if known else []
            parts.append(TrackedBool(outcome, margin, size=of_size) if known else outcome)
            if outcome is (function is any):
                break
        result = function(bool(part) for part in parts)
        if not sizes:
            return result
        with torch.enable_grad():
            margins = [part.margin for part in parts if isinstance(part, TrackedBool) and part.margin is not None]
            if not margins:
                return TrackedBool(result, None, size=all(sizes))
            joined = torch.stack([margin.to(torch.float64) for margin in margins])
            return TrackedBool(
                result, formulas.at_least(joined, 1 if function is any else len(margins)), size=all(sizes)
            )

    def extreme(self, function: Any, *values: Any) -> Any:
        """`max`, `min`, `sum`, `sorted` over numbers: comparing tracked ones keeps them tracked."""
        return function(*values)

    def count_up(self, function: Any, *values: Any) -> Any:
        """`range(n)`."""
        made = function(*(tracked.plain(v) for v in values))
        if any(map(tracked.is_tracked, values)):
            self._ranges[id(made)] = (made, values[-1])
        return made

    def calculate(self, function: Any, *values: Any) -> Any:
        """A function of `math`."""
        values = tuple(
            self._taken_from(float, v) if isinstance(v, torch.Tensor) and self.mode.info(v) is not None else v
            for v in values
        )
        value = function(*(tracked.plain(v) for v in values))
        if not any(map(tracked.is_tracked, values)):
            return value
        if function in (math.isnan, math.isinf, math.isfinite):
            return TrackedBool(value, None)
        return tracked.through(value, _MATH[function], *values)


def _as_it_is(value: torch.Tensor) -> torch.Tensor:
    return value * 1.0


_MATH: dict[Any, Callable[..., torch.Tensor]] = {
    **{getattr(math, n): getattr(torch, n) for n in ("sqrt", "exp", "sin", "cos", "tan", "tanh", "log2", "log10")},
    **{getattr(math, n): getattr(torch, n) for n in ("log1p", "expm1", "atan", "asin", "acos", "sinh", "cosh")},
    **{getattr(math, n): tracked.ROUNDED[n] for n in ("floor", "ceil", "trunc")},
    math.log: lambda x, base=None: torch.log(x) if base is None else torch.log(x) / torch.log(base),
    math.fabs: torch.abs,
    math.pow: torch.pow,
    math.hypot: torch.hypot,
    math.atan2: torch.atan2,
    math.fmod: torch.fmod,
    math.erf: torch.erf,
    math.copysign: torch.copysign,
}
"""Functions of `math`, with those of torch that have a gradient."""


SPECIAL: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((float, int, bool), Builtins.cast),
    len: Builtins.length,
    range: Builtins.count_up,
    **dict.fromkeys((max, min, sum, sorted), Builtins.extreme),
    **dict.fromkeys((any, all), Builtins.quantify),
    **dict.fromkeys((*_MATH, math.isnan, math.isinf, math.isfinite), Builtins.calculate),
}
"""Built-in functions, with the methods that are called in their place."""
