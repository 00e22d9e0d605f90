"""An ONNX file's results in float64, by the reference implementation of the onnx package."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

_LOW = (TensorProto.FLOAT, TensorProto.FLOAT16)


def doubled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in float64, with every cast inside of it; what a planted fault rounds stays rounded."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    graph = twin.graph
    sizes = {name for node in graph.node if node.op_type == "Resize" for name in node.input[1:]}
    for tensor in graph.initializer:
        if tensor.data_type in _LOW and tensor.name not in sizes:
            _widen(tensor)
    for value in graph.input:
        if value.type.tensor_type.elem_type in _LOW:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in graph.node:
        if node.op_type == "ConstantOfShape" and not node.attribute:  # zeros, in float32 by default
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1))))
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type in _LOW:
                _widen(attribute.t)
            rounds = "_fault_" in node.name and node.name.endswith("_0")
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in _LOW and not rounds:
                attribute.i = TensorProto.DOUBLE
    del graph.value_info[:]
    return twin


def _widen(tensor: TensorProto) -> None:
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


def in_double(twin: onnx.ModelProto, inputs: dict[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """The results of a graph that `doubled` made, on arguments by the names of its inputs.

    Raises:
        Exception: the reference implementation lacks an operator, or a form of it.
    """
    known = {value.name for value in twin.graph.input}
    wide = {
        name: value.astype(np.float64) if value.dtype in (np.float32, np.float16) else value
        for name, value in inputs.items()
        if name in known
    }
    with np.errstate(all="ignore"):
        return [np.asarray(result) for result in ReferenceEvaluator(twin).run(None, wide)]
