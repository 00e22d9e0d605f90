"""Every block of code in the README and in docs/ is run, and every output that is shown is what comes out."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_torchexport.backends import registry
from pytest_torchexport.plugin import options

sys.path.insert(0, str(Path(__file__).parent))
from blocks import RESULTS, Block, blocks, missing, plain

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = [page for page in PAGES if any(block.language in ("python", "console") for block in blocks(page))]


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

    def follow(self, block: Block) -> None:
        if "fresh" in block.settings:
            for file in self.folder.glob("*.*"):
                file.unlink()
        if block.file is not None:
            (self.folder / block.file).write_text(block.text, encoding="utf-8")
            if block.file.startswith("test_"):
                found, output = self.pytest(block.file, *block.args)
                assert found == (block.results or {"passed": found.get("passed", 1)}), output
        elif block.language == "python":
            self._script(block)
        elif block.language == "console" and block.text.startswith("$ pytest"):
            self._console(block)

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

    def _script(self, block: Block) -> None:
        # A file and a module of its own: TorchScript reads the source of what it compiles.
        name = f"line_{block.line}"
        path = self.folder / f"{name}.py"
        path.write_text(block.text, encoding="utf-8")
        module = sys.modules[name] = types.ModuleType(name)
        module.__dict__.update(self.names | {"__file__": str(path), "__name__": name})
        exec(compile(block.text, str(path), "exec"), module.__dict__)
        self.names |= {key: value for key, value in vars(module).items() if not key.startswith("__")}

    def _console(self, block: Block) -> None:
        command, *shown = block.text.splitlines()
        _, *args = shlex.split(command.removeprefix("$ "))
        printed = [plain(line, self.folder) for line in self.pytest(*args)[1].splitlines()]
        lost = missing([plain(line, self.folder) for line in shown], printed)
        assert lost is None, f"not in the output: {lost!r}\n" + "\n".join(printed)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    one = Reader(tmp_path)
    yield one
    one.forget()


@pytest.mark.parametrize("page", WITH_CODE, ids=_name)
def test_blocks_run(page: Path, reader: Reader) -> None:
    for block in blocks(page):
        try:
            reader.follow(block)
        except BaseException as error:
            error.add_note(f"{_name(page)}:{block.line}")
            raise


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_options_exist(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    flags = {option.flag for option in options.OPTIONS}
    keys = {option.key for option in options.OPTIONS}
    assert set(re.findall(r"--export-[a-z]+", content)) <= flags
    assert set(re.findall(r"\bexport_[a-z]+(?=\s*=)", content)) <= keys


def test_the_reader_sees_a_wrong_page(reader: Reader) -> None:
    """The test of the tests: a wrong number of results, a wrong output and a script that raises are all found."""
    (reader.folder / "test_plain.py").write_text("def test_one(): pass\n", encoding="utf-8")
    text = "def test_one(): pass\ndef test_two(): assert False\n"
    with pytest.raises(AssertionError):
        reader.follow(Block("python", text, 1, {"passed": "2"}))
    with pytest.raises(AssertionError):
        reader.follow(Block("python", text, 1))
    with pytest.raises(AssertionError, match="3 passed"):
        reader.follow(Block("console", "$ pytest test_plain.py\n...\n=== 3 passed in 0.01s ===\n", 1))
    reader.follow(Block("console", "$ pytest test_plain.py\n...\n=== 1 passed in 0.01s ===\n", 1))
    with pytest.raises(NameError):
        reader.follow(Block("python", "nothing_of_this_name\n", 1))
