"""The HTML report: what it says, and that no text of a user becomes part of the page."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from importlib import resources
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchexport.outcome import Cause, Verdict
from pytest_torchexport.report import html
from pytest_torchexport.report.text import clean

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[..., dict[str, Any]]

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\" onload='alert(1)' x=\"",
    "</title></style></pre></svg></details><base href=//evil>",
    "<!-- --> ]]> <![CDATA[ &lt; &amp; &#60;script&#62; {{ 1 }} {% raw %}",
    "javascript:alert(1)",
    "\x1b[31mred\x1b[0m \x1b]8;;http://evil\x07link\x1b]8;;\x07 \x00\x08 bell\x07",
    "\u202egnp.exe\u202c \u2066 right to left שלום 🙂 e\u0301",
    "half \ud800 a pair, \ufffe none",
    "long" * 5_000,
    "@everyone `x` | # *a* \\",
]
_VOID = {"meta", "br", "base", "img", "link", "input", "hr"}


class Parts(HTMLParser):
    """The elements and attributes of a page in order, and its texts."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.values: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.values += [(tag, name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)


def page_of(report: dict[str, Any], folder: Path) -> str:
    html.write(folder / "report.html", report)
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def report(record: Make, document: Make, trend: Make) -> Callable[[str], dict[str, Any]]:
    """Makes a report with a text in every place that can hold one."""

    def make(text: str) -> dict[str, Any]:
        records = [
            record(f"{text}::{text}", text=text),
            record(f"{text}::{text}", "onnx", "failed", text=text, verdict=Verdict.MISMATCH, cause=Cause.NUMERIC),
        ]
        found = document(records)
        found |= {"trend": [trend(records[0], text=text), trend(records[1] | {"test": text}, "faster", text=text)]}
        return found | {"machine": {text: text}, "versions": {text: text}, "written": text, "tool": {"version": text}}

    return make


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:12]))
def test_no_text_becomes_part_of_the_page(text: str, report: Make, tmp_path: Path) -> None:
    harmless, hostile = Parts(page_of(report("plain text"), tmp_path)), Parts(page_of(report(text), tmp_path))
    assert hostile.elements == harmless.elements
    assert not hostile.open
    assert clean(text)[:300] in hostile.text


def test_that_test_sees_an_injection(report: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of the test: without escaping it fails."""
    environment = html.environment().overlay(autoescape=False)
    monkeypatch.setattr(html, "environment", lambda: environment)
    harmless = Parts(page_of(report("plain text"), tmp_path))
    seen = 0
    for text in HOSTILE[:5]:
        try:
            seen += Parts(page_of(report(text), tmp_path)).elements != harmless.elements
        except AssertionError:
            seen += 1
    assert seen >= 4


def test_what_acts_on_a_screen_does_not_reach_the_page(report: Make, tmp_path: Path) -> None:
    page = page_of(report(HOSTILE[6] + HOSTILE[7] + HOSTILE[8]), tmp_path)
    assert not re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe]", page)
    assert "שלום 🙂" in page


def test_the_page_asks_for_nothing(report: Make, tmp_path: Path) -> None:
    parts = Parts(page_of(report("plain"), tmp_path))
    assert {tag for tag, _ in parts.elements}.isdisjoint({"script", "link", "img", "iframe", "object", "base", "form"})
    assert {name for _, names in parts.elements for name in names}.isdisjoint({"src", "srcset", "style", "onclick"})
    links = [value for _, name, value in parts.values if name in ("href", "action", "xlink:href")]
    assert links
    assert all(re.fullmatch(r"#[it]\d+", link) for link in links)
    policy = next(value for _, name, value in parts.values if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    css = resources.files("pytest_torchexport.report").joinpath("templates/report.css").read_text(encoding="utf-8")
    assert "url(" not in css
    assert "@import" not in css


def test_links_lead_somewhere(report: Make, tmp_path: Path) -> None:
    parts = Parts(page_of(report("plain"), tmp_path))
    ids = [value for _, name, value in parts.values if name == "id"]
    assert len(set(ids)) == len(ids)
    assert {value[1:] for _, name, value in parts.values if name == "href"} <= set(ids)


def test_tables_and_pictures_can_be_heard(report: Make, tmp_path: Path) -> None:
    page = page_of(report("plain"), tmp_path)
    parts = Parts(page)
    assert all("scope" in names for tag, names in parts.elements if tag == "th")
    pictures = re.findall(r"<svg([^>]*)>(.{8})", page, re.DOTALL)
    assert pictures
    assert all(
        'aria-hidden="true"' in names or inside == "<title>" or inside.startswith("<title")
        for names, inside in pictures
    )


def test_failures_are_open_and_the_rest_is_not(record: Make, document: Make, tmp_path: Path) -> None:
    records = [
        record(backend="trace"),
        record(backend="script", result="failed", verdict=Verdict.MISMATCH, cause=Cause.LOST_STATE),
        record(backend="onnx", result="xfailed", verdict=Verdict.REFUSED),
    ]
    page = page_of(document(records), tmp_path)
    assert re.findall(r'<details class="item" id="(i\d)"( open)?', page) == [("i0", ""), ("i1", " open"), ("i2", "")]
    for word in ("✓ ok", "✗ lost state", "✗ xfail: refused", "1 of 2"):
        assert word in page


def test_every_verdict_and_result(record: Make, bare: Make, document: Make, tmp_path: Path) -> None:
    results = ("passed", "failed", "skipped", "xfailed", "xpassed", "error")
    records = [record(verdict=verdict, result=result) for verdict, result in itertools.product(Verdict, results)] + [
        bare(verdict, result) for verdict, result in itertools.product(Verdict, results)
    ]
    parts = Parts(page_of(document(records), tmp_path))
    assert not parts.open
    assert "96 checks of 2 tests" in parts.text


def test_a_record_with_the_fewest_fields(bare: Make, document: Make, tmp_path: Path) -> None:
    """A worker that died, or another version, leaves what it has."""
    least = {
        key: bare()[key] for key in ("verdict", "stage", "backend", "device", "message", "result", "cell", "origin")
    }
    assert "no device" in Parts(page_of(document([least]), tmp_path)).text


def test_an_empty_run(document: Make, tmp_path: Path) -> None:
    assert "No test was checked" in page_of(document([]), tmp_path)


def test_numbers_that_are_none(record: Make, document: Make, tmp_path: Path) -> None:
    one = record()
    for side in ("eager", "exported"):
        one["performance"]["paired"][0][side] |= {"median": "nan", "high": "inf", "quantiles": [], "p99": None}
    one["performance"]["paired"][0]["ratio"] = "inf"
    one["performance"]["cold_starts"][0] |= {"calls": [], "settled_after": None, "load": None}
    one["worst"] |= {"score": "inf", "max_abs": "nan"}
    two = record(backend="onnx")
    two["performance"] |= {"paired": [], "cold_starts": [], "memory": None, "recompiles": None, "judged": []}
    page = page_of(document([one, two]), tmp_path)
    drawn = " ".join(re.findall(r'\b(?:d|x|y|width|cx|height)="([^"]*)"', page))
    assert "nan" not in drawn
    assert "inf" not in drawn


def test_the_figures_are_said(record: Make, document: Make, performance: Make, tmp_path: Path) -> None:
    one = record(backend="trace") | {"performance": performance(0.5)}
    two = record(backend="onnx") | {"performance": performance(1.5, "1.1x")}
    text = Parts(page_of(document([one, two]), tmp_path)).text.replace("\u00a0", " ")
    for said in (
        "eager 1.00 ms",
        "export 500 µs",
        "export 1.50 ms",
        "0.50x",
        "1.47 to 1.53",
        "1st 400 ms",
        "settles after 2",
        " profiling=False",
        "12.0 MB",
        "5.86 kB",
        "0.5 x limit",
        "750 ms",
    ):
        assert said in text, said


def test_what_has_changed_leads_to_its_check(record: Make, document: Make, trend: Make, tmp_path: Path) -> None:
    records = [record(), record(backend="onnx"), record("b.py::test_b")]
    found = [
        trend(records[1], text="example"),
        trend(records[2], "faster", -0.4, text="torch 1 -> 2"),
        trend(records[0], "steady", 0.01),
        trend(records[0], "new"),
        trend(records[0], "unsettled"),
    ]
    page = page_of(document(records) | {"trend": found}, tmp_path).replace("\u00a0", " ")
    section = page[page.index('<section aria-labelledby="changed">') :].partition("</section>")[0]
    assert re.findall(r'href="#(i\d)">([^<]*)<', section) == [("i2", "b.py::test_b"), ("i1", "a.py::test_a")]
    text = Parts(section).text
    for said in (
        "3 compared: 1 slower, 1 faster, 1 steady; 1 new; 1 not used, because the times did not settle",
        "0.61x",
        "0.74x",
        "slower +21 % (+15 % to +28 %)",
        "faster -40 % (-46 % to -33 %)",
        "torch 1 -> 2, torch 1 -> 2",
        "input torch 1",
    ):
        assert said in text, said
    assert "input example" not in text
    assert "onnx-cpu" in text


def test_without_a_baseline_nothing_is_said_of_it(record: Make, document: Make, trend: Make, tmp_path: Path) -> None:
    for without in (document([record()]), document([record()]) | {"trend": []}):
        assert "baseline" not in page_of(without, tmp_path)
    steady = page_of(document([record()]) | {"trend": [trend(record(), "steady", 0.0)]}, tmp_path)
    assert "1 compared: 1 steady" in steady
    assert "what else is not as it was" not in steady


def test_a_page_that_cannot_be_finished_leaves_the_old_one(record: Make, document: Make, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text("old", encoding="utf-8")
    with pytest.raises(KeyError):
        html.write(file, document([record() | {"worst": {"path": "x"}}]))
    assert file.read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_many_tests_are_closed_but_for_failures(record: Make, document: Make, tmp_path: Path) -> None:
    records = [record(f"a.py::test_{number}", result="failed" if number == 7 else "passed") for number in range(60)]
    page = page_of(document(records), tmp_path)
    assert re.findall(r'<details class="test" id="(t\d+)" open', page) == ["t7"]
    assert len(page) < 2.2 * len(page_of(document(records[:30]), tmp_path))
