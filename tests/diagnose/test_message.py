from __future__ import annotations

import pytest
import torch

from pytest_torchexport.backends.tracer_warnings import capture
from pytest_torchexport.diagnose import message
from pytest_torchexport.diagnose.cause import Attribution
from pytest_torchexport.diagnose.refusal import explain
from pytest_torchexport.diagnose.reproduce import Again
from pytest_torchexport.outcome import Cause, Evidence, Leaf, Location, Verdict


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
    first = message.first_sentence(explain(raised.value)[0])
    assert first.startswith("The dicts and lists that go in or come out hold values of several types")


def leaf(path: str, **said: object) -> Leaf:
    return Leaf(path, agrees=False, cause=Cause.NUMERIC, reason="1 of 4 elements differ", **said)  # type: ignore[arg-type]


def test_a_mismatch_is_told_in_order_of_use() -> None:
    cause = Attribution(
        Cause.BAKED_BRANCH,
        Location("cell.py", 12, "if x.sum() > 0:"),
        (Evidence("2 of 5 inputs fail"), Evidence("a warning", Location("cell.py", 20, ""))),
    )
    shown = leaf("output", index=(0, 1), expected="1.0", actual="2.0", max_abs=1.0, allowed=1e-5, mismatched=1)
    head = message.headline("Cell", "trace", "cpu", Verdict.MISMATCH, "baked branch")
    text = message.mismatch(head, cause, label="x = zeros", arguments="x", leaves=[shown], raised=None)
    assert text.splitlines()[:8] == [
        "Cell on trace (cpu): mismatch: baked branch",
        "  cell.py:12",
        "      if x.sum() > 0:",
        "  input: x = zeros: (x)",
        "  output: 1 of 4 elements differ",
        "      at [0, 1]: eager 1.0, exported 2.0",
        "      largest error 1, allowed there 1e-05",
        "  evidence: 2 of 5 inputs fail",
    ]
    assert "  evidence: a warning [cell.py:20]" in text
    assert "what to do: The export kept the branch" in text


def test_many_leaves_are_counted_and_an_exception_is_told() -> None:
    cause = Attribution(Cause.EXCEPTION, None, ())
    many = [leaf(f"output[{index}]") for index in range(8)]
    text = message.mismatch("head", cause, label="x", arguments="", leaves=many, raised="ValueError: no")
    assert "and 3 more" in text
    assert "output[5]" not in text
    assert "the exported program raises ValueError: no" in text


def test_how_to_check_an_input_again_follows_the_input() -> None:
    again = Again("extra_inputs=[(1,)]", complete=True)
    cause = Attribution(Cause.NUMERIC, None, ())
    text = message.mismatch("head", cause, label="x", arguments="1", leaves=[], raised=None, again=again)
    assert text == "head\n  input: x: (1)\n  again with: extra_inputs=[(1,)]"


def test_a_refusal_quotes_the_line_before_the_details() -> None:
    text = message.refused("head", Location("cell.py", 3, "for x in y:"), "one\n\ntwo")
    assert text == "head\n  cell.py:3\n      for x in y:\n  one\n  \n  two"
