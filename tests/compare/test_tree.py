"""Leaves are paired by the structure that a form can carry, and what has no partner is a difference."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch

from pytest_torchexport.backends.base import FlatOutput, Structure
from pytest_torchexport.compare.tree import Pairs, pair
from pytest_torchexport.outcome import Cause

A, B, C = torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0)


class Point(NamedTuple):
    x: Any
    y: Any


def loaded_again(*fields: str) -> Any:
    """Another class of the name `Point`."""
    make: Any = namedtuple  # noqa: PYI024 - made from names, as a loader makes it
    return make("Point", fields)


@dataclass
class Result:
    logits: Any
    loss: Any = None


def paths(pairs: Pairs) -> list[str]:
    return [path for path, _, _ in pairs.leaves]


@pytest.mark.parametrize("structure", [Structure.SAME, Structure.SCRIPT])
def test_leaves_are_named_as_python_names_them(structure: Structure) -> None:
    output = {"a": [A, (B, None)], "p": Point(C, "text")}
    pairs = pair(output, output, structure)
    assert not pairs.problems
    wanted = ["output['a'][0]", "output['a'][1][0]", "output['a'][1][1]", "output['p'].x", "output['p'].y"]
    assert paths(pairs) == wanted
    assert all(one is other for _, one, other in pairs.leaves)


@pytest.mark.parametrize(
    ("expected", "actual", "said"),
    [
        ((A, B), (A,), "eager has 2 parts, the exported program 1"),
        ((A,), (A, B), "eager has 1 parts, the exported program 2"),
        ((A,), A, "eager returns tuple, the exported program Tensor"),
        (A, (A,), "eager returns Tensor, the exported program tuple"),
        ((A, (B,)), (A, None), "eager returns tuple, the exported program None"),
        ({"a": A, "b": B}, {"a": A}, "key 'b' of eager is missing"),
        ({"a": A}, {"a": A, "b": B}, "key 'b' is not in eager's output"),
        ({"a": A, "b": B}, {"b": B, "a": A}, "the keys are in another order"),
        ({"a": A}, [A], "eager returns dict, the exported program list"),
        ([], [A], "eager has 0 parts, the exported program 1"),
    ],
)
@pytest.mark.parametrize("structure", [Structure.SAME, Structure.SCRIPT])
def test_what_has_no_partner_is_a_difference(expected: Any, actual: Any, said: str, structure: Structure) -> None:
    (problem,) = pair(expected, actual, structure).problems
    assert (problem.agrees, problem.cause) == (False, Cause.STRUCTURE)
    assert said in problem.reason


def test_what_is_there_is_compared_beside_what_is_missing() -> None:
    pairs = pair({"a": A, "b": B}, {"b": C}, Structure.SAME)
    assert len(pairs.problems) == 1
    assert paths(pairs) == ["output['b']"]


CLASSES = [
    ([A, B], (A, B)),
    (Point(A, B), (A, B)),
    (Point(A, B), loaded_again("x", "z")(A, B)),
    (OrderedDict(a=A), {"a": A}),
    (Result(A, B), (A, B)),
]


@pytest.mark.parametrize(("expected", "actual"), CLASSES)
def test_classes_of_containers_matter_to_a_form_that_keeps_them(expected: Any, actual: Any) -> None:
    (problem,) = pair(expected, actual, Structure.SAME).problems
    assert problem.path == "output"
    assert not pair(expected, actual, Structure.SCRIPT).problems


def test_a_class_that_was_loaded_again_is_the_same_one() -> None:
    assert not pair(Point(A, B), loaded_again("x", "y")(A, B), Structure.SAME).problems


def test_script_may_leave_out_keys_of_nothing() -> None:
    assert not pair({"a": A, "b": None}, {"a": A}, Structure.SCRIPT).problems
    assert pair({"a": A, "b": None}, {"a": A}, Structure.SAME).problems
    assert pair({"a": A, "b": B}, {"a": A}, Structure.SCRIPT).problems


class TestFlat:
    def test_tensors_are_paired_in_order_and_the_rest_is_left_out(self) -> None:
        pairs = pair({"a": A, "n": None, "s": "text", "b": (B, 3)}, FlatOutput({"o1": A, "o2": B}), Structure.FLAT)
        assert not pairs.problems
        assert paths(pairs) == ["output['a']", "output['b'][0]"]
        assert pairs.left_out == ["output['n']", "output['s']", "output['b'][1]"]

    def test_numbers_are_paired_where_the_program_has_them(self) -> None:
        pairs = pair((A, 3, None), FlatOutput({"o1": A, "o2": torch.tensor(3)}), Structure.FLAT)
        assert paths(pairs) == ["output[0]", "output[1]"]
        assert pairs.left_out == ["output[2]"]

    def test_a_sequence_holds_several_tensors(self) -> None:
        pairs = pair(([A, B], C), FlatOutput({"list": [A, B], "last": C}), Structure.FLAT)
        assert not pairs.problems
        assert [one is other for _, one, other in pairs.leaves] == [True] * 3

    @pytest.mark.parametrize("outputs", [{}, {"o1": A}, {"o1": A, "o2": B, "o3": C}])
    def test_another_number_of_tensors_is_a_difference(self, outputs: dict[str, Any]) -> None:
        pairs = pair((A, B), FlatOutput(outputs), Structure.FLAT)
        (problem,) = pairs.problems
        assert f"eager returns 2 tensors, the exported program {len(outputs)}" in problem.reason
        assert len(pairs.leaves) == min(2, len(outputs))
