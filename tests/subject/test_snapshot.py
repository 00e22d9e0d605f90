"""What forward may change is found, named, put back; and what is not the model's is left alone."""

from __future__ import annotations

import functools
import logging
import random
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pytest_torchexport import check
from pytest_torchexport.backends.base import Backend, Exported
from pytest_torchexport.outcome import Verdict
from pytest_torchexport.subject.state import Snapshot, buffer_names, parameter_marks, parameters, read

X = torch.tensor([0.1, 0.2, 0.3])


class Smooth:
    """A callable with a memory, which is no module."""

    def __init__(self) -> None:
        self.h = torch.zeros(3)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.h = self.h * 0.5 + x
        return self.h + 0

    def step(self, x: torch.Tensor) -> torch.Tensor:
        return self(x)


class Around(nn.Module):
    """A module that leaves its work to a callable."""

    def __init__(self, work: Any) -> None:
        super().__init__()
        self.work = work

    def forward(self, x: torch.Tensor) -> Any:
        return self.work(x)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n: torch.Tensor
        self.register_buffer("n", torch.zeros(1))
        self.linear = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.n.add_(1)
        return x * 2

    def encode(self, x: torch.Tensor) -> Any:
        return self(x)


def in_closure(value: Any) -> Any:
    def function(x: torch.Tensor) -> Any:
        return value(x)

    return function


def smooth_closure() -> Any:
    h = torch.zeros(3)

    def function(x: torch.Tensor) -> torch.Tensor:
        h.mul_(0.5).add_(x)
        return h + 0

    return function


def rebinding_closure() -> Any:
    h = torch.zeros(3)

    def function(x: torch.Tensor) -> torch.Tensor:
        nonlocal h
        h = h * 0.5 + x
        return h + 0

    return function


def with_default(x: torch.Tensor, seen: list[torch.Tensor] = []) -> torch.Tensor:  # noqa: B006 that is the point
    seen.append(x)
    return x * len(seen)


@dataclass(slots=True)
class Slots:
    h: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.h = self.h + x
        return self.h


class InList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [Counts()]

    def forward(self, x: torch.Tensor) -> Any:
        return self.layers[0](x)


HOLDERS = {
    "callable object": (Smooth, "h"),
    "bound method of an object": (lambda: Smooth().step, "h"),
    "callable in a module": (lambda: Around(Smooth()), "work.h"),
    "callable in a partial": (lambda: functools.partial(Smooth()), "h"),
    "tensor in a closure": (smooth_closure, "h"),
    "variable of a closure": (rebinding_closure, "h"),
    "callable in a closure": (lambda: in_closure(Smooth()), "value.h"),
    "behind a wrapper of torch": (lambda: torch.no_grad()(in_closure(Smooth())), "value.h"),
    "default of a parameter": (lambda: with_default, "seen[0]"),
    "slots": (lambda: Slots(torch.zeros(3)), "h"),
    "slots in a module": (lambda: Around(Slots(torch.zeros(3))), "work.h"),
    "module in a closure": (lambda: in_closure(Counts()), "value.n"),
    "module in a partial": (lambda: functools.partial(Counts()), "n"),
    "module of a bound method": (lambda: Counts().encode, "n"),
    "module in a plain list": (InList, "layers[0].n"),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_state_is_named_and_put_back_wherever_it_is_held(holder: str) -> None:
    make, name = HOLDERS[holder]
    model = make()
    before = read(model)
    snapshot = Snapshot(model)
    first = model(X)
    assert name in snapshot.changes()
    snapshot.restore()
    assert snapshot.changes() == {}
    assert read(model).keys() == before.keys()
    torch.testing.assert_close(model(X), first)
    snapshot.restore()


class _OnObject(Exported):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    @property
    def shares_module(self) -> bool:
        return True


class Instead(Backend):
    """An exported program that is the given function."""

    name = "instead"

    def __init__(self, function: Any) -> None:
        self.function = function

    def export(self, request: Any) -> Any:
        return None

    def load(self, program: Any, path: Any, request: Any) -> Exported:
        return _OnObject(self.function)


class _Alone(_OnObject):
    shares_module = False


class Stateless(Instead):
    """An exported program that is the given function and carries no state."""

    name = "stateless"

    def load(self, program: Any, path: Any, request: Any) -> Exported:
        return _Alone(self.function)


def workspace() -> tuple[Any, Any]:
    memory = torch.zeros(3)

    def function(factor: float) -> Any:
        def multiply(x: torch.Tensor) -> torch.Tensor:
            return torch.mul(x, factor, out=memory)

        return multiply

    return function(2.0), function(3.0)


class Workspace:
    def __init__(self) -> None:
        self.memory = torch.zeros(3)

    def __call__(self, x: torch.Tensor, factor: float = 2.0) -> torch.Tensor:
        return torch.mul(x, factor, out=self.memory)


@pytest.mark.parametrize("holder", ["closure", "callable"])
def test_an_output_in_the_models_own_memory_is_not_overwritten(holder: str) -> None:
    right, wrong = workspace()
    model = right
    if holder == "callable":
        model = Around(Workspace())
        right, wrong = model, functools.partial(model.work, factor=3.0)
    assert check(model, (X,), backend=Instead(wrong), n_inputs=1).verdict is Verdict.MISMATCH
    assert check(model, (X,), backend=Instead(right), n_inputs=1).verdict is Verdict.EQUIVALENT


def test_tensors_are_all_that_restore_writes_to() -> None:
    model = in_closure(Around(Workspace()))
    (memory,) = Snapshot(model).tensors()
    assert memory.data_ptr() == model(X).data_ptr()


@pytest.mark.parametrize("make", [Smooth, lambda: Smooth().step, lambda: Around(Smooth())])
def test_state_lost_from_a_callable_makes_a_trace_wrong(make: Any) -> None:
    assert check(make(), (X,), backend="trace", n_inputs=4).verdict is not Verdict.EQUIVALENT


class TestNames:
    def test_buffers_and_parameters_of_every_module_that_a_callable_leads_to(self) -> None:
        module = Counts()
        for model in (module, module.encode, functools.partial(module)):
            assert buffer_names(model) == {"n"}
            assert parameters(model) == dict(module.named_parameters())
        closed = in_closure(module)
        assert buffer_names(closed) == {"value.n"}
        assert parameters(closed).keys() == {"value.linear.weight", "value.linear.bias"}
        assert parameter_marks(closed).keys() == parameters(closed).keys()

    def test_a_module_has_its_registered_name_whatever_else_refers_to_it(self) -> None:
        model: Any = nn.Module()
        model.first = nn.Module()
        model.second = Counts()
        vars(model.first)["sibling"] = model.second
        vars(model)["everything"] = [model.second]
        assert buffer_names(model) == {"second.n"}
        assert {"second.n"} == {name for name in read(model) if name.endswith("n")}

    def test_a_shared_buffer_and_a_shared_parameter_have_one_name(self) -> None:
        model: Any = nn.Module()
        model.one, model.two = Counts(), Counts()
        model.two.n, model.two.linear = model.one.n, model.one.linear
        assert buffer_names(model) == {"one.n"}
        assert set(parameters(model)) == {"one.linear.weight", "one.linear.bias"}

    def test_a_lost_buffer_of_a_partial_is_a_mismatch(self) -> None:
        outcome = check(functools.partial(Counts()), (X,), backend=Stateless(lambda x: x * 2), n_inputs=1)
        assert outcome.verdict is Verdict.MISMATCH
        assert "state n" in outcome.message

    def test_values_in_sets_and_enumerations_count(self) -> None:
        model: Any = Around(None)
        model.seen, model.dtype = {1}, torch.float32
        snapshot = Snapshot(model)
        model.seen.add(2)
        model.dtype = torch.float64
        assert snapshot.changes() == {"seen{2}": 2, "dtype": torch.float64}
        snapshot.restore()
        assert model.seen == {1}


class TestPutBack:
    def test_containers_arrays_and_generators(self) -> None:
        model: Any = Around(None)
        model.history, model.cache, model.array = deque([1]), {"k": [X.clone()]}, np.zeros(2)
        model.generators = (torch.Generator(), random.Random(1), np.random.default_rng(1), np.random.RandomState(1))
        snapshot = Snapshot(model)

        def draw() -> list[float]:
            one, two, three, four = model.generators
            return [torch.rand(1, generator=one).item(), two.random(), three.random(), four.random_sample()]

        first = draw()
        model.history.append(2)
        model.cache["k"][0].zero_()
        model.cache["other"] = 1
        model.array[:] = 5
        assert snapshot.changes().keys() == {"history[1]", "cache['k'][0]", "cache['other']", "array"}
        snapshot.restore()
        assert snapshot.changes() == {}
        assert draw() == first

    def test_a_buffer_that_grew(self) -> None:
        module: Any = Counts()
        snapshot = Snapshot(module)
        module.n.data = torch.ones(4, dtype=torch.float64)
        snapshot.restore()
        assert module.n.shape == (1,)
        assert module.n.dtype is torch.float32

    def test_a_hook_of_the_user(self) -> None:
        features: list[torch.Tensor] = []
        model: Any = nn.Sequential(nn.Linear(3, 3))
        model[0].register_forward_hook(lambda module, args, output: features.append(output))
        check(model, (X,), backend="trace", n_inputs=2)
        assert features == []

    def test_gradients_and_requires_grad(self) -> None:
        class Forces(nn.Linear):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                self.bias.requires_grad_(False)
                x = x.detach().requires_grad_()
                torch.autograd.backward(super().forward(x).pow(2).sum())
                assert x.grad is not None
                return x.grad

        model = Forces(3, 3)
        earlier = model.bias.grad = torch.ones(3)
        assert check(model, (X,), backend="compile:backend=eager", n_inputs=1).verdict is Verdict.EQUIVALENT
        assert model.weight.grad is None
        assert model.bias.grad is earlier
        assert model.bias.requires_grad

    def test_the_history_of_a_state_that_is_part_of_a_graph(self) -> None:
        module: Any = Counts()
        snapshot = Snapshot(module)
        module.n.mul_(module.linear.bias[:1])
        assert module.n.grad_fn is not None
        snapshot.restore()
        assert module.n.grad_fn is None
        assert not module.n.requires_grad

    def test_state_made_under_inference_mode(self) -> None:
        with torch.inference_mode():
            module: Any = Counts()
            snapshot = Snapshot(module)
            module(X)
        assert parameter_marks(module)
        assert snapshot.changes().keys() == {"n"}
        snapshot.restore()
        assert module.n == 0

    def test_slots_of_a_frozen_class_and_a_slot_that_was_empty(self) -> None:
        @dataclass(frozen=True, slots=True)
        class Frozen:
            value: int

        class Empty:
            __slots__ = ("__private", "late")

        model: Any = Around(None)
        model.frozen, model.empty = Frozen(1), Empty()
        snapshot = Snapshot(model)
        object.__setattr__(model.frozen, "value", 2)
        model.empty.late = 3
        model.empty._Empty__private = 4
        assert snapshot.changes() == {"frozen.value": 2, "empty.late": 3, "empty._Empty__private": 4}
        snapshot.restore()
        assert snapshot.changes() == {}
        assert not hasattr(model.empty, "late")


class TestNotTheModels:
    def test_the_logging_tree(self) -> None:
        model: Any = Around(None)
        model.log = logging.getLogger("model.of.a.user")
        snapshot = Snapshot(model)
        assert not [name for name in snapshot.values if name.startswith("log")]
        made = logging.getLogger("made.while.checking")
        snapshot.restore()
        assert logging.getLogger("made.while.checking") is made

    def test_a_test_runner_in_a_closure(self, request: pytest.FixtureRequest) -> None:
        def function(x: torch.Tensor) -> torch.Tensor:
            assert request is not None
            return x

        assert read(function) == {}

    def test_an_object_that_leads_to_itself(self) -> None:
        model: Any = Around(None)
        model.itself = [model, Smooth()]
        model.itself.append(model.itself)
        snapshot = Snapshot(model)
        model.itself[1](X)
        assert snapshot.changes().keys() == {"itself[1].h"}

    def test_a_long_chain(self) -> None:
        model: Any = Around(None)
        end: list[Any] = []
        model.chain = end
        for _ in range(5000):
            end.append([])
            end = end[0]
        snapshot = Snapshot(model)
        end.append(1)
        (change,) = snapshot.changes().values()
        assert change == 1
        snapshot.restore()
        assert end == []
