"""Simple numbers: few digits, near to 0."""

from __future__ import annotations

import math

import torch


def shortest(value: torch.Tensor) -> float:
    """The shortest decimal that gives a floating element the bits that it has; the value itself if it is not finite."""
    number = float(value)
    if not math.isfinite(number):
        return number
    for digits in range(1, 17):
        short = float(f"{number:.{digits}g}")
        if math.copysign(1, short) == math.copysign(1, number) and torch.equal(
            torch.tensor(short, dtype=value.dtype), value
        ):
            return short
    return number


def rounded(value: torch.Tensor, digits: int) -> torch.Tensor:
    """Every finite element with so many significant digits, as float64."""
    plain = value.double()
    scale = 10.0 ** (plain.abs().clamp_min(1e-300).log10().floor() - (digits - 1))
    return torch.where(plain.isfinite() & (plain != 0), (plain / scale).round() * scale, plain)


def simpler(number: float, *, whole: bool) -> list[float]:
    """Numbers that are simpler than the given one, the simplest first.

    Whole numbers are simpler the nearer they are to 0, others the fewer digits they have, and then the nearer to 0.

    Args:
        number: any number.
        whole: only whole numbers can stand in its place.
    """
    if number == 0 or math.isnan(number):
        return []
    sign = math.copysign(1, number)
    sizes: list[float] = []
    if whole:
        size = abs(int(number)) if math.isfinite(number) else 2**31
        sizes += [2, 3, size // 10, size // 2, size - size // 4, size - 1]
    else:
        length = abs(number) if math.isfinite(number) else 1e30
        power = 10.0 ** math.floor(math.log10(length))
        sizes += [2, 10, 100, power, 2 * power, 5 * power, 10 * power]
        sizes += [one for digits in (1, 2, 3) for one in _around(length, digits)]
    wanted = {0.0, 1.0, -1.0, *(sign * one for one in sizes)}
    ordered = sorted((_effort(one, whole), one) for one in wanted)
    return [one for effort, one in ordered if effort < _effort(number, whole)]


def _effort(number: float, whole: bool) -> tuple[int, float, bool]:  # noqa: FBT001 - a key to sort by
    """How far from simple a number is."""
    digits = 0 if whole else len(repr(float(abs(number))).partition("e")[0].replace(".", "").strip("0"))
    return digits, abs(number), number < 0


def _around(size: float, digits: int) -> list[float]:
    """The size rounded to so many digits: such numbers just below and above."""
    step = 10.0 ** (math.floor(math.log10(size)) - (digits - 1))
    below = math.floor(size / step)
    # With one digit a number may go down step by step: 7, 6, 5. With more it would go on below 1 for ever.
    steps = [below - 1] * (digits == 1) + [below, below + 1]
    return [float(f"{one * step:.{digits}g}") for one in steps if one > 0]
