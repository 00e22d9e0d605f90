"""The observer in company (other tracers, coverage.py, threads), and what it does when it cannot go on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from pytest_torchexport.branches import record
from pytest_torchexport.branches.observe import Observer

MONITORING: Any = getattr(sys, "monitoring", None)
HAS_MONITORING = MONITORING is not None
BY_TRACING = pytest.mark.skipif(HAS_MONITORING, reason="this Python is not observed by tracing")


def decide(x: int) -> str:
    for n in range(x):
        if n > 1:
            return "more"
    return "less"


def is_mine(name: str) -> bool:
    return name == __file__


def outcomes(observer: Observer) -> list[bool | int]:
    return [outcome for _, outcome in observer.events]


@pytest.fixture(params=["usual", "traced"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to observe, where there are two: without a free tool id it falls back to tracing."""
    if request.param == "traced":
        if not HAS_MONITORING:
            pytest.skip("tracing is the usual way")
        monkeypatch.setattr(MONITORING, "get_tool", lambda _: "taken")


@pytest.mark.usefixtures("way")
def test_observes_and_leaves_nothing_behind() -> None:
    before = sys.gettrace()
    observer = Observer(is_mine)
    for _ in range(3):
        with observer:
            decide(4)
        assert outcomes(observer) == [False, False, True, 3]
        assert sys.gettrace() is before
    decide(4)
    assert len(observer.events) == 4
    if HAS_MONITORING:
        MONITORING.use_tool_id(4, "somebody else")
        events = MONITORING.get_events(4) | MONITORING.get_local_events(4, decide.__code__)
        MONITORING.free_tool_id(4)
        assert events == 0


@pytest.mark.usefixtures("way")
def test_an_exception_of_the_users_passes_and_closes_the_loops() -> None:
    def fail() -> None:
        for n in range(3):
            if n:
                raise KeyError(n)

    observer = Observer(is_mine)
    with pytest.raises(KeyError), observer:
        fail()
    assert outcomes(observer) == [False, True, 2]
    assert observer.error is None


def test_is_not_entered_twice_but_two_can_be_open() -> None:
    with Observer(is_mine) as outer:
        decide(1)
        with pytest.raises(RuntimeError, match="in use"), outer:
            pass
        with Observer(is_mine) as inner:
            decide(1)
        decide(0)
    assert outcomes(inner) == [False, 1]
    assert outcomes(outer) == [False, 1, False, 1, 0]


@pytest.mark.usefixtures("way")
def test_keeps_no_more_than_the_limit() -> None:
    with Observer(is_mine, limit=3) as observer:
        decide(4)
        decide(4)
    assert outcomes(observer) == [False, False, True]
    assert observer.truncated
    with Observer(is_mine, limit=4) as observer:
        decide(4)
    assert not observer.truncated


def test_other_threads_are_not_observed() -> None:
    with Observer(is_mine) as observer:
        thread = threading.Thread(target=decide, args=(4,))
        thread.start()
        thread.join()
        decide(0)
    assert outcomes(observer) == [0]


@pytest.mark.usefixtures("way")
def test_an_error_of_its_own_does_not_reach_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        msg = "broken"
        raise ZeroDivisionError(msg)

    before = sys.gettrace()
    monkeypatch.setattr(record.Recorder, "apply", fail)
    with Observer(is_mine) as observer:
        assert decide(4) == "more"
    assert isinstance(observer.error, ZeroDivisionError)
    assert sys.gettrace() is before
    monkeypatch.undo()
    with observer as again:
        decide(4)
    assert (again.error, len(again.events)) == (None, 4)


@pytest.mark.usefixtures("way")
def test_an_error_of_the_predicate_does_not_reach_the_user() -> None:
    with Observer(lambda name: 1 // len(name.replace(__file__, "")) > 1) as observer:
        assert decide(4) == "more"
    assert isinstance(observer.error, ZeroDivisionError)


class Tracer:
    """As a debugger in Python: notes the lines of `decide`, and lets itself be put back."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def __call__(self, frame: Any, event: str, argument: object) -> Any:
        if frame.f_code is decide.__code__:
            self.seen.append((event, frame.f_lineno - decide.__code__.co_firstlineno))
            return self
        return None


@pytest.mark.parametrize("make", [lambda tracer: tracer, lambda tracer: tracer.__call__])
def test_a_tracer_in_python_goes_on(make: Any) -> None:
    before = sys.gettrace()
    alone, together = Tracer(), Tracer()
    sys.settrace(make(alone))
    try:
        decide(4)
    finally:
        sys.settrace(before)
    chosen = make(together)
    sys.settrace(chosen)
    try:
        with Observer(is_mine) as observer:
            decide(4)
        put_back = sys.gettrace()
    finally:
        sys.settrace(before)
    assert put_back is chosen
    assert together.seen == alone.seen
    assert ("line", 1) in together.seen
    assert outcomes(observer) == [False, False, True, 3]


@BY_TRACING
def test_another_tracer_that_takes_over_is_left_alone() -> None:
    before = sys.gettrace()
    tracer = Tracer()
    try:
        with Observer(is_mine) as observer:
            decide(0)
            sys.settrace(tracer)
            decide(0)
        left = sys.gettrace()
    finally:
        sys.settrace(before)
    assert left is tracer
    assert outcomes(observer) == [0]
    assert "another tracer" in str(observer.error)


@BY_TRACING
def test_a_tracer_comes_back_after_tracing_was_turned_off() -> None:
    before = sys.gettrace()
    tracer = Tracer()
    sys.settrace(tracer)
    try:
        with Observer(is_mine) as observer:
            sys.settrace(None)
        left = sys.gettrace()
    finally:
        sys.settrace(before)
    assert left is tracer
    assert "turned off" in str(observer.error)


@pytest.mark.skipif(not HAS_MONITORING, reason="needs sys.monitoring")
@pytest.mark.parametrize("names", [("LINE",), ("BRANCH", "JUMP"), ("PY_START", "PY_RETURN", "CALL")])
@pytest.mark.parametrize("everywhere", [True, False])
def test_another_tool_sees_what_it_would_see_alone(names: tuple[str, ...], everywhere: bool) -> None:
    seen: list[tuple[Any, ...]] = []
    told = {getattr(MONITORING.events, name): lambda *details: seen.append(details[1:2]) for name in names}

    def seen_in(run: Any) -> list[tuple[Any, ...]]:
        seen.clear()
        MONITORING.use_tool_id(3, "other")
        for event, callback in told.items():
            MONITORING.register_callback(3, event, lambda c, *d, tell=callback: tell(c, *d) if is_watched(c) else None)
        MONITORING.set_events(3, sum(told) if everywhere else 0)
        MONITORING.set_local_events(3, decide.__code__, sum(told))
        try:
            run()
        finally:
            MONITORING.set_events(3, 0)
            MONITORING.set_local_events(3, decide.__code__, 0)
            for event in told:
                MONITORING.register_callback(3, event, None)
            MONITORING.free_tool_id(3)
        return list(seen)

    def is_watched(code: Any) -> bool:
        return code is decide.__code__

    def observe() -> None:
        with Observer(is_mine) as observer:
            decide(4)
        assert outcomes(observer) == [False, False, True, 3]
        decide(3)

    expected = seen_in(lambda: (decide(4), decide(3)))
    assert expected
    assert seen_in(observe) == expected
    assert seen_in(lambda: (decide(4), decide(3))) == expected


PROGRAM = """
    import sys
    from contextlib import contextmanager
    from pytest_torchexport.branches.observe import Observer

    def inner(x):
        if x:
            return 1
        return 2

    @contextmanager
    def observing():
        with Observer(lambda name: name == __file__) as observer:
            yield observer
        inner(0)

    class Wrapped:
        def __enter__(self):
            self.observer = Observer(lambda name: name == __file__)
            self.observer.__enter__()
            return self.observer

        def __exit__(self, *details):
            self.observer.__exit__(*details)
            inner(0)

    def directly():
        with Observer(lambda name: name == __file__) as observer:
            inner(1)
        after = inner(2)
        return observer

    def in_turns():
        with observing() as observer:
            inner(1)
        after = inner(0)
        return observer

    def raising():
        try:
            with Wrapped() as observer:
                inner(1)
                raise KeyError
        except KeyError:
            after = 1
        after = inner(1)
        return observer

    def main():
        for function in (directly, in_turns, raising):
            tracer = sys.gettrace()
            observer = function()
            assert sys.gettrace() is tracer
            assert [outcome for _, outcome in observer.events] == [True], observer.events
            assert observer.error is None
        return inner(0)

    main()
    last = 1
"""


@pytest.mark.parametrize("core", ["ctrace", "pytrace", "sysmon"])
@pytest.mark.parametrize("arguments", [(), ("--branch",)])
def test_coverage_loses_nothing_outside(core: str, arguments: tuple[str, ...], tmp_path: Path) -> None:
    coverage = pytest.importorskip("coverage")
    if core == "sysmon" and (not HAS_MONITORING or (arguments and sys.version_info < (3, 14))):
        pytest.skip("coverage.py has no such core here")
    (tmp_path / "program.py").write_text(dedent(PROGRAM))
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "COVERAGE_CORE": core, "PYTHONPATH": root}
    command = [sys.executable, "-W", "error", "-m", "coverage", "run", *arguments, "--include=program.py", "program.py"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    data = coverage.CoverageData(basename=str(tmp_path / ".coverage"))
    data.read()
    text = dedent(PROGRAM).splitlines()
    code = {n for n, line in enumerate(text, 1) if line.strip() and not line.strip().startswith("except")}
    while_observed = {n for n, line in enumerate(text, 1) if "self.observer.__exit__" in line}
    lines = set(data.lines(str((tmp_path / "program.py").resolve())) or ())
    assert code - while_observed - lines == set()
