"""What is spelled gives the value back, and never runs what a key or a name says."""

from __future__ import annotations

import collections
import dataclasses
import enum
import sys
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from pytest_torchexport.reproduce.spell import CannotSpell, Speller
from pytest_torchexport.subject.equality import identical


class Sides(enum.Flag):
    LEFT = 1
    RIGHT = 2


Odd = enum.Enum("Odd", {"a b": 1, "class": 2, "plain": 3}, module=__name__)


class Attributes(dict[str, Any]):
    """Takes keywords only."""

    def __init__(self, **given: Any) -> None:
        super().__init__(given)


class Wrapped(collections.UserDict[str, Any]):
    pass


class Neither(dict[Any, Any]):
    def __init__(self, one: Any, two: Any) -> None:
        super().__init__({"first": one, "second": two})


@dataclasses.dataclass
class Output(dict[str, Any]):
    """As those of transformers: a dict and a dataclass."""

    kind: Any = None

    def __post_init__(self) -> None:
        self["kind"] = self.kind

    __hash__ = None


class Pair(NamedTuple):
    kind: Any
    name: Any


@dataclasses.dataclass
class Derived:
    one: int
    two: int = dataclasses.field(init=False, default=7)


def given_back(value: Any) -> Any:
    speller = Speller(lambda _: None)
    text = speller.spell(value)
    names: dict[str, Any] = {"np": np, "torch": torch}
    exec("\n".join(speller.imports), names)
    return eval(text, names)


@pytest.mark.parametrize(
    "value",
    [
        *(np.float32("nan"), np.float32("inf"), np.float64("-inf"), np.float16(1.5), np.int8(-3), np.bool_(True)),
        *(np.str_("it's"), np.bytes_(b"x"), np.complex64(complex("nan+infj")), np.complex128(1 + 2j)),
        *(np.datetime64("2020-01-01"), np.datetime64("NaT", "ms"), np.timedelta64(3, "h"), np.datetime64(7, ("s", 25))),
        *(Sides.LEFT, Sides.LEFT | Sides.RIGHT, Sides(0), Odd["a b"], Odd["class"], Odd["plain"]),
        collections.defaultdict(None, {"a-b": 1}),
        collections.defaultdict(list, {"": [1], "class": [2]}),
        collections.defaultdict(Wrapped, {3: Wrapped()}),
        *(collections.Counter("aab"), collections.OrderedDict({"a b": 1}), collections.deque([1, 2], maxlen=2)),
        *(Attributes(**{"a-b": 1}), Wrapped({"a b": 1, "dict": 2}), Output(kind=3), Pair(1, "x")),
        {"x": float("nan"), 2: complex("inf-infj"), (1, None): torch.float32},
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_the_value_comes_back(value: Any) -> None:
    found = given_back(value)
    assert type(found) is type(value)
    assert identical(found, value) or repr(found) == repr(value)
    if isinstance(value, collections.defaultdict):
        assert found.default_factory is value.default_factory
    if isinstance(value, collections.deque):
        assert found.maxlen == value.maxlen
    if isinstance(value, np.generic):
        assert found.dtype == value.dtype


def test_a_named_tuple_of_torch_comes_back() -> None:
    kind: Any = torch.return_types.max
    found = given_back(kind((1, 2)))
    assert type(found) is kind
    assert tuple(found) == (1, 2)


@pytest.mark.parametrize(
    "make", [dict, Wrapped, lambda it: collections.defaultdict(None, it), lambda it: Attributes(**it)]
)
def test_a_key_is_never_code(make: Any) -> None:
    ran: list[int] = []
    sys.modules[__name__].ran = ran  # type: ignore[attr-defined]
    key = f"x=__import__({__name__!r}).ran.append(1),y"
    assert dict(given_back(make({key: 1}))) == {key: 1}
    assert not ran


class Strange(NamedTuple):
    one: int


@pytest.mark.parametrize(
    "value",
    [
        *(Neither(1, 2), Derived(1), collections.defaultdict(lambda: 0, {"a": 1}), np.longdouble(1.5)),
        np.zeros((), [("a", "i4")])[()],
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_no_source_gives_back_is_said(value: Any) -> None:
    with pytest.raises(CannotSpell):
        given_back(value)


def test_a_class_with_a_name_that_is_code_is_no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "a\nprint()"
    kind = type(name, (Strange,), {"__module__": __name__})
    monkeypatch.setattr(sys.modules[__name__], name, kind, raising=False)
    with pytest.raises(CannotSpell, match="cannot be imported"):
        given_back(kind(1))
