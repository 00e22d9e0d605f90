"""Constants that a model's decisions may compare with: from its code, defaults, attributes, buffers and configuration.

Where no gradient leads to the other outcome, these are the values to try: an eos id, a window, a mode's name.
"""

from __future__ import annotations

import dataclasses
import dis
import enum
import itertools
import math
import re
import sys
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from pytest_torchexport.inputs.values import can_vary, dense
from pytest_torchexport.subject import objects
from pytest_torchexport.subject.call import forward_of

Constant = float | int | str

_MOST = 256
_SMALL = 16
"""Buffers, lists and dicts of at most so many elements are read."""

_DEEP = 3
"""How far a configuration is nested."""

_WORD = 32
"""A string of the code that is not compared with anything counts up to this length, if it is one word."""

_TELLING = re.compile(
    r"(^|_)(eos|bos|pad(ding)?|unk|mask|sep|cls|start|end|stop|id|idx|index|token|vocab|max|min|thr|thresh|threshold|"
    r"limit|bound|cap(acity)?|window|stride|size|len|length|num|n|k|top_?k|steps?|depth|block|chunk|margin|eps|tol|"
    r"tolerance|cutoff|mode|kind|reduction|budget|patience|count)s?(_|$|\d)"
)
"""Names of attributes that hold an id, a limit or a threshold."""

_COMPARING = frozenset(
    (
        *("gt", "lt", "ge", "le", "eq", "ne", "greater", "less", "greater_equal", "less_equal", "equal", "not_equal"),
        *("isclose", "allclose", "isin", "clamp", "clip", "clamp_min", "clamp_max", "maximum", "minimum", "max", "min"),
        *("threshold", "hardtanh", "bucketize", "searchsorted", "startswith", "endswith", "get", "topk", "range"),
    )
)
"""Functions whose constants bound something as those of a comparison do."""


def mine(model: Callable[..., Any], sources: Iterable[types.CodeType]) -> list[Constant]:
    """Numbers and strings that the model may compare its input with, the likeliest first, without repetitions.

    First come the constants of comparisons, then what their names stand for, then attributes whose names tell of an
    id or a limit, then other constants of the code, then the rest.

    Args:
        model: the model; the attributes of all its modules are read.
        sources: code objects that ran; the functions in them count too.

    Returns:
        At most 256 constants. Flags, None and NaN are none.
    """
    found = _Found()
    codes = list(dict.fromkeys(inner for code in sources for inner in _nested(code)))
    for code in codes:
        found.read(code)
    functions = _functions(model, set(codes))
    for function in functions:
        _of_function(function, found)
    for space in _globals(codes, functions):
        _of_globals(space, found)
    if isinstance(model, torch.nn.Module):
        _of_modules(model, found)
    elif not isinstance(model, types.FunctionType):
        _of_object("", model, found, 0)
    return found.ranked()


def around(value: Constant, dtype: torch.dtype = torch.float32) -> list[Constant]:
    """The constant and what lies closely on both sides of it, each once.

    Args:
        value: a number; a string stands alone.
        dtype: the floating dtype whose next numbers above and below are meant.
    """
    if isinstance(value, str):
        return [value]
    near: list[Constant] = [value, value + 1, value - 1]
    if isinstance(value, float) and math.isfinite(value):
        here = torch.tensor(value, dtype=dtype)
        if dtype.itemsize >= 2 and bool(here.isfinite()):
            steps = [torch.tensor(end, dtype=dtype) for end in (math.inf, -math.inf)]
            near[1:1] = [float(torch.nextafter(here, step)) for step in steps]
    return list(dict.fromkeys([*near, 2 * value]))


# --- what was found -------------------------------------------------------------------------------------------------


@dataclass
class _Found:
    """Constants by rank, 0 the likeliest; the names that comparisons mention; all names of the code; objects read."""

    by_rank: dict[int, dict[Constant, None]] = field(default_factory=dict)
    compared: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    read_already: dict[int, Any] = field(default_factory=dict)

    def add(self, rank: int, value: Any) -> None:
        """Add a constant, or those that a small collection or tensor holds."""
        for constant in _constants(value):
            self.by_rank.setdefault(rank, {}).setdefault(constant)

    def add_named(self, name: str, value: Any, otherwise: int) -> None:
        """Add what has a name; the rank follows from the name."""
        telling = _TELLING.search(name.lower()) is not None
        self.add(1 if name in self.compared else 2 if telling else otherwise, value)

    def read(self, code: types.CodeType) -> None:
        """The constants and names of one code object."""
        instructions = list(dis.get_instructions(code))
        spans = list(_comparisons(instructions))
        self.names.update(code.co_names)
        for here, after in itertools.pairwise([*instructions, instructions[-1]]):
            inside = any(_within(here, span) for span in spans)
            if here.opname in ("LOAD_CONST", "LOAD_SMALL_INT", "RETURN_CONST"):
                if not after.opname.startswith("CALL_KW") and (inside or _is_plain(here.argval)):
                    self.add(0 if inside else 3, here.argval)
            elif inside and isinstance(here.argval, str) and here.opname.startswith("LOAD_"):
                self.compared.add(here.argval)

    def ranked(self) -> list[Constant]:
        """All constants, each once."""
        every = dict.fromkeys(one for rank in sorted(self.by_rank) for one in self.by_rank[rank])
        return list(every)[:_MOST]


def _constants(value: Any) -> Iterator[Constant]:
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, bool):
        return
    if isinstance(value, (int, float, str)):
        if value == value and not (isinstance(value, str) and len(value) > 100):  # noqa: PLR0124 - NaN
            yield value
    elif isinstance(value, torch.Tensor):
        if can_vary(value) and not value.is_complex() and value.dtype is not torch.bool and value.numel() <= _SMALL:
            yield from (one for one in dense(value).reshape(-1).tolist() if not math.isnan(one))
    elif isinstance(value, (tuple, list, set, frozenset, range)) and len(value) <= _SMALL:
        ordered = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
        for one in ordered:
            if not isinstance(one, (tuple, list, torch.Tensor)):
                yield from _constants(one)


def _is_plain(value: Any) -> bool:
    """Whether a constant that is not compared counts: a number, or a string that is one short word."""
    if isinstance(value, str):
        return 0 < len(value) <= _WORD and " " not in value and "\n" not in value
    return isinstance(value, (int, float))


# --- code -----------------------------------------------------------------------------------------------------------


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for one in code.co_consts:
        if isinstance(one, types.CodeType):
            yield from _nested(one)


_Span = tuple[tuple[int, int], tuple[int, int]]


def _span(instruction: dis.Instruction) -> _Span | None:
    """Where the instruction's expression starts and ends in the source; None if Python does not know."""
    at = instruction.positions
    if at is None or at.lineno is None or at.end_lineno is None:
        return None
    whole = at.col_offset is None or at.end_col_offset is None  # python -X no_debug_ranges: by line
    return (at.lineno, 0 if whole else at.col_offset or 0), (at.end_lineno, 10**6 if whole else at.end_col_offset or 0)


def _within(instruction: dis.Instruction, span: _Span) -> bool:
    own = _span(instruction)
    return own is not None and span[0] <= own[0] and own[1] <= span[1]


def _comparisons(instructions: list[dis.Instruction]) -> Iterator[_Span]:
    """Where the comparisons stand, written as operators or as calls of functions that compare."""
    starts = set()
    for one in instructions:
        span = _span(one)
        if span is None:
            continue
        if one.opname in ("COMPARE_OP", "CONTAINS_OP", "IS_OP"):
            yield span
        elif one.argval in _COMPARING and one.opname.startswith("LOAD_"):
            starts.add(span[0])
        elif one.opname.startswith("CALL") and span[0] in starts:
            yield span


# --- functions and globals ------------------------------------------------------------------------------------------


def _functions(model: Callable[..., Any], codes: Collection[types.CodeType]) -> list[types.FunctionType]:
    """The functions of the model's classes and, of their files, those that ran."""
    found: dict[int, types.FunctionType] = {}

    def add(value: Any) -> None:
        value = getattr(value, "__func__", value)
        value = getattr(value, "fget", value)
        if isinstance(value, types.FunctionType):
            found.setdefault(id(value), value)

    add(forward_of(model))
    parts = list(model.modules()) if isinstance(model, torch.nn.Module) else [model]
    kinds = dict.fromkeys(kind for part in parts for kind in type(part).__mro__ if objects.is_users_class(kind))
    for kind in kinds:
        for value in vars(kind).values():
            add(value)
    for space in [function.__globals__ for function in list(found.values())]:
        for value in list(space.values()):
            if getattr(value, "__code__", None) in codes:
                add(value)
    return list(found.values())


def _of_function(function: types.FunctionType, found: _Found) -> None:
    """Its default arguments and the values that it closes over."""
    code = function.__code__
    defaults = function.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    for name, value in [*zip(names, defaults, strict=True), *(function.__kwdefaults__ or {}).items()]:
        _of_value(name, value, found, 4, 0)
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            _of_value(name, cell.cell_contents, found, 4, 0)
        except ValueError:  # an empty cell
            continue


def _globals(codes: list[types.CodeType], functions: list[types.FunctionType]) -> list[dict[str, Any]]:
    """The global names of the files that the code is from."""
    known = {function.__code__.co_filename: function.__globals__ for function in functions}
    missing = {code.co_filename for code in codes} - set(known)
    if missing:
        for module in list(sys.modules.values()):
            file = getattr(module, "__file__", None)
            if file in missing:
                known[file] = vars(module)
    wanted = {code.co_filename for code in codes}
    return [space for file, space in known.items() if file in wanted]


def _of_globals(space: dict[str, Any], found: _Found) -> None:
    """Constants of the file that the code names, members of its enumerations, attributes of its settings."""
    for name, value in list(space.items()):
        if name.startswith("__") or name not in found.names:
            continue
        if isinstance(value, enum.EnumType):
            found.add(2, list(value))
        elif isinstance(value, (type, types.ModuleType)):
            users = objects.is_users_class(value) if isinstance(value, type) else not _is_library(value)
            for inner in sorted(found.names & set(vars(value))) if users else ():
                found.add_named(inner, vars(value)[inner], 4)
        else:
            _of_value(name, value, found, 4, 0)


def _is_library(module: types.ModuleType) -> bool:
    package = module.__name__.partition(".")[0]
    return package in ("torch", "numpy") or package in sys.stdlib_module_names


# --- objects --------------------------------------------------------------------------------------------------------


def _of_modules(model: torch.nn.Module, found: _Found) -> None:
    """Attributes and small buffers of every module, and parameters that are one number."""
    for kind in dict.fromkeys(kind for module in model.modules() for kind in reversed(type(module).__mro__)):
        if objects.is_users_class(kind):
            for name, value in vars(kind).items():
                if not name.startswith("__") and _is_data(value):
                    _of_value(name, value, found, 4, 0)
    for module in model.modules():
        otherwise = 4 if objects.is_users_class(type(module)) else 5
        for name, value in vars(module).items():
            if not name.startswith("_") or name in found.names:
                _of_value(name, value, found, otherwise, 0)
        numbers = [(name, one) for name, one in module.named_parameters(recurse=False) if one.numel() == 1]
        for name, tensor in [*module.named_buffers(recurse=False), *numbers]:
            found.add_named(name, tensor, otherwise)


def _is_data(value: Any) -> bool:
    return isinstance(value, (int, float, str, tuple, list, dict, set, frozenset, enum.Enum, torch.Tensor))


def _of_value(name: str, value: Any, found: _Found, otherwise: int, depth: int) -> None:
    """A value with a name: a constant, or an object that holds some."""
    if isinstance(value, (torch.nn.Module, types.FunctionType, types.ModuleType, type)):
        return
    found.add_named(name, value, otherwise)
    if isinstance(value, enum.Enum):
        found.add(5, list(type(value)))
    elif not isinstance(value, (int, float, str, bytes, tuple, set, frozenset, torch.Tensor)):
        _of_object(name, value, found, depth)


def _of_object(name: str, value: Any, found: _Found, depth: int) -> None:
    """The entries of a dict or of a list, and the attributes of a configuration."""
    if depth >= _DEEP or id(value) in found.read_already:
        return
    found.read_already[id(value)] = value
    inside: Mapping[Any, Any]
    if isinstance(value, Mapping):
        inside = value
        if len(value) <= _SMALL:
            found.add_named(name, tuple(value), 5)
    elif isinstance(value, list):
        inside = dict.fromkeys([name], None) if len(value) > _SMALL else {f"{name}_{i}": v for i, v in enumerate(value)}
    elif dataclasses.is_dataclass(value) or not objects.is_foreign(value):
        inside = objects.attributes(value)
    else:
        return
    for key, part in list(inside.items())[:_MOST]:
        if isinstance(key, str) and not key.startswith("_"):
            _of_value(key, part, found, 4, depth + 1)
