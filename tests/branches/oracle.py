"""What a module decides, seen in another way: its syntax tree is rewritten so that it tells. Standard library only.

It serves to check the observer, which rewrites nothing. Patterns of `match` are not seen. Loops of generators that are
not run to their end come last, as with the observer.
"""

from __future__ import annotations

import ast
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pytest_torchexport.branches.sites import Site, Source, decisions_of, source_of

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "torchexport_oracle"


class Loop:
    def __init__(self, oracle: Oracle, site: Site) -> None:
        self.oracle, self.site = oracle, site
        self.count = 0
        self.is_over = False

    def iteration(self) -> None:
        self.count += 1
        self.oracle.open[id(self)] = self

    def abandon(self) -> None:
        self.is_over = True

    def end(self, *, exhausted: bool = False) -> None:
        if not self.is_over and (self.count or exhausted):
            self.is_over = True
            self.oracle.open.pop(id(self), None)
            self.oracle.add(self.site, self.count)

    def through(self, iterable: Any) -> Iterator[Any]:
        return Through(self, iter(iterable))


class Through:
    """The iterator of a comprehension."""

    def __init__(self, loop: Loop, iterator: Iterator[Any]) -> None:
        self.loop, self.iterator = loop, iterator

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            value = next(self.iterator)
        except StopIteration:
            self.loop.end(exhausted=True)
            raise
        self.loop.iteration()
        return value


class Oracle:
    """A module that was rewritten, and what it told."""

    def __init__(self, filename: str) -> None:
        source = source_of(filename)
        assert source is not None
        self.sites: list[Site] = []
        self.open: dict[int, Loop] = {}
        self.events: list[tuple[Site, bool | int]] = []
        tree = Rewriter(source, self.sites).visit(ast.parse("".join(open_lines(filename))))
        self.code = compile(ast.fix_missing_locations(tree), f"rewritten {filename}", "exec")

    def module(self, name: str) -> ModuleType:
        return executed(name, self.code, {NAME: self})

    def add(self, site: Site, outcome: bool | int) -> None:
        self.events.append((site, outcome))

    def test(self, index: int, value: Any) -> bool:
        outcome = bool(value)
        self.add(self.sites[index], outcome)
        return outcome

    def hold(self, index: int, value: Any) -> Any:
        self.test(index, value)
        return value

    def caught(self, index: int) -> None:
        self.add(self.sites[index], True)

    def loop(self, index: int) -> Loop:
        return Loop(self, self.sites[index])

    def start(self) -> None:
        self.events, self.open = [], {}

    def finish(self) -> list[tuple[Site, bool | int]]:
        for loop in self.open.values():
            self.add(loop.site, loop.count)
        return self.events


def open_lines(filename: str) -> list[str]:
    import linecache

    return linecache.getlines(filename)


def executed(name: str, code: Any, names: dict[str, Any]) -> ModuleType:
    """A module of that name, made anew and of its own."""
    import sys

    module = ModuleType(name)
    vars(module).update(names, __package__=name.rpartition(".")[0])
    kept = sys.modules.get(name)
    sys.modules[name] = module
    try:
        exec(code, vars(module))
    finally:
        if kept is None:
            del sys.modules[name]
        else:
            sys.modules[name] = kept
    return module


class Rewriter(ast.NodeTransformer):
    def __init__(self, source: Source, sites: list[Site]) -> None:
        self.source, self.sites = source, sites
        self.leaves: dict[ast.AST, str] = {}
        self.loops = 0

    def index(self, site: Site) -> int:
        self.sites.append(site)
        return len(self.sites) - 1

    def visit(self, node: ast.AST) -> Any:
        if not (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)):  # as a value it is no jump
            for leaf in decisions_of(node):
                if leaf not in self.leaves:
                    index = self.index(self.source.condition(leaf))
                    self.leaves[leaf] = f"{'hold' if isinstance(node, ast.BoolOp) else 'test'}({index}, X)"
        made = super().visit(node)
        if node in self.leaves:
            return parsed(f"{NAME}.{self.leaves[node]}", X=made).value
        return made

    def visit_For(self, node: ast.For) -> Any:
        return self.looping(node, self.index(self.source.loop(node)))

    def visit_While(self, node: ast.While) -> Any:
        return self.looping(node, self.index(self.source.loop(node)))

    def visit_AsyncFor(self, node: ast.AsyncFor) -> Any:
        return self.looping(node, self.index(self.source.loop(node)))

    def looping(self, node: Any, index: int) -> Any:
        self.loops += 1
        name = f"{NAME}_{self.loops}"
        self.generic_visit(node)
        node.body.insert(0, parsed(f"{name}.iteration()"))
        node.orelse.insert(0, parsed(f"{name}.end(exhausted=True)"))
        text = f"try: pass\nexcept GeneratorExit:\n  {name}.abandon()\n  raise\nfinally: {name}.end()"
        around: Any = parsed(text)
        around.body = [node]
        return [parsed(f"{name} = {NAME}.loop({index})"), around]

    def visit_comprehension(self, node: ast.comprehension) -> Any:
        index = self.index(self.source.loop(node))
        self.generic_visit(node)
        if not node.is_async:
            node.iter = parsed(f"{NAME}.loop({index}).through(X)", X=node.iter).value
        return node

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> Any:
        index = self.index(self.source.handler(node))
        self.generic_visit(node)
        node.body.insert(0, parsed(f"{NAME}.caught({index})"))
        return node


def parsed(text: str, **parts: ast.AST) -> Any:
    """A statement, with names replaced."""

    class Replace(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.AST:
            return parts.get(node.id, node)

    return Replace().visit(ast.parse(text).body[0])
