"""Eager once more in double precision, operator by operator.

A dispatch mode, active around the user's own call, so that it sees what autograd, autocast and composite operators
come down to. Parameters are changed where an operator reads them: no second copy of them is held.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_torchexport.compare.operators import Traits, branch, computes, map_tensors, tensors_in, traits_of
from pytest_torchexport.compare.path import Path

if TYPE_CHECKING:
    from collections.abc import Iterable

_WIDE = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex32: torch.complex128,
}


class NoDouble(Exception):  # no error: an operator of the model has no meaning in double precision
    """Nothing can be said about this model in double precision; the message says why."""


class InDouble(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Computes in float64 what the model computes in float32 or a half type, casts within the model included.

    Every operator gets its low-precision tensors as doubles, and where it is told a dtype it is told a double one.
    What is written in place to a low-precision tensor is computed as double and rounded to the tensor's dtype.

    Args:
        swapped: parameters whose data are doubles while the mode is on, for Python code that compares dtypes.
    """

    supports_higher_order_operators = True

    def __init__(self, swapped: Iterable[torch.nn.Parameter] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._swapped = list(swapped)
        self._data: list[torch.Tensor] = []
        self.computed = Path()
        """The way that the run takes, to be compared with that of a `Watch`."""

    def __enter__(self) -> Self:
        """Swap the parameters' data, switch the mode on."""
        self._data = [parameter.data for parameter in self._swapped]
        try:
            for parameter, data in zip(self._swapped, self._data, strict=True):
                parameter.data = _widen(data)
        except BaseException:
            self._swap_back()
            raise
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        """Switch the mode off, give the parameters their data back."""
        try:
            super().__exit__(*error)  # type: ignore[no-untyped-call]
        finally:
            self._swap_back()

    def _swap_back(self) -> None:
        for parameter, data in zip(self._swapped, self._data, strict=True):
            parameter.data = data
        self._data = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator in double precision."""
        kwargs = kwargs or {}
        if func is torch.ops.higher_order.cond:
            # Without the swap of data: that is done once, for the whole run.
            super().__enter__()  # type: ignore[no-untyped-call]
            try:
                return branch(*args)
            finally:
                super().__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if not isinstance(func, torch._ops.OpOverload):
            msg = f"{func} has no form in double precision"
            raise NoDouble(msg)
        if func is torch.ops.aten.view.dtype:
            msg = "the model reads the bits of its numbers (Tensor.view(dtype))"
            raise NoDouble(msg)
        traits = traits_of(func)
        if computes(func):
            self.computed.step(func, args, kwargs)
        if traits.view:
            # A view of a low-precision tensor has to stay one: what is written to it belongs to the original.
            self.computed.see(func, args, kwargs, None)
            return func(*args, **kwargs)
        read, named = args, kwargs
        back: list[tuple[torch.Tensor, torch.Tensor]] = []
        args = tuple(self._convert(a, traits, name, back) for name, a in zip(traits.names, args, strict=False))
        kwargs = {name: self._convert(a, traits, name, back) for name, a in kwargs.items()}
        result = func(*args, **kwargs)
        self.computed.see(func, read, named, result)
        for original, wide in back:
            original.copy_(wide)

        def out(tensor: torch.Tensor) -> torch.Tensor:
            for original, wide in back:
                if tensor is wide:
                    return original
            return tensor if any(tensor is t for t in tensors_in([*args, *kwargs.values()])) else _widen(tensor)

        return map_tensors(result, out)

    @staticmethod
    def _convert(value: Any, traits: Traits, name: str, back: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
        if isinstance(value, torch.dtype):
            return _WIDE.get(value, value)
        if name not in traits.written:
            return map_tensors(value, _widen)

        def written(tensor: torch.Tensor) -> torch.Tensor:
            wide = _widen(tensor)
            if wide is not tensor:
                back.append((tensor, wide))
            return wide

        return map_tensors(value, written)


def _widen(tensor: torch.Tensor) -> torch.Tensor:
    wide = _WIDE.get(tensor.dtype)
    return tensor if wide is None else tensor.to(wide)
