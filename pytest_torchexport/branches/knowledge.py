"""What is known of the tensors of one run: which depend on the input, and the margins of boolean ones.

A boolean tensor has a margin for each element, positive where it is true, with a gradient to the input. Integer tensors
have a float64 *mirror* of the same value and shape that autograd can follow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pytest_torchexport.branches import formulas, tracked
from pytest_torchexport.branches.formulas import Choice, Count

if TYPE_CHECKING:
    from collections.abc import Callable


class Array(np.ndarray[Any, Any]):
    """An array that came from a tensor which depends on the input."""


@dataclass(frozen=True, eq=False)
class Info:
    """What is known of one tensor that depends on the input.

    Attributes:
        mirror: a differentiable tensor of the same shape and value, for a tensor that is not itself one.
        margins: of a boolean tensor.
        count: what it counts, if it does; margins of shape (*own shape, n).
        choice: the scores of which it is the index of the largest, of shape (*own shape, n).
        rows: its first dimension is the number of these conditions that hold.
        varies: its shape depends on the input's values.
    """

    mirror: torch.Tensor | None = None
    margins: torch.Tensor | None = None
    count: Count | None = None
    choice: Choice | None = None
    rows: Count | None = None
    varies: bool = False


class Knowledge:
    """What is known of tensors, by the tensor; and what follows from it for the results of torch's functions."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[torch.Tensor, Info]] = {}

    def info(self, value: object) -> Info | None:
        """What is known of a tensor; None if it does not depend on the input."""
        found = self._known.get(id(value))
        return found[1] if found is not None else None

    def know(self, tensor: torch.Tensor, info: Info) -> None:
        """Note that a tensor depends on the input."""
        self._known[id(tensor)] = (tensor, info)

    def real(self, value: Any) -> Any:
        """The operand as autograd sees it: differentiable if it depends on the input, else as it is."""
        if isinstance(value, torch.Tensor):
            info = self.info(value)
            if info is None or value.requires_grad:
                return value
            return value if info.mirror is None else info.mirror
        found = tracked.real_of(value)
        return tracked.plain(value) if found is None else found

    def margin(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The margins of a tensor as a condition, element by element."""
        info = self.info(tensor)
        if info is None:
            return None
        if info.margins is not None:
            return info.margins
        real = self.real(tensor)
        if not (isinstance(real, torch.Tensor) and real.requires_grad):
            return None
        return formulas.away(real)

    def _rows(self, name: str, args: Any) -> Count | None:
        """The conditions that decide how many rows a selection by a mask has."""
        if (name == "getitem" and isinstance(args[1], torch.Tensor) and args[1].dtype is torch.bool) or (
            name == "masked_select" and len(args) > 1
        ):
            margins = self.margin(args[1])
        elif name in ("getitem", "index_select") and len(args) > 1 and isinstance(args[-1], torch.Tensor):
            info = self.info(args[-1])  # rows picked by nonzero's indices are as many as those
            return info.rows if info is not None else None
        elif name in _KEEPS_ROWS and args:
            info = self.info(args[0])
            return info.rows if info is not None else None
        else:
            return None
        return Count(margins.reshape(-1)) if margins is not None else None

    def _varies(self, name: str, args: Any) -> bool:
        """Whether the output's shape depends on values."""
        if name in _SELECTS or (name == "where" and len(args) == 1):
            return True
        if name == "getitem" and isinstance(args[1], torch.Tensor):
            picked = self.info(args[1])
            return args[1].dtype is torch.bool or (picked is not None and picked.varies)
        info = self.info(args[0]) if args and isinstance(args[0], torch.Tensor) else None
        return (
            info is not None and info.varies and name not in ("sum", "mean", "any", "all", "amax", "amin", "max", "min")
        )

    def _derived(self, name: str, args: Any, kwargs: Any, out: torch.Tensor) -> Info:
        """What is known of an integer, boolean or otherwise not differentiable output."""
        if name in formulas.MIRRORED:
            return self._comparison(name, args, kwargs, out)
        if name in _LOGIC and out.dtype is torch.bool:
            return self._logic(_LOGIC[name], args)
        if name in ("isnan", "isinf", "isfinite", "isposinf", "isneginf"):
            return Info()
        if name in ("any", "all") and out.dtype is torch.bool:
            return self._reduced(name, args, kwargs)
        if name in ("argmax", "argmin"):
            return Info(choice=self._choice(name, args, kwargs, out))
        if name in ("nonzero", "where", "argwhere") and out.dtype is torch.int64 and args:
            margins = self.margin(args[0]) if isinstance(args[0], torch.Tensor) else None
            if len(args) == 1 and margins is not None:
                return Info(rows=Count(margins.reshape(-1)))
        if name == "isclose":
            return Info(margins=self._closeness(args, kwargs))
        return self._calculated(name, args, kwargs, out)

    def _calculated(self, name: str, args: Any, kwargs: Any, out: torch.Tensor) -> Info:
        """What follows from the function of the operands' mirrors, counts and rows."""
        if name in REARRANGES:
            return self._rearrangement(name, args, kwargs, out)
        count = self._count(name, args, kwargs)
        rows = self._rows(name, args)
        mirror = self._mirror(name, args, kwargs, out)
        margins = None
        if out.dtype is torch.bool and mirror is not None:
            margins = mirror - 0.5
        return Info(mirror=mirror, margins=margins, count=count, rows=rows)

    def _mirror(self, name: str, args: Any, kwargs: Any, out: torch.Tensor) -> torch.Tensor | None:
        if out.is_complex():
            return None
        try:
            found = self._mirrored_call(name, None, args, kwargs)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return None
        if not isinstance(found, torch.Tensor) or found.shape != out.shape or not found.requires_grad:
            return None
        if name in STEPS or (not out.is_floating_point() and name in _ROUNDS):
            found = out.detach().to(found.dtype) + (found - found.detach())
        return found

    def _mirrored_call(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """The same function of the operands' mirrors."""

        def one(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                info = self.info(value)
                if info is not None and info.mirror is None and info.margins is not None:
                    hard = value.detach().to(torch.float64)
                    return hard + (info.margins - info.margins.detach()).to(torch.float64)
                return self.real(value)
            if isinstance(value, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in value):
                return type(value)(one(v) for v in value) if type(value) in (list, tuple) else value
            return value

        if name in _CASTS:
            source = one(args[0])
            return source if source is not args[0] or source.requires_grad else None
        kwargs = {key: one(value) for key, value in kwargs.items() if key not in ("dtype", "out")}
        operands = [one(value) for value in args]
        function = getattr(torch.Tensor, name.rstrip("_"), None) or getattr(torch.Tensor, f"__{name}__", None)
        if not isinstance(operands[0], torch.Tensor) or function is None:
            function = func or getattr(torch, name)
        return function(*operands, **kwargs)

    def _comparison(self, name: str, args: Any, kwargs: Any, out: torch.Tensor) -> Info:
        one, two = args[0], args[1] if len(args) > 1 else kwargs.get("other")
        if not isinstance(one, torch.Tensor):
            one, two, name = two, one, formulas.MIRRORED[name]
        info = self.info(one)
        plain = tracked.plain(two)
        if isinstance(two, torch.Tensor) and self.info(two) is None and two.numel() == 1 and not two.is_complex():
            plain = two.item()
        if info is not None and isinstance(plain, (int, float)) and not tracked.is_tracked(two):
            special = self._counted(name, info, float(plain))
            if special is not None and special.shape == out.shape:
                return Info(margins=special)
        other = self.info(two)
        if other is not None and (other.count or other.choice) is not None and info is None and one.numel() == 1:
            return self._comparison(formulas.MIRRORED[name], (two, one), {}, out)
        a, b = self.real(one), self.real(two)
        if isinstance(a, torch.Tensor) and a.dtype is torch.bool:
            a = self._as_number(a)
        if isinstance(b, torch.Tensor) and b.dtype is torch.bool:
            b = self._as_number(b)
        if isinstance(b, torch.Tensor) and b.device != a.device:
            b = b.to(a.device)
        margins = formulas.margin(name, a - b)
        return Info(margins=margins if margins.requires_grad else None)

    def _as_number(self, value: torch.Tensor) -> torch.Tensor:
        margins = self.margin(value)
        hard = value.detach().to(torch.float32)
        return hard if margins is None else hard + (margins - margins.detach())

    def _counted(self, name: str, info: Info, limit: float) -> torch.Tensor | None:
        """The margins of comparing a count, or the index of the largest score, with a plain number."""
        if info.choice is not None and name in ("eq", "ne") and limit.is_integer():
            found = formulas.chosen(info.choice.scores, int(limit))
            return found if found is None or name == "eq" else -found
        count = info.count
        if count is None:
            return None

        def exceed(*, strictly: bool) -> torch.Tensor | None:
            wanted = limit / count.unit
            return formulas.at_least(count.margins, math.floor(wanted) + 1 if strictly else math.ceil(wanted))

        return formulas.counted(name, exceed)

    def _logic(self, name: str, args: Any) -> Info:
        margins = [self._condition(arg) for arg in args]
        if name == "not":
            return Info(margins=None if margins[0] is None else -margins[0])
        one, two = margins[0], margins[1] if len(margins) > 1 else None
        if one is None or two is None:
            return Info()
        if name == "xor":
            return Info(margins=torch.maximum(torch.minimum(one, -two), torch.minimum(-one, two)))
        return Info(margins=(torch.minimum if name == "and" else torch.maximum)(one, two))

    def _condition(self, value: Any) -> torch.Tensor | None:
        """The margins of an operand of `and`, `or`, `not`; constants are as far from changing as a number can be."""
        if isinstance(value, torch.Tensor):
            found = self.margin(value)
            if found is not None:
                return found
            held = value.detach().to(torch.bool)
            return torch.where(held, math.inf, -math.inf)
        return torch.tensor(math.inf if value else -math.inf)

    def _reduced(self, name: str, args: Any, kwargs: Any) -> Info:
        margins = self.margin(args[0])
        if margins is None or not margins.numel():
            return Info()
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        keepdim = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
        if dim is None:
            flat = margins.reshape(-1)
        elif isinstance(dim, int):
            flat = margins.movedim(dim, -1)
        else:
            kept = [i for i in range(margins.dim()) if i not in {d % margins.dim() for d in dim}]
            flat = margins.permute(*kept, *(d % margins.dim() for d in dim)).flatten(len(kept))
        found = formulas.at_least(flat, 1 if name == "any" else flat.shape[-1])
        if found is None or not keepdim or dim is None:
            return Info(margins=found)
        for one in sorted(d % margins.dim() for d in ([dim] if isinstance(dim, int) else dim)):
            found = found.unsqueeze(one)
        return Info(margins=found)

    def _choice(self, name: str, args: Any, kwargs: Any, out: torch.Tensor) -> Choice | None:
        scores = self.real(args[0])
        if not (isinstance(scores, torch.Tensor) and scores.requires_grad):
            return None
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if not isinstance(dim, int | None):
            return None
        scores = -scores if name == "argmin" else scores
        made = scores.reshape(-1) if dim is None else scores.movedim(dim, -1)
        if made.shape[:-1] != out.shape and out.shape[-1:] == (1,):
            made = made.unsqueeze(-2)  # keepdim
        return Choice(made) if made.shape[:-1] == out.shape else None

    def _count(self, name: str, args: Any, kwargs: Any) -> Count | None:
        if name not in ("sum", "mean", "count_nonzero") or not args or not isinstance(args[0], torch.Tensor):
            return self._kept_count(name, args)
        info = self.info(args[0])
        margins = info.margins if info is not None else None
        if margins is None and info is not None and name == "count_nonzero":
            margins = self.margin(args[0])
        if margins is None:
            return None
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        keepdim = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
        if dim is None or (isinstance(dim, (tuple, list)) and len(dim) == margins.dim()):
            flat = margins.reshape(-1)
        elif isinstance(dim, int):
            flat = margins.movedim(dim, -1)
            flat = flat.unsqueeze(dim if dim >= 0 else dim - 1) if keepdim else flat
        else:
            return None
        return Count(flat, 1.0 if name != "mean" else 1.0 / max(flat.shape[-1], 1))

    def _kept_count(self, name: str, args: Any) -> Count | None:
        """A count that is only scaled, or cast."""
        if not args or not isinstance(args[0], torch.Tensor) or (info := self.info(args[0])) is None:
            return None
        if info.count is None:
            return None
        if name in ("to", "float", "double", "int", "long", "type", "type_as"):
            return info.count
        other = tracked.plain(args[1]) if len(args) > 1 else None
        if name in ("div", "true_divide", "truediv", "mul") and isinstance(other, (int, float)) and other > 0:
            return Count(info.count.margins, info.count.unit * (other if name == "mul" else 1 / other))
        return None

    def _rearrangement(self, name: str, args: Any, kwargs: Any, out: torch.Tensor) -> Info:
        """A view, an index, a concatenation: margins, mirrors, counts and choices move with the elements."""
        info = self.info(args[0]) if isinstance(args[0], torch.Tensor) else None
        mirror = self._mirror(name, args, kwargs, out)
        if info is None:
            if name in ("cat", "stack") and out.dtype is torch.bool:
                margins = [self._condition(part) for part in args[0]]
                joined = getattr(torch, name)([m for m in margins if m is not None], *args[1:], **kwargs)
                return Info(mirror=mirror, margins=joined)
            return Info(mirror=mirror, rows=self._rows(name, args))
        function: Callable[..., torch.Tensor] = getattr(torch.Tensor, name, None) or getattr(
            torch.Tensor, f"__{name}__"
        )

        def move(values: torch.Tensor) -> torch.Tensor:
            return function(values, *args[1:], **kwargs)

        moved = rearranged(info, move)
        rows = self._rows(name, args)
        return replace(moved, mirror=mirror if mirror is not None else moved.mirror, rows=rows)

    def _decided(self, name: str, args: Any, kwargs: Any) -> torch.Tensor | None:
        """The margin of a function that returns a Python truth value."""
        if name == "is_nonzero":
            margin = self.margin(args[0])
            return None if margin is None else formulas.as_real(margin)
        try:
            if name == "allclose":
                close = self._closeness(args, kwargs).reshape(-1)
            else:
                close = -formulas.away(self.real(args[0]) - self.real(args[1])).reshape(-1)
            margin = formulas.at_least(close, close.numel())
            return None if margin is None else formulas.as_real(margin)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None

    def _closeness(self, args: Any, kwargs: Any) -> torch.Tensor:
        one, two = self.real(args[0]), self.real(args[1])
        rtol = kwargs.get("rtol", args[2] if len(args) > 2 else 1e-5)
        atol = kwargs.get("atol", args[3] if len(args) > 3 else 1e-8)
        margins: torch.Tensor = atol + rtol * two.abs() - formulas.away(one - two)
        return margins

    def _first_mirrored(self, name: str, func: Any, args: Any, kwargs: Any, part: torch.Tensor) -> Info:
        with torch.enable_grad():
            try:
                found = self._mirrored_call(name, func, args, kwargs)
            except (RuntimeError, TypeError, ValueError, IndexError):
                return Info()
        return Info(mirror=found[0]) if found is not None and found[0].shape == part.shape else Info()


def rearranged(info: Info, move: Callable[[torch.Tensor], torch.Tensor]) -> Info:
    """The info with everything in it moved as the tensor's own elements are."""

    def slices(values: torch.Tensor) -> torch.Tensor | None:
        # Each slice along the last axis has the tensor's own shape; a large class count is not worth it.
        if values.shape[-1] > 64:
            return None
        return torch.stack([move(part) for part in values.unbind(-1)], dim=-1)

    def attempt(function: Callable[[torch.Tensor], torch.Tensor | None], values: torch.Tensor | None) -> Any:
        if values is None:
            return None
        try:
            return function(values)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None

    count = attempt(slices, info.count.margins if info.count else None)
    choice = attempt(slices, info.choice.scores if info.choice else None)
    return Info(
        mirror=attempt(move, info.mirror),
        margins=attempt(move, info.margins),
        count=Count(count, info.count.unit) if count is not None and info.count else None,
        choice=Choice(choice) if choice is not None else None,
    )


_LOGIC = {
    **dict.fromkeys(("and", "logical_and", "bitwise_and", "iand", "rand"), "and"),
    **dict.fromkeys(("or", "logical_or", "bitwise_or", "ior", "ror"), "or"),
    **dict.fromkeys(("xor", "logical_xor", "bitwise_xor", "ixor", "rxor"), "xor"),
    **dict.fromkeys(("invert", "logical_not", "bitwise_not"), "not"),
}


_CASTS = frozenset(
    (
        *("to", "type", "type_as", "bool", "byte", "short", "int", "long"),
        *("half", "bfloat16", "float", "double"),
    )
)


_KEEPS_ROWS = frozenset(("squeeze", "to", "clone", "contiguous", "flatten", "float", "long", "cpu", "view", "reshape"))


_SELECTS = frozenset(("nonzero", "argwhere", "unique", "unique_consecutive", "masked_select", "repeat_interleave"))


REARRANGES = frozenset(
    (
        *("getitem", "view", "reshape", "squeeze", "unsqueeze", "flatten", "select", "narrow", "expand", "permute"),
        *("transpose", "t", "contiguous", "clone", "detach", "cpu", "cuda", "repeat", "index_select", "cat", "stack"),
        *("chunk", "split", "unbind", "roll", "flip", "movedim", "expand_as", "view_as", "reshape_as", "T", "mT"),
        *("unflatten", "swapaxes", "swapdims", "diagonal", "take", "masked_select"),
    )
)


STEPS = frozenset(("round", "floor", "ceil", "trunc", "sign", "floor_divide"))


_ROUNDS = frozenset(("to", "type", "long", "int", "short", "byte", "type_as", "div", "floor_divide"))
