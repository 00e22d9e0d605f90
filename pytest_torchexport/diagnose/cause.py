"""One cause for what went wrong, with its evidence, from what is known without looking into the program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_torchexport.outcome import Cause, Evidence, Leaf, Location

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_torchexport.backends.base import Suspicion
    from pytest_torchexport.diagnose.baked import Baked

_BAKED = (Cause.BAKED_BRANCH, Cause.BAKED_VALUE, Cause.BAKED_SHAPE)
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
    findings: Sequence[Finding], tried: int, suspicions: Sequence[Suspicion], baked: Baked | None = None
) -> Attribution:
    """The cause behind all findings of an item.

    Args:
        findings: the inputs that failed, at least one.
        tried: number of inputs that were run.
        suspicions: what the exporter warned about.
        baked: the decision that was found behind them.
    """
    evidence = [Evidence(_how_many(findings, tried))]
    first = findings[0]
    example_agrees = not any(finding.is_example and finding.calls == 1 for finding in findings)
    if baked is not None and baked.proven:
        return Attribution(baked.cause, baked.location, (*evidence, *baked.evidence))
    if lost := _lost(first):
        return Attribution(lost, None, (*evidence, *_leaf_evidence(first)))
    if baked is not None:
        return Attribution(baked.cause, baked.location, (*evidence, *baked.evidence))
    if example_agrees and (suspected := _suspected(suspicions)):
        evidence += [Evidence(s.text, s.location) for s in suspicions if s.cause in _BAKED]
        return Attribution(suspected.cause, suspected.location, tuple(evidence))
    if example_agrees and not any(finding.same_shapes for finding in findings):
        evidence.append(Evidence("every input with the example's shapes agrees, only other sizes fail"))
        return Attribution(Cause.BAKED_SHAPE, None, tuple(evidence))
    if first.raised is not None:
        return Attribution(Cause.EXCEPTION, None, (*evidence, Evidence(f"the exported program raises {first.raised}")))
    evidence += [Evidence(s.text, s.location) for s in suspicions]
    return Attribution(_worst_kind(first.leaves), None, tuple(evidence))


def kind_of(finding: Finding) -> Cause:
    """What kind of difference one finding shows, whatever lies behind it."""
    return _lost(finding) or (Cause.EXCEPTION if finding.raised is not None else _worst_kind(finding.leaves))


def _how_many(findings: Sequence[Finding], tried: int) -> str:
    text = f"{len(findings)} of {tried} inputs fail"
    # Of a sequence that repeats the example, the first call may well agree.
    if any(finding.is_example and (finding.calls == 1 or len(findings) == tried) for finding in findings):
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
    return [Evidence(f"{leaf.path}: {leaf.reason}") for leaf in finding.leaves[:4]]


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
