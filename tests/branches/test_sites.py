"""Sites: what their identity is, what is written there, what is excluded."""

from __future__ import annotations

import ast
import linecache
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchexport.branches.sites import Kind, Site, Source, leaves_of, source_of

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
    import torch

    class Model:
        def forward(self, x, mask=None):
            if mask is not None and (x.sum() > 0
                    or not x.any()):
                x = x * mask
            while x.norm() > 1: x = x / 2
            for row in x.tolist():
                pass
            try:
                scale = x.max(
                    ).item()
            except (ValueError, RuntimeError) as error:
                raise
            except:
                scale = 1
            def inner(y):
                return [a for a in y if a > scale]
            return (lambda z: z if z else inner(z))(x)

    first = 1 if Model else 2
"""


def source(text: str = PROGRAM) -> Source:
    return Source("model.py", dedent(text))


def nodes(made: Source, kind: Any) -> list[Any]:
    return [node for node in ast.walk(made.tree) if isinstance(node, kind)]


@pytest.mark.parametrize(
    ("test", "leaves"),
    [
        ("a", ["a"]),
        ("a and not b", ["a", "b"]),
        ("not (a or b and not c)", ["a", "b", "c"]),
        ("a < b < c", ["a < b < c"]),
        ("(a if b else c) or d", ["a if b else c", "d"]),
        ("f(c or d) and g", ["f(c or d)", "g"]),
        ("True", []),
        ("a and not 0 and __debug__ and 1 + 1", ["a"]),
    ],
)
def test_leaves(test: str, leaves: list[str]) -> None:
    statement = ast.parse(test).body[0]
    assert isinstance(statement, ast.Expr)
    assert [ast.unparse(leaf) for leaf in leaves_of(statement.value)] == leaves


def test_a_site_is_where_the_expression_is() -> None:
    made = source()
    first, second, third = leaves_of(nodes(made, ast.If)[0].test)
    assert made.condition(first) == Site("model.py", 6, 11, 6, 27, Kind.CONDITION)
    assert [made.text(made.condition(leaf)) for leaf in (first, second, third)] == [
        "mask is not None",
        "x.sum() > 0",
        "x.any()",
    ]
    assert made.text(made.condition(nodes(made, ast.BoolOp)[0])) == "mask is not None and (x.sum() > 0 or not x.any())"


def test_loops_are_known_by_what_they_go_through() -> None:
    made = source()
    loops = [made.loop(node) for node in nodes(made, ast.For | ast.While | ast.comprehension)]
    assert sorted(made.text(loop) for loop in loops) == ["x.norm() > 1", "x.tolist()", "y"]
    assert made.loop(nodes(made, ast.For)[0].iter) == made.loop(nodes(made, ast.For)[0])


def test_handlers_are_known_by_their_header() -> None:
    made = source()
    texts = [made.text(made.handler(node)) for node in nodes(made, ast.ExceptHandler)]
    assert texts == ["except (ValueError, RuntimeError)", "except"]


def test_numbers_are_found_by_their_end() -> None:
    """A call over several lines starts elsewhere in bytecode than in the file."""
    made = source()
    found = made.numbers_at(14, 24)
    assert found is not None
    assert made.text(found) == "x.max( ).item()"
    assert made.numbers_at(14, 23) is None
    call = next(node for node in nodes(made, ast.Call) if node.end_lineno == 14)
    assert made.number(call) == found


def test_functions_have_their_qualified_names() -> None:
    made = source()
    ternary = {made.text(made.condition(node.test)): node for node in nodes(made, ast.IfExp)}
    assert made.function(made.condition(ternary["Model"].test)) == "<module>"
    assert made.function(made.condition(ternary["z"].test)) == "Model.forward"
    assert made.function(made.loop(nodes(made, ast.comprehension)[0])) == "Model.forward.<locals>.inner"


EXCLUDED = """
    def f(a, b):
        if a:  # export: no branch
            g(1 if b else 2)
        elif b:
            pass
        if (a and
                b):  # noqa  # export: no branch
            pass
        x = [
            y for y in a if y
        ] + (a or b)  # export: no branch
        text = "# export: no branch" if b else ""
        for i in a:
            # export: no branch
            if i:
                pass

    @decorated  # export: no branch
    def h(a):
        if a:
            return 1 if a > 1 else 2

    class C:  #export:no branch
        def m(self, c):
            return c and self
"""


def test_exclusion() -> None:
    made = source(EXCLUDED.replace("#export:no", "#export: no"))
    sites = {
        *(made.condition(leaf) for node in nodes(made, ast.If | ast.IfExp) for leaf in leaves_of(node.test)),
        *(made.condition(node.values[0]) for node in nodes(made, ast.BoolOp)),
        *(made.condition(leaf) for node in nodes(made, ast.comprehension) for leaf in node.ifs),
        *(made.loop(node) for node in nodes(made, ast.For | ast.comprehension)),
    }
    excluded = sorted((site.line, made.text(site)) for site in sites if made.excluded(site))
    others = sorted((site.line, made.text(site)) for site in sites if not made.excluded(site))
    assert excluded == [
        *[(3, "a"), (7, "a"), (8, "b"), (11, "a"), (11, "y"), (12, "a")],
        *[(21, "a"), (22, "a > 1"), (26, "c")],
    ]
    assert others == [(4, "b"), (5, "b"), (13, "b"), (14, "a"), (16, "i")]


def test_nothing_is_excluded_without_a_comment() -> None:
    made = source()
    assert not any(made.excluded(made.condition(node)) for node in nodes(made, ast.expr))


def test_sources_are_read_through_linecache_and_again_when_they_change(tmp_path: Path) -> None:
    cell = "<cell 1>"
    text = "x = 1 if y else 2\n"
    linecache.cache[cell] = (len(text), None, text.splitlines(keepends=True), cell)
    try:
        made = source_of(cell)
        assert made is not None
        assert source_of(cell) is made
        text = "if changed: pass\n"
        linecache.cache[cell] = (len(text), None, text.splitlines(keepends=True), cell)
        made = source_of(cell)
        assert made is not None
        assert isinstance(made.tree.body[0], ast.If)
    finally:
        del linecache.cache[cell]
    wrong = tmp_path / "wrong.py"
    wrong.write_text("if (:\n")
    assert source_of(str(wrong)) is None
    assert source_of(str(tmp_path / "missing.py")) is None


def test_columns_are_bytes() -> None:
    made = Source("model.py", 'x = "é" if größe else 1\n')
    assert made.text(made.condition(nodes(made, ast.IfExp)[0].test)) == "größe"
