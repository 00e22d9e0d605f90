"""Budgets: what an exported program may take in time and memory. Standard library only."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NoReturn, Self

from pytest_torchexport.backends.item_names import is_known, most_exact
from pytest_torchexport.backends.registry import unknown
from pytest_torchexport.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

TIMES = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
SIZES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
_RATIO = {"x": 1.0}
_UNITS = {
    "ratio": _RATIO,
    **dict.fromkeys(("median", "p99", "first_call"), TIMES),
    **dict.fromkeys(("warmup_calls", "recompiles"), None),
    **dict.fromkeys(("peak_memory", "artifact_size"), SIZES),
}
"""Each figure of a budget, in the order in which it is judged, and its units; None for one that is counted."""
FIRST_CALLS = 20
"""How many calls of a program that was loaded anew are timed; a budget of more could not be seen to be kept."""
_EXAMPLES = {
    "ratio": "1.2x",
    "median": "5ms",
    "p99": "8ms",
    "first_call": "2s",
    "warmup_calls": "3",
    "recompiles": "0",
    "peak_memory": "500MB",
    "artifact_size": "20MB",
}
_FORM = '"1.2x" (times eager), "5ms" (median), or several such as "1.2x p99=8ms first_call=2s peak_memory=500MB"'
_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?inf|nan)\s*(\S*)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Limit:
    """One figure of a budget.

    Attributes:
        name: `ratio`, `median`, `p99`, `first_call`, `warmup_calls`, `recompiles`, `peak_memory` or `artifact_size`.
        text: as one would say it: `1.2x`, `5 ms`, `0`.
        value: in seconds, bytes, calls or compilations; a ratio as it is.
    """

    name: str
    text: str
    value: float


@dataclass(frozen=True)
class Budget:
    """What an exported program may take. What is None is measured and not judged.

    Args:
        ratio: time of a call, as a multiple of eager's on the same device: `"1.2x"` or 1.2.
        median: median time of a call: `"5ms"`. Units of time are ns, us, ms, s and min.
        p99: 99th percentile of the times: `"8ms"`.
        first_call: time of the first call of the program, loaded anew: `"2s"`.
        warmup_calls: number of calls until the times settle, below 20.
        recompiles: compilations beyond the first that the inputs of the check may cause; for `compile`.
        peak_memory: the most memory beyond what was held before, while the program is loaded and first called, on the
            device that it runs on: `"500MB"`. Units of size are B, kB, MB, GB, KiB, MiB and GiB.
        artifact_size: bytes on disk, side files included: `"20MB"`.
        inputs: labels of the inputs that are timed: `"example"`, `"extra_inputs[0]"`.
        copies: count the copies of arguments and results between host and device.

    Raises:
        UsageError: a value is negative, zero where that cannot be, no finite number, or has no unit or a wrong one; a
            keyword is not known.
    """

    ratio: float | str | None = None
    median: str | None = None
    p99: str | None = None
    first_call: str | None = None
    warmup_calls: int | None = None
    recompiles: int | None = None
    peak_memory: str | None = None
    artifact_size: str | None = None
    inputs: tuple[str, ...] = ("example",)
    copies: bool = False

    def __new__(cls, *_args: object, **given: object) -> Self:
        """Name the accepted keywords where one is wrong: Python's own error would not."""
        accepted = [field.name for field in fields(cls)]
        for name in given:
            if name not in accepted:
                raise UsageError(unknown("keyword of Budget", name, accepted))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in _UNITS:
            value = getattr(self, name)
            if value is not None:
                # Two ways to write the same figure are equal.
                object.__setattr__(self, name, _normal(name, value))
        object.__setattr__(self, "inputs", _labels(self.inputs))
        _check_flag("copies", self.copies)
        values = {limit.name: limit.value for limit in self.limits}
        if values.get("p99", math.inf) < values.get("median", 0.0):
            msg = f"Budget p99={self.p99!r} is below median={self.median!r}: half of the calls would be above both"
            raise UsageError(msg)

    @property
    def limits(self) -> tuple[Limit, ...]:
        """Every figure that is limited."""
        return tuple(_limit(name, value) for name in _UNITS if (value := getattr(self, name)) is not None)

    def __str__(self) -> str:
        """The text that `read_budget` reads: `1.2x`, `5ms`, `1.2x first_call=2s`; `no limit` for an empty one."""
        said = {name: str(value) for name in _UNITS if (value := getattr(self, name)) is not None}
        alone = ("ratio", "median") if list(said) == ["median"] else ("ratio",)
        words = [text if name in alone else f"{name}={text}" for name, text in said.items()]
        words += [f"inputs={','.join(self.inputs)}"] if self.inputs != ("example",) else []
        words += ["copies=true"] if self.copies else []
        return " ".join(words) or "no limit"


Given = str | Budget | Mapping[str, "str | Budget"] | None
"""What a test may say: one budget for all its items, or one for each name of items."""


def read_budget(text: str) -> Budget:
    """The budget that a text says: `1.2x`, `5ms`, `1.2x median=5ms p99=8ms inputs=example,extra_inputs[0] copies=true`.

    Raises:
        UsageError: a word is not known, stands twice, or `Budget` does not accept its value.
    """
    given: dict[str, Any] = {}
    for word in _words(text):
        name, equals, value = word.partition("=")
        if not equals:
            name, value = _figure_alone(word), word
        if name in given:
            msg = f"budget {text.strip()!r} sets {name} twice"
            raise UsageError(msg)
        given[name] = _READ.get(name, str)(value)
    if not given:
        msg = f"the budget is empty: write {_FORM}"
        raise UsageError(msg)
    return Budget(**given)


def as_budget(given: object) -> Budget:
    """The budget itself, or the one that a text says.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(given, Budget):
        return given
    if isinstance(given, str):
        return read_budget(given)
    msg = f"{given!r} is not a budget: give {_FORM}, or Budget(ratio=..., first_call=...)"
    raise UsageError(msg)


def as_budgets(given: object) -> Budget | Mapping[str, Budget]:
    """What a test gives, with texts read.

    Raises:
        UsageError: it is neither a budget nor a mapping of names to budgets.
    """
    if not isinstance(given, Mapping):
        return as_budget(given)
    read = {}
    for name, one in given.items():
        if not isinstance(name, str):
            msg = (
                f"{name!r} is not the name of items: give 'compile', 'onnx-cuda', 'cuda' or a pattern such as '*-cuda'"
            )
            raise UsageError(msg)
        try:
            read[name] = as_budget(one)
        except UsageError as error:
            msg = f"{name!r}: {error}"
            raise UsageError(msg) from None
    if not read:
        msg = "an empty dict limits nothing: name a backend, {'compile': '1.2x'}, or leave it out"
        raise UsageError(msg)
    return read


def budget_of(given: Given, names: Sequence[str]) -> Budget | None:
    """The budget of one item.

    Args:
        given: what the test says.
        names: everything that the item can be called, the most exact first (`item_names.names_of`).

    Returns:
        None if the test limits other items only.

    Raises:
        UsageError: as `as_budgets`, or a name is that of no backend, device or dtype.
    """
    if given is None:
        return None
    try:
        read = as_budgets(given)
    except UsageError as error:
        msg = f"latency={given!r}: {error}"
        raise UsageError(msg) from None
    if isinstance(read, Budget):
        return read
    for name in read:
        if not is_known(name):
            msg = (
                f"latency: {name!r} names no backend, device or dtype: give 'compile', 'cuda', 'onnx-cuda' or '*-cuda'"
            )
            raise UsageError(msg)
    return most_exact(read, names)


# --- reading ---


def _words(text: str) -> list[str]:
    """The words of a text: `median=5 ms, p99=8ms` has two, `inputs=example,extra_inputs[0]` is one."""
    spaced = "|".join((*TIMES, *SIZES, *_RATIO))
    text = re.sub(rf"(?<=\d)\s+(?=(?:{spaced})(?:[\s,]|$))", "", text.strip())
    words: list[str] = []
    for group in text.split():
        parts = [part for part in group.split(",") if part]
        for number, part in enumerate(parts):
            if number and "=" not in part and words[-1].startswith("inputs="):
                words[-1] += "," + part
            else:
                words.append(part)
    return words


def _figure_alone(word: str) -> str:
    """What a figure without a name limits."""
    found = _NUMBER.fullmatch(word)
    unit = _unit(found[2]) if found else ""
    if unit in _RATIO:
        return "ratio"
    if unit in TIMES:
        return "median"
    if unit in SIZES:
        msg = f"{word!r} is a size of what? Write peak_memory={word} or artifact_size={word}"
    elif found and not unit:
        msg = f"{word!r} has no unit: write {word}x for a multiple of eager's time, or a time such as {word}ms"
    else:
        msg = f"{word!r} is not a budget: write {_FORM}"
    raise UsageError(msg)


def _whole(text: str) -> int | str:
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else text


def _flag(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text.lower(), text)


_READ: dict[str, Any] = {
    **dict.fromkeys(("warmup_calls", "recompiles"), _whole),
    "inputs": lambda text: tuple(text.split(",")),
    "copies": _flag,
}


def _unit(text: str) -> str:
    return "us" if text in ("\u00b5s", "\u03bcs") else text  # the sign for micro, and the Greek letter


def _normal(name: str, value: object) -> str | int:
    """The figure as it is kept: `1.2x`, `5ms`, 3.

    Raises:
        UsageError: it is not accepted.
    """
    units = _UNITS[name]
    if units is None:
        return _count(name, value)
    plain = name == "ratio" and type(value) in (int, float)
    if not plain and not isinstance(value, str):
        _reject(name, value, f"a text with its unit, {name}='{_EXAMPLES[name]}'")
    found = _NUMBER.fullmatch(f"{value!r}x" if plain else str(value))
    if found is None:
        _reject(name, value, f"a number and its unit, such as '{_EXAMPLES[name]}'")
    unit = _unit(found[2])
    if not unit:
        better = f"{found[1]}{'x' if units is _RATIO else 'ms' if units is TIMES else 'MB'}"
        _reject(name, value, f"it with its unit ({', '.join(units)}), such as '{better}'", "has no unit")
    if unit not in units:
        problem = f"has the unit {unit!r}"
        near = next((one for one in units if one.lower() == unit.lower()), None)
        _reject(name, value, f"one of {', '.join(units)}, such as '{found[1]}{near or next(iter(units))}'", problem)
    number = float(found[1])
    if not 0 < number * units[unit] < math.inf:
        problem = "can never be kept" if number <= 0 else "is not accepted"
        _reject(name, value, f"a finite number above 0, such as '{_EXAMPLES[name]}'", problem)
    return f"{number!r}".removesuffix(".0") + unit


def _count(name: str, value: object) -> int:
    if type(value) is not int or value < 0:
        _reject(name, value, f"a whole number from 0 on, such as {name}={_EXAMPLES[name]}")
    if name == "warmup_calls" and value >= FIRST_CALLS:
        wanted = f"a number below {FIRST_CALLS}, which is how many first calls are timed"
        _reject(name, value, wanted, "could not be seen to be kept")
    return value


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        _reject(name, value, "True or False")


def _reject(name: str, value: object, wanted: str, problem: str = "is not accepted") -> NoReturn:
    msg = f"Budget {name}={value!r} {problem}: give {wanted}"
    raise UsageError(msg)


def _limit(name: str, value: str | int) -> Limit:
    found = _NUMBER.fullmatch(str(value))
    assert found is not None, f"{value!r} was read before"
    number, unit = found[1], found[2]
    units = _UNITS[name]
    if not units or units is _RATIO:
        return Limit(name, str(value), float(number))
    return Limit(name, f"{number} {unit}", float(number) * units[unit])


def _labels(given: object) -> tuple[str, ...]:
    labels = (given,) if isinstance(given, str) else given
    if not isinstance(labels, (tuple, list)) or not all(isinstance(one, str) and one.strip() for one in labels):
        msg = f"Budget inputs={given!r} is not accepted: give labels of inputs, ('example', 'extra_inputs[0]')"
        raise UsageError(msg)
    if not labels or len(set(labels)) < len(labels):
        problem = "lists an input twice" if labels else "is empty"
        msg = f"Budget inputs={given!r} {problem}: give each input that is timed once, ('example', 'extra_inputs[0]')"
        raise UsageError(msg)
    return tuple(labels)
