"""Does a guess give what the exported program gave? It has to leave next to nothing of each difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.compare.tree import as_tensor, pair
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.output import FlatOutput

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_torchexport.subject.output import Structure

_LEFT = 0.01
"""What a guess may leave of the largest difference; less where a few numbers could fit by chance."""
_LEFT_OF_FEW = 1e-3
_FEW = 8
_ROUNDING = 64.0
"""Units of rounding, relative to the largest value, that are no difference at all: programs round in other ways."""


def explains(expected: Sequence[Any], guess: Sequence[Any], actual: Sequence[Any], structure: Structure) -> bool:
    """Whether the exported program gives what is guessed, where it does not give what is expected.

    Args:
        expected: eager's output of each call.
        guess: what the program's should be, as eager's own run under a hypothesis gives it.
        actual: the program's outputs.
        structure: what the program's outputs keep of eager's structure.
    """
    if not len(expected) == len(guess) == len(actual):
        return False
    told = False
    for ours, supposed, theirs in zip(expected, guess, actual, strict=True):
        wanted = dict(tensors(ours))
        pairs = pair(supposed, theirs, structure)
        if pairs.problems:
            return False
        for path, one, other in pairs.leaves:
            mine, got = as_tensor(one), as_tensor(other)
            if mine is None or got is None:
                if one != other:
                    return False
                continue
            if not is_like(mine, got, wanted.get(path)):
                return False
            told |= differs(wanted.get(path), got)
    return told


def tensors(output: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The leaves of an output that are numbers, by path."""
    found = output.values if isinstance(output, FlatOutput) else output
    for path, leaf in containers.leaves(found, "output"):
        tensor = as_tensor(leaf)
        if tensor is not None:
            yield path, tensor


def is_like(guess: torch.Tensor, actual: torch.Tensor, expected: torch.Tensor | None = None) -> bool:
    """Whether the actual values are the guessed ones, but for a small part of how far they are from the expected."""
    if guess.shape != actual.shape:
        return False
    one, two = _numbers(guess), _numbers(actual)
    if one.device != two.device:
        one, two = one.cpu(), two.cpu()
    if not torch.equal(_classes(one), _classes(two)):
        return False
    finite = one.isfinite()
    one, two = one[finite], two[finite]
    if not len(one):
        return True
    left = float((one - two).abs().max())
    unit = max(_unit(guess), _unit(actual))
    allowed = _ROUNDING * unit * float(one.abs().max())
    if expected is not None and expected.shape == actual.shape:
        was = (_numbers(expected).to(two.device)[finite] - two).abs()
        was = was[was.isfinite()]
        part = _LEFT if len(one) >= _FEW else _LEFT_OF_FEW
        allowed = max(allowed, part * float(was.max())) if len(was) else allowed
    return left <= allowed


def differs(expected: torch.Tensor | None, actual: torch.Tensor) -> bool:
    """Whether values are further apart than any rounding, or of another shape."""
    if expected is None or expected.shape != actual.shape:
        return True
    return not is_like(expected, actual)


def _numbers(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def _classes(values: torch.Tensor) -> torch.Tensor:
    return values.isnan() * 1 + values.isposinf() * 2 + values.isneginf() * 3


def _unit(tensor: torch.Tensor) -> float:
    return torch.finfo(tensor.dtype).eps if tensor.is_floating_point() or tensor.is_complex() else 0.0
