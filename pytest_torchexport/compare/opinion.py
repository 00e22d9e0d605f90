"""What the measured noise says of a leaf: the opinion, and the leaf's verdict from it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_torchexport.compare.tree import as_tensor
from pytest_torchexport.compare.values import plain, spell
from pytest_torchexport.compare.where import where
from pytest_torchexport.outcome import Cause, Leaf

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Opinion:
    """Whether eager's rounding noise explains a difference.

    Attributes:
        agrees: it does.
        score: the worst element's error as a multiple of the noise there; for a discrete leaf the number of elements
            with a value that noise never gives them, as a multiple of the few that may be.
        limit: what the score was held against.
        draws: number of jittered runs behind it.
        noise: the noise at the worst element, in the unit of the value.
        ratio: the noise of the whole leaf (root mean square) relative to its largest magnitude; of a discrete one that
            is too chaotic the share of the elements that noise changes.
        error: the worst element's deviation from the double-precision reference, else from eager.
        eager_error: eager's own deviation from it there.
        reference: its value there; NaN without one.
        index: the worst element.
        centred: there was a double-precision reference.
        too_chaotic: the noise is too large a part of the signal for a pass to mean anything.
        surely: the score without the elements that are NaN or infinite on one side.
        beyond: where an element is beyond the limit, in the leaf's shape; complex ones as pairs.
    """

    agrees: bool
    score: float
    limit: float
    draws: int
    noise: float = 0.0
    ratio: float = 0.0
    error: float = 0.0
    eager_error: float = 0.0
    reference: float = math.nan
    index: tuple[int, ...] = ()
    centred: bool = False
    too_chaotic: bool = False
    surely: float = 0.0
    beyond: torch.Tensor | None = field(default=None, repr=False, compare=False)


def measured_by(opinion: Opinion) -> str:
    """The runs of eager behind an opinion."""
    runs = [f"{opinion.draws} jittered run{'' if opinion.draws == 1 else 's'}"] if opinion.draws else []
    return " and ".join(runs + ["one in float64"] * opinion.centred)


def chaos(leaf: Leaf, opinion: Opinion) -> str:
    """Why nothing can be said of a leaf whose noise is too large a part of it."""
    if leaf.rule == "exact":
        size = f"changes {opinion.ratio:.0%} of the elements"
        return (
            f"{leaf.path} is too chaotic: the rounding noise of eager itself {size} ({measured_by(opinion)}), and "
            "plainly other values would pass"
        )
    return (
        f"{leaf.path} is too chaotic: the rounding noise of eager itself is {opinion.ratio:.2g} of the largest "
        f"value ({measured_by(opinion)}), and any difference of that size would pass"
    )


def without_measurement(leaf: Leaf) -> Leaf:
    """The verdict on a leaf whose noise is not, or cannot be, measured."""
    if leaf.agrees or leaf.rule == "exact" or leaf.cause is not Cause.NUMERIC:
        return leaf
    rule = "assert_close" if leaf.rule == "calibrated" else leaf.rule
    if leaf.mismatched:
        return dataclasses.replace(leaf, rule=rule)
    return dataclasses.replace(leaf, agrees=True, cause=None, reason="", rule=rule)


def told(leaf: Leaf, opinion: Opinion, expected: Any, actual: Any) -> Leaf:
    """The leaf with what the measurement says of it."""
    facts: dict[str, Any] = {
        "score": opinion.score,
        "limit": opinion.limit,
        "noise": opinion.noise,
        "exported_error": opinion.error,
        "eager_error": opinion.eager_error,
        "draws": opinion.draws,
        "index": opinion.index,
    }
    if leaf.rule != "exact":
        facts["allowed"] = opinion.limit * opinion.noise
    ours, theirs = (plain(_tensor(one)) for one in (expected, actual))
    at = opinion.index
    facts |= {"expected": spell(ours[at].item(), ours.dtype), "actual": spell(theirs[at].item(), ours.dtype)}
    if not math.isnan(opinion.reference):
        facts["reference"] = f"{opinion.reference:.9g}" if ours.dtype.itemsize < 8 else f"{opinion.reference:.17g}"
    if opinion.agrees:
        reason = f"explained by rounding: {opinion.score:.2g}x the noise of eager (limit {opinion.limit:g}x)"
        return dataclasses.replace(leaf, agrees=True, cause=None, mismatched=0, reason=reason, **facts)
    assert opinion.beyond is not None
    count, total = int(opinion.beyond.sum()), opinion.beyond.numel()
    said = f"{opinion.score:.3g}x the rounding noise of eager, limit {opinion.limit:g}x"
    if not math.isfinite(opinion.score):
        said = f"in none of {opinion.draws} runs of eager with rounding noise is it so"
    if leaf.cause is Cause.NUMERIC:
        facts["reason"] = f"{count} of {total} elements ({count / total:.1%}) differ; {said}"
    else:
        facts["reason"] = f"{leaf.reason}; {said}"
    return dataclasses.replace(leaf, mismatched=count, where=_in_words(opinion.beyond, ours, theirs), **facts)


def _in_words(beyond: torch.Tensor, ours: torch.Tensor, theirs: torch.Tensor) -> str:
    """Which elements differ and how; empty where a dtype lacks what that takes: the verdict does not hang on words."""
    try:
        return where(beyond, ours, theirs)
    except Exception:  # noqa: BLE001 they are found by trying out rules on whatever values there are
        return ""


def _tensor(value: Any) -> torch.Tensor:
    tensor = as_tensor(value)
    assert tensor is not None
    return tensor
