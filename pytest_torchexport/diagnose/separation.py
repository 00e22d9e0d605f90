"""What the inputs alone tell of a decision: on which of them it goes another way than in the example."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pytest_torchexport.branches.coverage import describe, location_of, text_of
from pytest_torchexport.branches.sites import Kind, Site
from pytest_torchexport.outcome import Evidence, Location
from pytest_torchexport.subject import containers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_torchexport.backends.base import Suspicion
    from pytest_torchexport.trials import Trial

_AGREEING = 3
"""Inputs that have to agree before a decision is named that was not proven."""


def separating(
    example: Trial, failing: Sequence[Trial], agreeing: Sequence[Trial], lines: set[tuple[str, int]]
) -> tuple[Site, tuple[Evidence, ...]] | None:
    """The decision that alone tells the failing inputs from the others; None if there is none, or not just one."""
    taken = [trial.taken for trial in failing if trial.record.error is None]
    fine = [trial.taken for trial in agreeing if trial.taken is not None]
    usual = example.taken
    if usual is None or not taken or None in taken or len(fine) < _AGREEING:
        return None

    def is_other(site: Site, one: Mapping[Site, Any]) -> bool:
        if site.kind is Kind.EXCEPTION:
            return site in one and site not in usual
        return site in one and site in usual and bool(one[site] != usual[site])

    first = taken[0]
    assert first is not None
    found = [
        site
        for site in first
        if all(one is not None and is_other(site, one) for one in taken)
        and not any(is_other(site, one) for one in fine)
    ]
    suspected = [site for site in found if (site.file, site.line) in lines]
    conditions = [site for site in found if site.kind in (Kind.CONDITION, Kind.EXCEPTION)]
    chosen = next((some for some in (suspected, conditions, found) if some), [])
    if len({site.line for site in chosen}) != 1:
        return None
    site = chosen[0]
    before = "not entered" if site.kind is Kind.EXCEPTION else describe(site, usual[site])
    now = "entered" if site.kind is Kind.EXCEPTION else describe(site, first[site])
    at = location_of(site)
    likely = (
        f"likely, not proven: on every failing input `{text(site)}` goes another way than in the example, on the "
        f"{len(fine)} inputs that agree it never does"
    )
    return site, (Evidence(f"`{text(site)}`: {before} in the example, {now} on this input", at), Evidence(likely, at))


def to_blame(suspicions: Sequence[Suspicion], example: Trial, failing: Sequence[Trial]) -> list[Suspicion]:
    """What the exporter warned about, but for lines on which no failing input goes another way than the example.

    Sizes are not observed: an input of other sizes clears no line.

    Args:
        suspicions: what the exporter warned about.
        example: what the export saw.
        failing: the inputs that fail.
    """
    usual = example.taken
    runs = [trial.taken for trial in failing]
    if usual is None or any(_shapes(trial) != _shapes(example) for trial in failing):
        return list(suspicions)

    def is_clear(at: Location | None) -> bool:
        there = [site for site in usual if at is not None and (site.file, site.line) == (at.file, at.line)]
        return bool(there) and all(taken is not None and taken.get(s) == usual[s] for taken in runs for s in there)

    return [suspicion for suspicion in suspicions if not is_clear(suspicion.location)]


def _shapes(trial: Trial) -> set[tuple[tuple[str, tuple[int, ...]], ...]]:
    found = (containers.tensors([call.args, dict(call.kwargs)]) for call in trial.calls)
    return {tuple((path, tuple(tensor.shape)) for path, tensor in one) for one in found}


def text(site: Site) -> str:
    """The decision as it is written; the pattern of a `case` with that word."""
    line = location_of(site).source
    return f"case {text_of(site)}" if site.kind is Kind.CONDITION and re.match(r"case\b[^:]*:", line) else text_of(site)
