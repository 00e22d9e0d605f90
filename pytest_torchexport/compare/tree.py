"""Pair the leaves of two outputs; what cannot be paired is a difference of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pytest_torchexport.outcome import Cause, Leaf
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.output import FlatOutput, Structure

_NUMBER = (bool, int, float, complex, np.generic)


@dataclass
class Pairs:
    """Leaves that belong together, and the places where the two structures part.

    Attributes:
        leaves: path, eager's leaf, the exported program's leaf.
        problems: places where a leaf or container has no partner.
        left_out: paths of eager's leaves that the backend's calling convention cannot carry.
    """

    leaves: list[tuple[str, Any, Any]] = field(default_factory=list)
    problems: list[Leaf] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def problem(self, path: str, reason: str, expected: Any, actual: Any) -> None:
        """Note that the structures part at the path."""
        shown, got = containers.describe(expected), containers.describe(actual)
        self.problems.append(Leaf(path, agrees=False, cause=Cause.STRUCTURE, reason=reason, expected=shown, actual=got))


def pair(expected: Any, actual: Any, structure: Structure, root: str = "output") -> Pairs:
    """Pair eager's output with the exported program's.

    Args:
        expected: eager's output.
        actual: the exported program's; a `FlatOutput` where the structure is flat.
        structure: how much of the structure the backend can carry.
        root: what the paths begin with.
    """
    pairs = Pairs()
    if isinstance(actual, FlatOutput):
        _pair_flat(expected, actual, root, pairs)
    else:
        _walk(root, expected, actual, structure, pairs)
    return pairs


def _walk(path: str, expected: Any, actual: Any, structure: Structure, pairs: Pairs) -> None:
    ours, theirs = containers.children(expected), containers.children(actual)
    if ours is None or theirs is None:
        if ours is theirs:
            pairs.leaves.append((path, expected, actual))
        else:
            pairs.problem(path, _kinds(expected, actual), expected, actual)
        return
    if isinstance(expected, Mapping) and isinstance(actual, Mapping):
        _walk_mapping(path, expected, actual, structure, pairs)
        return
    if not _same_kind(expected, actual, structure):
        pairs.problem(path, _kinds(expected, actual), expected, actual)
        return
    if len(ours) != len(theirs):
        pairs.problem(path, f"eager has {len(ours)} parts, the exported program {len(theirs)}", expected, actual)
        return
    for (step, mine), (_, other) in zip(ours, theirs, strict=True):
        _walk(path + step, mine, other, structure, pairs)


def _walk_mapping(
    path: str, expected: Mapping[Any, Any], actual: Mapping[Any, Any], structure: Structure, pairs: Pairs
) -> None:
    if structure is Structure.SAME and not _same_kind(expected, actual, structure):
        pairs.problem(path, _kinds(expected, actual), expected, actual)
        return
    ours, theirs = list(expected), list(actual)
    if structure is Structure.SCRIPT:
        absent = [key for key in ours if expected[key] is None and key not in actual]
        ours = [key for key in ours if key not in absent]
    if ours == theirs:
        for key in ours:
            _walk(f"{path}[{key!r}]", expected[key], actual[key], structure, pairs)
        return
    lost, added = [k for k in ours if k not in actual], [k for k in theirs if k not in expected]
    reasons = []
    if lost:
        reasons.append(f"key {', '.join(map(repr, lost))} of eager is missing")
    if added:
        reasons.append(f"key {', '.join(map(repr, added))} is not in eager's output")
    pairs.problem(path, "; ".join(reasons) or "the keys are in another order", expected, actual)
    for key in ours:
        if key in actual:
            _walk(f"{path}[{key!r}]", expected[key], actual[key], structure, pairs)


def _same_kind(expected: Any, actual: Any, structure: Structure) -> bool:
    if type(expected) is type(actual):
        return True
    if structure is Structure.SCRIPT:
        # TorchScript rebuilds named tuples as classes of its own, and a traced class may come back as a tuple.
        return isinstance(actual, (tuple, list)) and not isinstance(expected, Mapping)
    if isinstance(expected, Mapping) and isinstance(actual, Mapping):
        return type(expected).__name__ == type(actual).__name__
    # A class that is loaded again from a saved program is another object with the same name and fields.
    return type(expected).__qualname__ == type(actual).__qualname__ and (
        getattr(expected, "_fields", None) == getattr(actual, "_fields", None)
    )


def _kinds(expected: Any, actual: Any) -> str:
    return f"eager returns {_kind(expected)}, the exported program {_kind(actual)}"


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _pair_flat(expected: Any, actual: FlatOutput, root: str, pairs: Pairs) -> None:
    """Pair a flat program's outputs with eager's tensors in order; numbers only if the program emits them too."""
    ours = list(containers.leaves(expected, root))
    theirs = list(containers.leaves(actual.values))  # a sequence output holds several tensors
    tensors = [(path, leaf) for path, leaf in ours if not isinstance(leaf, (type(None), str, bytes, *_NUMBER))]
    with_numbers = [(path, leaf) for path, leaf in ours if not isinstance(leaf, (type(None), str, bytes))]
    chosen = with_numbers if len(with_numbers) == len(theirs) else tensors
    kept = {path for path, _ in chosen}
    pairs.left_out += [path for path, _ in ours if path not in kept]
    if len(chosen) == len(theirs):
        pairs.leaves += [(path, leaf, theirs[i][1]) for i, (path, leaf) in enumerate(chosen)]
        return
    names = ", ".join(actual.values) or "none"
    reason = f"eager returns {len(chosen)} tensors, the exported program {len(theirs)} ({names})"
    pairs.problem(root, reason, expected, list(actual.values.values()))
    pairs.leaves += [(path, leaf, theirs[i][1]) for i, (path, leaf) in enumerate(chosen[: len(theirs)])]


def as_tensor(leaf: Any) -> torch.Tensor | None:
    """A number, array or tensor as a tensor; None for anything else, and for integers beyond 64 bits."""
    if isinstance(leaf, torch.Tensor):
        return leaf
    if isinstance(leaf, (np.ndarray, np.generic)):
        return torch.as_tensor(leaf, device="cpu") if leaf.dtype.kind in "biufc" else None
    if isinstance(leaf, int) and not -(2**63) <= leaf < 2**63:
        return None
    if isinstance(leaf, (bool, int, float, complex)):
        wide = {float: torch.float64, complex: torch.complex128}.get(type(leaf))
        return torch.tensor(leaf, dtype=wide, device="cpu")
    return None
