"""How far runs of eager are from one another, element by element."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import torch

_LEAST_SLICE = 8
"""The root mean square over fewer elements may be tiny by luck."""
_FAR_SMALLER = 100.0
_REMEMBERED = 1 << 16
"""Elements of a leaf up to which what each run added is remembered."""


@dataclass(frozen=True)
class Seen:
    """What a number of runs show of a leaf.

    Attributes:
        noise: the farthest that a run is from eager, element by element.
        changed: where a run is NaN or infinite and eager is not, or the other way round.
        draws: jittered runs behind it; the one in double precision is no draw.
        made: jittered runs that were made, with those that say nothing of the leaf.
        coarsest: the largest eps among the dtypes that they computed in.
    """

    noise: torch.Tensor
    changed: torch.Tensor
    draws: int
    made: int
    coarsest: float


@dataclass
class Spread:
    """How far the runs so far are from eager, element by element.

    Of a small leaf each state is remembered: what is said of it then does not depend on how many runs others asked for.
    """

    states: list[Seen] = field(default_factory=list)

    def add(self, values: Values, made: int, coarsest: float, *, changes: bool = True) -> None:
        """Take in a run; unless it `changes`, not where it is NaN or infinite."""
        off = (values.theirs - values.ours).abs()
        # NaN and infinities are judged apart; beyond the dtype's range there is nothing to compare with.
        off = torch.where(off.isfinite() & (values.theirs.abs() <= values.most), off, 0.0)
        changed = ~same_class(values.ours, values.theirs) & changes
        draws = int(changes)
        if self.states:
            before = self.states[-1]
            off, changed = torch.maximum(before.noise, off), before.changed | changed
            draws += before.draws
        if values.ours.numel() > _REMEMBERED:
            self.states.clear()
        self.states.append(Seen(off, changed, draws, made, coarsest))


@dataclass(frozen=True)
class Values:
    """Two leaves as numbers of one type: double, or int64; complex ones as pairs.

    Attributes:
        unit: unit roundoff of eager's dtype.
        least: its smallest normal number.
        most: its largest one.
    """

    ours: torch.Tensor
    theirs: torch.Tensor
    floating: bool
    unit: float
    least: float
    most: float = math.inf

    @classmethod
    def of(cls, ours: torch.Tensor, theirs: torch.Tensor) -> Values:
        """The values of two tensors of one shape and kind."""
        floating = ours.is_floating_point() or ours.is_complex()
        real = ours.dtype.to_real() if ours.dtype.is_complex else ours.dtype
        if not floating:
            return cls(_whole(ours), _whole(theirs), floating=False, unit=0.0, least=0.0)
        info = torch.finfo(real)
        return cls(wide(ours), wide(theirs), floating=True, unit=info.eps / 2, least=info.tiny, most=info.max)


def unravel(index: int, shape: torch.Size) -> tuple[int, ...]:
    """The place of an element that is given by its number."""
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(index, device="cpu"), shape)) if shape else ()


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    # Apple's devices know no float64.
    tensor = tensor.cpu() if tensor.device.type == "mps" else tensor
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The values in double precision, dense and real."""
    return _plain(tensor).to(torch.float64)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return _plain(tensor).to(torch.int64)


def same_class(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Where both are finite, both NaN, or the same infinity."""
    return (one.isfinite() & other.isfinite()) | (one.isnan() & other.isnan()) | (one == other)


def _of_its_size(quietest: torch.Tensor, noise: torch.Tensor, finite: torch.Tensor, values: Values) -> torch.Tensor:
    """The noise of a few numbers that cannot be told apart by slices: small ones are not judged by much larger ones.

    An element that is far smaller than the largest one has the noise relative to itself that the others have, so that
    a loss beside a sum, or a score beside a box, has a scale of its own.
    """
    size = torch.where(finite, values.ours.abs(), 0.0)
    relative = torch.where(finite, noise / size.clamp_min(values.least), 0.0)
    typical = relative.flatten().median()
    return torch.where(size * _FAR_SMALLER < size.max(), torch.minimum(quietest, size * typical), quietest)


def scale_of(noise: torch.Tensor, finite: torch.Tensor, values: Values, unit: float) -> torch.Tensor:
    """The noise of each element: its own, at least that of the quietest slice it lies in, a rounding, a normal number.

    An element's own noise is often zero by luck, and that of the whole tensor hides a quiet channel.
    """
    square = torch.where(finite, noise, 0.0).square()
    count = finite.to(torch.float64)

    def rms(dims: tuple[int, ...]) -> torch.Tensor:
        total = square.sum(dims, keepdim=True) if dims else square
        return (total / (count.sum(dims, keepdim=True) if dims else count).clamp_min(1)).sqrt()

    every = tuple(range(noise.dim()))
    quietest = rms(every)
    slices = [axis for axis, size in enumerate(noise.shape) if size > 1 and noise.numel() // size >= _LEAST_SLICE]
    for axis in slices:
        quietest = torch.minimum(quietest, rms(tuple(a for a in every if a != axis)))
    if not slices and noise.numel() < _LEAST_SLICE**2:
        quietest = _of_its_size(quietest, noise, finite, values)
    rounding = torch.where(finite, values.ours.abs(), 0.0) * unit
    parts = (noise, quietest.expand_as(noise), rounding)
    return functools.reduce(torch.maximum, parts).clamp_min(values.least)
