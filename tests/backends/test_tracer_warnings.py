from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch.jit._trace import TracerWarning

from pytest_torchexport.backends import tracer_warnings
from pytest_torchexport.outcome import Cause

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_torchexport.backends.base import Suspicion


def trace(function: Callable[..., object], *args: torch.Tensor, check: bool = False) -> list[Suspicion]:
    with tracer_warnings.capture() as suspicions:
        torch.jit.trace(function, args, check_trace=check, strict=False)  # type: ignore[no-untyped-call]
    return suspicions


def branch(x: torch.Tensor) -> torch.Tensor:
    if x.sum() > 0:
        return x + 1
    return x


def number(x: torch.Tensor) -> torch.Tensor:
    return x * int(x[0])


def rows(x: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(())
    for row in x:
        total = total + row
    return total


def constant(x: torch.Tensor) -> torch.Tensor:
    return x + torch.tensor(2.0)


@pytest.mark.parametrize(
    ("function", "cause", "source"),
    [
        (branch, Cause.BAKED_BRANCH, "if x.sum() > 0:"),
        (number, Cause.BAKED_VALUE, "return x * int(x[0])"),
        (rows, Cause.BAKED_SHAPE, "for row in x:"),
        (constant, Cause.BAKED_VALUE, "return x + torch.tensor(2.0)"),
    ],
)
def test_a_tracer_warning_becomes_a_suspicion_at_the_users_line(
    function: Callable[..., object], cause: Cause, source: str
) -> None:
    (suspicion,) = trace(function, torch.ones(3))
    assert suspicion.cause is cause
    assert suspicion.location is not None
    assert Path(suspicion.location.file) == Path(__file__)
    assert suspicion.location.source == source


def test_a_function_without_such_a_place_raises_no_suspicion() -> None:
    assert trace(lambda x: x * x.shape[0], torch.ones(3)) == []


def test_a_warning_that_tracing_repeats_is_kept_once() -> None:
    assert len(trace(branch, torch.ones(3), check=True)) == 1


def test_code_inside_torch_is_not_suspected() -> None:
    with tracer_warnings.capture() as suspicions:
        warnings.warn_explicit("Converting a tensor to a Python boolean", TracerWarning, torch.__file__, 1)
    assert suspicions == []


def test_what_the_tracers_own_check_finds_is_kept() -> None:
    def noisy(x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(3)

    suspicions = trace(noisy, torch.ones(3), check=True)
    assert [s.text.split(".")[0] for s in suspicions] == ["Trace had nondeterministic nodes", "Output nr 1"]


def test_a_warning_of_the_exporter_is_classified_by_its_text() -> None:
    with tracer_warnings.capture() as suspicions:
        warnings.warn("This model contains a squeeze operation on dimension 1. The model will fail.", stacklevel=1)
    assert [s.cause for s in suspicions] == [Cause.BAKED_SHAPE]


def test_other_warnings_are_shown_and_never_raised() -> None:
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "hidden by the caller")
        with tracer_warnings.capture() as suspicions:
            warnings.warn("mind the gap", UserWarning, stacklevel=1)
            warnings.warn("hidden by the caller", UserWarning, stacklevel=1)
            warnings.warn("`foo` is deprecated", DeprecationWarning, stacklevel=1)
    assert [str(w.message) for w in log] == ["mind the gap", "`foo` is deprecated"]
    assert suspicions == []


def test_suspicions_survive_an_exception() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        raise ValueError(bool(x.sum() > 0))

    with pytest.raises(ValueError, match="True"), tracer_warnings.capture() as suspicions:
        torch.jit.trace(broken, torch.ones(3))  # type: ignore[no-untyped-call]
    assert [s.cause for s in suspicions] == [Cause.BAKED_BRANCH]
