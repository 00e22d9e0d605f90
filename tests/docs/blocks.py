"""The fenced blocks of a Markdown page, and what a comment before a block says about running it.

    <!-- doc: file=test_gate.py passed=3 failed=1 args="--export-backends trace" -->

`file` writes the block to that name in the page's folder; a file of tests is run, and the numbers are the expected
results (without numbers: all pass). `args` are further arguments of pytest. `fresh` empties the folder first.
A Python block without a file is run as a script, with the names of the scripts before it on the same page.
A `console` block that begins with `$ pytest` is run, and what it shows is compared; a line `...` stands for any lines.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

_BLOCK = re.compile(
    r"(?:^[ ]*<!-- doc: (?P<doc>[^>]*) -->\n+)?^(?P<indent>[ ]*)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
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
        known = (*RESULTS, "file", "args", "fresh")
        assert key in known, f"unknown setting {key!r} in a doc comment; accepted: {', '.join(known)}"
        settings[key] = value
    return settings


_NUMBER = re.compile(r"(?<![\w.])-?\d+\.\d+(e[+-]?\d+)?|(?<![\w.])\d+e[+-]?\d+")


def plain(line: str, folder: Path) -> str:
    """A line of output without what differs between two runs or two machines: numbers with a fraction, the folder."""
    line = line.replace(str(folder), "~/project")
    return re.sub(r" +", " ", _NUMBER.sub("#", line)).replace("= ", "=").replace(" =", "=").strip("= ")


def missing(shown: list[str], printed: list[str]) -> str | None:
    """The first shown line that was not printed where it should have been; None if all were. `...` skips lines."""
    at, anywhere = 0, False
    for line in shown:
        if line.strip() == "...":
            anywhere = True
            continue
        found = next((n for n in range(at, len(printed)) if printed[n] == line), None) if anywhere else at
        if found is None or found >= len(printed) or printed[found] != line:
            return line
        at, anywhere = found + 1, False
    return None
