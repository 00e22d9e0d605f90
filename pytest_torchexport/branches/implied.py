"""What source alone tells of decisions: which follow from others, and which outcomes only lead out of the domain.

Standard library only. A counter that a data-dependent loop moves, or a flag that is set in one branch, carries no
tensor with it; whatever is compared with it depends on the input all the same.
"""

from __future__ import annotations

import ast
import weakref
from typing import TYPE_CHECKING

from pytest_torchexport.branches.sites import FunctionNode, Site, Source, decisions_of, leaves_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator


def implied(source: Source, function: FunctionNode, known: Collection[Site], names: Iterable[str] = ()) -> set[Site]:
    """The conditions of a function that depend on the input because other decisions, or given arguments, do.

    Args:
        source: the file.
        function: the definition in it.
        known: sites that are known to depend on the input.
        names: arguments that may take other plain values: flags, modes, numbers.
    """
    reader = _Reader(source, set(known), set(names))
    before = -1
    while before != (now := len(reader.names) + len(reader.sites) + len(reader.collections)):
        before = now
        reader.read(function.body, controlled=False)
    return reader.sites - set(known)


class _Reader:
    """Reads the statements of a function; `sites`, `names` and `collections` are those known to depend on the input."""

    def __init__(self, source: Source, sites: set[Site], names: set[str]) -> None:
        self._source = source
        self.sites, self.names = sites, names
        self.collections: set[str] = set()

    def read(self, body: list[ast.stmt], *, controlled: bool) -> None:
        """Follow statements in order; `controlled` where another decision decides whether they run."""
        for statement in body:
            depends = self._conditions(statement)
            if isinstance(statement, FunctionNode | ast.ClassDef):
                continue
            self._assignments(statement, controlled=controlled)
            if isinstance(statement, ast.Match):
                depends |= self._match(statement)
                for case in statement.cases:
                    self.read(case.body, controlled=controlled or depends)
                continue
            for name in ("body", "orelse", "finalbody"):
                self.read(getattr(statement, name, []), controlled=controlled or depends)
            for handler in getattr(statement, "handlers", []):
                self.read(handler.body, controlled=True)

    def _conditions(self, statement: ast.stmt) -> bool:
        """Note the statement's own conditions; whether one of them depends on the input."""
        depends = False
        for node in _own(statement):
            for leaf in decisions_of(node):
                site = self._source.condition(leaf)
                if site not in self.sites and (_reads(leaf, self.names) or _measures(leaf, self.collections)):
                    self.sites.add(site)
                depends |= site in self.sites and node is statement
        if isinstance(statement, ast.For | ast.While):
            depends |= self._source.loop(statement) in self.sites
        return depends

    def _match(self, statement: ast.Match) -> bool:
        patterns = [p for case in statement.cases for p in _patterns(case.pattern)]
        if isinstance(statement.subject, ast.Name) and statement.subject.id in self.names:
            self.sites |= {self._source.condition(pattern) for pattern in patterns}
        return any(self._source.condition(pattern) in self.sites for pattern in patterns)

    def _assignments(self, statement: ast.stmt, *, controlled: bool) -> None:
        match statement:
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method))):
                if controlled and method in _GROWS:
                    self.collections.add(name)
                return
            case ast.Assign(targets=[ast.Subscript(value=ast.Name(id=name))]) if controlled:
                self.collections.add(name)
                return
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                augmented = False
            case ast.AugAssign(target=ast.Name(id=name), value=value):
                augmented = True
            case _:
                return
        if _is_plain(value) and (controlled or _reads(value, self.names) or (augmented and name in self.names)):
            self.names.add(name)


def _own(statement: ast.stmt) -> Iterator[ast.AST]:
    """The statement and its expressions, not the statements in it."""
    yield statement
    stack: list[ast.AST] = [child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.expr)]
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, ast.Lambda):
            stack += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr | ast.comprehension)]


def _patterns(pattern: ast.pattern) -> Iterator[ast.pattern]:
    match pattern:
        case ast.MatchOr(patterns=patterns):
            for one in patterns:
                yield from _patterns(one)
        case ast.MatchValue() | ast.MatchSingleton():
            yield pattern
        case ast.MatchAs(pattern=ast.pattern() as inner):
            yield from _patterns(inner)


def _is_plain(value: ast.expr) -> bool:
    """Whether an expression is made of constants and names alone, without a call that could make a tensor."""
    allowed = (ast.Constant, ast.Name, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.operator, ast.unaryop)
    return all(isinstance(node, (*allowed, ast.cmpop, ast.boolop, ast.expr_context)) for node in ast.walk(value))


def _reads(leaf: ast.expr, names: Collection[str]) -> bool:
    """Whether a condition is about one of the names itself, not about an attribute or element of it."""
    operands = [leaf.left, *leaf.comparators] if isinstance(leaf, ast.Compare) else [leaf]
    parts = (node for operand in operands if _is_plain(operand) for node in ast.walk(operand))
    return any(isinstance(node, ast.Name) and node.id in names for node in parts)


_GROWS = frozenset(("append", "extend", "add", "update", "insert", "pop", "remove", "discard", "clear", "setdefault"))


def _measures(leaf: ast.expr, collections: Collection[str]) -> bool:
    """Whether a condition is about a collection being empty, or about its length."""
    operands = [leaf.left, *leaf.comparators] if isinstance(leaf, ast.Compare) else [leaf]
    for operand in operands:
        match operand:
            case ast.Call(func=ast.Name(id="len"), args=[ast.Name(id=name)]) | ast.Name(id=name):
                if name in collections:
                    return True
    return False


def leading_out(source: Source) -> set[tuple[Site, bool]]:
    """The outcomes after which the code only raises: an input that takes one is no valid input."""
    if source not in _LEADING_OUT:
        _LEADING_OUT[source] = _leading_out(source)
    return _LEADING_OUT[source]


_LEADING_OUT: weakref.WeakKeyDictionary[Source, set[tuple[Site, bool]]] = weakref.WeakKeyDictionary()


def _leading_out(source: Source) -> set[tuple[Site, bool]]:
    found: set[tuple[Site, bool]] = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Assert):
            found.update(_forcing(source, node.test, truth=False))
        elif isinstance(node, ast.If):
            if _raises(node.body):
                found.update(_forcing(source, node.test, truth=True))
            if node.orelse and _raises(node.orelse):
                found.update(_forcing(source, node.test, truth=False))
        elif isinstance(node, ast.Match):
            last = node.cases[-1]
            if len(node.cases) > 1 and _is_wildcard(last) and _raises(last.body):
                patterns = list(_patterns(node.cases[-2].pattern))
                found |= {(source.condition(pattern), False) for pattern in patterns[-1:]}
    return found


def _forcing(source: Source, test: ast.expr, *, truth: bool) -> Iterator[tuple[Site, bool]]:
    """The leaves that by themselves make the whole test true (or false), with the outcome that does."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        yield from _forcing(source, test.operand, truth=not truth)
    elif isinstance(test, ast.BoolOp):
        if isinstance(test.op, ast.Or) is truth:
            for value in test.values:
                yield from _forcing(source, value, truth=truth)
    elif leaves_of(test):
        yield source.condition(test), truth


def _raises(body: list[ast.stmt]) -> bool:
    """Whether a block does nothing but raise, perhaps after making its message."""
    return isinstance(body[-1], ast.Raise) and all(isinstance(s, ast.Assign | ast.Expr | ast.Raise) for s in body)


def _is_wildcard(case: ast.match_case) -> bool:
    return isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None and case.guard is None
