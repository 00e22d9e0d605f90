"""The exported side of a check: made by a backend, then run on the reference's inputs, each from the same start."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.backends.base import Backend, Exported, ExportRequest
from pytest_torchexport.backends.quiet import quiet
from pytest_torchexport.outcome import Stage
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.call import positional_names
from pytest_torchexport.subject.run import Record, fixed_rng
from pytest_torchexport.subject.run import run as run_calls
from pytest_torchexport.subject.state import identical

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_torchexport.backends.base import Step
    from pytest_torchexport.compare.records import StateView
    from pytest_torchexport.plan import Plan
    from pytest_torchexport.subject.state import Snapshot
    from pytest_torchexport.trials import Reference, Trial


@dataclass(frozen=True)
class Saved:
    """What an export left: the program's file, or what else it is loaded from.

    Attributes:
        backend: who exported.
        program: what it returned.
        path: the file; None for a backend without one.
        request: what was exported.
    """

    backend: Backend
    program: Any
    path: Path | None
    request: ExportRequest

    def load(self) -> Exported:
        """The program, read back."""
        with quiet():
            return self.backend.load(self.program, self.path, self.request)

    def load_anew(self, variant: Backend | None = None) -> Exported:
        """The program as in a process that has not run it yet, perhaps under other options of its loading."""
        with quiet():
            return (variant or self.backend).load_anew(self.program, self.path, self.request)


def make(
    backend: Backend,
    plan: Plan,
    snapshot: Snapshot,
    directory: Path,
    *,
    grad_mode: bool,
    at: Callable[[Stage], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> tuple[Exported, Saved]:
    """Export, save and load the model.

    Exporting may run the model: its state is put back before anything is saved, and afterwards.

    Args:
        backend: who exports.
        plan: what, placed on its device.
        snapshot: the model's starting state.
        directory: an empty folder for the artifact.
        grad_mode: whether autograd is on, as it will be when the program runs: compilers specialise on it.
        at: entered around each stage.

    Returns:
        The loaded program, and what it was loaded from.

    Raises:
        Exception: whatever the backend raises.
    """
    request = ExportRequest(plan.model, plan.example.clone(), plan.dynamic_shapes, plan.device, directory, plan.grad)
    with torch.set_grad_enabled(grad_mode):
        try:
            with at(Stage.EXPORT), fixed_rng(plan.seed, plan.device), quiet():
                exported = backend.export(request)
            snapshot.restore()
            with at(Stage.SAVE), quiet():
                saved = Saved(backend, exported, backend.save(exported, directory), request)
            with at(Stage.LOAD):
                return saved.load(), saved
        finally:
            snapshot.restore()


class Program:
    """An exported program that runs each input from its own starting state.

    Args:
        exported: the loaded program.
        plan: the test's.
        snapshot: the model's starting state, for programs that run on the model itself.
        reference: eager's side; decides whether autograd is on.
        gradients: take gradients through the program.
    """

    def __init__(
        self, exported: Exported, plan: Plan, snapshot: Snapshot, reference: Reference, *, gradients: bool
    ) -> None:
        self.exported = exported
        self._plan, self._snapshot, self._reference = plan, snapshot, reference
        self._gradients = gradients
        self._loaded = None if exported.shares_module else containers.clone(exported.read_state())

    @property
    def states(self) -> StateView:
        """Eager's starting state beside the program's."""
        if self.exported.shares_module:
            return self._reference.states(self._reference.start, complete=True)
        return self._reference.states(self._loaded)

    def parameters(self) -> dict[str, torch.Tensor]:
        """The program's parameters by name, empty where it holds them as constants."""
        return self.exported.parameters() or {}

    def run(self, trial: Trial, seed: int = 0) -> Record:
        """Run the program on one input from its starting state, and note what it does to that state.

        Another `seed` gives it other random numbers than eager had.
        """
        try:
            live = self.start()
        except Exception as error:  # noqa: BLE001 a program whose state cannot be set has failed
            return Record(error=error)
        record = run_calls(
            self.exported,
            trial.calls,
            device=self._plan.device,
            seed=self._plan.seed + seed,
            parameters=self.parameters() if self._gradients else None,
            names=positional_names(self._plan.model, self._plan.example),
            needs_grad_mode=self._reference.needs_grad_mode,
            # Code that rebinds its state may return it: what is returned now is overwritten by the next start.
            clone_all=self._reference.reuses_memory or bool(live),
            writes_arguments=self._reference.writes_arguments,
        )
        record.state = self._changes()
        return record

    def steps(self, trial: Trial) -> Iterator[Step] | None:
        """The operators of the input's first call, from the starting state; None where the inside cannot be seen."""
        self.start()
        call = trial.calls[0].clone()
        return self.exported.steps(*call.args, **call.kwargs)

    def start(self) -> list[torch.Tensor]:
        """Put the program into its starting state; returns the tensors that hold it."""
        if self.exported.shares_module:
            self._snapshot.restore()
            return self._snapshot.tensors()
        self.exported.reset()
        if self._loaded:
            self.exported.write_state(self._loaded)
        return [value for value in (self.exported.read_state() or {}).values() if isinstance(value, torch.Tensor)]

    def _changes(self) -> dict[str, Any]:
        if self.exported.shares_module:
            changes = self._snapshot.changes()
            self._snapshot.restore()
            return changes
        after = self.exported.read_state() or {}
        loaded = self._loaded or {}
        return {name: containers.clone(v) for name, v in after.items() if not identical(loaded.get(name), v)}

    def close(self) -> None:
        """Release what outlives the program, and put the model back into its starting state."""
        self.exported.close()
        self._snapshot.restore()
