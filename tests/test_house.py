"""The house rules of the package, measured: who may import whom, and what loading costs."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_torchexport

PACKAGE = Path(pytest_torchexport.__file__).parent

LAYERS = (
    ("measured",),
    ("outcome", "errors"),
    ("subject", "report", "environment"),
    ("backends", "inputs"),
    ("latency",),
    ("compare", "branches"),
    ("plan",),
    ("memory",),
    ("trials",),
    ("eager",),
    ("reference",),
    ("program",),
    ("diagnose",),
    ("localize", "reproduce"),
    ("explain",),
    ("draft",),
    ("counterexample",),
    ("judge",),
    ("performance",),
    ("check",),
    ("conformance",),
    ("plugin",),
)
"""From the ground up; a module imports from its own layer's folder and from layers below."""


def _imports(file: Path) -> set[str]:
    """First-level names below the package that a file imports when it runs (imports for type checking left out)."""
    found: set[str] = set()
    for node in _running(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pytest_torchexport"):
            rest = node.module.split(".")[1:]
            found |= {rest[0]} if rest else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("pytest_torchexport.")}
    return found


def _running(tree: ast.AST) -> list[ast.AST]:
    nodes: list[ast.AST] = []
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        nodes += [child, *_running(child)]
    return nodes


def _layer(name: str) -> int:
    return next(index for index, names in enumerate(LAYERS) if name in names)


def test_every_module_has_a_layer() -> None:
    names = {p.stem if p.is_file() else p.name for p in PACKAGE.iterdir() if p.suffix == ".py" or p.is_dir()}
    known = {name for names in LAYERS for name in names}
    assert names - {"__init__", "__pycache__"} == known


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down(file: Path) -> None:
    relative = file.relative_to(PACKAGE)
    own = relative.parts[0].removesuffix(".py")
    if own == "__init__":
        return
    public = {name.lower() for name in pytest_torchexport.__all__}
    for name in _imports(file) - {own}:
        if name.lower() in public and not (PACKAGE / name).exists() and not (PACKAGE / f"{name}.py").exists():
            continue
        assert _layer(name) < _layer(own) or {name, own} <= {"backends", "inputs"}, f"{relative} imports {name}"


@pytest.mark.parametrize("folder", ["report"])
def test_report_knows_only_outcome(folder: str) -> None:
    for file in (PACKAGE / folder).glob("*.py"):
        assert _imports(file) <= {"measured", "outcome", "errors", folder}


def test_compare_does_not_know_how_inputs_are_made() -> None:
    for file in (PACKAGE / "compare").glob("*.py"):
        assert "inputs" not in _imports(file)


def _modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_plugin_loads_without_torch() -> None:
    modules = _modules_after("import pytest_torchexport, pytest_torchexport.plugin")
    assert not modules & {"torch", "numpy", "onnx", "onnxruntime", "jinja2", "hypothesis"}


def test_engine_runs_without_pytest() -> None:
    code = (
        "import torch, pytest_torchexport as t\n"
        "assert t.check(torch.nn.Linear(2, 2), (torch.ones(1, 2),)).verdict is t.Verdict.EQUIVALENT"
    )
    assert not _modules_after(code) & {"pytest", "_pytest"}


def test_public_names_exist_and_are_all_listed() -> None:
    for name in pytest_torchexport.__all__:
        assert getattr(pytest_torchexport, name) is not None
    assert callable(pytest_torchexport.check)
    importlib.import_module("pytest_torchexport.check")  # binding the module must not hide the function
    assert callable(pytest_torchexport.check)
    with pytest.raises(AttributeError, match="no attribute 'chekc'"):
        pytest_torchexport.chekc  # noqa: B018
