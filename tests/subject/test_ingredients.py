"""Each kind of object that a model may hold: made again it is the same, and with a planted difference it is not."""

from __future__ import annotations

import collections
import contextlib
import contextvars
import enum
import functools
import gc
import itertools
import logging
import operator
import random
import sys
import threading
import types
import weakref
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from pytest_torchexport.subject.fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FACTOR = 2.0
TABLE = {"factor": 2.0}
SETTINGS = types.ModuleType("settings_of_the_user")
SETTINGS.factor = 2.0  # type: ignore[attr-defined]


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(2, 2)


class Bag(list[int]):
    """A list with attributes of its own."""


class Counted(float):
    """A number with attributes of its own."""


class Dice(random.Random):
    """State of C under a Python class."""


class Mode(enum.Enum):
    FAST = 1
    SLOW = 2


class Marked(torch.Tensor):
    """A tensor that only has a name of its own."""


def with_attribute(value: Any, item: Any) -> Any:
    value.item = item
    return value


def weights_of(kind: Callable[[int, int], nn.RNNBase], hidden: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return kind(2, hidden)


def set_event() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


def weak(target: object) -> list[Any]:
    return [weakref.ref(target), target]  # whoever holds it keeps it alive


def retied(kind: Callable[[int, int], nn.RNNBase]) -> nn.Module:
    """Its weak references lead to other parameters than those which it has."""
    module: Any
    module, other = weights_of(kind), weights_of(kind)
    module._flat_weight_refs = [weakref.ref(one) for one in other.parameters()]
    module.other = [other]
    return cast("nn.Module", module)


def hooked(factor: float = 2.0, *, first: bool = True, always: bool = False) -> nn.Module:
    module = linear()
    hooks = [lambda _, __, output: output * factor, lambda _, __, output: output + 1]
    for hook in hooks if first else hooks[::-1]:
        module.register_forward_hook(hook, always_call=always)
    return module


@contextlib.contextmanager
def entered(value: float) -> Iterator[float]:
    yield value


def decorated(value: float) -> Callable[..., Any]:
    @entered(value)
    def inner(x: torch.Tensor) -> torch.Tensor:
        return x

    return inner


def local_class(factor: float, *, default: float = 1.0) -> nn.Module:
    class Local(nn.Module):
        shift = default

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * factor + self.shift

    return Local()


def traced(constant: float) -> nn.Module:
    shift = torch.full((2,), constant)

    class Shifted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + shift

    return cast("nn.Module", torch.jit.trace(Shifted(), torch.ones(2)))  # type: ignore[no-untyped-call]


def scripted_inside(activation: nn.Module) -> nn.Module:
    return torch.jit.script(nn.Sequential(activation))


def normalised(seed: int) -> nn.Module:
    module = parametrizations.weight_norm(linear(seed))
    assert isinstance(module, nn.Module)
    return module


def graph(factor: float) -> nn.Module:
    return torch.fx.symbolic_trace(types.FunctionType((lambda x: x * F).__code__, {"F": factor}))


F = 0.0

PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "LSTM": (lambda: weights_of(nn.LSTM), lambda: weights_of(nn.LSTM, seed=1)),
    "GRU": (lambda: weights_of(nn.GRU), lambda: weights_of(nn.RNN)),
    "LSTM whose weak references lead elsewhere": (lambda: weights_of(nn.LSTM), lambda: retied(nn.LSTM)),
    "weak reference": (lambda: weak(linear()), lambda: weak(linear(1))),
    "weak reference to the own one or to an equal one": (lambda: weak(linear()), lambda: [weak(linear())[0], linear()]),
    "decorator that enters a context": (lambda: decorated(1.0), lambda: decorated(2.0)),
    "generator that waits": (lambda: entered.__wrapped__(1.0), lambda: entered.__wrapped__(2.0)),  # type: ignore[attr-defined]
    "hook": (hooked, lambda: hooked(3.0)),
    "order of hooks": (hooked, lambda: hooked(first=False)),
    "way of a hook": (hooked, lambda: hooked(always=True)),
    "parametrization": (lambda: normalised(0), lambda: normalised(1)),
    "norm of old": (lambda: weight_norm(linear()), lambda: weight_norm(linear(), dim=1)),
    "class of a test's body": (lambda: local_class(1.0), lambda: local_class(2.0)),
    "value in a class of a test's body": (lambda: local_class(1.0), lambda: local_class(1.0, default=2.0)),
    "code of a scripted submodule": (lambda: scripted_inside(nn.ReLU()), lambda: scripted_inside(nn.GELU())),
    "constant of a trace": (lambda: traced(1.0), lambda: traced(2.0)),
    "attributes of a list": (lambda: with_attribute(Bag([1]), 1), lambda: with_attribute(Bag([1]), 2)),
    "attributes of a number": (lambda: with_attribute(Counted(1), 1), lambda: with_attribute(Counted(1), 2)),
    "attributes of a tensor": (lambda: with_attribute(torch.ones(1), 1), lambda: with_attribute(torch.ones(1), 2)),
    "attributes of a function": (lambda: with_attribute(lambda x: x, 1), lambda: with_attribute(lambda x: x, 2)),
    "class of a tensor": (lambda: torch.ones(1), lambda: torch.ones(1).as_subclass(Marked)),
    "parameter": (lambda: torch.ones(1), lambda: nn.Parameter(torch.ones(1), requires_grad=False)),
    "set of modules": (lambda: {linear()}, lambda: {linear(1)}),
    "set": (lambda: {"b", "a", 1, Mode.FAST, int}, lambda: {"b", "a", 1, Mode.SLOW, int}),
    "default factory": (lambda: collections.defaultdict(int), lambda: collections.defaultdict(list)),
    "length of a queue": (lambda: collections.deque([1], 3), lambda: collections.deque([1], 2)),
    "bound function of C": (lambda: [1].append, lambda: [2].append),
    "partial": (lambda: functools.partial(torch.softmax, dim=1), lambda: functools.partial(torch.softmax, dim=0)),
    "itemgetter": (lambda: operator.itemgetter(1), lambda: operator.itemgetter(2)),
    "random numbers of Python": (lambda: Dice(1), lambda: Dice(2)),
    "random numbers of numpy": (lambda: np.random.default_rng(1), lambda: np.random.default_rng(2)),
    "random numbers of torch": (torch.Generator, lambda: torch.Generator().manual_seed(5)),
    "number of numpy": (lambda: np.float32(1), lambda: np.float64(1)),
    "array of objects": (lambda: np.array([None, 1]), lambda: np.array([None, 2])),
    "slice": (lambda: slice(torch.ones(1)), lambda: slice(torch.zeros(1))),
    "annotation": (lambda: Literal["a"], lambda: Literal["b"]),
    "state of an event": (threading.Event, set_event),
    "weak dictionary": (
        lambda: weakref.WeakValueDictionary({1: Mode}),
        lambda: weakref.WeakValueDictionary({2: Mode}),
    ),
    "graph of torch.fx": (lambda: graph(1.0).graph, lambda: graph(2.0).graph),
    "operator": (lambda: torch.ops.aten.relu.default, lambda: torch.ops.aten.neg.default),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", PAIRS)
def test_made_again_it_is_the_same_and_changed_it_is_not(case: str) -> None:
    one, other = PAIRS[case]
    assert fingerprint(one()) == fingerprint(one()) is not None
    assert fingerprint(other()) is not None
    assert fingerprint(one()) != fingerprint(other())


def scaled(x: Any) -> Any:
    return [one * FACTOR for one in x]


def looked_up(x: Any) -> Any:
    return x * TABLE["factor"]


def from_settings(x: Any) -> Any:
    return x * SETTINGS.factor


@pytest.mark.parametrize(
    ("function", "holder", "name"),
    [
        (scaled, sys.modules[__name__].__dict__, "FACTOR"),
        (looked_up, TABLE, "factor"),
        (from_settings, SETTINGS.__dict__, "factor"),
    ],
)
def test_constants_outside_of_a_function(
    function: Any, holder: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint(function)
    assert before == fingerprint(function) is not None
    monkeypatch.setitem(holder, name, 3.0)
    assert fingerprint(function) != before


class Configured(nn.Module):
    config = types.SimpleNamespace(factor=1)
    act = functools.partialmethod(lambda self, x, factor: x * factor, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("config", types.SimpleNamespace(factor=2)),
        ("act", functools.partialmethod(lambda self, x, factor: x * factor, 3)),
        ("lock", threading.Lock()),
    ],
)
def test_objects_in_a_class(name: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(Configured())
    monkeypatch.setattr(Configured, name, value, raising=False)
    assert fingerprint(Configured()) != before


def test_a_method_that_was_replaced_in_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=16
    )

    def model(seed: int) -> Any:
        torch.manual_seed(seed)
        return transformers.BertModel(config)

    before = fingerprint(model(0))
    assert before == fingerprint(model(0)) is not None
    assert before != fingerprint(model(1))
    monkeypatch.setattr(transformers.BertModel, "get_input_embeddings", lambda self: None)
    assert fingerprint(model(0)) != before


def test_what_says_nothing_of_the_values() -> None:
    assert fingerprint(threading.Lock()) == fingerprint(threading.Lock()) is not None
    assert fingerprint(logging.getLogger("a")) == fingerprint(logging.getLogger("a")) is not None


def test_what_only_is_itself() -> None:
    mark, variable = object(), contextvars.ContextVar("variable", default=1)
    assert fingerprint(mark) == fingerprint(mark) != fingerprint(object())
    before = fingerprint(variable)
    variable.set(2)
    assert fingerprint(variable) != before


def test_what_is_known_by_its_identity_lives_as_long_as_the_fingerprint() -> None:
    mark = type("Mark", (), {})()
    held, kind = fingerprint(mark), weakref.ref(type(mark))
    del mark
    gc.collect()
    assert held is not None
    assert kind() is not None
    del held
    gc.collect()
    assert kind() is None


def begun() -> Any:
    generator = (x for x in (1, 2))
    next(generator)
    return generator


@pytest.mark.parametrize(
    "made",
    [begun, lambda: itertools.count(3), lambda: sys.__stderr__, lambda: torch.ones(2).to_sparse(), lambda: iter([1])],
    ids=["begun generator", "counter", "file", "sparse tensor", "iterator"],
)
def test_what_cannot_be_seen_has_no_fingerprint(made: Callable[[], Any]) -> None:
    assert fingerprint(made()) is None
    assert fingerprint(functools.partial(print, made())) is None
