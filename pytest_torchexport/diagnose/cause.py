"""One cause for what went wrong, with its evidence, from what is known without looking into the program."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_torchexport.outcome import Cause, Evidence, Leaf, Location

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_torchexport.backends.base import Suspicion
    from pytest_torchexport.diagnose.baked import Baked
    from pytest_torchexport.diagnose.case import Clue

_BAKED = (Cause.BAKED_BRANCH, Cause.BAKED_VALUE, Cause.BAKED_SHAPE)
_LEAVES = 4
_KIND_FIRST = (Cause.EXCEPTION, Cause.STRUCTURE, Cause.SHAPE, Cause.DTYPE)


@dataclass(frozen=True)
class Finding:
    """One input on which the exported program did not do what eager did.

    Attributes:
        leaves: what differed; empty where the program raised.
        raised: what the program raised, as one line.
        is_example: the values are the example's, in every call.
        same_shapes: the shapes are the example's.
        calls: length of the sequence.
    """

    leaves: tuple[Leaf, ...]
    raised: str | None
    is_example: bool
    same_shapes: bool
    calls: int


@dataclass(frozen=True)
class Attribution:
    """The cause, the user's line behind it, and the facts that support it."""

    cause: Cause
    location: Location | None
    evidence: tuple[Evidence, ...]


def attribute(
    findings: Sequence[Finding],
    tried: int,
    suspicions: Sequence[Suspicion],
    baked: Baked | None = None,
    clues: Sequence[Clue] = (),
) -> Attribution:
    """The cause behind all findings of an item.

    Args:
        findings: the inputs that failed, at least one.
        tried: number of inputs that were run.
        suspicions: what the exporter warned about.
        baked: the decision that was found behind them.
        clues: what tested hypotheses say of the first finding.
    """
    evidence = [Evidence(_how_many(findings, tried))]
    first = findings[0]
    example_agrees = not any(finding.is_example and finding.calls == 1 for finding in findings)
    told = [fact for clue in clues for fact in clue.evidence]
    shown = next((clue for clue in clues if clue.cause is not None and clue.tested), None)
    tested = shown.cause if shown is not None else None
    suspected = _suspected(suspicions) if example_agrees else None
    if baked is not None and baked.proven:
        return Attribution(baked.cause, baked.location, (*evidence, *baked.evidence))
    if shown is not None and tested is not None and (tested is not Cause.BAKED_VALUE or suspected is None):
        more = _leaf_evidence(first) if tested is Cause.LOST_STATE else []
        return Attribution(tested, shown.evidence[0].location, (*evidence, *told, *more))
    if lost := _lost(first):
        return Attribution(lost, None, (*evidence, *told, *_leaf_evidence(first)))
    if baked is not None:
        return Attribution(baked.cause, baked.location, (*evidence, *told, *baked.evidence))
    if suspected is not None:
        evidence += [*told, *(Evidence(s.text, s.location) for s in suspicions if s.cause in _BAKED)]
        return Attribution(suspected.cause, suspected.location, tuple(evidence))
    if example_agrees and not any(finding.same_shapes for finding in findings):
        evidence.append(Evidence("every input with the example's shapes agrees, only other sizes fail"))
        return Attribution(Cause.BAKED_SHAPE, None, (*evidence, *told))
    return _by_kind(first, [*evidence, *told, *(Evidence(s.text, s.location) for s in suspicions)], clues)


def _by_kind(first: Finding, evidence: list[Evidence], clues: Sequence[Clue]) -> Attribution:
    """The kind of difference for a cause, where nothing behind it is known for certain."""
    if first.raised is not None:
        raised = Evidence(f"the exported program raises {first.raised}")
        return Attribution(Cause.EXCEPTION, None, (evidence[0], raised))
    kind = _worst_kind(first.leaves)
    likely = next((clue for clue in clues if clue.cause is not None), None)
    if kind is not Cause.NUMERIC or likely is None or likely.cause is None:
        return Attribution(kind, None, tuple(evidence))
    return Attribution(likely.cause, likely.evidence[0].location, tuple(evidence))


def kind_of(finding: Finding) -> Cause:
    """What kind of difference one finding shows, whatever lies behind it."""
    return _lost(finding) or (Cause.EXCEPTION if finding.raised is not None else _worst_kind(finding.leaves))


def _how_many(findings: Sequence[Finding], tried: int) -> str:
    text = f"{len(findings)} of {tried} inputs fail"
    if any(finding.is_example for finding in findings):
        return text + ", the example among them"
    return text + "; the example itself agrees"


def _lost(finding: Finding) -> Cause | None:
    """Lost state or a lost mutation: said by the leaves, or seen when only a later call differs."""
    causes = {leaf.cause for leaf in finding.leaves}
    if Cause.LOST_STATE in causes:
        return Cause.LOST_STATE
    outputs = [leaf.path for leaf in finding.leaves if not leaf.path.startswith(("argument", "state", "gradient"))]
    if finding.calls > 1 and outputs and not any(path.startswith("call 1 output") for path in outputs):
        return Cause.LOST_STATE
    return Cause.LOST_MUTATION if Cause.LOST_MUTATION in causes else None


def _leaf_evidence(finding: Finding) -> list[Evidence]:
    """What was lost, leaf by leaf, and from which call on it shows in the outputs."""
    lost = [leaf for leaf in finding.leaves if leaf.cause in (Cause.LOST_STATE, Cause.LOST_MUTATION)]
    facts = [Evidence(f"{leaf.path}: {leaf.reason}") for leaf in (lost or finding.leaves)[:_LEAVES]]
    calls = [int(found[1]) for leaf in finding.leaves if (found := re.match(r"call (\d+) output", leaf.path))]
    if calls and min(calls) > 1:
        facts.append(Evidence(f"the outputs agree up to call {min(calls) - 1}, and differ from call {min(calls)} on"))
    return facts


def _suspected(suspicions: Sequence[Suspicion]) -> Suspicion | None:
    """The suspicion to name: a branch before a value before a shape, the first of its kind."""
    baked = [s for s in suspicions if s.cause in _BAKED]
    return min(baked, key=lambda s: _BAKED.index(s.cause), default=None)


def _worst_kind(leaves: Sequence[Leaf]) -> Cause:
    causes = [leaf.cause for leaf in leaves if leaf.cause is not None]
    for kind in (*_KIND_FIRST, Cause.SPECIAL_VALUE):
        if kind in causes:
            return kind
    return Cause.NUMERIC
