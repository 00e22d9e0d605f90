from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pytest_torchexport.backends.tracer_warnings import capture
from pytest_torchexport.diagnose.cause import Attribution
from pytest_torchexport.explain import figures, message
from pytest_torchexport.explain.refusal import explain
from pytest_torchexport.outcome import Cause, Divergence, Evidence, Leaf, Location
from pytest_torchexport.reproduce.again import Again

if TYPE_CHECKING:
    from collections.abc import Sequence


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("One thing. And another.", "One thing."),
        ("One thing\nover two lines. And another.", "One thing over two lines."),
        ("Cannot infer type of {'a':\n tensor(1.)}. Return tensors.", "Cannot infer type of {'a': tensor(1.)}."),
        ("TypeError: 'int' object is not iterable", "TypeError: 'int' object is not iterable"),
        ("A branch (Could not guard. Caused by x). Write it so.", "A branch (Could not guard. Caused by x)."),
        ("x.size(0) is 1.5 e.g. here", "x.size(0) is 1.5 e.g. here"),
        ("Everything ran in eager:\n  at a.py\n  at b.py", "Everything ran in eager:"),
        ("", ""),
    ],
)
def test_the_first_sentence_says_something(text: str, first: str) -> None:
    assert message.first_sentence(text) == first


def test_a_long_sentence_is_cut_between_words() -> None:
    cut = message.first_sentence("word " * 100, limit=20)
    assert cut == "word word word…"
    assert message.first_sentence("Too many words (a long aside about words). More.", limit=20) == "Too many words"


def test_the_headline_of_a_dict_that_the_tracer_cannot_type() -> None:
    def mixed(x: torch.Tensor) -> object:
        return {"a": x, "b": [x, {"c": x}]}

    with capture(), pytest.raises(RuntimeError) as raised:
        torch.jit.trace(mixed, (torch.rand(2, 3),))  # type: ignore[no-untyped-call]
    first = message.first_sentence(explain(raised.value).reason)
    assert first.startswith("the dicts and lists that go in or come out hold values of several types")


NUMBERS = Leaf(
    "output['logits']",
    agrees=False,
    cause=Cause.NUMERIC,
    reason="740 of 2000 elements (37.0%) differ",
    dtype="float32",
    shape=(2, 1000),
    elements=2000,
    mismatched=740,
    max_abs=4.2e-5,
    index=(1, 37),
    expected="1.2345678",
    actual="1.2346102",
    rule="calibrated",
    score=214.2,
    limit=6.0,
    noise=2e-7,
    exported_error=4.2e-5,
    eager_error=1.8e-7,
    reference="1.234568",
    draws=8,
    assert_close=True,
    least_atol=4.03e-5,
    where="37 % of the elements, all channels",
)
BATCH_NORM = Divergence(
    module="layer1.0.bn1",
    operator="BatchNormalization",
    eager="aten.native_batch_norm.default",
    name="bn",
    location=Location("net.py", 12, "x = self.bn1(x)"),
    score=312.0,
    inputs_score=1.1,
    group=("Mul", "Add"),
    note="the optimiser folded the operators",
)


def told(cause: Attribution, leaves: Sequence[Leaf] = (), **said: Any) -> list[str]:
    given: dict[str, Any] = {"label": "x = zeros", "arguments": "x", "raised": None} | said
    return message.mismatch("head", cause, leaves=leaves, **given).splitlines()


def test_a_mismatch_is_told_in_order_of_use() -> None:
    cause = Attribution(
        Cause.BAKED_BRANCH,
        Location("cell.py", 12, "if x.sum() > 0:"),
        (Evidence("2 of 5 inputs fail"), Evidence("a warning", Location("cell.py", 20, ""))),
    )
    assert told(cause, [NUMBERS], divergence=BATCH_NORM, what_to_do="Use torch.where.") == [
        "head",
        "  cell.py:12",
        "      if x.sum() > 0:",
        "  why: a warning [cell.py:20]",
        "       2 of 5 inputs fail",
        "  input: x = zeros: (x)",
        "  output['logits']: 37 % of the elements, all channels; the worst is [1, 37]",
        "      eager     1.2345678   1.8e-07 from float64",
        "      exported  1.2346102   4.2e-05 from float64",
        "      float64   1.234568",
        "      214x the rounding noise there (2e-07, from 8 jittered runs of eager and float64), limit 6x",
        "      would pass only with Tolerance(k=220) or Tolerance(rtol=1.3e-06, atol=4.1e-05); also with",
        "      assert_close's defaults",
        "  first diverging layer: layer1.0.bn1, BatchNormalization 'bn' (aten.native_batch_norm.default",
        "      in eager): 312x the noise, its inputs 1.1x",
        "      net.py:12: x = self.bn1(x)",
        "      fused or rewritten with Mul, Add: the fault may be in any of them",
        "      the optimiser folded the operators",
        "  what to do: Use torch.where.",
    ]


def test_a_message_fits_on_a_screen() -> None:
    cause = Attribution(Cause.NUMERIC, Location("cell.py", 12, "x"), tuple(Evidence("a fact " * 12) for _ in range(3)))
    lines = told(cause, [NUMBERS] * 30, divergence=BATCH_NORM, what_to_do="Do this. " * 20)
    assert len(lines) <= 34
    assert max(map(len, lines)) <= 100
    assert any("and 26 more" in line for line in lines)


@pytest.mark.parametrize(
    ("score", "said"),
    [(12.3, "as small as a change of precision"), (214.0, ""), (2e4, "another computation, not rounding")],
)
def test_the_size_of_a_difference_is_put_into_words(score: float, said: str) -> None:
    lines = told(Attribution(Cause.NUMERIC, None, ()), [replace(NUMBERS, score=score)])
    text = " ".join(" ".join(lines).split())
    assert said in text
    assert ("limit 6x:" in text) is bool(said)


def test_whole_numbers_and_flags_are_counted_not_measured() -> None:
    indices = replace(
        NUMBERS, dtype="int64", rule="exact", score=5.0, limit=1.0, noise=0.0, reference="", expected="10", actual="0"
    )
    lines = told(Attribution(Cause.NUMERIC, None, ()), [indices, indices])
    text = " ".join(" ".join(lines).split())
    assert "740 of 2000 whole numbers differ: compared exactly; rounding, as in 8 jittered runs of eager, does" in text
    assert "noise" not in text
    assert "precision" not in text
    assert figures.how_it_differs(indices) == "output['logits']: 740 of 2000 whole numbers differ"
    flags = replace(indices, dtype="bool")
    assert figures.how_it_differs(flags) == "output['logits']: 740 of 2000 flags differ"
    assert figures.how_it_differs(replace(indices, elements=1)) == "output['logits'] is 0, in eager 10"


def test_what_is_set_by_hand_is_said_so() -> None:
    fixed = replace(NUMBERS, rule="set: rtol=0.001, atol=1e-05", score=0.0, allowed=1e-3, reference="")
    lines = told(Attribution(Cause.NUMERIC, None, ()), [fixed])
    assert "      off by 4.2e-05, allowed 0.001: set by hand, rtol=0.001, atol=1e-05" in lines
    wider = told(Attribution(Cause.NUMERIC, None, ()), [replace(NUMBERS, rule="set: k=10", limit=10.0)])
    assert "limit 10x, set by hand: k=10" in " ".join(" ".join(wider).split())


def test_the_one_that_is_closer_to_float64_is_said_where_it_is_the_export() -> None:
    better = replace(NUMBERS, eager_error=1e-3, rule="set: rtol=0, atol=0", score=0.0)
    assert any("the export is closer" in line for line in told(Attribution(Cause.NUMERIC, None, ()), [better]))
    assert not any("closer" in line for line in told(Attribution(Cause.NUMERIC, None, ()), [NUMBERS]))


def test_the_least_tolerance_is_rounded_up() -> None:
    text = figures.least_tolerance(replace(NUMBERS, score=100.3, least_atol=4.11e-5, assert_close=False))
    ways, _, other = text.partition("; ")
    assert ways == "would pass only with Tolerance(k=110) or Tolerance(rtol=1.3e-06, atol=4.2e-05)"
    assert other == "not with assert_close's defaults"


def test_no_tolerance_is_named_where_values_are_compared_exactly() -> None:
    assert figures.least_tolerance(replace(NUMBERS, rule="exact", score=0.0)) == ""


def test_what_a_leaf_says_is_not_said_again() -> None:
    leaf = Leaf("output", agrees=False, cause=Cause.DTYPE, reason="dtype torch.float32 instead of torch.float64")
    cause = Attribution(Cause.DTYPE, None, (Evidence(f"output: {leaf.reason}"),))
    assert sum("dtype torch.float32" in line for line in told(cause, [leaf])) == 1


def test_an_exception_is_told_once() -> None:
    cause = Attribution(Cause.EXCEPTION, None, (Evidence("the exported program raises ValueError: no"),))
    lines = told(cause, raised="ValueError: no")
    assert "  eager returns, the exported program raises ValueError: no" in lines
    assert sum("ValueError" in line for line in lines) == 1


def test_a_layer_that_says_no_more_than_the_line_is_left_out() -> None:
    here = Location("cell.py", 12, "if x.sum() > 0:")
    cause = Attribution(Cause.BAKED_BRANCH, here, ())
    assert not any("layer" in line for line in told(cause, divergence=Divergence(operator="mul", location=here)))
    assert any("layer" in line for line in told(cause, divergence=Divergence(module="encoder.0", operator="mul")))


def test_how_to_check_an_input_again_follows_the_input() -> None:
    again = Again("extra_inputs=[(1,)]", complete=True)
    cause = Attribution(Cause.NUMERIC, None, ())
    text = message.mismatch("head", cause, label="x", arguments="1", leaves=[], raised=None, again=again)
    assert text == "head\n  input: x: (1)\n  again with: extra_inputs=[(1,)]"


def test_a_refusal_quotes_the_line_before_the_details() -> None:
    here = Location("cell.py", 3, "for x in y:")
    text = message.refused("head", here, "one\n\n  two", way_out="Do it.", said="Cannot do it")
    assert text.splitlines() == [
        "head",
        "  cell.py:3",
        "      for x in y:",
        "  one",
        "  ",
        "    two",
        "  what to do: Do it.",
        "  the exporter says: Cannot do it",
    ]
