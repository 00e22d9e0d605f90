"""What a careful person writes without the plugin: the same exports, saved and loaded, the same number of runs.

Run as a script; prints the number of comparisons.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnxruntime
import torch

Run = Callable[..., Any]


def export(model: torch.nn.Module, args: tuple[torch.Tensor, ...], backend: str, folder: Path) -> Run:
    """The exported program, loaded again."""
    if backend == "compile":
        torch._dynamo.reset()
        return torch.compile(model)
    path = str(folder / "model")
    if backend == "onnx":
        torch.onnx.export(model, args, dynamo=True, verbose=False).save(path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [graph_input.name for graph_input in session.get_inputs()]
        return lambda *call: [
            torch.from_numpy(out)
            for out in session.run(None, {n: np.asarray(t) for n, t in zip(names, call, strict=True)})
        ]
    made = torch.jit.trace(model, args, check_trace=False) if backend == "trace" else torch.jit.script(model)
    torch.jit.save(made, path)
    return torch.jit.load(path)


def draw(args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Random arguments like the example's."""
    return tuple(
        torch.randn_like(arg) if arg.is_floating_point() else torch.randint(0, int(arg.max()), arg.shape)
        for arg in args
    )


def main() -> int:
    """Check every model on every backend."""
    warnings.simplefilter("ignore")
    compared = 0
    for make in models.MODELS.values():
        for backend in models.BACKENDS:
            torch.manual_seed(0)
            model, args = make()
            with tempfile.TemporaryDirectory() as folder, torch.no_grad():
                exported = export(model, args, backend, Path(folder))
                for call in [args, *(draw(args) for _ in range(models.N_INPUTS))]:
                    expected = model(*call)
                    actual = exported(*call)
                    expected = expected if isinstance(expected, tuple) else (expected,)
                    actual = actual if isinstance(actual, (tuple, list)) else (actual,)
                    for one, other in zip(expected, actual, strict=True):
                        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)
                        compared += 1
    return compared


if __name__ == "__main__":
    print(main())
