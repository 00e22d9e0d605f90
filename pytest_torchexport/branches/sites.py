"""Where the user's code decides: places in a source file, at the level of single conditions. Standard library only."""

from __future__ import annotations

import ast
import io
import linecache
import re
import tokenize
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

Position = tuple[int, int, int, int]
"""Line, column, end line, end column, as `ast` counts them: lines from 1, columns in UTF-8 bytes from 0."""
LoopNode = ast.For | ast.AsyncFor | ast.While | ast.comprehension
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

_EXCLUSION = re.compile(r"#\s*export:\s*no branch\b")


class Kind(StrEnum):
    """What kind of decision a place is."""

    CONDITION = "condition"
    LOOP = "loop"
    NUMBER = "number"
    EXCEPTION = "exception"


@dataclass(frozen=True, order=True, slots=True)
class Site:
    """A place in a source file where control flow, or a number, may depend on the input.

    Positions are those of the expression in the file as `ast` gives them: 1-based lines, 0-based UTF-8 columns.
    """

    file: str
    line: int
    column: int
    end_line: int
    end_column: int
    kind: Kind


def leaves_of(test: ast.expr) -> list[ast.expr]:
    """The single conditions of a test in the order of evaluation: and, or, not are taken apart, constants left out."""
    if isinstance(test, ast.BoolOp):
        return [leaf for value in test.values for leaf in leaves_of(value)]
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return leaves_of(test.operand)
    return [] if is_constant(test) else [test]


def decisions_of(node: ast.AST) -> list[ast.expr]:
    """The conditions that this node itself, not its parts, asks for. In `a and b` as a value only `a` decides."""
    match node:
        case ast.If() | ast.While() | ast.IfExp() | ast.Assert():
            return leaves_of(node.test)
        case ast.comprehension():
            return [leaf for test in node.ifs for leaf in leaves_of(test)]
        case ast.match_case(guard=ast.expr() as guard):
            return leaves_of(guard)
        case ast.BoolOp():
            return [leaf for value in node.values[:-1] for leaf in leaves_of(value)]
        case ast.UnaryOp(op=ast.Not()):
            return leaves_of(node.operand)
    return []


def source_of(filename: str) -> Source | None:
    """The parsed file, read through `linecache`; None if there is no text or it is not valid Python."""
    linecache.checkcache(filename)
    text = "".join(linecache.getlines(filename))
    known = _SOURCES.get(filename)
    if known is None or known[0] != text:
        try:
            source = Source(filename, text) if text else None
        except (SyntaxError, ValueError, RecursionError):
            source = None
        known = _SOURCES[filename] = (text, source)
    return known[1]


class Source:
    """One parsed file: the places where it decides, and what is written there."""

    def __init__(self, filename: str, text: str) -> None:
        self.filename = filename
        self.tree = ast.parse(text)
        self._lines = [line.encode() for line in text.splitlines(keepends=True)]
        self._text = text

    def condition(self, node: ast.expr | ast.pattern) -> Site:
        """The site of a leaf of a test, or of a literal, value or class pattern."""
        return Site(self.filename, *position_of(node), Kind.CONDITION)

    def loop(self, node: LoopNode | ast.expr) -> Site:
        """The site of a loop: that of its iterable, or of the test of a `while`, which can be given as well."""
        at = node.test if isinstance(node, ast.While) else node if isinstance(node, ast.expr) else node.iter
        return Site(self.filename, *position_of(at), Kind.LOOP)

    def number(self, node: ast.expr) -> Site:
        """The site of an expression that takes a number out of a tensor."""
        return Site(self.filename, *position_of(node), Kind.NUMBER)

    def handler(self, node: ast.ExceptHandler) -> Site:
        """The site of an `except` clause: from the word to the end of its type expression, or the word alone."""
        line, column, _, _ = position_of(node)
        end = position_of(node.type)[2:] if node.type is not None else (line, column + len("except"))
        return Site(self.filename, line, column, *end, Kind.EXCEPTION)

    def numbers_at(self, end_line: int, end_column: int) -> Site | None:
        """The smallest expression that can take a number out of a tensor and ends there.

        Only the end is asked for: a method call over several lines starts elsewhere in bytecode than in the file.
        """
        return self._numbers.get((end_line, end_column))

    def text(self, site: Site) -> str:
        """The source of a site in one line."""
        lines = self._lines[site.line - 1 : site.end_line]
        if not lines:
            return ""
        lines[-1] = lines[-1][: site.end_column]
        lines[0] = lines[0][site.column :]
        return " ".join(b"".join(lines).decode(errors="replace").split())

    def excluded(self, site: Site) -> bool:
        """Whether a comment `# export: no branch` takes the site out of the count.

        It may stand in the lines of the expression or in the header of its statement; in the header of a function or
        class it takes out everything in there.
        """
        marked = self._marked
        if not marked:
            return False
        if any(line in marked for line in range(site.line, site.end_line + 1)):
            return True
        start = (site.line, site.column)
        around = [header for span, header, _ in self._statements if span[:2] <= start < span[2:]]
        wholes = [header for span, header, whole in self._statements if whole and span[:2] <= start < span[2:]]
        return any(line in marked for header in (*around[-1:], *wholes) for line in header)

    def function(self, site: Site) -> str:
        """The qualified name of the function or class in which a site is, as Python forms it."""
        start = (site.line, site.column)
        return next((n for span, n in reversed(self._functions) if span[:2] <= start < span[2:]), "<module>")

    @cached_property
    def _numbers(self) -> dict[tuple[int, int], Site]:
        kinds = ast.Call | ast.Attribute | ast.Subscript | ast.Name | ast.Compare | ast.BinOp
        found: dict[tuple[int, int], Site] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, kinds):
                site = self.number(node)
                end = (site.end_line, site.end_column)
                if end not in found or (site.line, site.column) > (found[end].line, found[end].column):
                    found[end] = site
        return found

    @cached_property
    def _marked(self) -> frozenset[int]:
        """The lines with the exclusion comment."""
        if _EXCLUSION.search(self._text) is None:
            return frozenset()
        tokens = tokenize.generate_tokens(io.StringIO(self._text).readline)
        return frozenset(t.start[0] for t in tokens if t.type == tokenize.COMMENT and _EXCLUSION.search(t.string))

    @cached_property
    def _statements(self) -> list[tuple[Position, list[int], bool]]:
        """Of each statement, outer ones first: span, lines of the header, whether a mark there counts for all of it."""
        found = []
        for node in ast.walk(self.tree):
            if not isinstance(node, ast.stmt):
                continue
            line, column, end_line, end_column = position_of(node)
            whole = isinstance(node, FunctionNode | ast.ClassDef)
            if isinstance(node, FunctionNode | ast.ClassDef) and node.decorator_list:
                line, column = min(position_of(decorator)[:2] for decorator in node.decorator_list)
            inner = [
                s.lineno for name in ("body", "cases") for s in getattr(node, name, ())[:1] if isinstance(s, ast.stmt)
            ]
            inner += [node.cases[0].pattern.lineno] if isinstance(node, ast.Match) else []
            last = max(line, inner[0] - 1) if inner else end_line
            header = [n for n in range(line, last + 1) if n == line or not self._lines[n - 1].lstrip().startswith(b"#")]
            found.append(((line, column, end_line, end_column), header, whole))
        return sorted(found, key=lambda entry: (entry[0][:2], tuple(-end for end in entry[0][2:])))

    @cached_property
    def _functions(self) -> list[tuple[Position, str]]:
        """Bodies of functions and classes with their qualified names, outer ones first."""
        found = []
        todo: list[tuple[ast.AST, str]] = [(self.tree, "")]
        while todo:
            node, prefix = todo.pop()
            if isinstance(node, FunctionNode | ast.ClassDef):
                name = prefix + node.name
                found.append(((*position_of(node.body[0])[:2], *position_of(node)[2:]), name))
                prefix = f"{name}." if isinstance(node, ast.ClassDef) else f"{name}.<locals>."
            todo.extend((child, prefix) for child in ast.iter_child_nodes(node))
        return sorted(found)


_SOURCES: dict[str, tuple[str, Source | None]] = {}


def position_of(node: ast.AST) -> Position:
    """Where a node is written."""
    line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)
    return line, column, getattr(node, "end_lineno", None) or line, getattr(node, "end_col_offset", None) or column


def is_constant(node: ast.expr) -> bool:
    """Whether the compiler knows the value."""
    match node:
        case ast.Constant() | ast.Name(id="__debug__"):
            return True
        case ast.UnaryOp():
            return is_constant(node.operand)
        case ast.BinOp():
            return is_constant(node.left) and is_constant(node.right)
        case ast.Tuple():
            return all(is_constant(element) for element in node.elts)
    return False
