"""What the positions of bytecode instructions mean: the decisions of a file, by where their code says it comes from."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_torchexport.branches.sites import (
    FunctionNode,
    LoopNode,
    Position,
    Site,
    Source,
    decisions_of,
    is_constant,
    leaves_of,
    position_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_COMPREHENSIONS: dict[type[ast.expr], str] = {
    ast.ListComp: "<listcomp>",
    ast.SetComp: "<setcomp>",
    ast.DictComp: "<dictcomp>",
    ast.GeneratorExp: "<genexpr>",
}


@dataclass(frozen=True, slots=True)
class Tested:
    """What the truth of a value, or its being None, says about a condition."""

    site: Site
    inverted: bool = False
    chained: bool = False
    """It is a comparison of several parts, each of which can make it false."""
    negative: bool | None = None
    """For `is` and `in`: whether it is `is not` or `not in` at this position of the source."""
    if_none: bool | None = None
    """The outcome if the value is None, where that is what is asked."""


@dataclass(frozen=True, eq=False, slots=True)
class Loop:
    """A loop, and how to see from positions what it does."""

    site: Site
    owner: tuple[str, int]
    """Name and first line of the function (or module, class, ...) that it is written in."""
    span: Position
    without: tuple[Position, ...]
    """Parts of the span that run before or after the loop: its iterable, its `else`."""
    first: tuple[int, int]
    """Where an iteration begins: the target of a `for`, the body of a `while`."""
    leaves_early: bool
    """It can end otherwise than by its test or iterable, by a return or by an exception that leaves the function."""
    iterates: bool = True
    """It is a `for` that is not asynchronous."""
    by_arrival: bool = False
    """No jump tells of an iteration, only that execution comes to its beginning: `while True`, `async for`."""
    truths: Mapping[tuple[Site, bool], bool] = field(default_factory=dict)
    """For a `while`: what the outcome of a leaf means for the whole test, where it settles it."""

    def holds(self, position: Position) -> bool:
        """Whether code at the position runs as part of an iteration."""
        return _within(position, self.span) and not any(_within(position, part) for part in self.without)

    def is_over(self, position: Position) -> bool:
        """Whether the position is that of the iterable: the instruction there that ends an `async for`."""
        return position == (self.site.line, self.site.column, self.site.end_line, self.site.end_column)


class Decisions:
    """The decisions of one file, to be found by position."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.loops: list[Loop] = []
        self._scopes: set[tuple[str, int]] = set()
        self._tested: dict[Position, Tested] = {}
        self._nones: dict[Position, Tested] = {}
        self._none_names: dict[tuple[str, int], dict[Position, Tested]] = {}
        self._firsts: dict[Position, tuple[str, Tested]] = {}
        self._ends: dict[tuple[type, int, int], Tested] = {}
        self._handlers: dict[Position, Site] = {}
        self._bare: set[Position] = set()
        self._targets: dict[tuple[int, int], Loop] = {}
        self._index()

    def tested(self, position: Position, opname: str = "") -> Tested | None:
        """What the truth of the value that an instruction at this position computes says about a condition."""
        exact = self._tested.get(position)
        if exact is not None:
            return exact
        node = ast.Call if opname.startswith(("CALL", "PRECALL")) else ast.Attribute if "LOAD_ATTR" in opname else None
        shifted = self._ends.get((node, *position[2:])) if node is not None else None
        return shifted if shifted is not None and position[:2] >= (shifted.site.line, shifted.site.column) else None

    def tested_none(self, position: Position) -> Tested | None:
        """The same for a value that is compared with None."""
        found = self._nones.get(position)
        if found is None:
            found = self._tested.get(position)
        return found if found is not None and found.if_none is not None else None

    def tested_none_by_name(self, name: str, line: int, position: Position | None) -> Tested | None:
        """The same for a name in that line, where all there is is the position of the jump, which may be another's."""
        there = self._none_names.get((name, line), {})
        if len(there) == 1:
            return next(iter(there.values()))
        return there.get(position) if position is not None else None

    def tested_first(self, position: Position, name: str) -> Tested | None:
        """The first leaf of the `and` or `or` at this position, if it is this name."""
        known, tested = self._firsts.get(position, ("", None))
        return tested if known == name else None

    def loop_into(self, position: Position) -> Loop | None:
        """The `for` whose target starts where this position does."""
        return self._targets.get(position[:2])

    def caught_at(self, position: Position) -> Site | None:
        """The `except` clause that is at exactly this position."""
        return self._handlers.get(position)

    def is_bare(self, position: Position) -> bool:
        """Whether the clause at this position catches everything."""
        return position in self._bare

    def defines(self, name: str, line: int) -> bool:
        """Whether a function, class, comprehension or module of that name starts in that line of the text."""
        return name == "<module>" or (name, line) in self._scopes

    def _index(self) -> None:
        """Walk the tree once, functions before what is in them."""
        todo: list[tuple[ast.AST, tuple[str, int], bool]] = [(self.source.tree, ("<module>", 0), False)]
        derived: list[tuple[dict[Position, Tested], ast.AST, Tested]] = []
        while todo:
            node, owner, guarded = todo.pop()
            scope = _scope(node)
            if scope is not None:
                self._scopes.add(scope)
                if not isinstance(node, tuple(_COMPREHENSIONS)):
                    owner, guarded = scope, False
            derived.extend(self._add_conditions(node))
            self._add_loops(node, owner, guarded=guarded)
            self._add_clause(node)
            guarded = guarded or isinstance(node, ast.Try | ast.TryStar | ast.With | ast.AsyncWith)
            todo.extend((child, owner, guarded) for child in ast.iter_child_nodes(node))
        for table, part, tested in derived:
            table.setdefault(position_of(part), tested)

    def _add_conditions(self, node: ast.AST) -> Iterator[tuple[dict[Position, Tested], ast.AST, Tested]]:
        """Register what a node asks for; yields what holds unless the positions are those of other conditions."""
        for leaf in decisions_of(node):
            yield from self._add_leaf(leaf)
        if isinstance(node, ast.BoolOp):
            first = node.values[0]
            if isinstance(first, ast.Name) and not is_constant(first):
                self._firsts[position_of(node)] = (first.id, Tested(self.source.condition(first)))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            core, inverted = _without_not(node)
            if not isinstance(core, ast.BoolOp):
                yield self._tested, node, Tested(self.source.condition(core), inverted=inverted)

    def _add_leaf(self, leaf: ast.expr) -> Iterator[tuple[dict[Position, Tested], ast.AST, Tested]]:
        site = self.source.condition(leaf)
        chained = isinstance(leaf, ast.Compare) and len(leaf.ops) > 1
        tested = self._tested[position_of(leaf)] = Tested(site, chained=chained, negative=_negative(leaf))
        if isinstance(leaf, ast.Call | ast.Attribute):
            self._ends[type(leaf), site.end_line, site.end_column] = tested
        for part, inverted in _values(leaf):
            if part is not leaf:
                yield self._tested, part, Tested(site, inverted=inverted, negative=_negative(part))
        match leaf:
            case ast.Compare(ops=[ast.Is() | ast.IsNot() as op], comparators=[ast.Constant(value=None)]):
                if_none = Tested(site, if_none=isinstance(op, ast.Is))
                self._nones[position_of(leaf)] = if_none
                if isinstance(leaf.left, ast.Name):
                    there = self._none_names.setdefault((leaf.left.id, leaf.left.lineno), {})
                    there[position_of(leaf)] = if_none
                for part, inverted in _values(leaf.left):
                    if not inverted:
                        self._nones[position_of(part)] = if_none

    def _add_clause(self, node: ast.AST) -> None:
        if isinstance(node, ast.MatchValue | ast.MatchSingleton | ast.MatchClass):
            if_none = None if isinstance(node, ast.MatchValue) else isinstance(node, ast.MatchSingleton)
            self._tested[position_of(node)] = Tested(self.source.condition(node), if_none=if_none)
        elif isinstance(node, ast.ExceptHandler):
            self._handlers[position_of(node)] = self.source.handler(node)
            if node.type is None:
                self._bare.add(position_of(node))

    def _add_loops(self, node: ast.AST, owner: tuple[str, int], *, guarded: bool) -> None:
        if isinstance(node, ast.For | ast.AsyncFor | ast.While):
            self._add_loop(node, owner, position_of(node), leaves_early=guarded or _breaks(node.body))
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            for clause in (clause for clause in node.generators if not clause.is_async):
                self._add_loop(clause, owner, position_of(node), leaves_early=guarded)

    def _add_loop(self, node: LoopNode, owner: tuple[str, int], span: Position, *, leaves_early: bool) -> None:
        site = self.source.loop(node)
        if isinstance(node, ast.While):
            found = Loop(
                site,
                owner,
                span,
                _span(node.orelse),
                position_of(node.body[0])[:2],
                leaves_early,
                iterates=False,
                by_arrival=is_constant(node.test),
                truths={
                    (self.source.condition(leaf), outcome): truth
                    for leaf in leaves_of(node.test)
                    for outcome in (True, False)
                    if (truth := _truth(node.test, leaf, outcome=outcome)) is not None
                },
            )
        else:
            without: tuple[Position, ...] = ()
            if not isinstance(node, ast.comprehension):
                without = (position_of(node.iter), *_span(node.orelse))
            first = position_of(node.target)[:2]
            later = isinstance(node, ast.AsyncFor)
            found = Loop(site, owner, span, without, first, leaves_early, iterates=not later, by_arrival=later)
            self._targets[first] = found
        self.loops.append(found)


def _span(statements: list[ast.stmt]) -> tuple[Position, ...]:
    """The positions from the first to the last of the statements, none if there are none."""
    return ((*position_of(statements[0])[:2], *position_of(statements[-1])[2:]),) if statements else ()


def _within(inner: Position, outer: Position) -> bool:
    return outer[:2] <= inner[:2] and inner[2:] <= outer[2:]


def _negative(node: ast.expr) -> bool | None:
    if not isinstance(node, ast.Compare) or len(node.ops) > 1:
        return None
    return {ast.Is: False, ast.In: False, ast.IsNot: True, ast.NotIn: True}.get(type(node.ops[0]))


def _without_not(node: ast.expr) -> tuple[ast.expr, bool]:
    inverted = False
    while isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        node, inverted = node.operand, not inverted
    return node, inverted


def _values(node: ast.expr, *, inverted: bool = False) -> Iterator[tuple[ast.expr, bool]]:
    """Where the value of an expression may have been computed last, and whether inverted: the arms of a ternary."""
    yield node, inverted
    if isinstance(node, ast.IfExp):
        for arm in (node.body, node.orelse):
            value, flipped = _without_not(arm)
            while isinstance(value, ast.BoolOp):
                value, again = _without_not(value.values[-1])
                flipped ^= again
            yield from _values(value, inverted=inverted ^ flipped)
    elif isinstance(node, ast.NamedExpr):
        yield node.target, inverted


def _truth(test: ast.expr, leaf: ast.expr, *, outcome: bool) -> bool | None:
    """The truth of a test once a leaf of it had an outcome; None if that does not settle it."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        truth = _truth(test.operand, leaf, outcome=outcome)
        return None if truth is None else not truth
    if not isinstance(test, ast.BoolOp):
        return outcome if test is leaf else None
    settles = isinstance(test.op, ast.Or)
    index = next((i for i, value in enumerate(test.values) if any(leaf is part for part in leaves_of(value))), None)
    if index is None:
        return None
    truth = _truth(test.values[index], leaf, outcome=outcome)
    if truth is None or truth is settles:
        return truth
    for value in test.values[index + 1 :]:
        if not isinstance(value, ast.Constant):
            return None
        if bool(value.value) is settles:
            return settles
    return truth


def _breaks(body: list[ast.stmt]) -> bool:
    """Whether a `break` in these statements ends the loop that they are the body of."""
    todo: list[ast.AST] = list(body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Break):
            return True
        if isinstance(node, ast.For | ast.AsyncFor | ast.While):
            todo.extend(node.orelse)
        elif isinstance(node, ast.stmt | ast.match_case | ast.ExceptHandler) and not isinstance(
            node, FunctionNode | ast.ClassDef
        ):
            todo.extend(ast.iter_child_nodes(node))
    return False


def _scope(node: ast.AST) -> tuple[str, int] | None:
    """Name and first line of the code object that the node is compiled to, if it is to one of its own."""
    if isinstance(node, FunctionNode | ast.ClassDef):
        return node.name, min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    if isinstance(node, ast.Lambda):
        return "<lambda>", node.lineno
    if isinstance(node, ast.expr) and type(node) in _COMPREHENSIONS:
        return _COMPREHENSIONS[type(node)], node.lineno
    return None
