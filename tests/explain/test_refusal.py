# mypy: disable-error-code="no-untyped-def,no-untyped-call,index,no-any-return,union-attr"
# TorchScript reads comments: `type: ignore` inside a model that is scripted would be a type comment to it.
from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

from pytest_torchexport.errors import ExportRefused, NothingCompiled
from pytest_torchexport.explain.refusal import Refusal, explain
from pytest_torchexport.outcome import Location

if TYPE_CHECKING:
    from collections.abc import Callable

# The line that an exporter refuses carries the comment `HERE` in the models below.


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:  # HERE
            return x + 1
        return x - 1


class Number(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = int(x.sum().item())  # HERE
        return x[:n]


class Baked(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(4, 3) + 1  # HERE


class Sizes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.shape[0] > 5 else x


class Numpy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.sin(x.detach().numpy()))  # HERE


class Printing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        print(end="")  # HERE
        return y


class SetOfTwo(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        s = {1, 2}  # HERE
        return x + len(s)


class NoAnnotation(nn.Module):
    def forward(self, x, names):
        for name in names.split(","):  # HERE
            x = x + len(name)
        return x


class MixedDict(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        d = {}
        d["a"] = x
        d[1] = x  # HERE
        return d


class LambdaInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = lambda x: x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(x)  # HERE


class Keywords(nn.Module):
    def forward(self, x: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        return x + named["z"]


class DictOut(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"a": x + 1}


class StringOut(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, str]:
        return x, "s"


class Bessel(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)  # HERE


X = torch.rand(4, 3)
BATCH = {"x": {0: Dim("b")}}
BRANCHES = "branch or loop depends on the values of a tensor.*torch.where"


def _export(model: nn.Module, **options: Any) -> Any:
    return torch.export.export(model, (X,), **options)


def _onnx(model: nn.Module) -> Any:
    return torch.onnx.export(model, (X,), dynamo=True, verbose=False)


def _fullgraph(model: nn.Module) -> Any:
    try:
        return torch.compile(model, backend="eager", fullgraph=True)(X)
    finally:
        torch._dynamo.reset()


CASES: dict[str, tuple[Callable[[nn.Module], Any], nn.Module, str]] = {
    "export-branch": (_export, Branch(), BRANCHES),
    "export-strict-branch": (lambda model: _export(model, strict=True), Branch(), BRANCHES),
    "export-number": (_export, Number(), "number is taken out of a tensor"),
    "export-baked": (lambda model: _export(model, dynamic_shapes=BATCH, strict=True), Baked(), "constant \\(4\\)"),
    "export-sizes": (lambda model: _export(model, dynamic_shapes=BATCH), Sizes(), r"b = Dim\('b', max=5\)"),
    "export-kwargs": (
        lambda model: torch.export.export(
            model, (X,), {"z": X}, dynamic_shapes={"x": {0: Dim("b")}, "named": {"z": {0: Dim("b")}}}
        ),
        Keywords(),
        r"\*\*kwargs.*signature",
    ),
    "export-numpy": (_export, Numpy(), "NumPy"),
    "compile-print": (_fullgraph, Printing(), "print.*fullgraph"),
    "compile-branch": (_fullgraph, Branch(), BRANCHES),
    "script-set": (torch.jit.script, SetOfTwo(), "no sets.*Set aren't supported"),
    "script-annotation": (torch.jit.script, NoAnnotation(), "without annotation.*signature"),
    "script-dict": (torch.jit.script, MixedDict(), "several types"),
    "script-lambda": (torch.jit.script, LambdaInside(), "source of a lambda.*def"),
    "trace-int": (lambda model: torch.jit.trace(model, (3,)), Branch(), "cannot be traced.*script"),
    "trace-dict": (lambda model: torch.jit.trace(model, (X,)), DictOut(), r"Trace\(strict=False\)"),
    "trace-string": (lambda model: torch.jit.trace(model, (X,)), StringOut(), "tensors only"),
    "onnx-branch": (_onnx, Branch(), BRANCHES),
    "onnx-operator": (_onnx, Bessel(), "bessel_j0.*custom_translation_table"),
}
WITHOUT_LINE = {"export-sizes", "export-kwargs", "trace-int", "trace-dict", "trace-string"}
"""Refusals that happen after or before forward, and whose text names no line."""


def _refusal(do: Callable[[nn.Module], Any], model: nn.Module) -> BaseException:
    """What the exporter raises, with the traceback from the exporter on, as the engine sees it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception) as caught:  # noqa: PT011 whatever it raises
            do(model)
    error = caught.value
    while error.__traceback__ is not None and error.__traceback__.tb_frame.f_code.co_name in (
        *("_refusal", "<lambda>", "_export", "_onnx", "_fullgraph"),
    ):
        error.__traceback__ = error.__traceback__.tb_next
    return error


def _marked_line(model: nn.Module) -> int:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"class {type(model).__name__}("))
    return next(i for i in range(start, len(lines)) if lines[i].endswith("# HERE")) + 1


@pytest.mark.parametrize("case", CASES)
def test_what_the_user_reads(case: str) -> None:
    do, model, expected = CASES[case]
    refusal = explain(_refusal(do, model))
    text, location = refusal.text, refusal.location
    assert re.search(expected, text), text
    assert len(text) < 650
    for noise in ("TORCHDYNAMO", "TORCH_LOGS", "<--- HERE", "aten::", "Exception summary", "\n", "File "):
        assert noise not in text.removeprefix("Exporting the operator 'aten::")
    if case in WITHOUT_LINE:
        assert location is None
    else:
        assert location is not None
        assert (location.file, location.line) == (__file__, _marked_line(model))
        assert location.source.endswith("# HERE")


def test_an_unknown_error_keeps_its_words_and_its_line() -> None:
    class Raising(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyError("weights")  # noqa: EM101

    refusal = explain(_refusal(_export, Raising()))
    assert refusal.text == "KeyError: 'weights'."
    assert refusal.location is not None
    assert refusal.location.source.startswith('raise KeyError("weights")')


def test_the_root_cause_speaks() -> None:
    step, whole = ValueError("step 2 of 3 failed"), RuntimeError("Failed to convert. Please file an issue.")
    step.__cause__ = RuntimeError("the converter has no rule for foo")
    whole.__cause__ = step
    assert explain(whole) == Refusal("the converter has no rule for foo.")


def test_an_endless_text_is_cut() -> None:
    refusal = explain(RuntimeError("no room for " + "word " * 1000))
    assert refusal.text.startswith("no room for word")
    assert refusal.text.endswith("…")
    assert len(refusal.text) <= 400
    assert refusal.location is None


def test_an_empty_text_says_the_type() -> None:
    assert explain(NotImplementedError()).text == "NotImplementedError."


def test_what_a_backend_states_itself_is_kept() -> None:
    here = Location("model.py", 3, "x = 1")
    assert explain(ExportRefused("no such thing", here)) == Refusal("no such thing", here)
    limit = NothingCompiled("the recompile limit was reached", here)
    limit.__cause__ = RuntimeError("Dynamo recompile limit exceeded")
    assert explain(limit) == Refusal("the recompile limit was reached", here)


def test_the_stack_of_a_running_script_leads_to_its_innermost_line() -> None:
    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(7)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(Fails())
    refusal = explain(_refusal(lambda _: scripted(X), scripted))
    assert "shape '[7]' is invalid" in refusal.text
    assert refusal.location is not None
    assert refusal.location.source == "return x.view(7)"
