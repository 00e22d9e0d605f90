"""An outcome as flat properties of a test case, the form that readers of JUnit files understand."""

from __future__ import annotations

from typing import Any

PREFIX = "torchexport."


def properties(record: dict[str, Any]) -> list[tuple[str, str | int | float]]:
    """The properties of an outcome; those without a value are left out.

    Args:
        record: what `Outcome.to_dict` returns.

    Returns:
        Pairs of name and value. `torchexport.max_abs` and `.max_rel` are those of the worst leaf,
        `torchexport.inputs` is the number of inputs that were compared, `torchexport.branches_known` and
        `.branches_reached` count outcomes of decisions in the user's code, `torchexport.duration_s` is in seconds.
        `torchexport.latency_ratio` is the exported program's time as a multiple of eager's on the first input that was
        timed, `.latency_median_s` its median and `.first_call_s` the time of its first call, in seconds.
    """
    worst, branches = record["worst"] or {}, record["branches"] or {}
    performance = record["performance"] or {}
    timed = next(iter(performance.get("paired", ())), None)
    start = next(iter(performance.get("cold_starts", ())), None)
    values = {
        "verdict": record["verdict"],
        "stage": record["stage"],
        "cause": record["cause"],
        "backend": record["backend"],
        "device": record["device"],
        "max_abs": worst.get("max_abs"),
        "max_rel": worst.get("max_rel"),
        "inputs": len(record["inputs"]),
        "branches_known": branches.get("known"),
        "branches_reached": branches.get("reached"),
        "latency_ratio": timed and timed["ratio"],
        "latency_median_s": timed and timed["exported"]["median"],
        "first_call_s": start and start["calls"][0],
        "duration_s": round(sum(record["durations"].values()), 6),
    }
    return [(PREFIX + name, value) for name, value in values.items() if value is not None]
