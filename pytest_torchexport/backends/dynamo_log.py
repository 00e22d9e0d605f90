"""What Dynamo did while a compiled model ran: graph breaks and recompilations, with their reasons."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch._dynamo import utils as dynamo_utils

from pytest_torchexport.subject import source

if TYPE_CHECKING:
    from pytest_torchexport.outcome import Location

_PLAIN = (
    (r"generic_jump", "a Python branch depends on the values of a tensor"),
    (r"Data-dependent branching", "a Python branch depends on the values of a tensor"),
)
"""Dynamo's internal words, and what they mean."""


@dataclass(frozen=True)
class Break:
    """A place at which Dynamo left the graph.

    Attributes:
        reason: why, in a sentence.
        location: the user's line, where Dynamo names one.
        function: set where the whole function ran in eager, because Dynamo cannot resume behind the place.
    """

    reason: str
    location: Location | None
    function: str = ""

    @property
    def place(self) -> str:
        """`file:line`, with the function if all of it ran in eager."""
        at = str(self.location) if self.location else "a place that torch does not name"
        return f"{at} (the whole function {self.function})" if self.function else at

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


class DynamoLog:
    """Graph breaks and recompilations of one compiled model.

    Dynamo keeps its records globally. They are cleared before and read after every call, so that what other compiled
    functions of the process do in between is not counted.

    Attributes:
        breaks: every graph break, once.
        recompiles: the reasons of the recompilations, in order. A function and its parts that resume behind graph
            breaks are one: where they are compiled again in one call, that is one recompilation.
        limits: how often a compilation was asked for that was one too many.
        limit: what asked for one compilation too many, and `limit_location` where.
        empty_functions: number of functions that were captured and have no tensor operation.
    """

    def __init__(self) -> None:
        self.breaks: list[Break] = []
        self.recompiles: list[str] = []
        self.limits = 0
        self.limit = "unknown"
        self.limit_location: Location | None = None
        self.empty_functions = 0

    def begin(self) -> None:
        """Forget what Dynamo recorded before: it belongs to something else."""
        dynamo_utils.graph_break_reasons.clear()
        dynamo_utils.clear_compilation_metrics()

    def collect(self) -> None:
        """Read what Dynamo recorded since `begin`."""
        for record in dynamo_utils.graph_break_reasons:
            frames = [(frame.filename, frame.lineno) for frame in record.user_stack]
            self._add(Break(shorten(record.reason), source.innermost(frames)))
        again: dict[tuple[str, str], dict[str, list[str]]] = {}
        for attempt in dynamo_utils.get_compilation_metrics():
            self._read_attempt(attempt)
            if attempt.recompile_reason and attempt.fail_type is None:
                parts = again.setdefault((str(attempt.co_filename), _function(attempt)), {})
                parts.setdefault(str(attempt.co_name), []).append(_first_line(attempt.recompile_reason))
        for parts in again.values():
            most: list[str] = max(parts.values(), key=len)
            self.recompiles += most

    def _read_attempt(self, attempt: Any) -> None:
        """One function that Dynamo tried to compile."""
        reason = attempt.recompile_reason
        if attempt.fail_type is None:
            if not attempt.graph_op_count:
                self.empty_functions += 1
        elif reason and attempt.fail_user_frame_filename is None:
            # The limit: Dynamo stops before it looks at the function's lines, so only the reason names them.
            self.limits += 1
            function, self.limit_location = _place_in(reason)
            self.limit = _first_line(reason) + (f" in {function} ({self.limit_location})" if function else "")
        else:
            self._add(_skipped(attempt))

    def _add(self, one: Break) -> None:
        if one not in self.breaks:
            self.breaks.append(one)


def _skipped(attempt: Any) -> Break:
    """A function that Dynamo gave up altogether."""
    location = None
    if attempt.fail_user_frame_filename and source.is_users(attempt.fail_user_frame_filename):
        location = source.locate(attempt.fail_user_frame_filename, attempt.fail_user_frame_lineno)
    return Break(shorten(attempt.fail_reason or attempt.fail_type), location, _function(attempt))


def _function(attempt: Any) -> str:
    """The name of the function, also where only a part of it that resumes behind a graph break was compiled."""
    return re.sub(r"^torch_dynamo_resume_in_(\w+)_at_\d+$", r"\1", attempt.co_name or "")


def shorten(reason: str) -> str:
    """A Dynamo reason as one sentence: its title with the explanation, without hints and internals.

    Args:
        reason: what Dynamo says, many lines.
    """
    for pattern, plain in _PLAIN:
        if re.match(pattern, reason):
            return plain
    title = _first_line(reason)
    explanation = re.search(r"^\s*Explanation: (.*)$", reason, re.MULTILINE)
    text = f"{title}: {explanation.group(1)}" if explanation else title
    text = re.sub(r" at 0x[0-9a-f]+| \(has_kwargs \w+\)| \(reason: None\)", "", text)
    return text if len(text) <= 240 else text[:239] + "…"


def _first_line(reason: str) -> str:
    """`0/0: n == 'a'`, without the source line that Dynamo adds behind it."""
    line = reason.strip().split("\n", 1)[0]
    return re.sub(r"^\d+/\d+: ", "", line.split("  # ")[0].strip())


def _place_in(reason: str) -> tuple[str, Location | None]:
    """The innermost of the user's functions that a reason names, with its line."""
    found = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', reason)
    users = [match for match in found if source.is_users(match[0])]
    return (users[-1][2], source.locate(users[-1][0], int(users[-1][1]))) if users else ("", None)
