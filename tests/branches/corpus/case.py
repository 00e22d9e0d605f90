"""The format of a case of the corpus: a module with branches, its example call, and the truth about each outcome.

A corpus file reads, case by case:

    class Gate(nn.Module): ...              # all code of the case, helpers included

    CASES.append(
        Case(
            "gate",
            make=lambda: seeded(Gate),
            args=lambda: (normal(2, 8),),
            decisions=[Truth("x.mean() > 0.5", true=lambda: call(normal(2, 8, shift=1.0)), false=EXAMPLE)],
            wrong={"trace": "x.mean() > 0.5"},
            right=("script", "compile"),
        )
    )

The code of a case is what stands between the statement of the case before it and its own. A condition is found there by
its source text, so code that several cases share, at the top of a file, must hold no condition that depends on the
input. What is not listed in `decisions` is claimed to go one way for every input.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one call; `call` makes one."""

Kind = Literal["condition", "loop", "number", "exception"]


class _Example:
    """The example call takes this outcome."""

    def __repr__(self) -> str:
        return "EXAMPLE"


EXAMPLE = _Example()


@dataclass(frozen=True)
class Infeasible:
    """No input takes this outcome, and why."""

    why: str


Witness = Callable[[], Call | list[Call]] | _Example | Infeasible
"""Who takes an outcome: the example, no input, or the call (or sequence of calls to one module) that this makes."""


class Span(NamedTuple):
    """Where an expression stands, as `ast` counts: lines from 1, UTF-8 columns from 0."""

    line: int
    column: int
    end_line: int
    end_column: int


@dataclass(frozen=True)
class Truth:
    """One decision and who takes each of its outcomes.

    Attributes:
        condition: source text, on one line, of
            - condition: the leaf of a test (operand of and/or, what is under a `not`, a whole chained comparison), or
              the literal, value or class pattern of a `match` case;
            - loop: the iterable of a `for` (statement or comprehension), or the whole test of a `while`;
            - number: the expression that takes a number out of a tensor (`scale.item()`, `int(x.sum())`);
            - exception: `except` with its type expression (`except RuntimeError`).
        kind: what kind of decision.
        nth: which occurrence of that text as that kind, from 0, in the order of the case's code.
        true, false: who makes the condition true, false (conditions), who enters the clause and who does not
            (exceptions).
        other: who makes the loop run another number of times, the number have another value, than the example.
    """

    condition: str
    kind: Kind = "condition"
    nth: int = 0
    true: Witness | None = None
    false: Witness | None = None
    other: Witness | None = None

    def __post_init__(self) -> None:
        names = {"true", "false"} if self.kind in {"condition", "exception"} else {"other"}
        if set(self.outcomes) != names:
            msg = f"{self.condition!r} is a {self.kind}: say who takes {sorted(names)}, and nothing else"
            raise ValueError(msg)

    @property
    def outcomes(self) -> dict[str, Witness]:
        """Outcome (`true`, `false`, `other`) and who takes it."""
        said = {"true": self.true, "false": self.false, "other": self.other}
        return {name: witness for name, witness in said.items() if witness is not None}

    @property
    def reachable(self) -> tuple[str, ...]:
        """The outcomes that an input takes, that of the example included."""
        return tuple(name for name, witness in self.outcomes.items() if not isinstance(witness, Infeasible))


@dataclass(frozen=True)
class Case:
    """A module with branches, and the truth about it.

    Attributes:
        name: unique in the corpus.
        make: a new module (seeded, in eval mode) or a function.
        args: positional arguments of the example call.
        decisions: every decision of the code that depends on the input. A number only where it matters by itself (a
            scale, a size), not where it only feeds a condition.
        kwargs: keyword arguments of the example call.
        options: further keywords for `pytest_torchexport.check`: `inputs`, `dynamic_shapes`, `calls`, `extra_inputs`.
        effort: `hard` where a good search may fail within its default budget; everything else must be found.
        wrong: for a backend the condition because of which its program is wrong on some input, or `refused`.
        right: backends that are right on every input of the domain.
    """

    name: str
    make: Callable[[], Callable[..., Any]]
    args: Callable[[], tuple[Any, ...]]
    decisions: Sequence[Truth]
    kwargs: Callable[[], dict[str, Any]] = dict
    options: Mapping[str, Any] = field(default_factory=dict)
    effort: Literal["easy", "hard"] = "easy"
    wrong: Mapping[str, str] = field(default_factory=dict)
    right: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Case({self.name!r})"

    @property
    def example(self) -> Call:
        """The example call, made anew."""
        return self.args(), self.kwargs()

    @property
    def file(self) -> str:
        """The file in which the case stands."""
        return inspect.getsourcefile(self.make) or ""

    def spans(self) -> dict[Truth, Span]:
        """Where each decision stands in `file`."""
        found = leaves(self.file, self.name)
        result = {}
        for truth in self.decisions:
            places = [span for kind, text, span in found if (kind, text) == (truth.kind, truth.condition)]
            if truth.kind == "number":
                places = numbers(self.file, self.name, truth.condition)
            if len(places) <= truth.nth:
                msg = f"{self.name}: no {truth.kind} number {truth.nth} {truth.condition!r} in its code"
                raise LookupError(msg)
            result[truth] = places[truth.nth]
        return result


def call(*args: Any, **kwargs: Any) -> Call:
    """One call with these arguments."""
    return args, kwargs


def normal(*shape: int, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    """A float32 tensor of normal numbers, the same for the same arguments."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale + shift


def uniform(*shape: int, seed: int = 0, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    """A float32 tensor of uniform numbers, the same for the same arguments."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * (high - low) + low


def seeded(make: Callable[..., nn.Module], *args: Any, seed: int = 0, **kwargs: Any) -> nn.Module:
    """A module in eval mode whose weights are drawn from the seed; the global RNG stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(*args, **kwargs).eval()


@cache
def code(file: str, name: str) -> tuple[ast.stmt, ...]:
    """The statements that are the code of a case: those between the case before it and its own."""
    mine: list[ast.stmt] = []
    for statement in _parsed(file).body:
        names = _names(statement)
        if name in names:
            return tuple(mine)
        mine = [] if names else [*mine, statement]
    msg = f"no case {name!r} in {file}"
    raise LookupError(msg)


@cache
def leaves(file: str, name: str) -> tuple[tuple[Kind, str, Span], ...]:
    """Kind, text and position of all conditions, loops and except clauses in the code of a case, in its order."""
    found = {(span, kind) for top in code(file, name) for kind, _, span in decision_nodes(top)}
    return tuple((kind, text_at(file, span), span) for span, kind in sorted(found))


@cache
def numbers(file: str, name: str, text: str) -> list[Span]:
    """Positions of the expressions with this text in the code of a case, in its order."""
    spans = {span_of(node) for top in code(file, name) for node in ast.walk(top) if isinstance(node, ast.expr)}
    return sorted(span for span in spans if text_at(file, span) == text)


def decision_nodes(tree: ast.AST) -> Iterator[tuple[Kind, ast.AST, Span]]:
    """Kind, node and position of the conditions, loops and except clauses in a tree; a node may come twice."""
    for node in ast.walk(tree):
        for leaf in _deciding(node):
            yield "condition", leaf, span_of(leaf)
        match node:
            case ast.While(test=loop) | ast.For(iter=loop) | ast.comprehension(iter=loop):
                yield "loop", loop, span_of(loop)
            case ast.ExceptHandler(type=None):
                yield "exception", node, Span(*(start := (node.lineno, node.col_offset)), start[0], start[1] + 6)
            case ast.ExceptHandler(type=ast.expr() as kind):
                yield "exception", node, Span(node.lineno, node.col_offset, *span_of(kind)[2:])


def _deciding(node: ast.AST) -> Sequence[ast.expr | ast.pattern]:
    """The conditions that belong to a node."""
    match node:
        case ast.If(test=test) | ast.IfExp(test=test) | ast.Assert(test=test) | ast.While(test=test):
            return leaves_of(test)
        case ast.UnaryOp(op=ast.Not(), operand=test):
            return leaves_of(test)
        case ast.comprehension(ifs=tests):
            return [leaf for test in tests for leaf in leaves_of(test)]
        case ast.BoolOp(values=[*tests, _]):
            return [leaf for test in tests for leaf in leaves_of(test)]
        case ast.match_case(pattern=pattern, guard=guard):
            return [*patterns_of(pattern), *(leaves_of(guard) if guard else ())]
    return ()


def leaves_of(test: ast.expr) -> list[ast.expr]:
    """A test without its and, or and not."""
    match test:
        case ast.BoolOp(values=values):
            return [leaf for value in values for leaf in leaves_of(value)]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return leaves_of(operand)
    return [] if isinstance(test, ast.Constant) else [test]


def patterns_of(pattern: ast.pattern) -> list[ast.pattern]:
    """The literal, value and class patterns of a case; wildcards and names match always and are none."""
    match pattern:
        case ast.MatchOr(patterns=patterns):
            return [leaf for one in patterns for leaf in patterns_of(one)]
        case ast.MatchAs(pattern=inner):
            return patterns_of(inner) if inner else []
    return [pattern]


def span_of(node: ast.expr | ast.pattern) -> Span:
    """Where a node stands."""
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return Span(node.lineno, node.col_offset, node.end_lineno, node.end_col_offset)


def text_at(file: str, span: Span) -> str:
    """The source text at a position."""
    lines = _text(file).splitlines()[span.line - 1 : span.end_line]
    lines[-1] = lines[-1].encode()[: span.end_column].decode()
    lines[0] = lines[0].encode()[span.column :].decode()
    return "\n".join(lines)


@cache
def _text(file: str) -> str:
    return Path(file).read_text(encoding="utf-8")


@cache
def _parsed(file: str) -> ast.Module:
    return ast.parse(_text(file), file)


def _names(statement: ast.stmt) -> set[str]:
    """The names of the cases that a statement makes."""
    return {
        node.args[0].value
        for node in ast.walk(statement)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Case"
        if node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)
    }
