"""Python numbers that remember the tensor they came from, so that a comparison of them has a gradient.

`TrackedInt` and `TrackedFloat` are an `int` and a `float`: whoever takes numbers takes them. Arithmetic between them is
done twice, on the numbers and on 0-d float64 tensors that hang on autograd's graph. A comparison gives a `TrackedBool`,
which is no `bool` (that class cannot be extended) and therefore never leaves the user's instrumented code.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from pytest_torchexport.branches.formulas import (
    MIRRORED,
    Count,
    Origin,
    Real,
    away,
    chosen,
    counted,
    exceeds,
    margin,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class _Number:
    """What tracked numbers have in common; mixed into `int` and `float`."""

    origin: Origin
    _base: ClassVar[Any]
    """`int` or `float`."""

    @property
    def plain(self) -> Any:
        """The number alone."""
        return self._base.__pos__(self)  # of a subclass it returns the plain number, -0.0 and NaN included

    def __reduce__(self) -> Any:
        return type(self.plain), (self.plain,)

    def __deepcopy__(self, memo: object) -> Any:
        return self.plain

    def __repr__(self) -> str:
        return repr(self.plain)

    def __str__(self) -> str:
        return str(self.plain)

    def __format__(self, spec: str) -> str:
        return format(self.plain, spec)

    def __hash__(self) -> int:
        return hash(self.plain)


class TrackedInt(_Number, int):
    """An int that remembers where it comes from."""

    _base = int

    def __new__(cls, value: int, origin: Origin) -> Self:
        """The number, and where it comes from."""
        made = int.__new__(cls, value)
        made.origin = origin
        return made


class TrackedFloat(_Number, float):
    """A float that remembers where it comes from."""

    _base = float

    def __new__(cls, value: float, origin: Origin) -> Self:
        """The number, and where it comes from."""
        made = float.__new__(cls, value)
        made.origin = origin
        return made


class TrackedBool:
    """A truth value with its margin: positive where it is true; the gradient says how to change it."""

    __slots__ = ("margin", "size", "value")

    def __init__(self, value: bool, margin: torch.Tensor | None, *, size: bool = False) -> None:  # noqa: FBT001
        self.value = value
        self.margin = margin
        self.size = size

    def __bool__(self) -> bool:
        return self.value

    def __repr__(self) -> str:
        return repr(self.value)

    def __hash__(self) -> int:
        return hash(self.value)

    def __eq__(self, other: object) -> Any:
        if isinstance(other, (bool, TrackedBool)):
            return either(both(self, other), both(negated(self), negated(other)))
        return self.value == other

    def __and__(self, other: object) -> Any:
        return both(self, other) if isinstance(other, (bool, TrackedBool)) else _bitwise(operator.and_, self, other)

    def __or__(self, other: object) -> Any:
        return either(self, other) if isinstance(other, (bool, TrackedBool)) else _bitwise(operator.or_, self, other)

    def __xor__(self, other: object) -> Any:
        if isinstance(other, (bool, TrackedBool)):
            return negated(self == other)
        return _bitwise(operator.xor, self, other)

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__

    def __int__(self) -> int:
        return int(self.value)

    __index__ = __int__

    def __float__(self) -> float:
        return float(self.value)

    def number(self) -> TrackedInt:
        """0 or 1, for arithmetic: the sum of some comparisons is a count."""
        count = None if self.margin is None else Count(self.margin.reshape(1))
        real = None
        if self.margin is not None:
            real = float(self.value) + (self.margin - self.margin.detach())
        return TrackedInt(int(self.value), Origin(real, count, size=self.size))


def _bitwise(function: Callable[[Any, Any], Any], one: TrackedBool, other: object) -> Any:
    return function(one.value, other) if isinstance(other, int) else NotImplemented


def _arithmetic(name: str) -> Callable[[TrackedBool, Any], Any]:
    def method(self: TrackedBool, other: Any) -> Any:
        return getattr(self.number(), name)(other)

    return method


for _name in ("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__lt__", "__gt__"):
    setattr(TrackedBool, _name, _arithmetic(_name))


def plain(value: Any) -> Any:
    """The value without its history; containers are left alone."""
    if isinstance(value, TrackedBool):
        return value.value
    return value.plain if isinstance(value, _Number) else value


def without_bools(value: Any) -> Any:
    """The value, or list or tuple of values, with Python's own truth values: libraries know no others."""
    if isinstance(value, TrackedBool):
        return value.value
    if type(value) in (list, tuple) and any(isinstance(one, TrackedBool) for one in value):
        return type(value)(without_bools(one) for one in value)
    return value


def is_tracked(value: object) -> bool:
    """Whether the value remembers where it comes from."""
    return isinstance(value, (_Number, TrackedBool))


def margin_of(value: Any) -> torch.Tensor | None:
    """The margin of a value as a condition: that of a TrackedBool, or a number's distance from zero."""
    if isinstance(value, TrackedBool):
        return value.margin
    if isinstance(value, _Number):
        if value.origin.count is not None:
            return exceeds(value.origin, 0.0, strictly=True)
        return None if value.origin.real is None else away(value.origin.real)
    return None


def negated(value: Any) -> Any:
    """`not value`."""
    if isinstance(value, TrackedBool):
        return TrackedBool(not value.value, negative(value.margin), size=value.size)
    return not value


def negative(margin: torch.Tensor | None) -> torch.Tensor | None:
    """The margin of the opposite."""
    with torch.enable_grad():
        return None if margin is None else -margin


def both(one: Any, other: Any) -> Any:
    """`one and other`, of truth values."""
    return _joined(one, other, bool(one) and bool(other), torch.minimum)


def either(one: Any, other: Any) -> Any:
    """`one or other`, of truth values."""
    return _joined(one, other, bool(one) or bool(other), torch.maximum)


def _joined(one: Any, other: Any, value: bool, join: Callable[..., torch.Tensor]) -> TrackedBool:  # noqa: FBT001
    margins = [m for m in (margin_of(one), margin_of(other)) if m is not None]
    size = is_size(one, other)
    if len(margins) < 2:
        # Of a plain value nothing can be changed: where it does not decide alone, the other one does.
        return TrackedBool(value, margins[0] if margins else None, size=size)
    with torch.enable_grad():
        return TrackedBool(value, join(margins[0], margins[1].to(margins[0])), size=size)


# --- arithmetic and comparison ------------------------------------------------------------------------------------


def track(value: Any, real: torch.Tensor | None, *, size: bool = False) -> Any:
    """The value with its history, if it is a number."""
    if isinstance(value, bool):
        return TrackedBool(value, real, size=size)
    if isinstance(value, int):
        return TrackedInt(value, Origin(real, size=size))
    if isinstance(value, float):
        return TrackedFloat(value, Origin(real, size=size))
    return value


def real_of(value: Any) -> Real | None:
    """The value as autograd sees it; a plain number itself, None where there is no gradient."""
    if isinstance(value, _Number):
        return value.origin.real
    if isinstance(value, TrackedBool):
        return value.number().origin.real
    return float(value) if isinstance(value, (int, float)) else None


def is_size(*values: Any) -> bool:
    """Whether everything tracked among the values is a size."""
    sizes = [v.origin.size if isinstance(v, _Number) else v.size for v in values if is_tracked(v)]
    return bool(sizes) and all(sizes)


def through(value: Any, function: Callable[..., Any], *operands: Any) -> Any:
    """The value that Python computed from the operands, with the history that torch's function gives to it."""
    reals = [real_of(operand) for operand in operands]
    result: torch.Tensor | None = None
    if not any(real is None for real in reals) and any(isinstance(real, torch.Tensor) for real in reals):
        with torch.enable_grad():
            try:
                made = function(*[r if isinstance(r, torch.Tensor) else _constant(r) for r in reals])
            except (RuntimeError, TypeError, ValueError):
                made = None
        result = made if isinstance(made, torch.Tensor) and made.requires_grad else None
    return track(plain(value), result, size=is_size(*operands))


def _constant(value: Real | None) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def straight(function: Callable[..., torch.Tensor], slope: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The value of one function with the slope of another: rounding steps have none of their own."""

    def made(*operands: torch.Tensor) -> torch.Tensor:
        like = slope(*operands)
        return function(*operands).detach() + (like - like.detach())

    return made


def _identity(value: torch.Tensor) -> torch.Tensor:
    return value


ROUNDED = {name: straight(getattr(torch, name), _identity) for name in ("round", "floor", "ceil", "trunc")}
"""Functions that round, with the slope of their argument."""

_BINARY: dict[str, Callable[..., torch.Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "truediv": torch.div,
    "floordiv": straight(torch.floor_divide, torch.div),
    "mod": torch.remainder,
    "pow": torch.pow,
}


def _binary(name: str, *, reflected: bool) -> Callable[[Any, Any], Any]:
    python = getattr(operator, name)
    function = _BINARY[name]

    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, (int, float, TrackedBool)):
            base = int if isinstance(self, int) else float
            dunder = f"__{'r' if reflected else ''}{name}__"
            return getattr(base, dunder)(plain(self), other)
        if isinstance(other, TrackedBool):
            other = other.number()
        one, two = (other, self) if reflected else (self, other)
        value = python(plain(one), plain(two))
        made = through(value, function, one, two)
        return _still_counts(made, name, one, two)

    return method


def _still_counts(made: Any, name: str, one: Any, two: Any) -> Any:
    """A count divided or multiplied by a number is one in another unit; the sum of two counts is a count."""
    counts = [v.origin.count if isinstance(v, _Number) else None for v in (one, two)]
    if not isinstance(made, _Number) or not any(counts):
        return made
    count = None
    if name == "add" and counts[0] and counts[1] and counts[0].unit == counts[1].unit:
        count = Count(torch.cat([counts[0].margins, counts[1].margins.to(counts[0].margins)], -1), counts[0].unit)
    elif name == "add" and any(not is_tracked(v) and plain(v) == 0 for v in (one, two)):
        count = counts[0] or counts[1]
    elif name in ("truediv", "mul") and counts[0] and not is_tracked(two) and plain(two) > 0:
        factor = float(two) if name == "mul" else 1 / float(two)
        count = Count(counts[0].margins, counts[0].unit * factor)
    made.origin = Origin(made.origin.real, count, size=made.origin.size)
    return made


def _unary(python: Callable[[Any], Any], function: Callable[..., torch.Tensor]) -> Callable[[Any], Any]:
    def method(self: Any) -> Any:
        return through(python(plain(self)), function, self)

    return method


def compare(name: str, one: Any, two: Any) -> Any:
    """`one < two` and its like, of numbers of which one at least is tracked."""
    value = getattr(operator, name)(plain(one), plain(two))
    if not isinstance(one, (int, float, TrackedBool)) or not isinstance(two, (int, float, TrackedBool)):
        return value
    return TrackedBool(value, _compared(name, one, two), size=is_size(one, two))


def _compared(name: str, one: Any, two: Any) -> torch.Tensor | None:
    if not isinstance(one, _Number):
        return _compared(MIRRORED[name], two, one) if isinstance(two, _Number) else None
    with torch.enable_grad():
        if not is_tracked(two):
            special = _counted(name, one.origin, float(two))
            if special is not None:
                return special
        a, b = one.origin.real, real_of(two)
        return None if a is None or b is None else margin(name, a - b)


def _counted(name: str, origin: Origin, limit: float) -> torch.Tensor | None:
    """The margin of comparing a count, or a chosen index, with a plain number."""
    if origin.choice is not None and name in ("eq", "ne") and float(limit).is_integer():
        found = chosen(origin.choice.scores, int(limit))
        if found is None:
            return None
        found = found.reshape(()).to(torch.float64)
        return found if name == "eq" else -found
    if origin.count is None:
        return None
    return counted(name, lambda *, strictly: exceeds(origin, limit, strictly=strictly))


def _comparison(name: str) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, (int, float, TrackedBool)):
            base = int if isinstance(self, int) else float
            return getattr(base, f"__{name}__")(plain(self), other)
        return compare(name, self, other)

    return method


_UNARY: dict[str, tuple[Callable[[Any], Any], Callable[..., torch.Tensor]]] = {
    "neg": (operator.neg, torch.neg),
    "pos": (operator.pos, _identity),
    "abs": (abs, torch.abs),
    "floor": (math.floor, ROUNDED["floor"]),
    "ceil": (math.ceil, ROUNDED["ceil"]),
    "trunc": (math.trunc, ROUNDED["trunc"]),
}

for _kind in (TrackedInt, TrackedFloat):
    for _name in _BINARY:
        setattr(_kind, f"__{_name}__", _binary(_name, reflected=False))
        setattr(_kind, f"__r{_name}__", _binary(_name, reflected=True))
    for _name, (_python, _torch) in _UNARY.items():
        setattr(_kind, f"__{_name}__", _unary(_python, _torch))
    for _name in MIRRORED:
        setattr(_kind, f"__{_name}__", _comparison(_name))


def _bits(name: str, *, reflected: bool) -> Callable[[Any, Any], Any]:
    """Operations on bits: the result depends on the input, without a gradient."""
    python = getattr(operator, name)

    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, int | TrackedBool):
            return NotImplemented
        one, two = (plain(other), plain(self)) if reflected else (plain(self), plain(other))
        return track(python(one, two), None, size=is_size(self, other))

    return method


for _name in ("and_", "or_", "xor", "lshift", "rshift"):
    _dunder = _name.rstrip("_")
    setattr(TrackedInt, f"__{_dunder}__", _bits(_name, reflected=False))
    setattr(TrackedInt, f"__r{_dunder}__", _bits(_name, reflected=True))


def _round(self: Any, digits: int | None = None) -> Any:
    return through(round(plain(self), plain(digits)), ROUNDED["round"] if not digits else _identity, self)


for _kind in (TrackedInt, TrackedFloat):
    _kind.__round__ = _round  # type: ignore[method-assign, assignment]  # in place of those of int and float
