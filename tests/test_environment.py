"""What is known of the machine that a time was measured on."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch

from pytest_torchexport import environment

if TYPE_CHECKING:
    from pathlib import Path

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
model\t\t: 85
model name\t: Intel(R) Xeon(R)   CPU @ 2.00GHz

processor\t: 1
model name\t: another
"""
BOARD = "processor\t: 0\nCPU part\t: 0xd08\n\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 4 Model B\n"
ARM_SERVER = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"


@pytest.mark.parametrize(
    ("text", "model"),
    [
        (X86, "Intel(R) Xeon(R) CPU @ 2.00GHz"),
        (BOARD, "Raspberry Pi 4 Model B"),
        (ARM_SERVER, "ARM implementer 0x41 part 0xd40"),
        ("", ""),
    ],
    ids=["x86", "board", "server", "none"],
)
def test_model_of_the_cpu(text: str, model: str) -> None:
    assert environment.model_in(text) == model


def test_a_system_without_cpuinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment, "_CPU_INFO", tmp_path / "cpuinfo")
    assert environment.cpu_model.__wrapped__()


def test_facts_of_this_machine() -> None:
    facts = environment.machine()
    assert facts["cpu"]
    assert facts["cpus"] >= facts.get("usable_cpus", 1) >= 1
    assert facts["threads"] == torch.get_num_threads()


def test_an_accelerator_in_use_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cuda = SimpleNamespace(
        is_initialized=lambda: True, device_count=lambda: 2, get_device_name=lambda index: f"G{index}"
    )
    monkeypatch.setattr(torch, "cuda", cuda)
    governor = tmp_path / "governor"
    governor.write_text("powersave\n")
    monkeypatch.setattr(environment, "_GOVERNOR", governor)
    facts = environment.machine()
    assert (facts["gpus"], facts["governor"]) == (["G0", "G1"], "powersave")


def test_asking_initialises_nothing() -> None:
    code = (
        "import sys; from pytest_torchexport import environment; facts = environment.machine(); "
        "assert 'torch' not in sys.modules and 'threads' not in facts and 'gpus' not in facts"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
