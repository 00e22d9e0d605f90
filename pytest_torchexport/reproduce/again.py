"""A failing input as source that runs the check on it again."""

from __future__ import annotations

import io
import textwrap
import tokenize
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_torchexport.inputs.paste import as_source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_torchexport.plan import Plan
    from pytest_torchexport.subject.call import Call

_LONGEST = 300
"""Characters: what is longer is not in the message."""


@dataclass(frozen=True)
class Again:
    """How to check an input again.

    Attributes:
        text: keyword arguments of `export_check` and `check`; where it is not `complete`, comments say what is missing.
        complete: it is all that is needed.
        kept: the file that holds the input's tensors; empty if there is none.
    """

    text: str
    complete: bool
    kept: str = ""

    @property
    def lines(self) -> list[str]:
        """What the message says of it."""
        if len(self.text) <= _LONGEST:
            if "\n" not in self.text:
                return [f"  again with: {self.text}"]
            return ["  again with:", *textwrap.indent(self.text, "      ").splitlines()]
        return [f"  the input's values: {self.kept}"] if self.kept else []


def again(calls: Sequence[Call], plan: Plan, kept: str = "") -> Again:
    """The input as `extra_inputs=[...]`, with `calls=` in front where it has another number of calls than the test.

    Args:
        calls: the input.
        plan: the test's.
        kept: the file in which the input's tensors are kept.
    """
    source = as_source(calls, plan.model, plan.example, kept)
    if len(calls) > 1 and not _all_equal(calls, plan):
        # An extra input is one call, which is repeated.
        return Again(f"the calls {source}, one after the other", complete=False, kept=kept)
    count = f"calls={len(calls)}, " if len(calls) not in (1, plan.calls) else ""
    return Again(f"{count}extra_inputs=[{_joined(source)}]", complete=not _has_comments(source), kept=kept)


def _all_equal(calls: Sequence[Call], plan: Plan) -> bool:
    return len({as_source([call], plan.model, plan.example) for call in calls}) == 1


def _joined(source: str) -> str:
    """The element of a list, on lines of its own if it has several."""
    return f"\n{textwrap.indent(source, '    ')},\n" if "\n" in source else source


def _has_comments(source: str) -> bool:
    return any(token.type == tokenize.COMMENT for token in tokenize.generate_tokens(io.StringIO(source).readline))
