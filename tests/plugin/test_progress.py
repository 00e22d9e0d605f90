"""The text of a long check on a terminal: when it is there, what it says, and that nothing is left of it."""

from __future__ import annotations

import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from fcntl import ioctl
from typing import TYPE_CHECKING

import pytest

from pytest_torchexport.outcome import Stage
from pytest_torchexport.plugin.progress import DELAY_S, Progress
from tests.plugin.screen import Emulator

if TYPE_CHECKING:
    from pathlib import Path

    from tests.plugin.conftest import Project


class Fake:
    """A screen and a clock."""

    def __init__(self, columns: int = 80, before: str = "test_x.py ..") -> None:
        self.emulator = Emulator(columns)
        self.emulator.feed(before)
        self.before = before
        self.width = columns
        self.now = 100.0
        self.ours = True
        self.error: OSError | None = None
        self.written = 0
        self.progress = Progress(self, lambda: self.now)

    def write(self, text: str) -> None:
        if self.error is not None:
            raise self.error
        self.written += 1
        self.emulator.feed(text)

    def columns(self) -> int:
        return self.width

    def is_ours(self) -> bool:
        return self.ours

    def begin(self, name: str = "onnx-cpu", *, searches: bool = True) -> None:
        self.progress.begin(name, len(self.before), searches=searches)

    def at(self, seconds: float) -> float | None:
        """Update at this time of the check."""
        self.now = 100.0 + seconds
        return self.progress.update()

    @property
    def line(self) -> str:
        """What stands behind what was there before."""
        (line,) = self.emulator.lines
        assert line.startswith(self.before.rstrip())
        return line[len(self.before) :].strip()


def test_seconds_of_the_stage() -> None:
    fake = Fake()
    fake.begin()
    fake.progress.enter(Stage.REFERENCE)
    fake.at(3)
    assert fake.line == "[onnx-cpu: eager and branch search 3 s]"
    fake.progress.enter(Stage.EXPORT)
    assert fake.at(3) == pytest.approx(0.5)
    assert fake.line == "[onnx-cpu: export 0 s]", "the shorter text replaces the longer one"
    fake.at(15.2)
    assert fake.line == "[onnx-cpu: export 12 s]"
    fake.progress.end()
    assert fake.emulator.lines == [fake.before]


def test_without_a_search_there_is_none() -> None:
    fake = Fake()
    fake.begin(searches=False)
    fake.progress.enter(Stage.REFERENCE)
    fake.at(2)
    assert fake.line == "[onnx-cpu: eager 2 s]"


def test_a_short_check_shows_nothing() -> None:
    fake = Fake()
    fake.begin()
    fake.progress.enter(Stage.EXPORT)
    assert fake.at(0.4) == pytest.approx(DELAY_S - 0.4), "the next look is when the time is over"
    fake.progress.end()
    assert fake.written == 0


def test_inputs_take_turns_and_their_seconds_go_on() -> None:
    fake = Fake()
    fake.begin()
    fake.progress.enter(Stage.RUN)
    for second in (1, 2, 3):
        fake.at(second)
        fake.progress.enter(Stage.COMPARE)
        fake.progress.enter(Stage.RUN)
    fake.at(4)
    assert fake.line == "[onnx-cpu: run and comparison 4 s]"


def test_nothing_wakes_up_during_the_timing() -> None:
    fake = Fake()
    fake.begin()
    fake.progress.enter(Stage.LATENCY)
    assert fake.at(2) is None
    assert fake.line == "[onnx-cpu: timing]"


@pytest.mark.parametrize(
    ("columns", "line"),
    [(40, "[onnx-cpu: export 2 s]"), (35, "[export 2 s]"), (33, "[export 2 s]"), (32, ""), (0, "")],
)
def test_little_room(columns: int, line: str) -> None:
    fake = Fake(80)
    fake.width = columns
    fake.begin()
    fake.progress.enter(Stage.EXPORT)
    fake.at(2)
    assert fake.line == line


def test_a_long_text_never_wraps() -> None:
    fake = Fake(34)
    fake.begin("onnx:optimize=False-cuda:1-float16")
    fake.progress.enter(Stage.REFERENCE)
    fake.at(2)
    assert fake.line == "[eager and branch se"
    assert len(fake.emulator.lines) == 1


def test_nothing_is_shown_while_others_write() -> None:
    fake = Fake()
    fake.ours = False
    fake.begin()
    fake.progress.enter(Stage.EXPORT)
    fake.at(2)
    fake.progress.end()
    assert fake.written == 0


def test_a_debugger_has_the_line_for_itself() -> None:
    fake = Fake()
    with fake.progress.during("onnx-cpu", len(fake.before), searches=True):
        fake.progress.enter(Stage.EXPORT)
        fake.at(2)
        assert fake.line
        fake.progress.pytest_enter_pdb()
        assert not fake.line
        written = fake.written
        fake.progress.enter(Stage.RUN)
    assert fake.written == written


def test_a_terminal_that_is_gone_breaks_nothing() -> None:
    fake = Fake()
    fake.error = OSError(5, "Input/output error")
    with fake.progress.during("onnx-cpu", 0, searches=True):
        fake.progress.enter(Stage.EXPORT)
        fake.at(2)
    fake.error = None
    with fake.progress.during("trace-cpu", 0, searches=True):
        fake.at(5)
    assert fake.written == 0, "and it is left alone from then on"


def test_no_thread_is_left() -> None:
    before = set(threading.enumerate())
    fake = Fake()
    during = fake.progress.during("onnx-cpu", 0, searches=True)
    during.__enter__()
    assert set(threading.enumerate()) - before
    during.__exit__(None, None, None)
    assert set(threading.enumerate()) == before


def test_without_a_thread_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: threading.Thread) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    monkeypatch.setattr(threading.Thread, "start", none_left)
    fake = Fake()
    with fake.progress.during("onnx-cpu", 0, searches=True):
        fake.progress.enter(Stage.EXPORT)
    assert fake.written == 0


# --- a real terminal ---

BACKENDS = """
import pytest
from pytest_torchexport.plugin import progress

progress.DELAY_S, progress.TICK_S = {delay}, 0.02

@pytest.fixture(autouse=True)
def long_export(monkeypatch):
    import importlib, time
    from pytest_torchexport import Outcome, Stage, Verdict
    engine = importlib.import_module("pytest_torchexport.check")
    def run(subject, policy, surroundings):
        surroundings.on_stage(Stage.REFERENCE)
        surroundings.on_stage(Stage.EXPORT)
        print("printed by the exporter")
        time.sleep(0.3)
        verdict = Verdict.EQUIVALENT if policy.backend == "trace" else Verdict.REFUSED
        return Outcome(verdict, Stage.COMPARE, policy.backend, policy.device, "as it is", compared=1)
    monkeypatch.setattr(engine, "run", run)
"""
TESTS = """
@pytest.mark.export_equivalent(backends=["trace", "script"])
def test_linear(export_check):
    export_check(linear(), X)
"""
NEVER = 1000.0
_DECIDING = ("CI", "BUILD_NUMBER", "COLUMNS", "PY_COLORS", "NO_COLOR", "FORCE_COLOR")


def _on_a_terminal(project: Project, *args: str, **environ: str) -> tuple[str, int]:
    """What a run of pytest writes to a terminal of 90 columns, and how it ends."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 90, 0, 0))
    clean = {name: value for name, value in os.environ.items() if name not in _DECIDING}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *args]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=project.path, env=clean | {"TERM": "xterm"} | environ
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            read = os.read(ours, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not read:
            break
        written += read
    os.close(ours)
    return written.decode().replace("\r\n", "\n"), process.wait()


def _screen_after(project: Project, *args: str, delay: float) -> Emulator:
    """What is on the screen after a run in which each export takes a while."""
    project.conftest(BACKENDS.format(delay=delay))
    project.test(TESTS)
    written, status = _on_a_terminal(project, *args)
    assert status == 1, written
    emulator = Emulator(90)
    emulator.feed(written)
    return emulator


def _without_chance(lines: list[str]) -> list[str]:
    """Without seconds and addresses."""
    return [re.sub(r"=+|[\d.]+s|0x\w+", "", line) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("args", [(), ("-v",)], ids=["default", "verbose"])
def test_on_a_terminal(project: Project, args: tuple[str, ...]) -> None:
    """It is shown behind what pytest has written, and the screen is in the end as it is without it."""
    shown = _screen_after(project, *args, delay=0.05)
    places = {re.sub(r"\d+ s\]$", "", moment) for moment in shown.moments}
    if args:
        assert places == {
            "test_models.py::test_linear[trace-cpu]  [trace-cpu: export ",
            "test_models.py::test_linear[script-cpu]  [script-cpu: export ",
        }
    else:
        assert places == {"test_models.py  [trace-cpu: export ", "test_models.py . [script-cpu: export "}
    plain = _screen_after(project, *args, delay=NEVER)
    assert not plain.moments
    assert _without_chance(shown.lines) == _without_chance(plain.lines)
    assert any("printed by the exporter" in line for line in shown.lines), "captured, shown with the failure"


ASK = """
import pathlib

def pytest_sessionfinish(session):
    found = session.config.pluginmanager.has_plugin("torchexport-progress")
    pathlib.Path("found.txt").write_text(str(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "environ", "wanted"),
    [
        ((), {}, True),
        (("-v",), {}, True),
        (("-q",), {}, False),
        (("-s",), {}, False),
        (("--capture=sys",), {}, False),
        (("--log-cli-level=INFO",), {}, False),
        (("--color=no",), {}, False),
        (("-n1",), {}, False),
        (("-k", "nothing"), {}, False),
        ((), {"CI": "true"}, False),
        ((), {"TERM": "dumb"}, False),
    ],
    ids=lambda value: str(value) if isinstance(value, bool) else " ".join(value) or "-",
)
def test_where_it_would_disturb_there_is_none(
    project: Project, args: tuple[str, ...], environ: dict[str, str], *, wanted: bool
) -> None:
    project.conftest(ASK)
    project.pytester.makepyfile(
        test_light="""
        import pytest
        @pytest.mark.export_equivalent(backends="trace")
        def test_light(export_check): ...
        """
    )
    # No test runs, because torch would take seconds to load; with workers, --collect-only uses none.
    written, _ = _on_a_terminal(project, *args, *(() if "-n1" in args else ["--collect-only"]), **environ)
    assert (project.path / "found.txt").read_text() == str(wanted), written


@pytest.mark.slow
def test_a_log_has_nothing_of_it(project: Project, tmp_path: Path) -> None:
    project.conftest(BACKENDS.format(delay=0.05))
    project.test(TESTS)
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=yes"]
        assert subprocess.run(command, stdout=log, stderr=log, cwd=project.path, check=False).returncode == 1
    text = (tmp_path / "log").read_text(encoding="utf-8")
    assert "as it is" in text
    assert "\x1b7" not in text
    assert "\x1b[K" not in text
