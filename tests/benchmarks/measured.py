"""One architecture under measurement: the engine's verdict on a program, and what the other rules say of it."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import onnx
import torch

from pytest_torchexport.backends.onnx import Onnx
from pytest_torchexport.backends.onnx_session import Interface
from pytest_torchexport.backends.onnx_session import leaves as onnx_leaves
from pytest_torchexport.check import Policy, Subject, Surroundings, _Story, export, run
from pytest_torchexport.outcome import Outcome, Verdict
from pytest_torchexport.reference import ReferenceStore
from pytest_torchexport.subject.call import Call, bind
from tests.benchmarks import observable, observable_onnx, rules
from tests.benchmarks.planted import Overheard, PlantedGraph, PlantedOnnx, leaves, planted
from tests.benchmarks.zoo_all import build

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from pytest_torchexport.backends.base import Backend
    from pytest_torchexport.compare.tolerance import Tolerance
    from pytest_torchexport.draft import Failure
    from pytest_torchexport.plan import Plan
    from pytest_torchexport.trials import Reference, Trial
    from tests.benchmarks.faults import Fault

RULES = ("calibrated", "assert_close", "dynamo same")
_NOTHING = 1e-6
"""A smaller effect in float64, as a multiple of the rounding noise of the model's own type, is rounding of float64."""


def _without_explanation() -> AbstractContextManager[Any]:
    """The verdict alone: making the failing input simple and looking for the cause take most of a failing check."""

    def concluded(story: _Story, judge: Any, failures: list[Failure], agreeing: list[Trial]) -> Outcome:
        verdict = Verdict.FAILED if failures[0].finding.raised else Verdict.MISMATCH
        return story.draft.outcome(verdict, "", leaves=failures[0].finding.leaves)

    return patch.object(_Story, "_not_equivalent", concluded)


class _Store(ReferenceStore):
    """Eager's results on the one model and the inputs that an architecture has, made once."""

    last: Reference | None = None

    def get(self, plan: Plan, *more: Any) -> Reference:
        if self.last is None:
            self.last = super().get(plan, *more)
        return self.last


class NotRun(Exception):
    """There is no program to be judged: the exporter refused, or the runtime does not load what it wrote."""


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

    @property
    def false_alarm(self) -> bool:
        """Whether the engine calls the program anything but right."""
        return self.outcome.verdict is not Verdict.EQUIVALENT

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
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        self.model, self.args, self.options = build(self.name, self.seed)
        self.store = _Store()
        self.folder = Path(tempfile.mkdtemp(prefix="torchexport-"))
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)

    def check(self, backend: Backend | str, tolerance: Tolerance | None = None, *, explained: bool = False) -> Outcome:
        """The public engine's outcome; of a mismatch the verdict alone, unless it is to be explained."""
        policy = Policy(backend, n_inputs=self.n_inputs, branches="off", seed=self.seed, tolerance=tolerance)
        around = Surroundings(references=self.store, origin=self.name)
        with nullcontext() if explained else _without_explanation():
            return run(Subject(self.model, self.args, **self.options), policy, around)

    def judge(self, backend: Backend) -> Judged:
        """The outcome, and the other rules on the results that the engine saw."""
        overheard = Overheard(backend)
        outcome = self.check(overheard)
        pairs = list(zip(self.eager, overheard.seen, strict=False))
        if len(pairs) < len(self.eager):
            raise NotRun(outcome.summary)
        told = {tried.label: tried.agrees for tried in outcome.inputs}
        agrees: dict[str, list[bool | None]] = {
            "calibrated": [told.get(trial.label) for trial in self.trials],
            "assert_close": [isinstance(z, list) and rules.assert_close(y, z) for y, z in pairs],
            "dynamo same": [
                isinstance(z, list) and rules.dynamo_same(y, z, double)
                for (y, z), double in zip(pairs, self.plain_double, strict=False)
            ],
        }
        return Judged(outcome, agrees, all(isinstance(z, list) and same_bits(y, z) for y, z in pairs))

    @cached_property
    def trials(self) -> list[Trial]:
        """What eager did on each input."""
        if self.store.last is None:
            self.check("trace:strict=false")
        assert self.store.last is not None
        return self.store.last.trials

    @cached_property
    def calls(self) -> list[tuple[Any, ...]]:
        """The inputs, as positional arguments."""
        return [tuple(bind(self.model, trial.calls[0]).values()) for trial in self.trials]

    @cached_property
    def eager(self) -> list[list[Any]]:
        """Eager's results on them."""
        return [leaves(trial.record.outputs[0]) for trial in self.trials]

    @cached_property
    def plain_double(self) -> list[list[Any] | None]:
        return [rules.in_plain_double(self.model, call) for call in self.calls]

    # --- faults of the graph ------------------------------------------------------------------------------------------

    @cached_property
    def graph(self) -> GraphModule:
        """The graph of torch.export."""
        with torch.no_grad():
            return torch.export.export(self.model, self.args).module(check_guards=False)

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
        return self._size(single, found, self._double)

    def _size(self, results: list[Any], faulty: list[Any], right: list[Any]) -> float:
        """From the results in eager's types, to see their kinds, and those in float64, with the fault and without."""
        largest = 0.0
        for number, (y, z) in enumerate(zip(self.eager, results, strict=True)):
            if not isinstance(z, list) or not of_one_kind(y, z):
                return float("inf")
            for place, eager in enumerate(y):
                one, other = right[number][place], faulty[number][place]
                draws = [draw[place] for draw in self._draws[number]]
                if not (eager.is_floating_point() or eager.is_complex()):
                    flips = torch.stack([draw != eager for draw in draws]).any(0)
                    largest = max(largest, float("inf") if bool(((one != other) & ~flips).any()) else 0.0)
                else:
                    scale = observable.noise_scale(eager, self._double[number][place], draws)
                    largest = max(largest, observable.effect(one, other, scale))
        return largest if largest > _NOTHING else 0.0

    # --- faults of the file -------------------------------------------------------------------------------------------

    @cached_property
    def onnx_folder(self) -> Path:
        """Where the right ONNX file lies. Raises what the exporter raises."""
        export(
            Subject(self.model, self.args, **self.options),
            Policy(Onnx(external_data=False)),
            Surroundings(directory=self.folder),
        )
        return self.folder

    @cached_property
    def onnx_file(self) -> onnx.ModelProto:
        return onnx.load(self.onnx_folder / "model.onnx")

    def judge_right_file(self) -> Judged:
        """The verdict on the file before anything is planted in it. Raises what the exporter or the runtime raises."""
        return self.judge(PlantedOnnx(self.onnx_folder, None))

    @cached_property
    def _right_results(self) -> list[Any]:
        overheard = Overheard(PlantedOnnx(self.onnx_folder, None))
        self.check(overheard)
        return overheard.seen[: len(self.calls)]

    @cached_property
    def _double_of_file(self) -> list[Any]:
        return self._file_in_double(self.onnx_file)

    def _file_in_double(self, file: onnx.ModelProto) -> list[Any]:
        """The results of a file in float64. Raises what the reference implementation of ONNX raises."""
        twin, table = observable_onnx.doubled(file), Interface.read(self.onnx_folder / "model.onnx").inputs
        found = []
        for call in self.calls:
            given = onnx_leaves(self.model, Call(call, {}))
            arrays = {table[leaf.key]: leaf.value.numpy() for leaf in given if leaf.key in table}
            found.append([torch.from_numpy(one) for one in observable_onnx.in_double(twin, arrays)])
        return found

    def judge_onnx(self, fault: Fault[onnx.ModelProto, Any]) -> tuple[Judged, bool, float]:
        """The verdicts, whether the fault changes any bit of the right file's results, and its size as in `size_of`."""
        overheard = Overheard(PlantedOnnx(self.onnx_folder, fault.plant))
        judged = self.judge(overheard)
        results = overheard.seen[: len(self.calls)]
        pairs = zip(self._right_results, results, strict=False)
        changed = not all(isinstance(z, list) and same_bits(y, z) for y, z in pairs)
        if not all(isinstance(z, list) and of_one_kind(y, z) for y, z in zip(self.eager, results, strict=True)):
            return judged, changed, float("inf")
        file = onnx.ModelProto()
        file.CopyFrom(self.onnx_file)
        fault.plant(file)
        return judged, changed, self._size(results, self._file_in_double(file), self._double_of_file)


def of_one_kind(one: list[Any], other: list[Any]) -> bool:
    """Whether two results have equal shapes and dtypes."""
    return [(a.shape, a.dtype) for a in one] == [(b.shape, b.dtype) for b in other]


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
