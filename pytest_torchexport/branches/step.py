"""One step of the input that moves some margins by wanted amounts: the shortest that does, within the limits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from pytest_torchexport.inputs.limits import Numbers

Key = tuple[int, str]
"""Which call of the sequence, from 0, and which leaf in it."""
Gradient = Mapping[Key, torch.Tensor]

_TOO_FAR = 1e6
"""A step of more than this many times the input's own magnitude follows a gradient that has vanished."""


@dataclass(frozen=True)
class Wish:
    """A margin's gradient, and by how much it should change; for those to keep, the least that it may."""

    gradient: Gradient
    change: float


def step(numbers: Mapping[Key, Numbers], wishes: Sequence[Wish]) -> dict[Key, torch.Tensor] | None:
    """New values of the leaves for which, as far as gradients tell, each margin changes as wished.

    Args:
        numbers: the leaves as they are, with their limits.
        wishes: the first is the one that counts; the others limit the step where it would go beyond them.

    Returns:
        The leaves that change, float64 and within their limits; None if nothing helps.
    """
    floats = {key: one for key, one in numbers.items() if not one.integral and _moves(wishes[0], key)}
    if floats:
        found = _shortest(floats, wishes)
        if found is not None:
            return found
    whole = {key: one for key, one in numbers.items() if one.integral and _moves(wishes[0], key)}
    return _whole_steps(whole, wishes) if whole else None


def _moves(wish: Wish, key: Key) -> bool:
    gradient = wish.gradient.get(key)
    return gradient is not None and bool(gradient.isfinite().all()) and bool((gradient != 0).any())


def _shortest(numbers: Mapping[Key, Numbers], wishes: Sequence[Wish]) -> dict[Key, torch.Tensor] | None:
    """The least-squares step, taken again from the limits that it runs into."""
    rows = [_row(wish, numbers) for wish in wishes]
    now = {key: one.value.detach().to("cpu", torch.float64) for key, one in numbers.items()}
    start = dict(now)
    free = {key: torch.ones_like(value, dtype=torch.bool) for key, value in now.items()}
    for _ in range(5):
        moved = {key: now[key] - start[key] for key in now}
        left = [w.change - _dot(row, moved) for w, row in zip(wishes, rows, strict=True)]
        direction = _limited([{k: g * free[k] for k, g in row.items()} for row in rows], left)
        if direction is None:
            break
        cut = False
        for key, one in numbers.items():
            wanted = now[key] + direction[key]
            held = wanted.clamp(one.low, one.high)
            stopped = (held != wanted) & free[key]
            cut |= bool(stopped.any())
            free[key] &= ~stopped
            now[key] = held
        if not cut:
            break
    moved = {key: now[key] for key in now if not torch.equal(now[key], start[key])}
    scale = max((_rms(value) for value in start.values()), default=0.0)
    size = max((_rms(moved[key] - start[key]) for key in moved), default=0.0)
    return moved if moved and size <= _TOO_FAR * (scale + 1) else None


def _limited(rows: Sequence[Mapping[Key, torch.Tensor]], changes: Sequence[float]) -> dict[Key, torch.Tensor] | None:
    """The shortest direction that changes the first margin as wished, and the others by no less than is allowed."""
    active = [0]
    while True:
        direction = _solve([rows[i] for i in active], [changes[i] for i in active])
        if direction is None:
            return None
        short = {i: _dot(rows[i], direction) - changes[i] for i in range(1, len(rows)) if i not in active}
        worst = min(short, key=lambda i: (short[i], i), default=None)
        if worst is None or short[worst] >= -1e-9 * (1 + abs(changes[worst])):
            return direction
        active.append(worst)


def _row(wish: Wish, numbers: Mapping[Key, Numbers]) -> dict[Key, torch.Tensor]:
    empty = {key: torch.zeros(one.value.shape, dtype=torch.float64) for key, one in numbers.items()}
    given = {k: g.detach().to("cpu", torch.float64).nan_to_num(0, 0, 0) for k, g in wish.gradient.items() if k in empty}
    return empty | given


def _dot(one: Mapping[Key, torch.Tensor], other: Mapping[Key, torch.Tensor]) -> float:
    return sum(float((one[key] * other[key]).sum()) for key in one)


def _solve(rows: Sequence[Mapping[Key, torch.Tensor]], changes: Sequence[float]) -> dict[Key, torch.Tensor] | None:
    """The shortest direction along which each margin changes as wished, or None without one.

    Solved in Python's own numbers: the results of a library's solver may depend on where in memory the matrix lies.
    """
    gram = [[_dot(a, b) for b in rows] for a in rows]
    if not gram[0][0] > 0:
        return None
    largest = max(gram[i][i] for i in range(len(rows)))
    weights = _eliminate([[*row, change] for row, change in zip(gram, changes, strict=True)], 1e-10 * largest)
    if not all(math.isfinite(weight) for weight in weights):
        return None
    made = {}
    for key in rows[0]:
        directions = [weight * row[key] for weight, row in zip(weights, rows, strict=True)]
        made[key] = torch.stack(directions).sum(0)
    return made


def _eliminate(system: list[list[float]], tiny: float) -> list[float]:
    """Gauss-Jordan elimination with pivots; an equation that says nothing new gets the weight 0."""
    n = len(system)
    used: dict[int, int] = {}
    free = set(range(n))
    for column in range(n):
        pivot = max(free, key=lambda row: (abs(system[row][column]), -row), default=None)
        if pivot is None or abs(system[pivot][column]) <= tiny:
            continue
        free.discard(pivot)
        used[column] = pivot
        scale = system[pivot][column]
        system[pivot] = [value / scale for value in system[pivot]]
        for row in range(n):
            factor = system[row][column]
            if row != pivot and factor:
                system[row] = [a - factor * b for a, b in zip(system[row], system[pivot], strict=True)]
    return [system[used[column]][n] if column in used else 0.0 for column in range(n)]


def _whole_steps(numbers: Mapping[Key, Numbers], wishes: Sequence[Wish]) -> dict[Key, torch.Tensor] | None:
    """Change one whole number after the other, the most effective first, until the change is reached."""
    row = _row(wishes[0], numbers)
    others = [_row(wish, numbers) for wish in wishes[1:]]
    left = wishes[0].change
    flat: list[tuple[float, Key, int]] = []
    for key, gradient in row.items():
        for index in gradient.reshape(-1).abs().topk(min(gradient.numel(), 256)).indices.tolist():
            slope = float(gradient.reshape(-1)[index])
            harm = sum(abs(float(other[key].reshape(-1)[index])) for other in others)
            flat.append((abs(slope) / (1 + harm), key, index))
    made: dict[Key, torch.Tensor] = {}
    for _, key, index in sorted(flat, key=lambda one: (-one[0], one[1], one[2])):
        slope = float(row[key].reshape(-1)[index])
        if slope == 0 or left == 0:
            break
        low, high = numbers[key].reach
        values = made.get(key, numbers[key].value.detach().to("cpu", torch.float64).clone())
        now = float(values.reshape(-1)[index])
        wanted = left / slope
        whole = min(max(now + _outwards(wanted), low), high)
        if whole == now:
            continue
        values = values.reshape(-1).clone()
        values[index] = whole
        made[key] = values.reshape(numbers[key].value.shape)
        done = (whole - now) * slope
        if abs(done) >= abs(left) - 1e-9:
            break
        left -= done
    return made or None


def _outwards(value: float) -> float:
    """The whole number nearest to the value that is not smaller in size; a hair above a whole one counts as it."""
    size = abs(value)
    near = round(size)
    whole = near if abs(size - near) < 1e-3 and near else int(size) + 1
    return whole if value > 0 else -whole


def _rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt()) if values.numel() else 0.0
