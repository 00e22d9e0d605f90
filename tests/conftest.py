"""Shared by all tests.

pytester restores `sys.modules` after each run in this process, and a second import of torch crashes the interpreter:
what has native code or registers operators is imported before the first test. So is all of the package: a module
that is imported a second time holds other classes than the one before.
"""

from __future__ import annotations

import pkgutil
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pytest_torchexport
from pytest_torchexport.backends import registry

if TYPE_CHECKING:
    from collections.abc import Iterator

for _module in ("numpy", "torch", "torch._dynamo", "onnx", "onnxruntime", "hypothesis"):
    import_module(_module)
for _found in pkgutil.walk_packages(pytest_torchexport.__path__, "pytest_torchexport."):
    import_module(_found.name)
import_module("torch._dynamo").list_backends()  # imports the compilers

pytest_plugins = ["pytester"]

# So that models which several tests share can be imported by their full names.
_ROOT = str(Path(__file__).parents[1])
if _ROOT not in sys.path:
    sys.path.append(_ROOT)


@pytest.fixture(autouse=True)
def _registered_backends() -> Iterator[None]:
    """What a test registers is gone after it: other tests list the backends."""
    before = dict(registry._registered)
    yield
    registry._registered.clear()
    registry._registered.update(before)
