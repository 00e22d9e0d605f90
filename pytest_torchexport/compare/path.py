"""The way that a run takes through a model, by which runs on different branches are told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_torchexport.compare.operators import branch, computes, tensors_in
from pytest_torchexport.compare.ties import Choices

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


_DECIDING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Path:
    """The way that a run takes through the model.

    Its operators with their shapes and Python arguments, the flags and whole numbers that it takes out of tensors, and
    the parameters that it reads.

    Two runs of one model on one input take the same way unless a number taken out of a tensor, or a condition on one,
    came out differently. Such a run says nothing about rounding.
    """

    def __init__(self) -> None:
        self._digest = 0
        self._read: set[int] = set()
        self._takes_floats = False
        self.numbers: Mapping[int, int] = {}
        """Numbers of the model's parameters, by their ids: an equal model, of another item of a test, has others."""
        self.decides = False
        """Whether values of tensors decide on Python numbers or on sizes."""

    def step(self, func: Any, args: Iterable[Any], kwargs: dict[str, Any]) -> None:
        """Go one operator further."""
        given = [*args, *kwargs.values()]
        # What follows from a float out of a tensor is off by rounding, as that is; other floats stand in the code.
        shown = _shown(given, floats=not self._takes_floats)
        self._digest = hash((self._digest, str(func), shown))

    def see(self, func: Any, args: Iterable[Any], kwargs: dict[str, Any], result: Any) -> None:
        """Note which parameters an operator reads, and what it takes out of tensors."""
        self._read |= {self.numbers.get(id(one), id(one)) for one in _parameters([*args, *kwargs.values()])}
        if _DECIDING.isdisjoint(getattr(func, "tags", ())):
            return
        self.decides = True
        if isinstance(result, float):
            self._takes_floats = True
        elif isinstance(result, (bool, int)):
            self._digest = hash((self._digest, result))

    def __eq__(self, other: object) -> bool:
        """Whether the way is the same so far."""
        return isinstance(other, Path) and (self._digest, self._read) == (other._digest, other._read)

    def __hash__(self) -> int:
        """A way that goes on is another one: only finished ones are keys."""
        return self._digest


def _shown(value: Any, *, floats: bool) -> Any:
    """An operator's argument without what noise may change: numbers to three digits, tensors as shapes."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, (list, tuple)):
        return tuple(_shown(part, floats=floats) for part in value)
    if isinstance(value, float):
        return f"{value:.2e}" if floats else None
    return value if isinstance(value, (bool, int, str)) else None


def _parameters(value: Any) -> Iterator[torch.nn.Parameter]:
    if isinstance(value, torch.nn.Parameter):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _parameters(part)


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Changes nothing, and notes the way that the run takes."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.path = Path()
        self.computed = Path()
        """The same without operators that only move or cast values, which a run in double precision does not share."""
        self.choices = Choices()
        """What operators chose among."""
        self.coarsest = 0.0
        """The largest eps among the dtypes that were computed in."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator."""
        kwargs = kwargs or {}
        if func is torch.ops.higher_order.cond:
            with self:
                return branch(*args)
        self.path.step(func, args, kwargs)
        result = func(*args, **kwargs)
        self.choices.see(func, args, kwargs, result)
        self.path.see(func, args, kwargs, result)
        self.computed.see(func, args, kwargs, result)
        if computes(func):
            self.computed.step(func, args, kwargs)
            for tensor in tensors_in(result):
                if tensor.is_floating_point():
                    self.coarsest = max(self.coarsest, torch.finfo(tensor.dtype).eps)
        return result
