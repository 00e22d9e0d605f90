"""A dozen planted faults that stay red and a dozen right programs that stay green; the benchmark has many more."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest
import torch

from pytest_torchexport import Verdict
from pytest_torchexport.backends.registry import make_backend
from tests.benchmarks import faults_fx, faults_onnx
from tests.benchmarks.correct import Decomposed, Elsewise, OnnxAsWritten, without_onednn
from tests.benchmarks.faults import chosen
from tests.benchmarks.measured import Architecture
from tests.benchmarks.planted import PlantedGraph, PlantedOnnx

if TYPE_CHECKING:
    from pytest_torchexport.backends.base import Backend

pytestmark = pytest.mark.filterwarnings("ignore")  # what exporters and other libraries say is not what is tested
architecture = functools.cache(Architecture)

IN_GRAPHS = [
    ("vit", "layer_fp16"),
    ("vit", "gelu_erf_tanh"),
    ("vit", "attn_scale_d+1"),
    ("resnet", "norm_eps_1e-3"),
    ("resnet", "padding"),
    ("gru", "rnn_linear_before_reset"),
    ("srcnn_bicubic", "bicubic_a"),
    ("mixed_scales", "small_channel_wrong"),
    ("one_pass_variance", "one_pixel_wrong"),
]
IN_FILES = [
    ("unet", "resize_coord"),
    ("resnet", "weight_stored_bf16"),
    ("vit", "norm_eps_1e-3"),
    ("mixed_scales", "one_pixel_wrong"),
]


@pytest.mark.parametrize(("name", "kind"), IN_GRAPHS)
def test_a_fault_in_a_graph_is_red(name: str, kind: str) -> None:
    made = architecture(name)
    kinds = [one for one in faults_fx.KINDS if one.name == kind]
    fault, *_ = chosen(kinds, made.graph, per_kind=1, seed=name)
    assert made.size_of(fault) > 10, "the fault itself is clear in float64"
    outcome = made.check(PlantedGraph(made.graph, fault.plant), explained=kind == "bicubic_a")
    assert outcome.verdict is Verdict.MISMATCH, outcome.message


@pytest.mark.parametrize(("name", "kind"), IN_FILES)
def test_a_fault_in_a_file_is_red(name: str, kind: str) -> None:
    made = architecture(name)
    kinds = [one for one in faults_onnx.KINDS if one.name == kind]
    fault, *_ = chosen(kinds, made.onnx_file, per_kind=1, seed=name)
    outcome = made.check(PlantedOnnx(made.onnx_folder, fault.plant), explained=name == "unet")
    assert outcome.verdict is Verdict.MISMATCH, outcome.message


RIGHT: list[tuple[str, str | Backend]] = [
    ("resnet", "trace"),
    ("resnet", "trace:optimize_for_inference=true"),
    ("resnet", Elsewise("without-onednn", without_onednn)),
    ("vit", Decomposed()),
    ("vit", "onnx"),
    ("gru", "script:freeze=true"),
    ("gru", "onnx-torchscript"),
    ("unet", OnnxAsWritten()),
    ("one_pass_variance", "onnx"),
    ("one_pass_variance", "compile:backend=aot_eager"),
    ("mixed_scales", "onnx"),
    ("srcnn_bicubic", Decomposed()),
    ("float16_attention", "trace:optimize_for_inference=true"),
]


@pytest.mark.parametrize(("name", "backend"), RIGHT, ids=lambda one: one if isinstance(one, str) else one.id)
def test_a_right_program_is_green(name: str, backend: str | Backend) -> None:
    outcome = architecture(name).check(make_backend(backend))
    assert outcome.verdict is Verdict.EQUIVALENT, outcome.message


def test_some_right_programs_differ_in_their_bits() -> None:
    """Otherwise the greens say nothing about the rule."""
    made = architecture("vit")
    judged = made.judge(make_backend("onnx"))
    assert not judged.same_bits
    assert all(judged.agrees["calibrated"])
    assert torch.get_default_dtype() is torch.float32
