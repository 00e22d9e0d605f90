"""Is a difference of the size that computing in a lower precision gives? And which setting of torch asks for one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pytest_torchexport.compare.noise import TooChaotic
from pytest_torchexport.compare.records import compare_records
from pytest_torchexport.compare.tolerance import Rules, Tolerance
from pytest_torchexport.diagnose.case import Clue
from pytest_torchexport.eager import second_opinion
from pytest_torchexport.outcome import Cause, Evidence
from pytest_torchexport.subject import devices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_torchexport.diagnose.case import Case

_WIDEST, _OTHERS = "bf16", ("tf32", "fp16")
_SPOKEN = {
    "tf32": "matrix products and convolutions in TF32",
    "bf16": "everything in bfloat16",
    "fp16": "everything in float16",
}
_FAR = 1e6
"""Beyond so many times the noise no precision is an explanation: bfloat16's is 65536 times as coarse as float32."""
_MOST = 0.5
"""A lower precision touches most elements; a fault in a few is another one."""


def reduced_precision(case: Case) -> Iterator[Clue]:
    """The finest of the lower precisions that give differences of this size, and the settings that ask for one.

    It is no proof, so that it does not become the cause: a constant that is a little off looks alike.
    """
    numeric = [leaf for leaf in case.leaves if leaf.score]
    if (
        not case.left
        or len(numeric) < len(case.leaves)
        or any(
            leaf.cause is not Cause.NUMERIC or leaf.dtype != "float32" or not math.isfinite(leaf.score)
            for leaf in numeric
        )
    ):
        return
    if max(leaf.score for leaf in numeric) > _FAR or any(leaf.mismatched < _MOST * leaf.elements for leaf in numeric):
        return
    if not _explains(case, _WIDEST):
        return
    finest = next((one for one in _OTHERS if _explains(case, one)), _WIDEST)
    facts = [f"computing {_SPOKEN[finest]} gives differences of this size"]
    asked = _settings(case.plan.device.type)
    if asked and finest in ("tf32", "bf16"):
        facts.append(f"torch is set to {asked}")
    else:
        facts.append(f"if that is meant: Tolerance(precision={finest!r})")
    yield Clue((Evidence("; ".join(facts)),))


def _explains(case: Case, precision: str) -> bool:
    rules = Rules(Tolerance(precision=precision))
    try:
        comparison = compare_records(
            case.trial.record,
            case.record,
            case.trial.calls,
            structure=case.structure,
            states=case.program.states,
            names=case.plan.names,
            rules=rules,
            gradients=frozenset(case.trial.record.gradients) & frozenset(case.record.gradients),
            second_opinion=second_opinion(case.plan, case.snapshot, case.reference, case.trial, rules),
        )
    except TooChaotic:
        return False
    return not comparison.disagreeing and not comparison.unjudged


def _settings(device: str) -> str:
    """The settings of torch that ask for products in a lower precision, as a person sets them; empty if none does."""
    flags = devices.numerics_flags()
    asked = []
    if flags["float32_matmul_precision"] != "highest":
        asked.append(f"float32_matmul_precision={flags['float32_matmul_precision']!r}")
    if device == "cuda":
        asked += [name for name in ("cuda.matmul.allow_tf32", "cudnn.allow_tf32") if flags[name]]
    return ", ".join(asked)
