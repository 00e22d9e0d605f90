"""Whether a call that was kept from an earlier run is one that the arguments' domains still hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.inputs.values import as_numbers
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.equality import identical

if TYPE_CHECKING:
    from pytest_torchexport.inputs.limits import Numbers
    from pytest_torchexport.inputs.space import Space
    from pytest_torchexport.subject.call import Call


def fits(space: Space, call: Call) -> bool:
    """Whether the space holds the call: its sizes, numbers and options.

    Arguments whose domain is code are taken for good, since code does not tell.
    """
    sizes = space.sizes_of(call)
    example = space.resized(space.example, sizes, "")
    if sizes != space.sizes_of(example):
        return False
    usual, options = _leaves(space, example), space.alternatives()
    numbers = space.numbers(call)
    shared = {id(one.value): one for one in numbers.values()}
    for path, leaf in _leaves(space, call).items():
        if space.is_whole(path) or path not in usual:
            continue
        if _is_one_of(leaf, [usual[path], *options.get(path, ())]):
            continue
        found = numbers.get(path) or shared.get(id(leaf))
        if isinstance(leaf, torch.Tensor) != isinstance(usual[path], torch.Tensor) or found is None:
            return False
        if isinstance(leaf, torch.Tensor) and leaf.shape != usual[path].shape:
            return False
        if not _within(found):
            return False
    return True


def _leaves(space: Space, call: Call) -> dict[str, Any]:
    """Every leaf by path, a tensor that stands in several places by each."""
    return dict(pair for name, value in space.named(call).items() for pair in containers.leaves(value, name))


def _is_one_of(leaf: Any, accepted: list[Any]) -> bool:
    return any(identical(leaf, one) for one in accepted)


def _within(numbers: Numbers) -> bool:
    value = numbers.value.detach().cpu()
    if numbers.boolean or not value.numel():
        return True
    if numbers.choices:
        return bool(torch.isin(value.double(), torch.tensor(numbers.choices, dtype=torch.float64)).all())
    # A bound has the rounding of the numbers: floats(0, 0.1) holds the float32 that is nearest to 0.1.
    kind = value.dtype if value.is_floating_point() else torch.float64
    low, high = (as_numbers(torch.tensor(bound, dtype=kind)) for bound in numbers.reach)
    plain = as_numbers(value)
    inside = (plain >= low) & (plain <= high)
    if plain.is_floating_point() and not (numbers.integral or numbers.declared):
        inside |= plain.isnan()
    return bool(inside.all())
