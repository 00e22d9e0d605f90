"""Where in a file the definition of a code object stands. Standard library only."""

from __future__ import annotations

import ast
import weakref
from typing import TYPE_CHECKING, Any

from pytest_torchexport.branches.sites import Source, source_of

if TYPE_CHECKING:
    import types

_DEFINITIONS: weakref.WeakKeyDictionary[Source, dict[tuple[str, int], list[list[Any]]]] = weakref.WeakKeyDictionary()


def definition(code: types.CodeType) -> tuple[Source, Any] | None:
    """The file of a code object and its definition there; None if that is not known for sure."""
    source = source_of(code.co_filename)
    found = find(source, code) if source is not None else None
    return None if source is None or found is None else (source, found[-1])


def find(source: Source, code: types.CodeType) -> list[Any] | None:
    """The definition of a code object, after what encloses it; None if there is none, or several that could be it."""
    if code.co_name.startswith("<") and code.co_name != "<lambda>":
        return None
    found = _definitions(source).get((code.co_name, code.co_firstlineno), [])
    if code.co_name == "<lambda>":
        count = code.co_argcount + code.co_kwonlyargcount
        found = [path for path in found if _argument_names(path[-1]) == code.co_varnames[:count]]
    return found[0] if len(found) == 1 else None


def _argument_names(node: ast.Lambda) -> tuple[str, ...]:
    return tuple(a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs))


def _definitions(source: Source) -> dict[tuple[str, int], list[list[Any]]]:
    """All definitions of a file by name and first line, each after what encloses it."""
    if source in _DEFINITIONS:
        return _DEFINITIONS[source]
    found: dict[tuple[str, int], list[list[Any]]] = {}

    def look(node: ast.AST, above: list[Any]) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = min([child.lineno, *(d.lineno for d in child.decorator_list)])
                found.setdefault((child.name, first), []).append([*above, child])
                look(child, [*above, child])
            elif isinstance(child, ast.ClassDef):
                look(child, [*above, child])
            elif isinstance(child, ast.Lambda):
                found.setdefault(("<lambda>", child.lineno), []).append([*above, child])
                look(child, above)
            elif not isinstance(child, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
                look(child, above)  # the variables of a comprehension cannot be rebuilt around a definition

    look(source.tree, [])
    _DEFINITIONS[source] = found
    return found
