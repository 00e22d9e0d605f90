"""Whether an input tells: whether anything would come out differently if one decision went as it did in the example.

A branch that multiplies is taken by an image of zeros, too, and nothing shows it there: an export that kept the other
branch would agree. Such an input reaches an outcome, but it is no test of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.branches.observation import Endless
from pytest_torchexport.branches.replay import Path, Replay
from pytest_torchexport.subject import containers

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_torchexport.branches.followed import Runner
    from pytest_torchexport.branches.sites import Site
    from pytest_torchexport.subject.call import Call
    from pytest_torchexport.subject.run import Record

_RTOL, _ATOL = 1e-3, 1e-6
"""What differs by less could be taken for rounding."""


def path_of(runner: Runner, model: Any, is_users: Callable[[str], bool], calls: tuple[Call, ...]) -> Path:
    """What a run takes at each decision, in order; of several calls those of the first."""
    replay = Replay(model, is_users)
    runner(calls, program=replay)
    return replay.paths[0] if replay.paths else {}


def tells(
    runner: Runner,
    model: Any,
    is_users: Callable[[str], bool],
    calls: tuple[Call, ...],
    record: Record,
    held: dict[Site, list[Any]],
) -> bool:
    """Whether the outputs or the state differ from the record if the decisions are held; true where they cannot be."""
    try:
        other = runner(calls, program=Replay(model, is_users, held))
    except Endless:
        return True
    if other.error is not None:
        return True
    return not (_alike(record.outputs, other.outputs) and _alike(record.state, other.state))


def _alike(one: Any, other: Any) -> bool:
    ours, theirs = dict(containers.leaves(one)), dict(containers.leaves(other))
    return ours.keys() == theirs.keys() and all(_same(ours[path], theirs[path]) for path in ours)


def _same(one: Any, other: Any) -> bool:
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return type(one) is type(other) and bool(one == other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not (one.is_floating_point() or one.is_complex()):
        return torch.equal(one, other)
    return torch.allclose(one, other, rtol=_RTOL, atol=_ATOL, equal_nan=True)
