"""A test for backends, third-party ones too: right programs pass, and every planted fault turns the verdict."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_torchexport.backends.base import Backend, Exported, ExportRequest, FlatOutput, Structure
from pytest_torchexport.backends.registry import make_backend
from pytest_torchexport.check import Policy, Subject, Surroundings, run
from pytest_torchexport.errors import BackendUnavailable
from pytest_torchexport.outcome import Cause, Outcome, Verdict
from pytest_torchexport.plan import make_plan
from pytest_torchexport.program import make
from pytest_torchexport.subject import containers, devices
from pytest_torchexport.subject.state import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_torchexport.subject.call import Call


class Scorer(nn.Module):
    """Two outputs, one of which depends on a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of shape (n, 4) and their sums of shape (n,)."""
        hidden = self.linear(x)
        scores = torch.where(hidden.sum() > 0, torch.tanh(hidden), hidden - 1)
        return scores, scores.sum(dim=1) + bias


class Average(nn.Module):
    """A running mean in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The input less the mean of what came before."""
        out = x - self.mean
        self.mean.mul_(0.5).add_(x.mean(dim=0), alpha=0.5)
        return out


class InPlace(nn.Module):
    """An argument that is written to."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Twice the input, which is counted up."""
        x.add_(1.0)
        return x * 2.0


class _OneBranch(Scorer):
    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = torch.tanh(self.linear(x))
        return scores, scores.sum(dim=1) + bias


class _OtherWeight(Scorer):
    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.nn.functional.linear(x, self.linear.weight * 1.001, self.linear.bias)
        scores = torch.where(hidden.sum() > 0, torch.tanh(hidden), hidden - 1)
        return scores, scores.sum(dim=1) + bias


class _SwappedOutputs(Scorer):
    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.linear(x)
        scores = torch.where(hidden.sum() > 0, torch.tanh(hidden), hidden - 1)
        return scores.sum(dim=1) + bias, scores


class _OtherDtype(Scorer):
    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.linear(x)
        scores = torch.where(hidden.sum() > 0, torch.tanh(hidden), hidden - 1)
        return scores, (scores.sum(dim=1) + bias).to(torch.float64)


class _DroppedOutput(Scorer):
    # TorchScript takes the comment for an annotation of types unless the line ends with it.
    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor]:  # type: ignore[override]
        del bias
        hidden = self.linear(x)
        scores = torch.where(hidden.sum() > 0, torch.tanh(hidden), hidden - 1)
        return (scores,)


class _LostUpdate(Average):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.mean


class _LostMutation(InPlace):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + 1.0) * 2.0


@dataclass(frozen=True)
class Fault:
    """A program that is wrong in one way: exported in place of the right model."""

    name: str
    right: type[nn.Module]
    wrong: type[nn.Module]


FAULTS = (
    Fault("a dropped branch", Scorer, _OneBranch),
    Fault("a changed weight", Scorer, _OtherWeight),
    Fault("swapped outputs", Scorer, _SwappedOutputs),
    Fault("a changed dtype", Scorer, _OtherDtype),
    Fault("a dropped output", Scorer, _DroppedOutput),
    Fault("a lost buffer update", Average, _LostUpdate),
    Fault("a missing argument mutation", InPlace, _LostMutation),
)
"""The ways to be wrong that a backend's program must not hide."""

_RIGHT: tuple[type[nn.Module], ...] = (Scorer, Average, InPlace)


class Planted(Backend):
    """A backend that exports a faulty program in place of the user's.

    The faulty module shares the parameters, buffers and attributes of the right one.

    Args:
        inner: the backend that makes the program.
        wrong: class of the faulty module.
    """

    name = "planted"

    def __init__(self, inner: Backend, wrong: type[nn.Module]) -> None:
        self.inner, self.wrong = inner, wrong

    @property
    def id(self) -> str:
        """The inner backend's."""
        return self.inner.id

    @property
    def structure(self) -> Structure:  # type: ignore[override]
        """The inner backend's."""
        return self.inner.structure

    def unavailable(self, device: torch.device) -> str | None:
        """As the inner backend."""
        return self.inner.unavailable(device)

    def export(self, request: ExportRequest) -> Any:
        """Export the faulty module."""
        return self.inner.export(self._faulty(request))

    def save(self, program: Any, directory: Path) -> Path | None:
        """As the inner backend."""
        return self.inner.save(program, directory)

    def load(self, program: Any, path: Path | None, request: ExportRequest) -> Exported:
        """As the inner backend."""
        return self.inner.load(program, path, self._faulty(request))

    def _faulty(self, request: ExportRequest) -> ExportRequest:
        faulty = self.wrong.__new__(self.wrong)
        object.__setattr__(faulty, "__dict__", vars(request.model))
        return ExportRequest(**{**vars(request), "model": faulty})


def subject_of(model: type[nn.Module]) -> Subject:
    """A fresh model with fixed weights, and its example call."""
    generator = torch.Generator().manual_seed(7)
    made = model()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.1)
    x = torch.rand(3, 4, generator=generator)
    return Subject(made, (x, torch.rand(3, generator=generator)) if issubclass(model, Scorer) else (x,))


def check_backend(backend: str | Backend, device: str = "cpu") -> list[Outcome]:
    """Test that a backend exports, runs and compares truthfully.

    The models are of the simplest kind: a condition, two outputs, a buffer that is updated, an argument that is
    changed in place. The right programs have to be `equivalent`. A backend may be unable to express the last two:
    then it has to refuse them, or, where its outputs are `Structure.FLAT` and nothing else can be carried (ONNX), the
    verdict has to be a mismatch that names the lost state or mutation. A program with a planted fault has to be a
    `mismatch` or to `fail` when it runs: anything else would mean that the program which was run is not the exported
    one, or that a part of its behaviour is not looked at. What is timed, `Exported.bound_call`, has to do what a call
    does, twice in a row, also of a program that `Backend.load_anew` made.

    Args:
        backend: a name, a name with options, or an instance.
        device: where to run.

    Returns:
        The outcomes, those of the right models first.

    Raises:
        BackendUnavailable: the backend or device is not here.
        AssertionError: lists every expectation that was not met.
    """
    made = make_backend(backend)
    right = {model: _outcome_of(model, made, device, model.__name__) for model in _RIGHT}
    planted = {fault: _outcome_of(fault.right, Planted(made, fault.wrong), device, fault.name) for fault in FAULTS}
    complaints = [
        f"the right program of {model.__name__} is not accepted: {outcome.message}"
        for model, outcome in right.items()
        if not _is_accepted(model, outcome, made.structure)
    ]
    complaints += [
        f"{fault.name} is not seen: {outcome.message}"
        for fault, outcome in planted.items()
        if not _is_seen(outcome, right[fault.right])
    ]
    complaints += [
        f"{model.__name__}: {complaint}"
        for model, outcome in right.items()
        if outcome.verdict is Verdict.EQUIVALENT
        for complaint in _timed_otherwise(model, made, device)
    ]
    if complaints:
        raise AssertionError("\n".join([f"backend {made.id!r} on {device}:", *complaints]))
    return [*right.values(), *planted.values()]


def _outcome_of(model: type[nn.Module], backend: Backend, device: str, label: str) -> Outcome:
    outcome = run(subject_of(model), Policy(backend, device), Surroundings(origin=label))
    if outcome.verdict is Verdict.SKIPPED:
        raise BackendUnavailable(outcome.message)
    return outcome


def _is_accepted(model: type[nn.Module], outcome: Outcome, structure: Structure) -> bool:
    if outcome.verdict is Verdict.EQUIVALENT:
        return True
    if model is Scorer:
        return False
    lost = outcome.verdict is Verdict.MISMATCH and outcome.cause in (Cause.LOST_STATE, Cause.LOST_MUTATION)
    return outcome.verdict is Verdict.REFUSED or (lost and structure is Structure.FLAT)


def _is_seen(planted: Outcome, right: Outcome) -> bool:
    """Whether the verdict on a faulty program is due to the fault; a backend may refuse both programs alike."""
    seen = (Verdict.MISMATCH, Verdict.FAILED)
    return planted.verdict in seen or (planted.verdict is Verdict.REFUSED and right.verdict is Verdict.REFUSED)


def _timed_otherwise(model: type[nn.Module], backend: Backend, device: str) -> list[str]:
    """In what a bound call differs from a call of the program, and from that of the program loaded anew."""
    plan = make_plan(subject_of(model), Policy(backend, device), model.__name__)
    plan.place(devices.parse(device))
    snapshot = Snapshot(plan.model)
    complaints = []
    with tempfile.TemporaryDirectory() as directory, torch.no_grad():
        exported, saved = make(backend, plan, snapshot, Path(directory), grad_mode=False)
        state = containers.clone(exported.read_state())

        def done(program: Exported, form: Callable[[Exported, Call], Callable[[], Any]]) -> Any:
            """What two calls of a form return and leave behind, from the starting state."""
            if program.shares_module:
                snapshot.restore()
            else:
                program.reset()
                program.write_state(state or {})
            own = plan.example.clone()
            call = form(program, own)
            outputs = [containers.clone(call()) for _ in range(2)]
            return {"output": outputs, "arguments": [own.args, dict(own.kwargs)]}

        wanted = done(exported, _called)
        complaints += _differences("bound_call", wanted, done(exported, _timed))
        exported.close()
        anew = saved.load_anew()
        complaints += _differences("bound_call after load_anew", wanted, done(anew, _timed))
        anew.close()
        snapshot.restore()
    return complaints


def _called(program: Exported, call: Call) -> Callable[[], Any]:
    return lambda: _plain(program(*call.args, **call.kwargs))


def _timed(program: Exported, call: Call) -> Callable[[], Any]:
    bound = program.bound_call(*call.args, **call.kwargs)
    return lambda: _plain(program.bound_output(bound()))


def _plain(output: Any) -> Any:
    return output.values if isinstance(output, FlatOutput) else output


def _differences(what: str, wanted: Any, got: Any) -> list[str]:
    try:
        torch.testing.assert_close(dict(containers.leaves(got)), dict(containers.leaves(wanted)), equal_nan=True)
    except AssertionError as error:
        return [f"{what} does not do what a call does: {' '.join(str(error).split())}"]
    return []
