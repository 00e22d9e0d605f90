"""What collection and start do, counted instead of timed: once for each thing that is there, and nothing twice."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from pytest_torchexport.backends import registry
from pytest_torchexport.plugin import marker, matrix, names, settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    import pytest

    from tests.plugin.conftest import Project

AT_START = {
    "pytest_torchexport",
    "pytest_torchexport.backends",
    "pytest_torchexport.backends.item_names",
    "pytest_torchexport.backends.registry",
    "pytest_torchexport.errors",
    "pytest_torchexport.plugin",
    "pytest_torchexport.plugin.fixture",
    "pytest_torchexport.plugin.hookspecs",
    "pytest_torchexport.plugin.marks",
    "pytest_torchexport.plugin.options",
    "pytest_torchexport.plugin.reporting",
    "pytest_torchexport.plugin.stash",
}
"""All that a run without marked tests loads. A module of this package takes 0.1 to 0.5 ms, dataclasses 1 ms each."""
COUNTED: tuple[tuple[ModuleType, str], ...] = (
    (marker, "_parse"),
    (matrix, "plan"),
    (names, "split_spec"),
    (names, "make_backend"),
    (settings, "read_settings"),
    (registry, "backend_class"),
)


def _counts(project: Project, monkeypatch: pytest.MonkeyPatch, tests: int) -> dict[str, int]:
    """How often each function is called while so many marked tests are collected."""
    counts: dict[str, int] = {}

    def counting(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            counts[name] = counts.get(name, 0) + 1
            return function(*args, **options)

        return call

    mark = (
        '@pytest.mark.export_equivalent(backends=["trace", "onnx", "compile:fullgraph=true"], xfail={"trace": "why"})'
    )
    body = "\n".join(f"{mark}\ndef test_{number}(export_check): ...\n" for number in range(tests))
    file = project.pytester.makepyfile(**{f"test_many_{tests}": f"import pytest\n{body}"})
    with monkeypatch.context() as patch:
        for module, name in COUNTED:
            patch.setattr(module, name, counting(name, getattr(module, name)))
        result = project.pytester.inline_run("--collect-only", "-q", str(file))
    assert result.ret == 0
    return counts


def test_work_at_collection_is_in_proportion_to_what_is_collected(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = _counts(project, monkeypatch, 5), _counts(project, monkeypatch, 20)
    each = {name: (many[name] - few[name]) / 15 for name in many}
    assert each["_parse"] == 1
    assert each["plan"] == 1
    assert each["split_spec"] <= 3 + 1  # for each backend, and for each key of xfail
    assert each.get("make_backend", 0) <= 1  # only where there are options
    assert few["read_settings"] == many["read_settings"] == 1


def _loaded(path: Path, body: str) -> set[str]:
    """The modules that pytest has loaded after collecting a file, in a process of its own."""
    (path / "test_it.py").write_text(body, encoding="utf-8")
    script = (
        "import sys, pytest\npytest.main(['-q', '--co', '-p', 'no:cacheprovider', 'test_it.py'])\nprint(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=path)
    assert run.returncode == 0, run.stderr
    assert "1 test" in run.stdout, run.stdout
    return set(run.stdout.splitlines()[-1].split())


def test_a_run_without_marked_tests_loads_only_what_is_listed(tmp_path: Path) -> None:
    loaded = {name for name in _loaded(tmp_path, "def test_plain(): ...") if name.startswith("pytest_torchexport")}
    assert loaded == AT_START


def test_collecting_loads_nothing_that_only_a_check_or_a_report_needs(tmp_path: Path) -> None:
    body = "import pytest\n@pytest.mark.export_equivalent(backends='trace')\ndef test_one(export_check): ..."
    loaded = _loaded(tmp_path, body)
    assert "pytest_torchexport.plugin.matrix" in loaded
    for package in ("check", "latency.measure", "latency.decide", "performance", "report.html", "report.json"):
        assert f"pytest_torchexport.{package}" not in loaded
    assert not loaded & {"torch", "numpy", "onnx", "onnxruntime", "jinja2"}
