"""Hypotheses that compare values alone: outputs swapped, in another shape or type, gradients cut off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_torchexport.compare.tree import as_tensor, pair
from pytest_torchexport.diagnose.case import Clue
from pytest_torchexport.diagnose.likeness import differs, is_like
from pytest_torchexport.outcome import Cause, Evidence

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from pytest_torchexport.diagnose.case import Case

_OUTPUTS = 16
"""Outputs that are compared with each other."""
_LISTED = 4


def swapped_outputs(case: Case) -> Iterator[Clue]:
    """Whether an output holds what eager returns as another one."""
    root = "output" if len(case.trial.calls) == 1 else "call 1 output"
    pairs = pair(case.trial.record.outputs[0], case.record.outputs[0], case.structure, root)
    both = [(path, as_tensor(one), as_tensor(other)) for path, one, other in pairs.leaves][:_OUTPUTS]
    tensors = [(path, one, other) for path, one, other in both if one is not None and other is not None]
    partners: dict[str, str] = {}
    for path, mine, theirs in tensors:
        if not differs(mine, theirs):
            continue
        fits = [name for name, other, _ in tensors if name != path and _is_it(other, mine, theirs)]
        if len(fits) != 1:
            return
        partners[path] = fits[0]
    if not partners:
        return
    if set(partners.values()) != set(partners):
        # What one output lacks is not in another: it may be the input of a step that was left out.
        said = "; ".join([f"{one} holds what eager returns as {other}" for one, other in partners.items()][:_LISTED])
        yield Clue((Evidence(said),))
        return
    said = "; ".join(_exchanges(partners)[:_LISTED])
    yield Clue((Evidence(f"the outputs are in another order: {said}"),), Cause.STRUCTURE)


def _exchanges(partners: Mapping[str, str]) -> list[str]:
    """Which output holds which, in words."""
    swapped = [f"{two} and {one} are swapped" for one, two in partners.items() if partners[two] == one and one > two]
    moved = [f"{one} is eager's {other}" for one, other in partners.items() if partners[other] != one]
    return swapped + moved


def _is_it(other: torch.Tensor, mine: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether what stands in the place of an output of eager's is another one of them, by its values and its form."""
    has_its_form = (other.dtype, other.shape) == (theirs.dtype, theirs.shape) != (mine.dtype, mine.shape)
    return other.dtype == theirs.dtype and (has_its_form or _tells(other)) and is_like(other, theirs, mine)


def _tells(values: torch.Tensor) -> bool:
    """Whether the values say from which output they are: several that differ."""
    flat = values.detach().reshape(-1)
    return len(flat) > 1 and not bool((flat == flat[0]).all())


def same_values(case: Case) -> Iterator[Clue]:
    """What an output of another shape or type has in common with eager's."""
    for index, (ours, theirs) in enumerate(zip(case.trial.record.outputs, case.record.outputs, strict=True)):
        root = "output" if len(case.trial.calls) == 1 else f"call {index + 1} output"
        for path, one, other in pair(ours, theirs, case.structure, root).leaves:
            mine, got = as_tensor(one), as_tensor(other)
            if mine is None or got is None or (mine.shape == got.shape and mine.dtype == got.dtype):
                continue
            said = _shape_in_words(mine, got) if mine.shape != got.shape else _dtype_in_words(mine, got)
            if said:
                yield Clue((Evidence(f"{path}: {said}"),))


def _shape_in_words(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    if ours.numel() == theirs.numel():
        if is_like(ours.reshape(theirs.shape), theirs):
            return "the values and their order are eager's, only the shape differs"
        if ours.dim() == theirs.dim() == 2 and is_like(ours.T, theirs):
            return "it is eager's transposed"
        return ""
    if ours.dim() != theirs.dim():
        same = ours.dim() > 0 and is_like(ours[0], theirs), theirs.dim() > 0 and is_like(ours, theirs[0])
        return "it is eager's without its first axis, at index 0" if same[0] else ""
    overlap = tuple(slice(0, min(sizes)) for sizes in zip(ours.shape, theirs.shape, strict=True))
    if ours[overlap].numel() and _tells(ours[overlap]) and is_like(ours[overlap], theirs[overlap]):
        longer = "goes on" if theirs.numel() > ours.numel() else "ends early"
        return f"the values are eager's as far as both reach; it {longer}"
    return ""


def _dtype_in_words(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    if is_like(ours.to(theirs.dtype), theirs):
        return "the values are eager's, only the dtype differs"
    return "the values differ as well"


def cut_gradients(case: Case) -> Iterator[Clue]:
    """What is wrong with gradients while all outputs agree."""
    names = [leaf.path for leaf in case.leaves]
    if not names or not all(name.startswith("gradient of ") for name in names):
        return
    ours, theirs = case.trial.record.gradients, case.record.gradients
    gone = [name for name in names if name not in theirs or not bool(theirs[name].any())]
    kept = [name for name in names if name not in ours and name not in gone]
    text = f"all outputs agree, {len(names)} of {len(ours)} gradients do not"
    yield Clue((Evidence(text),), Cause.NUMERIC)
    if gone:
        what = f"{', '.join(gone[:_LISTED])}{' and others' if len(gone) > _LISTED else ''}"
        yield Clue((Evidence(f"{what}: zero or missing in the exported program, which cuts this path off (detach)"),))
    if kept:
        yield Clue(
            (Evidence(f"{', '.join(kept[:_LISTED])}: eager has none (detach, no_grad), the exported program has"),)
        )


def precision(case: Case) -> Iterator[Clue]:
    """Which of both is closer to float64."""
    for leaf in case.leaves:
        if leaf.reference and 0 < leaf.exported_error < leaf.eager_error:
            text = (
                f"{leaf.path}: the exported program is closer to float64 than eager is, off by "
                f"{leaf.exported_error:.2g} against {leaf.eager_error:.2g}"
            )
            yield Clue((Evidence(text),))
            return
