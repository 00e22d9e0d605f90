"""Which equal candidates an operator may choose among: torch promises no order for them, and runtimes choose others."""

from __future__ import annotations

from typing import Any

import torch

_CHOOSE = ("topk", "sort", "argsort", "argmax", "argmin", "max", "min", "median", "kthvalue", "mode")


class Choices:
    """What the operators of a run that give indices chose among."""

    def __init__(self) -> None:
        self._made: list[tuple[torch.Tensor, torch.Tensor, int]] = []

    def __bool__(self) -> bool:
        """Whether there was any."""
        return bool(self._made)

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Note an operator, if its result holds indices along a dimension of its operand."""
        name = getattr(getattr(func, "_schema", None), "name", "").partition("::")[2]
        if name not in _CHOOSE or kwargs.get("stable") or not args or not isinstance(args[0], torch.Tensor):
            return
        indices = result[1] if isinstance(result, (list, tuple)) and len(result) == 2 else result
        given = args[0]
        if not isinstance(indices, torch.Tensor) or indices.dtype != torch.int64 or given.is_complex():
            return
        named = dict(zip((one.name for one in func._schema.arguments), args, strict=False)) | kwargs
        dim = named.get("dim", -1 if name in ("topk", "sort", "argsort", "kthvalue") else None)
        if dim is None or not given.dim():
            given, indices, dim = given.reshape(-1), indices.reshape(-1), 0
        dim %= given.dim()
        if indices.dim() < given.dim():
            indices = indices.unsqueeze(dim)
        # Copies: what is written in place later is another operand.
        self._made.append((indices.detach().clone(), given.detach().clone(), dim))

    def allow(self, ours: torch.Tensor, theirs: torch.Tensor) -> bool:
        """Whether the other indices stand for the same numbers as eager's, and are as different from one another.

        Args:
            ours: indices that eager returns.
            theirs: the exported program's, of the same shape.
        """
        for indices, given, dim in self._made:
            if indices.numel() != ours.numel() or not torch.equal(indices.reshape(-1), ours.reshape(-1)):
                continue
            other = theirs.reshape(indices.shape).to(indices)
            if int(other.min()) < 0 or int(other.max()) >= given.shape[dim]:
                continue
            same = given.gather(dim, other) == given.gather(dim, indices)
            repeats = (other.sort(dim).values.diff(dim=dim) == 0).any() if other.shape[dim] > 1 else False
            if bool(same.all()) and not bool(repeats):
                return True
        return False
