"""What the fixture `export_check` gives to a test: the border between pytest and the engine."""

from __future__ import annotations

import functools
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_torchexport.errors import BackendUnavailable, NotEquivalent, ReferenceInvalid, UsageError
from pytest_torchexport.outcome import Outcome, Verdict
from pytest_torchexport.plugin import transport, workers
from pytest_torchexport.plugin.cell import COMMAND_LINE
from pytest_torchexport.plugin.output import ignore_output, keep_in, memory
from pytest_torchexport.plugin.progress import column
from pytest_torchexport.plugin.stash import RUN, STATE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager, ExitStack

    from pytest_torchexport.backends.base import Exported
    from pytest_torchexport.check import Policy, Surroundings
    from pytest_torchexport.outcome import Stage
    from pytest_torchexport.plugin.cell import Cell


class ExportCheck:
    """What the fixture `export_check` gives to a test: call it once with the model and an example of its arguments."""

    def __init__(self, item: pytest.Item, cell: Cell, resources: ExitStack) -> None:
        self._item = item
        self._cell = cell
        self._resources = resources

    def __call__(
        self,
        model: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        dynamic_shapes: Any = None,
        inputs: Mapping[str, Any] | None = None,
        extra_inputs: Sequence[Any] = (),
        assume: Callable[..., bool] | None = None,
        calls: int = 1,
    ) -> Outcome:
        """Check the model on this item's backend and device.

        Args:
            model: a `torch.nn.Module` or a function. It is placed on the device by the check.
            args: positional arguments of the example call, a tuple.
            kwargs: keyword arguments of the example call.
            dynamic_shapes: which sizes vary, in the format of `torch.export.export`.
            inputs: domains of arguments by name, for what the example does not tell.
            extra_inputs: further calls to check, each a tuple of positional arguments, a dict of keyword arguments, or
                a pair of both.
            assume: takes a call's arguments, returns whether the call is one that the model is made for.
            calls: length of the sequences of calls, for a model that keeps state.

        Returns:
            The outcome, with verdict `equivalent` or `inconclusive`.

        Raises:
            NotEquivalent: verdict `mismatch`, `refused`, `failed` or `over-budget`.
            ReferenceInvalid: verdict `invalid`: the eager model itself allows no check.
            UsageError: an argument is wrong.
        """
        __tracebackhide__ = True
        state = self._item.stash[STATE]
        state.calls += 1
        if state.calls > 1:
            pytest.fail(twice(state.calls), pytrace=False)
        subject = {
            "model": model,
            "args": args,
            "kwargs": kwargs,
            "dynamic_shapes": dynamic_shapes,
            "inputs": inputs,
            "extra_inputs": extra_inputs,
            "assume": assume,
            "calls": calls,
        }
        outcome, problem = self._run(subject)
        # What is raised below keeps this frame alive until the next test: it must hold no tensors.
        del subject, model, args, kwargs, inputs, extra_inputs, assume, dynamic_shapes
        if outcome is None:
            raise UsageError(problem)
        if outcome.verdict is Verdict.SKIPPED:
            self._missing(outcome.message)
        if outcome.verdict is Verdict.INVALID:
            raise ReferenceInvalid(outcome)
        if outcome.failed:
            raise NotEquivalent(outcome)
        if outcome.verdict is Verdict.INCONCLUSIVE and self._cell.xfail:
            # The expected excess was neither seen nor refuted: as a pass it would fail a test that expects a failure.
            pytest.xfail(f"{self._cell.xfail}; inconclusive: {outcome.summary}")
        return outcome

    def export(
        self,
        model: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        dynamic_shapes: Any = None,
    ) -> Exported:
        """Export the model on this item's backend and device, for assertions of the test's own.

        It does not stand for the check: the test still has to call `export_check`.

        Args:
            model: a `torch.nn.Module` or a function.
            args: positional arguments of the example call, a tuple.
            kwargs: keyword arguments of the example call.
            dynamic_shapes: which sizes vary, in the format of `torch.export.export`.

        Returns:
            The exported program, called as the model is. It is closed when the test ends.

        Raises:
            Exception: whatever the exporter raises.
        """
        __tracebackhide__ = True
        from pytest_torchexport.check import Subject, export  # noqa: PLC0415 - the plugin loads without torch

        folder = self._resources.enter_context(tempfile.TemporaryDirectory(prefix="torchexport-"))
        surroundings = self._surroundings()
        surroundings.directory = Path(folder)
        subject = Subject(model, args, kwargs, dynamic_shapes)
        try:
            exported = export(subject, self._policy(), surroundings)
        except BackendUnavailable as error:
            self._missing(str(error))
        self._resources.callback(exported.close)
        return exported

    def _run(self, subject: dict[str, Any]) -> tuple[Outcome | None, str]:
        """The outcome and an empty text, or None and what is wrong with the call.

        The engine's own exception is not handed on: its traceback would show the engine and hold its tensors.
        """
        __tracebackhide__ = True
        from pytest_torchexport.check import Subject, run  # noqa: PLC0415 - the plugin loads without torch

        domains = dict(subject["inputs"] or {})
        changed = self._item.ihook.pytest_torchexport_domains(item=self._item, domains=domains)
        subject["inputs"] = (changed if changed is not None else domains) or None
        surroundings = self._surroundings()
        try:
            with self._shown():
                outcome = run(Subject(**subject), self._policy(), surroundings)
        except UsageError as error:
            return None, str(error)
        ignore_output(self._item.config.stash[RUN], surroundings.keep_in)
        self._item.stash[STATE].record = transport.record_of(self._item, outcome)
        return outcome, ""

    def _policy(self) -> Policy:
        from pytest_torchexport.check import Policy  # noqa: PLC0415 - the plugin loads without torch

        cell = self._cell
        worker = self._item.config.stash[RUN].worker
        device = workers.own_device(cell.device, worker, workers.device_count(cell.device) if worker else 1)
        tolerance = self._item.ihook.pytest_torchexport_tolerance(
            item=self._item, backend=cell.backend_id, device=device, tolerance=cell.tolerance
        )
        measuring = workers.measuring(self._item, cell)
        return Policy(
            backend=cell.backend,
            device=device,
            dtype=cell.dtype,
            tolerance=cell.tolerance if tolerance is None else tolerance,
            n_inputs=cell.n_inputs,
            seed=cell.seed,
            grad=cell.grad,
            branches=cell.branches,
            search_budget=cell.search_budget,
            min_coverage=cell.min_coverage,
            user_code=cell.user_code,
            latency=measuring.budget,
            enforce=measuring.enforce,
            crowd=measuring.crowd,
            # Intervals that just decide a budget are so wide that a change since another run would be unclear.
            precise=self._item.config.stash[RUN].settings.baseline is not None,
            latency_left_out=measuring.left_out,
        )

    def _surroundings(self) -> Surroundings:
        from pytest_torchexport.check import ReferenceStore, Surroundings  # noqa: PLC0415 - needs torch

        item = self._item
        run = item.config.stash[RUN]
        artifacts = run.settings.artifacts
        origin = transport.origin_of(item)
        references = run.references.get(origin)
        if references is None:
            references = run.references.setdefault(origin, ReferenceStore())
        return Surroundings(
            references=references,
            directory=None,
            test=transport.test_id(item),
            origin=origin,
            on_stage=self._enter,
            keep_in=keep_in(run, transport.test_id(item)),
            # An expected failure is none.
            keep="off" if self._cell.xfail and artifacts == "retain-on-failure" else artifacts,
            alone=functools.partial(workers.turn, run, self._cell.device),
            memory=memory(item.config),
        )

    def _enter(self, stage: Stage) -> None:
        transport.note_stage(self._item, stage)
        progress = self._item.config.stash[RUN].progress
        if progress is not None:
            progress.enter(stage)

    def _shown(self) -> AbstractContextManager[None]:
        """Around the check, for somebody who waits for it at a terminal."""
        config = self._item.config
        progress = config.stash[RUN].progress
        if progress is None:
            return nullcontext()
        return progress.during(self._cell.id, column(config), searches=self._cell.branches == "search")

    def _missing(self, message: str) -> NoReturn:
        """End the test whose backend or device is not here: as a failure if it was asked for, else as a skip."""
        __tracebackhide__ = True
        reason = self._asked_for()
        if reason:
            pytest.fail(f"{message}\n{reason}", pytrace=False)
        pytest.skip(message.split("\n", 1)[0])

    def _asked_for(self) -> str:
        """Why a skip will not do; empty if it does."""
        cell = self._cell
        if cell.required:
            return f"It is required ({', '.join(cell.required)}), so this is a failure and not a skip."
        if _device_missing(cell.device):
            if cell.device_from == COMMAND_LINE:
                return (
                    f"{cell.device!r} was asked for by {COMMAND_LINE}: choose a device that is here, or leave it out."
                )
        elif cell.backend_from and not cell.device_implied:
            return (
                f"Backend {cell.backend_name!r} was asked for by {cell.backend_from}: install what it needs, "
                "or leave it out."
            )
        return ""


def twice(calls: int) -> str:
    """The message for a test that calls the fixture more than once."""
    return (
        f"the test called export_check {calls} times: one test checks one model, so that each item has one verdict. "
        "Use @pytest.mark.parametrize for several models, extra_inputs= for several inputs."
    )


def _device_missing(device: str) -> bool:
    from pytest_torchexport.subject.devices import parse, unavailable  # noqa: PLC0415 - needs torch

    return unavailable(parse(device)) is not None
