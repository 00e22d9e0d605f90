"""A second opinion on a difference: does the rounding noise of eager itself explain it?

Eager runs again with noise of the size of a rounding error added to every operation, and once in double precision. How
far its results move is how far a correct export may be off. It is asked only where the fixed tolerance disagrees.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from pytest_torchexport.compare.double import InDouble, NoDouble
from pytest_torchexport.compare.flips import Flips
from pytest_torchexport.compare.jitter import Jitter
from pytest_torchexport.compare.path import Path, Watch
from pytest_torchexport.compare.tolerance import default_for
from pytest_torchexport.compare.tree import as_tensor
from pytest_torchexport.outcome import Cause, Leaf
from pytest_torchexport.subject.run import Record

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


LIMIT = 6.0
"""How many times the noise a correct export may be off."""
_LAST_LIMIT = 5.0
"""The same after the last draw, when the noise is known best."""
_DRAWS = 8
_LOUD_DRAWS = 8
_LOUDNESS = 8
_LEAST_SLICE = 8
"""The root mean square over fewer elements may be tiny by luck."""


class TooChaotic(Exception):  # no error: the model cannot be judged on this input
    """The noise would explain the difference, but it is so large that it would explain nearly any; says how large."""


class Rerun(Protocol):
    """Runs eager once more on the input, from the same state and random numbers."""

    def __call__(self, mode: AbstractContextManager[Any], dtype: torch.dtype | None = None) -> Record:
        """The record of a run under the mode, with floating arguments in the dtype if one is given."""


@dataclass(frozen=True)
class Eager:
    """How to run eager again on one input, and to read what it did.

    Attributes:
        rerun: runs it under a mode.
        leaves: the leaves of a record, by the paths that `compare_records` uses.
        parameters: the model's parameters.
    """

    rerun: Rerun
    leaves: Callable[[Record], Mapping[str, Any]]
    parameters: Callable[[], Iterable[torch.nn.Parameter]] = tuple


@dataclass(frozen=True)
class Opinion:
    """Whether eager's rounding noise explains a difference.

    Attributes:
        agrees: it does.
        score: the worst element's error as a multiple of the noise there; for a discrete leaf the number of elements
            with a value that noise never gives them, as a multiple of the few that may be.
        limit: what the score was held against.
        draws: number of jittered runs behind it.
        noise: the noise at the worst element, in the unit of the value.
        ratio: the noise of the whole leaf (root mean square) relative to its largest magnitude.
        error: the worst element's deviation from the double-precision reference, else from eager.
        index: the worst element.
        centred: there was a double-precision reference.
        too_chaotic: the noise is too large a part of the signal for a pass to mean anything.
    """

    agrees: bool
    score: float
    limit: float
    draws: int
    noise: float = 0.0
    ratio: float = 0.0
    error: float = 0.0
    index: tuple[int, ...] = ()
    centred: bool = False
    too_chaotic: bool = False


def in_double(eager: Eager, computed: Path | None = None) -> Record:
    """What eager does in double precision; the record holds an error where an operator has no such form.

    Parameters are converted where they are read. Code that compares dtypes (recurrent layers do) stumbles over that;
    it is run again with all parameters converted for the time of the run.

    Args:
        eager: how to run it.
        computed: the way that eager takes. A run that takes another one (where float32 overflows, say) is an error:
            its results are those of another branch.
    """
    mode = InDouble()
    record = eager.rerun(mode, torch.float64)
    if record.error is not None:
        mode = InDouble(eager.parameters())
        record = eager.rerun(mode, torch.float64)
    if record.error is None and computed is not None and mode.computed != computed:
        return Record(error=NoDouble("in double precision the model takes another branch"))
    return record


class RoundingNoise:
    """The rounding noise of eager on one input, measured as far as questions about it need.

    Args:
        leaves: what eager did, by path.
        seed: decides the noise; the same seed gives the same opinions.
    """

    def __init__(self, leaves: Mapping[str, Any], seed: int) -> None:
        self._leaves = leaves
        self._seed = seed
        self._asked: frozenset[str] = frozenset()
        self._start_over()

    def _start_over(self) -> None:
        self._draws = 0
        self._spread: dict[str, _Spread] = {}
        self._flips: dict[str, Flips] = {}
        self._reference: dict[str, torch.Tensor] | None = None
        self._loud = False
        self._coarsest = 0.0
        self._blind = False
        self._path: Path | None = None
        self.without_reference: str | None = None

    def judge(
        self, leaf: Leaf, expected: Any, actual: Any, eager: Eager, disputed: frozenset[str] = frozenset()
    ) -> Leaf:
        """The second opinion on a leaf that differs in its values.

        Args:
            leaf: the comparison by the fixed tolerance.
            expected: eager's leaf.
            actual: the exported program's.
            eager: how to run eager again.
            disputed: paths of further leaves that will be asked about; to name them here saves runs.

        Returns:
            A leaf that agrees, or the given one with the opinion in its reason.

        Raises:
            TooChaotic: the noise explains the difference, but would explain nearly any.
        """
        if leaf.agrees or leaf.cause not in (Cause.NUMERIC, Cause.SPECIAL_VALUE):
            return leaf
        self._ask_about(disputed)
        opinion = self.opinion(leaf.path, expected, actual, eager, only=_beyond_default)
        if opinion is None:
            return leaf
        if not opinion.agrees:
            said = f"{opinion.score:.3g}x the rounding noise of eager, limit {opinion.limit:g}x"
            if not math.isfinite(opinion.score):
                said = f"in none of {opinion.draws} runs of eager with rounding noise is it so"
            return dataclasses.replace(leaf, reason=f"{leaf.reason}; {said}")
        if opinion.too_chaotic:
            msg = (
                f"{leaf.path} is too chaotic: the rounding noise of eager itself is {opinion.ratio:.2g} of the largest "
                f"value ({opinion.draws} jittered runs), and any difference of that size would pass"
            )
            raise TooChaotic(msg)
        return dataclasses.replace(
            leaf,
            agrees=True,
            cause=None,
            mismatched=0,
            max_abs=opinion.error,
            allowed=opinion.limit * opinion.noise,
            index=opinion.index,
            reason=f"explained by rounding: {opinion.score:.2g}x the noise of eager (limit {opinion.limit:g}x)",
        )

    def opinion(
        self, path: str, expected: Any, actual: Any, eager: Eager, *, only: Selection | None = None
    ) -> Opinion | None:
        """Whether noise explains the difference between two leaves of equal kind, asking for as few runs as will do.

        Args:
            path: the leaf's path.
            expected: eager's leaf.
            actual: the exported program's.
            eager: how to run eager again.
            only: chooses the elements to be judged; None judges all.

        Returns:
            The opinion; None if no run of eager with noise or in double precision has this leaf, or if it runs
            something that the noise does not reach (tensor subclasses, sparse tensors, control flow operators).
        """
        ours, theirs = as_tensor(expected), as_tensor(actual)
        if path not in self._leaves or ours is None or theirs is None:
            return None
        self._ask_about({path})
        self._measure_reference(eager)
        values = _Values.of(ours, theirs.reshape(ours.shape).to(ours.device))
        if not values.floating:
            return self._discrete(path, values, eager)
        judged = torch.ones_like(values.ours, dtype=torch.bool) if only is None else only(values, ours.dtype)
        found = self._score(path, values, judged)
        if self._draws == _DRAWS and found is not None and _LAST_LIMIT < found.score <= LIMIT:
            # Whether fewer draws explain it must not depend on what was asked before.
            self._forget_draws()
            found = self._score(path, values, judged)
        # The reference is one sample of eager's error, and may be a lucky one: at least one draw says how large it is.
        while (found is None or not found.agrees or not self._draws) and self._draws < _DRAWS:
            self._draw(eager)
            found = self._score(path, values, judged)
        return None if self._blind and found is not None and not found.agrees else found

    def _ask_about(self, paths: AbstractSet[str]) -> None:
        """Measure these leaves too, from the first run on: what is measured takes several times the leaf's memory."""
        if not paths <= self._asked:
            self._asked |= paths
            self._start_over()

    def _read(self, record: Record, eager: Eager) -> dict[str, Any]:
        """The leaves that were asked about."""
        return {path: leaf for path, leaf in eager.leaves(record).items() if path in self._asked}

    def _measure_reference(self, eager: Eager) -> None:
        if self._reference is not None:
            return
        self._reference = {}
        watch = Watch()
        eager.rerun(watch)
        self._path = watch.path
        record = in_double(eager, watch.computed)
        if record.error is not None:
            self.without_reference = f"{type(record.error).__name__}: {record.error}"
            return
        for path, leaf in self._read(record, eager).items():
            tensor, mine = as_tensor(leaf), as_tensor(self._leaves.get(path))
            if tensor is not None and mine is not None and tensor.shape == mine.shape:
                self._reference[path] = tensor.detach()
        self._take(self._reference, changes=False)

    def _forget_draws(self) -> None:
        self._draws, self._spread, self._flips, self._loud = 0, {}, {}, False
        self._take(self._reference or {}, changes=False)

    def _draw(self, eager: Eager) -> None:
        self._draws += 1
        self._take(self._jittered(eager, self._draws))

    def _jittered(self, eager: Eager, draw: int, loudness: int = 1) -> Mapping[str, Any]:
        """The leaves of a run with noise; none if the noise makes it raise."""
        mode = Jitter(self._seed, draw, loudness)
        record = eager.rerun(mode)
        if mode.path != self._path:
            # A condition on a tensor came out differently: the difference is that of two branches, not of rounding.
            return {}
        self._coarsest = max(self._coarsest, mode.coarsest)
        self._blind |= mode.blind
        return self._read(record, eager) if record.error is None else {}

    def _take(self, leaves: Mapping[str, Any], *, changes: bool = True) -> None:
        """Add how far a run is from eager. A leaf of another shape (data decide it) says nothing, and is left out.

        Args:
            leaves: of the run.
            changes: whether the run may excuse NaN and infinities. One in double precision may not: it overflows
                nowhere, whatever eager does.
        """
        for path, leaf in leaves.items():
            mine, other = as_tensor(self._leaves.get(path)), as_tensor(leaf)
            if mine is None or other is None or mine.shape != other.shape:
                continue
            values = _Values.of(mine, other)
            if values.floating:
                self._spread.setdefault(path, _Spread()).add(values, changes=changes)
            else:
                self._flips_at(path, values).add(values.theirs)

    def _flips_at(self, path: str, values: _Values) -> Flips:
        return self._flips.setdefault(path, Flips(values.ours))

    def _score(self, path: str, values: _Values, judged: torch.Tensor) -> Opinion | None:
        spread = self._spread.get(path)
        if spread is None:
            return None
        reference = (self._reference or {}).get(path)
        centre = values.ours if reference is None else _wide(reference)
        centre = torch.where(centre.isfinite(), centre, values.ours)
        noise, changed = spread.noise, spread.changed
        finite = values.ours.isfinite() & values.theirs.isfinite()
        special = ~_same_class(values.ours, values.theirs) & ~changed
        scale = _scale(noise, finite, values)
        error = torch.where(finite, (values.theirs - centre).abs(), 0.0)
        score = (error / scale).masked_fill(special, math.inf).masked_fill(~judged, 0.0)
        worst = int(score.argmax())
        limit = LIMIT if self._draws < _DRAWS else _LAST_LIMIT
        highest = float(score.flatten()[worst])
        signal = float(torch.where(finite, values.ours.abs(), 0.0).max())
        rms = float(scale[finite].square().mean().sqrt()) if bool(finite.any()) else 0.0
        ratio = rms / signal if signal else math.inf
        return Opinion(
            agrees=highest <= limit,
            score=highest,
            limit=limit,
            draws=self._draws,
            noise=float(scale.flatten()[worst]),
            ratio=ratio,
            error=float(error.flatten()[worst]),
            index=_unravel(worst, score.shape),
            centred=reference is not None,
            too_chaotic=ratio > (1e-3 if max(values.unit, self._coarsest) < 1e-5 else 1e-1),
        )

    def _discrete(self, path: str, values: _Values, eager: Eager) -> Opinion | None:
        """A flipped element is explained if some run has the same value there.

        Draws sample the near ties, they do not list them: hence the allowance for a few flips that no draw shows. It
        grows with the square root of what is shown, so that in a half type, where much flips, no row can hide in it.
        """
        if not self._loud:
            self._loud = True
            for draw in range(_LOUD_DRAWS):
                for name, leaf in self._jittered(eager, draw, _LOUDNESS).items():
                    mine, other = as_tensor(self._leaves.get(name)), as_tensor(leaf)
                    if mine is not None and other is not None and mine.shape == other.shape:
                        seen = _Values.of(mine, other)
                        if not seen.floating:
                            self._flips_at(name, seen).add(seen.theirs, loud=True)
        known = self._flips.get(path)
        if known is None:
            return None
        flipped = values.ours != values.theirs
        unexplained = int((flipped & ~known.explains(values.theirs)).sum())
        most = known.most
        allowed = min(most // 4, max(1, math.isqrt(most) // 2))
        worst = int(flipped.flatten().int().argmax())
        return Opinion(
            agrees=unexplained <= allowed,
            score=unexplained / allowed if allowed else math.inf if unexplained else 0.0,
            limit=1.0,
            draws=self._draws + _LOUD_DRAWS,
            noise=0.0,
            error=float((values.ours.double() - values.theirs.double()).abs().max()),
            index=_unravel(worst, flipped.shape),
        )


@dataclass
class _Spread:
    """How far the runs so far are from eager, element by element."""

    _noise: torch.Tensor | None = None
    _changed: torch.Tensor | None = None

    @property
    def noise(self) -> torch.Tensor:
        assert self._noise is not None
        return self._noise

    @property
    def changed(self) -> torch.Tensor:
        """Where a run is NaN or infinite and eager is not, or the other way round."""
        assert self._changed is not None
        return self._changed

    def add(self, values: _Values, *, changes: bool = True) -> None:
        off = (values.theirs - values.ours).abs()
        off = torch.where(off.isfinite(), off, 0.0)
        changed = ~_same_class(values.ours, values.theirs) & changes
        self._noise = off if self._noise is None else torch.maximum(self._noise, off)
        self._changed = changed if self._changed is None else self._changed | changed


@dataclass(frozen=True)
class _Values:
    """Two leaves as numbers of one type: double, or int64; complex ones as pairs.

    Attributes:
        unit: unit roundoff of eager's dtype.
        least: its smallest normal number.
    """

    ours: torch.Tensor
    theirs: torch.Tensor
    floating: bool
    unit: float
    least: float

    @classmethod
    def of(cls, ours: torch.Tensor, theirs: torch.Tensor) -> _Values:
        floating = ours.is_floating_point() or ours.is_complex()
        real = ours.dtype.to_real() if ours.dtype.is_complex else ours.dtype
        if not floating:
            return cls(_whole(ours), _whole(theirs), floating=False, unit=0.0, least=0.0)
        info = torch.finfo(real)
        return cls(_wide(ours), _wide(theirs), floating=True, unit=info.eps / 2, least=info.tiny)


Selection = Callable[[_Values, torch.dtype], torch.Tensor]
"""The elements to be judged, as a mask over the values."""


def _beyond_default(values: _Values, dtype: torch.dtype) -> torch.Tensor:
    """The elements that the fixed tolerance does not accept: only they need an explanation."""
    finite = values.ours.isfinite() & values.theirs.isfinite()
    size = torch.where(finite, values.ours.abs(), 0.0)
    limit = default_for(dtype, float(size.max()))
    return ~finite | ((values.theirs - values.ours).abs() > limit.atol + limit.rtol * size)


def _unravel(index: int, shape: torch.Size) -> tuple[int, ...]:
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


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return _plain(tensor).to(torch.float64)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return _plain(tensor).to(torch.int64)


def _same_class(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Where both are finite, both NaN, or the same infinity."""
    return (one.isfinite() & other.isfinite()) | (one.isnan() & other.isnan()) | (one == other)


def _scale(noise: torch.Tensor, finite: torch.Tensor, values: _Values) -> torch.Tensor:
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
    for axis, size in enumerate(noise.shape):
        if size > 1 and noise.numel() // size >= _LEAST_SLICE:
            quietest = torch.minimum(quietest, rms(tuple(a for a in every if a != axis)))
    rounding = torch.where(finite, values.ours.abs(), 0.0) * values.unit
    parts = (noise, quietest.expand_as(noise), rounding)
    return functools.reduce(torch.maximum, parts).clamp_min(values.least)
