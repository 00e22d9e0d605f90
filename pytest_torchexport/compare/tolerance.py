"""How far values may be off: `Tolerance`, for all results of a test or by name. Standard library only."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_torchexport.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

DEFAULT_K = 6.0
"""How many times eager's rounding noise a correct export may be off."""
PRECISIONS = ("tf32", "bf16", "fp16")
"""What an export may be allowed to compute in where eager computes in float32."""
COMPARISONS = ("values", "set", "ignore")
"""How a result is compared: place by place, in any order along one dimension, or not at all."""
_EXAMPLE = "Tolerance(rtol=1e-4, atol=1e-5) for fixed bounds, Tolerance(k=10) for a multiple of the measured noise"


@dataclass(frozen=True)
class Tolerance:
    """How far a result may be off; without arguments, as far as eager's own rounding explains.

    Args:
        rtol: with atol, the bound `|exported - eager| <= atol + rtol * |eager|` for each element instead of the
            measured one. No unit.
        atol: its absolute part, in the unit of the output.
        k: how many times the measured rounding noise an element may be off; 6 where it is not given.
        precision: the export may compute in `tf32` (matrix products and convolutions), `bf16` or `fp16` (everything)
            where eager computes in float32: the noise is measured as if eager did.
        compare: `values` place by place; `set` in any order along `dim`; `ignore` not at all (it is listed as not
            checked).
        dim: for `set`, the dimension along which the order does not matter.

    Raises:
        UsageError: only one of rtol and atol is given, a number is negative, NaN or none, a word is not known, or the
            arguments exclude one another.
    """

    rtol: float | None = None
    atol: float | None = None
    k: float | None = field(default=None, kw_only=True)
    precision: str | None = field(default=None, kw_only=True)
    compare: str = field(default="values", kw_only=True)
    dim: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if (self.rtol is None) != (self.atol is None):
            missing = "atol" if self.atol is None else "rtol"
            msg = f"Tolerance needs both rtol and atol, {missing} is missing: write Tolerance(rtol=1e-4, atol=1e-5)"
            raise UsageError(msg)
        for name in ("rtol", "atol", "k"):
            value = getattr(self, name)
            if value is None:
                continue
            if type(value) not in (int, float) or not 0 <= value < math.inf:
                msg = f"Tolerance {name}={value!r}: give a finite number that is not negative"
                raise UsageError(msg)
            object.__setattr__(self, name, float(value))
        if self.k is not None and self.k < 1:
            msg = f"Tolerance k={self.k:g}: eager's own error is as large as 1, give a number of at least 1"
            raise UsageError(msg)
        _known("precision", self.precision, (None, *PRECISIONS))
        _known("compare", self.compare, COMPARISONS)
        if type(self.dim) is not int:
            msg = f"Tolerance dim={self.dim!r}: give the number of a dimension"
            raise UsageError(msg)
        if self.fixed and (self.k is not None or self.precision is not None):
            given = "k" if self.k is not None else "precision"
            msg = (
                f"Tolerance takes either rtol and atol or {given}: rtol and atol replace the measured noise, "
                f"{given} changes how it is used"
            )
            raise UsageError(msg)

    @property
    def fixed(self) -> bool:
        """Whether rtol and atol replace the measured noise."""
        return self.rtol is not None

    @property
    def is_default(self) -> bool:
        """Whether it changes nothing."""
        return self == CALIBRATED

    def __str__(self) -> str:
        """`rtol=0.0001, atol=1e-05`, `k=10, precision='bf16'`, `compare='set'`; `calibrated` for the default."""
        said = [f"{name}={value:g}" for name in ("rtol", "atol", "k") if (value := getattr(self, name)) is not None]
        said += [f"precision={self.precision!r}"] if self.precision is not None else []
        said += [f"compare={self.compare!r}"] if self.compare != "values" else []
        said += [f"dim={self.dim}"] if self.dim else []
        return ", ".join(said) or "calibrated"


def _known(name: str, value: object, accepted: tuple[object, ...]) -> None:
    if value not in accepted:
        listed = ", ".join(repr(one) for one in accepted)
        msg = f"Tolerance {name}={value!r} is not accepted: choose one of {listed}"
        raise UsageError(msg)


CALIBRATED = Tolerance()
"""The default: as far as the measured rounding noise explains."""

Given = Tolerance | Mapping[str, Tolerance] | None
"""What a test may say: one tolerance for all results, or one for each name."""


@dataclass(frozen=True)
class Rules:
    """The tolerance of each result of a test.

    A name is a result's path (`output['logits'][0]`, `state bn.running_mean`), the last part of it (`logits`,
    `running_mean`, `0`), a pattern (`*loss*`), or `*` for all results that no other name fits. The most exact one
    counts; of several that are equally exact, the first.
    """

    default: Tolerance = CALIBRATED
    named: tuple[tuple[str, Tolerance], ...] = ()

    @classmethod
    def of(cls, given: Given) -> Rules:
        """The rules that a test gives.

        Raises:
            UsageError: it is neither a tolerance nor a mapping of names to tolerances.
        """
        if isinstance(given, Tolerance):
            return cls(given)
        if given is None:
            return cls()
        if not isinstance(given, Mapping):
            msg = f"tolerance={given!r} is not accepted: give {_EXAMPLE}, or a dict of such by the outputs' names"
            raise UsageError(msg)
        for name, one in given.items():
            if not isinstance(name, str) or not isinstance(one, Tolerance):
                msg = (
                    f"tolerance={{{name!r}: {one!r}}} is not accepted: the names are strings (a path, a key, a "
                    f"pattern, or '*'), the values {_EXAMPLE}"
                )
                raise UsageError(msg)
        return cls(given.get("*", CALIBRATED), tuple((name, one) for name, one in given.items() if name != "*"))

    @property
    def is_default(self) -> bool:
        """Whether nothing is set by hand."""
        return self.default.is_default and not self.named

    @property
    def any_order(self) -> bool:
        """Whether the order of some result means nothing."""
        return any(one.compare == "set" for one in (self.default, *(one for _, one in self.named)))

    def of_result(self, path: str) -> Tolerance:
        """The tolerance of the result with this path."""
        for fits in (_is_path, _is_last_part, _fits_pattern):
            for name, tolerance in self.named:
                if fits(name, path):
                    return tolerance
        return self.default

    def unknown(self, paths: Iterable[str]) -> list[str]:
        """The names that fit none of the paths."""
        known = list(paths)
        return [
            name
            for name, _ in self.named
            if not any(fits(name, path) for path in known for fits in (_is_path, _is_last_part, _fits_pattern))
        ]

    def __str__(self) -> str:
        """`calibrated`, or what is set: `set: logits: k=10; *: rtol=0.001, atol=1e-05`."""
        if self.is_default:
            return "calibrated"
        rest = [] if self.named and self.default.is_default else [("*", self.default)]
        if not self.named:
            return f"set: {self.default}"
        return "set: " + "; ".join(f"{name}: {tolerance}" for name, tolerance in (*self.named, *rest))


_CALL = re.compile(r"^call \d+ ")
_PART = re.compile(r"\[(?:'([^']*)'|\"([^\"]*)\"|([^\]]*))\]|([^.\[\]\s]+)")


def _is_path(name: str, path: str) -> bool:
    """Whether it names the result itself: its path, on every call of a sequence; `[0]` and `['x']` are outputs."""
    plain = _CALL.sub("", path)
    return name in (path, plain) or f"output{name}" == plain


def _is_last_part(name: str, path: str) -> bool:
    parts = ["".join(found) for found in _PART.findall(_CALL.sub("", path))]
    return bool(parts) and name in (parts[-1], path.rpartition(" ")[2])


def _fits_pattern(name: str, path: str) -> bool:
    if not any(sign in name for sign in "*?"):
        return False
    pattern = name.replace("[", "[[]")
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(_CALL.sub("", path), pattern)


def read_tolerance(text: str) -> Tolerance:
    """The tolerance that a line of an ini file says: `k=10`, `rtol=1e-3 atol=1e-5`, `precision=tf32`, `compare=ignore`.

    Raises:
        UsageError: a word is not known, or `Tolerance` does not accept the values.
    """
    given: dict[str, Any] = {}
    for word in re.split(r"[,\s]+", text.strip()):
        name, equals, value = word.partition("=")
        if name in ("rtol", "atol", "k") and equals:
            given[name] = _number(word, value)
        elif name in ("precision", "compare") and equals:
            given[name] = value
        else:
            msg = f"{word!r} is not accepted: write rtol=1e-3 atol=1e-5, k=10, precision=tf32 or compare=ignore"
            raise UsageError(msg)
    return Tolerance(**given)


def _number(word: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        msg = f"{word!r} is not accepted: {value!r} is no number"
        raise UsageError(msg) from None
