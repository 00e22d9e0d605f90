"""One marked item from setup to teardown: seeded, made to check something, reported, and cleaned up after."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pytest_torchexport.outcome import Stage, Verdict
from pytest_torchexport.plugin import isolation, transport
from pytest_torchexport.plugin.cell import Cell
from pytest_torchexport.plugin.checker import twice
from pytest_torchexport.plugin.marks import MARKER
from pytest_torchexport.plugin.stash import RUN, STATE, ItemState

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKED_NOTHING = (
    "the test is marked export_equivalent and checked nothing: request the fixture export_check and call "
    "export_check(model, args) once"
)


LATE_MARK = (
    "a mark export_equivalent with keywords is on this item alone ({said}), by pytest.param(marks=...) or add_marker: "
    "what backends it has, and how it is checked, was decided before, from the marks of its function, class and "
    "module. Put it there, or make a second test"
)


def begin(item: pytest.Item) -> None:
    """Before the fixtures: they make models, too, and these have to be the same in each item of a test."""
    late = _late_keywords(item)
    if late:
        pytest.fail(LATE_MARK.format(said=", ".join(late)), pytrace=False)
    state = item.stash[STATE] = ItemState()
    transport.detach(item)
    cell = transport.cell_of(item)
    if isinstance(cell, Cell):
        transport.note_stage(item, Stage.REFERENCE)
        state.restore_rng = isolation.save_rng()
        item.config.stash[RUN].seeded = True
        isolation.seed(cell, transport.origin_of(item))


def _late_keywords(item: pytest.Item) -> list[str]:
    """Keywords of marks that the item got after its function was made into items."""
    early = getattr(getattr(item, "function", None), "pytestmark", [])
    own = [mark for mark in item.own_markers if mark.name == MARKER and mark.kwargs]
    return [keyword for mark in own if mark not in early for keyword in mark.kwargs]


@contextmanager
def unseen() -> Iterator[None]:
    """Around the setup of a fixture that several items share: it draws in the first only, so its draws are undone."""
    restore = isolation.save_rng()
    try:
        yield
    finally:
        restore()


def before_body(item: pytest.Item) -> None:
    """Directly before the test's body, so that it does not depend on what the fixtures drew."""
    cell = transport.cell_of(item)
    if not isinstance(cell, Cell):
        return
    run = item.config.stash[RUN]
    if run.collect_garbage:
        # Until here pytest itself held the frames of the test that failed.
        isolation.release_memory()
        run.collect_garbage = False
    isolation.seed(cell, transport.origin_of(item))


def require_one_call(item: pytest.Item) -> None:
    """After a body that passed: no check is no pass, and two checks have no single verdict."""
    calls = item.stash[STATE].calls
    if calls == 0:
        pytest.fail(CHECKED_NOTHING, pytrace=False)
    if calls > 1:
        pytest.fail(twice(calls), pytrace=False)


def conclude(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """After setup or body, before the report is made: attach the outcome, or why there is none."""
    last = call.when == "call" or (call.when == "setup" and call.excinfo is not None)
    if not last:
        return
    run = item.config.stash[RUN]
    if call.excinfo is not None and isolation.on_accelerator(transport.cell_of(item)):
        run.collect_garbage = True
    # A mark that skips acts before `begin`.
    state = item.stash.setdefault(STATE, ItemState())
    transport.attach(item, state.record or _without_outcome(item, call))


def _without_outcome(item: pytest.Item, call: pytest.CallInfo[None]) -> dict[str, object]:
    if call.excinfo is None:
        return transport.unchecked(item, Verdict.INVALID, CHECKED_NOTHING)
    error = call.excinfo.value
    if isinstance(error, (pytest.skip.Exception, pytest.xfail.Exception)):
        return transport.unchecked(item, Verdict.SKIPPED, error.msg or "skipped")
    if isinstance(error, pytest.fail.Exception):
        return transport.unchecked(item, Verdict.INVALID, error.msg or "failed")
    return transport.unchecked(item, Verdict.INVALID, call.excinfo.exconly(tryshort=True))


def end(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """After the fixtures are gone: restore the generators, release eager results and memory."""
    state = item.stash.get(STATE, None)
    if state is None:
        return
    run = item.config.stash[RUN]
    if state.restore_rng is not None:
        state.restore_rng()
        run.seeded = False
    origin = transport.origin_of(item)
    if nextitem is None or transport.origin_of(nextitem) != origin:
        # By the next item, not by the last of the test: with pytest-xdist that one may run elsewhere.
        references = run.references.pop(origin, None)
        if references is not None:
            references.clear()
    if run.collect_garbage:
        isolation.release_memory()
