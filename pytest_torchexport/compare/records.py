"""Compare what two programs did: outputs, arguments changed in place, state, gradients. Every leaf, not the first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.compare.any_order import in_order_of
from pytest_torchexport.compare.leaf import compare_leaf
from pytest_torchexport.compare.noise import TooChaotic
from pytest_torchexport.compare.opinion import without_measurement
from pytest_torchexport.compare.tree import pair
from pytest_torchexport.outcome import Cause, Leaf
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.state import identical

if TYPE_CHECKING:
    from pytest_torchexport.compare.tolerance import Rules
    from pytest_torchexport.subject.call import Call
    from pytest_torchexport.subject.output import Structure
    from pytest_torchexport.subject.run import Record


@dataclass
class Comparison:
    """All leaf comparisons of one input.

    Attributes:
        leaves: every comparison, agreeing or not.
        left_out: paths of eager's outputs that the backend's calling convention cannot carry.
        unread: names of Python attributes that eager changes and the program does not carry.
        unjudged: why a leaf that differs can be neither passed nor failed.
        ignored: paths of results that the tolerance leaves out.
    """

    leaves: list[Leaf] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    unjudged: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    @property
    def disagreeing(self) -> list[Leaf]:
        """The leaves that differ."""
        return [leaf for leaf in self.leaves if not leaf.agrees]


@dataclass(frozen=True)
class StateView:
    """The two starting states, by name, and which of eager's entries are buffers.

    Attributes:
        eager: eager's state before the calls.
        exported: the loaded program's state before the calls; None if it cannot be read.
        buffers: names in `eager` that are registered buffers.
        complete: the program runs on the user's own module, so that what is not there is lost, not merely unread.
    """

    eager: Mapping[str, Any]
    exported: Mapping[str, Any] | None
    buffers: frozenset[str]
    complete: bool = False


SecondOpinion = Callable[[Leaf, Any, Any, frozenset[str]], Leaf]
"""Looks again at a leaf that differs in its values, given the leaf, eager's value, the exported program's, and the
paths of all leaves of this comparison that will be asked about.

Raises `TooChaotic` where nothing can be said.
"""


def named_leaves(
    record: Record, count: int, start: Mapping[str, Any], names: Callable[[Call], Mapping[str, Any]]
) -> dict[str, Any]:
    """All leaves of a record by the paths that `compare_records` gives them.

    Args:
        record: of a run without an error.
        count: number of calls in the sequence.
        start: the state before the calls, for entries that this run leaves as they were.
        names: a call's arguments by name.
    """
    found: dict[str, Any] = {}
    for index, (output, call) in enumerate(zip(record.outputs, record.arguments, strict=True)):
        found |= containers.leaves(output, _title("output", index, count))
        for name, value in names(call).items():
            title = _title("argument", index, count)
            found |= {f"{title} {path}": leaf for path, leaf in containers.leaves(value, name)}
    found |= {f"state {name}": value for name, value in {**start, **record.state}.items()}
    return found | record.gradients


def _title(what: str, index: int, count: int) -> str:
    return what if count == 1 else f"call {index + 1} {what}"


def compare_records(
    expected: Record,
    actual: Record,
    calls: tuple[Call, ...],
    *,
    structure: Structure,
    states: StateView,
    names: Callable[[Call], Mapping[str, Any]],
    rules: Rules,
    gradients: frozenset[str] | None = None,
    second_opinion: SecondOpinion | None = None,
) -> Comparison:
    """Compare an exported program's record with eager's on the same calls.

    Args:
        expected: eager's record.
        actual: the exported program's, without an error.
        calls: the calls as they were before they ran.
        structure: what the program's outputs keep of eager's structure.
        states: the two starting states.
        names: a call's arguments by name.
        rules: the tolerance of each result.
        gradients: names of the gradients to compare; None compares all.
        second_opinion: asked about each leaf whose values differ by more than surely is rounding; without one, the
            bound for values whose noise cannot be measured decides.
    """
    comparison = Comparison()
    questions: list[_Question] = []
    for index, (ours, theirs) in enumerate(zip(expected.outputs, actual.outputs, strict=True)):
        pairs = pair(ours, theirs, structure, _title("output", index, len(calls)))
        comparison.leaves += pairs.problems
        comparison.left_out += pairs.left_out
        questions += [_Question(*paired) for paired in pairs.leaves]
    for index, before in enumerate(calls):
        prefix = _title("argument", index, len(calls))
        questions += _arguments(prefix, names(before), names(expected.arguments[index]), names(actual.arguments[index]))
    questions += _states(comparison, expected, actual, states)
    questions += _gradients(expected, actual, gradients)
    paths = [*(leaf.path for leaf in comparison.leaves), *(asked.path for asked in questions)]
    comparison.ignored = [path for path in paths if rules.of_result(path).compare == "ignore"]
    comparison.leaves = [leaf for leaf in comparison.leaves if leaf.path not in comparison.ignored]
    questions = _in_any_order([asked for asked in questions if asked.path not in comparison.ignored], rules)
    found = [
        compare_leaf(asked.path, asked.ours, asked.theirs, rules.of_result(asked.path), structure)
        for asked in questions
    ]
    if second_opinion is None:
        found = [without_measurement(leaf) for leaf in found]
    else:
        found = _looked_at_again(comparison, questions, found, rules, second_opinion)
    comparison.leaves += [asked.told(leaf) for asked, leaf in zip(questions, found, strict=True)]
    return comparison


@dataclass(frozen=True)
class _Question:
    """Two leaves to be compared, and what it means if they differ where only one program changed something."""

    path: str
    ours: Any
    theirs: Any
    lost: Cause | None = None
    who: str = ""

    def told(self, leaf: Leaf) -> Leaf:
        """The comparison's result, with that meaning."""
        if leaf.agrees or self.lost is None:
            return leaf
        return dataclasses.replace(leaf, cause=self.lost, reason=self.who)


def _in_any_order(questions: list[_Question], rules: Rules) -> list[_Question]:
    """The questions, with the program's results in eager's order where the tolerance says that it means nothing."""
    ours, theirs = ({asked.path: getattr(asked, side) for asked in questions} for side in ("ours", "theirs"))
    moved = in_eagers_order(ours, theirs, rules)
    return [dataclasses.replace(asked, theirs=moved.get(asked.path, asked.theirs)) for asked in questions]


def in_eagers_order(ours: Mapping[str, Any], theirs: Mapping[str, Any], rules: Rules) -> dict[str, Any]:
    """The results whose order means nothing by the rules, in the order of eager's.

    Those of one call that have as many entries along the first dimension are moved together.

    Args:
        ours: eager's leaves by path.
        theirs: the leaves of another run, or of the program.
        rules: the tolerance of each result.
    """
    groups: dict[Any, list[str]] = {}
    for path, mine in ours.items():
        rule, other = rules.of_result(path), theirs.get(path)
        if rule.compare != "set" or not isinstance(mine, torch.Tensor) or not isinstance(other, torch.Tensor):
            continue
        if mine.shape == other.shape and -mine.dim() <= rule.dim < mine.dim():
            call = path.partition("output")[0]
            together = rule.dim == 0 and path.startswith(f"{call}output")
            groups.setdefault((call, len(mine)) if together else path, []).append(path)
    moved: dict[str, Any] = {}
    for paths in groups.values():
        dim = rules.of_result(paths[0]).dim
        ordered = in_order_of([ours[path] for path in paths], [theirs[path] for path in paths], dim)
        moved |= zip(paths, ordered, strict=True)
    return moved


def _looked_at_again(
    comparison: Comparison,
    questions: list[_Question],
    found: list[Leaf],
    rules: Rules,
    second_opinion: SecondOpinion,
) -> list[Leaf]:
    """The results, those that differ in their values after a second opinion; not where the user's bounds judge.

    Such bounds are for floating values: what follows from these, indices and flags, is judged as everywhere.
    """
    differing = [leaf for leaf in found if leaf.cause in (Cause.NUMERIC, Cause.SPECIAL_VALUE)]
    disputed = frozenset(
        leaf.path for leaf in differing if leaf.rule == "exact" or not rules.of_result(leaf.path).fixed
    )

    def again(asked: _Question, leaf: Leaf) -> Leaf:
        if leaf.path not in disputed:
            return leaf
        try:
            return second_opinion(leaf, asked.ours, asked.theirs, disputed)
        except TooChaotic as chaos:
            comparison.unjudged.append(str(chaos))
            return dataclasses.replace(leaf, agrees=True, cause=None, reason=str(chaos))

    return [again(asked, leaf) for asked, leaf in zip(questions, found, strict=True)]


def _arguments(
    prefix: str, before: Mapping[str, Any], ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> Iterator[_Question]:
    """The arguments that eager or the program changed in place; the others need no mention."""
    for name in before:
        start = dict(containers.leaves(before[name], name))
        one, other = dict(containers.leaves(ours[name], name)), dict(containers.leaves(theirs[name], name))
        for path in dict.fromkeys([*one, *other]):
            by_eager, by_program = _changed(path, start, one), _changed(path, start, other)
            if not (by_eager or by_program):
                continue
            lost, who = None, ""
            if by_eager != by_program:
                lost, who = Cause.LOST_MUTATION, "eager changes it in place, the exported program does not"
            if by_program and not by_eager:
                who = "the exported program changes it in place, eager does not"
            yield _Question(f"{prefix} {path}", one.get(path), other.get(path), lost, who)


def _changed(path: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a leaf came, went or has another value."""
    if (path in before) != (path in after):
        return True
    return path in before and not identical(before[path], after[path])


def _states(comparison: Comparison, expected: Record, actual: Record, states: StateView) -> Iterator[_Question]:
    """The entries that either changed; those that the program does not have are noted in the comparison."""
    if states.exported is None:
        comparison.unread += list(expected.state)
        return
    for name in dict.fromkeys([*expected.state, *actual.state]):
        path = f"state {name}"
        ours = expected.state.get(name, states.eager.get(name))
        if name not in states.exported and name not in actual.state:
            if name in states.buffers or states.complete:
                comparison.leaves.append(_lost_entry(path, ours))
            else:
                comparison.unread.append(name)
            continue
        if name not in states.eager and name not in expected.state:
            continue
        theirs = actual.state.get(name, states.exported.get(name))
        lost, who = None, ""
        if (name in expected.state) != (name in actual.state):
            lost, who = Cause.LOST_STATE, "eager changes it, the exported program does not"
        if name not in expected.state:
            who = "the exported program changes it, eager does not"
        yield _Question(path, ours, theirs, lost, who)


def _lost_entry(path: str, ours: Any) -> Leaf:
    reason = "eager changes it, the exported program does not carry it"
    shown = containers.describe(ours)
    return Leaf(path, agrees=False, cause=Cause.LOST_STATE, reason=reason, expected=shown, actual="not there")


def _gradients(expected: Record, actual: Record, wanted: frozenset[str] | None) -> Iterator[_Question]:
    """Gradients by name; one that is left out counts as zero, as autograd users take it."""
    ours = {name: grad for name, grad in expected.gradients.items() if wanted is None or name in wanted}
    for name in dict.fromkeys([*ours, *actual.gradients]):
        some = ours[name] if name in ours else actual.gradients[name]
        zero = some.new_zeros(some.shape)
        yield _Question(name, ours.get(name, zero), actual.gradients.get(name, zero))
