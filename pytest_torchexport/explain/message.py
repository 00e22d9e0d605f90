"""What a person reads when a check fails: a headline that stands alone, then the facts in order of use."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from pytest_torchexport.explain import figures
from pytest_torchexport.explain.layout import indented, paragraph, wrapped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_torchexport.diagnose.cause import Attribution
    from pytest_torchexport.outcome import Divergence, Evidence, Leaf, Location, Verdict
    from pytest_torchexport.reproduce.again import Again


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
    divergence: Divergence | None = None,
    what_to_do: str = "",
) -> str:
    """The message for verdicts `mismatch` and `failed`.

    Args:
        head: the headline.
        attribution: cause, line and evidence.
        label: which input fails.
        arguments: its arguments in one line.
        leaves: what differs on it, the worst first.
        raised: what the exported program raised on it, if it did.
        again: how to check it again; None for an input that is the user's own.
        divergence: the first layer at which the two part, if it was found.
        what_to_do: the remedy; empty where none is known.
    """
    lines = [head]
    if attribution.location is not None:
        lines += quote(attribution.location)
    lines += _why(attribution, leaves, raised)
    lines += paragraph("input", f"{label}: ({arguments})")
    lines += again.lines if again is not None else []
    if raised is not None:
        lines += _raised(raised)
    lines += figures.told(leaves, bands=not any("precision=" in fact.text for fact in attribution.evidence))
    if divergence is not None:
        lines += _parting(divergence, attribution.location)
    lines += paragraph("what to do", what_to_do)
    return "\n".join(lines)


def refused(head: str, location: Location | None, detail: str, *, way_out: str = "", said: str = "") -> str:
    """The message for `refused`: the exporter's reason, the user's line and the way out.

    Args:
        head: the headline, with the reason's first sentence.
        location: the user's line.
        detail: the rest of the reason.
        way_out: what helps.
        said: the exporter's own words, where the reason has others.
    """
    lines = [head]
    if location is not None:
        lines += quote(location)
    for text in detail.strip().splitlines():
        # What is indented is a list or source, and stands as it is.
        lines += [f"  {text}"] if text.startswith(" ") or not text else wrapped(text, "  ", "  ")
    return "\n".join([*lines, *paragraph("what to do", way_out), *paragraph("the exporter says", said)])


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


def quote(location: Location) -> list[str]:
    """The user's line: where it stands, and its text."""
    return [f"  {location}", f"      {location.source}"] if location.source else [f"  {location}"]


def _why(attribution: Attribution, leaves: Sequence[Leaf], raised: str | None) -> list[str]:
    """The evidence, what it is before how often it is; without what the leaves and the exception say below."""
    below = {f"{leaf.path}: {leaf.reason}" for leaf in leaves}
    told = [fact for fact in attribution.evidence if fact.text not in below and not _says(fact, raised)]
    counts = [fact for fact in told if _COUNT.match(fact.text)]
    lines: list[str] = []
    for fact in [*(fact for fact in told if fact not in counts), *counts]:
        other = fact.location is not None and fact.location != attribution.location
        # A path is as long as it is: it must not decide where the lines before it end.
        text = wrapped(fact.text, "  why: " if not lines else "       ", "       ")
        lines += [*text[:-1], f"{text[-1]} [{fact.location}]" if other else text[-1]]
    return lines


_COUNT = re.compile(r"\d+ of \d+ inputs fail")


def _says(fact: Evidence, raised: str | None) -> bool:
    return raised is not None and raised in fact.text


def _raised(raised: str) -> list[str]:
    return wrapped(f"eager returns, the exported program raises {raised}", "  ", "      ")


def _parting(divergence: Divergence, known: Location | None) -> list[str]:
    """The first layer at which the two part; nothing where that says no more than the user's line does."""
    if not (divergence.operator or divergence.eager):
        return paragraph("first diverging layer", f"none: {divergence.note}") if divergence.note else []
    place = divergence.location if divergence.location != known else None
    if known is not None and not divergence.module and place is None:
        return []
    operator = f"{divergence.operator} {divergence.name!r}" if divergence.name else divergence.operator
    if divergence.eager and divergence.eager != divergence.operator:
        operator = f"{operator} ({divergence.eager} in eager)" if operator else f"{divergence.eager} of eager"
    text = ", ".join(filter(None, [divergence.module or "the model's own forward", operator]))
    if divergence.score and math.isfinite(divergence.score):
        inputs = f", its inputs {figures.times(divergence.inputs_score)}" if divergence.inputs_score else ""
        text += f": {figures.times(divergence.score)} the noise{inputs}"
    lines = paragraph("first diverging layer", text)
    if place is not None:
        lines.append(f"      {place}{': ' * bool(place.source)}{place.source}")
    if divergence.group:
        lines += indented(f"fused or rewritten with {', '.join(divergence.group)}: the fault may be in any of them")
    return [*lines, *indented(divergence.note)]
