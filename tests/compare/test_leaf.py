"""One leaf: kinds, dtypes and shapes have to be the same, as far as the exported form has them."""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
import pytest
import torch

from pytest_torchexport.backends.base import Structure
from pytest_torchexport.compare.leaf import compare_leaf
from pytest_torchexport.outcome import Cause, Leaf


class Color(enum.Enum):
    RED = 1
    BLUE = 2


def compared(expected: Any, actual: Any, structure: Structure = Structure.SAME) -> Leaf:
    return compare_leaf("output", expected, actual, structure=structure)


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(1.5),
        1.5,
        3,
        True,
        2j,
        "text",
        b"bytes",
        None,
        Color.RED,
        torch.float16,
        np.float32(1.5),
        np.array([1, 2]),
        np.array(["a", "b"]),
        2**80,
    ],
)
def test_a_value_agrees_with_itself(value: Any) -> None:
    assert compared(value, value).agrees


@pytest.mark.parametrize(
    ("expected", "actual", "cause"),
    [
        (torch.ones(2), torch.ones(2, dtype=torch.float64), Cause.DTYPE),
        (torch.ones(2), torch.ones(2, 1), Cause.SHAPE),
        (torch.ones(1), torch.tensor(1.0), Cause.SHAPE),
        (torch.eye(2), torch.eye(2).to_sparse(), Cause.STRUCTURE),
        (torch.tensor(1.5), 1.5, Cause.STRUCTURE),
        (torch.tensor(1.5), None, Cause.STRUCTURE),
        (None, torch.tensor(1.5), Cause.STRUCTURE),
        (1.5, "1.5", Cause.STRUCTURE),
        (1, 1.0, Cause.DTYPE),
        (1, True, Cause.DTYPE),
        (1.5, 1.25, Cause.NUMERIC),
        (1, 2, Cause.NUMERIC),
        (2**80, 2**80 + 1, Cause.STRUCTURE),
        ("a", "b", Cause.STRUCTURE),
        (Color.RED, Color.BLUE, Cause.STRUCTURE),
        (np.array([1, 2]), np.array([1, 3]), Cause.NUMERIC),
        (np.array(["a"]), np.array(["b"]), Cause.STRUCTURE),
        (np.float32(1.5), np.float64(1.5), Cause.DTYPE),
        (1 + 1e-3j, 1 + 2e-3j, Cause.NUMERIC),
    ],
)
def test_another_kind_or_value_differs_and_says_in_what(expected: Any, actual: Any, cause: Cause) -> None:
    leaf = compared(expected, actual)
    assert (leaf.agrees, leaf.cause) == (False, cause)
    assert leaf.reason


@pytest.mark.parametrize("structure", [Structure.SCRIPT, Structure.FLAT])
def test_a_form_without_numbers_may_return_one_as_a_tensor_without_dimensions(structure: Structure) -> None:
    assert compared(1.5, torch.tensor(1.5), structure).agrees
    assert compared(3, torch.tensor(3), structure).agrees
    assert compared(True, torch.tensor(True), structure).agrees
    assert compared(3, torch.tensor(3.0), structure).cause is Cause.DTYPE
    assert compared(3, torch.tensor(4), structure).cause is Cause.NUMERIC
    for shaped in (torch.tensor([1.5]), torch.tensor([[1.5]])):
        assert compared(1.5, shaped, structure).cause is not None
    assert compared("1", torch.tensor(1), structure).cause is Cause.STRUCTURE


def test_a_form_that_has_numbers_may_not() -> None:
    for tensor in (torch.tensor(1.5, dtype=torch.float64), torch.tensor([[1.5]])):
        assert not compared(1.5, tensor).agrees


def test_the_default_device_of_the_user_changes_nothing() -> None:
    torch.set_default_device("meta")
    try:
        assert compared(1.5, 1.5).agrees
        assert compared(1.5, 1.25).cause is Cause.NUMERIC
        assert compared(np.array([1.0]), np.array([2.0])).cause is Cause.NUMERIC
    finally:
        torch.set_default_device(None)
