"""Domains given as code, a function or a Hypothesis strategy: they yield the value of an argument as a whole."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pytest_torchexport.errors import UsageError
from pytest_torchexport.inputs.base import Domain, is_int
from pytest_torchexport.inputs.domain import ACCEPTED, Optional, same_kind
from pytest_torchexport.inputs.values import Want, can_vary
from pytest_torchexport.subject import containers

if TYPE_CHECKING:
    from collections.abc import Callable

_BATCH = 32
"""Values drawn from a strategy at a time: the first few that Hypothesis gives are always its simplest ones."""


def as_domain(path: str, declared: Any, seed: int) -> Domain:
    """The domain that a user's declaration stands for.

    Raises:
        UsageError: it is none of the accepted forms.
    """
    if isinstance(declared, Optional):
        return declared if declared.inner is None else Optional(as_domain(path, declared.inner, seed))
    if isinstance(declared, Domain):
        return declared
    if _is_strategy(declared):
        return _FromStrategy(path, declared, seed)
    if callable(declared) and not isinstance(declared, type):
        return _FromFunction(path, declared)
    hint = ""
    if isinstance(declared, (list, tuple, range, set)):
        hint = " For a choice among values write sampled_from([...])."
    elif isinstance(declared, type):
        hint = f" Pass an instance or a function, not the class {declared.__name__}."
    elif isinstance(declared, (int, float, str, torch.Tensor)):
        hint = f" For one fixed value write sampled_from([{containers.describe(declared, 40)}])."
    msg = f"inputs[{path!r}] = {containers.describe(declared, 60)} is not a domain.{hint} Accepted: {ACCEPTED}."
    raise UsageError(msg)


def _is_strategy(declared: object) -> bool:
    """Whether it is a Hypothesis strategy; nobody can hold one without having imported Hypothesis."""
    strategies = sys.modules.get("hypothesis.strategies")
    return strategies is not None and isinstance(declared, strategies.SearchStrategy)


def fit(path: str, source: str, value: Any, example: Any) -> Any:
    """The value as it can stand in the example's place: tensors on its device, arrays as tensors.

    Raises:
        UsageError: it is another kind of value than the example's, or a tensor of another dtype.
    """
    if isinstance(value, np.ndarray) and isinstance(example, torch.Tensor):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(example, torch.Tensor):
        if not isinstance(value, torch.Tensor):
            msg = f"inputs[{path!r}]: {source} gave {containers.describe(value, 60)}, the example's {path} is a tensor"
            raise UsageError(msg)
        if not same_kind(value, example):
            msg = (
                f"inputs[{path!r}]: {source} gave a {value.dtype} tensor, the example's {path} is {example.dtype}; "
                f"draw with dtype={example.dtype}"
            )
            raise UsageError(msg)
        return value.detach().to(example.device, example.dtype).requires_grad_(example.requires_grad)
    same = type(value) is type(example) or (isinstance(example, float) and is_int(value))
    if example is not None and not same:
        msg = (
            f"inputs[{path!r}]: {source} gave {containers.describe(value, 60)}, "
            f"the example's {path} is of type {type(example).__name__}"
        )
        raise UsageError(msg)
    held = [leaf for _, leaf in containers.tensors(example)]
    return containers.place(value, held[0].device) if held else value


@dataclass(frozen=True, eq=False)
class _FromFunction(Domain):
    path: str
    function: Callable[[torch.Generator], Any]
    whole = True

    def __str__(self) -> str:
        return getattr(self.function, "__qualname__", type(self.function).__name__)

    def mismatch(self, example: Any) -> str | None:
        del example
        return None

    def random(self, example: Any, want: Want) -> Any:
        del example
        # A function that draws from torch's global generator instead of the one it is given is repeatable as well.
        state = torch.default_generator.get_state()
        torch.default_generator.manual_seed(want.below(2**62))
        try:
            return self.function(want.generator)
        except Exception as error:
            msg = f"inputs[{self.path!r}]: the function {self} raised {type(error).__name__}: {error}"
            raise UsageError(msg) from error
        finally:
            torch.default_generator.set_state(state)


class _FromStrategy(Domain):
    whole = True

    def __init__(self, path: str, strategy: Any, seed: int) -> None:
        self.path = path
        self.strategy = strategy
        self._batches = map(self._draw, count(seed))
        self._ready: list[Any] = []

    def __str__(self) -> str:
        return repr(self.strategy)

    def mismatch(self, example: Any) -> str | None:
        del example
        return None

    def _draw(self, seed: int) -> list[Any]:
        """A batch of values, through Hypothesis' public way to run a test: one that never fails and keeps them."""
        import hypothesis  # noqa: PLC0415 - optional; who passes a strategy has it

        drawn: list[Any] = []

        @hypothesis.seed(seed)
        @hypothesis.settings(
            database=None,
            max_examples=_BATCH,
            phases=[hypothesis.Phase.generate],
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(self.strategy)
        def collect(value: Any) -> None:
            drawn.append(value)

        try:
            collect()
        except hypothesis.errors.Unsatisfiable as error:
            msg = f"inputs[{self.path!r}]: the strategy {self} has no value: {error}"
            raise UsageError(msg) from error
        return drawn

    def random(self, example: Any, want: Want) -> Any:
        if not self._ready:
            self._ready = next(self._batches)
        if can_vary(example) and all(isinstance(value, (bool, int, float, complex)) for value in self._ready):
            return self._elements(example, want)
        return self._ready.pop()

    def _elements(self, example: torch.Tensor, want: Want) -> torch.Tensor:
        """A strategy for numbers describes the elements of a tensor, as `floats` and `integers` do."""
        numbers, self._ready = torch.tensor(self._ready), []
        if not torch.can_cast(numbers.dtype, example.dtype):
            msg = (
                f"inputs[{self.path!r}]: the strategy {self} gives {numbers.dtype} numbers, "
                f"the example's {self.path} is a {example.dtype} tensor; use a strategy for numbers of that kind"
            )
            raise UsageError(msg)
        numbers = numbers.to(example.dtype)
        shape = tuple(example.shape) if example.layout is torch.strided else want.shape
        return numbers[torch.randint(len(numbers), shape, generator=want.generator)].to(example.device)
