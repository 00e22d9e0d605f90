"""What a reader wants first: tests x backends, a word for each check, the totals."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

from pytest_torchexport.outcome import Verdict
from pytest_torchexport.report.text import count

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Record = dict[str, Any]
Tone = Literal["ok", "bad", "expected", "unsure", "none"]

FAILED = frozenset({"failed", "error", "xpassed"})
"""Results of tests that fail a run."""
_GOOD = {"equivalent", "inconclusive"}


def tone(record: Record) -> Tone:
    """How a check stands: fine, failed, failed as expected, undecided, not made."""
    if record["result"] in FAILED:
        return "bad"
    if record["result"] == "xfailed":
        return "expected"
    if record["verdict"] == "equivalent":
        return "ok"
    return "none" if record["verdict"] == "skipped" else "unsure"


def word(record: Record) -> str:
    """A word or two for a check: `ok`, the cause of a mismatch, else the verdict, with what pytest makes of it."""
    verdict, result = record["verdict"], record["result"]
    said = record.get("cause") or verdict
    if result == "xfailed":
        return f"xfail: {said}"
    if verdict == "skipped":
        return "missing" if result in FAILED else "skipped"
    if verdict in _GOOD:
        if result == "xpassed":
            return "xpass"
        if result in FAILED:
            return "test failed"
        return "ok" if verdict == "equivalent" else str(verdict)
    return f"failed: {record['stage']}" if verdict == "failed" else str(said)


def by_test(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The checks of each test, in their order."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.get("origin") or record.get("test") or "", []).append(record)
    return found


def column_of(record: Record) -> str:
    """The column of a check: its cell without the backend's options, `compile-cpu`; empty without a backend."""
    backend = record["backend"]
    return str(backend.partition(":")[0] + record["cell"][len(backend) :]) if backend else ""


def columns(records: Sequence[Record], backends: Sequence[str] = ()) -> dict[str, str]:
    """The columns in their order, with the shortest title that tells them apart.

    Args:
        records: the checks.
        backends: the known names, in their order; a column of another one comes after theirs, and last that of checks
            without a backend, whose key is empty.
    """
    found = {column_of(one): one["backend"].partition(":")[0] for one in records if one["backend"]}
    places = {name: place for place, name in enumerate(backends)}
    ordered = sorted(found, key=lambda key: (places.get(found[key], len(places)), key))
    alone = len(set(found.values())) == len(found)
    titles = {key: found[key] if alone else key for key in ordered}
    return titles | ({"": "no backend"} if any(not one["backend"] for one in records) else {})


def is_fine(records: Iterable[Record]) -> bool:
    """Whether there is nothing to be seen at these checks."""
    return all(tone(one) == "ok" for one in records)


def verdicts(records: Iterable[Record]) -> dict[str, int]:
    """Number of checks by verdict."""
    found = Counter(record["verdict"] for record in records)
    return {one.value: found[one.value] for one in Verdict if found[one.value]}


def totals(records: Sequence[Record]) -> str:
    """`8 checks of 2 tests: 6 equivalent, 1 mismatch (expected), 1 skipped; 80 inputs compared`."""
    found = ", ".join(f"{amount:,} {verdict}" for verdict, amount in verdicts(records).items()) or "none"
    expected = sum(record["result"] == "xfailed" for record in records)
    inputs = sum(len(record.get("inputs") or ()) for record in records)
    return (
        f"{count(len(records), 'check')} of {count(len(by_test(records)), 'test')}: {found}"
        f"{f' ({expected:,} expected to fail)' if expected else ''}; {count(inputs, 'input')} compared"
    )


def ledger(records: Iterable[Record]) -> Counter[tuple[str, str]]:
    """What was not checked and why, with the number of checks that say so."""
    return Counter(
        (entry["what"], entry["why"])
        for record in records
        for entry in {(e["what"], e["why"]): e for e in record.get("not_checked") or ()}.values()
    )


def covered(record: Record) -> tuple[int, int] | None:
    """Outcomes of decisions that were reached, and those that are known; None where there are none."""
    branches = record.get("branches") or {}
    return (branches["reached"], branches["known"]) if branches.get("known") else None
