"""One instrumented run: the model with twins of its functions, called with inputs that autograd can follow."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

from pytest_torchexport.branches import tracked
from pytest_torchexport.branches.followed import Followed
from pytest_torchexport.branches.instruments import Instruments
from pytest_torchexport.branches.observation import Endless
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.run import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_torchexport.branches.followed import Runner
    from pytest_torchexport.inputs.space import Space
    from pytest_torchexport.subject.call import Call


def follow(
    runner: Runner,
    space: Space,
    calls: tuple[Call, ...],
    *,
    is_users: Callable[[str], bool],
    state: Mapping[str, Any] | None = None,
    changing: frozenset[str] = frozenset(),
    limit: float = math.inf,
) -> Followed:
    """Run the calls with the user's functions replaced by their twins.

    Args:
        runner: runs eager.
        space: what varies in the calls.
        calls: the input.
        is_users: whether the code of a file counts as the user's.
        state: tensors of the model's state by name.
        changing: names of the state that forward changes: it depends on earlier calls.
        limit: how many of torch's functions it may call.
    """
    followed = Followed()
    program = Instruments(space, followed, is_users, dict(state or {}), changing)
    program.mode.limit = limit
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the user's code has to say, it says in the other runs
        try:
            followed.record = runner(calls, program=program)
        except Endless:
            followed.record = Record(error=RuntimeError("it takes far longer than the example: its loop may never end"))
    followed.lookups = program.mode.lookups
    followed.record.outputs = containers.rebuild(followed.record.outputs, tracked.plain)
    return followed
