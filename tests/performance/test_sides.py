"""Copies between host and device, with a device that computes nothing: what a side hands to its program."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch

from pytest_torchexport.backends.base import Exported
from pytest_torchexport.performance.sides import Sides
from pytest_torchexport.subject.call import Call
from pytest_torchexport.subject.run import Record
from pytest_torchexport.trials import Reference, Trial

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

META = torch.device("meta")
"""Tensors can be moved to it, so it stands in for an accelerator."""


class Program(Exported):
    """Notes where its arguments are; a bound one was moved when it was bound."""

    def __init__(self) -> None:
        super().__init__()
        self.bound_to: list[str] = []
        self.called_with: list[str] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.called_with.append(args[0].device.type)
        return torch.zeros(2)

    def bound_call(self, *args: Any, **kwargs: Any) -> Callable[[], Any]:
        self.bound_to.append(args[0].device.type)
        return lambda: torch.zeros(2)


class Copying(Program):
    """Copies to its device by itself."""

    takes_host_arguments: ClassVar[bool] = True


def side_of(program: Program, *, copies: bool) -> Callable[[], Any]:
    call = Call((torch.ones(2, device=META),))
    trial = Trial((call,), Record(arguments=[call]), "example", "the example")
    plan = SimpleNamespace(device=META, model=lambda x: x)
    snapshot = SimpleNamespace(restore=lambda: None, tensors=list)
    sides = Sides(cast("Any", plan), cast("Any", snapshot), Reference(), copies=copies)
    side = sides.exported(trial, program)
    assert side.before is None
    return side.call


def test_without_copies_the_arguments_are_on_the_device_before() -> None:
    program = Program()
    side_of(program, copies=False)()
    assert (program.bound_to, program.called_with) == (["meta"], [])


def test_with_copies_each_call_moves_its_arguments_there_and_its_results_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Nothing can be read from the stand-in: what is on the host is said by another object.
    monkeypatch.setattr(Call, "place", lambda self, device, dtype=None: Call((torch.ones(2, device=device),)))
    program = Program()
    call = side_of(program, copies=True)
    call()
    call()
    assert (program.bound_to, program.called_with) == ([], ["meta", "meta"])


def test_a_program_that_copies_by_itself_is_bound_to_arguments_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Call, "place", lambda self, device, dtype=None: Call((torch.ones(2, device=device),)))
    program = Copying()
    side_of(program, copies=True)()
    assert (program.bound_to, program.called_with) == (["cpu"], [])
