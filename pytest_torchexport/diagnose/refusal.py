"""What an exporter raised, cut to what the user can act on: a short text, a way out where one is known, and the line.

Exporters explain themselves at length and to their own authors: pages of overloads, environment variables for their
debug logs, reports with steps for a bug. The mechanism here is general (find the root cause, drop what is not said to
the user, find the user's line); what is known of particular refusals stands in one table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_torchexport.errors import ExportRefused, NothingCompiled
from pytest_torchexport.subject import source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_torchexport.outcome import Location

_LIMIT = 400


@dataclass(frozen=True)
class _Known:
    """A refusal that is known: what its text matches, what it means, and the way out."""

    pattern: str
    plain: str = ""
    way_out: str = ""


_KNOWN = (
    _Known(
        r"Could not guard on data-dependent expression|Data-dependent branching|Dynamic control flow is not supported",
        "a Python branch depends on the values of a tensor",
        "Write it with torch.where or torch.cond, or use the script backend, which keeps Python branches.",
    ),
    _Known(
        r"Could not extract specialized|Unsupported Tensor\.item\(\)|data-dependent expression|data dependent op",
        "a Python number is taken out of a tensor whose values are not known at export",
        "Keep it a tensor, or bound it with torch._check.",
    ),
    _Known(
        r"specialized it to be a constant \((\d+)\)",
        "a dimension that dynamic_shapes declares as varying is fixed by the model's code",
        "Take the size from x.shape instead of writing it as a number, or leave the dimension out of dynamic_shapes.",
    ),
    _Known(
        r"Not all values of .* satisfy the generated guard",
        "the model's code distinguishes sizes inside the range that dynamic_shapes declares",
        "Narrow the range as suggested, or treat all sizes alike.",
    ),
    _Known(
        r"Must provide a tree_name when there might be a mismatch",
        "torch.export cannot bring dynamic_shapes and arguments that go into **kwargs together",
        "Name these arguments in the signature of forward.",
    ),
    _Known(
        r"No ONNX function found for|Exporting the operator .* to ONNX opset version .* is not supported",
        way_out=(
            "Compose it of supported operators, raise the opset, or supply the operator: "
            "Onnx(custom_translation_table=...), for onnx-torchscript torch.onnx.register_custom_op_symbolic."
        ),
    ),
    _Known(
        r"\(inferred\)|was not annotated with an explicit type",
        "TorchScript takes an argument without annotation for a Tensor, and it is used as something else",
        "Annotate its type in the signature.",
    ),
    _Known(
        r"Empty lists default to List\[Tensor\]",
        way_out="A list that is made empty needs an annotation: `found: list[int] = []`.",
    ),
    _Known(
        r"illegal target for annotation|Expected a single top-level function",
        "TorchScript cannot read the source of a lambda",
        "Write it as a function with def.",
    ),
    _Known(
        r"to unannotated dict key|Dict\[str, Tensor\] to List|aten::_set_item",
        "the keys or the values of a dict have several types, and TorchScript allows one",
        "Annotate the dict where it is made (`found: dict[str, int] = {}`), or use one dict for each type.",
    ),
    _Known(
        r"UnsupportedNodeError|NotSupportedError|is currently not supported in Torchscript|we failed to compile it",
        way_out="Rewrite the line, take it out of what is scripted, or mark the method with @torch.jit.ignore.",
    ),
    _Known(
        r"Encountering a (dict|list) at the output of the tracer",
        "the model returns a dict or list, which jit.trace takes only when it is told that its form never changes",
        "Use Trace(strict=False).",
    ),
    _Known(
        r"Only tensors, lists, tuples of tensors, or dictionary of tensors can be output from traced functions",
        way_out="Return nothing but tensors, or use the script backend.",
    ),
    _Known(
        r"cannot be traced\. Only Tensors",
        way_out="Pass tensors, or use the script backend, which takes numbers, strings and None.",
    ),
    _Known(
        r"Dictionary inputs to traced functions must have consistent type|Tracer cannot infer type of",
        "the dicts and lists that go in or come out hold values of several types, and jit.trace allows one",
        "Put tensors of one kind into a dict or list, or use the script backend.",
    ),
    _Known(
        r"\.numpy\(\) is not supported for tensor subclasses|call .*numpy.* on a (Fake|Functional)Tensor",
        "the model leaves torch for NumPy, which the exporter cannot follow",
        "Use torch's function of the same name.",
    ),
    _Known(
        r"Failed to trace builtin operator|Attempted to call function marked as skipped|Graph break",
        way_out="Take the call out of the compiled part, or do without fullgraph=True.",
    ),
)
"""First match wins, so the particular ones stand before the general ones."""

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
_GRAPH_NODE = re.compile(r"# (\S+\.py):(\d+):\d+")


def explain(error: BaseException) -> tuple[str, Location | None]:
    """What an exporter's exception says to the user.

    Args:
        error: what the exporter raised, with its traceback from the place where it was caught.

    Returns:
        A short text with a way out where one is known, and the user's line where the exception leads to one.
    """
    if isinstance(error, (ExportRefused, NothingCompiled)):
        return error.reason, error.location or find_line(error)
    root = _chain(error)[-1]
    known = _known(root)
    if known is None:
        return _shorten(root, _LIMIT), find_line(error)
    said = _shorten(root, _LIMIT // 2 if known.plain else _LIMIT)
    text = f"{known.plain} ({said.rstrip('.')})" if known.plain else said
    return f"{_sentence(text)} {known.way_out}", find_line(error)


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
    """The frames that the text of an exception names, the innermost last."""
    text = str(error)
    python = [(file, int(line)) for file, line in _PYTHON_FRAME.findall(text)]
    # TorchScript starts with the place of the error and goes on with where that was called from.
    script = [(file, int(line)) for file, line in _SCRIPT_FRAME.findall(text)]
    graph = [(file, int(line)) for file, line in _GRAPH_NODE.findall(text)]
    stack: Any = getattr(error, "real_stack", None) or ()
    return [*graph, *((frame.filename, frame.lineno) for frame in stack), *python, *reversed(script)]


def _known(error: BaseException) -> _Known | None:
    text = f"{type(error).__name__}: {error}"
    return next((known for known in _KNOWN if re.search(known.pattern, text)), None)


def _shorten(error: BaseException, limit: int) -> str:
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
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?", "…")) else text + "."
