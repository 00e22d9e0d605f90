"""Other work on the machine: processes that compute for a while, move memory, rest, and begin again."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def loaded(processes: int) -> Iterator[None]:
    """As many processes that are busy about half of the time, each in its own rhythm."""
    started = [
        subprocess.Popen([sys.executable, __file__, str(number), str(os.getpid())]) for number in range(processes)
    ]
    try:
        time.sleep(0.5)
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()


def _work(seed: int, parent: int) -> None:
    """Be busy and idle in turns, for 5 to 500 ms each, until the parent is gone."""
    rng = random.Random(seed)
    memory = bytearray(32 << 20)
    while os.getppid() == parent:
        busy_until = time.monotonic() + 0.005 * 100 ** rng.random()
        moves = rng.random() < 0.5
        number = 0
        while time.monotonic() < busy_until:
            if moves:
                memory[: 8 << 20] = memory[16 << 20 : 24 << 20]
            else:
                number = sum(range(number % 7, 2000))
        time.sleep(0.005 * 100 ** rng.random())


if __name__ == "__main__":
    _work(int(sys.argv[1]), int(sys.argv[2]))
