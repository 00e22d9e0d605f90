"""The calibrated rule: does the rounding noise of eager itself explain a difference?

Eager runs once in double precision, and again with noise of the size of a rounding error added to every operation. How
far its results move is how far a correct export may be off:

    n = max(|r - y|, max_j |y_j - y|)               y eager, r in float64, y_j with noise
    T = max(n, q, u * |y|, smallest normal number)  q rms of n over the quietest slice, u unit roundoff
    agree if |z - r| <= 6 T for every element       z the exported program

This is Monte Carlo arithmetic (Parker 1997; Verificarlo, arXiv 1509.01347) at the level of operators. Runs are made one
by one until the difference is explained, since T only grows; where the bits are equal, none.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.compare.double import NoDouble
from pytest_torchexport.compare.flips import Flips
from pytest_torchexport.compare.jitter import EPS_EVERYWHERE, Jitter
from pytest_torchexport.compare.opinion import Opinion, chaos, told, without_measurement
from pytest_torchexport.compare.path import Path, Watch
from pytest_torchexport.compare.rerun import Eager, in_double
from pytest_torchexport.compare.spread import Seen, Spread, Values, same_class, scale_of, unravel, wide
from pytest_torchexport.compare.ties import Choices
from pytest_torchexport.compare.tolerance import CALIBRATED, DEFAULT_K, Tolerance
from pytest_torchexport.compare.tree import as_tensor
from pytest_torchexport.outcome import Cause, Leaf
from pytest_torchexport.subject.run import Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from collections.abc import Set as AbstractSet


_FEW_DRAWS = 4
_DRAWS = 8
_LAST = 5 / 6
"""Beyond few draws, when the noise is known better, so much of the limit counts; not where eager itself is the centre,
since the noise then lacks the float64 run."""
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
_WORTH_A_LOOK = 10.0
"""Of a smaller multiple of the bound without a measurement a first look says nothing."""
_SMALL = 1 << 16
"""Elements of a leaf that is measured whether or not it differs."""
_FAR_DRAWS_OF_JUMPS = 3
"""So many draws such a look takes where the model has jumps: half of them show one that hangs on a rounding error."""


class TooChaotic(Exception):  # no error: the model cannot be judged on this input
    """The noise would explain the difference, but it is so large that it would explain nearly any; says how large."""


class RoundingNoise:
    """The rounding noise of eager on one input, measured as far as questions about it need.

    Args:
        leaves: what eager did, by path.
        seed: decides the noise; the same seed gives the same opinions.
        precision: what the noise is that of, if not of eager's own dtypes: `tf32`, `bf16` or `fp16`.
    """

    def __init__(self, leaves: Mapping[str, Any], seed: int, precision: str | None = None) -> None:
        self._leaves = leaves
        self._seed = seed
        self._precision = precision
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
        self._strayed: dict[str, Spread] = {}
        self._choices = Choices()
        self.without_reference: str | None = None

    def judge(
        self,
        leaf: Leaf,
        expected: Any,
        actual: Any,
        eager: Eager,
        disputed: frozenset[str] = frozenset(),
        tolerance: Tolerance = CALIBRATED,
    ) -> Leaf:
        """The verdict on a leaf that differs in its values.

        Args:
            leaf: the comparison without a measurement.
            expected: eager's leaf.
            actual: the exported program's.
            eager: how to run eager again.
            disputed: paths of further leaves that will be asked about; to name them here saves runs.
            tolerance: its k counts.

        Returns:
            The leaf with what the measurement says. Where none is possible, the defaults of
            `torch.testing.assert_close` decide, with an atol in proportion to small outputs.

        Raises:
            TooChaotic: the noise explains the difference, but would explain nearly any.
        """
        if leaf.agrees or leaf.cause not in (Cause.NUMERIC, Cause.SPECIAL_VALUE):
            return leaf
        self._ask_about(disputed | {leaf.path})
        k = DEFAULT_K if tolerance.k is None else tolerance.k
        opinion = self.opinion(leaf.path, expected, actual, eager, k=k)
        if opinion is None:
            return without_measurement(leaf)
        values = self._values(leaf.path, expected, actual)
        if values is not None and not opinion.agrees and self._is_of_another_branch(leaf.path, values, k):
            msg = (
                f"rounding decides which branch eager takes on this input: some of {opinion.draws or _DRAWS} jittered "
                f"runs take another one, and give for {leaf.path} what the exported program gives"
            )
            raise TooChaotic(msg)
        if opinion.agrees and opinion.too_chaotic:
            msg = chaos(leaf, opinion)
            raise TooChaotic(msg)
        return told(leaf, opinion, expected, actual)

    def rules_out(
        self,
        leaf: Leaf,
        expected: Any,
        actual: Any,
        eager: Eager,
        disputed: frozenset[str] = frozenset(),
        tolerance: Tolerance = CALIBRATED,
    ) -> bool:
        """Whether a first look, at one or a few runs with noise, shows that rounding is far from an explanation.

        It is no verdict: one run is a sample. False says nothing. The runs are not lost for `judge`.

        Args:
            leaf: the comparison without a measurement, which differs in its values.
            expected: eager's leaf.
            actual: the exported program's.
            eager: how to run eager again.
            disputed: paths of further leaves that will be asked about.
            tolerance: its k counts.
        """
        values = self._values(leaf.path, expected, actual)
        if values is None or leaf.excess < _WORTH_A_LOOK:
            return False
        self._ask_about(disputed | {leaf.path})
        if not values.floating:
            self._draw_until_settled(leaf.path, values, eager, _SETTLED_DRAWS)
            return self._flips_are_settled(leaf.path, values)
        k = DEFAULT_K if tolerance.k is None else tolerance.k
        for _ in range(_FAR_DRAWS_OF_JUMPS + 1):
            seen = self._spread[leaf.path].states[-1] if leaf.path in self._spread else None
            found = self._score(leaf.path, values, seen, k) if seen is not None else None
            if self._blind or (found is not None and found.surely <= _FAR * k):
                return False
            if seen is not None and seen.draws >= (_FAR_DRAWS_OF_JUMPS if self._jumps else 1):
                return True
            if self._draws < _FAR_DRAWS_OF_JUMPS:
                self._draw(eager)
        return False

    def opinion(self, path: str, expected: Any, actual: Any, eager: Eager, *, k: float = DEFAULT_K) -> Opinion | None:
        """Whether noise explains the difference between two leaves of equal kind, asking for as few runs as will do.

        Args:
            path: the leaf's path.
            expected: eager's leaf.
            actual: the exported program's.
            eager: how to run eager again.
            k: how many times the noise the difference may be.

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
            if self._choices.allow(values.ours, values.theirs):
                worst = int((values.ours != values.theirs).flatten().int().argmax())
                return Opinion(agrees=True, score=0.0, limit=1.0, draws=0, index=unravel(worst, values.ours.shape))
            return self._discrete(path, values, eager)
        found = self._first_that_explains(path, values, eager, k)
        made = self._draws
        if found is not None and self._hangs_on_order(path, found):
            self._forget_draws()
            found = self._first_that_explains(path, values, eager, k)
            while self._draws < made:  # what was known of the other leaves
                self._draw(eager)
        return None if self._blind and found is not None and not found.agrees else found

    def _first_that_explains(self, path: str, values: Values, eager: Eager, k: float) -> Opinion | None:
        found = None
        for seen in self._states(path, eager):
            found = self._score(path, values, seen, k)
            if found.agrees or (seen.draws >= _SETTLED_DRAWS and self._is_settled(found, k)):
                break
        return found

    def _states(self, path: str, eager: Eager) -> Iterator[Seen]:
        """What more and more runs show of a leaf: those that were made, then further ones."""
        known = list(self._spread[path].states) if path in self._spread else []
        yield from known
        while self._draws < _DRAWS:
            self._draw(eager)
            states = self._spread[path].states if path in self._spread else []
            if states and states[-1].made == self._draws:
                yield states[-1]

    def _hangs_on_order(self, path: str, found: Opinion) -> bool:
        """Whether fewer draws might say otherwise, and are not remembered, since others had asked for more."""
        states = self._spread[path].states
        forgotten = states[0].made > 0 and self._reference is not None and path in self._reference
        doubtful = (found.agrees and found.too_chaotic) or (not found.agrees and found.score * _LAST <= found.limit)
        return forgotten and doubtful

    def _is_settled(self, found: Opinion, k: float) -> bool:
        return found.centred and not self._jumps and found.surely > _SETTLED * k

    def _values(self, path: str, expected: Any, actual: Any) -> Values | None:
        """Both leaves as numbers; None if they are none."""
        ours, theirs = as_tensor(expected), as_tensor(actual)
        if path not in self._leaves or ours is None or theirs is None:
            return None
        return Values.of(ours, theirs.reshape(ours.shape).to(ours.device))

    def _ask_about(self, paths: AbstractSet[str]) -> None:
        """Measure these leaves too, from the first run on: what is measured takes several times the leaf's memory.

        Small ones are measured in any case: another program may differ in others, and the runs are made only once.
        """
        if not paths <= self._asked:
            self._asked |= paths | {path for path, leaf in self._leaves.items() if _is_small(leaf)}
            self._start_over()

    def _read(self, record: Record, eager: Eager) -> dict[str, Any]:
        """The leaves that were asked about."""
        return {path: leaf for path, leaf in eager.leaves(record).items() if path in self._asked}

    def _measure_reference(self, eager: Eager) -> None:
        if self._reference is not None:
            return
        if self._draws or self._loud_draws:
            # Those of a first look: what is said must not depend on whether there was one.
            self._forget_draws()
        self._reference = {}
        record, self._path, self._coarsest, self._choices = self._in_double(eager)
        if record.error is not None:
            self.without_reference = f"{type(record.error).__name__}: {record.error}"
            return
        for path, leaf in self._read(record, eager).items():
            tensor, mine = as_tensor(leaf), as_tensor(self._leaves.get(path))
            if tensor is not None and mine is not None and tensor.shape == mine.shape:
                self._reference[path] = tensor.detach()
        self._take(self._reference, changes=False)

    @staticmethod
    def _in_double(eager: Eager) -> tuple[Record, Path, float, Choices]:
        """The run in double precision; eager's own way, the largest eps that it computes in, what it chose among."""
        ways = eager.known.ways
        if ways and not eager.decides:
            record, way = in_double(eager)
            if record.error is None and not way.decides and way in ways:
                return record, *ways[way], Choices()
        watch = Watch()
        eager.rerun(watch)
        record, way = in_double(eager, watch.computed)
        if record.error is None and way != watch.computed:
            # It overflows in float32, say; or the code asks for the dtype.
            record = Record(error=NoDouble("in double precision the model takes another branch"))
        elif record.error is None and not way.decides and not watch.choices:
            ways[way] = watch.path, watch.coarsest
        return record, watch.path, watch.coarsest, watch.choices

    def _forget_draws(self) -> None:
        self._draws, self._loud_draws, self._spread, self._flips, self._strayed = 0, 0, {}, {}, {}
        self._take(self._reference or {}, changes=False)

    def _draw(self, eager: Eager) -> None:
        self._draws += 1
        self._take(self._jittered(eager, self._draws))

    def _jittered(self, eager: Eager, draw: int, loudness: int = 1) -> Mapping[str, Any]:
        """The leaves of a run with noise; none if the noise makes it raise."""
        mode = Jitter(self._seed, draw, loudness, self._precision)
        record = eager.rerun(mode)
        if self._path is not None and mode.path != self._path:
            # A condition on a tensor came out differently: the difference is that of two branches, not of rounding.
            self._strays(self._read(record, eager) if record.error is None else {})
            return {}
        self._coarsest = max(self._coarsest, mode.coarsest)
        self._blind |= mode.blind
        self._jumps |= mode.jumps
        self._derives |= mode.derives
        return self._read(record, eager) if record.error is None else {}

    def _strays(self, leaves: Mapping[str, Any]) -> None:
        """Note how far a run on another branch is from eager."""
        for path, leaf in leaves.items():
            mine, other = as_tensor(self._leaves.get(path)), as_tensor(leaf)
            if mine is not None and other is not None and mine.shape == other.shape:
                values = Values.of(mine, other)
                if values.floating:
                    self._strayed.setdefault(path, Spread()).add(values, self._draws, self._coarsest)

    def _is_of_another_branch(self, path: str, values: Values, k: float) -> bool:
        """Whether runs in which rounding decided on another branch explain what no run on eager's own does."""
        strayed = self._strayed.get(path)
        return strayed is not None and self._score(path, values, strayed.states[-1], k).agrees

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
                spread = self._spread.setdefault(path, Spread())
                spread.add(values, self._draws, self._coarsest, changes=changes)
            else:
                self._flips_at(path, values).add(values.theirs)

    def _flips_at(self, path: str, values: Values) -> Flips:
        return self._flips.setdefault(path, Flips(values.ours))

    def _score(self, path: str, values: Values, seen: Seen, k: float) -> Opinion:
        reference = (self._reference or {}).get(path)
        given = values.ours if reference is None else wide(reference)
        # What stands for infinity in masks, `torch.finfo(dtype).min`, is another number in float64.
        centre = torch.where(given.abs() <= values.most, given, values.ours)
        finite = values.ours.isfinite() & values.theirs.isfinite()
        special = ~same_class(values.ours, values.theirs) & ~seen.changed
        unit = max(values.unit, EPS_EVERYWHERE.get(self._precision or "", 0.0) / 2)
        scale = scale_of(seen.noise, finite, values, unit)
        error = torch.where(finite, (values.theirs - centre).abs(), 0.0)
        plain_score = error / scale
        score = plain_score.masked_fill(special, math.inf)
        worst = int(score.argmax())
        limit = k if seen.made <= _FEW_DRAWS or reference is None else k * _LAST
        highest = float(score.flatten()[worst])
        size = values.ours.abs()
        signal = float(torch.where(size < values.most / 2, size, 0.0).max())
        if path.startswith("gradient of ") and reference is not None and bool((centre.abs() <= seen.noise).all()):
            signal = max(signal, self._largest_gradient())
        # Not of the scale: what is below the smallest normal number need not be noise.
        rms = float(seen.noise[finite].square().mean().sqrt()) if bool(finite.any()) else 0.0
        ratio = rms / signal if signal else math.inf
        fine = max(values.unit, seen.coarsest) < 1e-5 and self._precision is None
        own = float((values.ours - centre).abs().flatten()[worst])
        return Opinion(
            agrees=highest <= limit,
            score=highest,
            limit=limit,
            draws=seen.draws,
            noise=float(scale.flatten()[worst]),
            ratio=ratio,
            error=float(error.flatten()[worst]),
            eager_error=own if math.isfinite(own) else 0.0,
            reference=math.nan if reference is None else float(given.flatten()[worst]),
            index=unravel(worst, score.shape),
            centred=reference is not None,
            too_chaotic=ratio > (1e-3 if fine else 1e-1),
            surely=float(plain_score.max()),
            beyond=None if highest <= limit else score > limit,
        )

    def _largest_gradient(self) -> float:
        """Beside what a gradient that is zero but for rounding is small: that of a bias before a normalisation."""
        found = (as_tensor(leaf) for path, leaf in self._leaves.items() if path.startswith("gradient of "))
        sizes = (torch.where(one.isfinite(), one.abs(), 0.0) for one in found if one is not None and one.numel())
        return max((float(size.max()) for size in sizes), default=0.0)

    def _discrete(self, path: str, values: Values, eager: Eager) -> Opinion | None:
        """A flipped element is explained if some run flips it so.

        Loud runs flip more than an export does. Where they flip so much that they would explain anything, it is for
        runs with no more noise than eager's own to say; what only breaks ties is no noise.
        """
        self._draw_until_settled(path, values, eager, _LOUD_DRAWS)
        known = self._flips.get(path)
        if known is None:
            return None
        flipped = values.ours != values.theirs
        score = known.score(values.theirs)
        vague = known.is_free() if score <= 1 else known.is_open(values.theirs, known.loud)
        if vague:
            self._draw_ties(path, known, eager)
            while self._draws < _DRAWS:
                self._draw(eager)
            if score <= 1:
                vague = known.score(values.theirs, loud=False) > 1 or known.is_free(loud=False)
            else:
                vague = known.is_open(values.theirs, known.ties)
        worst = int(flipped.flatten().int().argmax())
        return Opinion(
            agrees=score <= 1 or vague,
            score=score,
            limit=1.0,
            draws=self._draws + self._loud_draws,
            noise=0.0,
            ratio=known.share() if vague else 0.0,
            error=float((values.ours.double() - values.theirs.double()).abs().max()),
            index=unravel(worst, flipped.shape),
            too_chaotic=vague,
            beyond=flipped,
        )

    def _draw_ties(self, path: str, known: Flips, eager: Eager) -> None:
        """Make runs without noise, but for the order of what is equal."""
        for draw in range(0 if known.ties else _LOUD_DRAWS):
            mine, other = as_tensor(self._leaves.get(path)), as_tensor(self._jittered(eager, draw, 0).get(path))
            if mine is not None and other is not None and mine.shape == other.shape:
                known.add_ties(Values.of(mine, other).theirs)

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


def _is_small(leaf: Any) -> bool:
    tensor = as_tensor(leaf)
    return tensor is not None and tensor.numel() <= _SMALL
