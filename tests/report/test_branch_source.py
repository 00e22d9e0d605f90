"""Branch coverage over source lines, for files that are there, that changed, and that are not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_torchexport.report.source import Sources

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = "".join(f"    line_{number} = {number}\n" for number in range(1, 41))


def decision(file: object, line: int, source: str = "", *, reached: bool = True) -> dict[str, Any]:
    outcome = {"outcome": "true", "reached_by": "example" if reached else "", "input": "", "tried": "80 steps"}
    place = {"file": str(file), "line": line, "source": source}
    return {"kind": "condition", "condition": "x", "location": place, "outcomes": [outcome], "excluded": False}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.py"
    path.write_text(SOURCE, encoding="utf-8")
    return path


def test_lines_around_what_was_not_reached(file: Path) -> None:
    found = Sources().coverage([decision(file, 20, "line_20 = 20", reached=False), decision(file, 2)])
    assert [[line.number for line in one.lines] for one in found.excerpts] == [[1, 2, 3], list(range(17, 24))]
    assert found.excerpts[1].lines[3].text == "line_20 = 20"
    assert [line.number for one in found.excerpts for line in one.lines if line.missed] == [20]
    assert [line.number for one in found.excerpts for line in one.lines if line.decisions] == [2, 20]


def test_neighbours_are_one_excerpt(file: Path) -> None:
    (excerpt,) = Sources().coverage([decision(file, 10), decision(file, 13), decision(file, 13)]).excerpts
    assert [line.number for line in excerpt.lines] == [9, 10, 11, 12, 13, 14]
    assert [len(line.decisions) for line in excerpt.lines] == [0, 1, 0, 0, 2, 0]


@pytest.mark.parametrize(
    "content",
    [None, "", "another = 1\n" * 40, SOURCE.replace("line_20", "line_x")],
    ids=["gone", "empty", "other", "edited"],
)
def test_a_file_that_is_not_what_it_was(file: Path, content: str | None) -> None:
    if content is None:
        file.unlink()
    else:
        file.write_text(content, encoding="utf-8")
    (excerpt,) = Sources().coverage([decision(file, 20, "line_20 = 20")]).excerpts
    assert not excerpt.known
    assert [(line.number, line.text) for line in excerpt.lines] == [(20, "line_20 = 20")]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("# coding: latin-1\nx = 'é'\n".encode("latin-1"), "x = 'é'"),
        ("\ufeff# first\nx = 'é'\n".encode(), "x = 'é'"),
        (b"# no encoding\nx = '\xff'\n", "x = '\ufffd'"),
        (b"# coding: nonsense\nx = 1\n", "x = 1"),
        (b"# one\r\nx = 1\r\n", "x = 1"),
        (b"# a form feed \x0c ends no line\nx = 1\n", "x = 1"),
    ],
)
def test_encodings(tmp_path: Path, content: bytes, text: str) -> None:
    file = tmp_path / "model.py"
    file.write_bytes(content)
    (excerpt,) = Sources().coverage([decision(file, 2)]).excerpts
    assert [line.text for line in excerpt.lines if line.decisions] == [text]


@pytest.mark.parametrize("name", ["", "\0", "x" * 5000, "<string>", "/", "/dev/zero"])
def test_names_that_are_no_files(name: str) -> None:
    (excerpt,) = Sources().coverage([decision(name, 1, "if x:")]).excerpts
    assert (excerpt.known, excerpt.lines[0].text) == (False, "if x:")


def test_of_too_many_decisions_those_that_miss_something_are_shown(file: Path) -> None:
    found = Sources().coverage([decision(file, 1 + number % 30, reached=number != 150) for number in range(200)])
    assert found.left_out == 140
    assert any(line.missed for one in found.excerpts for line in one.lines)
