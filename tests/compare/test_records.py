"""All that a run did is compared: outputs, arguments changed in place, state, gradients."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from pytest_torchexport import Tolerance
from pytest_torchexport.backends.base import FlatOutput, Structure
from pytest_torchexport.compare.noise import TooChaotic
from pytest_torchexport.compare.records import Comparison, StateView, compare_records, named_leaves
from pytest_torchexport.compare.tolerance import Rules
from pytest_torchexport.outcome import Cause, Leaf
from pytest_torchexport.subject.call import Call
from pytest_torchexport.subject.run import Record

X = torch.tensor([1.0, 2.0])
OTHER = torch.tensor([1.0, 5.0])


def by_position(call: Call) -> dict[str, Any]:
    return dict(zip("xyz", call.args, strict=False)) | dict(call.kwargs)


def record(output: Any = X, after: tuple[Any, ...] = (X,), **facts: Any) -> Record:
    return Record(outputs=[output], arguments=[Call(after)], **facts)


def compared(expected: Record, actual: Record, before: tuple[Any, ...] = (X,), **options: Any) -> Comparison:
    usual: dict[str, Any] = {"structure": Structure.SAME, "states": StateView({}, {}, frozenset()), "rules": Rules()}
    calls = (Call(before),) * len(expected.outputs)
    return compare_records(expected, actual, calls, names=by_position, **(usual | options))


def causes(comparison: Comparison) -> dict[str, Cause | None]:
    return {leaf.path: leaf.cause for leaf in comparison.disagreeing}


def test_equal_records_agree_and_arguments_that_nobody_changed_need_no_mention() -> None:
    comparison = compared(record(), record(X.clone(), (X.clone(),)))
    assert not comparison.disagreeing
    assert [leaf.path for leaf in comparison.leaves] == ["output"]


def test_an_output_that_differs_is_named_and_so_is_its_call() -> None:
    assert causes(compared(record((X, X)), record((X, OTHER)))) == {"output[1]": Cause.NUMERIC}
    one, two = Record([X, X], [Call((X,))] * 2), Record([X, OTHER], [Call((X,))] * 2)
    assert causes(compared(one, two)) == {"call 2 output": Cause.NUMERIC}


def test_the_structure_says_whether_a_number_may_be_a_tensor() -> None:
    eager, program = record(1.5), record(torch.tensor(1.5))
    assert not compared(eager, program, structure=Structure.SCRIPT).disagreeing
    assert compared(eager, program, structure=Structure.SAME).disagreeing


def test_what_a_form_cannot_carry_is_left_out_and_listed() -> None:
    flat = compared(record((X, "text")), record(FlatOutput({"o": X})), structure=Structure.FLAT)
    assert (flat.left_out, flat.disagreeing) == (["output[1]"], [])


class TestArguments:
    def test_a_change_that_both_make_is_compared(self) -> None:
        assert [leaf.path for leaf in compared(record(X, (OTHER,)), record(X, (OTHER,))).leaves] == [
            "output",
            "argument x",
        ]
        assert causes(compared(record(X, (OTHER,)), record(X, (OTHER * 2,)))) == {"argument x": Cause.NUMERIC}

    def test_a_change_that_one_makes_alone(self) -> None:
        (lost,) = compared(record(X, (OTHER,)), record()).disagreeing
        assert (lost.path, lost.cause) == ("argument x", Cause.LOST_MUTATION)
        assert lost.reason == "eager changes it in place, the exported program does not"
        (added,) = compared(record(), record(X, (OTHER,))).disagreeing
        assert added.reason == "the exported program changes it in place, eager does not"

    def test_an_entry_that_eager_adds_to_a_container(self) -> None:
        (lost,) = compared(record(X, ({"a": X, "b": X},)), record(X, ({"a": X},)), ({"a": X},)).disagreeing
        assert (lost.path, lost.cause) == ("argument x['b']", Cause.LOST_MUTATION)

    def test_an_entry_that_eager_removes(self) -> None:
        (lost,) = compared(record(X, ([],)), record(X, ([X],)), ([X],)).disagreeing
        assert (lost.path, lost.cause) == ("argument x[0]", Cause.LOST_MUTATION)

    def test_a_change_within_the_tolerance_is_none(self) -> None:
        assert not compared(record(X, (X + 1e-8,)), record()).disagreeing


class TestState:
    VIEW = StateView({"n": X, "count": 0}, {"n": X, "count": 0}, frozenset({"n"}))

    def test_an_update_that_both_make_is_compared(self) -> None:
        eager = record(state={"n": OTHER, "count": 1})
        same = compared(eager, record(state={"n": OTHER.clone(), "count": 1}), states=self.VIEW)
        assert [leaf.path for leaf in same.leaves] == ["output", "state n", "state count"]
        assert not same.disagreeing
        wrong = compared(eager, record(state={"n": X * 3, "count": 2}), states=self.VIEW)
        assert causes(wrong) == {"state n": Cause.NUMERIC, "state count": Cause.NUMERIC}

    def test_an_update_that_one_makes_alone(self) -> None:
        (lost,) = compared(record(state={"n": OTHER}), record(), states=self.VIEW).disagreeing
        assert (lost.path, lost.cause) == ("state n", Cause.LOST_STATE)
        assert lost.reason == "eager changes it, the exported program does not"
        (added,) = compared(record(), record(state={"n": OTHER}), states=self.VIEW).disagreeing
        assert added.reason == "the exported program changes it, eager does not"

    def test_a_buffer_that_the_program_does_not_have_is_lost_an_attribute_only_unread(self) -> None:
        view = StateView({"n": X, "count": 0}, {}, frozenset({"n"}))
        comparison = compared(record(state={"n": OTHER, "count": 1}), record(), states=view)
        assert causes(comparison) == {"state n": Cause.LOST_STATE}
        assert comparison.unread == ["count"]

    def test_a_state_that_cannot_be_read_is_listed(self) -> None:
        view = StateView({"n": X}, None, frozenset({"n"}))
        comparison = compared(record(state={"n": OTHER}), record(), states=view)
        assert (comparison.unread, comparison.disagreeing) == (["n"], [])

    def test_what_only_the_program_has_is_its_own_affair(self) -> None:
        view = StateView({}, {"cache": X}, frozenset())
        assert not compared(record(), record(state={"cache": OTHER}), states=view).disagreeing


class TestGradients:
    def test_they_are_compared_by_name_and_an_absent_one_is_zero(self) -> None:
        eager = record(gradients={"gradient of x": X, "gradient of w": X * 0})
        assert not compared(eager, record(gradients={"gradient of x": X})).disagreeing
        assert causes(compared(eager, record())) == {"gradient of x": Cause.NUMERIC}
        assert causes(compared(record(), eager)) == {"gradient of x": Cause.NUMERIC}

    def test_only_those_that_are_wanted(self) -> None:
        eager = record(gradients={"gradient of x": X, "gradient of w": X})
        program = record(gradients={"gradient of x": OTHER})
        assert causes(compared(eager, program, gradients=frozenset({"gradient of x"}))) == {
            "gradient of x": Cause.NUMERIC
        }
        assert not compared(eager, record(), gradients=frozenset()).disagreeing


class TestSecondOpinion:
    def test_it_is_asked_about_values_only_and_told_all_that_it_will_be_asked(self) -> None:
        asked: list[tuple[str, frozenset[str]]] = []

        def agree(leaf: Leaf, expected: Any, actual: Any, disputed: frozenset[str]) -> Leaf:
            assert not torch.equal(expected, actual)
            asked.append((leaf.path, disputed))
            return dataclasses.replace(leaf, agrees=True, cause=None)

        eager, program = record((X, X, X, X)), record((OTHER, X, X.double(), X * 2))
        comparison = compared(eager, program, second_opinion=agree)
        assert asked == [(path, frozenset({"output[0]", "output[3]"})) for path in ("output[0]", "output[3]")]
        assert causes(comparison) == {"output[2]": Cause.DTYPE}

    def test_where_it_has_none_nothing_is_judged(self) -> None:
        def chaotic(*_: Any) -> Leaf:
            msg = "all noise"
            raise TooChaotic(msg)

        comparison = compared(record(), record(OTHER), second_opinion=chaotic)
        assert (comparison.unjudged, comparison.disagreeing) == (["all noise"], [])

    def test_an_update_that_it_does_not_explain_stays_lost(self) -> None:
        view = StateView({"n": X}, {"n": X}, frozenset())
        same = compared(record(state={"n": OTHER}), record(), states=view, second_opinion=lambda leaf, *_: leaf)
        assert causes(same) == {"state n": Cause.LOST_STATE}


def test_a_tolerance_that_is_set_holds_for_all_leaves() -> None:
    eager, program = record(X, (X * 2,)), record(OTHER, (OTHER,))
    assert len(compared(eager, program).disagreeing) == 2
    assert not compared(eager, program, rules=Rules(Tolerance(rtol=0.0, atol=10.0))).disagreeing


@pytest.mark.parametrize("count", [1, 2])
def test_named_leaves_have_the_paths_of_the_comparison(count: int) -> None:
    def made(factor: float) -> Record:
        return Record(
            outputs=[{"a": X * factor}] * count,
            arguments=[Call((X * (factor + 1),))] * count,
            state={"n": X * factor},
            gradients={"gradient of w": X * factor},
        )

    view = StateView({"n": OTHER, "m": OTHER}, {"n": OTHER}, frozenset())
    comparison = compared(made(2), made(3), states=view)
    named = named_leaves(made(2), count, view.eager, by_position)
    assert len(comparison.disagreeing) == 2 * count + 2
    assert {leaf.path for leaf in comparison.disagreeing} == set(named) - {"state m"}
