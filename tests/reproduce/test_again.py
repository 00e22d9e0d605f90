"""How a failing input is written down, so that it can be checked again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pytest_torchexport.plan import Plan, Policy, Subject, make_plan
from pytest_torchexport.reproduce.again import again
from pytest_torchexport.subject.call import Call
from pytest_torchexport.subject.equality import identical

RANDOM = torch.rand(20, 20, generator=torch.Generator().manual_seed(0))


class Model(torch.nn.Module):
    def forward(self, x: Any, y: Any = None) -> Any:
        return x


def plan(calls: int = 1) -> Plan:
    return make_plan(Subject(Model(), (torch.zeros(3),), calls=calls), Policy(), "")


def arguments(text: str) -> dict[str, Any]:
    found: dict[str, Any] = eval(f"dict({text})", {"torch": torch})
    return found


@pytest.mark.parametrize(
    ("call", "element"),
    [
        (Call((torch.ones(3),)), (torch.ones(3),)),
        (Call((), {"x": torch.arange(40), "y": 3}), {"x": torch.arange(40), "y": 3}),
        (Call((torch.ones(3),), {"y": 1e30}), ((torch.ones(3),), {"y": 1e30})),
        (Call((RANDOM[:4, :4], RANDOM[4:8, :4])), (RANDOM[:4, :4], RANDOM[4:8, :4])),
    ],
)
def test_it_is_an_argument_of_the_check(call: Call, element: Any) -> None:
    found = again((call,), plan())
    assert found.complete
    assert identical(arguments(found.text), {"extra_inputs": [element]})


def test_a_short_one_is_in_the_message_and_a_long_one_is_not() -> None:
    assert again((Call((torch.zeros(9),)),), plan()).lines == ["  again with: extra_inputs=[(torch.zeros((9,)),)]"]
    long = (Call((RANDOM[:4, :4], RANDOM[4:8, :4])),)
    assert again(long, plan()).lines == []
    assert again(long, plan(), "input.npz").lines == ["  the input's values: input.npz"]
    several = again((Call((torch.zeros(3), RANDOM)),), plan(), "input.npz").lines
    assert several[0] == "  again with:"
    assert all(line.startswith("      ") for line in several[1:])


def test_what_cannot_be_spelled_is_said() -> None:
    found = again((Call((RANDOM,)),), plan(), "input.npz")
    assert not found.complete
    assert "None,  # x: tensor(float32, [20, 20]), kept in input.npz" in found.text
    hashes = again((Call(("# no comment",)),), plan())
    assert hashes.complete


@pytest.mark.parametrize(("length", "of_the_test", "calls"), [(1, 1, {}), (3, 1, {"calls": 3}), (3, 3, {}), (1, 3, {})])
def test_a_sequence_of_equal_calls(length: int, of_the_test: int, calls: dict[str, int]) -> None:
    found = again((Call((torch.ones(3),)),) * length, plan(of_the_test))
    assert found.complete
    assert identical(arguments(found.text), {**calls, "extra_inputs": [(torch.ones(3),)]})


def test_a_sequence_of_different_calls_is_no_extra_input() -> None:
    found = again((Call((torch.ones(2),)), Call((torch.zeros(2),))), plan())
    assert not found.complete
    assert "extra_inputs" not in found.text
    assert found.text.index("1.0") < found.text.index("0.0, 0.0")
