"""One architecture under measurement: the engine's verdict on a program, and what the other rules say of its results."""

from __future__ import annotations

import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

from pytest_torchexport.backends.onnx import Onnx
from pytest_torchexport.check import Policy, Subject, Surroundings, _Story, export, run
from pytest_torchexport.outcome import Outcome, Verdict
from pytest_torchexport.reference import ReferenceStore
from pytest_torchexport.subject.call import bind
from tests.benchmarks import observable, rules
from tests.benchmarks.planted import Overheard, PlantedGraph, PlantedOnnx, leaves, planted
from tests.benchmarks.zoo_all import build

if TYPE_CHECKING:
    import onnx
    from torch.fx import GraphModule

    from pytest_torchexport.backends.base import Backend
    from pytest_torchexport.compare.tolerance import Tolerance
    from pytest_torchexport.draft import Failure
    from pytest_torchexport.plan import Plan
    from pytest_torchexport.trials import Reference, Trial
    from tests.benchmarks.faults import Fault

RULES = ("calibrated", "assert_close", "dynamo same")
_NOTHING = 1e-13
"""A smaller effect in float64, relative to the largest value, is its own rounding."""


def _without_explanation() -> AbstractContextManager[Any]:
    """The verdict alone: making the failing input simple and looking for the cause take most of a failing check."""

    def concluded(story: _Story, judge: Any, failures: list[Failure], agreeing: list[Trial]) -> Outcome:
        verdict = Verdict.FAILED if failures[0].finding.raised else Verdict.MISMATCH
        return story.draft.outcome(verdict, "", leaves=failures[0].finding.leaves)

    return patch.object(_Story, "_not_equivalent", concluded)


class _Store(ReferenceStore):
    """Tells what it gave last."""

    last: Reference

    def get(self, plan: Plan, *more: Any) -> Reference:
        self.last = super().get(plan, *more)
        return self.last


@dataclass(frozen=True)
class Judged:
    """What the rules say of one program on all inputs of its architecture.

    Attributes:
        outcome: the engine's.
        agrees: by rule, one flag for each input; None where the engine calls the input too chaotic for a verdict.
        same_bits: every result equals eager's in every bit.
    """

    outcome: Outcome
    agrees: dict[str, list[bool | None]]
    same_bits: bool

    def found(self, rule: str) -> bool:
        """Whether the rule finds something wrong with the program."""
        if rule == "calibrated":
            return self.outcome.verdict in (Verdict.MISMATCH, Verdict.FAILED)
        return not all(self.agrees[rule])


@dataclass
class Architecture:
    """A model of the zoo with its inputs, of which eager's results and rounding noise are measured once."""

    name: str
    n_inputs: int = 2
    seed: int = 0
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="torchexport-")))

    def __post_init__(self) -> None:
        self.model, self.args, self.options = build(self.name, self.seed)
        self.store = _Store()

    def check(self, backend: Backend | str, tolerance: Tolerance | None = None) -> Outcome:
        """The public engine's outcome."""
        policy = Policy(backend, n_inputs=self.n_inputs, branches="off", seed=self.seed, tolerance=tolerance)
        around = Surroundings(references=self.store, origin=self.name)
        with _without_explanation():
            return run(Subject(self.model, self.args, **self.options), policy, around)

    def judge(self, backend: Backend) -> Judged:
        """The outcome, and the other rules on the results that the engine saw."""
        overheard = Overheard(backend)
        outcome = self.check(overheard)
        pairs = list(zip(self.eager, overheard.seen, strict=False))
        assert len(pairs) == len(self.eager) or outcome.verdict is Verdict.REFUSED, outcome.message
        told = {tried.label: tried.agrees for tried in outcome.inputs}
        agrees: dict[str, list[bool | None]] = {
            "calibrated": [told.get(trial.label) for trial in self.store.last.trials],
            "assert_close": [isinstance(z, list) and rules.assert_close(y, z) for y, z in pairs],
            "dynamo same": [
                isinstance(z, list) and rules.dynamo_same(y, z, double)
                for (y, z), double in zip(pairs, self.plain_double, strict=False)
            ],
        }
        return Judged(outcome, agrees, all(isinstance(z, list) and same_bits(y, z) for y, z in pairs))

    @cached_property
    def calls(self) -> list[tuple[Any, ...]]:
        """The inputs, as positional arguments."""
        if not hasattr(self.store, "last"):
            self.check("trace:strict=false")
        return [tuple(bind(self.model, trial.calls[0]).values()) for trial in self.store.last.trials]

    @cached_property
    def eager(self) -> list[list[Any]]:
        """Eager's results on them."""
        return [leaves(trial.record.outputs[0]) for trial in self.store.last.trials if self.calls]

    @cached_property
    def plain_double(self) -> list[list[Any] | None]:
        return [rules.in_plain_double(self.model, call) for call in self.calls]

    # --- faults of the graph ------------------------------------------------------------------------------------------

    @cached_property
    def graph(self) -> GraphModule:
        """The graph of torch.export."""
        with torch.no_grad():
            module = torch.export.export(self.model, self.args).module(check_guards=False)
        return module  # type: ignore[return-value]

    @cached_property
    def _double(self) -> list[list[Any]]:
        twin = observable.doubled(self.graph)
        return [observable.in_double(twin, call) for call in self.calls]

    @cached_property
    def _draws(self) -> list[list[list[Any]]]:
        """Jittered results by input and draw."""
        return [
            [observable.jittered(self.graph, call, 97 * self.seed + draw) for draw in range(observable.DRAWS)]
            for call in self.calls
        ]

    def judge_graph(self, fault: Fault[GraphModule, Any]) -> Judged:
        return self.judge(PlantedGraph(self.graph, fault.plant))

    def size_of(self, fault: Fault[GraphModule, Any]) -> float:
        """How large the fault's effect is in float64, in units of the rounding noise, on the input where it is largest.

        Infinite where the results are of another kind or the program raises; zero where it has no effect at all.
        """
        module = planted(self.graph, fault.plant)
        try:
            twin = observable.doubled(module)
            found = [observable.in_double(twin, call) for call in self.calls]
            with torch.no_grad():
                single = [leaves(module(*call)) for call in self.calls]
        except (RuntimeError, IndexError, ValueError, TypeError):
            return float("inf")
        largest = 0.0
        for number, (y, z) in enumerate(zip(self.eager, single, strict=True)):
            if len(y) != len(z) or any(
                one.shape != other.shape or one.dtype != other.dtype for one, other in zip(y, z, strict=True)
            ):
                return float("inf")
            for place, eager in enumerate(y):
                right, wrong = self._double[number][place], found[number][place]
                draws = [draw[place] for draw in self._draws[number]]
                if not (eager.is_floating_point() or eager.is_complex()):
                    flips = torch.stack([draw != eager for draw in draws]).any(0)
                    largest = max(largest, float("inf") if bool(((right != wrong) & ~flips).any()) else 0.0)
                elif observable.relative_effect(right, wrong) > _NOTHING:
                    scale = observable.noise_scale(eager, right, draws)
                    largest = max(largest, observable.effect(right, wrong, scale))
        return largest

    # --- faults of the file -------------------------------------------------------------------------------------------

    @cached_property
    def onnx_folder(self) -> Path:
        """Where the right ONNX file lies. Raises what the exporter raises."""
        self.folder.mkdir(exist_ok=True)
        export(
            Subject(self.model, self.args, **self.options),
            Policy(Onnx(external_data=False)),
            Surroundings(directory=self.folder),
        )
        return self.folder

    @cached_property
    def onnx_file(self) -> onnx.ModelProto:
        import onnx

        return onnx.load(self.onnx_folder / "model.onnx")

    @cached_property
    def _right_results(self) -> list[Any]:
        overheard = Overheard(PlantedOnnx(self.onnx_folder, None))
        self.check(overheard)
        return overheard.seen[: len(self.calls)]

    def judge_onnx(self, fault: Fault[onnx.ModelProto, Any]) -> tuple[Judged, bool]:
        """The verdicts, and whether the fault changes any bit of the right file's results."""
        overheard = Overheard(PlantedOnnx(self.onnx_folder, fault.plant))
        judged = self.judge(overheard)
        results = overheard.seen[: len(self.calls)]
        pairs = zip(self._right_results, results, strict=False)
        changed = len(results) < len(self.calls) or not all(isinstance(z, list) and same_bits(y, z) for y, z in pairs)
        return judged, changed


def same_bits(one: list[Any], other: list[Any]) -> bool:
    """Whether two results are of one kind and equal in every bit, NaN and the signs of zeros included."""
    if len(one) != len(other):
        return False
    return all(
        type(a) is type(b)
        and (
            a == b
            if not isinstance(a, torch.Tensor)
            else a.dtype == b.dtype
            and a.shape == b.shape
            and torch.equal(a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8))
        )
        for a, b in zip(one, other, strict=True)
    )
