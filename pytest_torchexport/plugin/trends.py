"""The ratios to eager that a run measured, beside those of the baseline. From records alone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pytest_torchexport import environment
from pytest_torchexport.latency.trend import Comparison, Entry, compare

if TYPE_CHECKING:
    from collections.abc import Sequence

Key = tuple[str, str, str, str]
"""Machine, test without the cell, cell, and label of the input."""
Record = dict[str, Any]


@dataclass(frozen=True)
class Trend:
    """One ratio of this run beside the baseline's.

    Attributes:
        test: id of the test item.
        key: under which the baseline has it.
        now: the ratio of this run; None where its times did not settle.
        then: that of the baseline; None where it has none.
        elsewhere: whether the baseline has that of another machine only.
    """

    test: str
    key: Key
    now: Entry | None
    then: Entry | None
    elsewhere: bool

    @property
    def comparison(self) -> Comparison | None:
        """The two compared, where there are two."""
        return compare(self.then, self.now) if self.now and self.then else None

    @property
    def change(self) -> str:
        """A word for what became of the ratio: a `Change`, `new` or `unsettled`."""
        if self.now is None:
            return "unsettled"
        return "new" if self.comparison is None else self.comparison.change.value

    def to_dict(self) -> dict[str, Any]:
        """The trend as plain data, for the report."""
        machine, origin, cell, label = self.key
        found = self.comparison
        return {
            "test": self.test,
            "origin": origin,
            "cell": cell,
            "input": label,
            "machine": machine,
            "change": self.change,
            "ratio": self.now and self.now.ratio,
            "baseline": self.then and self.then.ratio,
            "since": self.then and self.then.date,
            "effect": found and found.effect,
            "low": found and found.low,
            "high": found and found.high,
            "conditions": list(found.conditions) if found else [],
        }


def trends(records: Sequence[Record], entries: dict[Key, Entry]) -> list[Trend]:
    """What was timed, beside what the baseline has of it."""
    anywhere = {key[1:] for key in entries}
    found = []
    for record in records:
        performance = record.get("performance") or {}
        for paired in performance.get("paired") or ():
            machine = fingerprint(performance["machine"] or environment.machine(), record["device"])
            key = (machine, record["origin"], record["cell"], paired["input"])
            now, then = _entry(record, paired), entries.get(key)
            found.append(Trend(record["test"], key, now, then, elsewhere=then is None and key[1:] in anywhere))
    return found


def fingerprint(machine: dict[str, Any], device: str) -> str:
    """The part of a machine that decides a ratio on the device: `AMD EPYC 9654, 96 CPUs, NVIDIA H200`.

    Args:
        machine: what `environment.machine` returns.
        device: as the check names it, `cpu` or `cuda:1`.
    """
    count = machine.get("cpus", 0)
    parts = [machine.get("cpu", ""), f"{count} CPU{'' if count == 1 else 's'}"]
    kind, _, index = device.partition(":")
    if kind != "cpu":
        names = machine.get("gpus") or ()
        place = int(index or 0)
        parts.append(names[place] if place < len(names) else kind)
    return ", ".join(filter(None, parts))


def _entry(record: Record, paired: dict[str, Any]) -> Entry | None:
    if not paired["settled"]:
        return None
    numbers = {name: float(paired[name]) for name in ("ratio", "low", "high")}
    try:
        today = datetime.now(UTC).date().isoformat()
        return Entry(**numbers, pairs=paired["pairs"], date=today, conditions=_conditions(record))
    except ValueError:  # below the resolution of the clock
        return None


def _conditions(record: Record) -> dict[str, str]:
    """What a ratio depends on beside model and machine."""
    versions = (record.get("environment") or {}).get("versions") or {}
    runs_onnx = record["backend"].startswith("onnx")
    found = {
        name: value
        for name, value in versions.items()
        if name in ("python", "torch") or (name.startswith("onnxruntime") and runs_onnx)
    }
    if "python" in found:
        found["python"] = ".".join(found["python"].split(".")[:2])
    performance = record["performance"]
    facts = {name: performance["machine"].get(name) for name in ("threads", "governor")}
    facts |= {name: performance.get(name) for name in ("mode", "copies")}
    return found | {name: str(value) for name, value in facts.items() if value not in (None, "")}
