"""What a person reads about branches that no input took. Knows outcomes only: the terminal uses it without torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_torchexport.outcome import BranchCoverage, BranchOutcome, Decision, NotChecked

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

EXCLUSION = "# export: no branch"
"""The comment on a line that takes its decisions out of the count."""
_WIDTH = 80


def condition(decision: Decision) -> str:
    """The decision's source text in one line, cut where it is long."""
    text = " ".join(decision.condition.split())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def tried(outcome: BranchOutcome) -> str:
    """What was tried for an outcome that was not reached."""
    return f"tried: {outcome.tried}" if outcome.tried else "no input took it"


def compared_only(
    coverage: BranchCoverage | None, uncompared: Mapping[str, str], compared: Collection[str]
) -> BranchCoverage | None:
    """The coverage without outcomes whose input could not be compared with this program.

    Args:
        coverage: what the inputs took in eager.
        uncompared: labels of the inputs that were not compared, and why.
        compared: labels of those that were.
    """
    if coverage is None or not uncompared:
        return coverage

    def one(outcome: BranchOutcome) -> BranchOutcome:
        if outcome.input not in uncompared or outcome.input in compared:
            return outcome
        return BranchOutcome(outcome.outcome, tried=f"an input that was not compared: {uncompared[outcome.input]}")

    decisions = [replace(d, outcomes=tuple(map(one, d.outcomes))) for d in coverage.decisions]
    return replace(coverage, decisions=tuple(decisions))


def branches_ledger(coverage: BranchCoverage | None, minimum: float | None = None) -> list[NotChecked]:
    """The entries of the not-checked ledger about branches.

    Args:
        coverage: what was observed; None where nothing was.
        minimum: the coverage that the test asks for, as a fraction; None for any.

    Returns:
        One entry for each outcome that was not reached; one that says so where a minimum was asked for and nothing was
        observed.
    """
    if coverage is None:
        why = "the branches were not observed (branches=off)"
        return [] if minimum is None else [NotChecked(f"min_coverage={minimum:g}", why)]
    return [
        NotChecked(f"branch {decision.location}: {condition(decision)}: {one.outcome}", tried(one))
        for decision, one in coverage.unreached
    ]


def below_minimum(coverage: BranchCoverage, minimum: float | None) -> str | None:
    """The message for branches of which too few outcomes were reached.

    Args:
        coverage: what was observed.
        minimum: the fraction of outcomes that has to be reached; None for any.

    Returns:
        None where enough were; also where there is no decision.
    """
    if minimum is None or coverage.ratio >= minimum:
        return None
    known = coverage.known
    wanted = next(count for count in range(known + 1) if count / known >= minimum)
    share = f"{coverage.reached} of {known} outcomes reached"
    lines = [f"branch coverage is too low: {share}, min_coverage={minimum:g} asks for {wanted}"]
    for decision, one in coverage.unreached:
        lines.append(f"  not reached: {decision.location}: {condition(decision)}: {one.outcome}")
        if decision.location.source:
            lines.append(f"      {decision.location.source}")
        lines.append(f"      {tried(one)}")
    if coverage.mode == "search":
        lines.append("  what to do: Pass an input that takes it (extra_inputs=), say what arguments may be (inputs=),")
        lines.append("      let sizes vary (dynamic_shapes=), or give the search more runs (search_budget=).")
    else:
        lines.append("  what to do: Let the search look for inputs (branches='search'), pass one that takes the branch")
        lines.append("      (extra_inputs=), say what arguments may be (inputs=), let sizes vary (dynamic_shapes=).")
    lines.append(f"      A line that no input can reach is left out of the count by the comment {EXCLUSION}")
    return "\n".join(lines)


def summary(coverage: BranchCoverage) -> str:
    """`7 of 8 outcomes reached (4 by example, 2 by generation, 1 by search); 120 eager runs; 1 decision excluded`."""
    kinds = ", ".join(f"{count} by {kind}" for kind, count in coverage.by_kind().items())
    parts = [f"{coverage.reached} of {coverage.known} outcomes reached" + (f" ({kinds})" if kinds else "")]
    if coverage.mode == "search":
        parts.append(f"{coverage.eager_runs} eager runs")
    excluded = sum(decision.excluded for decision in coverage.decisions)
    if excluded:
        parts.append(f"{excluded} decision{'' if excluded == 1 else 's'} excluded")
    return "; ".join(parts)


def how_reached(outcomes: Sequence[BranchOutcome]) -> str:
    """`true by example, false by search (x = negated), 3 not reached`."""
    texts = []
    for one in outcomes:
        by = f" ({one.input})" if one.input and one.input != one.reached_by else ""
        texts.append(f"{one.outcome} by {one.reached_by}{by}" if one.reached_by else f"{one.outcome} not reached")
    return ", ".join(texts)
