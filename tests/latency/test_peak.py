from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pytest_torchexport.latency import peak
from pytest_torchexport.latency.peak import Peak

CPU = torch.device("cpu")
MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="the resident set's peak is read from /proc")
def test_a_temporary_of_known_size_is_found_and_what_was_there_before_is_not_counted() -> None:
    held = torch.ones(8 * MIB)  # 32 MiB that are resident before
    with Peak(CPU) as first:
        temporary = held + 1
        del temporary
    assert first.host is not None
    assert 31 * MIB < first.host < 40 * MIB
    with Peak(CPU) as nothing:
        pass
    assert nothing.host is not None
    assert nothing.host < 2 * MIB
    assert first.device is None


def test_a_system_that_tells_no_peak_gives_none_and_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(peak, "_RESET", tmp_path / "missing" / "clear_refs")
    with Peak(CPU) as found:
        pass
    assert found.host is None
    assert "does not let a process reset" in found.why


class _FakeAccelerator:
    """Stands in for torch.cuda: a runtime beside torch takes 300 bytes that torch does not count."""

    def __init__(self) -> None:
        self.free, self.peak = 1000, 0

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        self.peak = 0

    def memory_allocated(self, device: torch.device) -> int:
        return 40

    def max_memory_allocated(self, device: torch.device) -> int:
        return 40 + self.peak

    def empty_cache(self) -> None:
        pass

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return self.free, 2000


@pytest.mark.parametrize(("taken_by_torch", "taken_beside_it", "expected"), [(100, 0, 100), (100, 300, 300), (0, 0, 0)])
def test_an_accelerators_peak_is_torchs_own_or_what_disappeared_beside_it(
    monkeypatch: pytest.MonkeyPatch, taken_by_torch: int, taken_beside_it: int, expected: int
) -> None:
    fake = _FakeAccelerator()
    monkeypatch.setattr(peak, "torch", SimpleNamespace(get_device_module=lambda device: fake))
    with Peak(torch.device("cuda")) as found:
        fake.peak += taken_by_torch
        fake.free -= taken_beside_it
    assert found.device == expected
