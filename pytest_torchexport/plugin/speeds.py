"""Speed in the terminal: a line for each check that was measured, and what -v says of one."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from pytest_torchexport.measured import SPEED, Standing, digits, multiple, seconds, size
from pytest_torchexport.plugin.options import LATENCY

if TYPE_CHECKING:
    from collections.abc import Sequence

Record = dict[str, Any]
Line = list[tuple[str, str]]
"""Pieces of text with their colour; empty for none."""

MAX_ROWS = 30
"""Without -v, of more measurements only those that matter most are shown."""

_WORST_FIRST = (Standing.OVER, Standing.INCONCLUSIVE, Standing.NOT_CHECKED, Standing.WITHIN)


def measured(records: Sequence[Record]) -> list[Record]:
    """The records of checks whose speed was measured."""
    return [record for record in records if record["performance"]]


def section(records: Sequence[Record], labels: Sequence[str], width: int, *, everything: bool) -> list[Line]:
    """Both medians, the ratio with its interval, the first call and the budget of each check.

    Args:
        records: those that were measured.
        labels: what each is called.
        width: columns of the terminal; the label is cut to leave room.
        everything: show all; else at most `MAX_ROWS`, of which those over budget and the slowest come first.
    """
    shown = list(range(len(records)))
    if not everything and len(records) > MAX_ROWS:
        chosen = sorted(shown, key=lambda number: _importance(records[number]["performance"]))
        shown = sorted(chosen[:MAX_ROWS])
    rows = [row for number in shown for row in _rows(labels[number], records[number]["performance"])]
    lines = _aligned(rows, width, _title(records))
    if len(shown) < len(records):
        lines.append([(f"... and {len(records) - len(shown)} more that were measured (-v shows them)", "")])
    return lines


def left_out(records: Sequence[Record]) -> list[str]:
    """Why checks that have a budget, or were to be reported, were not measured; nothing where the user said so."""
    reasons = Counter(
        entry["why"].partition(" (budget: ")[0]
        for record in records
        for entry in record["not_checked"]
        if entry["what"] == SPEED and not entry["why"].startswith(LATENCY.flag)
    )
    return [
        f"latency of {count} check{'' if count == 1 else 's'} was not measured: {why}" for why, count in reasons.items()
    ]


def details(record: Record) -> list[str]:
    """For -v: how one check was timed, how its program started, and each figure of its budget."""
    performance = record["performance"]
    if not performance:
        return []
    lines = [f"  latency: {_timed(paired, performance)}" for paired in performance["paired"]]
    started = [_started(start) for start in performance["cold_starts"]]
    started += [f"recompiled {performance['recompiles']} times"] if performance["recompiles"] else []
    lines.append(f"  cold start: {'; '.join([*started, *_memory(record)])}")
    if performance["judged"]:
        said = "" if performance["enforced"] else " (not enforced)"
        lines.append(f"  budget{said}: {'; '.join(_judged(one) for one in performance['judged'])}")
    return lines


def _importance(performance: dict[str, Any]) -> tuple[int, float]:
    standings = [_WORST_FIRST.index(one["standing"]) for one in performance["judged"]]
    slowest = max((float(paired["ratio"]) for paired in performance["paired"]), default=0.0)
    return min(standings, default=len(_WORST_FIRST)), -slowest


def _title(records: Sequence[Record]) -> str:
    """The title of the last column; empty where no check has a budget."""
    judged = [record["performance"]["enforced"] for record in records if record["performance"]["judged"]]
    return "" if not judged else "budget" if any(judged) else "budget (not enforced)"


def _rows(label: str, performance: dict[str, Any]) -> list[Line]:
    """A row for each input that was timed; what belongs to all of them stands in the first."""
    start = next(iter(performance["cold_starts"]), None)
    first_call = seconds(start["calls"][0]) if start else "-"
    rows: list[Line] = []
    for paired in performance["paired"]:
        name = "  and" if rows else label
        row = [
            name if paired["input"] == "example" else f"{name} on {paired['input']}",
            seconds(float(paired["eager"]["median"])),
            seconds(float(paired["exported"]["median"])),
            _ratio(paired),
            "" if rows else first_call,
        ]
        rows.append([*((text, "") for text in row), ("", "") if rows else _budget(performance)])
    return rows or [[(label, ""), *[("-", "")] * 3, (first_call, ""), _budget(performance)]]


def _aligned(rows: Sequence[Line], width: int, budget: str) -> list[Line]:
    head = [(text, "bold") for text in ("latency", "eager", "exported", "ratio", "first call", budget)]
    table = [head, *rows]
    widths = [max(len(row[column][0]) for row in table) for column in range(len(head) - 1)]
    # The budget, which stands last, may go on below.
    widths[0] = min(widths[0], max(20, width - sum(widths[1:]) - 2 * len(widths)))
    lines: list[Line] = []
    for row in table:
        name = row[0][0]
        cut = name if len(name) <= widths[0] else "…" + name[-widths[0] + 1 :]
        line = [(cut.ljust(widths[0]), row[0][1])]
        line += [("  " + text.ljust(size), color) for (text, color), size in zip(row[1:-1], widths[1:], strict=True)]
        text, color = row[-1]
        lines.append([*line, ("  " + text, color)] if text else line)
    return lines


def _ratio(paired: dict[str, Any]) -> str:
    """`0.68x [0.61..0.80]`."""
    low, high = (digits(float(paired[end])) for end in ("low", "high"))
    return f"{multiple(float(paired['ratio']))} [{low}..{high}]"


def _budget(performance: dict[str, Any]) -> tuple[str, str]:
    """The figures with the worst standing, and its colour."""
    judged = performance["judged"]
    worst = next((one for one in _WORST_FIRST if any(own["standing"] == one for own in judged)), None)
    if worst is None:
        return "", ""
    figures = dict.fromkeys(_limit(one) for one in judged if one["standing"] == worst)
    failing = worst is Standing.OVER and performance["enforced"]
    return f"{worst}: {', '.join(figures)}", "red" if failing else "green" if worst is Standing.WITHIN else "yellow"


def _limit(judged: dict[str, Any]) -> str:
    """`1.2x`, `first call 2 s`."""
    name = judged["name"].replace("_", " ")
    return str(judged["budget"]) if name == "ratio" else f"{name} {judged['budget']}"


# --- -v ---


def _timed(paired: dict[str, Any], performance: dict[str, Any]) -> str:
    sides = [
        f"{side} {seconds(float(paired[side]['median']))} ±{float(paired[side]['noise']):.0%}"
        for side in ("eager", "exported")
    ]
    where = "" if paired["input"] == "example" else f"on {paired['input']}: "
    copies = f", copies {performance['copies']}" if performance["copies"] else ""
    settled = "" if paired["settled"] else ", not settled"
    return (
        f"{where}{sides[0]}, {sides[1]}, ratio {_ratio(paired)} from {paired['pairs']} pairs in random turns "
        f"({performance['mode']}{copies}{settled})"
    )


def _started(start: dict[str, Any]) -> str:
    load = [] if start["load"] is None else [f"load {seconds(start['load'])}"]
    settled = start["settled_after"]
    calls = f"not settled in {len(start['calls'])} calls" if settled is None else f"settled after {settled} calls"
    said = ", ".join([*load, f"first call {seconds(start['calls'][0])}", calls])
    if start["variant"]:
        return f"{start['variant']}: {said}"
    return f"export {seconds(start['export'])}, {said}" + (f" ({start['note']})" if start["note"] else "")


def _memory(record: Record) -> list[str]:
    memory, bytes_on_disk = record["performance"]["memory"] or {}, record["artifact_bytes"]
    found = []
    for place in ("host", "device"):
        if memory.get(place) is not None:
            eager = memory[f"{place}_eager"]
            beside = "" if eager is None else f" (eager {size(eager)})"
            found.append(f"peak on {place} {size(memory[place])}{beside}")
    return found + ([] if bytes_on_disk is None else [f"file {size(bytes_on_disk)}"])


def _judged(judged: dict[str, Any]) -> str:
    name = judged["name"].replace("_", " ") + (f" on {judged['input']}" if judged["input"] else "")
    why = f" ({judged['why']})" if judged["why"] else ""
    return f"{name} {judged['measured'] or 'not measured'} of {judged['budget']}: {judged['standing']}{why}"
