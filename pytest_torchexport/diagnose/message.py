"""What a person reads when a check fails: a headline that stands alone, then the facts in order of use."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_torchexport.outcome import Cause, Leaf, Location, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_torchexport.diagnose.cause import Attribution
    from pytest_torchexport.diagnose.reproduce import Again

_REMEDY = {
    Cause.BAKED_BRANCH: (
        "The export kept the branch that the example takes. Use script for this part (torch.jit.script), torch.cond, "
        "or torch.where."
    ),
    Cause.BAKED_VALUE: (
        "The export holds as a constant what the example gave. Keep the number a tensor, or use script for this part."
    ),
    Cause.BAKED_SHAPE: (
        "The export holds a size of the example. Take sizes from x.shape or x.size() without int(), and declare the "
        "dimension in dynamic_shapes."
    ),
    Cause.LOST_STATE: (
        "What forward stores in the module is not stored by the exported program. Pass the state in and out as "
        "arguments, or register it as a buffer and use a backend that keeps buffers."
    ),
    Cause.LOST_MUTATION: "Return the changed tensor instead of writing to the argument.",
    Cause.STRUCTURE: "The output's containers differ. Return what the export can express: tuples and dicts of tensors.",
}
_LEAVES_SHOWN = 5


def headline(model: str, backend: str, device: str, verdict: Verdict, rest: str) -> str:
    """`Cell on trace (cpu): mismatch: baked branch at cell.py:12`."""
    return f"{model} on {backend} ({device}): {verdict.value}: {rest}"


def mismatch(
    head: str,
    attribution: Attribution,
    *,
    label: str,
    arguments: str,
    leaves: Sequence[Leaf],
    raised: str | None,
    again: Again | None = None,
) -> str:
    """The message for verdicts `mismatch` and `failed`.

    Args:
        head: the headline.
        attribution: cause, line and evidence.
        label: which input fails.
        arguments: its arguments in one line.
        leaves: what differs on it.
        raised: what the exported program raised on it, if it did.
        again: how to check it again; None for an input that is the user's own.
    """
    lines = [head]
    if attribution.location is not None:
        lines += _quote(attribution.location)
    lines.append(f"  input: {label}: ({arguments})")
    lines += again.lines if again is not None else []
    if raised is not None:
        lines.append(f"  eager runs, the exported program raises {raised}")
    for leaf in leaves[:_LEAVES_SHOWN]:
        lines += _leaf_lines(leaf)
    if len(leaves) > _LEAVES_SHOWN:
        lines.append(f"  and {len(leaves) - _LEAVES_SHOWN} more")
    for fact in attribution.evidence:
        place = f" [{fact.location}]" if fact.location and fact.location != attribution.location else ""
        lines.append(f"  evidence: {fact.text}{place}")
    if attribution.cause in _REMEDY:
        lines.append(f"  what to do: {_REMEDY[attribution.cause]}")
    return "\n".join(lines)


def refused(head: str, location: Location | None, detail: str) -> str:
    """The message for `refused`: the exporter's reason and the user's line."""
    lines = [head]
    if location is not None:
        lines += _quote(location)
    lines += [f"  {line}" for line in detail.strip().splitlines()]
    return "\n".join(lines)


def first_sentence(text: str, limit: int = 200) -> str:
    """The text's first sentence in one line, cut where it is too long for a headline.

    It ends at a full stop, or at the end of a line that ends in a colon (what follows is a list); not inside brackets,
    where an exporter shows a value or an aside.
    """
    stripped = text.strip()
    ends = (found.end() for found in _SENTENCE_END.finditer(stripped) if _is_closed(stripped[: found.end()]))
    sentence = " ".join(stripped[: next(ends, None)].split())
    if len(sentence) <= limit:
        return sentence
    without_aside = sentence.split(" (")[0]
    return without_aside if len(without_aside) <= limit else sentence[: limit - 1].rsplit(" ", 1)[0] + "…"


_SENTENCE_END = re.compile(r"[.!?](?=\s+[^\sa-z])|:(?=\s*\n)")


def _is_closed(text: str) -> bool:
    """Whether every bracket is closed again. Quotes do not count: an apostrophe opens nothing."""
    return all(text.count(left) <= text.count(right) for left, right in ("()", "[]", "{}"))


def _quote(location: Location) -> list[str]:
    return [f"  {location}", f"      {location.source}"] if location.source else [f"  {location}"]


def _leaf_lines(leaf: Leaf) -> list[str]:
    lines = [f"  {leaf.path}: {leaf.reason}"]
    if leaf.index or leaf.mismatched:
        at = f"{list(leaf.index)}" if leaf.index else "the value"
        lines.append(f"      at {at}: eager {leaf.expected}, exported {leaf.actual}")
        lines.append(f"      largest error {leaf.max_abs:.3g}, allowed there {leaf.allowed:.3g}")
    elif leaf.expected or leaf.actual:
        lines.append(f"      eager {leaf.expected}, exported {leaf.actual}")
    return lines


def how_it_differs(leaf: Leaf) -> str:
    """The end of a headline for a leaf: `output[0] is off by 0.3 (allowed 1e-05)`."""
    if leaf.cause is Cause.NUMERIC:
        return f"{leaf.path} is off by {leaf.max_abs:.3g} where {leaf.allowed:.2g} is allowed"
    return f"{leaf.path}: {leaf.reason}"
