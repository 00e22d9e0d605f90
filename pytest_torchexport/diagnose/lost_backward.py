"""Whether the program has lost the backward that a `torch.autograd.Function` defines for itself."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.diagnose.case import Clue
from pytest_torchexport.diagnose.likeness import is_like
from pytest_torchexport.outcome import Cause, Evidence
from pytest_torchexport.subject import source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_torchexport.diagnose.case import Case
    from pytest_torchexport.outcome import Location


class _Context:
    """What forward stores for backward, and nobody reads."""

    def save_for_backward(self, *tensors: torch.Tensor) -> None:
        """Keep nothing."""

    save_for_forward = mark_dirty = mark_non_differentiable = save_for_backward

    def set_materialize_grads(self, value: bool) -> None:  # noqa: FBT001 torch's signature
        """Change nothing."""


def lost_backward(case: Case) -> Iterator[Clue]:
    """Whether the program has the gradients that autograd derives from the forward of the model's own Functions."""
    names = [leaf.path for leaf in case.leaves]
    if not names or not all(name.startswith("gradient of ") for name in names):
        return
    used: dict[type, None] = {}
    record = case.eager(program=_by_autograd(case.plan.model, used))
    ours, theirs = case.trial.record.gradients, case.record.gradients
    if (
        used
        and record.error is None
        and all(
            name in record.gradients
            and name in theirs
            and is_like(record.gradients[name], theirs[name], ours.get(name))
            for name in names
        )
    ):
        which = ", ".join(repr(function.__name__) for function in used)
        text = (
            f"the exported program does not keep the backward of the autograd.Function {which}: its gradients are "
            "those that autograd derives from the operators of forward"
        )
        yield Clue((Evidence(text, _line_of(next(iter(used)))),), Cause.NUMERIC)


def _by_autograd(model: Callable[..., Any], used: dict[type, None]) -> Callable[..., Any]:
    """The model, in which every Function is the operators of its forward; notes which there are."""
    own = torch.autograd.Function

    def apply(function: Any, *args: Any, **kwargs: Any) -> Any:
        used[function] = None
        split = function.setup_context is not own.setup_context
        return function.forward(*args, **kwargs) if split else function.forward(_Context(), *args, **kwargs)

    def run(*args: Any, **kwargs: Any) -> Any:
        kept = own.__dict__["apply"]
        own.apply = classmethod(apply)  # type: ignore[assignment, method-assign]
        try:
            return model(*args, **kwargs)
        finally:
            own.apply = kept  # type: ignore[method-assign]

    return run


def _line_of(function: Any) -> Location | None:
    try:
        backward = inspect.unwrap(function.backward)
        lines, start = inspect.getsourcelines(backward)
        file = inspect.getsourcefile(backward)
    except (TypeError, ValueError, OSError):
        return None
    head = next((number for number, line in enumerate(lines) if line.lstrip().startswith("def ")), 0)
    return source.locate(file, start + head) if file is not None and source.is_users(file) else None
