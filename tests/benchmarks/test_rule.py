"""The calibrated rule beside `assert_close` and Dynamo's `same`: faults that are found, right programs that pass."""

from __future__ import annotations

import os
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch

from pytest_torchexport.backends.registry import make_backend
from tests.benchmarks import correct, faults, faults_fx, faults_onnx
from tests.benchmarks.measured import RULES, Architecture, Judged, NotRun
from tests.benchmarks.zoo_all import ZOO

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_torchexport.backends.base import Backend

pytestmark = [pytest.mark.benchmark, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(3600)]
PER_KIND = int(os.environ.get("TORCHEXPORT_BENCHMARK_FAULTS", "1"))
"""Places in a program at which each kind of fault is planted, one at a time."""
SEED = int(os.environ.get("TORCHEXPORT_BENCHMARK_SEED", "0"))
COMPILED = {
    "compile": "resnet unet vit gaussian_process float16_attention masked_attention mixture_of_experts mixed_scales",
    "aoti": "one_pass_variance wavenet detection_head",
}
"""What is compiled by a C++ compiler as well, which takes long."""


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# --- faults -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planted:
    """One fault, and who finds it.

    `size` is its effect in float64 in units of the rounding noise; `changes`: some bit of a result is another.
    """

    architecture: str
    origin: str
    kind: str
    size: float
    changes: bool
    found: tuple[bool, ...]


def _in_graph(architecture: Architecture) -> Iterator[Planted]:
    label = f"{architecture.name}:{SEED}"
    for fault in faults.chosen(faults_fx.KINDS, architecture.graph, per_kind=PER_KIND, seed=label):
        judged = architecture.judge_graph(fault)
        size = architecture.size_of(fault)
        yield _planted(architecture, "torch.export", str(fault), size, size > 0, judged)


def _in_file(architecture: Architecture) -> Iterator[Planted]:
    label = f"{architecture.name}:{SEED}"
    for fault in faults.chosen(faults_onnx.KINDS, architecture.onnx_file, per_kind=PER_KIND, seed=label):
        try:
            judged, changes, size = architecture.judge_onnx(fault)
        except NotRun:  # no such file can be shipped: ONNX Runtime refuses it
            continue
        yield _planted(architecture, "ONNX", str(fault), size, changes, judged)


def _planted(
    architecture: Architecture, origin: str, fault: str, size: float, changes: bool, judged: Judged
) -> Planted:
    found = tuple(judged.found(rule) for rule in RULES)
    planted = Planted(architecture.name, origin, fault, size, changes, found)
    if size >= 1 and not found[0]:
        print(f"missed: {architecture.name} {origin} {fault}, {size:.1f}x the noise")
    if not size and found[0]:
        print(f"odd: {architecture.name} {origin} {fault} has no effect in float64 and is found")
    return planted


def _share(planted: Sequence[Planted], rule: int) -> str:
    found = sum(one.found[rule] for one in planted)
    return f"{found:5d} = {found / max(len(planted), 1):6.1%}"


def test_planted_faults() -> None:
    """In torch.export's graphs, run as they are, and in ONNX files, run in ONNX Runtime with all optimisations."""
    planted: list[Planted] = []
    with _one_thread():
        for name in ZOO:
            architecture = Architecture(name, seed=SEED)
            planted += _in_graph(architecture)
            try:
                architecture.judge_right_file()
            except Exception as error:  # noqa: BLE001 there is no right file to be made wrong
                print(f"{name}: no ONNX file, {str(error).splitlines()[0][:100]}")
                continue
            planted += _in_file(architecture)
    observable = [one for one in planted if one.size >= 1]
    _print_kinds(observable)
    for origin in ("torch.export", "ONNX", ""):
        mine = [one for one in planted if origin in one.origin]
        seen = [one for one in mine if one.size >= 1]
        large = [one for one in seen if one.size >= 8]
        changed = [one for one in mine if one.changes]
        nothing = sum(one.size == 0 for one in mine)
        print(f"\n{origin or 'all'}: {len(mine)} faults, {nothing} without effect, {len(seen)} observable")
        print(f"  {'':14s}{'observable':>16s}{'8x the noise':>16s}{'any bit differs':>16s}")
        for number, rule in enumerate(RULES):
            print(f"  {rule:14s}" + "".join(f"{_share(some, number):>16s}" for some in (seen, large, changed)))
    assert len(ZOO) >= 12
    assert len(observable) >= 300
    assert sum(one.found[0] for one in observable) >= 0.93 * len(observable)
    for other in (1, 2):
        assert sum(one.found[0] for one in observable) > sum(one.found[other] for one in observable)


def _print_kinds(planted: Sequence[Planted]) -> None:
    kinds: dict[str, list[Planted]] = defaultdict(list)
    for one in planted:
        kinds[one.kind.split("[", maxsplit=1)[0]].append(one)
    print(f"\n{'observable faults':26s}{'':>5s}" + "".join(f"{rule:>14s}" for rule in RULES))
    for kind, some in sorted(kinds.items()):
        print(
            f"{kind:26s}{len(some):5d}" + "".join(f"{sum(one.found[i] for one in some):14d}" for i in range(len(RULES)))
        )


# --- right programs ---------------------------------------------------------------------------------------------------


def _right_programs(name: str) -> list[str | Backend]:
    return [*correct.QUICK, *(backend for backend, names in COMPILED.items() if name in names.split())]


def test_right_programs() -> None:
    """Every backend, and eager by other kernels: one false alarm is one too many."""
    alarms: dict[str, list[str]] = {rule: [] for rule in RULES}
    pairs = unlike = unjudged = 0
    backends: set[str] = set()
    with _one_thread():
        for name in ZOO:
            architecture = Architecture(name, n_inputs=3, seed=SEED)
            for given in _right_programs(name):
                backend = make_backend(given)
                try:
                    judged = architecture.judge(backend)
                except NotRun as reason:
                    print(f"{name} on {backend.id}: {str(reason)[:140]}")
                    continue
                backends.add(backend.id)
                pairs += len(architecture.calls)
                unlike += 0 if judged.same_bits else len(architecture.calls)
                unjudged += judged.agrees["calibrated"].count(None)
                if judged.false_alarm:
                    alarms["calibrated"].append(name)
                    print(f"FALSE ALARM: {name} on {backend.id}: {judged.outcome.leaves[:1]}")
                for rule in RULES[1:]:
                    alarms[rule] += [name] * judged.agrees[rule].count(False)
    print(f"\n{pairs} pairs of a right program and an input, {unlike} of programs that differ from eager in some bit;")
    print(f"{len(ZOO)} architectures, {len(backends)} backends: {', '.join(sorted(backends))}; {unjudged} not judged")
    for rule, names in alarms.items():
        print(f"  {rule:14s}{len(names):5d} false alarms, in {len(set(names))} architectures")
    assert pairs >= 100
    assert unjudged <= pairs / 20
    assert not alarms["calibrated"]
