"""Eager once more, with chosen decisions held to what another run took: what would the module have done then?

Unlike an instrumented run of the search, a replay follows no gradients: the user's code computes with its own numbers.
"""

from __future__ import annotations

import itertools
import operator
import sys
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from pytest_torchexport.branches.instrument import LOOPS, SITES
from pytest_torchexport.branches.short_circuit import ShortCircuit
from pytest_torchexport.branches.sites import Site, source_of
from pytest_torchexport.branches.twins import Twins

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType

Path = dict[Site, list[Any]]
"""What one call took at each decision, one entry each time; the decisions in the order in which it came to them.

Truth values, a `Loop` for each time that a loop was entered, a `Taken` for each number, True for an `except` clause.
"""

_LIMIT = 20_000
"""Entries that are kept of one decision."""
_VALUES = 1_000
"""Values that are kept of one loop."""


class CannotHold(Exception):
    """A decision cannot be held to what the other run took: there are not enough elements to go through."""


@dataclass(eq=False)
class Loop:
    """One time that a `for` loop ran.

    Attributes:
        count: iterations begun.
        ended: nothing was left, so that the loop did not break.
        tensor: it goes through a tensor.
        values: what it went through, as far as that are plain values (numbers, strings, tuples of them) only.
    """

    count: int = 0
    ended: bool = False
    tensor: bool = False
    values: list[Any] | None = field(default_factory=list)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Loop) and (self.count, self.ended) == (other.count, other.ended)

    __hash__ = None  # type: ignore[assignment]  # what it holds can change

    def __repr__(self) -> str:
        return f"{self.count} iteration{'' if self.count == 1 else 's'}"


@dataclass(eq=False)
class Taken:
    """A number, a list, an array or a size that was taken out of a tensor."""

    value: Any
    size: bool

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Taken):
            return NotImplemented
        if isinstance(self.value, np.ndarray) and isinstance(other.value, np.ndarray):
            return np.array_equal(self.value, other.value)
        return repr(self.value) == repr(other.value)  # NaN is NaN here, and 1 is not 1.0

    __hash__ = None  # type: ignore[assignment]  # what it holds can change

    def __repr__(self) -> str:
        return repr(list(self.value)) if isinstance(self.value, torch.Size) else repr(self.value)

    def copy(self) -> Any:
        """The value, for someone who may change it."""
        if isinstance(self.value, list):
            return _copied(self.value)
        return self.value.copy() if isinstance(self.value, np.ndarray) else self.value


class Replay(ShortCircuit):
    """Stands in the model's place in one run: the user's functions are replaced by twins that ask it at each decision.

    Args:
        model: what is run.
        is_users: whether the code of a file counts as the user's.
        hold: what decisions are to take, in each call from the first time on; those left out go as they go. For an
            `except` clause any entry stands for not entering it.

    Attributes:
        paths: what each call took.
        whiles: of the conditions of `while` loops, the loop.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        is_users: Callable[[str], bool],
        hold: Mapping[Site, list[Any]] | None = None,
    ) -> None:
        self.paths: list[Path] = []
        self.whiles: dict[Site, Site] = {}
        self._model, self._is_users, self._hold = model, is_users, dict(hold or {})
        self._path: Path = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model once."""
        self._path = {}
        self.paths.append(self._path)
        with Twins(self, self._is_users) as self._twins:
            self._twins.cover(self._model)
            with _Numbers(self):
                return self._model(*args, **kwargs)

    def decide(self, site: Site, find: Callable[[], Any]) -> Any:
        """What is taken at the site now: what it is held to, or else what `find` says."""
        taken = self._path.setdefault(site, [])
        held = self._hold.get(site, [])
        if len(taken) < len(held):
            outcome = held[len(taken)]
        else:
            # The other run was here less often; where it always took the same it would have done so again.
            outcome = held[0] if held and all(one == held[0] for one in held) else find()
        if len(taken) < _LIMIT:
            taken.append(outcome)
        return outcome

    def site_of(self, frame: FrameType | None) -> Site | None:
        """The expression of the user's that a frame is at; None if it is no code of the user's."""
        if frame is not None and frame.f_code is Replay.call.__code__:
            frame = frame.f_back
        if frame is None or not self._is_users(frame.f_code.co_filename):
            return None
        source = source_of(frame.f_code.co_filename)
        positions = next(itertools.islice(frame.f_code.co_positions(), frame.f_lasti // 2, None), (None,) * 4)
        if source is None or positions[1] is None or positions[3] is None:
            return None
        return source.numbers_at(positions[1], positions[3])

    # --- the runtime of twins -----------------------------------------------------------------------------------

    def test(self, site: int, value: Any) -> bool:
        """Decide a condition."""
        where, loop = SITES[site], LOOPS.get(site)
        if loop is not None and _is_within(where, loop):
            self.whiles[where] = loop
        return bool(self.decide(where, lambda: bool(value)))

    def negate(self, value: Any) -> Any:
        """`not value`, as a value."""
        return not value

    def same(self, one: Any, two: Any) -> Any:
        """`one is two`."""
        return one is two

    def contains(self, member: Any, container: Any) -> Any:
        """`member in container`."""
        return member in container

    def equal(self, one: Any, two: Any) -> Any:
        """`one == two`."""
        return one == two

    def unequal(self, one: Any, two: Any) -> Any:
        """`one != two`."""
        return one != two

    def chain(self, names: str, *operands: Any) -> Any:
        """`a < b < c`, of operands without effects."""
        result: Any = True
        last = len(operands) - 2
        for index, name in enumerate(names.split()):
            result = getattr(operator, name)(operands[index], operands[index + 1])
            if index < last and not result:
                return result
        return result

    def iterate(self, site: int, iterable: Any) -> Any:
        """What a loop goes through."""
        true = Loop(tensor=isinstance(iterable, torch.Tensor))
        decided = self.decide(SITES[site], lambda: true)
        if decided is true:
            return _counted(iterable, true)
        self._path[SITES[site]][-1] = true
        return _counted(_as_often(iterable, decided), true)

    def begun(self) -> int:
        """Where the tests of a comprehension begin."""
        return 0

    def collected(self, begun: int, container: Any) -> Any:
        """What a comprehension made."""
        del begun
        return container

    def caught(self, site: int) -> None:
        """An `except` clause is entered."""
        where = SITES[site]
        self._path.setdefault(where, []).append(True)
        if where in self._hold:
            raise  # noqa: PLE0704 the clause calls this: its exception is active

    def call(self, site: int, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function."""
        del site
        if isinstance(function, types.FunctionType | types.MethodType | type | torch.nn.Module):
            self._twins.add(function)
        return function(*args, **kwargs)


class _Numbers(TorchFunctionMode):
    """Tells a replay of what the user's code takes out of tensors."""

    def __init__(self, replay: Replay) -> None:
        super().__init__()
        self._replay = replay

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        if name not in _TAKES:
            return func(*args, **kwargs)
        site = self._replay.site_of(sys._getframe(1))
        value = func(*args, **kwargs)
        if site is None:
            return value
        taken = self._replay.decide(site, lambda: Taken(_copied(value), size=name in _SIZES))
        return taken.copy()


_SIZES = frozenset(("shape", "size", "__len__", "numel", "nelement"))
_TAKES = _SIZES | {"item", "tolist", "numpy", "__array__", "__float__", "__int__", "__index__", "__bool__"}


def _counted(iterable: Any, loop: Loop) -> Iterator[Any]:
    for item in iterable:
        loop.count += 1
        if loop.values is not None:
            if _is_plain(item) and loop.count <= _VALUES:
                loop.values.append(item)
            else:
                loop.values = None
        yield item
    loop.ended = True


def _as_often(iterable: Any, loop: Loop) -> Iterator[Any]:
    """The elements, as many as a loop went through that was not left early."""
    if not loop.ended:
        yield from iterable
        return
    if loop.values is not None and not isinstance(iterable, torch.Tensor):
        yield from loop.values
        return
    given = iter(iterable)
    for number in range(loop.count):
        try:
            item = next(given)
        except StopIteration:
            msg = f"{loop} held, and there are only {number} elements"
            raise CannotHold(msg) from None
        yield item


def _is_within(part: Site, whole: Site) -> bool:
    begins, ends = (part.line, part.column), (part.end_line, part.end_column)
    return (whole.line, whole.column) <= begins and ends <= (whole.end_line, whole.end_column)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | complex | str)


def _copied(value: Any) -> Any:
    """A copy of what someone may change in place: lists, arrays."""
    if isinstance(value, list):
        return [_copied(one) for one in value]
    return value.copy() if isinstance(value, np.ndarray) else value
