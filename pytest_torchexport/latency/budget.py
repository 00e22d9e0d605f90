"""Budgets: what an exported program may take in time and memory. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """What an exported program may take. What is None is measured and not judged.

    Args:
        ratio: time of a call, as a multiple of eager's on the same device: `"1.2x"` or 1.2.
        median: median time of a call: `"5ms"`.
        p99: 99th percentile of the times: `"8ms"`.
        first_call: time of the first call of the program, loaded anew: `"2s"`.
        warmup_calls: number of calls until the times settle.
        recompiles: compilations beyond the first that the inputs of the check may cause; for `compile`.
        peak_memory: the most memory beyond what was held before, while the program is loaded and first called, on the
            device that it runs on: `"500MB"`.
        artifact_size: bytes on disk, side files included: `"20MB"`.
        inputs: labels of the inputs that are timed: `"example"`, `"extra_inputs[0]"`.
        copies: count the copies of arguments and results between host and device.

    Raises:
        UsageError: a value is negative, or has no unit or a wrong one.
    """

    ratio: float | str | None = None
    median: str | None = None
    p99: str | None = None
    first_call: str | None = None
    warmup_calls: int | None = None
    recompiles: int | None = None
    peak_memory: str | None = None
    artifact_size: str | None = None
    inputs: tuple[str, ...] = ("example",)
    copies: bool = False
