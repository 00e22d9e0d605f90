"""What a session's first check loads: a test of one exporter does not pay for the others."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from pytest_torchexport.subject import source

if TYPE_CHECKING:
    from pathlib import Path

CHECK = """
import sys, torch
before = set(sys.modules)
import pytest_torchexport
model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3)).eval()
outcome = pytest_torchexport.check(model, (torch.rand(2, 3),), backend="{backend}")
assert outcome.verdict == "equivalent", outcome.message
print(*(set(sys.modules) - before))
"""
HEAVY = {"torch._dynamo", "torch._inductor", "torch.onnx", "sympy", "onnx", "onnxruntime", "jinja2", "transformers"}


@pytest.mark.parametrize("backend", ["trace", "script"])
def test_torchscript_loads_neither_torch_compile_nor_onnx(backend: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", CHECK.format(backend=backend)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.split())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_code_that_inductor_writes_is_nobodys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "relative")
    torch.compile(lambda x: x.sin() * 2)(torch.ones(3))
    written = [file for file in tmp_path.rglob("*.py") if "sin" in file.read_text(encoding="utf-8")]
    assert written
    assert not any(source.is_users(str(file)) for file in written)
    assert source.is_users(str(tmp_path / "model.py"))
