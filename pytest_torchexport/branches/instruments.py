"""The program that stands for the model in an instrumented run; also what its twins tell their decisions to."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pytest_torchexport.branches import formulas, tracked
from pytest_torchexport.branches.builtin_functions import SPECIAL, Builtins
from pytest_torchexport.branches.followed import Followed, Number, Test
from pytest_torchexport.branches.formulas import Count, Origin
from pytest_torchexport.branches.instrument import LOOPS, SITES
from pytest_torchexport.branches.knowledge import Array, Info
from pytest_torchexport.branches.margins import MarginMode
from pytest_torchexport.branches.short_circuit import ShortCircuit
from pytest_torchexport.branches.tracked import TrackedBool, TrackedFloat, TrackedInt
from pytest_torchexport.branches.twins import Twins
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.call import Call, bind, rebind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_torchexport.inputs.space import Space

_LIMIT = 20_000
"""Tests that are kept of one run; a loop over many elements should not fill the memory with graphs."""


class Instruments(ShortCircuit, Builtins):
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
        self._ranges: dict[int, tuple[range, Any]] = {}
        self._collections: dict[int, tuple[Any, Origin]] = {}
        tensors = {name: t for name, t in state.items() if isinstance(t, torch.Tensor)}
        self.mode = MarginMode({id(t) for t in tensors.values()}, self._taken, sizes=bool(space.sizes()))
        for name in changing & tensors.keys():
            self.mode.know(tensors[name], Info())
        self._twins = Twins(self, is_users)

    # --- the program --------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model once."""
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
        """What the model is given in the place of a number or tensor, the leaf noted by its key."""
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

    def _taken(self, made: Any) -> Any:
        """Note a number that the call which is on takes out of a tensor; it is returned."""
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
                return outcome, None if margin is None else formulas.as_real(margin), False, True
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
        """The length of a collection that tests decided; None of any other value."""
        held = self._collections.get(id(value))
        return TrackedInt(len(value), held[1]) if held is not None and held[0] is value else None

    def negate(self, value: Any) -> Any:
        """`not value`, as a value."""
        if isinstance(value, torch.Tensor):
            outcome, margin, size, depends = self._judge(value)
            return TrackedBool(not outcome, None if margin is None else -margin, size=size) if depends else not outcome
        if tracked.is_tracked(value):
            return TrackedBool(
                not tracked.plain(value), tracked.negative(tracked.margin_of(value)), size=tracked.is_size(value)
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
            joined = formulas.at_least(torch.stack(held), 1) if held else None
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
            joined = formulas.at_least(torch.stack(held), len(held)) if held else None
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
        special = SPECIAL.get(function) if isinstance(function, _HASHABLE) else None
        if special is None and not isinstance(function, types.BuiltinFunctionType) and _is_own(function):
            self._twins.add(function)
        self._within.append(site)
        try:
            if special is not None and args and not kwargs:
                return special(self, function, *args)
            if _keeps(function):
                begun = self.begun()
                made = function(*args, **kwargs)
                if isinstance(made, list | tuple | set | frozenset | dict) and args:
                    self.collected(begun, made)  # of a generator that filters
                if isinstance(made, set | frozenset) and any(map(tracked.is_tracked, made)):
                    self._collections[id(made)] = (made, Origin())  # how many differ depends on the numbers
                return made
            plain = {key: tracked.without_bools(value) for key, value in kwargs.items()}
            made = function(*map(tracked.without_bools, args), **plain)
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
        """Tensors from code that is not seen (a scripted module, vmap) depend on the input if what it is given does."""
        outputs = [one for one in (made if isinstance(made, list | tuple) else [made]) if isinstance(one, torch.Tensor)]
        unknown = [one for one in outputs if self.mode.info(one) is None]
        given = (*args, *kwargs.values())
        known = (isinstance(one, Array) or (isinstance(one, torch.Tensor) and self.mode.info(one)) for one in given)
        if unknown and any(known):
            for one in unknown:
                self.mode.know(one, Info())

    def _dependent(self, value: Any) -> Any:
        if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
            value = value.item()
        return tracked.track(value, None) if type(value) in (bool, int, float) else value


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


_HASHABLE = (type, types.BuiltinFunctionType)


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
    return (
        isinstance(owner, Array)
        or tracked.is_tracked(owner)
        or any(tracked.is_tracked(arg) or isinstance(arg, Array) for arg in args)
    )


def _keeps(function: Any) -> bool:
    """Whether a built-in function stores what it is given in a container of the user's."""
    owner = getattr(function, "__self__", None)
    return isinstance(owner, (list, dict, set)) or function in _CONTAINERS if isinstance(function, _HASHABLE) else False


_CONTAINERS = (list, tuple, set, frozenset, dict, enumerate, zip, reversed, map, filter, abs, round, divmod, pow)


def _at(named: Mapping[str, Any], path: str) -> Any:
    for name, value in named.items():
        if path == name:
            return value
        if path.startswith(name):
            for found, leaf in containers.leaves(value, name):
                if found == path:
                    return leaf
    return None
