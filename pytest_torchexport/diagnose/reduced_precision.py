"""A setting that asks for a lower precision is named where that precision explains the difference."""

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
    from pytest_torchexport.outcome import Leaf

_PRECISION_OF = {"high": "tf32", "medium": "bf16"}
"""What `torch.set_float32_matmul_precision` allows."""
_SPOKEN = {"tf32": "products in TF32", "bf16": "products in bfloat16"}
_FAR = 1e6
"""Beyond so many times the noise no precision is an explanation: bfloat16's is 65536 times as coarse as float32."""
_MOST = 0.5
"""A lower precision touches most elements; a fault in a few is another one."""


def reduced_precision(case: Case) -> Iterator[Clue]:
    """The settings of either side that ask for a lower precision, if it gives differences of this size.

    It is no proof, so that it does not become the cause: a constant that is a little off looks alike.
    """
    asked = dict(_asked(case))
    if not asked or not case.left or not case.leaves or any(map(_is_something_else, case.leaves)):
        return
    for precision in dict.fromkeys(asked.values()):
        if _explains(case, precision):
            settings = ", ".join(name for name, one in asked.items() if one == precision)
            text = (
                f"{settings} allows {_SPOKEN[precision]}, which gives differences of this size; if that is meant: "
                f"Tolerance(precision={precision!r})"
            )
            yield Clue((Evidence(text),))
            return


def _is_something_else(leaf: Leaf) -> bool:
    if leaf.cause is not Cause.NUMERIC or leaf.dtype != "float32" or not 0 < leaf.score < math.inf:
        return True
    return leaf.score > _FAR or leaf.mismatched < _MOST * leaf.elements


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


def _asked(case: Case) -> Iterator[tuple[str, str]]:
    """The settings, as a person makes them, and the precision that each allows."""
    flags = devices.numerics_flags()
    matmul = flags["float32_matmul_precision"]
    if matmul in _PRECISION_OF:
        yield f"torch.set_float32_matmul_precision({matmul!r})", _PRECISION_OF[matmul]
    if case.plan.device.type != "cuda":
        return
    for name in ("cuda.matmul.allow_tf32", "cudnn.allow_tf32"):
        if flags[name]:
            yield f"torch.backends.{name}", "tf32"
    if case.program.exported.details.get("provider") == "CUDAExecutionProvider":
        yield "ONNX Runtime's use_tf32, which is on by default,", "tf32"
