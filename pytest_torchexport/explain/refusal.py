"""What an exporter raised, cut to what the user can act on: the reason, a way out where one is known, and the line.

Exporters explain themselves at length and to their own authors: pages of overloads, environment variables for their
debug logs, reports with steps for a bug. The mechanism here is general (find the root cause, drop what is not said to
the user, find the user's line); what is known of particular refusals stands in `known_refusals`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_torchexport.errors import ExportRefused, NothingCompiled
from pytest_torchexport.explain.exporter_line import at_node, line_of_model
from pytest_torchexport.explain.known_refusal import RETURN
from pytest_torchexport.explain.known_refusals import known
from pytest_torchexport.subject import source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_torchexport.outcome import Location

_LIMIT = 400
_QUOTE = 200
"""Characters of an exporter's own words, where plain ones say the same."""


@dataclass(frozen=True)
class Refusal:
    """What an exporter's exception says to the user.

    Attributes:
        reason: why, in a sentence or two.
        location: the user's line, where the exception leads to one.
        way_out: what helps; empty where nothing is known that does.
        said: the exporter's own words, where the reason has others; for a search.
    """

    reason: str
    location: Location | None = None
    way_out: str = ""
    said: str = ""

    @property
    def text(self) -> str:
        """All of it in one paragraph, but for the line."""
        quoted = f"The exporter says: {self.said}" if self.said else ""
        return " ".join(filter(None, [self.reason, self.way_out, quoted]))


_NOISE = re.compile(
    r"\s*(For (more|extended|C\+\+) |If you suspect|Set TORCHDYNAMO|The error above|Developer debug|Caused by:"
    r"|\(Refer to|frame #|Exception raised from|consider using data-dependent|Next steps)"
)
"""How a line starts that is not said to the user."""
_STACK = re.compile(
    r'^\s*(from user code:|User [Ss]tack|The following call raised|The original call is|File ")|<--- HERE',
    re.MULTILINE,
)
_BEHIND_STACK = re.compile(r"Traceback of TorchScript.*?^[\w.]*(?:Error|Exception): (.*)", re.MULTILINE | re.DOTALL)
"""TorchScript says what went wrong behind the stack."""
_OVERLOADS = re.compile(
    r"^The following variants are available:\n.*?(?=^The original call is|\Z)", re.MULTILINE | re.DOTALL
)
_ASIDES = re.compile(
    r" *For more information, run with \S+| \(unhinted: .*?\)(?=\.|$)|\s*\(Size-like symbols: [^)]*\)"
    r"| \(has_kwargs \w+\)| \(This function exists as an attribute on the Python module(?=, but)"
    r"|\. The error stack is reproduced here"
)
"""What is of no use inside a line."""
_ANSI = re.compile(r"\x1b\[[0-9;]*m")

_PYTHON_FRAME = re.compile(r'File "([^"]+)", line (\d+), in ')
_SCRIPT_FRAME = re.compile(r'File "([^"]+)", line (\d+)\s*$', re.MULTILINE)
_TRACED_FRAME = re.compile(r"(?:^|\s)(/?\S+\.py)\((\d+)\): \w")
_LAMBDA = re.compile(r"top-level function: (\S+\.py):(\d+)")
_GRAPH_NODE = re.compile(r"# (\S+\.py):(\d+):\d+")


def say(error: BaseException) -> str:
    """What an exported program raised, on one line: without the stacks that a runtime puts around it."""
    text = shorten(error, _LIMIT)
    kind = type(error).__name__
    return text if text.startswith(kind) else f"{kind}: {text}"


def explain(error: BaseException, *, backend: str = "", model: Any = None) -> Refusal:
    """What an exporter's exception says to the user.

    Args:
        error: what the exporter raised, with its traceback from the place where it was caught.
        backend: name of the backend: what helps on one may not exist on another.
        model: what was exported; its source is searched for the line where the exporter names none.
    """
    if isinstance(error, (ExportRefused, NothingCompiled)):
        return Refusal(error.reason, error.location or find_line(error) or _of_output(error, model))
    root = _chain(error)[-1]
    found = known(f"{type(root).__name__}: {_ANSI.sub('', str(root))}")
    if found is None:
        return Refusal(_sentence(shorten(root, _LIMIT)), find_line(error))
    one, match = found
    groups = [group for group in match.groups() if group is not None]
    said = shorten(root, _QUOTE if one.plain else _LIMIT)
    location = find_line(error) or (line_of_model(model, one.at.format(*groups)) if one.at else None)
    way_out = one.way_for(backend).format(*groups)
    if not one.plain:
        return Refusal(_sentence(said), location, way_out)
    return Refusal(one.plain.format(*groups) + ".", location, way_out, said.rstrip("."))


def _of_output(error: ExportRefused | NothingCompiled, model: Any) -> Location | None:
    """Where the model returns what a backend of this package refuses to return."""
    return line_of_model(model, RETURN) if error.reason.startswith("the model returns") else None


def find_line(error: BaseException) -> Location | None:
    """The user's line that an exception leads to.

    The traceback of the root cause comes first: an exporter that runs the model has the user's frames on it. One that
    reads the model's source or bytecode has them in its text only.
    """
    causes = _chain(error)[::-1]
    for cause in causes:
        found = source.of_exception(cause)
        if found is not None:
            return found
    for cause in causes:
        found = at_node(cause)
        if found is not None:
            return found
    for cause in causes:
        found = source.innermost(_frames_in_text(cause))
        if found is not None:
            return found
    return None


def _chain(error: BaseException) -> list[BaseException]:
    """The exception and the explicit causes behind it; the last is the root cause."""
    chain = [error]
    while chain[-1].__cause__ is not None and chain[-1].__cause__ not in chain:
        chain.append(chain[-1].__cause__)
    return chain


def _frames_in_text(error: BaseException) -> list[tuple[str, int | None]]:
    """The frames that the text of an exception and its notes name, the innermost last."""
    text = "\n".join([str(error), *getattr(error, "__notes__", ())])
    python = [(file, int(line)) for file, line in _PYTHON_FRAME.findall(text)]
    # TorchScript starts with the place of the error and goes on with where that was called from.
    script = [(file, int(line)) for file, line in _SCRIPT_FRAME.findall(text)]
    graph = [(file, int(line)) for file, line in _GRAPH_NODE.findall(text)]
    made = [(file, int(line)) for file, line in _LAMBDA.findall(text)]
    stack: Any = getattr(error, "real_stack", None) or ()
    traced = [(file, int(line)) for file, line in _TRACED_FRAME.findall(text)][::-1]
    return [
        *graph,
        *traced,
        *((frame.filename, frame.lineno) for frame in stack),
        *python,
        *reversed(script),
        *([] if script else made),
    ]


def shorten(error: BaseException, limit: int) -> str:
    """The exception's text without stacks, overloads and what it says to its own authors."""
    text = _OVERLOADS.sub(_expectations, _ANSI.sub("", str(error)).strip() + "\n")
    behind = _BEHIND_STACK.search(text)
    text = behind[1] if behind is not None else text
    stack = _STACK.search(text)
    if stack is not None and text[: stack.start()].strip():
        text = text[: stack.start()]
    short = re.sub(r":?\s+Explanation:\s+", ": ", " ".join(" ".join(_said(text)).split()))
    short = _ASIDES.sub("", short).rstrip(": ")
    if len(short) > limit:
        short = short[: limit - 1].rsplit(" ", 1)[0] + "…"
    if not short:
        return type(error).__name__
    own = type(error).__module__ == "builtins" and not isinstance(error, (RuntimeError, AssertionError))
    return f"{type(error).__name__}: {short}" if own else short


def _said(text: str) -> Iterator[str]:
    """The lines that are said to the user, up to where the hints for graph breaks begin."""
    for line in text.splitlines():
        if re.match(r"\s*Hint:|\s*The branch condition involves", line):
            return
        if line.strip() and not _NOISE.match(line):
            yield line.strip().removeprefix("- ")


def _expectations(overloads: re.Match[str]) -> str:
    """Of the operator's overloads that do not fit, the one complaint that most of them make."""
    complaints = re.findall(
        r"^\s*((?:Expected a value|Could not match|Unknown keyword).*)$", overloads[0], re.MULTILINE
    )
    inferred = re.search(r"^\s*(Inferred the value for argument .*)$", overloads[0], re.MULTILINE)
    if inferred is not None:
        return inferred[1] + "\n"
    return max(complaints, key=complaints.count, default="") + "\n"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?", "…")) else text + "."
