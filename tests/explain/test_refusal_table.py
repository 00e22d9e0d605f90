"""The commonest refusals of each exporter: what is said, the user's line, and that what is advised works."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.export import Dim

from pytest_torchexport.backends.base import ExportRequest, FlatOutput
from pytest_torchexport.backends.registry import make_backend
from pytest_torchexport.explain.refusal import Refusal, explain
from pytest_torchexport.inputs import shapes
from pytest_torchexport.subject.call import Call
from tests.explain import refusal_models as models

if TYPE_CHECKING:
    from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore")

X = torch.rand(4, 3) + 0.1
ROWS = {"x": {0: Dim("n")}}


@dataclass(frozen=True)
class Case:
    """A refused model, what is said of it, and the model or backend that is advised."""

    model: type[nn.Module]
    said: str
    way: str
    mended: type[nn.Module] | None = None
    on: str = ""
    args: tuple[Any, ...] = (X,)
    mended_args: tuple[Any, ...] | None = None
    dynamic: Any = None
    mended_dynamic: Any = field(default=None)


BRANCH, LOOP, NUMBER = "branch or loop depends on the values", r"torch\.while_loop", "number is taken out of a tensor"
CAPTURED = [
    Case(models.Branch, BRANCH, r"torch\.cond.*torch\.where", models.BranchCond),
    Case(models.While, BRANCH, LOOP, models.WhileLoop),
    Case(models.Assertion, BRANCH, "assertion", models.AssertionOutside),
    Case(models.Item, NUMBER, "mask", models.ItemMask),
    Case(models.Float, NUMBER, r"x\.max\(\)", models.FloatTensor),
    Case(models.MathSqrt, NUMBER, r"torch\.sqrt", models.TorchSqrt),
    Case(models.Numpy, "NumPy", "torch's function", models.NumpyTorch),
    Case(models.Deepcopy, "reads the memory", r"x\.clone", models.Clone),
    Case(models.Boxed, "object of the class Box", "tuple or dict", models.TupleOut),
    Case(models.StringOut, "no tensor and no number", "tensors only", models.OneOut),
    Case(models.Fixed, "fixed to 4", r"leave it to -1", models.Inferred, dynamic=ROWS),
    Case(models.Sizes, "distinguishes sizes", r"Dim\('n', max=5\)", models.Sizes, dynamic=ROWS,
         mended_dynamic={"x": {0: Dim("n", max=5)}}),
    Case(models.Equal, "n, have to be equal", "same Dim", models.Equal, args=(X, X + 1),
         dynamic={"x": {0: Dim("n")}, "y": {0: Dim("m")}},
         mended_dynamic={"x": {0: (n := Dim("n"))}, "y": {0: n}}),
    Case(models.CustomOp, "refusal_models::twice", "register_fake", models.CustomOpKnown),
    Case(models.PairIn, "object of the class Pair", "tuples", models.TupleIn, args=(models.Pair(X, X),),
         mended_args=((X, X),)),
    Case(models.Scripted, "more positional", r"without torch\.jit\.script", models.Unscripted),
]  # fmt: skip
CASES: dict[str, list[Case]] = {
    "trace": [
        Case(models.DictOut, "returns a dict", r"Trace\(strict=False\)", models.DictOut, "trace:strict=false"),
        Case(models.NestedOut, "several types", "tuple", models.FlatOut),
        Case(models.StringOut, "no tensor", "script backend", models.StringOut, "script"),
        Case(models.IntOut, "no tensor", "script backend", models.IntOut, "script"),
        Case(models.NoneOut, "no tensor", "tensors only", models.OneOut),
        Case(models.Boxed, "no tensor", "tensors only", models.TupleOut),
        Case(models.PairOut, "object of a class", "tuple or a dict", models.TupleOut),
        Case(models.NothingOut, "returns nothing", "Return the tensor", models.OneOut),
        Case(models.Autograd, "autograd function Square", "is_tracing", models.AutogradPlain),
        Case(models.ListOfLayers, "does not know as its own", "ModuleList", models.ModuleList),
        Case(models.Hook, "backward hook", r"handle\.remove", models.HookRemoved),
    ],
    "script": [
        Case(models.Yield, "no generators", "list", models.Rows),
        Case(models.Lambda, "source of a lambda", "def", models.Def),
        Case(models.LambdaInside, "no lambdas", "def", models.Def),
        Case(models.Inner, "functions inside of functions", "outside of forward", models.Def),
        Case(models.VarArgs, r"no \*args", "Name every argument", models.OneOut),
        Case(models.KwArgs, r"no \*\*kwargs", "Name every argument", models.OneOut),
        Case(models.KeywordOnly, "keyword-only", "Name every argument", models.Positional),
        Case(models.NoAnnotation, "without annotation", "n: int = 2", models.Annotation),
        Case(models.NoneDefault, "None in the example", "Optional", models.OptionalDefault),
        Case(models.Global, "global variable", "attribute", models.Count),
        Case(models.NewAttribute, r"self\.last", "__init__", models.MadeAttribute),
        Case(models.Super, r"super\(\)", r"self\.features\(x\)", models.NamedMethod),
        Case(models.Try, "no try blocks", "if before", models.OneOut),
        Case(models.Set, "no sets", "list", models.ListForSet),
        Case(models.FormatSpec, "format specs", "out", models.NoFormatSpec),
        Case(models.IsInstance, "NumPy type", "before the call", models.OneOut),
        Case(models.Index, "written numbers", "enumerate", models.Enumerate),
        Case(models.ListOfLayersScripted, "plain list of modules", "ModuleList", models.ModuleList),
        Case(models.Options, r"self\.options", "one type|__init__", models.Scale),
        Case(models.Unpacked, "unpack", "Write the keywords out", models.WrittenOut),
        Case(models.Tolist, "tolist", r"List\[int\]", models.TolistTyped),
        Case(models.Numpy, "NumPy", "torch's function", models.NumpyTorch),
        Case(models.Autograd, "autograd function Square", "is_scripting", models.AutogradPlain),
        Case(models.Sleep, "cannot call sleep", "outside of forward", models.OneOut),
    ],
    "export": CAPTURED,
    "aoti": [
        case
        for case in CAPTURED
        if case.model not in (models.StringOut, models.Scripted, models.PairIn, models.Assertion)
    ],
    "compile:fullgraph=true": [
        Case(models.Branch, BRANCH, "fullgraph", models.Branch, "compile"),
        Case(models.While, BRANCH, LOOP, models.WhileLoop),
        Case(models.MathSqrt, NUMBER, "0-d tensor", models.TorchSqrt),
        Case(models.Print, "cannot trace print", "fullgraph", models.Print, "compile"),
        Case(models.Warn, r"cannot trace _warnings\.warn", "out of forward", models.OneOut),
        Case(models.Sleep, r"cannot trace time\.sleep", "out of forward", models.OneOut),
        Case(models.Seed, "does not trace manual_seed", "before the model", models.OneOut),
        Case(models.Disabled, r"torch\.compiler\.disable", "fullgraph", models.Disabled, "compile"),
        Case(models.Gradient, "takes a gradient", r"torch\.func\.grad", models.GradientFunction),
        Case(models.Deepcopy, "deepcopy", r"x\.clone", models.Clone),
        Case(models.Sparse, "sparse tensor", "fullgraph", models.Sparse, "compile"),
        Case(models.Scripted, "was scripted", r"without torch\.jit\.script", models.Unscripted),
        Case(models.CustomOp, "refusal_models::twice", "register_fake", models.CustomOpKnown),
    ],
    "onnx": [
        Case(models.Branch, BRANCH, "onnx-torchscript", models.BranchScripted, "onnx-torchscript"),
        Case(models.While, BRANCH, LOOP, models.WhileLoop),
        Case(models.MathSqrt, NUMBER, r"torch\.sqrt", models.TorchSqrt),
        Case(models.StringOut, "Python str", "leave it out", models.OneOut),
        Case(models.IntOut, "Python int", "leave it out", models.OneOut),
        Case(models.Boxed, "object of the class Box", "tuple or dict", models.TupleOut),
        Case(models.Bessel, r"prims\.bessel_j0", "custom_translation_table"),
        Case(models.Svd, r"_linalg_svd\.default", "custom_translation_table"),
        Case(models.Sparse, "_to_sparse", "other operators", models.OneOut),
        Case(models.Cdist, "_cdist_forward", "other operators", models.Distances),
        Case(models.Deepcopy, "reads the memory", r"x\.clone", models.Clone),
        Case(models.CustomOp, "refusal_models::twice", "register_fake"),
    ],
    "onnx-torchscript": [
        Case(models.Bessel, "special_bessel_j0", "register_custom_op_symbolic"),
        Case(models.Fft, "fft_fft", "onnx backend", models.Fft, "onnx"),
        Case(models.Quantile, "quantile", "onnx backend", models.Quantile, "onnx"),
        Case(models.Area, "adaptive_avg_pool2d", "onnx backend", models.Area, "onnx"),
        Case(models.Sparse, "to_sparse", "other|others", models.OneOut),
        Case(models.IntOut, "the constant 3", "tensors only", models.OneOut),
        Case(models.Boxed, "object of the class Box", "Pass and return tensors", models.TupleOut),
        Case(models.KeywordOnly, "more positional", r"without the `\*`", models.Positional),
        Case(models.ListOfLayers, "does not know as its own", "ModuleList", models.ModuleList),
        Case(models.Scripted, "was scripted", r"without torch\.jit\.script", models.Unscripted),
        Case(models.CustomOp, "your own operator refusal_models::twice", "register_custom_op_symbolic"),
    ],
    "onnx-torchscript:opset=11": [
        Case(models.GridSample, "only from opset 16", r"opset=16", models.GridSample, "onnx-torchscript:opset=16"),
    ],
}  # fmt: skip
SLOW = ("aoti", "compile:fullgraph=true")
"""Whose mended programs are compiled."""


def _pairs() -> list[Any]:
    return [
        pytest.param(backend, case, id=f"{backend}-{case.model.__name__}")
        for backend, cases in CASES.items()
        for case in cases
    ]


def _mended() -> list[Any]:
    return [
        pytest.param(
            case.on or backend,
            case,
            id=f"{backend}-{case.model.__name__}",
            marks=[pytest.mark.slow] * (backend in SLOW),
        )
        for backend, cases in CASES.items()
        for case in cases
        if case.mended is not None
    ]


def _run(backend: str, model: nn.Module, args: tuple[Any, ...], dynamic: Any, folder: Path) -> Any:
    """Export, save, load and call."""
    maker, call = make_backend(backend), Call(args, {})
    sizes = shapes.normalise(model, call, dynamic) if dynamic else None
    request = ExportRequest(model, call, sizes, torch.device("cpu"), folder)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            program = maker.export(request)
            exported = maker.load(program, maker.save(program, folder), request)
            result = exported(*args)
            exported.close()
        finally:
            torch._dynamo.reset()
    return result


def _refusal(backend: str, case: Case, folder: Path) -> Refusal:
    model = case.model()
    try:
        _run(backend, model, case.args, case.dynamic, folder)
    except Exception as error:  # noqa: BLE001 whatever it raises
        # As the engine sees it: this test's own frames are not the user's.
        kept = error.__traceback__
        while kept is not None and kept.tb_frame.f_code.co_filename == __file__:
            kept = kept.tb_next
        return explain(error.with_traceback(kept), backend=backend.partition(":")[0], model=model)
    pytest.fail(f"{backend} does not refuse {case.model.__name__}")


def _line_of(model: type[nn.Module]) -> int:
    lines = Path(models.__file__).read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"class {model.__name__}("))
    return next(i for i in range(start, len(lines)) if lines[i].endswith("# HERE")) + 1


@pytest.mark.parametrize(("backend", "case"), _pairs())
def test_a_refusal_stands_alone(backend: str, case: Case, tmp_path: Path) -> None:
    refusal = _refusal(backend, case, tmp_path)
    assert re.search(case.said, refusal.reason), refusal
    assert re.search(case.way, refusal.way_out or refusal.reason), refusal
    assert refusal.location is not None, refusal
    assert (Path(refusal.location.file).name, refusal.location.line) == ("refusal_models.py", _line_of(case.model))
    for noise in ("TORCHDYNAMO", "TORCH_LOGS", "<--- HERE", "\n", 'File "', "Traceback"):
        assert noise not in refusal.text
    assert len(refusal.text) < 700


@pytest.mark.parametrize(("backend", "case"), _mended())
def test_what_is_advised_works(backend: str, case: Case, tmp_path: Path) -> None:
    assert case.mended is not None
    model = case.mended()
    args = case.mended_args or case.args
    dynamic = case.mended_dynamic or (case.dynamic if case.mended is not case.model else None)
    result = _run(backend, model, args, dynamic, tmp_path)
    expected = model(*args)
    first = expected[0] if isinstance(expected, tuple) else expected["a"] if isinstance(expected, dict) else expected
    values = result.values if isinstance(result, FlatOutput) else result
    if isinstance(values, dict):
        values = list(values.values())
    got = values[0] if isinstance(values, (list, tuple)) else values
    torch.testing.assert_close(torch.as_tensor(got), first)


def test_every_exporter_has_ten() -> None:
    assert {backend.partition(":")[0] for backend in CASES} == {
        *("trace", "script", "export", "aoti", "compile", "onnx", "onnx-torchscript"),
    }
    assert min(len(cases) for backend, cases in CASES.items() if "opset" not in backend) >= 10
