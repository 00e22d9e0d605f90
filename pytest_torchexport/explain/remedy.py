"""What to do about a mismatch: by its cause, the backend, and what is known of this one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_torchexport.explain import figures
from pytest_torchexport.outcome import Cause, Leaf

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_torchexport.diagnose.cause import Attribution
    from pytest_torchexport.outcome import Divergence

_TRACED = ("trace", "onnx-torchscript")
"""Backends that record one run."""
_FROM_GRAPH = ("export", "onnx", "aoti")
"""Backends that go through torch.export."""

TOO_CHAOTIC = (
    "Return what is computed before the step that magnifies rounding errors, or set a tolerance for this output by "
    "hand, tolerance=Tolerance(rtol=..., atol=...). Where equal values (ties, as a mask makes) are sorted or picked, "
    "give them an order, or keep them out with inputs= or assume=; only where there are none, double precision "
    "(dtype='float64') may help."
)
"""Where no verdict is possible, as rounding alone changes everything."""


@dataclass(frozen=True)
class Failed:
    """What is known of a mismatch.

    Attributes:
        attribution: cause, line, evidence.
        backend: name of the backend, without options.
        options: the backend's options, as in its id.
        leaves: what differs, the worst first.
        divergence: the first layer at which the two part.
        raised: what the exported program raised.
        dynamic: some dimensions are declared as dynamic.
        argument: a plain Python value of the call, if the export holds it as a constant.
    """

    attribution: Attribution
    backend: str
    options: str = ""
    leaves: Sequence[Leaf] = ()
    divergence: Divergence | None = None
    raised: str | None = None
    dynamic: bool = False
    argument: str = ""

    @property
    def source(self) -> str:
        """The user's line; empty if unknown."""
        return self.attribution.location.source if self.attribution.location is not None else ""

    @property
    def on_example(self) -> bool:
        """Whether the example itself fails, so that it is no matter of other inputs."""
        return any("the example among them" in fact.text for fact in self.attribution.evidence)

    @property
    def worst(self) -> Leaf | None:
        """The leaf that is told in full."""
        return self.leaves[0] if self.leaves else None


def what_to_do(failed: Failed) -> str:
    """The remedy in a sentence or two; empty where none is known that helps."""
    return _mode(failed) or _BY_CAUSE[failed.attribution.cause](failed)


def _mode(failed: Failed) -> str:
    """Where the program does what eager does in the other mode; empty where it is not that."""
    told = " ".join(fact.text for fact in failed.attribution.evidence)
    found = re.search(r"does what eager does (?:with .*? )?in (eval|training) mode", told)
    if found is None:
        return ""
    if found[1] == "training":
        return (
            "Call model.eval() on the model that is exported, and look for layers that forward switches to training "
            "mode and for training=True in functional calls."
        )
    if failed.backend == "onnx":
        return (
            "This exporter writes BatchNorm as in eval mode. If the program is for inference, call model.eval() before "
            "the check; if the batch's own statistics are meant, compute them in forward (x.mean, x.var), take the "
            "running ones as arguments and return the new ones."
        )
    return (
        "If the program is for inference, call model.eval() before the check; if training mode is meant, set training "
        "where the layer is called: F.batch_norm(..., training=True), F.dropout(..., training=True)."
    )


def _baked_branch(failed: Failed) -> str:
    loop = re.match(r"(for|while)\b", failed.source)
    if failed.backend in _TRACED:
        how = "put the lines of this loop" if loop else "put the lines of this branch"
        scripted = f"{how} into a function of their own under @torch.jit.script, which a trace keeps as it is"
        other = "compute a fixed number of rounds" if loop else "compute both sides and choose by torch.where"
        return _sentence(f"{scripted}; or {other}")
    if failed.backend in _FROM_GRAPH:
        if loop:
            return "Write the loop as torch.while_loop, or with a number of rounds that does not depend on the input."
        return "Write the branch as torch.cond, or compute both sides and choose by torch.where."
    if failed.backend == "script":
        return (
            "Scripting decides once what depends on the module's attributes or on types: make it depend on an argument."
        )
    return "Compute both sides and choose by torch.where, or decide before the model is called."


def _baked_value(failed: Failed) -> str:
    if failed.argument:
        return (
            f"Pass {failed.argument!r} as a tensor, or export once for each of its values and check them apart; if it "
            "never varies, take it out of inputs= and extra_inputs."
        )
    held = next((found[1] for fact in failed.attribution.evidence if (found := re.match(r"`(.+?)`", fact.text))), "")
    taken = _TAKEN.search(held) or _TAKEN.search(failed.source)
    keep = f"Keep it a tensor: do without `{taken[0]})` on this line" if taken else "Keep the number a tensor"
    if failed.backend in _TRACED:
        return f"{keep}, or put the line into a function under @torch.jit.script, which a trace keeps as it is."
    if failed.backend == "script":
        return f"{keep}, and take it from an argument: scripting reads attributes of the module once."
    return f"{keep}, or hand the number in as an argument that is a tensor."


_TAKEN = re.compile(r"\.(?:item|tolist|numpy)\(|\b(?:int|float|bool|range)\(")
"""How a number is taken out of a tensor."""


def _baked_shape(failed: Failed) -> str:
    if failed.backend in _TRACED:
        size = "take the size as x.shape[i], without int() and without Python arithmetic on len(x)"
        axes = (
            " and declare the dimension in dynamic_shapes," if failed.backend != "trace" and not failed.dynamic else ""
        )
        return _sentence(f"{size},{axes} or put the line into a function under @torch.jit.script")
    if not failed.dynamic:
        return (
            "Mark the dimension as dynamic: dynamic_shapes={'x': {0: Dim('n')}} with the argument's name in the call."
        )
    return (
        "Take the size as x.shape[i] where it is used, instead of a number that was computed when the model was made."
    )


def _lost_state(failed: Failed) -> str:
    if failed.backend in ("onnx", "onnx-torchscript"):
        return (
            "An ONNX program keeps nothing from call to call: hand the state in as an argument, return the new one, "
            "and let the caller pass it on."
        )
    hand_in = "hand the state in as an argument and return the new one"
    told = " ".join(fact.text for fact in failed.attribution.evidence)
    found = re.search(r"does not carry '([\w.]+)', a (?:Python )?(\w+)(?: \((\w+), \[(.*?)\]\))?", told)
    if found is None:
        return f"Register what forward keeps as buffers, made in __init__, and update them in place; or {hand_in}."
    path, kind, dtype, shape = found.groups()
    name = path.rpartition(".")[2]
    if kind == "buffer":
        return f"Update it in place, self.{name}.copy_(...), where forward binds it anew; or {hand_in}."
    if kind == "tensor":
        zeros = _zeros(dtype, shape)
        return (
            f"Register it as a buffer in __init__, self.register_buffer('{name}', {zeros}), and update it in place, "
            f"as in self.{name}.copy_(...); or {hand_in}."
        )
    if kind in ("int", "float", "bool"):
        zeros = _zeros({"int": "int64", "float": "float32"}.get(kind, kind), "")
        update = f"self.{name}.fill_(...)" if kind == "bool" else f"self.{name}.add_(1)"
        return (
            f"A Python number is a constant in the program: keep self.{name} as a tensor, "
            f"self.register_buffer('{name}', {zeros}), and update it in place, as in {update}; or {hand_in}."
        )
    return (
        f"self.{name} is a Python {'object' if kind == 'container' else kind}, which the program does not keep: hand "
        "what it holds in as tensors and return the new ones; or, if its size is fixed, hold it in a buffer of that "
        "size and write into it in place."
    )


def _zeros(dtype: str, shape: str) -> str:
    """The call that makes a tensor of zeros, from `int64` and `2, 3`."""
    sizes = f"({shape},)" if shape and "," not in shape else f"({shape})"
    return f"torch.zeros({sizes})" if dtype == "float32" else f"torch.zeros({sizes}, dtype=torch.{dtype})"


def _lost_mutation(failed: Failed) -> str:
    del failed
    return (
        "Return the changed tensor and let the caller use that; if the change was not meant, work on a copy, "
        "x = x.clone(), before the in-place operation."
    )


def _structure(failed: Failed) -> str:
    if failed.backend == "trace":
        return (
            "Return a tuple or a dict of tensors: a trace has no other containers, and no values that are no tensors."
        )
    return "Return tuples and dicts of tensors: these every exported form can carry."


def _dtype(failed: Failed) -> str:
    worst = failed.worst
    if worst is not None and worst.reason.startswith("Tensor instead of"):
        return (
            "Return a tensor in eager too, or leave the value out of the output: this exported form has tensors only."
        )
    to = f".to(torch.{worst.dtype})" if worst and worst.dtype else ".to(dtype)"
    return (
        f"Fix the dtype where the value is made, with {to} or dtype=: where tensors meet Python numbers or each other, "
        "the export promotes types in another way."
    )


def _shape(failed: Failed) -> str:
    if failed.on_example:
        return (
            "Look for an operator that keeps, drops or merges a dimension (keepdim, squeeze, flatten, view), which the "
            "export does in another way, and name the result's shape there: reshape(...)."
        )
    if not failed.dynamic and failed.backend != "trace":
        return (
            "Look for a size that is written as a number or that squeeze, view or expand infer; if the dimension "
            "varies, declare it in dynamic_shapes."
        )
    return "Look for a size that squeeze, view or expand infer from the example, and name it: x.shape[i], dim=."


def _special_value(failed: Failed) -> str:
    both = any("so does" in fact.text for fact in failed.attribution.evidence)
    if not both and failed.worst is not None and failed.worst.actual in ("nan", "inf", "-inf"):
        return (
            "Keep the operands in the range of the dtype before they overflow or are divided by zero: torch.clamp, an "
            "eps in the denominator, masking by a large finite number instead of -inf."
        )
    return (
        "Operators of the export treat NaN and infinities in another way than eager's: replace them in the model with "
        "torch.nan_to_num where they arise, or keep such inputs out with inputs= or assume=."
    )


def _numeric(failed: Failed) -> str:
    worst = failed.worst
    if worst is None:
        return ""
    if any("does not keep the backward of" in fact.text for fact in failed.attribution.evidence):
        return _OWN_BACKWARD
    if worst.rule.startswith("set") and not worst.score:
        better = (
            "At the worst element the export is closer to float64 than eager is. " if figures.is_better(worst) else ""
        )
        return f"{better}The tolerance is set by hand: without it, the rounding noise of the model decides."
    if worst.dtype == "bool":
        return "Flags have to be equal: look for a comparison, or a conversion to bool, in the layer."
    if not worst.dtype.startswith(("float", "bfloat", "complex")):
        return (
            "Whole numbers have to be equal: look for a comparison, a rounding or an index in the layer. Indices of "
            "torch.topk, sort and argmax are any of those of equal values (ties): return the values that they pick "
            "instead, or keep ties out with inputs= or assume=."
        )
    if known := _of_runtime(failed) or _next_to_zero(worst):
        return known
    compare = "Compare the options of the operator (eps, dim, mode, approximation) and its precision with eager's."
    if worst.score and worst.score <= figures.BORDERLINE:
        compare = "Compare precision and constants (eps, scale) of the layer with eager's."
        if ways := re.search(r"Tolerance\(.*?\)", figures.least_tolerance(worst)):
            return f"{compare} {_bisect(failed)} If the difference is acceptable: tolerance={ways[0]}.".replace(
                "  ", " "
            )
    return f"{compare} {_bisect(failed)}".rstrip()


_OWN_BACKWARD = (
    "Make the function an operator that the export keeps, with its own backward: torch.library.custom_op, "
    "register_fake and register_autograd; or write forward so that its derivative is the one that is meant."
)


def _next_to_zero(worst: Leaf) -> str:
    """Where a value next to zero is off by next to nothing; empty where it is not that."""
    if not figures.is_tiny(worst):
        return ""
    path = re.sub(r"^call \d+ ", "", worst.path)
    return (
        f"The value is next to zero, and so is the difference ({worst.max_abs:.2g}). If that is acceptable: "
        f'tolerance={{"{path}": Tolerance(rtol=1.3e-06, atol=1e-07)}}; else compute on a scale on which such '
        "values are not small, F.logsigmoid for torch.sigmoid, say."
    )


def _of_runtime(failed: Failed) -> str:
    """Where the runtime's optimiser is at fault: neither the model nor the exporter's options change that."""
    note = failed.divergence.note if failed.divergence is not None else ""
    if "the difference comes from ONNX Runtime's graph optimiser" not in note:
        return ""
    return (
        "In your own session, set SessionOptions.graph_optimization_level to GraphOptimizationLevel.ORT_DISABLE_ALL, "
        "or to the highest level that agrees. The backend has no option for that and runs ONNX Runtime's default: "
        "here, a tolerance for this output lets the check pass."
    )


def _bisect(failed: Failed) -> str:
    """A run with less between the model and the result, which tells who is to blame."""
    if "optimize=false" in failed.options or "backend=" in failed.options:
        return ""
    return {
        "onnx": "Onnx(optimize=False) tells whether the exporter's optimiser did it.",
        "compile": "Compile(backend='aot_eager') tells whether Inductor's code did it or the capture.",
        "aoti": "The export backend tells whether Inductor's code did it or the capture.",
    }.get(failed.backend, "")


def _exception(failed: Failed) -> str:
    if failed.raised is None:
        return (
            "The export drops the check that raises: check the arguments before the call, or write it as torch._check "
            "(torch.export) or torch._assert."
        )
    if re.search(
        r"shape|size|dim|guard|invalid for input of size|Got: \d+ Expected: \d+", failed.raised, re.IGNORECASE
    ):
        if failed.backend in _TRACED or failed.dynamic:
            return "Take sizes from x.shape where they are used: a size of the example is in the program."
        return "If this size is meant to work, declare the dimension in dynamic_shapes; else keep it out with assume=."
    return "Check the argument that it names; keep inputs that are not meant to work out with inputs= or assume=."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


_BY_CAUSE: dict[Cause, Callable[[Failed], str]] = {
    Cause.BAKED_BRANCH: _baked_branch,
    Cause.BAKED_VALUE: _baked_value,
    Cause.BAKED_SHAPE: _baked_shape,
    Cause.LOST_STATE: _lost_state,
    Cause.LOST_MUTATION: _lost_mutation,
    Cause.STRUCTURE: _structure,
    Cause.DTYPE: _dtype,
    Cause.SHAPE: _shape,
    Cause.SPECIAL_VALUE: _special_value,
    Cause.NUMERIC: _numeric,
    Cause.EXCEPTION: _exception,
}
