"""Every block of code in the README and in docs/ is run, and every output that is shown is what comes out.

A comment before a block says how it is run:

    <!-- doc: file=test_gate.py passed=3 failed=1 args="--export-backends trace" -->

`file` writes the block to that name in the page's folder; a file of tests is run, and the numbers are the expected
results (without numbers: all pass). `args` are further arguments of pytest. `fresh` empties the folder first.
A Python block without a file is run as a script, with the names of the scripts before it on the same page.
With `run`, a file is such a script. A `text` block with `output` shows what the script before it printed.
A `console` block that begins with `$ pytest` is run, and what it shows is compared; a line `...` stands for any lines.
Numbers with a fraction are not compared, in the output of a script no numbers at all, nor where its lines end.
`UPDATE_DOCS=1 pytest tests/docs` writes what this machine prints into the pages.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import shlex
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from pytest_torchexport.backends import registry
from pytest_torchexport.plugin import options

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK = re.compile(
    r"(?:^[ ]*<!-- doc: (?P<doc>[^>]*) -->\n+)?"
    r"^(?P<indent>[ ]*)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
RESULTS = ("passed", "failed", "errors", "skipped", "xfailed", "xpassed")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, text, line in the page, and the settings of the comment before it."""

    language: str
    text: str
    line: int
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def file(self) -> str | None:
        """Where the block is written to; a block with tests always has a file."""
        if "file" in self.settings:
            return self.settings["file"]
        return f"test_line_{self.line}.py" if self.language == "python" and "def test_" in self.text else None

    @property
    def results(self) -> dict[str, int]:
        """The expected numbers of tests by result; empty where all have to pass."""
        return {name: int(self.settings[name]) for name in RESULTS if name in self.settings}

    @property
    def args(self) -> list[str]:
        """Further arguments of pytest."""
        return shlex.split(self.settings.get("args", ""))


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    content = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(content):
        indent = match["indent"]
        text = "".join(line.removeprefix(indent) for line in match["text"].splitlines(keepends=True))
        line = content.count("\n", 0, match.start("language")) + 1
        found.append(Block(match["language"], text, line, _settings(match["doc"] or "")))
    return found


def _settings(text: str) -> dict[str, str]:
    settings = {}
    for part in shlex.split(text):
        key, _, value = part.partition("=")
        known = (*RESULTS, "file", "args", "fresh", "run", "output")
        assert key in known, f"unknown setting {key!r} in a doc comment; accepted: {', '.join(known)}"
        settings[key] = value
    return settings


_NUMBER = re.compile(r"(?<![\w.])-?\d+\.\d+(e[+-]?\d+)?|(?<![\w.])\d+e[+-]?\d+")


def plain(line: str) -> str:
    """A line of output without what differs between two machines: numbers with a fraction, the width."""
    text = re.sub(r" +", " ", _NUMBER.sub("#", line))
    return text.replace("= ", "=").replace(" =", "=").strip("= ")


def match(shown: list[str], printed: list[str]) -> list[str]:
    """What was printed in place of each shown line; `...` stands for any lines, empty lines do not count.

    Raises:
        AssertionError: a shown line was not printed where it should have been.
    """
    printed = [line for line in printed if plain(line)]
    found, at, anywhere = [], 0, False
    for line in shown:
        if not plain(line) or line == "...":
            found.append(line)
            anywhere = anywhere or line == "..."
            continue
        last = len(printed) if anywhere else at + 1
        here = next((n for n in range(at, last) if n < len(printed) and plain(printed[n]) == plain(line)), None)
        assert here is not None, "\n".join([f"not in the output: {line!r}", *printed])
        found.append(printed[here].rstrip())
        at, anywhere = here + 1, False
    assert anywhere or at == len(printed), "\n".join(["the output goes on:", *printed[at:]])
    return found


def told(text: str) -> str:
    """An output without what differs between two machines: numbers, and where its lines end because of them."""
    return " ".join(re.sub(r"-?\d[\d.,]*(?:e[+-]?\d+)?x?", "#", text).split())


def with_messages(shown: list[str], printed: list[str]) -> list[str]:
    """The shown lines with the messages of failures as they are printed now, where as many are shown."""

    def parts(lines: list[str]) -> list[tuple[bool, list[str]]]:
        return [(is_error, list(group)) for is_error, group in itertools.groupby(lines, lambda x: x.startswith("E "))]

    now = [group for is_error, group in parts(printed) if is_error]
    places = [number for number, line in enumerate(shown) if line.startswith("E ")]
    if places and len(now) == 1:  # it may be shown with gaps
        return [*shown[: places[0]], *now[0], *shown[places[-1] + 1 :]]
    if sum(is_error for is_error, _ in parts(shown)) != len(now):
        return shown
    taken = iter(now)
    return [line for is_error, group in parts(shown) for line in (next(taken) if is_error else group)]


WITH_CODE = [page for page in PAGES if any(block.language in ("python", "console") for block in blocks(page))]
HEAVY = {"README.md", "docs/how-to/write-a-backend.md", "docs/how-to/failure-gallery.md"}  # many exports


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


class Results:
    """Counts what the tests of an inner run came to."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        stats = terminalreporter.stats
        names = {"errors": "error"} | {name: name for name in RESULTS if name != "errors"}
        self.found = {name: len(stats[key]) for name, key in names.items() if stats.get(key)}


class Reader:
    """Someone who does what a page says, in a folder of its own.

    Not through pytester: it forgets the modules that a run imported, and torch does not bear a second import of some.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, object] = {}
        self.printed = ""

    def follow(self, block: Block) -> str:
        """Do what the block says; return its text, with the output of this run."""
        if "fresh" in block.settings:
            for file in self.folder.glob("*.*"):
                file.unlink()
        if block.file is not None:
            (self.folder / block.file).write_text(block.text, encoding="utf-8")
            if "run" in block.settings:
                self._script(block, block.file.removesuffix(".py"))
            elif block.file.startswith("test_"):
                found, output = self.pytest(block.file, *block.args)
                assert found == (block.results or {"passed": found.get("passed", 1)}), output
        elif block.language == "python":
            self._script(block, f"line_{block.line}")
        elif "output" in block.settings:
            return self._output(block)
        elif block.language == "console" and block.text.startswith("$ pytest"):
            return self._console(block)
        return block.text

    def pytest(self, *args: str) -> tuple[dict[str, int], str]:
        """Run pytest in the folder: the number of tests by result, and what it printed."""
        self.forget()
        results, out = Results(), io.StringIO()
        with contextlib.redirect_stdout(out):
            pytest.main(["-p", "no:cacheprovider", "--show-capture=no", *args], plugins=[results])
        return results.found, out.getvalue()

    def forget(self) -> None:
        """Forget the modules of this folder, so that another page can have one of the same name."""
        for file in self.folder.glob("*.py"):
            sys.modules.pop(file.stem, None)

    def _script(self, block: Block, name: str) -> None:
        # A file and a module of its own: TorchScript reads the source of what it compiles.
        path = self.folder / f"{name}.py"
        path.write_text(block.text, encoding="utf-8")
        module = sys.modules[name] = types.ModuleType(name)
        module.__dict__.update(self.names | {"__file__": str(path), "__name__": name})
        torch.manual_seed(0)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(block.text, str(path), "exec"), module.__dict__)
        self.printed = printed.getvalue().replace(str(self.folder), "~/project")
        self.names |= {key: value for key, value in vars(module).items() if not key.startswith("__")}

    def _output(self, block: Block) -> str:
        """Compare what is shown with what the script before printed; with UPDATE_DOCS, take that instead."""
        printed = "".join(f"{line.rstrip()}\n" for line in self.printed.splitlines())
        assert os.environ.get("UPDATE_DOCS") or told(block.text) == told(printed), printed
        return printed

    def _console(self, block: Block) -> str:
        """Compare what is shown with what is printed; return the block as it is printed here."""
        command, *shown = block.text.splitlines()
        output = self.pytest(*shlex.split(command.removeprefix("$ pytest")))[1]
        printed = output.replace(str(self.folder), "~/project").splitlines()
        if os.environ.get("UPDATE_DOCS"):
            shown = with_messages(shown, printed)
        found = match(shown, printed)
        return "\n".join([command, *found, ""])


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "84")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    one = Reader(tmp_path)
    yield one
    one.forget()


@pytest.mark.filterwarnings("default")  # as in a reader's own interpreter
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=_name(page), marks=[pytest.mark.slow] * (_name(page) in HEAVY)) for page in WITH_CODE],
)
def test_blocks_run(page: Path, reader: Reader) -> None:
    lines = page.read_text(encoding="utf-8").splitlines(keepends=True)
    moved = 0
    for block in blocks(page):
        try:
            now = reader.follow(block).splitlines(keepends=True)
        except BaseException as error:
            error.add_note(f"{_name(page)}:{block.line}")
            raise
        shown = block.text.splitlines(keepends=True)
        start = block.line + moved
        if lines[start : start + len(shown)] == shown:  # what is indented is not written
            lines[start : start + len(shown)] = now
            moved += len(now) - len(shown)
    if os.environ.get("UPDATE_DOCS"):
        page.write_text("".join(lines), encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_options_exist(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    flags = {option.flag for option in options.OPTIONS}
    keys = {options.TOLERANCE, options.BUDGET, *(option.key for option in options.OPTIONS)}
    assert set(re.findall(r"--export-[a-z-]+", content)) <= flags
    assert set(re.findall(r"\bexport_[a-z_]+(?=\s*=)", content)) <= keys


def test_links_of_the_readme() -> None:
    """Those of docs/ are checked when it is built."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_reader_sees_a_wrong_page(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of the tests: a wrong number of results, a wrong output and a script that raises are all found."""
    monkeypatch.delenv("UPDATE_DOCS", raising=False)
    (reader.folder / "test_plain.py").write_text("def test_one(): pass\n", encoding="utf-8")
    text = "def test_one(): pass\ndef test_two(): assert False\n"
    with pytest.raises(AssertionError):
        reader.follow(Block("python", text, 1, {"passed": "2"}))
    with pytest.raises(AssertionError):
        reader.follow(Block("python", text, 1))
    with pytest.raises(AssertionError, match="3 passed"):
        reader.follow(Block("console", "$ pytest test_plain.py\n...\n=== 3 passed in 0.01s ===\n", 1))
    reader.follow(Block("console", "$ pytest test_plain.py\n...\n=== 1 passed in 0.01s ===\n", 1))
    reader.follow(Block("python", "print('off by 0.5 here')\n", 1))
    reader.follow(Block("text", "off by 0.25\nhere\n", 1, {"output": ""}))
    with pytest.raises(AssertionError):
        reader.follow(Block("text", "off by 0.5 there\n", 1, {"output": ""}))
    with pytest.raises(NameError):
        reader.follow(Block("python", "nothing_of_this_name\n", 1))
