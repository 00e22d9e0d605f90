"""Every built-in backend passes the conformance test; a backend that cheats does not."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from pytest_torchexport import Backend, Exported, ExportRequest, Outcome, Verdict, check_backend, register_backend
from pytest_torchexport.backends import registry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FAST = ["trace", "script", "compile:backend=aot_eager", "export", "onnx-torchscript"]
SLOW = ["compile", "aoti", "onnx"]


def _verdicts(outcomes: list[Outcome]) -> list[Verdict]:
    return [outcome.verdict for outcome in outcomes]


@pytest.mark.parametrize("backend", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_built_in_backend_conforms(backend: str) -> None:
    outcomes = check_backend(backend)
    right, planted = outcomes[:3], outcomes[3:]
    assert right[0].verdict is Verdict.EQUIVALENT
    assert _verdicts(planted) == [Verdict.MISMATCH] * 7, "a program that is refused shows nothing of the comparison"
    if not backend.startswith("onnx"):
        assert _verdicts(right) == [Verdict.EQUIVALENT] * 3, "state and argument mutation are kept by this backend"


class RunsEager(Exported):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._model(*args, **kwargs)


class Cheat(Backend):
    """Ignores what it was asked to export and runs the right module."""

    name: ClassVar[str] = "cheat"

    def export(self, request: ExportRequest) -> Any:
        return None

    def load(self, program: Any, path: Path | None, request: ExportRequest) -> Exported:
        right = type(request.model).__mro__[1]
        twin: Any = object.__new__(right)
        twin.__dict__ = vars(request.model)
        return RunsEager(twin)


def test_a_backend_that_runs_something_else_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    register_backend("cheat", Cheat)
    with pytest.raises(AssertionError, match="a dropped branch is not seen"):
        check_backend("cheat")


class Refuses(Backend):
    """Runs the module that it is asked for, and refuses one whose `forward` is not the right one's."""

    name: ClassVar[str] = "refuses"

    def export(self, request: ExportRequest) -> Any:
        if type(request.model).__name__.startswith("_"):
            msg = "cannot be exported"
            raise RuntimeError(msg)

    def load(self, program: Any, path: Path | None, request: ExportRequest) -> Exported:
        return RunsEager(request.model)


class Forgets(Backend):
    """Runs a copy of the module on copies of the arguments: whatever they change in place is lost."""

    name: ClassVar[str] = "forgets"

    def export(self, request: ExportRequest) -> Any:
        return None

    def load(self, program: Any, path: Path | None, request: ExportRequest) -> Exported:
        model = copy.deepcopy(request.model)
        return RunsEager(lambda *args: model(*[arg.clone() for arg in args]))


def test_a_refused_fault_is_not_a_seen_one() -> None:
    with pytest.raises(AssertionError, match=r"a dropped output is not seen: .* refused"):
        check_backend(Refuses())


def test_only_a_form_without_state_may_lose_it() -> None:
    with pytest.raises(AssertionError, match="the right program of InPlace is not accepted"):
        check_backend(Forgets())


class BindsWrongly(Forgets):
    """Right in every call; what is timed is something else."""

    name: ClassVar[str] = "binds-wrongly"

    def __init__(self, bind: Callable[[Exported, tuple[Any, ...]], Callable[[], Any]]) -> None:
        self.bind = bind

    def load(self, program: Any, path: Path | None, request: ExportRequest) -> Exported:
        return Bound(request.model, self.bind)


class Bound(RunsEager):
    def __init__(self, model: Any, bind: Callable[[Exported, tuple[Any, ...]], Callable[[], Any]]) -> None:
        super().__init__(model)
        self._bind = bind

    @property
    def shares_module(self) -> bool:
        return True

    def bound_call(self, *args: Any, **kwargs: Any) -> Callable[[], Any]:
        return self._bind(self, args)


def _remembered(program: Exported, args: tuple[Any, ...]) -> Callable[[], Any]:
    output = program(*args)
    return lambda: output


@pytest.mark.parametrize(
    ("bind", "said"),
    [
        (lambda program, args: lambda: program(*[arg.clone() for arg in args]), "InPlace: bound_call does not do"),
        (_remembered, "Average: bound_call does not do"),
        (lambda program, args: lambda: program(args[0], *[arg * 2 for arg in args[1:]]), "Scorer: bound_call does not"),
        (lambda program, args: lambda: None, "Scorer: bound_call does not do what a call does"),
    ],
    ids=["on copies", "done before", "other arguments", "nothing"],
)
def test_a_bound_call_that_is_no_call_is_caught(bind: Any, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_backend(BindsWrongly(bind))


def test_a_bound_call_that_is_one_conforms() -> None:
    check_backend(BindsWrongly(lambda program, args: lambda: program(*args)))


class LoadsAnother(BindsWrongly):
    """Right, but what it loads anew has other weights."""

    def load_anew(self, program: Any, path: Path | None, request: ExportRequest) -> Exported:
        model: Any = copy.deepcopy(request.model)
        for parameter in model.parameters():
            parameter.data.add_(1)
        return Bound(model, self.bind)


def test_another_program_loaded_anew_is_caught() -> None:
    with pytest.raises(AssertionError, match="Scorer: bound_call after load_anew does not do what a call does"):
        check_backend(LoadsAnother(lambda program, args: lambda: program(*args)))
