"""The report as Markdown of GitHub's kind, short enough for a job summary or a comment on a pull request.

Names and messages stand in code, where nothing that looks like Markdown, HTML or the name of a person acts.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Any

from pytest_torchexport.report import changes, summary
from pytest_torchexport.report.files import whole
from pytest_torchexport.report.text import clean, count, cut, digits, one_line, seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from pytest_torchexport.report.summary import Record

LIMIT = 1_000_000
"""Bytes of the whole; GitHub drops a job summary of more than 1 MiB."""
_MESSAGE = 6_000
_ROWS = 100
"""Lines of a table: of more tests, only those that are not fine are listed; of more timings, the first ones."""
_LEDGER = 20
_LONG = 300
"""Characters of one entry of the ledger."""
_SIGNS = {"ok": "✅", "bad": "❌", "expected": "☑️", "unsure": "⚠️", "none": "⏭️"}


def write(path: Path, document: dict[str, Any]) -> None:
    """Write the report, whole or not at all. Missing folders are made.

    Args:
        path: the file.
        document: what `json.document` made.

    Raises:
        OSError: the file cannot be written.
    """
    with whole(path) as file:
        file.write(report(document))


def report(document: dict[str, Any], limit: int = LIMIT) -> str:
    """The text, at most `limit` bytes: tests x backends, failures, changes of speed, speed, what was not checked."""
    records: list[Record] = document["outcomes"]
    parts = [f"## Export equivalence\n\n{summary.totals(records)}\n"]
    note = "\n_Cut here: the rest would make this too long. The JSON and HTML reports have everything._\n"
    left = limit - _bytes(parts[0]) - _bytes(note)
    for part in _parts(document):
        left -= _bytes(part)
        if left < 0:
            return "".join([*parts, note])
        parts.append(part)
    return "".join(parts)


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", errors="replace"))


def _parts(document: dict[str, Any]) -> Iterator[str]:
    """What follows the totals, in pieces that can end the text."""
    records: list[Record] = document["outcomes"]
    grouped = summary.by_test(records)
    if grouped:
        yield _matrix(records, grouped, document.get("backends", ()))
    failing = [record for record in records if summary.tone(record) == "bad"]
    if failing:
        yield "\n### Failing\n\n"
    for record in failing:
        yield _failure(record)
    yield from _changes(document.get("trend") or ())
    yield from _latencies(records)
    yield _ledger(records)


def _ledger(records: Sequence[Record]) -> str:
    found = summary.ledger(records)
    if not found:
        return ""
    lines = [
        f"\n<details><summary>{count(sum(found.values()), 'thing')} not checked</summary>\n\n",
        "| checks | what | why |\n| ---: | --- | --- |\n",
        *(f"| {n} | {code(what[:_LONG])} | {code(why[:_LONG])} |\n" for (what, why), n in found.most_common(_LEDGER)),
        f"\nand {len(found) - _LEDGER} more\n" if len(found) > _LEDGER else "",
        "\n</details>\n",
    ]
    return "".join(lines)


def _matrix(records: Sequence[Record], grouped: dict[str, list[Record]], backends: Sequence[str]) -> str:
    columns = summary.columns(records, backends)
    shown = list(grouped.items())
    if len(shown) > _ROWS:
        shown = [(origin, own) for origin, own in shown if not summary.is_fine(own)]
    lines = []
    for origin, own in shown[:_ROWS]:
        cells = []
        for column in columns:
            found = [one for one in own if summary.column_of(one) == column]
            cells.append("<br>".join(f"{_SIGNS[summary.tone(one)]} {plain(summary.word(one))}" for one in found))
        lines.append(f"| {code(origin)} | {' | '.join(cells)} |\n")
    table = ""
    if lines:
        head = " | ".join(plain(title) for title in columns.values())
        table = f"\n| test | {head} |\n| --- |{' --- |' * len(columns)}\n" + "".join(lines)
    fine = sum(summary.is_fine(own) for own in grouped.values())
    left_out = len(grouped) - min(len(shown), _ROWS)
    if left_out:
        table += f"\nNot listed: {count(left_out, 'test')}; of all tests, {fine:,} have nothing but ok.\n"
    return table


def _failure(record: Record) -> str:
    name = html.escape(one_line(record.get("test") or record.get("origin") or "?"))
    text = clean(cut(str(record["message"]), _MESSAGE))
    said = f"{_SIGNS['bad']} {html.escape(summary.word(record))}"
    head = f"<details><summary>{said} <code>{name}</code></summary>"
    return f"{head}\n\n{fenced(text)}\n\n</details>\n"


def _changes(trend: Sequence[dict[str, Any]]) -> Iterator[str]:
    if not trend:
        return
    yield f"\n### Changed since the baseline\n\n{changes.totals(trend)}\n"
    found = changes.changed(trend)
    if found:
        yield "\n| test | backend | input | before | now | change | what else is not as it was |\n"
        yield "| --- | --- | --- | ---: | ---: | --- | --- |\n"
    for one in found[:_ROWS]:
        names = (code(one["origin"]), code(one["cell"]), code(one["input"]))
        figures = (times(one["baseline"]), times(one["ratio"]), f"{one['change']}, {changes.effect(one)}")
        yield f"| {' | '.join([*names, *figures, plain(', '.join(one['conditions']))])} |\n"
    if len(found) > _ROWS:
        yield f"\nand {len(found) - _ROWS} smaller changes\n"


def _latencies(records: Iterable[Record]) -> Iterator[str]:
    measured = [(one, one["performance"]) for one in records if (one.get("performance") or {}).get("paired")]
    if not measured:
        return
    yield "\n### Time of a call\n\n| check | input | eager | exported | exported / eager | budget |\n"
    yield "| --- | --- | ---: | ---: | --- | --- |\n"
    for record, performance in measured[:_ROWS]:
        for one in performance["paired"]:
            ratio = f"{times(one['ratio'])} ({digits(one['low'])} to {digits(one['high'])})"
            budgets = ", ".join(
                f"{judged['name']} {judged['budget']}: {judged['standing']}"
                for judged in performance["judged"]
                if judged["input"] in ("", one["input"])
            )
            cells = (code(record.get("test") or ""), code(one["input"]), seconds(one["eager"]["median"]))
            rest = (seconds(one["exported"]["median"]), ratio, plain(budgets))
            yield f"| {' | '.join([*cells, *rest])} |\n"
    if len(measured) > _ROWS:
        yield f"\nand {len(measured) - _ROWS} more\n"


def code(text: Any) -> str:
    """The text in one line as code, also within a table; nothing for an empty one."""
    said = one_line(str(text))
    if not re.search(r"[`|\\]", said):
        return f"`{said}`" if said else ""
    # Backticks, bars and backslashes act in a table even within code. What is written as a number acts nowhere.
    inert = re.sub(r"[^\w\s]|_", lambda found: f"&#{ord(found[0])};", said)
    return f"<code>{inert}</code>"


def fenced(text: str) -> str:
    """The text as a block of code, whatever it holds."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{fence}text\n{text}\n{fence}"


def plain(text: Any) -> str:
    """The text in one line as it is, in a table or a sentence: nothing in it is Markdown, HTML or a mention."""
    said = html.escape(one_line(str(text)), quote=False)
    said = re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", said)
    return re.sub(r"@(?=\w)", "@\u200b", said)
