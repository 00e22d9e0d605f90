"""What a check found: `Outcome` and its words, as data and as a plain dict. Standard library only.

The words (`Verdict`, `Stage`, `Cause`) are the same in code, messages, JSON and docs.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

from pytest_torchexport.measured import Performance

SCHEMA = 1
"""Number of the plain-dict form; raised when a key changes its meaning or goes away."""


class Verdict(StrEnum):
    """What a check concluded."""

    EQUIVALENT = "equivalent"
    MISMATCH = "mismatch"
    REFUSED = "refused"
    FAILED = "failed"
    OVER_BUDGET = "over-budget"
    INCONCLUSIVE = "inconclusive"
    SKIPPED = "skipped"
    INVALID = "invalid"


class Stage(StrEnum):
    """Where a check stands; recorded before the stage starts, so that a crash has a stage."""

    REFERENCE = "reference"
    EXPORT = "export"
    SAVE = "save"
    LOAD = "load"
    RUN = "run"
    COMPARE = "compare"
    LATENCY = "latency"


class Cause(StrEnum):
    """Why an exported program is not equivalent."""

    BAKED_BRANCH = "baked branch"
    BAKED_VALUE = "baked value"
    BAKED_SHAPE = "baked shape"
    LOST_STATE = "lost state"
    LOST_MUTATION = "lost mutation"
    STRUCTURE = "structure"
    DTYPE = "dtype"
    SHAPE = "shape"
    SPECIAL_VALUE = "special value"
    NUMERIC = "numeric"
    EXCEPTION = "exception"


FAILING = frozenset({Verdict.MISMATCH, Verdict.REFUSED, Verdict.FAILED, Verdict.OVER_BUDGET, Verdict.INVALID})
"""Verdicts that fail a test."""


@dataclass(frozen=True, slots=True)
class Location:
    """A line of the user's code: absolute path, 1-based line, the line's text without indentation."""

    file: str
    line: int
    source: str = ""

    def __str__(self) -> str:
        """`file:line`, the form that editors and terminals turn into a link."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Evidence:
    """One fact that supports the cause, with the user's line where there is one."""

    text: str
    location: Location | None = None


@dataclass(frozen=True, slots=True)
class NotChecked:
    """One entry of the not-checked ledger: what was not checked, and why."""

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class BranchOutcome:
    """One way that a decision can go: `true`, `false`, `matched`, `3`, `another value`.

    `reached_by` is `example`, `extra`, `remembered`, `generation` or `search`, and empty where no input was found; then
    `tried` says what was tried. `input` is the label of the first input that took it.
    """

    outcome: str
    reached_by: str = ""
    input: str = ""
    tried: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """A place in the user's code where control flow, or a number, depends on the input.

    `kind` is `condition`, `loop`, `number` or `exception`; `condition` its source text. A decision that an exclusion
    comment takes out of the count is `excluded`.
    """

    kind: str
    condition: str
    location: Location
    outcomes: tuple[BranchOutcome, ...]
    excluded: bool = False


@dataclass(frozen=True)
class BranchCoverage:
    """Which outcomes of the decisions in the user's code the inputs of a check took.

    Attributes:
        mode: `search` or `observe`.
        decisions: every decision that was seen to depend on the input, by position.
        eager_runs: what the search cost, in runs of the eager module.
    """

    mode: str
    decisions: tuple[Decision, ...] = ()
    eager_runs: int = 0

    def _counted(self) -> list[BranchOutcome]:
        return [one for decision in self.decisions if not decision.excluded for one in decision.outcomes]

    @property
    def known(self) -> int:
        """Number of outcomes that exist, as far as is known; excluded decisions do not count."""
        return len(self._counted())

    @property
    def reached(self) -> int:
        """Number of outcomes that an input of this check took."""
        return sum(bool(one.reached_by) for one in self._counted())

    @property
    def ratio(self) -> float:
        """Reached / known; 1.0 where there is no decision."""
        return self.reached / self.known if self.known else 1.0

    def by_kind(self) -> dict[str, int]:
        """Number of outcomes by the kind of input that reached them first (`example`, `generation`, `search`...)."""
        counts: dict[str, int] = {}
        for one in self._counted():
            if one.reached_by:
                counts[one.reached_by] = counts.get(one.reached_by, 0) + 1
        return counts

    @property
    def unreached(self) -> list[tuple[Decision, BranchOutcome]]:
        """The outcomes that no input took."""
        return [(d, one) for d in self.decisions if not d.excluded for one in d.outcomes if not one.reached_by]


@dataclass(frozen=True, slots=True)
class Leaf:
    """The comparison of one leaf: an output, an argument, a state entry or a gradient.

    `path` names it as Python would (`output['logits'][0]`, `argument x`, `state bn.running_mean`,
    `gradient of x`). `max_abs` is the largest deviation from eager, in the unit of the value, and `max_rel` the largest
    one relative to eager's value; `allowed` is the largest error that the rule admits at the worst element, whose index
    is `index`.

    `rule` says by what the values were judged: `exact`, `calibrated` (the measured rounding noise), `set: rtol=...`,
    `assert_close` (its defaults, where no noise could be measured), `as a set`, `ignored`. Under the calibrated rule
    `score` is the worst element's error as a multiple of the noise there and `limit` what it was held against; `noise`,
    `exported_error` and `eager_error` are the noise and both errors there in the unit of the value, the errors against
    the float64 reference, whose value is `reference` (empty without one); `draws` counts the jittered runs behind it.
    `assert_close` says whether the defaults of `torch.testing.assert_close` accept the values, and `least_atol` is the
    smallest atol that would beside its rtol. `where` says in words which elements differ.
    """

    path: str
    agrees: bool
    cause: Cause | None = None
    reason: str = ""
    dtype: str = ""
    shape: tuple[int, ...] = ()
    elements: int = 0
    mismatched: int = 0
    max_abs: float = 0.0
    max_rel: float = 0.0
    allowed: float = 0.0
    index: tuple[int, ...] = ()
    expected: str = ""
    actual: str = ""
    rule: str = ""
    score: float = 0.0
    limit: float = 0.0
    noise: float = 0.0
    exported_error: float = 0.0
    eager_error: float = 0.0
    reference: str = ""
    draws: int = 0
    assert_close: bool | None = None
    least_atol: float = 0.0
    where: str = ""

    @property
    def excess(self) -> float:
        """How far beyond the tolerance, as a multiple of it; infinite for a leaf that differs in kind."""
        if not self.agrees and (self.cause is not Cause.NUMERIC or math.isnan(self.max_abs)):
            return math.inf
        if self.limit:
            return self.score / self.limit
        if not self.allowed:
            return 0.0 if self.agrees else math.inf
        return self.max_abs / self.allowed


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where the exported program and eager part first, given equal values up to there.

    Attributes:
        module: the submodule in eager (`layer1.0.bn1`); empty for the model's own forward.
        operator: the exported program's operator, as its format spells it (`aten.mul.Tensor`, `Gemm`, `aten::relu`).
        eager: eager's operator; empty where none could be named.
        name: what the exported program calls the value.
        location: the user's line.
        score: how far the operator's result is from eager's, as a multiple of the rounding noise of that value.
        inputs_score: the same for the values that it is computed from.
        group: the exported program's operators that stand between the last agreeing values and this one and have no
            counterpart in eager: the program computes them in another way, and the fault may be in any of them.
        note: what could not be said, and why.
    """

    module: str = ""
    operator: str = ""
    eager: str = ""
    name: str = ""
    location: Location | None = None
    score: float = 0.0
    inputs_score: float = 0.0
    group: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Input:
    """One input that was run: its kind, label, calls and result.

    The kind is `example`, `extra`, `remembered`, `special`, `random` or `branch` (found by the search).
    """

    kind: str
    label: str
    calls: int = 1
    agrees: bool = True


@dataclass(frozen=True)
class Outcome:
    """The result of one check of one model on one backend and device.

    Attributes:
        verdict: what was concluded.
        stage: the last stage that was entered.
        cause: why it is not equivalent; None for a pass, and for `refused`, `skipped` and `invalid`.
        message: the whole explanation, for a person; its first line stands alone.
        location: the user's line that explains the verdict, where there is one.
        evidence: the facts behind the cause.
        worst: the leaf with the largest error, in a pass too; None if nothing was compared.
        leaves: every leaf that disagreed, over all inputs (at most a few per input are kept).
        compared: number of leaf comparisons that were made, over all inputs.
        inputs: every input that was run and compared, in order.
        dropped: number of generated inputs that eager rejects or `assume` excludes, by kind and reason.
        failing_input: arguments of the simplest input that fails, in one line.
        paste: that input as an argument of the check, `extra_inputs=[...]`; None where it is the user's own, or its
            values are too many to be written down.
        not_checked: the ledger of what this verdict does not cover.
        branches: which branches of the user's code the inputs took; None where they were not observed.
        divergence: the first layer at which the two part; None where it was not looked for or not found.
        reproduction: the script that shows the failure without the test suite; None where none was written.
        performance: speed, cold start and memory; None where they were not measured.
        durations: seconds by stage.
        details: facts of the backend (graphs, graph breaks, provider, opset, warnings...).
        environment: versions and numerics flags of both sides.
    """

    verdict: Verdict
    stage: Stage
    backend: str
    device: str
    message: str
    model: str = ""
    dtype: str | None = None
    test: str | None = None
    seed: int = 0
    cause: Cause | None = None
    location: Location | None = None
    evidence: tuple[Evidence, ...] = ()
    worst: Leaf | None = None
    leaves: tuple[Leaf, ...] = ()
    compared: int = 0
    inputs: tuple[Input, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)
    failing_input: str | None = None
    paste: str | None = None
    not_checked: tuple[NotChecked, ...] = ()
    tolerance: str = ""
    branches: BranchCoverage | None = None
    divergence: Divergence | None = None
    reproduction: str | None = None
    performance: Performance | None = None
    durations: dict[str, float] = field(default_factory=dict)
    artifact: str | None = None
    artifact_bytes: int | None = None
    kept_in: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first line of the message."""
        return self.message.split("\n", 1)[0]

    @property
    def failed(self) -> bool:
        """Whether a test with this outcome fails."""
        return self.verdict in FAILING

    def inputs_by_kind(self) -> dict[str, int]:
        """Number of inputs that were run, by kind."""
        counts: dict[str, int] = {}
        for tried in self.inputs:
            counts[tried.kind] = counts.get(tried.kind, 0) + 1
        return counts

    def to_dict(self) -> dict[str, Any]:
        """The outcome as JSON-ready data: dicts, lists, strings, numbers, booleans and None.

        A number that JSON cannot hold (NaN, an infinity) is written as the string `"nan"`, `"inf"` or `"-inf"`.
        """
        plain: dict[str, Any] = _plain(asdict(self))
        plain["schema"] = SCHEMA
        plain["inputs_by_kind"] = self.inputs_by_kind()
        if self.branches is not None:
            plain["branches"] |= {
                "known": self.branches.known,
                "reached": self.branches.reached,
                "by_kind": self.branches.by_kind(),
            }
        return plain

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Outcome:
        """The outcome that `to_dict` wrote.

        Raises:
            ValueError: the data has another schema number.
        """
        if data.get("schema") != SCHEMA:
            msg = f"outcome has schema {data.get('schema')!r}, this version reads schema {SCHEMA}"
            raise ValueError(msg)
        # Keys that are not ours are left alone: a later version adds some without raising the schema number.
        known = {one.name for one in fields(cls)}
        values = {key: value for key, value in data.items() if key in known}
        values["verdict"] = Verdict(values["verdict"])
        values["stage"] = Stage(values["stage"])
        values["cause"] = _cause(values["cause"])
        values["location"] = _location(values["location"])
        values["evidence"] = tuple(Evidence(e["text"], _location(e["location"])) for e in values["evidence"])
        values["worst"] = _leaf(values["worst"]) if values["worst"] else None
        values["leaves"] = tuple(_leaf(leaf) for leaf in values["leaves"])
        values["inputs"] = tuple(Input(**tried) for tried in values["inputs"])
        values["branches"] = _branches(values["branches"]) if values.get("branches") else None
        values["divergence"] = _divergence(values["divergence"]) if values.get("divergence") else None
        values["performance"] = Performance.from_dict(values["performance"]) if values.get("performance") else None
        values["not_checked"] = tuple(NotChecked(**entry) for entry in values["not_checked"])
        return cls(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, StrEnum):
        return value.value
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def _cause(value: str | None) -> Cause | None:
    return None if value is None else Cause(value)


def _location(value: dict[str, Any] | None) -> Location | None:
    return None if value is None else Location(**value)


def _branches(value: dict[str, Any]) -> BranchCoverage:
    decisions = [
        Decision(
            one["kind"],
            one["condition"],
            Location(**one["location"]),
            tuple(BranchOutcome(**outcome) for outcome in one["outcomes"]),
            one["excluded"],
        )
        for one in value["decisions"]
    ]
    return BranchCoverage(value["mode"], tuple(decisions), value["eager_runs"])


def _divergence(value: dict[str, Any]) -> Divergence:
    numbers = {key: float(value[key]) for key in ("score", "inputs_score")}
    return Divergence(**{**value, **numbers, "location": _location(value["location"]), "group": tuple(value["group"])})


_NUMBERS = ("max_abs", "max_rel", "allowed", "score", "limit", "noise", "exported_error", "eager_error", "least_atol")


def _leaf(value: dict[str, Any]) -> Leaf:
    numbers = {key: float(value[key]) for key in _NUMBERS if key in value}
    tuples = {key: tuple(value[key]) for key in ("shape", "index")}
    return Leaf(**{**value, **numbers, **tuples, "cause": _cause(value["cause"])})
