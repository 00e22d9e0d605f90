"""Shared by all tests.

pytester restores `sys.modules` after each run in this process, and a second import of torch crashes the interpreter:
what has native code or registers operators, and the engine, is imported before the first test.
"""

from __future__ import annotations

from importlib import import_module

_PRELOADED = """
    numpy torch torch._dynamo torch._inductor.codecache onnx onnxruntime hypothesis pytest_torchexport.check
"""
for _module in _PRELOADED.split():
    import_module(_module)

pytest_plugins = ["pytester"]
