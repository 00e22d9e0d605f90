"""Eager, operator by operator: what each one computes from what, on which line of the user's and in which submodule."""

from __future__ import annotations

import math
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_torchexport.compare.operators import branch, by_name, computes, tensors_in, traits_of
from pytest_torchexport.localize.kinds import kind_of
from pytest_torchexport.localize.sketch import sketch, tells_something
from pytest_torchexport.subject import source
from pytest_torchexport.subject.walk import walk

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

    from pytest_torchexport.outcome import Location

_Place = tuple[str, int]


@dataclass(eq=False)
class Value:
    """One value that eager computed.

    Attributes:
        index: its place among eager's values, in the order of the run.
        operator: what computed it; empty for one that comes from outside (arguments, parameters, constants).
        sources: indices of the values that it was computed from.
        module: the submodule, by its name in the user's model.
        place: file and line of the user's.
        shape: its sizes.
        numbers: its sketch.
        unit: unit roundoff of its dtype, 0 for whole numbers.
        least: the smallest normal number of its dtype.
        telling: a value that is equal to it is so by no chance.
        floating: it has a rounding error.
        weak: a program that computes the same may well not have it: a weight in another form, or the whole of a memory
            of which a part was written.
    """

    index: int
    operator: str
    sources: tuple[int, ...]
    module: str
    place: _Place | None
    shape: torch.Size
    numbers: torch.Tensor
    unit: float
    least: float
    telling: bool
    floating: bool
    weak: bool = False

    @property
    def location(self) -> Location | None:
        """The user's line."""
        return source.locate(*self.place) if self.place is not None else None

    @property
    def outside(self) -> bool:
        """Whether eager read it without computing it."""
        return not self.operator


@dataclass
class Operation:
    """What is remembered of an operator that ran, to recognise it in another run of eager.

    Attributes:
        name: its name.
        computes: it does more than move values.
        operands: indices of the values that its operands were found to be when it read them, by the operand's place.
        results: indices of what it wrote and made.
    """

    name: str
    computes: bool
    operands: dict[int, int]
    results: list[int | None] = field(default_factory=list)


class Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs every operator as it is and looks at what it is given and gives."""

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator."""
        kwargs = kwargs or {}
        if func is torch.ops.higher_order.cond:
            with self:
                return branch(*args)
        given = tensors_in([*args, *kwargs.values()])
        self.before(func, given)
        result = func(*args, **kwargs)
        written: list[torch.Tensor] = []
        if isinstance(func, torch._ops.OpOverload):
            traits = traits_of(func)
            named = by_name(traits, args, kwargs)
            written = [t for name, part in named if name in traits.written for t in tensors_in(part)]
        fresh = [t for t in tensors_in(result) if all(t is not other for other in written)]
        self.after(func, given, written, fresh)
        return result

    def before(self, func: Any, given: list[torch.Tensor]) -> None:
        """An operator is about to run."""

    def after(
        self, func: Any, given: list[torch.Tensor], written: list[torch.Tensor], fresh: list[torch.Tensor]
    ) -> None:
        """An operator has run."""


class Recorder(Watcher):
    """Notes every value that eager computes.

    Identity is that of memory: an operand that was written in place since it was computed is another value, and it
    follows from what was written.

    Args:
        model: whose submodules are named.
        cap: the most numbers of a value that are kept.
        most: the most that are kept of all of them together; when they are more, they are only counted.

    Attributes:
        values: in the order of the run.
        sizes: how many numbers each of them has.
        operations: the operators.
        over: the values were too many, and have no numbers.
    """

    def __init__(self, model: object, cap: int, most: float = math.inf) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values: list[Value] = []
        self.sizes: list[int] = []
        self.operations: list[Operation] = []
        self.over = False
        self._cap = cap
        self._left = most
        found = list(walk(model))
        self._names = {id(part): path for path, part in found if isinstance(part, torch.nn.Module)}
        self._constants = {_storage(part) for _, part in found if isinstance(part, torch.Tensor) and is_plain(part)}
        self._modules: list[str] = []
        self._handles = ExitStack()
        # Addresses of memory are not given out again while something weakly refers to it.
        self._alive: dict[int, Any] = {}
        self._epochs: dict[int, int] = {}
        self._writers: dict[int, list[int]] = {}
        self._known: dict[Any, tuple[int, int]] = {}
        self._by_storage: dict[int, int] = {}
        self._constant: set[int] = set()
        self._sources: tuple[int, ...] = ()
        self._changed: dict[int, int] = {}

    def __enter__(self) -> Self:
        """Begin to watch; once more for each call of a sequence."""
        before = hooks.register_module_forward_pre_hook(self._enter)
        self._handles.callback(before.remove)
        after = hooks.register_module_forward_hook(self._leave, always_call=True)
        self._handles.callback(after.remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        """Look away."""
        try:
            super().__exit__(*error)  # type: ignore[no-untyped-call]
        finally:
            self._handles.close()
            self._modules.clear()

    def _enter(self, module: torch.nn.Module, _: Any) -> None:
        self._modules.append(self._names.get(id(module), self._modules[-1] if self._modules else ""))

    def _leave(self, *_: Any) -> None:
        if self._modules:
            self._modules.pop()

    def before(self, func: Any, given: list[torch.Tensor]) -> None:
        """Find out which values the operands are, before they are written to."""
        del func
        known = len(self.values)
        operands = [self._value_of(tensor) for tensor in given]
        self._sources = tuple(dict.fromkeys(index for index in operands if index is not None))
        self._changed = {
            place: index
            for place, index in enumerate(operands)
            if index is not None and index >= known and not self.values[index].outside
        }

    def after(
        self, func: Any, given: list[torch.Tensor], written: list[torch.Tensor], fresh: list[torch.Tensor]
    ) -> None:
        """Note the results."""
        sources = self._sources
        operation = Operation(str(func), computes(func), self._changed)
        self.operations.append(operation)
        place = _place()
        for tensor in written:
            key = _storage(tensor)
            self._epochs[key] = self._epochs.get(key, 0) + 1
        for tensor in written:
            index = self._add(tensor, operation.name, sources, place)
            operation.results.append(index)
            self._writers[_storage(tensor)] = [] if index is None else [index]
        for tensor in fresh:
            same = self._same_numbers(tensor, given)
            if same is not None:
                self._known[_view(tensor)] = (same, self._epochs.get(_storage(tensor), 0))
                operation.results.append(None)
            else:
                operation.results.append(self._add(tensor, operation.name, sources, place))

    def _value_of(self, tensor: torch.Tensor) -> int | None:
        """The value that a tensor is; one that is seen for the first time, or was written to, is a new one."""
        if not is_plain(tensor):
            return None
        storage, view = _storage(tensor), _view(tensor)
        epoch = self._epochs.get(storage, 0)
        index, seen = self._known.get(view, (-1, -1))
        if seen == epoch:
            return index
        writers = self._writers.get(storage, [])
        older = [index] if index >= 0 else [self._by_storage[storage]] if storage in self._by_storage else []
        sources = tuple(dict.fromkeys([*older, *writers]))
        writer = self.values[writers[-1]] if writers else self.values[older[0]] if older else None
        return self._add(
            tensor,
            writer.operator if writer is not None else "",
            sources,
            writer.place if writer is not None else None,
            writer.module if writer is not None else "",
            weak=True,
        )

    def _same_numbers(self, tensor: torch.Tensor, given: Iterable[torch.Tensor]) -> int | None:
        """The value whose elements a view shows in the same order."""
        if not is_plain(tensor):
            return None
        for other in given:
            if (
                is_plain(other)
                and tensor.numel() == other.numel()
                and tensor.dtype == other.dtype
                and _storage(tensor) == _storage(other)
                and tensor.storage_offset() == other.storage_offset()
                and tensor.is_contiguous()
                and other.is_contiguous()
            ):
                found = self._known.get(_view(other))
                return found[0] if found is not None else None
        return None

    def _add(
        self,
        tensor: torch.Tensor,
        operator: str,
        sources: tuple[int, ...],
        place: _Place | None,
        module: str | None = None,
        *,
        weak: bool = False,
    ) -> int | None:
        if not is_plain(tensor):
            return None
        storage = _storage(tensor)
        if storage not in self._alive:
            self._alive[storage] = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        index = len(self.values)
        real = tensor.dtype.to_real() if tensor.dtype.is_complex else tensor.dtype
        floating = real.is_floating_point
        self.sizes.append(tensor.numel())
        self._left -= min(tensor.numel(), self._cap)
        if self._left < 0 and not self.over:
            self.over = True
            for value in self.values:
                value.numbers = torch.empty(0)
        self.values.append(
            Value(
                index,
                operator,
                sources,
                module if module is not None else self._modules[-1] if self._modules else "",
                place,
                tensor.shape,
                torch.empty(0) if self.over else compact(sketch(tensor, self._cap), real),
                torch.finfo(real).eps / 2 if floating else 0.0,
                float(torch.finfo(real).tiny) if floating else 0.0,
                telling=not self.over and tells_something(tensor),
                floating=floating,
                weak=weak or (kind_of(operator) == "move" and bool(sources) and self._constant.issuperset(sources)),
            )
        )
        if (storage in self._constants and not operator) or (sources and self.values[-1].weak):
            self._constant.add(index)
        self._known[_view(tensor)] = (index, self._epochs.get(storage, 0))
        self._by_storage[storage] = index
        return index


def compact(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The numbers in as few bytes as hold them."""
    return numbers.to(torch.float32) if dtype in (torch.float32, torch.float16, torch.bfloat16) else numbers


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the tensor is an ordinary one, whose numbers lie in a storage."""
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and not tensor.is_quantized
        and tensor.device.type != "meta"
    )


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else id(tensor)


def _view(tensor: torch.Tensor) -> Any:
    flags = (tensor.is_conj(), tensor.is_neg(), tensor.dtype)
    return (_storage(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), flags)


def _place() -> _Place | None:
    """The user's innermost line of those that are running, inside of the program's own call."""
    frame: FrameType | None = sys._getframe(1)
    ours = __name__.partition(".")[0]
    inside = False
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith(f"{ours}."):
            if inside and not name.startswith(f"{ours}.compare"):
                return None
        else:
            inside = True
            if source.is_users(frame.f_code.co_filename):
                return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return None
