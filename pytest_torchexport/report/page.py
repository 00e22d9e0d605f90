"""What stands on the page of an HTML report: the document as the parts that the template writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_torchexport.measured import figure
from pytest_torchexport.report import changes, drawings, summary
from pytest_torchexport.report.source import Coverage, Sources
from pytest_torchexport.report.text import number, seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pytest_torchexport.report.drawings import Calls, Error, Latency, Ratio, Stages
    from pytest_torchexport.report.scales import LogScale, Tick
    from pytest_torchexport.report.summary import Record, Tone

_FEW_TESTS = 40
"""Up to here every test is open; of more, only those with a failure."""
_FAILURES_LISTED = 100


@dataclass(frozen=True, slots=True)
class Item:
    """One check: its record, the words for it, and its pictures."""

    key: str
    record: Record
    name: str
    word: str
    tone: Tone
    is_open: bool
    error: Error | None
    latency: Latency | None
    ratio: Ratio | None
    calls: Calls | None
    stages: Stages | None
    others: tuple[tuple[Latency, tuple[Tick, ...]], ...]

    @property
    def performance(self) -> dict[str, Any]:
        """What was measured of its speed; empty where nothing was."""
        return self.record.get("performance") or {}

    @property
    def summary(self) -> str:
        """The first line of its message."""
        return str(self.record["message"]).split("\n", 1)[0]


@dataclass(frozen=True, slots=True)
class Axes:
    """The labels of the scales that the pictures of a test share; empty for one that has no picture."""

    latency: tuple[Tick, ...]
    ratio: tuple[Tick, ...]
    calls: tuple[Tick, ...]


@dataclass(frozen=True, slots=True)
class Branches:
    """The branches of a test's model, as these of its checks took them."""

    items: tuple[Item, ...]
    reached: int
    known: int
    eager_runs: int
    coverage: Coverage


@dataclass(frozen=True, slots=True)
class Test:
    """The checks of one test function, by column of the matrix."""

    key: str
    file: str
    name: str
    items: tuple[Item, ...]
    cells: dict[str, list[Item]]
    axes: Axes
    branches: tuple[Branches, ...]
    is_open: bool

    @property
    def models(self) -> str:
        """The names of what it checks."""
        return ", ".join(dict.fromkeys(one.record["model"] for one in self.items if one.record.get("model")))

    @property
    def has_budget(self) -> bool:
        """Whether the ratio of a check has a budget."""
        return any(one.ratio is not None and one.ratio.budget is not None for one in self.items)

    @property
    def covered(self) -> str:
        """`2/2` outcomes of decisions; empty where there are none."""
        return ", ".join(dict.fromkeys(f"{one.reached}/{one.known}" for one in self.branches))


@dataclass(frozen=True, slots=True)
class Change:
    """A ratio to eager that is not what it was, and the check that it belongs to."""

    entry: dict[str, Any]
    key: str
    label: str
    effect: str


@dataclass(frozen=True, slots=True)
class Page:
    """All that the template needs."""

    document: dict[str, Any]
    totals: str
    verdicts: dict[str, int]
    seconds: float
    columns: dict[str, str]
    tests: tuple[Test, ...]
    failing: tuple[Item, ...]
    failing_left_out: int
    changes: tuple[Change, ...]
    compared: str
    not_checked: list[tuple[tuple[str, str], int]]
    error_ticks: tuple[Tick, ...]

    @property
    def timed(self) -> bool:
        """Whether the speed of anything was measured."""
        return any(item.ratio for test in self.tests for item in test.items)


def make_page(document: dict[str, Any]) -> Page:
    """The parts of the page, from the document that is the JSON report."""
    records: list[Record] = document["outcomes"]
    grouped = summary.by_test(records)
    sources = Sources()
    tests, at = [], 0
    for place, (origin, own) in enumerate(grouped.items()):
        tests.append(_test(place, at, origin, own, sources, few=len(grouped) <= _FEW_TESTS))
        at += len(own)
    trend = document.get("trend") or []
    failing = [item for test in tests for item in test.items if item.tone == "bad"]
    return Page(
        document,
        summary.totals(records),
        summary.verdicts(records),
        sum(number(value) or 0.0 for one in records for value in (one.get("durations") or {}).values()),
        summary.columns(records, document.get("backends", ())),
        tuple(tests),
        tuple(failing[:_FAILURES_LISTED]),
        max(0, len(failing) - _FAILURES_LISTED),
        tuple(_changes(trend, tests)),
        changes.totals(trend) if trend else "",
        summary.ledger(records).most_common(),
        drawings.error_ticks(),
    )


def _changes(trend: Iterable[dict[str, Any]], tests: Iterable[Test]) -> Iterator[Change]:
    keys = {item.record.get("test"): item.key for test in tests for item in test.items}
    for one in changes.changed(trend):
        yield Change(one, keys.get(one["test"], ""), changes.label(one), changes.effect(one))


def _test(place: int, at: int, origin: str, records: Sequence[Record], sources: Sources, *, few: bool) -> Test:
    measured = [one["performance"] for one in records if one.get("performance")]
    first = [one["paired"][0] for one in measured if one["paired"]]
    latency = drawings.latency_scale(first)
    ratio = drawings.ratio_scale(value for one in measured for value in _ratios(one))
    calls = drawings.calls_scale(start for one in measured for start in one["cold_starts"][:2])
    longest = max(sum(number(value) or 0.0 for value in (one.get("durations") or {}).values()) for one in records)
    items = tuple(
        _item(f"i{at + index}", record, latency, ratio, calls, longest) for index, record in enumerate(records)
    )
    cells: dict[str, list[Item]] = {}
    for item in items:
        cells.setdefault(summary.column_of(item.record), []).append(item)
    file, _, name = origin.partition("::")
    return Test(
        f"t{place}",
        file if name else "",
        name or origin,
        items,
        cells,
        Axes(
            latency.ticks(_short_time, apart=44.0) if latency else (),
            ratio.ticks(lambda value: times(value, figure), apart=28.0) if ratio else (),
            calls.ticks(_short_time, apart=11.0) if calls else (),
        ),
        tuple(_branches(items, sources)),
        few or any(item.is_open for item in items),
    )


def _short_time(value: float) -> str:
    return seconds(value, figure)


def _ratios(performance: dict[str, Any]) -> list[float | None]:
    found = performance["paired"][:1]
    values = [number(one[key]) for one in found for key in ("ratio", "low", "high")]
    return values + [drawings.budget_of(performance["judged"], one["input"]) for one in found]


def _item(
    key: str,
    record: Record,
    latency: LogScale | None,
    ratio: LogScale | None,
    calls: LogScale | None,
    longest: float,
) -> Item:
    performance = record.get("performance") or {}
    paired = next(iter(performance.get("paired") or ()), None)
    starts = [one for one in performance.get("cold_starts") or () if one["calls"]]
    tone = summary.tone(record)
    budget = drawings.budget_of(performance["judged"], paired["input"]) if paired else None
    return Item(
        key,
        record,
        record.get("cell") or record.get("backend") or "no backend",
        summary.word(record),
        tone,
        tone == "bad",
        drawings.error(record.get("worst")),
        drawings.latency(paired, latency) if paired and latency else None,
        drawings.ratio(paired, budget, ratio) if paired and ratio else None,
        drawings.calls(starts, calls) if starts and calls else None,
        drawings.stages(record.get("durations") or {}, longest),
        _others(performance.get("paired") or ()),
    )


def _others(paired: Sequence[dict[str, Any]]) -> tuple[tuple[Latency, tuple[Tick, ...]], ...]:
    """The pictures of the inputs after the first, which share a scale."""
    scale = drawings.latency_scale(paired[1:])
    if scale is None:
        return ()
    ticks = scale.ticks(_short_time, apart=44.0)
    return tuple((drawings.latency(one, scale), ticks) for one in paired[1:])


def _branches(items: Iterable[Item], sources: Sources) -> list[Branches]:
    """The coverage of a test, once for all of its checks that have the same: they share their inputs."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        if summary.covered(item.record):
            groups.setdefault(json.dumps(item.record["branches"]["decisions"]), []).append(item)
    found = []
    for own in groups.values():
        branches = own[0].record["branches"]
        coverage = sources.coverage(branches["decisions"])
        found.append(
            Branches(tuple(own), branches["reached"], branches["known"], branches.get("eager_runs", 0), coverage)
        )
    return found
