"""One instrumented run: which decisions it took, which of them depend on the input, and how far each was from the other."""

from __future__ import annotations

import math
import types
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from pytest_torchexport.branches import tracked
from pytest_torchexport.branches.instrument import LOOPS, RELAY, SITES
from pytest_torchexport.branches.margins import Array as _Array
from pytest_torchexport.branches.margins import Info, Lookup, MarginMode
from pytest_torchexport.branches.observation import Endless
from pytest_torchexport.branches.tracked import Count, Origin, TrackedBool, TrackedFloat, TrackedInt
from pytest_torchexport.branches.twins import Twins
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.call import Call, bind, rebind
from pytest_torchexport.subject.run import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from pytest_torchexport.branches.sites import Site
    from pytest_torchexport.inputs.space import Space

_LIMIT = 20_000
"""Tests that are kept of one run; a loop over many elements should not fill the memory with graphs."""


class Runner(Protocol):
    """Runs eager on a sequence of calls from its starting state, and puts that state back."""

    def __call__(
        self,
        calls: tuple[Call, ...],
        *,
        program: Callable[..., Any] | None = None,
        mode: AbstractContextManager[Any] | None = None,
    ) -> Record:
        """What it did; `program` is called in the model's place, `mode` is entered around each call."""


@dataclass(frozen=True, eq=False)
class Test:
    """One decision as it was taken.

    Attributes:
        site: where.
        outcome: which way.
        margin: 0-d float64, positive where the condition holds; None without a gradient.
        size: what it depends on are sizes alone.
        loop: the `while` loop whose test it is part of.
    """

    site: Site
    outcome: bool
    margin: torch.Tensor | None
    size: bool
    loop: Site | None = None

    @property
    def level(self) -> float:
        """The margin as a number; infinite where there is none."""
        return math.inf if self.margin is None else float(self.margin.detach())


@dataclass(frozen=True, eq=False)
class Number:
    """One number taken out of a tensor: where, its value, and where that comes from."""

    site: Site
    value: Any
    origin: Origin | None
    size: bool


@dataclass
class Followed:
    """What an instrumented run saw.

    Attributes:
        tests: the conditions that depend on the input, in the order in which they were decided.
        path: every condition, also those that depend on nothing but the code, with its outcome.
        numbers: the numbers taken out of tensors that depend on the input.
        leaves: by call and path, the tensors with respect to which margins have gradients.
        lookups: tables that were read by index.
        record: what the run gave.
        loops: iterables of `for` loops that depend on the input.
        codes: code of the user's functions.
    """

    tests: list[Test] = field(default_factory=list)
    path: list[tuple[Site, bool]] = field(default_factory=list)
    numbers: list[Number] = field(default_factory=list)
    leaves: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict)
    lookups: list[Lookup] = field(default_factory=list)
    loops: list[Site] = field(default_factory=list)
    codes: list[types.CodeType] = field(default_factory=list)
    record: Record | None = None

    def test(self, site: Site, nth: int = 0) -> Test | None:
        """The n-th decision at the site."""
        found = [test for test in self.tests if test.site == site]
        return found[nth] if nth < len(found) else None

    def gradient(self, of: torch.Tensor) -> dict[tuple[int, str], torch.Tensor]:
        """The gradient of a margin (or number) with respect to each leaf that it depends on."""
        if not of.requires_grad or not self.leaves:
            return {}
        tables = [lookup.output for lookup in self.lookups]
        wanted = [*self.leaves.values(), *tables]
        try:
            found = torch.autograd.grad(of, wanted, retain_graph=True, allow_unused=True)
        except RuntimeError:  # a step without a derivative
            return {}
        grads = {key: g for key, g in zip(self.leaves, found, strict=False) if g is not None}
        self.table_gradients = [
            (lookup, g) for lookup, g in zip(self.lookups, found[len(self.leaves) :], strict=True) if g is not None
        ]
        return grads

    table_gradients: list[tuple[Lookup, torch.Tensor]] = field(default_factory=list)


def follow(
    runner: Runner,
    space: Space,
    calls: tuple[Call, ...],
    *,
    is_users: Callable[[str], bool],
    state: Mapping[str, Any] | None = None,
    changing: frozenset[str] = frozenset(),
    limit: float = math.inf,
) -> Followed:
    """Run the calls with the user's functions replaced by their twins.

    Args:
        runner: runs eager.
        space: what varies in the calls.
        calls: the input.
        is_users: whether the code of a file counts as the user's.
        state: tensors of the model's state by name.
        changing: names of the state that forward changes: it depends on earlier calls.
        limit: how many of torch's functions it may call.
    """
    followed = Followed()
    program = _Followed(space, followed, is_users, dict(state or {}), changing)
    program.mode.limit = limit
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the user's code has to say, it says in the other runs
        try:
            followed.record = runner(calls, program=program)
        except Endless as error:
            followed.record = Record(error=RuntimeError(str(error)))
    followed.lookups = program.mode.lookups
    followed.record.outputs = containers.rebuild(followed.record.outputs, tracked.plain)
    return followed


class _Followed:
    """The program that stands for the model in an instrumented run; also the runtime of the twins."""

    def __init__(
        self,
        space: Space,
        followed: Followed,
        is_users: Callable[[str], bool],
        state: dict[str, Any],
        changing: frozenset[str],
    ) -> None:
        self._space, self._followed, self._is_users = space, followed, is_users
        self._calls = 0
        self._within: list[int] = []
        self._last: Any = None
        self._ranges: dict[int, tuple[range, Any]] = {}
        self._collections: dict[int, tuple[Any, Origin]] = {}
        tensors = {name: t for name, t in state.items() if isinstance(t, torch.Tensor)}
        self.mode = MarginMode({id(t) for t in tensors.values()}, self._taken, bool(space.sizes()))
        for name in changing & tensors.keys():
            self.mode.know(tensors[name], Info())
        self._twins = Twins(self, is_users)

    # --- the program --------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self._with_leaves(Call(args, kwargs))
        self._calls += 1
        with self._twins, torch.inference_mode(mode=False):
            self._twins.cover(self._space.model)
            try:
                with self.mode:
                    return self._space.model(*call.args, **call.kwargs)
            finally:
                self._followed.codes = self._twins.codes()

    def _with_leaves(self, call: Call) -> Call:
        """The call with every number that may vary as a leaf of autograd's graph."""
        named = bind(self._space.model, call)
        made: dict[str, Any] = {}
        same: dict[int, Any] = {}
        for path, numbers in self._space.numbers(call).items():
            value = numbers.value
            held = _at(named, path)
            if id(held) in same and isinstance(held, torch.Tensor):
                made[path] = same[id(held)]
                continue
            made[path] = same[id(held)] = self._leaf((self._calls, path), held, value)
        named = {name: containers.replace(value, made, name) for name, value in named.items()}
        for _, tensor in containers.tensors(named):
            if self.mode.info(tensor) is None:
                self.mode.know(tensor, Info())
        return rebind(self._space.model, call, named, call.kind, call.label)

    def _leaf(self, key: tuple[int, str], held: Any, value: torch.Tensor) -> Any:
        with torch.enable_grad():
            if not isinstance(held, torch.Tensor):
                leaf = torch.tensor(float(value), dtype=torch.float64, requires_grad=True)
                self._followed.leaves[key] = leaf
                if isinstance(held, bool):
                    return held
                kind = TrackedInt if isinstance(held, int) else TrackedFloat
                return kind(held, Origin(leaf))
            if held.is_floating_point():
                leaf = held.detach().requires_grad_()
                self._followed.leaves[key] = leaf
                given = leaf.view_as(leaf) * 1  # in-place changes are for tensors that are no leaves
                given = given if given.stride() == held.stride() else leaf.clone()
                self.mode.know(given, Info())
                return given
            if held.is_complex():
                return held
            leaf = held.detach().to(torch.float64).requires_grad_()
            self._followed.leaves[key] = leaf
            margins = leaf - 0.5 if held.dtype is torch.bool else None
            self.mode.know(held, Info(mirror=leaf * 1, margins=margins))
            return held

    # --- numbers ------------------------------------------------------------------------------------------------

    def _taken(self, how: str, tensor: torch.Tensor | None, made: Any) -> Any:
        """A number was taken out of a tensor by the call that is on."""
        del how, tensor
        index = self._within[-1] if self._within else -1
        if index < 0:
            return made
        site = SITES[index]
        size = tracked.is_size(made)
        self._followed.numbers.append(Number(site, tracked.plain(made), getattr(made, "origin", None), size))
        return made

    # --- the runtime of twins -----------------------------------------------------------------------------------

    def test(self, site: int, value: Any) -> bool:
        """Decide a condition."""
        where = SITES[site]
        outcome, margin, size, depends = self._judge(value)
        if len(self._followed.path) < _LIMIT:
            self._followed.path.append((where, outcome))
            if depends:
                self._followed.tests.append(Test(where, outcome, margin, size, LOOPS.get(site)))
        return outcome

    def _judge(self, value: Any) -> tuple[bool, torch.Tensor | None, bool, bool]:
        """Truth, margin, whether it depends on sizes alone, whether it depends on the input."""
        if isinstance(value, torch.Tensor):
            info = self.mode.info(value)
            with torch._C.DisableTorchFunction():
                outcome = bool(value.detach())
            if info is None:
                return outcome, None, False, False
            with torch.enable_grad():
                margin = self.mode.margin(value)
            return outcome, None if margin is None else tracked.as_real(margin), False, True
        if tracked.is_tracked(value):
            with torch.enable_grad():
                return bool(tracked.plain(value)), tracked.margin_of(value), tracked.is_size(value), True
        if isinstance(value, np.ndarray | np.generic):  # numpy's numbers in a forward come from tensors
            return bool(value), None, False, True
        length = self._length_of(value)
        if length is not None:
            with torch.enable_grad():
                return bool(value), tracked.margin_of(length), False, True
        return bool(value), None, False, False

    def _length_of(self, value: Any) -> TrackedInt | None:
        """The length of a collection that tests decided."""
        held = self._collections.get(id(value))
        return TrackedInt(len(value), held[1]) if held is not None and held[0] is value else None

    def hold(self, site: int, value: Any) -> bool:
        """Decide an operand of `and`; where it ends the evaluation, it is the value."""
        going_on = self.test(site, value) if site >= 0 else bool(tracked.plain(value))
        if not going_on:
            self._last = value
        return going_on

    def hold_or(self, site: int, value: Any) -> bool:
        """Decide an operand of `or`: whether to go on."""
        ends = self.test(site, value) if site >= 0 else bool(tracked.plain(value))
        if ends:
            self._last = value
        return not ends

    def noted(self, site: int, value: Any) -> Any:
        """Decide a condition whose value is needed itself."""
        outcome = self.test(site, value)
        return value if outcome == bool(tracked.plain(value)) else outcome

    def box(self, value: Any) -> Any:
        """The last operand, as something true."""
        return _Box(value)

    def held(self, result: Any) -> Any:
        """The value of `and` or `or`."""
        if isinstance(result, _Box):
            return result.value
        value, self._last = self._last, None
        return value

    def negate(self, value: Any) -> Any:
        """`not value`, as a value."""
        if isinstance(value, torch.Tensor):
            outcome, margin, size, depends = self._judge(value)
            return TrackedBool(not outcome, None if margin is None else -margin, size=size) if depends else not outcome
        if tracked.is_tracked(value):
            return TrackedBool(
                not tracked.plain(value), _negative(tracked.margin_of(value)), size=tracked.is_size(value)
            )
        return not value

    def same(self, one: Any, two: Any) -> Any:
        """`one is two`."""
        for value, other in ((one, two), (two, one)):
            if isinstance(value, TrackedBool) and isinstance(tracked.plain(other), bool):
                return value if tracked.plain(other) else tracked.negated(value)
        return tracked.plain(one) is tracked.plain(two) if tracked.is_tracked(one) else one is two

    def contains(self, member: Any, container: Any) -> Any:
        """`member in container`."""
        if isinstance(container, torch.Tensor):
            return container.__contains__(tracked.plain(member))
        result = tracked.plain(member) in container
        listed = isinstance(container, tuple | list | set | frozenset | range | dict)
        if not listed or not (tracked.is_tracked(member) or any(map(tracked.is_tracked, container))):
            return result
        with torch.enable_grad():
            margins = [tracked.margin_of(_equal(member, one)) for one in list(container)[:_ELEMENTS]]
            held = [margin for margin in margins if margin is not None]
            joined = tracked.at_least(torch.stack(held), 1) if held else None
        return TrackedBool(result, joined, size=tracked.is_size(member))

    def unequal(self, one: Any, two: Any) -> Any:
        """`one != two`; of lists, element by element."""
        return self.negate(self.equal(one, two)) if _are_lists(one, two) else one != two

    def equal(self, one: Any, two: Any) -> Any:
        """`one == two`; of lists, element by element."""
        if not _are_lists(one, two):
            return one == two
        result = one == two
        if len(one) != len(two) or not any(map(tracked.is_tracked, (*one, *two))):
            return result
        with torch.enable_grad():
            margins = [tracked.margin_of(_equal(a, b)) for a, b in zip(one, two, strict=True)]
            held = [margin for margin in margins if margin is not None]
            joined = tracked.at_least(torch.stack(held), len(held)) if held else None
        return TrackedBool(bool(result), joined)

    def chain(self, names: str, *operands: Any) -> Any:
        """`a < b < c`, of operands without effects."""
        result: Any = None
        for name, one, two in zip(names.split(), operands, operands[1:], strict=False):
            this = _COMPARE[name](one, two)
            result = this if result is None else self._and(result, this)
            if not isinstance(result, torch.Tensor) and not tracked.is_tracked(result) and not result:
                return result
        return result

    def _and(self, one: Any, two: Any) -> Any:
        parts = []
        for value in (one, two):
            outcome, margin, size, depends = self._judge(value)
            parts.append(TrackedBool(outcome, margin, size=size) if depends else outcome)
        return tracked.both(*parts) if any(isinstance(part, TrackedBool) for part in parts) else parts[0] and parts[1]

    def begun(self) -> int:
        """Where the tests of a comprehension begin."""
        return len(self._followed.tests)

    def collected(self, begun: int, container: Any) -> Any:
        """What a comprehension made: its length depends on the tests in it."""
        tests = self._followed.tests[begun:]
        if tests and len(self._collections) < _LIMIT:
            margins = [test.margin for test in tests if test.margin is not None]
            count = Count(torch.stack(margins)) if margins and len(margins) == len(tests) else None
            self._collections[id(container)] = (container, Origin(None, count))
        return container

    def iterate(self, site: int, iterable: Any) -> Any:
        """What a loop goes through."""
        held = self._ranges.get(id(iterable))
        depends = isinstance(iterable, torch.Tensor) and bool(self._space.sizes())
        if depends or (held is not None and held[0] is iterable):
            self._followed.loops.append(SITES[site])
        return iterable

    def caught(self, site: int) -> None:
        """An `except` clause is entered: the observer has seen it."""

    def call(self, site: int, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function."""
        for given in args:
            if isinstance(given, types.FunctionType | types.MethodType):
                self._twins.add(given)  # it may be called by a library, as a checkpointed function is
        if isinstance(function, types.FunctionType | types.MethodType | torch.nn.Module):
            self._twins.add(function)
            return self._users_own(function, args, kwargs)
        special = _SPECIAL.get(function) if isinstance(function, _HASHABLE) else None
        if special is None and not isinstance(function, types.BuiltinFunctionType) and _is_own(function):
            self._twins.add(function)
        self._within.append(site)
        try:
            if special is not None and args and not kwargs:
                return special(self, function, *args)
            if _keeps(function):
                made = function(*args, **kwargs)
                if isinstance(made, set | frozenset) and any(map(tracked.is_tracked, made)):
                    self._collections[id(made)] = (made, Origin())  # how many differ depends on the numbers
                return made
            made = function(*_plainly(args), **{key: _plain_bool(value) for key, value in kwargs.items()})
            if not isinstance(made, int | float | str | None):
                self._spread(args, kwargs, made)
            # What a library makes of a number depends on the input as the number does.
            return self._dependent(made) if _depend(function, args) else made
        finally:
            self._within.pop()

    def _users_own(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Call a Python function; a plain value that it chose by a test depends on the input."""
        before = len(self._followed.tests)
        self._within.append(-1)
        try:
            made = function(*args, **kwargs)
        finally:
            self._within.pop()
        self._spread(args, kwargs, made)
        return self._dependent(made) if len(self._followed.tests) > before else made

    def _spread(self, args: Any, kwargs: Any, made: Any) -> None:
        """Tensors from code that is not seen (a scripted module, vmap) depend on the input if what it was given does."""
        outputs = [one for one in (made if isinstance(made, list | tuple) else [made]) if isinstance(one, torch.Tensor)]
        unknown = [one for one in outputs if self.mode.info(one) is None]
        given = (*args, *kwargs.values())
        if unknown and any(isinstance(one, torch.Tensor) and self.mode.info(one) is not None for one in given):
            for one in unknown:
                self.mode.know(one, Info())

    def _dependent(self, value: Any) -> Any:
        if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
            value = value.item()
        return tracked.track(value, None) if type(value) in (bool, int, float) else value

    def cast(self, function: Any, value: Any, *rest: Any) -> Any:
        """`float(value)`, `int(value)`, `bool(value)`."""
        if rest:
            return function(tracked.plain(value), *rest)
        if isinstance(value, torch.Tensor) and self.mode.info(value) is not None:
            value = self._taken_from(function, value)
        elif isinstance(value, np.ndarray | np.generic):
            return tracked.track(function(value), None)
        if isinstance(value, TrackedBool):
            return value if function is bool else self.cast(function, value.number())
        if not tracked.is_tracked(value):
            return function(value)
        if function is bool:
            return TrackedBool(bool(tracked.plain(value)), tracked.margin_of(value), size=tracked.is_size(value))
        made = tracked.through(
            function(tracked.plain(value)), _SAME if function is float else tracked.rounded["trunc"], value
        )
        origin = value.origin
        made.origin = Origin(made.origin.real, origin.count, origin.choice, size=origin.size)
        return made

    def _taken_from(self, function: Any, tensor: torch.Tensor) -> Any:
        with torch._C.DisableTorchFunction():
            value = tensor.detach().item()
        made = self.mode._number(tensor, value)
        if function is not bool:
            return self._taken("cast", tensor, made)
        return made

    def length(self, function: Any, value: Any) -> Any:
        """`len(value)`; of a tensor it is a size."""
        if isinstance(value, torch.Tensor):
            return value.__len__()
        length = self._length_of(value)
        return function(value) if length is None else length

    def quantify(self, function: Any, values: Any) -> Any:
        """`any` or `all` of truth values."""
        if isinstance(values, torch.Tensor):
            return function(values)
        parts: list[TrackedBool | bool] = []
        depends = size = False
        for value in values:
            outcome, margin, of_size, known = self._judge(value)
            depends, size = depends or known, size or of_size
            parts.append(TrackedBool(outcome, margin, size=of_size) if known else outcome)
            if outcome is (function is any):
                break
        result = function(bool(part) for part in parts)
        if not depends:
            return result
        with torch.enable_grad():
            margins = [part.margin for part in parts if isinstance(part, TrackedBool) and part.margin is not None]
            if not margins:
                return TrackedBool(result, None, size=size)
            joined = torch.stack([margin.to(torch.float64) for margin in margins])
            return TrackedBool(result, tracked.at_least(joined, 1 if function is any else len(margins)), size=size)

    def extreme(self, function: Any, *values: Any) -> Any:
        """`max`, `min`, `sum`, `sorted` over numbers: comparing tracked ones keeps them tracked."""
        return function(*values)

    def count_up(self, function: Any, *values: Any) -> Any:
        """`range(n)`."""
        made = function(*(tracked.plain(v) for v in values))
        if any(map(tracked.is_tracked, values)):
            self._ranges[id(made)] = (made, values[-1])
        return made

    def calculate(self, function: Any, *values: Any) -> Any:
        """A function of `math`."""
        values = tuple(
            self._taken_from(float, v) if isinstance(v, torch.Tensor) and self.mode.info(v) is not None else v
            for v in values
        )
        value = function(*(tracked.plain(v) for v in values))
        if not any(map(tracked.is_tracked, values)):
            return value
        if function in (math.isnan, math.isinf, math.isfinite):
            return TrackedBool(value, None)
        return tracked.through(value, _MATH[function], *values)


def _are_lists(one: Any, two: Any) -> bool:
    return type(one) is type(two) and isinstance(one, tuple | list) and not isinstance(one, torch.Size)


def _equal(one: Any, two: Any) -> Any:
    """Whether two elements are equal, tracked where one of them is a tracked number."""
    numbers = all(isinstance(tracked.plain(value), int | float) for value in (one, two))
    if not numbers or not (tracked.is_tracked(one) or tracked.is_tracked(two)):
        return tracked.plain(one) == tracked.plain(two)
    return tracked.compare("eq", one, two)


_ELEMENTS = 256
"""Elements of a container that are looked at one by one."""


@dataclass(frozen=True, slots=True)
class _Box:
    value: Any


_HASHABLE = (type, types.BuiltinFunctionType)
_SAME: Callable[[torch.Tensor], torch.Tensor] = lambda value: value * 1.0  # noqa: E731

_MATH: dict[Any, Callable[..., torch.Tensor]] = {
    **{getattr(math, n): getattr(torch, n) for n in ("sqrt", "exp", "sin", "cos", "tan", "tanh", "log2", "log10")},
    **{getattr(math, n): getattr(torch, n) for n in ("log1p", "expm1", "atan", "asin", "acos", "sinh", "cosh")},
    **{getattr(math, n): tracked.rounded[n] for n in ("floor", "ceil", "trunc")},
    math.log: lambda x, base=None: torch.log(x) if base is None else torch.log(x) / torch.log(base),
    math.fabs: torch.abs,
    math.pow: torch.pow,
    math.hypot: torch.hypot,
    math.atan2: torch.atan2,
    math.fmod: torch.fmod,
    math.erf: torch.erf,
    math.copysign: torch.copysign,
}

_SPECIAL: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((float, int, bool), _Followed.cast),
    len: _Followed.length,
    range: _Followed.count_up,
    **dict.fromkeys((max, min, sum, sorted), _Followed.extreme),
    **dict.fromkeys((any, all), _Followed.quantify),
    **dict.fromkeys((*_MATH, math.isnan, math.isinf, math.isfinite), _Followed.calculate),
}

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
}


def _is_own(function: Any) -> bool:
    """Whether something callable may run code of the user's: a class, or an object with `__call__`."""
    kind = function if isinstance(function, type) else type(function)
    return not kind.__module__.startswith(("builtins", "torch", "numpy"))


def _depend(function: Any, args: tuple[Any, ...]) -> bool:
    """Whether a library's function is given something that depends on the input, other than a tensor."""
    owner = getattr(function, "__self__", None)
    return isinstance(owner, _Array) or tracked.is_tracked(owner) or any(tracked.is_tracked(arg) or isinstance(arg, _Array) for arg in args)


def _keeps(function: Any) -> bool:
    """Whether a built-in function stores what it is given in a container of the user's."""
    owner = getattr(function, "__self__", None)
    return isinstance(owner, (list, dict, set)) or function in _CONTAINERS if isinstance(function, _HASHABLE) else False


_CONTAINERS = (list, tuple, set, frozenset, dict, enumerate, zip, reversed, map, filter, abs, round, divmod, pow)


def _plain_bool(value: Any) -> Any:
    if isinstance(value, TrackedBool):
        return value.value
    if type(value) in (list, tuple) and any(isinstance(one, TrackedBool) for one in value):
        return type(value)(_plain_bool(one) for one in value)
    return value


def _plainly(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_plain_bool(arg) for arg in args)


def _negative(margin: torch.Tensor | None) -> torch.Tensor | None:
    return None if margin is None else -margin


def _at(named: Mapping[str, Any], path: str) -> Any:
    for name, value in named.items():
        if path == name:
            return value
        if path.startswith(name):
            for found, leaf in containers.leaves(value, name):
                if found == path:
                    return leaf
    return None


__all__ = ["RELAY", "Followed", "Number", "Runner", "Test", "follow"]
