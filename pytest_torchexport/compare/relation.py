"""How the values that differ relate to eager's, where it is plain: a factor, an offset, a limit, another order."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

_SAMPLE = 1 << 14
"""Differing elements that are looked at; evenly spread where there are more."""
_CHUNK = 1 << 20
_FEWEST = 4
"""Elements from which on a rule is no coincidence."""
_WHOLE = 1 << 18
"""Elements of a tensor up to which other orders of it are tried."""
_MOST_AXES = 4
"""Axes up to which all their orders are tried."""
_EXPLAINED = 0.02
"""What a rule may leave of each difference."""


def relation(bad: torch.Tensor, expected: torch.Tensor, actual: torch.Tensor) -> str:
    """Say how the exported program's values come from eager's where they differ; empty if that is not plain.

    Args:
        bad: true where an element differs.
        expected: eager's tensor.
        actual: the exported program's, of the same shape.
    """
    ours, theirs = _real(expected), _real(actual).to(expected.device)
    if ours.shape != bad.shape or theirs.shape != bad.shape:
        return ""
    mine, other = _sampled(bad, ours), _sampled(bad, theirs)
    if not ours.is_floating_point() and (wrapped := _wrapped(mine, other)):
        return wrapped
    if special := _special(mine, other):
        return special
    if len(mine) >= _FEWEST:
        # Limits are told from other rules by the elements that they leave alone.
        limits = [] if bool(bad.all()) else [_clipped, _unclipped]
        for rule in [*limits, _constant, _opposite, _factor, _offset]:
            if found := rule(mine, other):
                return found
    moved = _moved(bad, ours, theirs)
    return moved or _coarser(ours, theirs)


def _real(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_floating_point() and tensor.dtype.itemsize == 1:
        tensor = tensor.float()  # torch only stores these numbers
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _sampled(bad: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Some of the differing elements as doubles."""
    step = max(1, int(bad.count_nonzero()) // _SAMPLE)
    mask, flat = bad.reshape(-1), values.reshape(-1)
    starts = range(0, len(flat), _CHUNK)
    parts = [flat[s : s + _CHUNK][mask[s : s + _CHUNK].nonzero().flatten()[::step]] for s in starts]
    found = torch.cat(parts)
    return found.to("cpu" if found.device.type == "mps" else found.device).double()


def _special(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    """What stands where, if some differences are those of NaN and infinities."""
    one, two = _classes(ours), _classes(theirs)
    differ = one != two
    if not bool(differ.any()):
        return ""
    kinds = sorted(set(zip(one[differ].tolist(), two[differ].tolist(), strict=True)))
    said = ", ".join(f"{_KINDS[other]} instead of {_KINDS[mine]}" for mine, other in kinds)
    return f"the exported program gives {said}" + ("" if bool(differ.all()) else " at some of them")


_KINDS = ("finite numbers", "NaN", "inf", "-inf")


def _classes(values: torch.Tensor) -> torch.Tensor:
    return values.isnan() * 1 + values.isposinf() * 2 + values.isneginf() * 3


def _explains(guess: torch.Tensor, ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether a guess of the exported program's values leaves next to nothing of each difference."""
    return bool(((guess - theirs).abs() <= _EXPLAINED * (ours - theirs).abs()).all())


def _wrapped(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    """Whether integers went over the edge of a narrower type."""
    for bits in (8, 16, 32) if len(ours) >= _FEWEST else (32,):
        off = (ours - theirs) / 2.0**bits
        low, high = -(2 ** (bits - 1)), 2**bits
        if bool((off == off.round()).all()) and bool(((theirs >= low) & (theirs < high)).all()):
            return f"each is eager's modulo 2**{bits}: it overflowed in {bits} bits"
    return ""


def _constant(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    if not bool((theirs == theirs[0]).all()) or bool((ours == ours[0]).all()):
        return ""
    return f"the exported program gives {float(theirs[0]):.6g} at each of them"


def _opposite(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    return "each has the opposite sign" if _explains(-ours, ours, theirs) else ""


def _factor(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    factor = float((ours @ theirs) / (ours @ ours)) if bool(ours.any()) else math.nan
    if math.isfinite(factor) and _varies(ours) and _explains(factor * ours, ours, theirs):
        return f"each is {factor:.6g} x eager's"
    return ""


def _offset(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    offset = float((theirs - ours).median())
    if _varies(ours) and _explains(ours + offset, ours, theirs):
        return f"each is {abs(offset):.6g} {'more' if offset > 0 else 'less'} than eager's"
    return ""


def _varies(values: torch.Tensor) -> bool:
    """Whether a factor and an offset can be told apart: the values differ by more than they do from their rule."""
    return len(torch.unique(values)) >= _FEWEST and float(values.max() - values.min()) > 0.1 * float(values.abs().max())


def _clipped(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    """Whether eager goes beyond a limit at which the exported program stops."""
    limits = _limits(ours, theirs)
    return f"eager's values are cut off at {limits}" if limits else ""


def _unclipped(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    limits = _limits(theirs, ours)
    return f"the exported program goes beyond {limits}, where eager's values end" if limits else ""


def _limits(free: torch.Tensor, cut: torch.Tensor) -> str:
    levels = torch.unique(cut)
    if len(levels) > 2 or not _varies(free):
        return ""
    low, high = levels[0], levels[-1]
    if len(levels) == 2:
        fits = bool(((cut == low) & (free < low) | (cut == high) & (free > high)).all())
        return f"{float(low):.6g} and {float(high):.6g}" if fits else ""
    return f"{float(low):.6g}" if bool((free < low).all()) or bool((free > low).all()) else ""


def _moved(bad: torch.Tensor, ours: torch.Tensor, theirs: torch.Tensor) -> str:
    """Whether the exported program has eager's values in other places."""
    if ours.numel() > _WHOLE or ours.numel() < _FEWEST or ours.dim() == 0 or bool((ours == ours.reshape(-1)[0]).all()):
        return ""
    one, two = ours.double(), theirs.double()
    scale = torch.where(bad, (one - two).abs(), torch.zeros_like(one))
    allowed = torch.where(bad, _EXPLAINED * scale, 1e-3 * one.abs().max())

    def fits(guess: torch.Tensor) -> bool:
        return guess.shape == two.shape and bool(((guess - two).abs() <= allowed).all())

    return _turned(one, fits) or _shifted(one, two, fits) or _reordered(one, two, fits)


def _turned(ours: torch.Tensor, fits: Callable[[torch.Tensor], bool]) -> str:
    axes = range(ours.dim())
    for axis in axes:
        if ours.shape[axis] > 1 and fits(ours.flip(axis)):
            return f"they are eager's, axis {axis} reversed"
    if ours.dim() > _MOST_AXES:
        return ""
    for order in itertools.permutations(axes):
        if order == tuple(axes):
            continue
        turned = ours.permute(order)
        if fits(turned):
            return f"they are eager's, the axes in the order {', '.join(map(str, order))}"
        if fits(turned.reshape(ours.shape)):
            return f"they are eager's in another memory layout (axes in the order {', '.join(map(str, order))})"
    return ""


def _shifted(ours: torch.Tensor, theirs: torch.Tensor, fits: Callable[[torch.Tensor], bool]) -> str:
    del theirs
    for axis in range(ours.dim()):
        size = ours.shape[axis]
        for shift in {1, 2, size // 2} if size > 2 else ():
            for by in {shift, -shift}:
                if fits(ours.roll(by, axis)):
                    return f"they are eager's, shifted by {by} along axis {axis}"
    return ""


def _reordered(ours: torch.Tensor, theirs: torch.Tensor, fits: Callable[[torch.Tensor], bool]) -> str:
    """Whether whole slices of an axis are in another order."""
    for axis in range(ours.dim()):
        size = ours.shape[axis]
        if not 2 <= size <= 512 or ours.numel() // size < 2:
            continue
        one, two = ours.movedim(axis, 0).reshape(size, -1), theirs.movedim(axis, 0).reshape(size, -1)
        order = torch.cdist(two, one).argmin(dim=1)
        if len(torch.unique(order)) == size and fits(ours.index_select(axis, order)):
            listed = ", ".join(map(str, order[:6].tolist())) + (", ..." if size > 6 else "")
            return f"they are eager's, axis {axis} in the order {listed}"
    return ""


def _coarser(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    """Whether all of the exported program's values are numbers of a narrower type, and eager's are not."""
    flat, other = theirs.reshape(-1)[:_SAMPLE], ours.reshape(-1)[:_SAMPLE]
    if not flat.is_floating_point() or len(flat) < 2 * _FEWEST:
        return ""
    if bool((flat == flat.round()).all()) and not bool((other == other.round()).all()):
        return "the exported program's values are all whole numbers"
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if dtype.itemsize >= flat.dtype.itemsize:
            continue
        if bool((flat == flat.to(dtype).to(flat.dtype)).all()):
            eagers = float((other == other.to(dtype).to(other.dtype)).double().mean())
            name = str(dtype).removeprefix("torch.")
            return f"the exported program's values are all {name} numbers, eager's are not" if eagers < 0.5 else ""
    return ""
