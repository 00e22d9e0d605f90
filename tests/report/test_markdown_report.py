"""The Markdown report: short, within GitHub's limit, and no text of a user acts in it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchexport.outcome import Cause, Verdict
from pytest_torchexport.report import markdown

if TYPE_CHECKING:
    from collections.abc import Callable

    Make = Callable[..., dict[str, Any]]

HOSTILE = [
    "a|b",
    "a\\|b",
    "`a` ``b``",
    "@everyone #1 org/repo#2",
    "<img src=x onerror=alert(1)>",
    "</details></summary></code><script>",
    "two\nlines\r\n\r\n# heading",
    "```\n</details>\n````````\n",
    "\x1b[31mred\x1b[0m \ud800 \u202e",
    "*a* _b_ [c](http://d) ![e](f) ~~g~~ $h$",
]


def _cells(line: str) -> list[str]:
    """The cells of a row as GitHub splits it: at bars that have no backslash before them, in code too."""
    return re.split(r"(?<!\\)\|", line.strip().strip("|"))


def _outside_code(text: str) -> str:
    """What is left of the text without its code."""
    text = re.sub(r"^(`{3,})text\n.*?\n\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", "", text)
    return re.sub(r"<code>[^<]*</code>", "", text)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_no_text_acts(text: str, record: Make, document: Make, trend: Make) -> None:
    def lines(own: str) -> list[str]:
        failed = record(own, "onnx", "failed", text=own, verdict=Verdict.MISMATCH, cause=Cause.NUMERIC)
        report = document([record(f"{own}::{own}", text=own), failed])
        said = markdown.report(report | {"trend": [trend(failed, text=own)]})
        assert said.isprintable() or set(re.findall(r"[^\x20-\x7e]", said)).isdisjoint("\x1b\ud800\u202e\x00")
        return _outside_code(said).splitlines()

    shape = [(len(_cells(line)), re.findall(r"</?\w+>", line)) for line in lines(text)]
    assert shape == [(len(_cells(line)), re.findall(r"</?\w+>", line)) for line in lines("plain")]
    assert not [line for line in lines(text) if re.search(r"@\w|<img|<script|^# ", line)]


def test_what_is_said(record: Make, performance: Make, document: Make) -> None:
    records = [
        record() | {"performance": performance(0.5)},
        record(backend="onnx", result="failed", verdict=Verdict.MISMATCH, cause=Cause.LOST_STATE),
        record("b.py::test_b", backend="onnx", result="xfailed", verdict=Verdict.REFUSED),
    ]
    said = markdown.report(document(records)).replace("\u00a0", " ")
    assert "3 checks of 2 tests: 1 equivalent, 1 mismatch, 1 refused (1 expected to fail); 6 inputs compared" in said
    assert "| test | trace | onnx |\n| --- | --- | --- |\n| `a.py::test_a` | ✅ ok | ❌ lost state |" in said
    assert "| `b.py::test_b` |  | ☑️ xfail: refused |" in said
    assert "<details><summary>❌ lost state <code>a.py::test_a[onnx-cpu]</code></summary>\n\n```text\nplain: fi" in said
    assert "| `example` | 1.00 ms | 500 µs | 0.50x (0.49 to 0.51) | " in said
    assert "ratio 1.2x: within" in said
    assert "<summary>3 things not checked</summary>" in said


def test_what_has_changed_is_said(record: Make, document: Make, trend: Make) -> None:
    found = [trend(record(), effect=number / 1000) for number in range(200, 310)]
    found += [trend(record(), "faster", -0.4, "example"), trend(record(), "steady", 0.0)]
    said = markdown.report(document([record()]) | {"trend": found}).replace("\u00a0", " ")
    assert "### Changed since the baseline\n\n112 compared: 110 slower, 1 faster, 1 steady\n" in said
    first = "| `a.py::test_a` | `trace-cpu` | `example` | 0.61x | 0.37x | faster, -40 % (-46 % to -33 %) |"
    rows = [line for line in said.splitlines() if line.startswith("| `a.py::test_a` | `trace-cpu`")]
    assert len(rows) == 100
    assert rows[0].startswith(first)
    assert rows[1].endswith(" 0.80x | slower, +31 % (+25 % to +38 %) | x, x |")
    assert "and 11 smaller changes" in said
    assert "baseline" not in markdown.report(document([record()]) | {"trend": []})


def test_a_message_with_fences_stays_in_its_block() -> None:
    block = markdown.fenced("```\nx\n`````")
    assert block.splitlines()[0] == "``````text"
    assert block.splitlines()[-1] == "``````"


def test_it_is_cut_at_the_limit(record: Make, document: Make) -> None:
    records = [
        record(f"a.py::test_{number}", result="failed", message="é" * 5000, verdict=Verdict.MISMATCH)
        for number in range(300)
    ]
    said = markdown.report(document(records))
    assert 0.95 * markdown.LIMIT < len(said.encode()) <= markdown.LIMIT < 1024 * 1024
    assert "_Cut here: " in said[-200:]
    assert said.count("<details>") == said.count("</details>") < 300
    assert "300 checks of 300 tests" in said


def test_of_many_tests_those_that_are_not_fine_are_listed(record: Make, document: Make) -> None:
    records = [record(f"a.py::test_{number}", result="failed" if number == 77 else "passed") for number in range(150)]
    for one in records:
        one["performance"] = None
    said = markdown.report(document(records))
    assert re.findall(r"^\| `a.py::(\w+)`", said, re.MULTILINE) == ["test_77"]
    assert "Not listed: 149 tests; of all tests, 149 have nothing but ok." in said


def test_an_empty_run_and_a_bare_record(bare: Make, document: Make) -> None:
    assert "0 checks of 0 tests" in markdown.report(document([]))
    assert "| `a.py::test_bare` | ⏭️ skipped |" in markdown.report(document([bare()]))
