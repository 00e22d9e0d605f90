"""Follows torch's functions in an instrumented run, and what leaves the tensors as a number of Python's.

The knowledge of tensors is kept beside them while the run lasts, and the run goes on with gradients where the user's
code switched them off (`detach`, `no_grad`): they are wanted for the search, not for training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from pytest_torchexport.branches import formulas, tracked
from pytest_torchexport.branches.formulas import Choice, Count, Origin
from pytest_torchexport.branches.knowledge import REARRANGES, STEPS, Array, Info, Knowledge, rearranged
from pytest_torchexport.branches.observation import Endless
from pytest_torchexport.branches.tracked import TrackedBool, TrackedFloat, TrackedInt

_LISTED = 4096
"""Elements up to which a tensor that becomes a list is tracked element by element."""


@dataclass(eq=False)
class Lookup:
    """A table that was read by index: `output = weight[indices]`, where the indices lead back to an argument."""

    indices: torch.Tensor
    mirror: torch.Tensor
    weight: torch.Tensor
    output: torch.Tensor


Note = Callable[[Any], Any]
"""Told of each number that is taken out of a tensor; returns what the code gets."""


class MarginMode(Knowledge, TorchFunctionMode):
    """Follows all torch functions of one run.

    Args:
        state: ids of the tensors of the model's state: written to without a graph, which would outlive the run.
        note: told of each number that is taken out of a tensor that depends on the input.
        sizes: whether sizes can vary.

    Attributes:
        limit: how many of torch's functions the run may call; `Endless` is raised beyond.
        lookups: tables that were read by index.
    """

    def __init__(self, state: set[int], note: Note, *, sizes: bool) -> None:
        Knowledge.__init__(self)
        TorchFunctionMode.__init__(self)
        self.state, self.note, self.sizes = state, note, sizes
        self.limit = math.inf
        self.lookups: list[Lookup] = []

    # --- the interception ---------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.limit -= 1
        if self.limit < 0:
            raise Endless
        kwargs = kwargs or {}
        tensors = list(_tensors(args, kwargs))
        known = any(id(t) in self._known for t in tensors)
        if not known and not _has_tracked(args) and not _has_tracked(kwargs.values()):
            return func(*args, **kwargs)
        name = _name(func)
        if name in _TAKES_NUMBER and known:
            return self._take(name, func, args, kwargs)
        if name in ("detach", "data", "detach_") and args[0].requires_grad:
            with torch.enable_grad():
                kept = args[0].view_as(args[0])
            self.know(kept, self.info(args[0]) or Info())
            return kept
        if name in ("requires_grad_", "retain_grad"):
            return args[0]
        if name in ("numpy", "array"):
            return func(args[0].detach(), *args[1:], **kwargs).view(Array)
        args, kwargs = tuple(map(tracked.without_bools, args)), {k: tracked.without_bools(v) for k, v in kwargs.items()}
        target = _written(func, name, args, kwargs)
        if target is not None and id(target) in self.state:
            with torch.no_grad():
                out = func(*args, **kwargs)
            self.know(target, Info())
            return out
        out = self._run(func, args, kwargs)
        return self._describe(name, func, args, kwargs, out, target)

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        try:
            with torch.enable_grad():
                return func(*args, **kwargs)
        except Exception:  # noqa: BLE001 what eager does without a graph need not be possible with one
            with torch.no_grad():
                return func(*_cut_off(args), **{key: _cut_off(value) for key, value in kwargs.items()})

    # --- numbers that leave the tensors -------------------------------------------------------------------------

    def _take(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        tensor = args[0]
        value = func(*(a.detach() if isinstance(a, torch.Tensor) else a for a in args), **kwargs)
        if name in ("shape", "size", "__len__", "numel", "nelement"):
            return self._size(tensor, name, args, kwargs, value)
        if name == "__bool__":
            return value  # a jump outside of the user's instrumented code: C code, or torch's own
        if name == "tolist":
            return self._list(tensor, value)
        return self.note(self.number(tensor, value))

    def number(self, tensor: torch.Tensor, value: Any) -> Any:
        """A Python number from a tensor of one element, tracked."""
        info = self.info(tensor) or Info()
        if isinstance(value, bool):
            with torch.enable_grad():
                margin = self.margin(tensor)
                return TrackedBool(value, None if margin is None else formulas.as_real(margin))
        with torch.enable_grad():
            real = self.real(tensor)
            differentiable = isinstance(real, torch.Tensor) and real.requires_grad and not real.is_complex()
            count = Count(info.count.margins.reshape(-1), info.count.unit) if info.count is not None else None
            choice = Choice(info.choice.scores.reshape(-1)) if info.choice is not None else None
            origin = Origin(formulas.as_real(real) if differentiable else None, count, choice)
        if isinstance(value, int):
            return TrackedInt(value, origin)
        return TrackedFloat(value, origin) if isinstance(value, float) else value

    def _list(self, tensor: torch.Tensor, value: Any) -> Any:
        if tensor.numel() > _LISTED:
            return value
        with torch.enable_grad():
            parts = [self._row(tensor, index) for index in np.ndindex(*tensor.shape)]
        made = iter([self.number(part, part.item()) for part in parts])

        def fill(nested: Any) -> Any:
            return [fill(one) for one in nested] if isinstance(nested, list) else self.note(next(made))

        return fill(value)

    def _row(self, tensor: torch.Tensor, index: Any) -> torch.Tensor:
        part = tensor[index]
        self.know(part, rearranged(self.info(tensor) or Info(), lambda t: t[index]))
        return part

    def _size(self, tensor: torch.Tensor, name: str, args: Any, kwargs: Any, value: Any) -> Any:
        info = self.info(tensor) or Info()
        rows = Origin() if info.varies else None
        if info.rows is not None:
            margins = info.rows.margins.reshape(-1)
            rows = Origin(_counted(margins), Count(margins))
        fixed = Origin(size=True)
        if not self.sizes and rows is None:
            return value
        if name == "__len__":
            return TrackedInt(value, fixed if rows is None else rows)
        if name in ("numel", "nelement"):
            each = math.prod(tensor.shape[1:])
            if rows is not None and rows.count is not None and each > 1:
                rows = Origin(None if rows.real is None else rows.real * each, Count(rows.count.margins, float(each)))
            return TrackedInt(value, fixed if rows is None else rows)
        if isinstance(value, torch.Size):
            first = rows if rows is not None else fixed
            return torch.Size([TrackedInt(n, first if i == 0 else fixed) for i, n in enumerate(value)])
        dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        at_first = isinstance(dim, int) and dim % max(tensor.dim(), 1) == 0
        return TrackedInt(value, rows if rows is not None and at_first else fixed)

    # --- what is known of results -------------------------------------------------------------------------------

    def _describe(self, name: str, func: Any, args: Any, kwargs: Any, out: Any, target: Any) -> Any:
        """Note what is known of the output; returns it, or a differentiable tensor of the same value in its place."""
        if target is not None:
            self.know(
                target,
                Info() if name == "setitem" or target.requires_grad else self._derived(name, args, kwargs, target),
            )
            if name == "setitem":
                return out
            if isinstance(out, torch.Tensor) and out is target:
                return out
        if isinstance(out, bool) and name in ("equal", "allclose", "is_nonzero"):
            with torch.enable_grad():
                margin = self._decided(name, args, kwargs)
            return TrackedBool(out, margin)
        if isinstance(out, torch.Tensor):
            return self._described(name, args, kwargs, out)
        if isinstance(out, (tuple, list)) and any(isinstance(o, torch.Tensor) for o in out):
            return self._parts(name, func, args, kwargs, out)
        return out

    def _described(self, name: str, args: Any, kwargs: Any, out: torch.Tensor) -> torch.Tensor:
        """The same for an output that is a single tensor."""
        if name == "embedding":
            out = self._looked_up(args, kwargs, out)
        if out.requires_grad and (out.is_floating_point() or out.is_complex()):
            if name in STEPS and args and isinstance(args[0], torch.Tensor):
                with torch.enable_grad():
                    like = self.real(args[0])
                    if name == "floor_divide":
                        like = like / self.real(args[1])
                    out = out.detach() + (like - like.detach())
            self.know(out, Info(rows=self._rows(name, args), varies=self._varies(name, args)))
            return out
        with torch.enable_grad():
            try:
                info = self._derived(name, args, kwargs, out)
            except (RuntimeError, TypeError, ValueError, IndexError):
                info = Info()  # an operand of an unusual kind: that it depends on the input is known all the same
        if out.is_floating_point() and info.mirror is not None:
            same = info.mirror.to(out.dtype)
            if torch.equal(same, out) or torch.allclose(same, out, equal_nan=True):
                out, info = same, replace(info, mirror=None)
        if self._varies(name, args):
            info = replace(info, varies=True)
        self.know(out, info)
        return out

    def _looked_up(self, args: Any, kwargs: Any, out: torch.Tensor) -> torch.Tensor:
        indices = kwargs.get("input", args[0] if args else None)
        weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
        info = self.info(indices)
        if info is None or info.mirror is None or not isinstance(weight, torch.Tensor):
            return out
        out = out.detach().requires_grad_()
        self.lookups.append(Lookup(indices, info.mirror, weight.detach(), out))
        return out

    def _parts(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
        """The same for results of several tensors: values and indices of `max`, the parts of `split`."""
        with torch.enable_grad():
            try:
                mirrored = self._mirrored_call(name, func, args, kwargs) if name in REARRANGES else None
            except (RuntimeError, TypeError, ValueError, IndexError):
                mirrored = None
        for index, part in enumerate(out):
            if not isinstance(part, torch.Tensor):
                continue
            info = Info()
            if name in ("nonzero", "where") and isinstance(args[0], torch.Tensor):
                margins = self.margin(args[0])
                info = Info(rows=None if margins is None else Count(margins.reshape(-1)), varies=True)
            elif name in ("max", "min") and index == 1 and args:
                info = Info(choice=self._choice("argmax" if name != "min" else "argmin", args, kwargs, part))
            elif mirrored is not None:
                info = Info(mirror=mirrored[index]) if not part.requires_grad else Info()
            elif index == 0 and name in ("max", "min", "median", "sort", "topk") and not part.requires_grad:
                info = self._first_mirrored(name, func, args, kwargs, part)
            self.know(part, replace(info, varies=True) if self._varies(name, args) else info)
        return out


def _counted(margins: torch.Tensor) -> torch.Tensor:
    """The number of conditions that hold, with a slope in each of them."""
    hard = (margins.detach() > 0).to(torch.float64)
    return (hard + (margins - margins.detach()).to(torch.float64)).sum().cpu()


def _name(func: Any) -> str:
    """The name of a torch function without what distinguishes its forms: `__gt__`, `gt`, `greater`."""
    name: str = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):
        return str(getattr(getattr(func, "__self__", None), "__name__", name))
    if name in _ALIASES:
        return _ALIASES[name]
    return name.strip("_") if name.startswith("__") and name not in _TAKES_NUMBER else name


_ALIASES = {
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "not_equal": "ne",
    "__rsub__": "rsub",
    "true_divide": "div",
    "divide": "div",
    "__truediv__": "div",
    "__floordiv__": "floor_divide",
    "fix": "trunc",
}
_TAKES_NUMBER = frozenset(
    (
        *("item", "tolist", "shape", "size", "numel", "nelement"),
        *("__float__", "__int__", "__index__", "__bool__", "__len__"),
    )
)


def _written(func: Any, name: str, args: Any, kwargs: Any) -> torch.Tensor | None:
    """The tensor that a function writes to, if it does."""
    if kwargs.get("out") is not None:
        return kwargs["out"] if isinstance(kwargs["out"], torch.Tensor) else None
    own = getattr(func, "__name__", "")
    in_place = name == "setitem" or (own.endswith("_") and not own.endswith("__")) or own.startswith("__i")
    if in_place and own not in ("__index__", "__int__", "__invert__") and args and isinstance(args[0], torch.Tensor):
        return args[0]
    return None


def _tensors(args: Iterable[Any], kwargs: dict[str, Any]) -> Iterable[torch.Tensor]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            for one in value:
                if isinstance(one, torch.Tensor):
                    yield one
                elif isinstance(one, (list, tuple)):
                    yield from (part for part in one if isinstance(part, torch.Tensor))


def _has_tracked(values: Iterable[Any]) -> bool:
    return any(
        tracked.is_tracked(value) or (isinstance(value, (list, tuple)) and any(map(tracked.is_tracked, value)))
        for value in values
    )


def _cut_off(value: Any) -> Any:
    """The value without its graph; tensors share their memory with those given."""
    if isinstance(value, torch.Tensor):
        return value.detach() if value.requires_grad else value
    return type(value)(_cut_off(one) for one in value) if type(value) in (list, tuple) else value
