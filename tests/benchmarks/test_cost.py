"""What the plugin costs: beside a hand-written script that does the same, and on a pytest run that does not use it."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.benchmark
HERE = Path(__file__).parent
ROUNDS = int(os.environ.get("TORCHEXPORT_BENCHMARK_ROUNDS", "3"))


@dataclass(frozen=True)
class Ran:
    """A fresh process: its time by the clock, that of the processor, the most memory it held, what it printed."""

    seconds: float
    processor: float
    mebibytes: float
    text: str


def _child(command: Sequence[str], folder: Path) -> Ran:
    """Run a process with an empty compile cache. Its bytecode is cached, as it is for a user."""
    with tempfile.TemporaryDirectory() as cache, (folder / "out").open("w+", encoding="utf-8") as out:
        paths = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
        ours = {
            "TORCHINDUCTOR_CACHE_DIR": cache,
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # its workers' processor time would not be known
            "PYTHONPATH": paths,
        }
        env = {**os.environ, **ours}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        out.seek(0)
        text = out.read()
    assert process.returncode == 0, text
    return Ran(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, text)


def _suite(folder: Path, *options: str) -> list[str]:
    base = ["-q", "-p", "no:cacheprovider", "-W", "ignore", "--noconftest", "--rootdir", str(folder), *options]
    return [sys.executable, "-m", "pytest", *base, str(HERE / "suite_plugin.py")]


def test_against_a_handwritten_script(tmp_path: Path) -> None:
    """6 models x 4 backends x 10 inputs, in turns; every ratio is of two neighbouring runs.

    Judged by the processor's time: on a machine that does other things it repeats to a few percent, the clock does not.
    """
    by_hand = [sys.executable, str(HERE / "suite_handwritten.py")]
    ways = {"search off": _suite(tmp_path, "--export-branches=off"), "search on": _suite(tmp_path)}
    _child([*ways["search on"], "-k", "perceptron"], tmp_path)  # bytecode of the plugin; that of torch is there
    found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ways}
    for number in range(ROUNDS):
        order = list(ways)[:: 1 if number % 2 else -1]
        hand = _child(by_hand, tmp_path)
        assert int(hand.text.split()[-1]) == 7 * 4 * 11, "the script compares every output of every input"
        for way in order:
            ours = _child(ways[way], tmp_path)
            assert re.search(r"\b24 passed", ours.text), ours.text
            ratios = (ours.processor / hand.processor, ours.seconds / hand.seconds, ours.mebibytes / hand.mebibytes)
            found[way].append(ratios)
            print(
                f"\nround {number + 1}, {way}: processor {ours.processor:.1f} s, by hand {hand.processor:.1f} s, ratio "
                f"{ratios[0]:.3f}; clock {ours.seconds:.1f} s, by hand {hand.seconds:.1f} s, ratio {ratios[1]:.3f}; "
                f"{ours.mebibytes:.0f} MiB, by hand {hand.mebibytes:.0f} MiB, ratio {ratios[2]:.3f}",
                flush=True,
            )
    for way, several in found.items():
        for name, each in zip(("processor", "clock", "peak memory"), zip(*several, strict=True), strict=True):
            print(f"{way}: {name} {statistics.median(each):.3f} ({min(each):.3f} to {max(each):.3f})")
    processor, _, memory = (statistics.median(each) for each in zip(*found["search off"], strict=True))
    assert processor <= 1.10
    assert memory <= 1.2
    assert statistics.median(ratios[0] for ratios in found["search on"]) <= 1.15


def test_installed_but_unused(tmp_path: Path) -> None:
    """Start-up of a pytest run without marked tests, with and without the plugin."""
    (tmp_path / "test_nothing.py").write_text("def test_nothing():\n    pass\n", encoding="utf-8")
    base = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_nothing.py"]
    with_plugin, without = [], []
    _child(base, tmp_path)  # bytecode
    for _ in range(25):
        without.append(_child([*base, "-p", "no:torchexport"], tmp_path).processor)
        with_plugin.append(_child(base, tmp_path).processor)
    median = statistics.median(one - other for one, other in zip(with_plugin, without, strict=True))
    least = min(with_plugin) - min(without)
    print(
        f"\nstart-up without {statistics.median(without) * 1000:.0f} ms of processor time, 25 pairs: added "
        f"{median * 1000:.1f} ms (median), {least * 1000:.1f} ms (between the quickest)"
    )
    assert least <= 0.015
