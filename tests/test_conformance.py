"""Every built-in backend passes the conformance test; a backend that cheats does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from pytest_torchexport import Backend, Exported, ExportRequest, Outcome, Verdict, check_backend, register_backend
from pytest_torchexport.backends import registry

if TYPE_CHECKING:
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
    assert Verdict.EQUIVALENT not in _verdicts(planted)
    assert len(planted) == 7
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
