"""How the observer comes to know what is executed: by `sys.monitoring` or by trace functions. Standard library only."""

from __future__ import annotations

import sys
from collections import deque
from itertools import repeat
from threading import get_ident
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

    from pytest_torchexport.branches.bytecode import Plan
    from pytest_torchexport.branches.record import Recorder, Run

Trace = Any
"""A trace function: (frame, event, argument) -> what traces the frame from now on, or None."""

_NAME = "pytest-torchexport"
_IDS = (4, 3, 5, 2, 0, 1)
"""Tool ids of `sys.monitoring`, those without a fixed purpose first."""


class Watch(Protocol):
    """How the observer comes to know what is executed."""

    recorder: Recorder

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """End, and leave everything as it was."""


def watch(recorder: Recorder) -> Watch:
    """The best way that this Python offers at the moment."""
    return Monitoring.offered(recorder) or Tracing(recorder)


class Tracing:
    """With `sys.settrace`, and `f_trace_opcodes` on the user's frames.

    A tracer that is active already and written in Python is called in turn. One that is written in C takes over when it
    is called: it pauses. coverage.py's counts calls and returns, so it has to hear of those returns that belong to
    calls before the pause, and of the calls whose returns will come after it.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._before: Trace = None
        self._inner: Trace = None
        self._hook = self._call
        self._stack: dict[FrameType, Trace] = {}
        """The frames that a paused tracer knows, with what traced them."""
        self._returned: set[FrameType] = set()

    def start(self) -> None:
        """Begin."""
        self._before = sys.gettrace()
        if self._before is not None and not callable(self._before):
            msg = f"a tracer is active that cannot be put back: {type(self._before).__name__}"
            self.recorder.fail(RuntimeError(msg))
            return
        if self._before is None or _is_python(self._before):
            self._inner = self._before
        else:
            frame: FrameType | None = sys._getframe()
            while frame is not None:
                self._stack[frame] = frame.f_trace
                frame.f_trace = self._forward
                frame = frame.f_back
        if sys.version_info >= (3, 12):
            sys._getframe().f_trace_opcodes = True  # 3.12 looks at this once, when a trace function is set
            sys._getframe().f_trace_opcodes = False
        sys.settrace(self._hook)

    def stop(self) -> None:
        """End, and leave everything as it was."""
        before, now = self._before, sys.gettrace()
        if now is not self._hook and self.recorder.is_on:
            self.recorder.fail(RuntimeError("tracing was turned off" if now is None else "another tracer took over"))
        self.recorder.is_on = False
        unknown: list[FrameType] = []
        frame: FrameType | None = sys._getframe() if self._stack else None
        while frame is not None:
            if frame not in self._stack or frame in self._returned:
                unknown.insert(0, frame)
            frame = frame.f_back
        for known, trace in self._stack.items():
            known.f_trace = trace
        self._stack, self._returned = {}, set()
        if now is not self._hook and now is not None:
            return
        sys.settrace(before)
        # In one statement: told of the first frame, it is back, and would take lines in between for that one's.
        deque(map(before, unknown, repeat("call"), repeat(None)) if unknown else (), 0)

    def _forward(self, frame: FrameType, event: str, argument: object) -> Trace:
        """Hand on to a paused tracer what happens in a frame that it knows."""
        if frame in self._stack and frame not in self._returned:
            if event == "return":
                self._returned.add(frame)
            self._before(frame, event, argument)
        return self._forward

    def _call(self, frame: FrameType, event: str, argument: object) -> Trace:
        """Called when a frame is entered, or resumed."""
        known = self.recorder.plans.get(id(frame.f_code))
        if known is not None and known[1] is None and self._inner is None:  # by far the most frequent
            return None
        inner = self._inner(frame, event, argument) if self._inner is not None else None
        recorder = self.recorder
        if not recorder.is_on:
            return inner
        try:
            plan = recorder.plan(frame.f_code)
            if plan is None:
                return inner
            run = recorder.run(frame, plan, fresh=frame.f_lasti <= plan.start)
            return self._local(frame, plan, run, inner)
        except Exception as error:  # noqa: BLE001
            recorder.fail(error)
            return inner

    def _local(self, frame: FrameType, plan: Plan, run: Run, inner: Trace) -> Trace:
        recorder, step, marks = self.recorder, self.recorder.step, plan.marks
        opcodes, lines, raised = frame.f_trace_opcodes, frame.f_trace_lines, None

        def trace(frame: FrameType, event: str, argument: Any) -> Trace:
            nonlocal inner, raised
            if event == "opcode":
                raised = None
                if (run.jump is not None or frame.f_lasti in marks) and recorder.is_on:
                    try:
                        step(run, frame.f_lasti)
                    except Exception as error:  # noqa: BLE001
                        recorder.fail(error)
                if not opcodes:
                    return trace
            elif event == "exception":
                raised = argument[0]
            elif event == "return":
                frame.f_trace_opcodes, frame.f_trace_lines = opcodes, lines
                self._leave(frame, plan, raised)
            if inner is not None:
                inner = inner(frame, event, argument)
            return trace

        frame.f_trace = trace  # 3.13 asks for it before the next line
        frame.f_trace_opcodes, frame.f_trace_lines = True, lines and inner is not None
        return trace

    def _leave(self, frame: FrameType, plan: Plan, raised: type[BaseException] | None) -> None:
        recorder = self.recorder
        if not recorder.is_on or (raised is None and frame.f_lasti in plan.yields):
            return
        try:
            if raised is not None and issubclass(raised, GeneratorExit):
                recorder.abandon(recorder.runs.pop(id(frame)))
            else:
                recorder.leave(frame)
        except Exception as error:  # noqa: BLE001
            recorder.fail(error)


def _is_python(tracer: Trace) -> bool:
    """Whether a trace function can be called in turn: those that are written in C take over when they are called."""
    return isinstance(tracer, FunctionType | MethodType) or hasattr(type(tracer).__call__, "__code__")


class Monitoring:
    """With `sys.monitoring`: jumps, or every instruction where a loop may end without one."""

    def __init__(self, recorder: Recorder, api: Any, tool: int) -> None:
        self.recorder = recorder
        self._api, self._tool = api, tool
        self._thread = get_ident()
        self._watched: dict[int, tuple[CodeType, Plan]] = {}
        events = api.events
        jumps = ("BRANCH_LEFT", "BRANCH_RIGHT") if hasattr(events, "BRANCH_LEFT") else ("BRANCH",)
        self._jumps = 0
        self._callbacks: dict[int, Callable[..., object]] = {
            events.PY_START: self._start,
            events.PY_RESUME: self._resume,
            events.PY_THROW: self._resume,
            events.PY_UNWIND: self._unwind,
            events.PY_RETURN: self._return,
            events.INSTRUCTION: self._instruction,
        }
        for name in jumps:
            self._callbacks[getattr(events, name)] = self._branch
            self._jumps |= getattr(events, name)

    @classmethod
    def offered(cls, recorder: Recorder) -> Monitoring | None:
        """One with a tool id of its own; None where Python has no monitoring, or no id is free."""
        api: Any = getattr(sys, "monitoring", None)
        for tool in _IDS if api is not None else ():
            if api.get_tool(tool) is None:
                api.use_tool_id(tool, _NAME)
                return cls(recorder, api, tool)
        return None

    def start(self) -> None:
        """Begin."""
        events = self._api.events
        for event, callback in self._callbacks.items():
            self._api.register_callback(self._tool, event, callback)
        self._api.set_events(self._tool, events.PY_START | events.PY_RESUME | events.PY_THROW | events.PY_UNWIND)

    def stop(self) -> None:
        """End, and leave everything as it was."""
        self.recorder.is_on = False
        self._api.set_events(self._tool, 0)
        for code, _ in self._watched.values():
            self._api.set_local_events(self._tool, code, 0)
        for event in self._callbacks:
            self._api.register_callback(self._tool, event, None)
        self._api.free_tool_id(self._tool)

    def _start(self, code: CodeType, _offset: int) -> None:
        self._enter(code, fresh=True)

    def _resume(self, code: CodeType, _offset: int, _error: object = None) -> None:
        self._enter(code, fresh=False)

    def _enter(self, code: CodeType, *, fresh: bool) -> None:
        recorder = self.recorder
        if not recorder.is_on or get_ident() != self._thread:
            return
        try:
            plan = recorder.plan(code)
            if plan is None:
                return
            if id(code) not in self._watched:
                self._watched[id(code)] = (code, plan)
                events = self._api.events
                wanted = events.INSTRUCTION if plan.every_instruction else self._jumps
                self._api.set_local_events(self._tool, code, wanted | (events.PY_RETURN if plan.loops else 0))
            if plan.loops or plan.every_instruction:
                recorder.run(sys._getframe(2), plan, fresh=fresh)
        except Exception as error:  # noqa: BLE001
            recorder.fail(error)

    def _branch(self, code: CodeType, offset: int, destination: int) -> None:
        recorder = self.recorder
        if not recorder.is_on or get_ident() != self._thread:
            return
        try:
            plan = self._watched[id(code)][1]
            jump = plan.jumps.get(offset)
            effect = jump.effects.get(destination) if jump is not None else None
            if jump is not None and effect is not None:
                run = recorder.run(sys._getframe(1), plan) if effect.begins or effect.ends else None
                recorder.apply(run, jump, effect)
        except Exception as error:  # noqa: BLE001
            recorder.fail(error)

    def _instruction(self, code: CodeType, offset: int) -> object:
        recorder = self.recorder
        if not recorder.is_on or get_ident() != self._thread:
            return None
        try:
            plan = self._watched[id(code)][1]
            if offset not in plan.marks and offset not in plan.arrivals:
                return self._api.DISABLE  # this instruction, until the events of this code are set again
            recorder.step(recorder.run(sys._getframe(1), plan), offset)
        except Exception as error:  # noqa: BLE001
            recorder.fail(error)
        return None

    def _return(self, _code: CodeType, _offset: int, _value: object) -> None:
        recorder = self.recorder
        if recorder.is_on and get_ident() == self._thread:
            try:
                recorder.leave(sys._getframe(1))
            except Exception as error:  # noqa: BLE001
                recorder.fail(error)

    def _unwind(self, _code: CodeType, _offset: int, error: BaseException) -> None:
        recorder = self.recorder
        if not recorder.runs or not recorder.is_on or get_ident() != self._thread:
            return
        try:
            frame = sys._getframe(1)
            if isinstance(error, GeneratorExit):
                run = recorder.runs.pop(id(frame), None)
                if run is not None:
                    recorder.abandon(run)
            else:
                recorder.leave(frame)
        except Exception as failure:  # noqa: BLE001
            recorder.fail(failure)
