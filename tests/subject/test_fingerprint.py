"""Two models share eager's results only if nothing that counts differs."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
