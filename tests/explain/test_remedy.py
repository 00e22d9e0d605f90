from __future__ import annotations

import torch

from pytest_torchexport import check
from pytest_torchexport.diagnose.cause import Attribution
from pytest_torchexport.explain.remedy import Failed, what_to_do
from pytest_torchexport.outcome import Cause, Evidence, Leaf


def advised(cause: Cause, *facts: str, backend: str = "trace", leaf: Leaf | None = None) -> str:
    attribution = Attribution(cause, None, tuple(map(Evidence, facts)))
    return what_to_do(Failed(attribution, backend, leaves=[leaf] if leaf is not None else []))


def test_batch_norm_that_is_exported_in_eval_mode_is_no_matter_of_whole_numbers() -> None:
    found = check(torch.nn.BatchNorm1d(8).train(), (torch.rand(4, 8),), backend="onnx", n_inputs=0)
    assert found.cause is Cause.LOST_STATE
    assert "does what eager does in eval mode" in found.message
    assert "BatchNorm as in eval mode" in " ".join(found.message.split())
    assert "Whole numbers" not in found.message


def test_the_other_mode_has_a_remedy_of_its_own() -> None:
    fact = "the exported program does what eager does with 'bn' in {} mode; it is in {} mode"
    assert "call model.eval() before the check" in advised(Cause.NUMERIC, fact.format("eval", "training"))
    assert "training=True in functional calls" in advised(Cause.NUMERIC, fact.format("training", "eval"))


def test_ties_are_thought_of_where_indices_differ() -> None:
    indices = Leaf("output", agrees=False, cause=Cause.NUMERIC, dtype="int64", rule="exact")
    assert "(ties)" in advised(Cause.NUMERIC, leaf=indices)
    flags = Leaf("output", agrees=False, cause=Cause.NUMERIC, dtype="bool", rule="exact")
    assert "ties" not in advised(Cause.NUMERIC, leaf=flags)
