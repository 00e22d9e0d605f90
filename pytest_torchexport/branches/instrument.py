"""A twin of a user's function: compiled from the same source, with every condition, call and loop told to a runtime.

Standard library only. A twin has the same signature, free variables and positions as the original, so that it can take
the place of a function's `__code__` for as long as one instrumented run lasts.
"""

from __future__ import annotations

import ast
import types
from typing import Any, Protocol, TypeVar

from pytest_torchexport.branches.definitions import find
from pytest_torchexport.branches.sites import Site, Source, source_of

_Node = TypeVar("_Node", bound=ast.AST)
_Loop = TypeVar("_Loop", ast.For, ast.While)

_MARK = "\0runtime of the instrumented run"
"""Stands for the runtime in the source of a twin: the compiler takes no other constants than its own."""

_LEFT_ALONE = frozenset(
    ("super", "locals", "globals", "vars", "dir", "eval", "exec", "__import__", "print", "isinstance", "issubclass")
)
"""Calls that look at their caller's frame, or that decide by a type that tracked numbers share."""


class Runtime(Protocol):
    """What the code of a twin calls. `site` is an index into `SITES`."""

    def test(self, site: int, value: Any) -> bool:
        """Decide a condition."""

    def hold(self, site: int, value: Any) -> bool:
        """Decide an operand of `and`; where it ends the evaluation, it is the value."""

    def hold_or(self, site: int, value: Any) -> bool:
        """Decide an operand of `or`: whether to go on."""

    def noted(self, site: int, value: Any) -> Any:
        """Decide a condition whose value is needed itself."""

    def box(self, value: Any) -> Any:
        """The last operand, as something true."""

    def held(self, result: Any) -> Any:
        """The value of `and` or `or`."""

    def negate(self, value: Any) -> Any:
        """`not value`, as a value."""

    def same(self, one: Any, two: Any) -> Any:
        """`one is two`."""

    def contains(self, member: Any, container: Any) -> Any:
        """`member in container`."""

    def equal(self, one: Any, two: Any) -> Any:
        """`one == two`."""

    def unequal(self, one: Any, two: Any) -> Any:
        """`one != two`."""

    def chain(self, names: str, *operands: Any) -> Any:
        """`a < b < c`, of operands without effects."""

    def iterate(self, site: int, iterable: Any) -> Any:
        """What a loop goes through."""

    def caught(self, site: int) -> None:
        """An `except` clause is entered."""

    def begun(self) -> int:
        """Where the tests of a comprehension begin."""

    def collected(self, begun: int, container: Any) -> Any:
        """What a comprehension made: its length depends on the tests in it."""

    def call(self, site: int, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function."""


SITES: list[Site] = []
"""The places that the code of twins names by number."""
_INDEX: dict[Site, int] = {}
LOOPS: dict[int, Site] = {}
"""The loop that a condition may end: as part of its test, or because it decides on a `break` or `return`."""
_TWINS: dict[tuple[str, types.CodeType], types.CodeType | None] = {}


class _Relay:
    """Stands in the constants of all twins; `target` is the runtime of the run that is on."""

    target: Runtime | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)


RELAY = _Relay()


def _index(site: Site) -> int:
    found = _INDEX.get(site)
    if found is None:
        found = _INDEX[site] = len(SITES)
        SITES.append(site)
    return found


def twin_of(code: types.CodeType) -> types.CodeType | None:
    """The instrumented twin of a function's code; None if its source cannot be had, or does not give the same code."""
    key = (code.co_filename, code)  # code is equal to that of a copy of the file
    if key not in _TWINS:
        try:
            _TWINS[key] = _compile(code)
        except (SyntaxError, ValueError, RecursionError):
            _TWINS[key] = None
    return _TWINS[key]


def _compile(code: types.CodeType) -> types.CodeType | None:
    source = source_of(code.co_filename)
    found = find(source, code) if source is not None else None
    if source is None or found is None:
        return None
    *above, node = found
    tree: ast.stmt = _Instrument(source).function(node)
    free = [name for name in code.co_freevars if name != "__class__"]
    for ancestor in reversed(above):
        if isinstance(ancestor, ast.ClassDef):
            tree = ast.ClassDef(ancestor.name, [], [], [tree], [])
        else:
            bound: list[ast.stmt] = [ast.Assign([ast.Name(name, ast.Store())], ast.Constant(None)) for name in free]
            empty = ast.arguments([], [], None, [], [], None, [])
            tree = ast.FunctionDef(ancestor.name, empty, [*bound, tree], [])
    module = ast.fix_missing_locations(ast.Module([tree], []))
    made: types.CodeType = compile(module, code.co_filename, "exec", flags=code.co_flags & _FUTURE, dont_inherit=True)
    for step in found:
        name = getattr(step, "name", "<lambda>")
        made = next(c for c in made.co_consts if isinstance(c, types.CodeType) and c.co_name == name)
    return _with_runtime(made) if _alike(code, made) else None


_FUTURE = 0x1000000 | 0x800000
"""Compiler flags of `from __future__ import annotations` and `generator_stop`."""
_KIND_OF_FUNCTION = 0x04 | 0x08 | 0x20 | 0x80 | 0x100 | 0x200
"""Code flags: *args, **kwargs, generator, coroutine, iterable coroutine, asynchronous generator."""


def _alike(one: types.CodeType, two: types.CodeType) -> bool:
    arguments = one.co_argcount + one.co_kwonlyargcount + bool(one.co_flags & 0x04) + bool(one.co_flags & 0x08)
    return (
        one.co_freevars == two.co_freevars
        and one.co_argcount == two.co_argcount
        and one.co_posonlyargcount == two.co_posonlyargcount
        and one.co_kwonlyargcount == two.co_kwonlyargcount
        and one.co_varnames[:arguments] == two.co_varnames[:arguments]
        and one.co_flags & _KIND_OF_FUNCTION == two.co_flags & _KIND_OF_FUNCTION
    )


def _with_runtime(code: types.CodeType) -> types.CodeType:
    consts = tuple(
        RELAY if isinstance(c, str) and c == _MARK else _with_runtime(c) if isinstance(c, types.CodeType) else c
        for c in code.co_consts
    )
    return code.replace(co_consts=consts)


class _Instrument(ast.NodeTransformer):
    """Rewrites a definition in a copy; the tree itself stays as it is."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._subjects = 0
        self._loops: list[Site] = []

    def function(self, node: Any) -> Any:
        """The definition with an instrumented body, without decorators, defaults and annotations."""
        copy = _copied(node)
        if isinstance(copy, ast.Lambda):
            copy.body = self.visit(copy.body)
            copy.args.defaults, copy.args.kw_defaults = [], [None] * len(copy.args.kwonlyargs)
            return ast.copy_location(ast.Expr(copy), node)
        copy.decorator_list, copy.returns = [], None
        copy.args.defaults, copy.args.kw_defaults = [], [None] * len(copy.args.kwonlyargs)
        arguments = (*copy.args.posonlyargs, *copy.args.args, *copy.args.kwonlyargs, copy.args.vararg, copy.args.kwarg)
        for argument in filter(None, arguments):
            argument.annotation = None
        copy.body = [self._one(statement) for statement in copy.body]
        return copy

    def _one(self, statement: ast.stmt) -> ast.stmt:
        made = self.visit(statement)
        assert isinstance(made, ast.stmt)
        return made

    def _value(self, node: ast.expr) -> ast.expr:
        made = self.visit(node)
        assert isinstance(made, ast.expr)
        return made

    def _told(self, method: str, at: ast.AST, *arguments: ast.expr) -> ast.Call:
        runtime = ast.Attribute(ast.Constant(_MARK), method, ast.Load())
        return self._placed(ast.Call(runtime, list(arguments), []), at)

    def _placed(self, made: _Node, at: ast.AST) -> _Node:
        """What was made, at the position of what it stands for."""
        for node in ast.walk(made):
            if not hasattr(node, "lineno") and isinstance(node, (ast.expr, ast.stmt)):
                ast.copy_location(node, at)
        return made

    def _number(self, site: Site) -> ast.Constant:
        return ast.Constant(_index(site))

    # --- conditions ---------------------------------------------------------------------------------------------

    def _condition(self, test: ast.expr, loop: Site | None = None) -> ast.expr:
        """A test, with each leaf told; its value is a bool."""
        if isinstance(test, ast.BoolOp):
            return self._placed(ast.BoolOp(test.op, [self._condition(one, loop) for one in test.values]), test)
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return self._placed(ast.UnaryOp(test.op, self._condition(test.operand, loop)), test)
        if isinstance(test, ast.Constant):
            return test
        index = _index(self._source.condition(test))
        if loop is not None:
            LOOPS[index] = loop
        return self._told("test", test, ast.Constant(index), self.visit(test))

    def visit_If(self, node: ast.If) -> ast.AST:
        loop = self._loops[-1] if self._loops and _escapes([*node.body, *node.orelse]) else None
        node.test = self._condition(node.test, loop)
        node.body = [self._one(statement) for statement in node.body]
        node.orelse = [self._one(statement) for statement in node.orelse]
        return node

    def visit_While(self, node: ast.While) -> ast.AST:
        loop = self._source.loop(node.test)
        node.test = self._condition(node.test, loop)
        return self._looped(node, loop)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        node.test = self._condition(node.test)
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        return self._placed(ast.IfExp(self._condition(node.test), self.visit(node.body), self.visit(node.orelse)), node)

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        node.target = self.visit(node.target)
        node.iter = self.visit(node.iter) if node.is_async else self._iterated(node.iter)
        node.ifs = [self._condition(one) for one in node.ifs]
        return node

    def visit_ListComp(self, node: ast.ListComp) -> ast.AST:
        return self._comprehension(node)

    def visit_SetComp(self, node: ast.SetComp) -> ast.AST:
        return self._comprehension(node)

    def visit_DictComp(self, node: ast.DictComp) -> ast.AST:
        return self._comprehension(node)

    def _comprehension(self, node: Any) -> ast.AST:
        filtered = any(generator.ifs for generator in node.generators)
        made: Any = self.generic_visit(node)
        return self._told("collected", node, self._told("begun", node), made) if filtered else made

    def visit_For(self, node: ast.For) -> ast.AST:
        loop = self._source.loop(node.iter)
        node.iter = self._iterated(node.iter)
        node.target = self.visit(node.target)
        return self._looped(node, loop)

    def _iterated(self, iterable: ast.expr) -> ast.expr:
        site = self._number(self._source.loop(iterable))
        return self._told("iterate", iterable, site, self.visit(iterable))

    def _looped(self, node: _Loop, loop: Site) -> _Loop:
        self._loops.append(loop)
        node.body = [self._one(statement) for statement in node.body]
        self._loops.pop()
        node.orelse = [self._one(statement) for statement in node.orelse]
        return node

    # --- values -------------------------------------------------------------------------------------------------

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        *deciding, last = node.values
        method = "hold" if isinstance(node.op, ast.And) else "hold_or"
        tests: list[ast.expr] = []
        for one in deciding:
            whole = isinstance(one, ast.BoolOp | ast.Constant) or _is_not(one)
            site = ast.Constant(-1) if whole else self._number(self._source.condition(one))
            tests.append(self._told(method, one, site, self._deciding(one)))
        tests.append(self._told("box", last, self.visit(last)))
        return self._told("held", node, self._placed(ast.BoolOp(ast.And(), tests), node))

    def _deciding(self, operand: ast.expr) -> ast.expr:
        """An operand that decides, as a value: what stands under a `not` is the condition."""
        if isinstance(operand, ast.UnaryOp) and _is_not(operand):
            inner = operand.operand
            if isinstance(inner, ast.BoolOp | ast.Constant) or _is_not(inner):
                return self._told("negate", operand, self._deciding(inner))
            site = self._number(self._source.condition(inner))
            return self._told("negate", operand, self._told("noted", inner, site, self.visit(inner)))
        return self._value(operand)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        operand = self.visit(node.operand)
        if isinstance(node.op, ast.Not):
            return self._told("negate", node, operand)
        node.operand = operand
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        if len(node.ops) > 1:
            return self._chained(node)
        operator, left, right = node.ops[0], self.visit(node.left), self.visit(node.comparators[0])
        if isinstance(operator, (ast.Is, ast.IsNot)):
            made = self._told("same", node, left, right)
        elif isinstance(operator, (ast.In, ast.NotIn)):
            made = self._told("contains", node, left, right)
        elif isinstance(operator, ast.Eq | ast.NotEq) and not isinstance(node.comparators[0], ast.Constant):
            return self._told("equal" if isinstance(operator, ast.Eq) else "unequal", node, left, right)
        else:
            return self._placed(ast.Compare(left, [operator], [right]), node)
        return self._told("negate", node, made) if isinstance(operator, ast.IsNot | ast.NotIn) else made

    def _chained(self, node: ast.Compare) -> ast.AST:
        names = [_OPERATORS.get(type(operator)) for operator in node.ops]
        simple = all(isinstance(one, (ast.Constant, ast.Name, ast.Attribute)) for one in node.comparators[1:])
        operands = [self.visit(one) for one in (node.left, *node.comparators)]
        if not simple or None in names:
            return self._placed(ast.Compare(operands[0], node.ops, operands[1:]), node)
        return self._told("chain", node, ast.Constant(" ".join(filter(None, names))), *operands)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        node = ast.copy_location(
            ast.Call(
                self.visit(node.func),
                [self.visit(one) for one in node.args],
                [ast.keyword(one.arg, self.visit(one.value)) for one in node.keywords],
            ),
            node,
        )
        if isinstance(node.func, ast.Name) and node.func.id in _LEFT_ALONE:
            return node
        site = self._number(self._source.number(node))
        runtime = ast.Attribute(ast.Constant(_MARK), "call", ast.Load())
        return self._placed(ast.Call(runtime, [site, node.func, *node.args], node.keywords), node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        told = ast.Expr(self._told("caught", node, self._number(self._source.handler(node))))
        node.type = None if node.type is None else self.visit(node.type)
        node.body = [self._placed(told, node), *(self._one(statement) for statement in node.body)]
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return node  # Python 3.11 does not give the positions in it

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.value = None if node.value is None else self.visit(node.value)
        node.target = self.visit(node.target)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        loops, self._loops = self._loops, []
        node.body = [self._one(statement) for statement in node.body]
        self._loops = loops
        return node

    # --- match --------------------------------------------------------------------------------------------------

    def visit_Match(self, node: ast.Match) -> ast.AST:
        """Cases that compare with values are a chain of conditions; others are left to Python."""
        if not all(_is_comparison(case.pattern) for case in node.cases):
            for case in node.cases:
                case.guard = None if case.guard is None else self._condition(case.guard)
                case.body = [self._one(statement) for statement in case.body]
            node.subject = self.visit(node.subject)
            return node
        self._subjects += 1
        name = f"torchexport_subject_{self._subjects}"
        chain: list[ast.stmt] = []
        for case in reversed(node.cases):
            chain = self._case(case, name, chain)
        bind = ast.Assign([ast.Name(name, ast.Store())], self.visit(node.subject))
        always = ast.If(ast.Constant(value=True), [self._placed(bind, node), *chain], [])
        return self._placed(always, node)

    def _case(self, case: ast.match_case, subject: str, otherwise: list[ast.stmt]) -> list[ast.stmt]:
        pattern: ast.pattern | None = case.pattern
        bound: str | None = None
        body = [self._one(statement) for statement in case.body]
        if isinstance(pattern, ast.MatchAs):
            bound, pattern = pattern.name, pattern.pattern
        tests = [] if pattern is None else [self._matches(pattern, subject)]
        if bound is not None and case.guard is not None:  # the guard may ask for the name
            held = ast.NamedExpr(ast.Name(bound, ast.Store()), ast.Name(subject, ast.Load()))
            tests.append(ast.Compare(held, [ast.Is()], [ast.Name(subject, ast.Load())]))
        elif bound is not None:
            assign = ast.Assign([ast.Name(bound, ast.Store())], ast.Name(subject, ast.Load()))
            body.insert(0, self._placed(assign, case.pattern))
        if case.guard is not None:
            tests.append(self._condition(case.guard))
        if not tests:
            return body
        test = tests[0] if len(tests) == 1 else self._placed(ast.BoolOp(ast.And(), tests), case.pattern)
        return [self._placed(ast.If(test, body, otherwise), case.pattern)]

    def _matches(self, pattern: ast.pattern, subject: str) -> ast.expr:
        if isinstance(pattern, ast.MatchOr):
            parts = [self._matches(one, subject) for one in pattern.patterns]
            return self._placed(ast.BoolOp(ast.Or(), parts), pattern)
        name = ast.Name(subject, ast.Load())
        value: ast.expr
        if isinstance(pattern, ast.MatchSingleton):
            value = self._told("same", pattern, name, ast.Constant(pattern.value))
        else:
            assert isinstance(pattern, ast.MatchValue)
            value = ast.Compare(name, [ast.Eq()], [pattern.value])
        site = self._number(self._source.condition(pattern))
        return self._told("test", pattern, site, self._placed(value, pattern))


_OPERATORS: dict[type[ast.cmpop], str] = {
    ast.Lt: "lt",
    ast.LtE: "le",
    ast.Gt: "gt",
    ast.GtE: "ge",
    ast.Eq: "eq",
    ast.NotEq: "ne",
}


def _escapes(body: list[ast.stmt]) -> bool:
    """Whether statements leave the loop that they stand in."""
    for statement in body:
        if isinstance(statement, ast.Break | ast.Return):
            return True
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        inner = _statements_in(statement)
        if isinstance(statement, ast.For | ast.While):  # a `break` in there leaves the inner loop
            inner = [one for one in inner if not isinstance(one, ast.Break)]
            if any(isinstance(one, ast.Return) or (_statements_in(one) and _returns(one)) for one in inner):
                return True
        elif _escapes(inner):
            return True
    return False


def _returns(statement: ast.stmt) -> bool:
    """Whether a statement may return from the function that it stands in."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return False
    return isinstance(statement, ast.Return) or any(map(_returns, _statements_in(statement)))


def _statements_in(statement: ast.stmt) -> list[ast.stmt]:
    """The statements right inside another one, those of its clauses and cases included."""
    found: list[ast.stmt] = []
    for child in ast.iter_child_nodes(statement):
        if isinstance(child, ast.stmt):
            found.append(child)
        elif isinstance(child, ast.ExceptHandler | ast.match_case):
            found += child.body
    return found


def _is_not(node: ast.expr) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def _is_comparison(pattern: ast.pattern) -> bool:
    if isinstance(pattern, ast.MatchOr):
        return all(_is_comparison(one) and not isinstance(one, ast.MatchAs) for one in pattern.patterns)
    if isinstance(pattern, ast.MatchAs):
        inner = pattern.pattern
        return inner is None or (not isinstance(inner, ast.MatchAs) and _is_comparison(inner))
    return isinstance(pattern, (ast.MatchValue, ast.MatchSingleton))


def _copied(node: Any) -> Any:
    """A copy of a tree, positions included."""
    if isinstance(node, ast.AST):
        made = type(node)(**{name: _copied(value) for name, value in ast.iter_fields(node)})
        return ast.copy_location(made, node) if hasattr(node, "lineno") else made
    return [_copied(one) for one in node] if isinstance(node, list) else node
