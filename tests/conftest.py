"""Shared by all tests.

pytester restores `sys.modules` after each run in this process, and a second import of torch crashes the interpreter:
what has native code or registers operators, and the engine, is imported before the first test.
"""

from __future__ import annotations

from importlib import import_module

for _module in ("numpy", "torch", "torch._dynamo", "onnx", "onnxruntime", "hypothesis", "pytest_torchexport.check"):
    import_module(_module)
import_module("torch._dynamo").list_backends()  # imports the compilers

pytest_plugins = ["pytester"]
