"""Domains of arguments for which none was declared: from the example's own values and the annotation.

An example says little about what else is valid, so eager has the last word. The draws keep to what could be meant:
integers never leave the range of the example's (an index out of range ends a CUDA process), numbers stay within a
few times the example's scale, and whatever structure the example shows (rows that are one-hot or of unit length,
whole numbers, ascending order) most draws show as well.
"""

from __future__ import annotations

import enum
import math
import types
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from pytest_torchexport.inputs.base import Derived, Domain, Span, constantly, is_int
from pytest_torchexport.inputs.masks import Mask
from pytest_torchexport.inputs.values import Special, Want, as_numbers, can_vary, dense
from pytest_torchexport.subject.call import forward_of, signature_of

if TYPE_CHECKING:
    from collections.abc import Callable

_SAMPLE = 1 << 20
"""Facts are read from at most this many elements."""


def annotated(model: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of the arguments of `forward`; those that cannot be resolved are absent."""
    function = forward_of(model)
    signature = signature_of(model)
    if signature is None:
        return {}
    try:
        return typing.get_type_hints(function)
    except Exception:  # noqa: BLE001 - whatever a user's annotation raises, it only costs the hint
        found = {name: parameter.annotation for name, parameter in signature.parameters.items()}
        return {name: hint for name, hint in found.items() if hint is not signature.empty and not isinstance(hint, str)}


def _members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, else the annotation alone."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def may_be_none(annotation: Any) -> bool:
    """Whether the annotation is `Optional[...]` or `... | None`."""
    return type(None) in _members(annotation)


def derive(example: Any, annotation: Any = None) -> Domain | None:
    """The domain of a leaf of the example; None if it stays as it is.

    Args:
        example: a tensor or a Python scalar.
        annotation: the annotation of the argument, if the leaf is an argument of its own.
    """
    if can_vary(example):
        return _of_tensor(dense(example)) if example.numel() or not example.is_sparse else None
    others = [value for value in _alternatives(example, annotation) if value != example]
    literal = any(typing.get_origin(member) is Literal for member in _members(annotation))
    return _Few(tuple(others), literal) if others else None


def _of_tensor(numbers: torch.Tensor) -> Domain:
    if numbers.dtype is torch.bool:
        return Mask.of(numbers)
    if numbers.is_floating_point() or numbers.is_complex():
        return _Floats.of(numbers)
    plain = as_numbers(numbers)
    if plain.numel() and int(plain.max()) == 1 and int(plain.min()) >= 0:
        return Mask.of(numbers)
    return _Integers.of(numbers)


def _alternatives(example: Any, annotation: Any) -> list[Any]:
    """Other values of a Python scalar: all that its type lists; for a number a few near it, if it is annotated."""
    found: list[Any] = []
    for member in _members(annotation):
        if typing.get_origin(member) is Literal:
            found += typing.get_args(member)
    if found:
        return found
    if isinstance(example, bool):
        return [not example]
    if isinstance(example, enum.Enum):
        return list(type(example))
    if is_int(example) and int in _members(annotation):
        return [n for n in (example + 1, example - 1, 0, 1) if n >= 0 or example < 0]
    if isinstance(example, float) and float in _members(annotation):
        return [2 * example, example / 2, 0.0, 1.0]
    return []


@dataclass(frozen=True)
class _Few(Derived):
    """A Python scalar: exporters fix it, so that it varies in special draws only.

    Attributes:
        values: what it takes beside the example's value.
        literal: there is nothing between the values.
    """

    values: tuple[Any, ...]
    literal: bool
    only_special = True

    def random(self, example: Any, want: Want) -> Any:
        del want
        return example

    def specials(self, example: Any) -> list[Special]:
        del example
        return [(repr(value), constantly(value)) for value in self.values]

    def span(self, example: Any) -> Span | None:
        if isinstance(example, bool):
            return Span(0, 1, integral=True)
        if self.literal or not (is_int(example) or isinstance(example, float)):
            return None
        if isinstance(example, float):
            return Span(-math.inf, math.inf, integral=False)
        return Span(min(*self.values, example), max(*self.values, example), integral=True)

    def listed(self, example: Any) -> list[Any]:
        del example
        return list(self.values)


def refit(numbers: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The numbers repeated or cut to the shape."""
    for dim, size in enumerate(shape):
        if numbers.shape[dim] == size:
            continue
        if not numbers.shape[dim]:
            return torch.zeros(shape, dtype=numbers.dtype)
        numbers = numbers.index_select(dim, torch.arange(size) % numbers.shape[dim])
    return numbers


def _rand(want: Want, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=want.generator)


def _resampled(flat: torch.Tensor, want: Want, shape: tuple[int, ...]) -> torch.Tensor:
    return flat[torch.randint(len(flat), shape, generator=want.generator)]


@dataclass(frozen=True, eq=False)
class _Floats(Derived):
    """Floating numbers like those of the example. `keep` restores the structure that the example shows."""

    numbers: torch.Tensor
    low: float
    high: float
    mean: float
    spread: float
    keep: tuple[Callable[[torch.Tensor], torch.Tensor], ...]

    @classmethod
    def of(cls, example: torch.Tensor) -> _Floats:
        numbers = as_numbers(example)
        flat = numbers.reshape(-1)[:_SAMPLE]
        flat = flat[flat.isfinite()]
        if not len(flat):
            return cls(numbers, -1.0, 1.0, 0.0, 1.0, ())
        low, high, mean = float(flat.min()), float(flat.max()), float(flat.mean())
        spread = float(flat.std(correction=0)) or abs(mean) or 1.0
        return cls(numbers, low, high, mean, spread, _structure(numbers))

    def span(self, example: Any) -> Span | None:
        return None if example.is_complex() else Span(-math.inf, math.inf, integral=False)

    @property
    def scale(self) -> float:
        """The largest magnitude of the example."""
        return max(abs(self.low), abs(self.high)) or 1.0

    def _done(self, example: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        real = example.dtype.to_real() if example.is_complex() else example.dtype
        limit = torch.finfo(real).max
        made = made.clamp(-limit, limit).to(real)
        return torch.view_as_complex(made.contiguous()) if example.is_complex() else made

    def _shape(self, example: torch.Tensor, want: Want) -> tuple[int, ...]:
        return (*want.shape, 2) if example.is_complex() else want.shape

    def random(self, example: Any, want: Want) -> Any:
        made = self._drawn(want, self._shape(example, want))
        if self.keep and want.below(4) and made.numel():
            for restore in self.keep:
                made = restore(made)
        return self._done(example, made)

    def _drawn(self, want: Want, shape: tuple[int, ...]) -> torch.Tensor:
        way = want.below(10)
        flat = self.numbers.reshape(-1)[:_SAMPLE]
        if way < 4 and (self.low >= 0 or self.high <= 0) and self.low < self.high:
            return self.low + (self.high - self.low) * _rand(want, shape)
        normal = torch.randn(shape, dtype=torch.float64, generator=want.generator)
        if way < 4:
            return self.mean + self.spread * normal
        if way < 6 and len(flat):
            return _resampled(flat, want, shape)
        factor = 4 ** want.uniform(-1, 1)
        if way < 8:
            return (self.mean * (1 if way == 6 else -1) + self.spread * normal) * factor
        if way == 8:
            return self.scale * factor * (2 * _rand(want, shape) - 1)
        # One level per row: a decision on a row's mean then falls differently within one input.
        level = torch.randn(shape[:1] + (1,) * (len(shape) - 1), dtype=torch.float64, generator=want.generator)
        return 2 * self.scale * level.reshape(level.shape if shape else ()) + self.spread * normal

    def specials(self, example: Any) -> list[Special]:
        def made(change: Callable[[torch.Tensor, Want], torch.Tensor]) -> Callable[[Want], Any]:
            def make(want: Want) -> Any:
                base = refit(self.numbers, self._shape(example, want))
                return self._done(example, change(base, want))

            return make

        scale = self.scale
        return [
            ("negated", made(lambda base, _: -base)),
            ("zeros", made(lambda base, _: torch.zeros_like(base))),
            ("10 times the example", made(lambda base, _: 10 * base)),
            ("a tenth of the example", made(lambda base, _: base / 10)),
            ("one large element", made(lambda base, want: _spike(base, 10 * scale, want))),
            ("-10 times the example", made(lambda base, _: -10 * base)),
            ("ones", made(lambda base, _: torch.ones_like(base))),
            ("constant", made(lambda base, _: torch.full_like(base, self.high or scale))),
            ("alternating signs", made(lambda base, _: _alternate(base.abs()))),
            ("negative constant", made(lambda base, _: torch.full_like(base, -scale))),
            ("ascending", made(lambda base, _: _ramp(base, scale))),
            ("first dimension reversed", made(lambda base, _: base.flip(0) if base.dim() else base)),
            ("last dimension one-hot", made(_one_hot)),
            ("100 times smaller", made(lambda base, _: base / 100)),
        ]


def _spike(base: torch.Tensor, height: float, want: Want) -> torch.Tensor:
    made = torch.zeros_like(base)
    if made.numel():
        made.reshape(-1)[want.below(made.numel())] = height
    return made


def _alternate(base: torch.Tensor) -> torch.Tensor:
    signs = 1 - 2 * (torch.arange(base.numel()) % 2)
    return base * signs.reshape(base.shape)


def _ramp(base: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.linspace(-scale, scale, base.numel(), dtype=base.dtype).reshape(base.shape)


def _one_hot(base: torch.Tensor, want: Want) -> torch.Tensor:
    if not base.dim() or not base.numel():
        return torch.ones_like(base)
    chosen = torch.randint(base.shape[-1], (*base.shape[:-1], 1), generator=want.generator)
    return torch.zeros_like(base).scatter_(-1, chosen, 1)


def _structure(numbers: torch.Tensor) -> tuple[Callable[[torch.Tensor], torch.Tensor], ...]:
    """What restores the structure of the example's rows (its last dimension) in other numbers."""
    if not bool(numbers.isfinite().all()):
        return ()
    whole = bool((numbers == numbers.round()).all()) and bool((numbers != numbers.reshape(-1)[:1]).any())
    if not numbers.dim() or numbers.shape[-1] < 2:
        return (torch.round,) if whole else ()
    rows = numbers.reshape(-1, numbers.shape[-1])[:_SAMPLE]
    ones = torch.ones(len(rows), dtype=rows.dtype)
    if bool((rows >= 0).all()) and torch.allclose(rows.sum(-1), ones, atol=1e-3):
        if whole:
            return (lambda made: torch.zeros_like(made).scatter_(-1, made.argmax(-1, keepdim=True), 1),)
        return (lambda made: made.abs() / made.abs().sum(-1, keepdim=True).clamp_min(1e-12),)
    if torch.allclose(rows.norm(dim=-1), ones, atol=1e-3):
        return (lambda made: made / made.norm(dim=-1, keepdim=True).clamp_min(1e-12),)
    restore: list[Callable[[torch.Tensor], torch.Tensor]] = [torch.round] if whole else []
    steps = rows.diff(dim=-1)
    if rows.shape[-1] > 2 and bool((steps >= 0).all()) and bool((steps > 0).any()):
        restore.append(lambda made: made.sort(-1).values)
    return tuple(restore)


@dataclass(frozen=True, eq=False)
class _Integers(Derived):
    """Whole numbers from 0 (or the smallest) to the example's largest; negative ones only if the example has them."""

    numbers: torch.Tensor
    largest: int
    negative: torch.Tensor
    ascending: bool

    @classmethod
    def of(cls, example: torch.Tensor) -> _Integers:
        numbers = as_numbers(example)
        flat = numbers.reshape(-1)
        largest = int(flat.max()) if len(flat) else 0
        steps = numbers.diff(dim=-1) if numbers.dim() and numbers.shape[-1] > 2 else numbers.new_zeros(0)
        ascending = steps.numel() > 0 and bool((steps >= 0).all()) and bool((steps > 0).any())
        return cls(numbers, largest, torch.unique(flat[flat < 0]), ascending)

    def span(self, example: Any) -> Span | None:
        del example
        smallest = int(self.negative[0]) if len(self.negative) else 0
        return Span(smallest, max(self.largest, smallest), integral=True)

    def _bounded(self, example: torch.Tensor, made: torch.Tensor, want: Want) -> torch.Tensor:
        if want.ceiling is not None:
            made = made.clamp(max=want.ceiling)
        return made.to(example.dtype)

    def random(self, example: Any, want: Want) -> Any:
        flat = self.numbers.reshape(-1)
        way = want.below(4)
        if not len(flat):
            made = torch.zeros(want.shape, dtype=torch.int64)
        elif way == 0 or self.largest < 0:
            made = _resampled(flat, want, want.shape)
        else:
            top = self.largest if want.ceiling is None else min(self.largest, max(want.ceiling, 0))
            if way == 1:
                top = want.below(top + 1)
            made = torch.randint(min(top, 2**63 - 2) + 1, want.shape, generator=want.generator)
            if len(self.negative):
                chance = float((flat < 0).double().mean())
                chosen = _rand(want, want.shape) < chance
                made = torch.where(chosen, _resampled(self.negative, want, want.shape), made)
        if self.ascending and want.below(4):
            made = made.sort(-1).values
        return self._bounded(example, made, want)

    def specials(self, example: Any) -> list[Special]:
        def made(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Want], Any]:
            return lambda want: self._bounded(example, change(refit(self.numbers, want.shape)), want)

        if not self.numbers.numel():
            return []
        found: list[Special] = [
            (f"all {self.largest}", made(lambda base: torch.full_like(base, self.largest))),
            ("last dimension reversed", made(lambda base: base.flip(-1) if base.dim() else base)),
            ("constant", made(lambda base: torch.full_like(base, int(self.numbers.reshape(-1)[0])))),
        ]
        if self.largest >= 0:
            found.insert(1, ("zeros", made(torch.zeros_like)))
            found.append(("counting up", made(lambda base: _count(base) % (self.largest + 1))))
        if len(self.negative):
            found.append(
                (f"all {int(self.negative[0])}", made(lambda base: torch.full_like(base, int(self.negative[0]))))
            )
        return found


def _count(base: torch.Tensor) -> torch.Tensor:
    return torch.arange(base.numel(), dtype=base.dtype).reshape(base.shape)
