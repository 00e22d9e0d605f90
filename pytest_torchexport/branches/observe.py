"""Which decisions the user's code takes while it runs as it is. Standard library only.

On Python 3.12 and later `sys.monitoring` tells of jumps, on 3.11 a trace function is called for each instruction. Both
say only that execution went from here to there in a frame; `bytecode` knows what that means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pytest_torchexport.branches.execution import watch
from pytest_torchexport.branches.record import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from pytest_torchexport.branches.execution import Watch
    from pytest_torchexport.branches.sites import Site


class Observer:
    """Records the decisions that the user's code takes in this thread, while the context is open.

    It can be used again afterwards. Threads that the code starts are not observed, nor frames that run already. On
    Python 3.11 a tracer that is active and written in C (coverage.py's) pauses meanwhile; one that is written in
    Python (pdb's) goes on.

    Args:
        is_users: whether code of that file name is to be observed; it is asked once for each name.
        limit: how many events are kept; observation ends there.

    Attributes:
        events: what was decided, in the order of execution, once the context is closed: the truth of a condition, True
            for an `except` clause that is entered and, for a loop, when it ends, the number of iterations begun.
            Loops of generators that nobody finished come last.
        truncated: there were more events than the limit.
        decides: code of the user's ran that holds a decision, whether it came to it or not.
        error: why observation ended before its time, if it did: an error in the observer, or another tracer.
    """

    def __init__(self, is_users: Callable[[str], bool], *, limit: int = 200_000) -> None:
        self.is_users = is_users
        self.limit = limit
        self.events: list[tuple[Site, bool | int]] = []
        self.truncated = False
        self.decides = False
        self.error: Exception | None = None
        self._watch: Watch | None = None

    def __enter__(self) -> Self:
        if self._watch is not None:
            msg = "this Observer is in use; take another one"
            raise RuntimeError(msg)
        self._recorder = Recorder(self.is_users, self.limit)
        self._watch = watch(self._recorder)
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        recorder, watching, self._watch = self._recorder, self._watch, None
        if watching is not None:
            watching.stop()
            self.decides = any(plan is not None for _, plan in recorder.plans.values())
            recorder.finish()
        self.events, self.truncated, self.error = recorder.events, recorder.truncated, recorder.error
