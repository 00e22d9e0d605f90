"""No change of state is missed: a snapshot tells what reading everything tells, whatever was changed and how."""

from __future__ import annotations

import functools
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from pytest_torchexport.subject.equality import identical
from pytest_torchexport.subject.state import Snapshot, read

if TYPE_CHECKING:
    from collections.abc import Callable


class Slotted:
    __slots__ = ("value",)

    value: int

    def __init__(self) -> None:
        self.value: Any = 1


class SlottedList(list[int]):
    __slots__ = ("value",)


class Holds(nn.Module):
    """Holds everything in which a module can keep something between calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
        self.number = 1
        self.nothing = None
        self.tensor = torch.zeros(2)
        self.list: list[Any] = [1, [2]]
        self.table: dict[str, Any] = {"a": 1, "deep": {"b": torch.zeros(1)}}
        self.set = {1, 2}
        self.queue = deque([1, 2], 3)
        self.pair: Any = (1, [2])
        self.slotted = Slotted()
        own_list: Any = SlottedList([1])
        own_list.value = 1
        self.own_list = own_list
        self.array = np.zeros(2)
        self.base = np.zeros(2)
        self.view = self.base[:]
        self.view.flags.writeable = False
        self.partial = functools.partial(sorted, key=[1])
        self.function = _function()
        self.seen: list[int] = []
        self.register_forward_hook(self.after)

    def after(self, *_: object) -> None:
        self.seen.append(1)


def _function() -> Any:
    counter = 0
    history: list[int] = []

    def function(x: Any, default: Any = (), *, named: Any = 0) -> Any:
        return x, default, named, counter, history

    def bump() -> None:
        nonlocal counter
        counter += 1
        history.append(counter)

    def forget() -> None:
        nonlocal counter
        del counter

    function.bump, function.forget = bump, forget  # type: ignore[attr-defined]
    return function


def set_default(model: Any) -> None:
    model.function.__defaults__ = (3,)


def set_named(model: Any) -> None:
    model.function.__kwdefaults__["named"] = 5


CHANGES: dict[str, Callable[[Any], object]] = {
    "number": lambda model: setattr(model, "number", 2),
    "new attribute": lambda model: setattr(model, "more", 2),
    "attribute that is gone": lambda model: delattr(model, "number"),
    "None": lambda model: setattr(model, "nothing", torch.ones(1)),
    "tensor in place": lambda model: model.tensor.add_(1),
    "tensor of another shape": lambda model: model.tensor.resize_(3).fill_(0),
    "tensor through its data": lambda model: setattr(model.tensor, "data", torch.ones(2)),
    "another tensor": lambda model: setattr(model, "tensor", torch.ones(2)),
    "buffer in place": lambda model: model.inner[0].running_mean.add_(1),
    "another buffer": lambda model: setattr(model.inner[0], "running_mean", torch.ones(2)),
    "buffer that is gone": lambda model: setattr(model.inner[0], "running_mean", None),
    "new buffer": lambda model: model.inner[1].register_buffer("count", torch.zeros(1)),
    "mode": lambda model: setattr(model.inner[0], "momentum", 0.5),
    "another submodule": lambda model: model.inner.append(nn.BatchNorm1d(2)),
    "list": lambda model: model.list.append(1),
    "list in a list": lambda model: model.list[1].append(1),
    "item of a list": lambda model: model.list.__setitem__(0, 5),
    "dict": lambda model: model.table.update(a=2),
    "new key": lambda model: model.table.update(c=2),
    "key that is gone": lambda model: model.table.pop("a"),
    "tensor in a dict in a dict": lambda model: model.table["deep"]["b"].add_(1),
    "set": lambda model: model.set.add(3),
    "element for another": lambda model: (model.set.remove(1), model.set.add(7)),
    "queue": lambda model: model.queue.append(3),
    "list in a tuple": lambda model: model.pair[1].append(3),
    "slot": lambda model: setattr(model.slotted, "value", 2),
    "empty slot": lambda model: delattr(model.slotted, "value"),
    "slot of a list": lambda model: setattr(model.own_list, "value", 2),
    "array": lambda model: model.array.fill(1),
    "what an array is a view of": lambda model: model.base.fill(1),
    "keyword of a partial": lambda model: model.partial.keywords.update(key=3),
    "list of a partial": lambda model: model.partial.keywords["key"].append(3),
    "variable of a closure": lambda model: model.function.bump(),
    "default": set_default,
    "keyword's default": set_named,
    "hook": lambda model: model.register_forward_pre_hook(Slotted()),
    "list that a hook writes": lambda model: model.after(),
    "nothing": lambda model: None,
    "gradient": lambda model: setattr(model.inner[1].weight, "grad", torch.ones(2, 2)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_told_and_undone(change: str) -> None:
    model = Holds()
    model.function.bump()
    before = read(model)
    snapshot = Snapshot(model)
    assert snapshot.changes() == {}
    with torch.no_grad():
        CHANGES[change](model)
    now = read(model)
    differing = {name for name in before | now if not identical(before.get(name, ...), now.get(name, ...))}
    assert snapshot.changes().keys() == differing
    assert bool(differing) == (change not in ("nothing", "gradient"))
    snapshot.restore()
    unwritten = "what an array is a view of"
    assert snapshot.changes() == {} or change == unwritten
    assert all(identical(before[name], value) for name, value in read(model).items()) or change == unwritten


def test_an_emptied_variable_of_a_closure() -> None:
    model = Holds()
    snapshot = Snapshot(model)
    model.function.forget()
    snapshot.restore()
    model.function.bump()
    assert snapshot.changes()


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x


@pytest.mark.filterwarnings("ignore")
def test_state_of_a_scripted_module() -> None:
    model = nn.Sequential(torch.jit.script(Scripted()))
    snapshot = Snapshot(model)
    assert snapshot.changes() == {}
    model(torch.ones(1))
    assert snapshot.changes().keys() == {"0.calls"}
    snapshot.restore()
    assert snapshot.changes() == {}
