"""The report as one HTML file that needs nothing else: styles and pictures are in it, and there are no scripts."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_torchexport.report import drawings, text
from pytest_torchexport.report.files import whole
from pytest_torchexport.report.page import make_page

if TYPE_CHECKING:
    import jinja2

_MESSAGE = 20_000
"""Characters of one message that are shown."""


def write(path: Path, document: dict[str, Any]) -> None:
    """Write the page, whole or not at all. Missing folders are made.

    Args:
        path: the file.
        document: what `json.document` made.

    Raises:
        OSError: the file cannot be written.
        ImportError: jinja2 is not installed; `formats.missing` says so before the tests run.
    """
    template = environment().get_template("report.html")
    with whole(path) as file:
        file.writelines(template.generate(page=make_page(document)))


@functools.cache
def environment() -> jinja2.Environment:
    """Where the template is rendered: every value is cleaned, then escaped."""
    import jinja2  # noqa: PLC0415 - an extra

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("pytest_torchexport.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean,
    )
    made.filters |= {
        "seconds": text.seconds,
        "size": text.size,
        "times": text.times,
        "digits": text.digits,
        "change": text.change,
        "typeset": lambda value: text.typeset(str(value)),
        "near": _near,
        "message": lambda value: text.cut(str(value), _MESSAGE),
        "percent": _percent,
    }
    made.globals |= {"drawings": drawings, "count": text.count, "error": drawings.error}
    return made


def _clean(value: Any) -> Any:
    # Only what comes from outside: what a macro wrote is a subclass of str, and is clean.
    if type(value) is str:
        return text.clean(value)
    return "" if value is None else value


def _percent(value: Any) -> str:
    found = text.number(value)
    return "?" if found is None else f"{found:.0%}"


def _near(file: str) -> str:
    """The path as it is from here, where it is below this folder."""
    here = str(Path.cwd())
    return file[len(here) + 1 :] if file.startswith(here + os.sep) else file
