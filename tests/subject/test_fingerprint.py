"""Two models share eager's results only if nothing that counts differs."""

from __future__ import annotations

import logging
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from pytest_torchexport.subject.state import fingerprint

X = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
SCALE = 2.0


class Scaled(nn.Module):
    scale = 2.0
    table = (1, 2)

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> Any:
        return self.linear(x) * self.scale


@dataclass(slots=True)
class Slots:
    value: int


def of_source(source: str) -> Any:
    return eval(source, {"torch": torch})


def holding(value: Any) -> nn.Module:
    module = Scaled()
    module.value = value
    return module


DIFFERENT = {
    "constant tuples": ("lambda x: x.shape[0] in (1, 5)", "lambda x: x.shape[0] in (2, 5)"),
    "inner functions": ("lambda x: [y * 1 for y in x]", "lambda x: [y * 2 for y in x]"),
    "names of keywords": ("lambda x, *, a=1: x", "lambda x, *, b=1: x"),
    "defaults": ("lambda x, a=1: x", "lambda x, a=2: x"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_functions(case: str) -> None:
    one, other = DIFFERENT[case]
    assert fingerprint(of_source(one)) == fingerprint(of_source(one))
    assert fingerprint(of_source(one)) != fingerprint(of_source(other))


def test_equal_models_are_equal_and_training_counts() -> None:
    assert fingerprint(Scaled(), X) == fingerprint(Scaled(), X) is not None
    assert fingerprint(Scaled()) != fingerprint(Scaled().eval())
    assert fingerprint(Scaled(2)) != fingerprint(Scaled(3))


@pytest.mark.parametrize(
    ("name", "value"),
    [("scale", 3.0), ("table", (1, 3)), ("forward", lambda self, x: x)],
)
def test_class_attributes(name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(Scaled())
    monkeypatch.setattr(Scaled, name, value)
    assert fingerprint(Scaled()) != before


def test_a_constant_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    def scaled(x: torch.Tensor) -> torch.Tensor:
        return x * SCALE

    before = fingerprint(scaled)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert fingerprint(scaled) != before


def test_layout_in_memory_counts() -> None:
    image = torch.ones(1, 2, 2, 2)
    assert fingerprint(Scaled(), image) != fingerprint(Scaled(), image.to(memory_format=torch.channels_last))
    assert fingerprint(Scaled(), X) != fingerprint(Scaled(), X.t())


def test_arguments_that_are_one_tensor_or_share_memory_count() -> None:
    digests = [fingerprint(Scaled(), pair) for pair in ([X, X], [X, X.clone()], [X, X.view(2, 2)])]
    assert len(set(digests)) == 3
    assert fingerprint(Scaled(), [X, X]) == digests[0]


def test_slots_paths_and_opaque_values() -> None:
    assert fingerprint(holding(Slots(1))) == fingerprint(holding(Slots(1))) is not None
    assert fingerprint(holding(Slots(1))) != fingerprint(holding(Slots(2)))
    assert fingerprint(holding(Path("a"))) == fingerprint(holding(Path("a"))) is not None
    assert fingerprint(holding(Path("a"))) != fingerprint(holding(Path("b")))
    assert fingerprint(holding(iter([1]))) is None
    assert fingerprint(holding(X.to_sparse())) is None


def test_a_logger_does_not_keep_models_apart() -> None:
    one, other = (holding(logging.getLogger(name)) for name in ("a", "b"))
    assert fingerprint(one) == fingerprint(one) is not None
    assert fingerprint(one) != fingerprint(other)


def test_a_model_that_leads_to_itself() -> None:
    one, other = Scaled(), Scaled()
    vars(one)["me"], vars(other)["me"] = one, other
    assert fingerprint(one) == fingerprint(other) is not None


class InSlots(nn.Module):
    __slots__ = ("factor",)

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def test_slots_of_a_module() -> None:
    assert fingerprint(InSlots(1.0)) == fingerprint(InSlots(1.0)) is not None
    assert fingerprint(InSlots(1.0)) != fingerprint(InSlots(2.0))


def test_hooks_of_a_parameter() -> None:
    def doubled(gradient: torch.Tensor) -> torch.Tensor:
        return 2 * gradient

    def hooked() -> nn.Module:
        model = Scaled()
        model.linear.weight.register_hook(doubled)  # type: ignore[no-untyped-call]
        return model

    assert fingerprint(hooked()) == fingerprint(hooked()) is not None
    assert fingerprint(hooked()) != fingerprint(Scaled())


def test_which_variable_of_a_closure_has_a_value() -> None:
    def of(*, first: bool) -> Any:
        if first:
            one = 3.0
        else:
            other = 3.0
        return lambda x: (x, lambda: one, lambda: other)

    assert fingerprint(of(first=True)) == fingerprint(of(first=True)) is not None
    assert fingerprint(of(first=True)) != fingerprint(of(first=False))


def users_module(name: str, monkeypatch: pytest.MonkeyPatch, **own: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    vars(made).update(own)
    monkeypatch.setitem(sys.modules, name, made)
    return made


def test_what_a_function_takes_from_other_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = users_module("users_models.settings", monkeypatch, FACTOR=1.0)
    outer = users_module("users_models", monkeypatch, settings=inner, act=torch.tanh)
    vars(inner)["back"] = outer  # modules that import one another
    space: dict[str, Any] = {"users_models": outer}
    exec("def scaled(x): return users_models.act(x) * users_models.settings.FACTOR, users_models.settings.back", space)
    scaled = space["scaled"]
    before = fingerprint(scaled)
    assert before == fingerprint(scaled) is not None
    with monkeypatch.context() as patch:
        patch.setattr(outer, "act", torch.relu)
        assert fingerprint(scaled) != before
    assert fingerprint(scaled) == before
    monkeypatch.setattr(inner, "FACTOR", 2.0)
    assert fingerprint(scaled) != before


def test_what_a_function_imports_when_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = users_module("users_settings", monkeypatch, FACTOR=1.0)
    space: dict[str, Any] = {}
    exec("def scaled(x):\n    from users_settings import FACTOR\n    return x * FACTOR", space)
    before = fingerprint(space["scaled"])
    assert before == fingerprint(space["scaled"]) is not None
    monkeypatch.setattr(settings, "FACTOR", 2.0)
    assert fingerprint(space["scaled"]) != before


class Shared(Scaled):
    held: ClassVar[list[Any]] = []


def test_what_cannot_be_seen_stays_so_where_a_class_has_it_too() -> None:
    def sharing() -> nn.Module:
        begun = iter([1])
        Shared.held[:] = [begun]
        model = Shared()
        vars(model)["begun"] = begun
        return model

    assert fingerprint(sharing()) is None
    Shared.held.clear()
