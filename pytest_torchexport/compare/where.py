"""Which elements of a tensor differ, in words: one, a channel, a border, every other one, all."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch

from pytest_torchexport.compare.relation import relation

if TYPE_CHECKING:
    from collections.abc import Sequence

_LISTED = 4
"""Indices that are listed one by one."""
_STRIDED = 3
"""Indices at equal distances that make a pattern."""
_DENSE = 0.5
"""The part of a region's elements that differ, from which on the region is said to differ."""


def where(bad: torch.Tensor, expected: torch.Tensor | None = None, actual: torch.Tensor | None = None) -> str:
    """Say which elements differ, and how the values there relate where that is plain.

    Args:
        bad: true where an element is beyond its limit, NaN and infinities in the wrong places among them.
        expected: eager's tensor, of the same shape; a complex one may come beside a mask of pairs.
        actual: the exported program's.

    Returns:
        A phrase such as `index 3 of axis 1 (of 8), all elements there; each is 0.5 x eager's`; empty if none differs.
    """
    bad = bad.detach()
    count = int(bad.count_nonzero())
    if not count:
        return ""
    facts = [_places(bad, count)]
    if expected is not None and actual is not None:
        facts.append(relation(bad, expected, actual))
    return "; ".join(filter(None, facts))


def _places(bad: torch.Tensor, count: int) -> str:
    total = bad.numel()
    if total == 1:
        return "the only element"
    if count == total:
        return f"all {total} elements"
    if count == 1:
        return f"one element, at {_first(bad)}"
    touched = [_indices(bad, axis) for axis in range(bad.dim())]
    region = 1
    for indices in touched:
        region *= len(indices)
    narrow = [axis for axis, indices in enumerate(touched) if len(indices) < bad.shape[axis]]
    share = f"{count} of {total} elements ({_percent(count / total)})"
    if narrow and count >= _DENSE * region:
        spoken = [_along(axis, touched[axis], bad.shape[axis]) for axis in narrow]
        there = "all elements there" if count == region else f"{_percent(count / region)} of the elements there"
        return f"{' and '.join(spoken)}, {there}"
    border = _border(bad)
    if border:
        return f"{border}, {share}"
    said = [_along(axis, touched[axis], bad.shape[axis]) for axis in narrow if _is_telling(touched[axis])]
    return f"{share}, {'only at ' + ' and '.join(said) if said else 'scattered'}"


def _first(bad: torch.Tensor) -> list[int]:
    position, index = int(bad.reshape(-1).to(torch.uint8).argmax()), []
    for size in reversed(bad.shape):
        position, step = divmod(position, size)
        index.append(step)
    return index[::-1]


def _indices(bad: torch.Tensor, axis: int) -> list[int]:
    """The indices of the axis at which some element differs."""
    others = [other for other in range(bad.dim()) if other != axis]
    some = bad.any(dim=others) if others else bad
    found: list[int] = some.nonzero().flatten().tolist()
    return found


def _along(axis: int, indices: Sequence[int], size: int) -> str:
    """The indices of one axis in words."""
    first, last, count = indices[0], indices[-1], len(indices)
    of = f"axis {axis} (of {size})"
    steps = {b - a for a, b in itertools.pairwise(indices)}
    if count == 1:
        return f"index {first} of {of}"
    if steps == {1}:
        if first == 0:
            return f"the first {count} of {of}"
        return f"the last {count} of {of}" if last == size - 1 else f"indices {first} to {last} of {of}"
    if len(steps) == 1 and count >= _STRIDED:
        step = steps.pop()
        return f"every {_ordinal(step)} index of {of}, from {first}" + (f" to {last}" if last + step < size else "")
    ends = _ends(indices, size)
    if ends is not None:
        return f"the first {_counted(ends[0])} and the last {_counted(ends[1])} of {of}"
    if count <= _LISTED:
        return f"indices {', '.join(map(str, indices))} of {of}"
    return f"{count} indices of {of}"


def _counted(number: int) -> str:
    return "index" if number == 1 else f"{number} indices"


def _is_telling(indices: Sequence[int]) -> bool:
    """Whether the indices make a pattern, or are few enough to be listed."""
    steps = {b - a for a, b in itertools.pairwise(indices)}
    return len(indices) <= _LISTED or len(steps) == 1


def _ends(indices: Sequence[int], size: int) -> tuple[int, int] | None:
    """How many stand at either end, if all do, and leave at least half of the axis between them."""
    lower = [index for index in indices if index < size // 2]
    upper = [index for index in indices if index >= size // 2]
    if not lower or not upper or 2 * len(indices) > size:
        return None
    return (len(lower), len(upper)) if lower[-1] == len(lower) - 1 and upper[0] == size - len(upper) else None


def _border(bad: torch.Tensor) -> str:
    """The border of the last two axes, if it holds all that differ, and its inside is larger than it."""
    if bad.dim() < 2 or min(bad.shape[-2:]) < 3:
        return ""
    plane = bad.reshape(-1, *bad.shape[-2:]).any(dim=0)
    height, width = plane.shape
    # What differs in the middle third of the columns lies above or below, in that of the rows left or right.
    top, bottom = _margins(plane[:, width // 3 : width - width // 3].any(dim=1))
    left, right = _margins(plane[height // 3 : height - height // 3].any(dim=0))
    if 2 * (top + bottom) > height or 2 * (left + right) > width:
        return ""
    if bool(plane[top : height - bottom, left : width - right].any()):
        return ""
    axes = f"axes {bad.dim() - 2} and {bad.dim() - 1}"
    sides = {"top": top, "bottom": bottom, "left": left, "right": right}
    widths = {wide for wide in sides.values() if wide}
    if not widths:
        return ""
    named = ", ".join(f"{side} {wide}" for side, wide in sides.items() if wide)
    return f"only at the border of {axes} ({named if len(widths) > 1 or len(named) < 30 else f'{widths.pop()} wide'})"


def _margins(line: torch.Tensor) -> tuple[int, int]:
    """How far what is true reaches from either end, each within its half."""
    size = len(line)
    indices = line.nonzero().flatten().tolist()
    lower = [index for index in indices if index < size // 2]
    upper = [index for index in indices if index >= size // 2]
    return (lower[-1] + 1 if lower else 0), (size - upper[0] if upper else 0)


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number % 100 not in (11, 12, 13) else "th"
    return f"{number}{ending}"


def _percent(part: float) -> str:
    if part >= 0.995:
        return "nearly all" if part < 1 else "100 %"
    return f"{100 * part:.2g} %"
