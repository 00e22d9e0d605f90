"""Containers are taken apart and put together again, whatever they are made of."""

from __future__ import annotations

import types
from collections import deque
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from pytest_torchexport.subject import containers
from pytest_torchexport.subject.state import identical

X = torch.tensor([1.0, 2.0])


@dataclass(frozen=True, slots=True)
class Slots:
    x: torch.Tensor
    name: str = "one"


class Plain:
    __slots__ = ("missing", "x")

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x


class Itself:
    def __init__(self) -> None:
        self.x = X.clone()
        self.me = self


def a_list_in_itself() -> list[Any]:
    value: list[Any] = [X.clone()]
    value.append({"above": value})
    return value


@pytest.mark.parametrize(
    "value",
    [Slots(X), Plain(X), types.SimpleNamespace(x=X), [X, (X,)], {"x": X}, deque([X])],
    ids=lambda value: type(value).__name__,
)
def test_copies_share_nothing_and_are_identical(value: Any) -> None:
    copy = containers.clone(value)
    assert type(copy) is type(value)
    assert identical(copy, value)
    for _, tensor in containers.tensors(copy):
        assert tensor.data_ptr() != X.data_ptr()
        tensor.add_(1)
    assert not identical(copy, value)


def test_parts_of_a_slotted_dataclass_can_be_replaced() -> None:
    value = containers.replace(Slots(X), {".x": X + 1})
    assert identical(value, Slots(X + 1))


@pytest.mark.parametrize("make", [Itself, a_list_in_itself])
def test_a_container_that_holds_itself_ends(make: Any) -> None:
    value, other = make(), make()
    (tensor,) = (tensor for _, tensor in containers.tensors(value))
    assert identical(containers.clone(value), value)
    assert identical(value, other)
    assert "..." in containers.describe(value)
    (path,) = (path for path, leaf in containers.leaves(value) if leaf is tensor)
    assert containers.replace(value, {path: X * 5}) is not value
    tensor.add_(1)
    assert not identical(value, other)


def test_a_container_that_stands_twice_is_no_cycle() -> None:
    part = [X]
    copy = containers.clone([part, part])
    assert copy[0] is copy[1]
    assert len(list(containers.leaves([part, part]))) == 2


class TestIdentical:
    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    @pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
    def test_nested_tensors(self, layout: torch.layout) -> None:
        one, same, other, shorter = (
            torch.nested.nested_tensor(parts, layout=layout) for parts in ([X, X[:1]], [X, X[:1]], [X, X[1:]], [X, X])
        )
        assert identical(one, same)
        assert not identical(one, other)
        assert not identical(one, shorter)

    def test_tensors_without_values(self) -> None:
        assert identical(X.to("meta"), X.to("meta"))
        assert not identical(X.to("meta"), X[:1].to("meta"))
        assert not identical(X.to("meta"), X)
