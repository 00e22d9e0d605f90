"""What a person reads when an equivalent program is over its budget, or when that cannot be told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_torchexport.explain.layout import paragraph
from pytest_torchexport.measured import Standing, seconds

if TYPE_CHECKING:
    from pytest_torchexport.measured import Judged, Performance

_ADVICE = {
    "ratio": "see where its time goes (torch.profiler, or the runtime's own), try the backend's options, or set a "
    "budget above the upper end of the interval",
    "median": "a time depends on the machine: set it for the machine that runs this test, or give a ratio to eager",
    "p99": "a tail belongs to the machine as much as to the program: measure on one with nothing else to do",
    "first_call": "call the program once where the service starts, or set the budget to what a start may take; "
    "for TorchScript see profiling=False, for torch.compile its caches and mode",
    "warmup_calls": "call the program that often where the service starts; for TorchScript see profiling=False",
    "recompiles": "declare what varies (dynamic_shapes=, Compile(dynamic=True)), or make a number that varies a tensor",
    "peak_memory": "see which operator makes the largest temporaries, or set the budget to what a start may take",
    "artifact_size": "see what the file holds: constants that were folded, weights that are held twice",
}
"""What helps, by the figure that is over."""


def headline(judged: Judged) -> str:
    """`ratio 1.34x (1.31x to 1.37x), the budget is 1.2x`."""
    return f"{_name(judged)} {judged.measured}, the budget is {judged.budget}"


def told(performance: Performance) -> list[str]:
    """The lines below the headline: each figure of the budget, what was timed and how, and what to do."""
    lines: list[str] = []
    for one in performance.judged:
        why = f" ({one.why})" if one.why else ""
        where = f" on {one.input}" if one.input else ""
        measured = one.measured or "not measured"
        lines += paragraph(f"{_name(one)}{where}", f"{measured}, budget {one.budget}: {one.standing.value}{why}")
    for pair in performance.paired:
        lines += paragraph(
            "timed",
            f"{pair.input}: eager {seconds(pair.eager.median)}, exported {seconds(pair.exported.median)}, medians of "
            f"{pair.eager.calls} and {pair.exported.calls} calls in random turns; {_circumstances(performance)}",
        )
    over = next((one for one in performance.judged if one.standing is Standing.OVER), None)
    if over is not None:
        lines += paragraph("what to do", _ADVICE[over.name])
    return lines


def _name(judged: Judged) -> str:
    return judged.name.replace("_", " ")


def _circumstances(performance: Performance) -> str:
    threads = performance.machine.get("threads")
    said = [performance.mode, f"{threads} thread{'' if threads == 1 else 's'}" if threads else ""]
    said.append(f"copies between host and device {performance.copies}" if performance.copies else "")
    return ", ".join(filter(None, said))
