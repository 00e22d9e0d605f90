"""The stream of inputs for one check: special draws and random ones by turns, all from one seed.

Values are drawn on the CPU from generators of their own and moved to the example's device, so that the same seed
gives the same values on every device, and torch's global random state is neither read nor changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.inputs.derive import refit
from pytest_torchexport.inputs.sizes import Sizes
from pytest_torchexport.inputs.values import Want, dense_shape, generator, like
from pytest_torchexport.inputs.variables import Variable, Variables, digest
from pytest_torchexport.subject import containers
from pytest_torchexport.subject.call import Call, bind, rebind

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

_GIVE_UP = 100
"""Random draws in a row that only repeat earlier inputs: then everything has been drawn."""

Maker = Callable[[Want], Any]


def generate(
    model: Callable[..., Any],
    example: Call,
    declared: Mapping[str, Any] | None,
    dynamic_shapes: Mapping[str, Any] | None,
    *,
    seed: int,
    calls: int = 1,
) -> Iterator[tuple[Call, ...]]:
    """Inputs for the model, each a sequence of calls with the same sizes.

    Args:
        model: the model whose `forward` names the arguments.
        example: the example call; its values, shapes and layouts are the pattern.
        declared: the user's domains by argument name (`x`) or by path (`batch['ids']`, `boxes[0]`). A domain for a
            container describes each leaf in it whose type fits. Without one, the domain is derived from the example
            and the annotation.
        dynamic_shapes: as `normalise` returns them; None if every shape is fixed.
        seed: the only source of chance, with the example and the declarations.
        calls: how many calls each input has.

    Returns:
        A stream without repetitions and without end, unless everything has been drawn. Calls are of kind `special`
        or `random`, in turns at first; the label says what is particular. What does not vary is the example's own
        object, not a copy.

    Raises:
        UsageError: a declared domain does not fit the example.
    """
    with _on_cpu():
        drawer = _Drawer(model, example, declared, dynamic_shapes, seed, calls)
        drawer.check_functions()
    return drawer.stream()


def _on_cpu() -> AbstractContextManager[object]:
    """What is made without a device is made on the CPU, as the generators are, whatever the user's default device."""
    return torch.device("cpu")


@dataclass(frozen=True)
class _Plan:
    """How one call is made: the sizes, what is None, and who makes each variable (by index; absent: the example)."""

    label: str
    kind: str = "special"
    sizes: Mapping[str, int] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()
    makers: Mapping[int, Maker] = field(default_factory=dict)


class _Drawer:
    def __init__(
        self,
        model: Callable[..., Any],
        example: Call,
        declared: Mapping[str, Any] | None,
        dynamic_shapes: Mapping[str, Any] | None,
        seed: int,
        calls: int,
    ) -> None:
        self.model, self.example, self.seed, self.calls = model, example, seed, calls
        self.sizes = Sizes.of(bind(model, example), dynamic_shapes)
        scalars = {place.path for place in self.sizes.dimensions if place.index is None}
        self.variables = Variables.of(model, example, declared, seed, scalars)
        self.items = self.variables.items
        self.seen: set[bytes] = set()

    def check_functions(self) -> None:
        """Draw once from each domain that is code, so that a wrong one is an error before anything is exported."""
        for variable in self.items:
            if variable.domain.whole and variable.declared:
                want = Want((), self._generator("trial", variable.name))
                variable.fit(variable.domain.random(variable.example, want))

    def _generator(self, *key: object) -> torch.Generator:
        return generator(self.seed, *key)

    # --- the stream ---------------------------------------------------------------------------------------------

    def stream(self) -> Iterator[tuple[Call, ...]]:
        """Rounds of special inputs, one of each kind, and a random one; then random ones."""
        with _on_cpu():
            first, seen = self._sequence([_Plan("the example, again")] * self.calls, ())
        self.seen.add(seen)
        if self.calls > 1:
            yield first
        sources = [self._particular_values(), self._particular_sizes(), self._particular_arguments()]
        misses = 0
        for index in count():
            with _on_cpu():
                specials = [plan for source in sources if (plan := next(source, None))]
                random = self._random_plan(index)
            misses = 0 if specials else misses + 1
            for number, plan in enumerate([*specials, random] if random else specials):
                with _on_cpu():
                    made = self._new(plan, (index, number, plan.kind))
                if made is not None:
                    misses = 0
                    yield made
            if misses > _GIVE_UP:
                return

    def _new(self, plan: _Plan, key: tuple[object, ...]) -> tuple[Call, ...] | None:
        plans = [plan]
        for number in range(1, self.calls):
            again = plan.kind == "special" and number % 2 == 0
            plans.append(plan if again else self._followed(plan))
        made, seen = self._sequence(plans, key)
        if seen in self.seen:
            return None
        self.seen.add(seen)
        return made

    def _followed(self, plan: _Plan) -> _Plan:
        """Another call in the sequence: the same sizes, arguments and flags, other values."""
        makers = dict(plan.makers) | self._random_makers()
        return replace(plan, makers=makers, label=plan.label if plan.kind == "random" else "random values")

    def _sequence(self, plans: list[_Plan], key: tuple[object, ...]) -> tuple[tuple[Call, ...], bytes]:
        made, seen = zip(*[self._call(plan, key, number) for number, plan in enumerate(plans)], strict=True)
        calls: tuple[Call, ...] = made
        if len(calls) > 1 and len({plan.label for plan in plans}) > 1:
            calls = tuple(replace(call, label=f"call {n + 1}: {call.label}") for n, call in enumerate(calls))
        return calls, b"".join(seen)

    # --- one call -----------------------------------------------------------------------------------------------

    def _call(self, plan: _Plan, key: tuple[object, ...], number: int) -> tuple[Call, bytes]:
        at: dict[str, Any] = dict(self.sizes.scalars(plan.sizes))
        seen = hashlib.blake2b(repr((sorted(plan.absent), sorted(at.items()))).encode(), digest_size=16)
        for position, variable in enumerate(self.items):
            if any(path in plan.absent for path in variable.paths):
                continue
            want = Want((), self._generator(*key, number, variable.name))
            value, fingerprint = self._value(variable, plan.makers.get(position), want, plan)
            seen.update(fingerprint)
            at.update(dict.fromkeys(variable.paths, value))
        at.update(dict.fromkeys(plan.absent))
        named = {name: containers.replace(value, at, name) for name, value in self.variables.named.items()}
        return rebind(self.model, self.example, named, plan.kind, plan.label), seen.digest()

    def _value(self, variable: Variable, maker: Maker | None, want: Want, plan: _Plan) -> tuple[Any, bytes]:
        example = variable.example
        if variable.numbers is None:
            if maker is None:
                return example, variable.unchanged
            value = variable.fit(maker(want))
            return value, digest(value)
        shape = self.sizes.shape(variable.name, plan.sizes) or tuple(example.shape)
        ceiling = None
        if not variable.declared and variable.largest is not None:
            ceiling = self.sizes.ceiling(plan.sizes, variable.largest)
        if maker is None and ceiling is None and shape == tuple(example.shape):
            return example, variable.unchanged
        want = Want(dense_shape(example, shape), want.generator, ceiling)
        numbers = refit(variable.numbers, want.shape) if maker is None else maker(want)
        if ceiling is not None:
            numbers = numbers.clamp(max=ceiling)
        return like(example, numbers, shape), digest(numbers)

    # --- plans --------------------------------------------------------------------------------------------------

    def _particular_values(self) -> Iterator[_Plan]:
        lists = {
            position: found
            for position, item in enumerate(self.items)
            if not (item.domain.only_special or _is_number(item))
            if (found := item.domain.specials(item.pattern))
        }
        for turn in range(max(map(len, lists.values()), default=0)):
            now = {position: found[turn] for position, found in lists.items() if turn < len(found)}
            yield _Plan(self._join(now), makers={position: make for position, (_, make) in now.items()})
        if len(lists) < 2:
            return
        for turn in range(4):
            for position, found in lists.items():
                if turn < len(found):
                    label, make = found[turn]
                    yield _Plan(f"only {self.items[position].name} = {label}", makers={position: make})

    def _join(self, now: Mapping[int, tuple[str, Maker]]) -> str:
        """`x, h = zeros; ids = all 7`."""
        names: dict[str, list[str]] = {}
        for position, (label, _) in now.items():
            names.setdefault(label, []).append(self.items[position].name)
        parts = []
        for label, held in names.items():
            shown = ", ".join(held[:3]) + (f" and {len(held) - 3} more" if len(held) > 3 else "")
            parts.append(f"{shown} = {label}")
        return "; ".join(parts)

    def _particular_sizes(self) -> Iterator[_Plan]:
        for label, sizes in self.sizes.specials():
            yield _Plan(label, sizes=sizes, makers=self._random_makers())

    def _particular_arguments(self) -> Iterator[_Plan]:
        for path in self.variables.absent:
            yield _Plan(f"{path} = None", absent=frozenset({path}))
        for position, item in enumerate(self.items):
            if item.domain.only_special:
                for label, make in item.domain.specials(item.pattern):
                    yield _Plan(f"{item.name} = {label}", makers={position: make})
            elif _is_number(item):
                # Beside zeros or constants a factor or threshold may show nothing.
                for label, make in item.domain.specials(item.pattern):
                    yield _Plan(f"{item.name} = {label}", makers=self._random_makers() | {position: make})

    def _random_makers(self) -> dict[int, Maker]:
        """Random values for everything that varies at random."""
        return {
            position: partial(item.domain.random, item.pattern)
            for position, item in enumerate(self.items)
            if not item.domain.only_special
        }

    def _random_plan(self, index: int) -> _Plan | None:
        """Other values in all arguments, now and then in one alone; None if nothing varies at random."""
        want = Want((), self._generator(index, "plan"))
        makers = self._random_makers()
        optional = [path for path, told in self.variables.absent.items() if told]
        if not (makers or optional or self.sizes.symbols):
            return None
        labels = []
        sizes = self.sizes.random(want) if self.sizes.symbols and want.below(4) else {}
        if sizes and (text := self.sizes.label(sizes)):
            labels.append(text)
        if len(makers) > 1 and want.below(10) < 3:
            chosen = list(makers)[want.below(len(makers))]
            makers = {chosen: makers[chosen]}
            labels.append(f"only {self.items[chosen].name}")
        absent = frozenset(path for path in optional if not want.below(4))
        labels += [f"{path} = None" for path in sorted(absent)]
        return _Plan(", ".join(["random", *labels]), "random", sizes, absent, makers)


def _is_number(variable: Variable) -> bool:
    """Whether an argument is a single number with a declared domain: a factor, a threshold, a mode."""
    single = not isinstance(variable.example, torch.Tensor) or variable.example.numel() == 1
    return variable.declared and single
