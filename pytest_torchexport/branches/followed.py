"""What an instrumented run saw: decisions with their margins, numbers, and the gradients of both."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    import types
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from pytest_torchexport.branches.formulas import Origin
    from pytest_torchexport.branches.margins import Lookup
    from pytest_torchexport.branches.sites import Site
    from pytest_torchexport.subject.call import Call
    from pytest_torchexport.subject.run import Record


class Runner(Protocol):
    """Runs eager on a sequence of calls from its starting state, and puts that state back."""

    def __call__(
        self,
        calls: tuple[Call, ...],
        *,
        program: Callable[..., Any] | None = None,
        mode: AbstractContextManager[Any] | None = None,
    ) -> Record:
        """What it did; `program` is called in the model's place, `mode` is entered around each call."""


@dataclass(frozen=True, eq=False)
class Test:
    """One decision as it was taken.

    Attributes:
        site: where.
        outcome: which way.
        margin: 0-d float64, positive where the condition holds; None without a gradient.
        size: what it depends on are sizes alone.
        loop: the `while` loop whose test it is part of.
    """

    site: Site
    outcome: bool
    margin: torch.Tensor | None
    size: bool
    loop: Site | None = None

    @property
    def level(self) -> float:
        """The margin as a number; infinite where there is none."""
        return math.inf if self.margin is None else float(self.margin.detach())


@dataclass(frozen=True, eq=False)
class Number:
    """One number taken out of a tensor: where, its value, and where that comes from."""

    site: Site
    value: Any
    origin: Origin | None
    size: bool


@dataclass
class Followed:
    """What an instrumented run saw.

    Attributes:
        tests: the conditions that depend on the input, in the order in which they were decided.
        path: every condition, also those that depend on nothing but the code, with its outcome.
        numbers: the numbers taken out of tensors that depend on the input.
        leaves: by call and path, the tensors with respect to which margins have gradients.
        lookups: tables that were read by index.
        record: what the run gave.
        loops: iterables of `for` loops that depend on the input.
        codes: code of the user's functions.
        table_gradients: what the last gradient that was asked for is with respect to the tables' outputs.
    """

    tests: list[Test] = field(default_factory=list)
    path: list[tuple[Site, bool]] = field(default_factory=list)
    numbers: list[Number] = field(default_factory=list)
    leaves: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict)
    lookups: list[Lookup] = field(default_factory=list)
    loops: list[Site] = field(default_factory=list)
    codes: list[types.CodeType] = field(default_factory=list)
    record: Record | None = None
    table_gradients: list[tuple[Lookup, torch.Tensor]] = field(default_factory=list)

    def test(self, site: Site, nth: int = 0) -> Test | None:
        """The n-th decision at the site."""
        found = [test for test in self.tests if test.site == site]
        return found[nth] if nth < len(found) else None

    def gradient(self, of: torch.Tensor) -> dict[tuple[int, str], torch.Tensor]:
        """The gradient of a margin (or number) with respect to each leaf that it depends on."""
        self.table_gradients = []
        if not of.requires_grad or not self.leaves:
            return {}
        tables = [lookup.output for lookup in self.lookups]
        wanted = [*self.leaves.values(), *tables]
        try:
            found: tuple[torch.Tensor | None, ...] = torch.autograd.grad(
                of, wanted, retain_graph=True, allow_unused=True
            )
        except RuntimeError:  # a step without a derivative
            return {}
        grads = {key: g for key, g in zip(self.leaves, found, strict=False) if g is not None}
        self.table_gradients = [
            (lookup, g) for lookup, g in zip(self.lookups, found[len(self.leaves) :], strict=True) if g is not None
        ]
        return grads
