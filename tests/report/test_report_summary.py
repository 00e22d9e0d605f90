"""Words, tones and columns that the reports share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchexport.outcome import Cause, Verdict
from pytest_torchexport.report import markdown, summary

if TYPE_CHECKING:
    from collections.abc import Callable

    Make = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("verdict", "cause", "result", "tone", "word"),
    [
        (Verdict.EQUIVALENT, None, "passed", "ok", "ok"),
        (Verdict.EQUIVALENT, None, "failed", "bad", "test failed"),
        (Verdict.EQUIVALENT, None, "xpassed", "bad", "xpass"),
        (Verdict.MISMATCH, Cause.BAKED_VALUE, "failed", "bad", "baked value"),
        (Verdict.MISMATCH, Cause.BAKED_VALUE, "xfailed", "expected", "xfail: baked value"),
        (Verdict.FAILED, None, "failed", "bad", "failed: compare"),
        (Verdict.OVER_BUDGET, None, "failed", "bad", "over-budget"),
        (Verdict.INCONCLUSIVE, None, "passed", "unsure", "inconclusive"),
        (Verdict.SKIPPED, None, "skipped", "none", "skipped"),
        (Verdict.SKIPPED, None, "failed", "bad", "missing"),
        (Verdict.INVALID, None, "error", "bad", "invalid"),
        (Verdict.MISMATCH, Cause.DTYPE, "passed", "unsure", "dtype"),
    ],
)
def test_words(record: Make, verdict: Verdict, cause: Cause | None, result: str, tone: str, word: str) -> None:
    one = record(verdict=verdict, cause=cause, result=result)
    assert (summary.tone(one), summary.word(one)) == (tone, word)


def test_columns_are_backends_and_with_two_devices_both(record: Make, bare: Make) -> None:
    fast = record(backend="compile:mode=max-autotune")
    records = [record(backend="trace"), record(backend="compile"), fast, bare()]
    assert summary.columns(records) == {"compile-cpu": "compile", "trace-cpu": "trace", "": "no backend"}
    assert summary.column_of(fast) == "compile-cpu"
    gpu = record(backend="trace") | {"cell": "trace-cuda"}
    assert list(summary.columns([records[0], gpu]).values()) == ["trace-cpu", "trace-cuda"]


def test_columns_are_in_the_order_of_the_backends(record: Make, bare: Make) -> None:
    records = [bare(), *(record(backend=name) for name in ("own", "onnx:opset=20", "another", "onnx", "trace"))]
    found = summary.columns(records, ["trace", "script", "onnx"])
    assert list(found.values()) == ["trace", "onnx", "another", "own", "no backend"]


def test_the_ledger_counts_checks(record: Make) -> None:
    one = record()
    one["not_checked"] *= 3
    assert summary.ledger([one, record()]) == {("plain", "plain"): 2}


@pytest.mark.parametrize(
    ("text", "said"),
    [("@someone", "@\u200bsomeone"), ("a|b*c_d", "a\\|b\\*c\\_d"), ("<b>&", "&lt;b&gt;&amp;"), ("a\nb", "a b")],
)
def test_plain_text_in_markdown(text: str, said: str) -> None:
    assert markdown.plain(text) == said
