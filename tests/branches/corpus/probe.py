"""Who takes which outcome, by machine: a corpus file runs with every condition, loop and except clause rewritten.

Shares nothing with the package's observer, which it judges.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from tests.branches.corpus.case import Call, Case, Kind, Span, Truth, decision_nodes, patterns_of, span_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Key = tuple[Kind, Span]
"""A decision in a file."""

Run = dict[Key, Counter[Any]]
"""The outcomes of the decisions in a run: how often each."""


class Log:
    """What the decisions of a file did since `clear`."""

    def __init__(self) -> None:
        self.taken: dict[Key, list[Any]] = {}

    def clear(self) -> None:
        """Forgets everything."""
        self.taken = {}

    def note(self, key: Key, outcome: Any) -> None:
        """A decision had an outcome."""
        self.taken.setdefault(key, []).append(outcome)

    def condition(self, key: Key, value: Any) -> Any:
        """A leaf of a test, or an operand."""
        self.note(key, bool(value))
        return value

    def number(self, key: Key, value: Any) -> Any:
        """A number taken out of a tensor."""
        self.note(key, repr(value))
        return value

    def loop(self, key: Key, iterable: Iterable[Any]) -> Iterator[Any]:
        """What a `for` runs over."""
        trips = self.taken.setdefault(key, [])
        mine = len(trips)
        trips.append(0)
        for item in iterable:
            trips[mine] += 1
            yield item

    def enter(self, key: Key) -> None:
        """A `while` begins."""
        self.note(key, 0)

    def again(self, key: Key, test: Any) -> bool:
        """The test of a `while`."""
        self.taken[key][-1] += bool(test)
        return bool(test)

    def tried(self, *keys: Key) -> None:
        """A `try` begins: its clauses are not entered so far."""
        for key in keys:
            self.note(key, outcome=False)

    def caught(self, key: Key) -> None:
        """An `except` clause begins."""
        self.taken[key][-1] = True

    def matched(self, values: dict[Key, Any], subject: Any, keys: tuple[tuple[Key, ...], ...]) -> None:
        """A case of a `match` was chosen, or none: `keys` are the patterns of it and of those before it, case by case.

        Of the alternatives of one case (`1 | 2`), which are literals then, the first that is equal is the one.
        """
        *before, chosen = keys
        for group in before:
            for key in group:
                self.note(key, outcome=False)
        for key in chosen:
            hit = len(chosen) == 1 or values[key] == subject
            self.note(key, hit)
            if hit:
                break


class _Rewriter(ast.NodeTransformer):
    """Puts calls of a `Log`, by the name `__log__`, around what decides."""

    def __init__(self, tree: ast.Module, numbers: set[Span]) -> None:
        self.kinds: dict[int, set[Kind]] = {}
        for kind, node, _ in decision_nodes(tree):
            self.kinds.setdefault(id(node), set()).add(kind)
        self.numbers = numbers
        self.whiles = {id(node.test) for node in ast.walk(tree) if isinstance(node, ast.While)}

    def visit(self, node: ast.AST) -> Any:
        kinds = self.kinds.get(id(node), set())
        span = span_of(node) if isinstance(node, ast.expr) else None
        new = super().visit(node)
        if span is None:
            return new
        if span in self.numbers:
            new = _log("number", ("number", span), new)
        if "condition" in kinds:
            new = _log("condition", ("condition", span), new)
        if "loop" in kinds:
            new = _log("again" if id(node) in self.whiles else "loop", ("loop", span), new)
        return new

    def visit_While(self, node: ast.While) -> Any:
        key: Key = ("loop", span_of(node.test))
        return [ast.Expr(_log("enter", key)), self.generic_visit(node)]

    def visit_Try(self, node: ast.Try) -> Any:
        keys: list[Key] = [
            ("exception", span) for one in node.handlers for _, at, span in decision_nodes(one) if at is one
        ]
        self.generic_visit(node)
        for key, handler in zip(keys, node.handlers, strict=True):
            handler.body.insert(0, ast.Expr(_log("caught", key)))
        return [ast.Expr(_log("tried", *keys)), node] if keys else node

    def visit_Match(self, node: ast.Match) -> Any:
        patterns = [patterns_of(case.pattern) for case in node.cases]
        keys = tuple(tuple(("condition", span_of(one)) for one in group) for group in patterns)
        values = ast.Dict(
            [_constant(("condition", span_of(one))) for group in patterns for one in group],
            [
                deepcopy(one.value) if isinstance(one, ast.MatchValue) else ast.Constant(None)
                for group in patterns
                for one in group
            ],
        )
        self.generic_visit(node)
        subject = ast.Name("__subject__", ast.Load())
        if keys[-1]:  # nothing catches the rest
            node.cases.append(ast.match_case(ast.MatchAs(), None, [ast.Pass()]))
            keys = (*keys, ())
        for i, case in enumerate(node.cases):
            log = ast.Attribute(ast.Name("__log__", ast.Load()), "matched", ast.Load())
            arguments = [deepcopy(values), deepcopy(subject), _constant(keys[: i + 1])]
            case.body.insert(0, ast.Expr(ast.Call(log, arguments, [])))
        assign = ast.Assign([ast.Name("__subject__", ast.Store())], node.subject)
        node.subject = deepcopy(subject)
        return [assign, node]


def _constant(value: Any) -> ast.expr:
    """An expression for nested tuples, strings and integers."""
    return ast.parse(repr(_plain(value)), mode="eval").body


def _plain(value: Any) -> Any:
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


def _log(method: str, *arguments: Any) -> ast.Call:
    log = ast.Attribute(ast.Name("__log__", ast.Load()), method, ast.Load())
    return ast.Call(log, [one if isinstance(one, ast.expr) else _constant(one) for one in arguments], [])


@cache
def probed(file: str) -> tuple[dict[str, Case], Log]:
    """The cases of a file by name, made by rewritten code, and the log to which they write."""
    spans = {span for case in _loaded(file) for truth, span in case.spans().items() if truth.kind == "number"}
    tree = ast.parse(Path(file).read_text(encoding="utf-8"), file)
    tree = ast.fix_missing_locations(_Rewriter(tree, spans).visit(tree))
    log = Log()
    module = ModuleType(f"probed_{Path(file).stem}")
    module.__dict__.update(__file__=file, __log__=log)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(tree, file, "exec"), module.__dict__)
    return {case.name: case for case in module.CASES}, log


def _loaded(file: str) -> list[Case]:
    module = next(m for m in list(sys.modules.values()) if getattr(m, "__file__", None) == file)
    return [case for case in module.CASES if case.file == file]


def taken(case: Case, calls: Call | list[Call]) -> Run:
    """The outcomes of the decisions in one run of a sequence of calls on a new module."""
    cases, log = probed(case.file)
    model = cases[case.name].make()
    log.clear()
    with torch.no_grad():
        for args, kwargs in calls if isinstance(calls, list) else [calls]:
            model(*args, **kwargs)
    return {key: Counter(outcomes) for key, outcomes in log.taken.items()}


def takes(
    truth: Truth, span: Span, outcome: str, run: dict[Key, Counter[Any]], example: dict[Key, Counter[Any]]
) -> bool:
    """Whether a run takes an outcome of a decision."""
    seen = set(run.get((truth.kind, span), ()))
    if outcome == "other":
        return bool(seen - set(example.get((truth.kind, span), ())))
    return (outcome == "true") in seen
