"""What the plugin costs: beside a hand-written script that does the same, and on a pytest run that does not use it."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.benchmark
HERE = Path(__file__).parent
ROUNDS = int(os.environ.get("TORCHEXPORT_BENCHMARK_ROUNDS", "3"))


def _child(command: Sequence[str], folder: Path) -> tuple[float, float, str]:
    """Seconds, peak resident MiB and output of a fresh process with an empty compile cache."""
    with tempfile.TemporaryDirectory() as cache, (folder / "out").open("w+", encoding="utf-8") as out:
        paths = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "PYTHONPATH": paths}
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        out.seek(0)
        text = out.read()
    assert process.returncode == 0, text
    return seconds, usage.ru_maxrss / 1024, text


def test_against_a_handwritten_script(tmp_path: Path) -> None:
    """6 models x 4 backends x 10 inputs, in turns; every ratio is of two neighbouring runs."""
    pytest_options = ["-q", "-p", "no:cacheprovider", "-W", "ignore", "--noconftest", "--rootdir", str(tmp_path)]
    plugin = [sys.executable, "-m", "pytest", *pytest_options, str(HERE / "suite_plugin.py")]
    by_hand = [sys.executable, str(HERE / "suite_handwritten.py")]
    times, peaks = [], []
    for number in range(ROUNDS):
        hand, ours = _child(by_hand, tmp_path), _child(plugin, tmp_path)
        assert int(hand[2].split()[-1]) == 7 * 4 * 11, "the script compares every output of every input"
        assert re.search(r"\b24 passed", ours[2]), ours[2]
        times.append(ours[0] / hand[0])
        peaks.append(ours[1] / hand[1])
        print(
            f"\nround {number + 1}: by hand {hand[0]:.1f} s, {hand[1]:.0f} MiB; plugin {ours[0]:.1f} s, "
            f"{ours[1]:.0f} MiB; ratio of time {times[-1]:.2f}, of peak memory {peaks[-1]:.2f}"
        )
    print(f"median ratio of time {statistics.median(times):.2f}, of peak memory {statistics.median(peaks):.2f}")
    assert statistics.median(times) <= 1.15
    assert statistics.median(peaks) <= 1.2


def test_installed_but_unused(tmp_path: Path) -> None:
    """Start-up of a pytest run without marked tests, with and without the plugin."""
    (tmp_path / "test_nothing.py").write_text("def test_nothing():\n    pass\n", encoding="utf-8")
    base = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_nothing.py"]
    with_plugin, without = [], []
    for _ in range(25):
        without.append(_child([*base, "-p", "no:torchexport"], tmp_path)[0])
        with_plugin.append(_child(base, tmp_path)[0])
    added = statistics.median(one - other for one, other in zip(with_plugin, without, strict=True))
    print(f"\nstart-up without {statistics.median(without) * 1000:.0f} ms, added {added * 1000:.1f} ms (25 pairs)")
    assert added <= 0.015
