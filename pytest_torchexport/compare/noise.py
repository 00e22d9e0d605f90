"""A second opinion on a difference: does the rounding noise of eager itself explain it?

Eager runs again with noise of the size of a rounding error added to every operation, and once in double precision. How
far its results move is how far a correct export may be off. It is asked only where the fixed tolerance disagrees.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from pytest_torchexport.compare.double import InDouble, NoDouble
from pytest_torchexport.compare.flips import Flips
from pytest_torchexport.compare.jitter import Jitter
from pytest_torchexport.compare.path import Path, Watch
from pytest_torchexport.compare.spread import (
    Selection,
    Spread,
    Values,
    beyond_default,
    same_class,
    scale_of,
    unravel,
    wide,
)
from pytest_torchexport.compare.tree import as_tensor
from pytest_torchexport.outcome import Cause, Leaf
from pytest_torchexport.subject.run import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from collections.abc import Set as AbstractSet
    from contextlib import AbstractContextManager


LIMIT = 6.0
"""How many times the noise a correct export may be off."""
_LAST_LIMIT = 5.0
"""The same after the last draw, when the noise is known best."""
_DRAWS = 8
_LOUD_DRAWS = 8
_LOUDNESS = 8
_SETTLED = 100.0
"""Beyond so many limits a difference is settled after the run in double precision and two draws.

The noise only grows with the draws, and in a model without jumps by little. Measured on 23 such models (norms on
constant and nearly constant input, softmax, attention, recurrent layers, half types, 60 layers, a chaotic map,
differences of nearly equal numbers and their inverses) with 9 kinds of inputs and 6 seeds each: from the second draw to
the eighth no element's noise grew more than 18 times, and the worst element's of a model usually 4 times. Where
comparisons, indices or pivots decide on values, a draw may be the first to go the other way, and its noise is millions
of times that of the others: then all draws are made, and so they are without a run in double precision.
"""
_SETTLED_DRAWS = 2
_FAR = 1000.0
"""Beyond so many limits of the noise of a single draw a difference counts at first sight. From there to the end no
element's noise grew more than 222 times in these models.
"""
_FAR_DRAWS_OF_JUMPS = 3
"""So many draws such a look takes where the model has jumps: half of them show one that hangs on a rounding error."""


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
        surely: the score without the elements that are NaN or infinite on one side.
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
    surely: float = 0.0


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
        self.repeats = False
        """Whether eager was seen to repeat itself on the input; the noise means nothing otherwise."""
        self._asked: frozenset[str] = frozenset()
        self._start_over()

    def _start_over(self) -> None:
        self._draws = 0
        self._spread: dict[str, Spread] = {}
        self._flips: dict[str, Flips] = {}
        self._reference: dict[str, torch.Tensor] | None = None
        self._loud_draws = 0
        self._coarsest = 0.0
        self._blind = False
        self._jumps = False
        self._derives = False
        self._path: Path | None = None
        self._before: list[Path] = []
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
        opinion = self.opinion(leaf.path, expected, actual, eager, only=beyond_default)
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

    def rules_out(
        self, leaf: Leaf, expected: Any, actual: Any, eager: Eager, disputed: frozenset[str] = frozenset()
    ) -> bool:
        """Whether a first look, at one or a few runs with noise, shows that rounding is far from an explanation.

        It is no verdict: one run is a sample. False says nothing. The runs are not lost for `judge`.

        Args:
            leaf: the comparison by the fixed tolerance, which differs in its values.
            expected: eager's leaf.
            actual: the exported program's.
            eager: how to run eager again.
            disputed: paths of further leaves that will be asked about.
        """
        values = self._values(leaf.path, expected, actual)
        if values is None:
            return False
        self._ask_about(disputed | {leaf.path})
        if not values.floating:
            self._draw_until_settled(leaf.path, values, eager, _SETTLED_DRAWS)
            return self._flips_are_settled(leaf.path, values)
        judged = beyond_default(values, _dtype_of(expected))
        for _ in range(_FAR_DRAWS_OF_JUMPS + 1):
            found, draws = self._score(leaf.path, values, judged), self._draws_of(leaf.path)
            if self._blind or (found is not None and found.surely <= _FAR * LIMIT):
                return False
            if draws >= (_FAR_DRAWS_OF_JUMPS if self._jumps else 1):
                return found is not None
            if self._draws < _FAR_DRAWS_OF_JUMPS:
                self._draw(eager)
        return False

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
        values = self._values(path, expected, actual)
        if values is None:
            return None
        self._ask_about({path})
        self._measure_reference(eager)
        if not values.floating:
            return self._discrete(path, values, eager)
        judged = torch.ones_like(values.ours, dtype=torch.bool) if only is None else only(values, _dtype_of(expected))
        found = self._score(path, values, judged)
        if self._draws == _DRAWS and found is not None and _LAST_LIMIT < found.score <= LIMIT:
            # Whether fewer draws explain it must not depend on what was asked before.
            self._forget_draws()
            found = self._score(path, values, judged)
        # The reference is one sample of eager's error, and may be a lucky one: at least one draw says how large it is.
        while (found is None or not found.agrees or not self._draws) and self._draws < _DRAWS:
            if self._draws_of(path) >= _SETTLED_DRAWS and found is not None and self._is_settled(found):
                break
            self._draw(eager)
            found = self._score(path, values, judged)
        return None if self._blind and found is not None and not found.agrees else found

    def _is_settled(self, found: Opinion) -> bool:
        return found.centred and not self._jumps and found.surely > _SETTLED * LIMIT

    def _draws_of(self, path: str) -> int:
        """How many draws say something of the leaf: some go another way."""
        return self._spread[path].draws if path in self._spread else 0

    def _values(self, path: str, expected: Any, actual: Any) -> Values | None:
        """Both leaves as numbers; None if they are none."""
        ours, theirs = as_tensor(expected), as_tensor(actual)
        if path not in self._leaves or ours is None or theirs is None:
            return None
        return Values.of(ours, theirs.reshape(ours.shape).to(ours.device))

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
        if any(path != watch.path for path in self._before):
            self._forget_draws()  # a first look took in a run on another branch
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
        self._draws, self._loud_draws, self._spread, self._flips = 0, 0, {}, {}
        self._take(self._reference or {}, changes=False)

    def _draw(self, eager: Eager) -> None:
        self._draws += 1
        self._take(self._jittered(eager, self._draws))

    def _jittered(self, eager: Eager, draw: int, loudness: int = 1) -> Mapping[str, Any]:
        """The leaves of a run with noise; none if the noise makes it raise."""
        mode = Jitter(self._seed, draw, loudness)
        record = eager.rerun(mode)
        if self._path is None:
            self._before.append(mode.path)
        elif mode.path != self._path:
            # A condition on a tensor came out differently: the difference is that of two branches, not of rounding.
            return {}
        self._coarsest = max(self._coarsest, mode.coarsest)
        self._blind |= mode.blind
        self._jumps |= mode.jumps
        self._derives |= mode.derives
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
            values = Values.of(mine, other)
            if values.floating:
                self._spread.setdefault(path, Spread()).add(values, changes=changes)
            else:
                self._flips_at(path, values).add(values.theirs)

    def _flips_at(self, path: str, values: Values) -> Flips:
        return self._flips.setdefault(path, Flips(values.ours))

    def _score(self, path: str, values: Values, judged: torch.Tensor) -> Opinion | None:
        spread = self._spread.get(path)
        if spread is None:
            return None
        reference = (self._reference or {}).get(path)
        centre = values.ours if reference is None else wide(reference)
        centre = torch.where(centre.isfinite(), centre, values.ours)
        noise, changed = spread.noise, spread.changed
        finite = values.ours.isfinite() & values.theirs.isfinite()
        special = ~same_class(values.ours, values.theirs) & ~changed
        scale = scale_of(noise, finite, values)
        error = torch.where(finite, (values.theirs - centre).abs(), 0.0)
        plain = (error / scale).masked_fill(~judged, 0.0)
        score = plain.masked_fill(special & judged, math.inf)
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
            index=unravel(worst, score.shape),
            centred=reference is not None,
            too_chaotic=ratio > (1e-3 if max(values.unit, self._coarsest) < 1e-5 else 1e-1),
            surely=float(plain.max()),
        )

    def _discrete(self, path: str, values: Values, eager: Eager) -> Opinion | None:
        """A flipped element is explained if some run has the same value there.

        Draws sample the near ties, they do not list them: hence the allowance for a few flips that no draw shows. It
        grows with the square root of what is shown, so that in a half type, where much flips, no row can hide in it.
        """
        self._draw_until_settled(path, values, eager, _LOUD_DRAWS)
        known = self._flips.get(path)
        if known is None:
            return None
        flipped = values.ours != values.theirs
        unexplained = known.unexplained(values.theirs)
        most = known.most
        allowed = min(most // 4, max(1, math.isqrt(most) // 2))
        worst = int(flipped.flatten().int().argmax())
        return Opinion(
            agrees=unexplained <= allowed,
            score=unexplained / allowed if allowed else math.inf if unexplained else 0.0,
            limit=1.0,
            draws=self._draws + self._loud_draws,
            noise=0.0,
            error=float((values.ours.double() - values.theirs.double()).abs().max()),
            index=unravel(worst, flipped.shape),
        )

    def _draw_until_settled(self, path: str, values: Values, eager: Eager, draws: int) -> None:
        """Make loud draws, which flip near ties; all of them, unless far more is flipped than they will explain."""
        while self._loud_draws < draws:
            if self._loud_draws >= _SETTLED_DRAWS and self._flips_are_settled(path, values):
                return
            loud = self._jittered(eager, self._loud_draws, _LOUDNESS)
            self._loud_draws += 1
            for name, leaf in loud.items():
                mine, other = as_tensor(self._leaves.get(name)), as_tensor(leaf)
                if mine is not None and other is not None and mine.shape == other.shape:
                    seen = Values.of(mine, other)
                    if not seen.floating:
                        self._flips_at(name, seen).add(seen.theirs, loud=True)

    def _flips_are_settled(self, path: str, values: Values) -> bool:
        known = self._flips.get(path)
        if known is None or self._jumps or self._derives:
            return False
        return known.unexplained(values.theirs) > _SETTLED * max(1, known.most)


def _dtype_of(value: Any) -> torch.dtype:
    tensor = as_tensor(value)
    assert tensor is not None
    return tensor.dtype
