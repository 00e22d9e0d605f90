"""Eager once more with rounding noise, operator by operator.

A dispatch mode, active around the user's own call, so that it sees what autograd, autocast and composite operators
come down to. Parameters are changed where an operator reads them: no second copy of them is held.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import torch
from torch._decomp import decomposition_table
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pytest_torchexport.compare.operators import (
    Traits,
    branch,
    by_name,
    map_tensors,
    tensors_in,
    traits_of,
)
from pytest_torchexport.compare.path import Path
from pytest_torchexport.compare.values import plain_device

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_POOL = 1 << 20
"""A tensor takes its noise from a random place of a pool of twice this length: a draw per operator would cost more
than most operators do."""

_PIECE = 1 << 17
"""Elements that are given their noise together: large tensors would pass through the memory once for each step."""

EPS_EVERYWHERE = {"bf16": 2.0**-7, "fp16": 2.0**-10}
"""Distance from 1 to the next number, of the types in which a whole export may be allowed to compute."""
_EPS_TF32 = 2.0**-10
_TIE = 2.0**-48
"""What moves equal numbers apart, relative to their size, and no others but doubles."""

_INTEGER_OF = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


def _is_plain(values: Iterable[torch.Tensor]) -> bool:
    """Whether the tensors are ordinary ones, whose numbers lie in a storage."""
    return all(
        type(t) in (torch.Tensor, torch.nn.Parameter) and t.layout is torch.strided and not t.is_quantized
        for t in values
    )


def _is_noisy(tensor: torch.Tensor) -> bool:
    real = tensor.dtype.to_real() if tensor.dtype.is_complex else tensor.dtype
    return real in _INTEGER_OF and tensor.numel() > 0


def _units_of_sum(traits: Traits, args: tuple[Any, ...], kwargs: dict[str, Any], fresh: Iterable[torch.Tensor]) -> int:
    """Units of noise for a sum: another order of adding is off by the square root of its length.

    An eighth of that in units, since sums are made in lanes, and a quarter for a scan, which is not.

    A power of two: times a float32 number it is exact.
    """
    given = tensors_in([*args, *kwargs.values()])
    length = 1
    if traits.sums and given:
        length = given[0].numel() // min((t.numel() for t in fresh if t.numel()), default=given[0].numel() or 1)
    elif traits.sums_along and given and given[0].dim():
        dim = dict(by_name(traits, args, kwargs)).get("dim", -1)
        length = given[0].shape[dim]
    return 1 << max(0, round(math.log2(max(length, 1)) / 2) - (2 if traits.scan else 3))


@functools.lru_cache(maxsize=3)
def _uniform(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Numbers of U(-1, 1), the same in every process."""
    generator = torch.Generator().manual_seed(1)
    uniform = torch.rand(2 * _POOL, generator=generator, dtype=torch.float64, device="cpu") * 2 - 1
    return uniform.to(dtype).to(device)


def _factors(uniform: torch.Tensor, dtype: torch.dtype, units: int) -> torch.Tensor:
    """Factors `1 + units * eps * U(-1, 1)`."""
    one = torch.ones((), dtype=uniform.dtype, device="cpu")
    return torch.add(one, uniform, alpha=units * torch.finfo(dtype).eps).to(dtype)


@functools.lru_cache(maxsize=3)
def _signs(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Random signs, 1 or -1, as integers of the dtype."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(2, (2 * _POOL,), generator=generator, dtype=torch.int8, device="cpu")
    return (bits * 2 - 1).to(dtype).to(device)


def _is_whole(real: torch.Tensor) -> torch.Tensor:
    """Which elements are small whole numbers: counts, flags and positions, which are exact.

    Far up all numbers are whole, and most of them are rounded.
    """
    return (real == real.round()) & (real.abs() < 1 / (8 * torch.finfo(real.dtype).eps))


def _multiply(real: torch.Tensor, factors: torch.Tensor) -> None:
    """Multiply in place, but for whole numbers; the factors are changed too."""
    if not bool(real.abs().max() < 1):  # zeros stay zero anyway
        factors.masked_fill_(_is_whole(real), 1)
    real.mul_(factors)


def _pieces(count: int, start: int) -> Iterator[tuple[int, int]]:
    """Pieces that fit into a processor's cache, none of which crosses the end of a pool that begins `start` before."""
    begin = 0
    while begin < count:
        end = min(begin + _PIECE, count, begin + _POOL - (start + begin) % _POOL)
        yield begin, end
        begin = end


class Jitter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds noise of the size of a rounding error to all that is read and computed.

    Parameters, buffers, arguments and constants are moved by one unit in the last place when an operator reads them;
    what an operator computes is multiplied by `1 + c * eps * U(-1, 1)`, with c = 1, or 4 where more than one rounding
    is inside. Zeros stay zero, and results that are small whole numbers stay as they are: counts and positions are
    exact. Operators that only move values are left alone, and so is torch's own random generator.

    Args:
        seed: together with the draw it decides the noise.
        draw: number of the draw.
        loudness: multiplies all of the noise; with 0 only ties are broken.
        precision: what float32 is rounded to instead: `bf16` or `fp16` wherever something is read or computed, `tf32`
            where matrix products and convolutions read their operands.
    """

    supports_higher_order_operators = True

    def __init__(self, seed: int, draw: int, loudness: int = 1, precision: str | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rounds_products = precision == "tf32"
        self._eps = EPS_EVERYWHERE.get(precision or "", 0.0)
        self._generator = torch.Generator().manual_seed((seed * 1_000_003 + draw * 64 + loudness) % (1 << 62))
        self._loudness = loudness
        self._least_units = 1
        self.path = Path()
        """The way that the run takes, to be compared with that of a `Watch`."""
        self.coarsest = 0.0
        """The largest eps among the dtypes that were computed in."""
        self.blind = False
        """Whether something was run whose operators this mode does not see."""
        self.jumps = False
        """Whether a floating result may jump: by its operator, or since it follows from a comparison, an index."""
        self.derives = False
        """Whether a whole or boolean result follows from another one that was decided by floating numbers."""
        # A storage is known by its address, and a weak reference keeps the address from being given out again.
        self._alive: dict[int, StorageWeakRef] = {}
        self._made: set[int] = set()
        self._decided: set[int] = set()
        self._places: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator on perturbed operands and jitter its result."""
        kwargs = kwargs or {}
        if func is torch.ops.higher_order.cond:
            with self:
                return branch(*args)
        given = tensors_in([*args, *kwargs.values()])
        if self._least_units == 1:  # not inside a kernel that is taken apart
            self.path.step(func, args, kwargs)
        if not isinstance(func, torch._ops.OpOverload) or not _is_plain(given):
            self.blind = True
            return func(*args, **kwargs)
        traits = traits_of(func)
        result = self._noisy(func, traits, args, kwargs, given)
        if self._least_units == 1:
            self.path.see(func, args, kwargs, result)
        self._note_jumps(traits, given, result)
        return result

    def _noisy(
        self, func: Any, traits: Traits, args: tuple[Any, ...], kwargs: dict[str, Any], given: list[torch.Tensor]
    ) -> Any:
        """Run one plain operator on perturbed operands and jitter its result."""
        if traits.exact and not self._accumulates(traits, args, kwargs):
            result = self._untie(func, args, kwargs) if traits.orders else func(*args, **kwargs)
            if not any(_is_noisy(t) and not self._is_made(t) for t in given):
                map_tensors(result, self._note)
            return result
        args = tuple(self._read(traits, name, a) for name, a in zip(traits.names, args, strict=False))
        kwargs = {name: self._read(traits, name, a) for name, a in kwargs.items()}
        if self._rounds_products and func.overloadpacket in flop_registry:
            args = tuple(map_tensors(a, self._rounded) for a in args)
            kwargs = {name: map_tensors(a, self._rounded) for name, a in kwargs.items()}
        result = self._taken_apart(func, args, kwargs) if traits.normalises else func(*args, **kwargs)
        written = [t for name, a in by_name(traits, args, kwargs) if name in traits.written for t in tensors_in(a)]
        read = {_storage(t) for t in given} - {_storage(t) for t in written}
        fresh = [t for t in tensors_in(result) if all(t is not w for w in written)]
        units = max(self._least_units, traits.units, _units_of_sum(traits, args, kwargs, fresh))
        if _is_plain(fresh):
            for tensor in [*written, *(t for t in fresh if _storage(t) not in read)]:
                self._add_noise(tensor, units)
        return result

    def _note_jumps(self, traits: Traits, given: list[torch.Tensor], result: Any) -> None:
        """Note where the result of a small change may be a large one.

        Whole and boolean results of floating operands are marked as decided, and so is what follows from them. Numbers
        that Python takes out of them need no mark: they are part of the path.
        """
        if traits.view:
            return
        floats = any(_is_noisy(t) for t in given)
        decided = any(_storage(t) in self._decided for t in given)
        self.jumps |= traits.jumps and floats
        if traits.constant or not (floats or decided):
            return
        for tensor in tensors_in(result):
            if _is_noisy(tensor):
                self.jumps |= decided
            elif tensor.layout is torch.strided:
                self.derives |= decided
                self._keep_address(tensor)
                self._decided.add(_storage(tensor))

    def _rounded(self, tensor: torch.Tensor) -> torch.Tensor:
        """An operand of a product as the units for TF32 read it."""
        if tensor.dtype is not torch.float32 or not tensor.numel():
            return tensor
        moved = tensor.clone()
        self._multiply_by_pool(moved, round(_EPS_TF32 / torch.finfo(torch.float32).eps) * self._loudness)
        return moved

    def _taken_apart(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The kernel's result by way of simpler operators, each of which gets its noise."""
        simpler = decomposition_table.get(func)
        if simpler is None:
            return func(*args, **kwargs)
        # Kernels accumulate their statistics in their own ways (Welford's method, lanes): more than one rounding.
        before, self._least_units = self._least_units, 4
        try:
            with self:
                return tuple(simpler(*args, **kwargs))
        finally:
            self._least_units = before

    def _untie(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operator that puts elements in order, with ties broken by chance: torch promises no order among them."""
        given = args[0]
        result = func(*args, **kwargs)
        if kwargs.get("stable") or given.is_complex() or given.dtype is torch.bool or not given.dim():
            return result
        # Where the device knows no float64, on the CPU.
        values = given.to(plain_device(given))
        chance = torch.rand(values.shape, generator=self._generator, device="cpu").to(values.device, torch.float64)
        step = 0.25 if not given.is_floating_point() else 1e-290
        scale = 0.0 if not given.is_floating_point() else max(self._loudness * torch.finfo(given.dtype).eps, _TIE)
        untied = values.double() * (1 + scale * (2 * chance - 1)) + step * chance
        named = dict(by_name(traits_of(func), args, kwargs))
        indices = func(untied, *args[1:], **kwargs)[1].to(given.device)
        dim = named.get("dim", -1)
        return (given.gather(dim, indices), indices)

    @staticmethod
    def _accumulates(traits: Traits, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return any(name == "accumulate" and value for name, value in by_name(traits, args, kwargs))

    def _is_made(self, tensor: torch.Tensor) -> bool:
        return _storage(tensor) in self._made

    def _note(self, tensor: torch.Tensor) -> None:
        """Remember that the tensor was computed in this run: it has its noise already."""
        if tensor.layout is torch.strided:
            self._keep_address(tensor)
            self._made.add(_storage(tensor))

    def _keep_address(self, tensor: torch.Tensor) -> None:
        if _storage(tensor) not in self._alive:
            self._alive[_storage(tensor)] = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]

    def _read(self, traits: Traits, name: str, value: Any) -> Any:
        return value if name in traits.written else map_tensors(value, self._perturb)

    def _perturb(self, tensor: torch.Tensor) -> torch.Tensor:
        """A value that comes from outside, moved by one unit in the last place, the same in all of its uses."""
        if not _is_noisy(tensor) or self._is_made(tensor):
            return tensor
        if tensor.is_complex():
            moved = self._perturb_real(torch.view_as_real(tensor.resolve_conj()), _storage(tensor))
            return torch.view_as_complex(moved.contiguous())
        return self._perturb_real(tensor, _storage(tensor))

    def _perturb_real(self, tensor: torch.Tensor, key: int) -> torch.Tensor:
        tensor = tensor.resolve_neg()
        self._keep_address(tensor)
        if key not in self._places:
            self._places[key] = self._place()
        signs = _signs(_INTEGER_OF[tensor.dtype], tensor.device)
        extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        start = (self._places[key] + int(tensor.storage_offset())) % _POOL
        if extent == tensor.numel():  # no gaps: as one row, in the order of the memory
            moved = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
            row, target = (t.as_strided((extent,), (1,)) for t in (tensor, moved))
            for begin, end in _pieces(extent, start):
                at = start + begin if extent <= _POOL else (start + begin) % _POOL
                self._step(row[begin:end], signs[at : at + end - begin], target[begin:end])
            return moved
        if extent > _POOL:
            signs = signs[:_POOL].repeat(extent // _POOL + 2)
        moved = torch.empty_like(tensor)
        self._step(tensor, signs.as_strided(tensor.shape, tensor.stride(), start), moved)
        return moved

    def _step(self, values: torch.Tensor, signs: torch.Tensor, target: torch.Tensor) -> None:
        """Write the values, each one unit in the last place up or down."""
        info = torch.finfo(values.dtype)
        count = self._loudness * max(1, round(self._eps / info.eps))
        steps = signs if count == 1 else signs * count
        sizes = values.abs()
        least, most = sizes.aminmax()
        if not (least >= info.tiny and most < 1):  # most weights are: then there is nothing to leave out
            # The largest numbers stand for infinity in masks, they must not become it; zero has no neighbour of its
            # scale.
            steps = steps * ((sizes < info.max / 2) & (sizes >= info.tiny) & ~_is_whole(values))
        torch.add(values.view(signs.dtype), steps, out=target.view(signs.dtype))

    def _place(self) -> int:
        return int(torch.randint(_POOL, (), generator=self._generator, device="cpu"))

    def _add_noise(self, tensor: torch.Tensor, units: int) -> None:
        self._note(tensor)
        overlaps = any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if not _is_noisy(tensor) or overlaps or tensor.is_conj() or tensor.is_neg():
            return
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        eps = torch.finfo(real.dtype).eps
        self.coarsest = max(self.coarsest, eps)
        self._multiply_by_pool(real, max(units, round(self._eps / eps)) * self._loudness)

    def _multiply_by_pool(self, real: torch.Tensor, units: int) -> None:
        """Multiply in place by random factors."""
        pool = _uniform(torch.float64 if real.dtype is torch.float64 else torch.float32, real.device)
        count = real.numel()
        places = [self._place() for _ in range(0, count, _POOL)]
        if not real.is_contiguous():
            parts = [pool[at : at + min(_POOL, count - i * _POOL)] for i, at in enumerate(places)]
            _multiply(real, _factors(torch.cat(parts).view(real.shape), real.dtype, units))
            return
        row = real.view(-1)
        for begin, end in _pieces(count, 0):
            at = places[begin // _POOL] + begin % _POOL
            _multiply(row[begin:end], _factors(pool[at : at + end - begin], real.dtype, units))


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
