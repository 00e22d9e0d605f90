"""Cold starts: the program loaded anew, its first calls timed, and the memory that this takes."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from pytest_torchexport.latency.budget import FIRST_CALLS
from pytest_torchexport.latency.measure import first_calls
from pytest_torchexport.latency.peak import Peak
from pytest_torchexport.latency.settle import settled_after
from pytest_torchexport.measured import ColdStart, PeakMemory
from pytest_torchexport.performance.sides import copy_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_torchexport.backends.base import Backend, Exported
    from pytest_torchexport.performance.sides import Sides
    from pytest_torchexport.program import Saved
    from pytest_torchexport.subject.call import Call
    from pytest_torchexport.trials import Trial


@dataclass
class Starts:
    """Loads the program anew, as often as somebody wants to be sure.

    Attributes:
        saved: what it is loaded from.
        sides: makes it callable.
        example: the input of its first calls.
        export_s: seconds of its export, for the report.
        own: every start of the backend as it is, in order.
        memory: the peak of each of these.
    """

    saved: Saved
    sides: Sides
    example: Trial
    export_s: float
    own: list[ColdStart] = field(default_factory=list)
    memory: list[PeakMemory] = field(default_factory=list)

    @contextlib.contextmanager
    def program(self) -> Iterator[Exported]:
        """The program after its first calls, which are timed; closed again at the end."""
        exported = self._start(FIRST_CALLS)
        try:
            yield exported
        finally:
            exported.close()

    def again(self, calls: int) -> None:
        """One more start, with fewer calls where only the first is in doubt."""
        self._start(calls).close()

    def variants(self) -> list[ColdStart]:
        """A start under each option that changes the first calls."""
        found = []
        for name, variant in self.saved.backend.cold_start_variants().items():
            exported, start = self._begin(variant, FIRST_CALLS, self._arguments())
            exported.close()
            found.append(replace(start, variant=name))
        return found

    def _start(self, calls: int) -> Exported:
        """Start the backend as it is, and keep what that took."""
        own = self._arguments()
        with Peak(self.sides.plan.device) as peak:
            exported, start = self._begin(None, calls, own)
        self.own.append(start)
        self.memory.append(PeakMemory(host=peak.host, device=peak.device, note=peak.why))
        return exported

    def _arguments(self) -> Call:
        """What the program is called with: made before its memory is measured, since the caller has them anyway."""
        return copy_of(self.example.calls[0])

    def _begin(self, variant: Backend | None, calls: int, own: Call) -> tuple[Exported, ColdStart]:
        with torch.inference_mode(mode=False):  # weights that are read in inference mode can be used in no other
            begun = time.perf_counter()
            exported = self.saved.load_anew(variant)
            loaded = time.perf_counter() - begun
        try:
            side = self.sides.exported(self.example, exported, own)
            times = first_calls(side, device=self.sides.plan.device, count=calls)
        except BaseException:
            exported.close()
            raise
        start = ColdStart(
            export=self.export_s,
            load=None if self.saved.path is None else exported.load_seconds or loaded,
            calls=times,
            settled_after=settled_after(times),
            note=exported.cold_start_note,
        )
        return exported, start


def eager_peak(sides: Sides, example: Trial) -> PeakMemory:
    """What one call of eager takes."""
    side = sides.eager(example)
    with Peak(sides.plan.device) as peak:
        side.call()
    return PeakMemory(host_eager=peak.host, device_eager=peak.device, note=peak.why)
