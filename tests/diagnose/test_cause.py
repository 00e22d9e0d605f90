from __future__ import annotations

import pytest
import torch

from pytest_torchexport import Verdict, check
from pytest_torchexport.backends.base import Suspicion
from pytest_torchexport.diagnose import hypotheses
from pytest_torchexport.diagnose.case import Clue
from pytest_torchexport.diagnose.cause import Finding, attribute
from pytest_torchexport.outcome import Cause, Evidence, Leaf, Location

HERE = Location("cell.py", 12, "if x.sum() > 0:")
BRANCH = Suspicion(Cause.BAKED_BRANCH, "a branch", HERE)
SHAPE = Suspicion(Cause.BAKED_SHAPE, "a size", Location("cell.py", 3, ""))


def differs(path: str = "output", cause: Cause = Cause.NUMERIC) -> Leaf:
    return Leaf(path, agrees=False, cause=cause, reason="differs")


def finding(
    *leaves: Leaf, raised: str | None = None, example: bool = False, same_shapes: bool = True, calls: int = 1
) -> Finding:
    return Finding(leaves, raised, is_example=example, same_shapes=same_shapes, calls=calls)


def test_a_suspected_branch_is_the_cause_if_the_example_itself_agrees() -> None:
    found = attribute([finding(differs())], 5, [SHAPE, BRANCH])
    assert (found.cause, found.location) == (Cause.BAKED_BRANCH, HERE)
    assert [fact.text for fact in found.evidence] == [
        "1 of 5 inputs fail; the example itself agrees",
        "a size",
        "a branch",
    ]


def test_a_suspicion_is_no_cause_if_the_example_fails_too() -> None:
    found = attribute([finding(differs(), example=True), finding(differs())], 5, [BRANCH])
    assert (found.cause, found.location) == (Cause.NUMERIC, None)
    assert found.evidence[0].text == "2 of 5 inputs fail, the example among them"


def test_an_example_that_fails_in_a_later_call_does_not_agree() -> None:
    found = attribute([finding(differs("call 2 output"), example=True, calls=2)], 5, [])
    assert found.evidence[0].text == "1 of 5 inputs fail, the example among them"
    others = attribute([finding(differs("call 2 output"), calls=2)], 5, [])
    assert others.evidence[0].text == "1 of 5 inputs fail; the example itself agrees"


def test_only_other_sizes_fail() -> None:
    assert attribute([finding(differs(), same_shapes=False)], 5, []).cause is Cause.BAKED_SHAPE
    assert attribute([finding(differs(), same_shapes=False), finding(differs())], 5, []).cause is Cause.NUMERIC


@pytest.mark.parametrize(
    ("leaves", "calls", "cause"),
    [
        ([differs("call 2 output")], 3, Cause.LOST_STATE),
        ([differs("call 1 output"), differs("call 2 output")], 3, Cause.NUMERIC),
        ([differs("output"), differs("state h", Cause.LOST_STATE)], 1, Cause.LOST_STATE),
        ([differs("argument x", Cause.LOST_MUTATION)], 1, Cause.LOST_MUTATION),
        ([differs("gradient of w")], 3, Cause.NUMERIC),
    ],
)
def test_what_is_lost_shows_in_state_arguments_and_later_calls(leaves: list[Leaf], calls: int, cause: Cause) -> None:
    assert attribute([finding(*leaves, calls=calls, example=True)], 5, []).cause is cause


def test_an_exception_is_evidence() -> None:
    found = attribute([finding(raised="ValueError: no", example=True)], 5, [])
    assert found.cause is Cause.EXCEPTION
    assert "the exported program raises ValueError: no" in [fact.text for fact in found.evidence]


@pytest.mark.parametrize("kind", [Cause.STRUCTURE, Cause.SHAPE, Cause.DTYPE, Cause.SPECIAL_VALUE])
def test_a_difference_in_kind_outweighs_one_in_value(kind: Cause) -> None:
    found = attribute([finding(differs(), differs("output[1]", kind), example=True)], 1, [])
    assert found.cause is kind


def test_the_line_is_that_of_the_clue_that_says_the_cause() -> None:
    elsewhere = Clue((Evidence("also seen", Location("cell.py", 3, "")),))
    state = Clue((Evidence("without its state eager gives this", HERE),), Cause.LOST_STATE)
    found = attribute([finding(differs(), example=True)], 5, [], clues=[elsewhere, state])
    assert (found.cause, found.location) == (Cause.LOST_STATE, HERE)


def test_a_hypothesis_that_fails_leaves_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def guess(_: object) -> None:
        msg = "no\nway"
        raise RuntimeError(msg)

    monkeypatch.setattr(hypotheses, "_HYPOTHESES", (guess,))

    def model(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if torch._C._is_tracing() else x * 1

    outcome = check(model, (torch.rand(4),), n_inputs=0, branches="off")
    assert outcome.verdict is Verdict.MISMATCH
    assert outcome.details["explanation"] == ["guess: RuntimeError: no"]
