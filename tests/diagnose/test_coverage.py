"""What is said about branches that no input took."""

from __future__ import annotations

import pytest

from pytest_torchexport.diagnose.coverage import below_minimum, branches_ledger, condition, how_reached, summary
from pytest_torchexport.outcome import BranchCoverage, BranchOutcome, Decision, Location, NotChecked


def decision(line: int, *outcomes: BranchOutcome, text: str = "x.sum() > 0", excluded: bool = False) -> Decision:
    return Decision("condition", text, Location("/home/me/gate.py", line, f"if {text}:"), outcomes, excluded)


TAKEN = BranchOutcome("true", "example", "example")
FOUND = BranchOutcome("false", "search", "branch 1")
MISSING = BranchOutcome("false", tried="80 steps along the margin")
COVERAGE = BranchCoverage(
    "search", (decision(3, TAKEN, FOUND), decision(8, TAKEN, MISSING), decision(9, TAKEN, MISSING, excluded=True)), 120
)


def test_one_entry_of_the_ledger_for_each_outcome_that_was_not_reached() -> None:
    assert branches_ledger(COVERAGE) == [
        NotChecked("branch /home/me/gate.py:8: x.sum() > 0: false", "tried: 80 steps along the margin")
    ]
    untried = BranchCoverage("observe", (decision(8, TAKEN, BranchOutcome("false")),))
    assert [entry.why for entry in branches_ledger(untried)] == ["no input took it"]
    assert branches_ledger(BranchCoverage("search")) == []


def test_a_minimum_that_could_not_be_asked_of_anything_is_in_the_ledger() -> None:
    assert branches_ledger(None) == []
    assert branches_ledger(None, 0.9) == [
        NotChecked("min_coverage=0.9", "the branches were not observed (branches=off)")
    ]


@pytest.mark.parametrize(("minimum", "wanted"), [(0.76, "4"), (1, "4"), (1.0, "4")])
def test_below_the_minimum(minimum: float, wanted: str) -> None:
    message = below_minimum(COVERAGE, minimum)
    assert message is not None
    first, *rest = message.splitlines()
    assert first == (f"branch coverage is too low: 3 of 4 outcomes reached, min_coverage={minimum:g} asks for {wanted}")
    text = "\n".join(rest)
    assert "  not reached: /home/me/gate.py:8: x.sum() > 0: false\n      if x.sum() > 0:\n      tried: 80 steps" in text
    for remedy in ("extra_inputs=", "inputs=", "dynamic_shapes=", "search_budget=", "# export: no branch"):
        assert remedy in text
    assert "gate.py:9" not in text, "excluded"
    assert "gate.py:3" not in text, "reached"


def test_where_nothing_was_searched_the_search_is_the_first_remedy() -> None:
    message = below_minimum(BranchCoverage("observe", COVERAGE.decisions), 1.0)
    assert message is not None
    assert "branches='search'" in message


@pytest.mark.parametrize("minimum", [None, 0, 0.0, 0.75])
def test_enough(minimum: float | None) -> None:
    assert below_minimum(COVERAGE, minimum) is None


def test_a_model_without_decisions_has_all_of_them() -> None:
    assert below_minimum(BranchCoverage("search"), 1.0) is None
    assert below_minimum(BranchCoverage("search", (decision(9, MISSING, excluded=True),)), 1.0) is None


def test_the_same_fraction_is_enough_whatever_its_rounding() -> None:
    for known in range(1, 30):
        for reached in range(known + 1):
            outcomes = tuple(BranchOutcome(str(n), "example" if n < reached else "") for n in range(known))
            coverage = BranchCoverage("search", (decision(1, *outcomes),))
            assert below_minimum(coverage, reached / known) is None
            if reached < known:
                assert f"asks for {reached + 1}" in str(below_minimum(coverage, (reached + 1) / known))


def test_in_words() -> None:
    assert summary(COVERAGE) == (
        "3 of 4 outcomes reached (2 by example, 1 by search); 120 eager runs; 1 decision excluded"
    )
    assert summary(BranchCoverage("observe", (decision(1, MISSING),))) == "0 of 1 outcomes reached"
    assert (
        how_reached((TAKEN, FOUND, BranchOutcome("3"))) == "true by example, false by search (branch 1), 3 not reached"
    )
    assert condition(decision(1, text="a and\n        b")) == "a and b"
    assert len(condition(decision(1, text="x" * 200))) == 80
