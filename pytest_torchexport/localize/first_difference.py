"""Where an exported program and eager part first: the submodule, the operator and the user's line.

Both run once more on the failing input, operator by operator, and their values are matched by their numbers. The names
of an exported program's values say nothing that can be relied on; that a value of hundreds of numbers equals one of
eager's within its rounding noise does.
"""

from __future__ import annotations

import functools
import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.backends.base import TooLarge
from pytest_torchexport.backends.quiet import quiet
from pytest_torchexport.compare.double import InDouble
from pytest_torchexport.compare.jitter import Jitter
from pytest_torchexport.compare.records import named_leaves
from pytest_torchexport.compare.tree import as_tensor, pair
from pytest_torchexport.eager import eager_run
from pytest_torchexport.localize.as_a_whole import rewritten
from pytest_torchexport.localize.bisect import Bisection
from pytest_torchexport.localize.divergence import Side, conclude
from pytest_torchexport.localize.eager_again import Follower
from pytest_torchexport.localize.eager_steps import Recorder
from pytest_torchexport.localize.frontier import Point, State, part
from pytest_torchexport.localize.matching import Exhausted, Known, Matcher
from pytest_torchexport.localize.sketch import sketch, tells_something
from pytest_torchexport.outcome import Divergence
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.run import fixed_rng
from pytest_torchexport.subject.state import Snapshot, parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from pytest_torchexport.backends.base import Backend, Step
    from pytest_torchexport.diagnose.case import Case
    from pytest_torchexport.localize.eager_steps import Value
    from pytest_torchexport.subject.run import Record

_DRAWS = 4
_MANY = 500
"""From so many operators on, half the draws have to do: each runs eager under instruments."""
_LIMIT = 6.0
_OPERATORS = 20_000
"""Operators of eager above which no search is made."""
_WORK = 8e9
"""Numbers that may be compared, about a minute's worth; counted, for a result must not depend on a clock."""
_NUMBERS = 32 << 20
"""Numbers of eager's values that are kept, each in about 12 bytes."""


def localize(case: Case, backend: Backend) -> Divergence | None:
    """Find the first operator at which an exported program leaves eager, given equal values up to there.

    Args:
        case: the failing input, and what both sides did on it.
        backend: what exported; submodules are exported alone where no operator shows the difference.

    Returns:
        What was found; None where the inside of the program cannot be seen, or where nothing can be said.
    """
    if case.trial.record.error is not None or case.record.error is not None:
        return None
    differing = _differing(case)
    if not differing:
        return None
    try:
        return _search(case, backend, differing)
    except TooLarge as large:
        return Divergence(note=f"too large to look inside: {large}")
    except Exhausted:
        return Divergence(note="there are too many operators and values to look for it among them")


def _search(case: Case, backend: Backend, differing: list[tuple[torch.Tensor, torch.Tensor]]) -> Divergence | None:
    eager = _eager(case)
    if eager is None:
        return None
    matcher = Matcher(eager.known, _LIMIT, _WORK)
    watched = _Watched(eager.cap, matcher)
    if not _walk(case, watched.see):
        return None
    targets = _targets(watched.sketches, [other for _, other in differing], eager.cap)
    theirs = watched.side(targets)
    own = _own(eager, watched.shared, [mine for mine, _ in differing])
    found = conclude(theirs, own)
    found = found or rewritten(case.program.exported.optimizer, differing, functools.partial(_walk, case))
    # The steps gave other results than the program itself: it runs its operators in another way than one by one.
    return found or (None if targets else Bisection(case, backend, matcher, eager.cap).find())


@dataclass
class _Eager:
    values: list[Value]
    known: list[Known]
    cap: int


def _differing(case: Case) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The results that differ: eager's tensor, the program's."""
    record, start, names = case.record, case.reference.start, case.plan.names
    count = len(case.trial.calls)
    mine = named_leaves(case.trial.record, count, start, names)
    theirs: dict[str, Any] = {f"state {name}": value for name, value in {**start, **record.state}.items()}
    for index, (call, output) in enumerate(zip(record.arguments, record.outputs, strict=False)):
        title = "" if count == 1 else f"call {index + 1} "
        for name, value in names(call).items():
            theirs |= {f"{title}argument {path}": leaf for path, leaf in containers.leaves(value, name)}
        pairs = pair(case.trial.record.outputs[index], output, case.structure, f"{title}output")
        theirs |= {path: leaf for path, _, leaf in pairs.leaves}
    found = []
    for leaf in case.leaves:
        one, other = as_tensor(mine.get(leaf.path)), as_tensor(theirs.get(leaf.path))
        if one is not None and other is not None:
            found.append((one.detach(), other.detach()))
    return found


def _eager(case: Case) -> _Eager | None:
    """Eager's values with their rounding noise."""
    recorder = Recorder(case.plan.model, _NUMBERS, _NUMBERS)
    if _run(case, recorder).error is not None:
        return None
    if len(recorder.operations) > _OPERATORS:
        raise Exhausted
    cap = _NUMBERS
    if recorder.over:
        cap = _cap(recorder.sizes)
        recorder = Recorder(case.plan.model, cap)
        if _run(case, recorder).error is not None:
            return None
    known = [Known(value) for value in recorder.values]
    _measure_in_double(case, recorder, known, cap)
    for draw in range(_DRAWS if len(recorder.operations) < _MANY else _DRAWS // 2):
        follower = Follower(recorder, cap, lambda index, numbers: known[index].add(numbers))
        _run(case, _Both(Jitter(case.plan.seed, draw), follower))
        follower.finish()
    return _Eager(recorder.values, known, cap)


def _run(case: Case, mode: AbstractContextManager[Any], dtype: torch.dtype | None = None) -> Record:
    calls = tuple(call.place(case.plan.device, dtype) for call in case.trial.calls)
    return eager_run(case.plan, case.snapshot, case.reference, calls, mode=mode)


def _measure_in_double(case: Case, recorder: Recorder, known: list[Known], cap: int) -> None:
    # As in `compare.rerun`: code that compares dtypes wants the parameters converted.
    ways: list[tuple[torch.nn.Parameter, ...]] = [(), tuple(parameters(case.plan.model).values())]
    if case.reference.known.compares_dtypes:
        ways.reverse()
    for swapped in ways:
        follower = Follower(recorder, cap, lambda index, numbers: known[index].add(numbers, double=True))
        record = _run(case, _Both(InDouble(swapped), follower), torch.float64)
        if record.error is None:
            follower.finish()
            return
        for one in known:
            one.forget()


def _cap(sizes: Sequence[int]) -> int:
    """The most numbers that may be kept of a value, so that all of them together stay within the budget."""
    cap = max(sizes, default=1)
    while cap > 1024 and sum(min(size, cap) for size in sizes) > _NUMBERS:
        cap //= 2
    return max(cap, 1)


class _Both:
    """Two modes as one; the second sees each operator first, and what the first makes of it."""

    def __init__(self, outer: AbstractContextManager[Any], inner: AbstractContextManager[Any]) -> None:
        self._modes = (outer, inner)
        self._stack = ExitStack()

    def __enter__(self) -> None:
        for mode in self._modes:
            self._stack.enter_context(mode)

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def _walk(case: Case, see: Callable[[int, Step], None]) -> bool:
    """Run the program's steps on each call of the input, from its starting state; false if it does not show them."""
    exported, needs_grad = case.program.exported, case.reference.needs_grad_mode
    case.program.start()
    try:
        with torch.inference_mode(mode=False), fixed_rng(case.plan.seed, case.plan.device), quiet():
            for index, call in enumerate(case.trial.calls):
                with torch.set_grad_enabled(needs_grad):
                    with _state_kept(case):
                        mine = call.clone()
                        steps = exported.steps(*mine.args, **mine.kwargs)
                        if steps is None:
                            return False
                        for step in steps:
                            see(index, step)
                    if index + 1 < len(case.trial.calls):
                        mine = call.clone()
                        exported(*mine.args, **mine.kwargs)
    finally:
        if exported.shares_module:
            case.snapshot.restore()
    return True


@contextmanager
def _state_kept(case: Case) -> Iterator[None]:
    """What is done to the program's state inside is undone."""
    exported = case.program.exported
    if exported.shares_module:
        now = Snapshot(case.plan.model)
        yield
        now.restore()
        return
    state = containers.clone(exported.read_state())
    yield
    if state:
        exported.write_state(state)


@dataclass
class _Watched:
    """The program's values as they come, each looked up among eager's."""

    cap: int
    matcher: Matcher
    points: list[Point] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    sketches: dict[tuple[int, int], int] = field(default_factory=dict)
    shared: set[int] = field(default_factory=set)
    _places: dict[tuple[int, str], int] = field(default_factory=dict)

    def see(self, call: int, step: Step) -> None:
        """Take in a step of a call."""
        sources = tuple(dict.fromkeys(self._places[call, name] for name in step.inputs if (call, name) in self._places))
        line = (step.location.file, step.location.line) if step.location is not None else None
        for name, tensor in step.outputs.items():
            place = len(self.points)
            found: list[Value] = []
            score = math.inf
            if tensor.numel() and not tensor.is_meta:
                numbers = sketch(tensor, self.cap)
                self.sketches[tensor.numel(), _hash(numbers)] = place
                found, score = self.matcher.find(tensor.numel(), numbers)
            telling = tells_something(tensor)
            self.shared |= {value.index for value in found}
            state = State.SHARED if found else State.ALONE if telling else State.SILENT
            self.points.append(Point(step.operator, sources, state, step.module, line))
            self.names.append(name)
            self.scores.append(score)
            self._places[call, name] = place

    def side(self, targets: Sequence[int]) -> Side:
        """The program's side of the parting."""
        return Side(self.points, part(self.points, targets), self.names, self.scores)


def _own(eager: _Eager, shared: set[int], differing: Sequence[torch.Tensor]) -> Side:
    """Eager's side of the parting."""
    points = [
        Point(
            value.operator,
            value.sources,
            State.SHARED if value.outside or value.index in shared else State.ALONE if value.telling else State.SILENT,
            value.module,
            value.place,
            value.weak,
        )
        for value in eager.values
    ]
    sketches = {(math.prod(v.shape), _hash(v.numbers.to(torch.float64))): v.index for v in eager.values}
    targets = _targets(sketches, differing, eager.cap)
    return Side(points, part(points, targets), ["" for _ in points], [0.0 for _ in points])


def _targets(sketches: dict[tuple[int, int], int], differing: Sequence[torch.Tensor], cap: int) -> list[int]:
    """The values that are the results which differ."""
    keys = [(tensor.numel(), _hash(sketch(tensor, cap))) for tensor in differing if tensor.numel()]
    return [sketches[key] for key in keys if key in sketches]


def _hash(numbers: torch.Tensor) -> int:
    return hash((numbers.to(torch.float32) + 0.0).cpu().numpy().tobytes())
