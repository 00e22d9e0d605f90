"""The reference pages say what the code says. `UPDATE_DOCS=1 pytest tests/docs` rewrites the generated parts."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import pytest_torchexport
from pytest_torchexport.backends.base import Structure
from pytest_torchexport.backends.registry import DEFAULT_BACKENDS, backend_class, backend_names
from pytest_torchexport.outcome import SCHEMA, Cause, Outcome, Stage, Verdict
from pytest_torchexport.plugin import hookspecs, marker, options
from pytest_torchexport.report import json as json_report
from pytest_torchexport.report import junit

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _options() -> str:
    rows = []
    for option in options.OPTIONS:
        more = "yes" if option.repeatable else ""
        rows.append([f"`{option.flag}={option.metavar}`", f"`{option.key}`", more, option.help])
    return _table(["option", "ini", "repeatable", "meaning"], rows)


def _kind(schema: dict[str, Any]) -> str:
    """The type of a value, in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        words = {
            "text_or_null": "string or null",
            "count": "integer from 0",
            "number": "number",
            "cause": "cause or null",
        }
        return words.get(name, f"[{name}](#{name})")
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return "one of " + ", ".join(f"`{one}`" if one else "empty" for one in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    kind = schema["type"] if isinstance(schema["type"], str) else " or ".join(schema["type"])
    if kind == "array":
        return f"list of {_kind(schema['items'])}"
    inner = schema.get("properties")
    return f"object with {', '.join(f'`{key}`' for key in inner)}" if inner else kind


_SECTIONS = [
    *("outcome", "leaf", "location", "divergence", "branches", "decision", "branch_outcome"),
    *("performance", "paired", "times", "cold_start", "peak_memory", "judged"),
    "trend",
]


def _schema() -> str:
    schema = json_report.schema()
    described = [name for name, one in schema["$defs"].items() if "properties" in one]
    described.sort(key=_SECTIONS.index)
    parts = [("The document", schema)] + [(name, schema["$defs"][name]) for name in described]
    texts = []
    for title, part in parts:
        rows = [[f"`{key}`", _kind(one), one.get("description", "")] for key, one in part["properties"].items()]
        texts.append(f"## {title}\n\n" + _table(["key", "type", "meaning"], rows))
    return "\n\n".join(texts)


def _junit() -> str:
    record = Outcome(Verdict.EQUIVALENT, Stage.COMPARE, "trace", "cpu", "", cause=Cause.NUMERIC).to_dict()
    record |= {"worst": {"max_abs": 0.0, "max_rel": 0.0}, "branches": {"known": 2, "reached": 1}}
    timed = {"ratio": 1.0, "exported": {"median": 1.0}}
    record["performance"] = {"paired": [timed], "cold_starts": [{"calls": [1.0]}]}
    return "\n".join(f"- `{name}`" for name, _ in junit.properties(record))


GENERATED: dict[str, tuple[str, Callable[[], str]]] = {
    "options": ("command-line.md", _options),
    "schema": ("report.md", _schema),
    "junit": ("report.md", _junit),
}


@pytest.mark.parametrize("name", GENERATED)
def test_generated_part_is_up_to_date(name: str) -> None:
    page, make = GENERATED[name]
    content = (REFERENCE / page).read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    assert len(pattern.findall(content)) == 1
    wanted = pattern.sub(lambda found: f"{found[1]}\n{make()}\n\n{found[2]}", content)
    if os.environ.get("UPDATE_DOCS"):
        (REFERENCE / page).write_text(wanted, encoding="utf-8")
        return
    assert content == wanted, "UPDATE_DOCS=1 pytest tests/docs rewrites it"


def _rows(page: str, checked: str) -> list[list[str]]:
    """The cells of the table behind a `checked` comment, without its head."""
    content = (REFERENCE / page).read_text(encoding="utf-8")
    behind = content.partition(f"<!-- checked: {checked} -->\n\n")[2]
    lines = behind.partition("\n\n")[0].splitlines()[2:]
    assert lines, f"{page} has no table {checked}"
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize("words", [Verdict, Stage, Cause])
def test_every_word_is_explained(words: type[Verdict | Stage | Cause]) -> None:
    assert [row[0] for row in _rows("verdicts.md", words.__name__)] == [f"`{word.value}`" for word in words]


def test_marker_keywords() -> None:
    assert tuple(row[0].strip("`") for row in _rows("marker.md", "marker")) == marker.KEYWORDS
    signature = re.search(r"export_equivalent\(\*, (.*?)\)", (REFERENCE / "marker.md").read_text(encoding="utf-8"))
    assert signature is not None
    assert tuple(signature[1].split(", ")) == marker.KEYWORDS


def test_marker_defaults() -> None:
    rows = {row[0].strip("`"): row[2] for row in _rows("marker.md", "marker")}
    assert rows["backends"] == ", ".join(f"`{name}`" for name in DEFAULT_BACKENDS)
    assert (rows["n_inputs"], rows["seed"]) == (str(options.DEFAULT_INPUTS), str(options.DEFAULT_SEED))
    assert rows["search_budget"] == str(options.DEFAULT_SEARCH_BUDGET)
    assert rows["branches"] == f'`"{options.DEFAULT_BRANCHES}"`'


def test_backends_table() -> None:
    words = {
        Structure.SAME: "everything",
        Structure.SCRIPT: "sequences and mappings",
        Structure.FLAT: "tensors in order",
    }
    wanted = []
    for name in backend_names(third_party=False):
        found = backend_class(name)
        wanted.append([f"`{name}`", f"`{found.__name__}`", words[found.structure], "yes" if found.gradients else "no"])
    assert [row[:4] for row in _rows("backends.md", "backends")] == wanted


def test_readme_lists_the_backends() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([a-z-]+)` \|.*\|(.*)\|$", readme, re.MULTILINE)
    assert [name for name, _ in listed] == list(dict.fromkeys([*DEFAULT_BACKENDS, *backend_names(third_party=False)]))
    assert tuple(name for name, default in listed if default.strip() == "yes") == DEFAULT_BACKENDS


def test_every_public_name_is_in_the_reference() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in sorted(REFERENCE.glob("*.md")))
    documented = set(re.findall(r"^::: pytest_torchexport\.(?:[\w.]*\.)?(\w+)", pages, re.MULTILINE))
    for members in re.findall(r"members: \[(.*?)\]", pages):
        documented |= set(members.split(", "))
    words = {"Verdict", "Stage", "Cause", "__version__"}
    assert set(pytest_torchexport.__all__) - words <= documented


def test_every_hook_is_rendered() -> None:
    assert "::: pytest_torchexport.plugin.hookspecs" in (REFERENCE / "hooks.md").read_text(encoding="utf-8")
    hooks = [name for name in vars(hookspecs) if name.startswith("pytest_torchexport_")]
    assert all(getattr(hookspecs, name).__doc__ for name in hooks)


def test_schema_number() -> None:
    assert f"Schema number: {SCHEMA}." in (REFERENCE / "report.md").read_text(encoding="utf-8")


def test_compatibility_says_what_the_package_requires() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    page = (REFERENCE / "compatibility.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for package, name in (("pytest", "pytest"), ("torch", "PyTorch")):
        minimum = re.search(rf'"{package}>=([\d.]+)"', project)
        assert minimum is not None
        assert f"| {name} | {minimum[1]} or newer |" in page
        assert f"{name} {minimum[1]}+" in readme
