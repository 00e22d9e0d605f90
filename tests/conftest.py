"""Shared by all tests.

pytester restores `sys.modules` after each run in this process, and a second import of torch crashes the interpreter:
what has native code or registers operators is imported before the first test. So is all of the package: a module
that is imported a second time holds other classes than the one before.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

import pytest_torchexport

for _module in ("numpy", "torch", "torch._dynamo", "onnx", "onnxruntime", "hypothesis"):
    import_module(_module)
for _found in pkgutil.walk_packages(pytest_torchexport.__path__, "pytest_torchexport."):
    import_module(_found.name)
import_module("torch._dynamo").list_backends()  # imports the compilers

pytest_plugins = ["pytester"]
