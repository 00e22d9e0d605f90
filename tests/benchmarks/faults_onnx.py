"""Faults of ONNX files: edits of the nodes, of their attributes, and of the initializers."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tests.benchmarks.faults import Kind

KINDS: list[Kind[onnx.ModelProto, Any]] = []
Edit = Callable[["File", NodeProto, Random], None]
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


class File:
    """A model's graph, with what the edits ask of it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.constants = {one.name: one for one in model.graph.initializer}
        inferred = onnx.shape_inference.infer_shapes(model).graph
        self._types = {v.name: v.type.tensor_type for v in (*inferred.value_info, *inferred.output, *inferred.input)}

    def value(self, name: str) -> np.ndarray[Any, Any] | None:
        """A constant's values."""
        return numpy_helper.to_array(self.constants[name]).copy() if name in self.constants else None

    def set(self, name: str, values: np.ndarray[Any, Any]) -> None:
        """Give a constant other values, or make a new one."""
        tensor = numpy_helper.from_array(np.asarray(values, order="C"), name)
        if name in self.constants:
            self.constants[name].CopyFrom(tensor)
        else:
            self.graph.initializer.append(tensor)

    def shape(self, name: str) -> tuple[int, ...]:
        """A value's shape; empty if it is unknown."""
        if name in self.constants:
            return tuple(self.constants[name].dims)
        return tuple(dim.dim_value for dim in self._types[name].shape.dim) if name in self._types else ()

    def is_float(self, name: str) -> bool:
        if name in self.constants:
            return self.constants[name].data_type in _FLOATS
        return name in self._types and self._types[name].elem_type in _FLOATS

    def bypass(self, node: NodeProto, name: str) -> None:
        """Let the node do nothing but pass on one value."""
        node.op_type, node.domain = "Identity", ""
        del node.input[:], node.attribute[:]
        node.input.append(name)

    def before(self, node: NodeProto, index: int, *steps: tuple[str, dict[str, Any]]) -> None:
        """Pass one input of the node through further nodes."""
        place = list(self.graph.node).index(node)
        value = node.input[index]
        for number, (kind, attributes) in enumerate(steps):
            name = f"{node.name}_fault_{index}_{number}"
            more = attributes.pop("inputs", [])
            self.graph.node.insert(place + number, helper.make_node(kind, [value, *more], [name], name, **attributes))
            value = name
        node = self.graph.node[place + len(steps)]
        node.input[index] = value

    def after(self, name: str, *steps: tuple[str, dict[str, Any]]) -> None:
        """Pass an output of the graph through further nodes; it keeps its name."""
        inner = f"{name}_right"
        for node in self.graph.node:
            for names in (node.input, node.output):
                for i, one in enumerate(names):
                    if one == name:
                        names[i] = inner
        value = inner
        for number, (kind, attributes) in enumerate(steps):
            result = name if number == len(steps) - 1 else f"{name}_fault_{number}"
            more = attributes.pop("inputs", [])
            self.graph.node.append(helper.make_node(kind, [value, *more], [result], result, **attributes))
            value = result


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)


def put(node: NodeProto, **values: Any) -> None:
    """Change attributes of a node."""
    kept = [one for one in node.attribute if one.name not in values]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in values.items())])


def fault(
    name: str, *operators: str, fits: Callable[[File, NodeProto], bool] = lambda _, __: True
) -> Callable[[Edit], Edit]:
    """Enter a kind of fault at every node of these operators, where it fits."""

    def places(model: onnx.ModelProto) -> list[int]:
        file = File(model)
        return [i for i, node in enumerate(file.graph.node) if node.op_type in operators and fits(file, node)]

    def enter(edit: Edit) -> Edit:
        def plant(model: onnx.ModelProto, place: int, rng: Random) -> None:
            edit(File(model), model.graph.node[place], rng)

        KINDS.append(Kind(name, places, plant))
        return edit

    return enter


# --- precision --------------------------------------------------------------------------------------------------------


def _in_precision(name: str, kind: int) -> None:
    @fault(name, "Conv", "Gemm", "MatMul", fits=lambda file, node: file.is_float(node.output[0]))
    def _(file: File, node: NodeProto, rng: Random) -> None:
        own = TensorProto.FLOAT if _width(file, node) == 4 else TensorProto.FLOAT16
        file.before(node, 0, ("Cast", {"to": kind}), ("Cast", {"to": own}))


def _width(file: File, node: NodeProto) -> int:
    known = file._types.get(node.output[0])
    return 2 if known is not None and known.elem_type == TensorProto.FLOAT16 else 4


_in_precision("layer_fp16", TensorProto.FLOAT16)
_in_precision("layer_bf16", TensorProto.BFLOAT16)


@fault("gelu_erf_tanh", "Gelu")
def _(file: File, node: NodeProto, rng: Random) -> None:
    put(node, approximate="tanh" if attribute(node, "approximate", b"none") == b"none" else "none")


# --- constants --------------------------------------------------------------------------------------------------------


def _eps(name: str, change: Callable[[float], float]) -> None:
    @fault(name, "LayerNormalization", "InstanceNormalization", "BatchNormalization", "GroupNormalization")
    def _(file: File, node: NodeProto, rng: Random) -> None:
        put(node, epsilon=change(attribute(node, "epsilon", 1e-5)))


_eps("norm_eps_/10", lambda eps: eps / 10)
_eps("norm_eps_1e-3", lambda eps: 1e-3)


def _scalars(file: File, node: NodeProto) -> list[int]:
    found = [(i, file.value(name)) for i, name in enumerate(node.input)]
    return [i for i, v in found if v is not None and v.size == 1 and v.dtype.kind == "f" and math.isfinite(v.item())]


def _scalar(name: str, change: Callable[[float], float]) -> None:
    @fault(name, "Add", "Sub", "Mul", "Div", "Pow", fits=lambda file, node: bool(_scalars(file, node)))
    def _(file: File, node: NodeProto, rng: Random) -> None:
        index = _scalars(file, node)[0]
        value = file.value(node.input[index])
        assert value is not None
        new = f"{node.name}_fault_scalar"
        file.set(new, np.full(value.shape, change(value.item()), value.dtype))
        node.input[index] = new


_scalar("scalar_const_1%", lambda value: value * 1.01)
_scalar("scalar_const_fp16", lambda value: float(np.float16(value)))


@fault("clamp_bound", "Clip", fits=lambda file, node: any(file.value(name) is not None for name in node.input[1:]))
def _(file: File, node: NodeProto, rng: Random) -> None:
    index = rng.choice([i for i in (1, 2) if len(node.input) > i and file.value(node.input[i]) is not None])
    value = file.value(node.input[index])
    assert value is not None
    moved = value * 0.9 if index == 2 else value + 0.1 * max(abs(float(value)), 0.1)
    file.set(f"{node.name}_fault_bound", np.asarray(moved, value.dtype))
    node.input[index] = f"{node.name}_fault_bound"


# --- operators --------------------------------------------------------------------------------------------------------

_VARIANTS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "Relu": [("LeakyRelu", {"alpha": 0.01}), ("Elu", {})],
    "LeakyRelu": [("LeakyRelu", {"alpha": 0.01}), ("Relu", {})],
    "Sigmoid": [("HardSigmoid", {})],
    "HardSigmoid": [("Sigmoid", {}), ("HardSigmoid", {"alpha": 0.2})],
    "HardSwish": [("Relu", {})],
    "Tanh": [("Softsign", {})],
    "Softplus": [("Relu", {})],
    "Selu": [("Selu", {"gamma": 1.05}), ("Elu", {})],
    "Gelu": [("Relu", {})],
    "Mish": [("Relu", {})],
}


@fault("activation_variant", *_VARIANTS)
def _(file: File, node: NodeProto, rng: Random) -> None:
    kind, attributes = rng.choice(_VARIANTS[node.op_type])
    node.op_type = kind
    del node.attribute[:]
    put(node, **attributes)


_COMPARISONS = {"Greater": "GreaterOrEqual", "Less": "LessOrEqual", "GreaterOrEqual": "Greater", "LessOrEqual": "Less"}


@fault("cmp_strict", *_COMPARISONS)
def _(file: File, node: NodeProto, rng: Random) -> None:
    node.op_type = _COMPARISONS[node.op_type]


@fault("const_branch", "Where", fits=lambda file, node: _same_shapes(file, node.input[1], node.input[2]))
def _(file: File, node: NodeProto, rng: Random) -> None:
    file.bypass(node, node.input[rng.choice([1, 2])])


@fault("rounding_mode", "Floor", "Round", "Mod")
def _(file: File, node: NodeProto, rng: Random) -> None:
    if node.op_type == "Mod":
        put(node, fmod=1 - attribute(node, "fmod", 0))
    else:
        node.op_type = {"Floor": "Ceil", "Round": "Floor"}[node.op_type]


@fault(
    "padding",
    "Conv",
    fits=lambda file, node: any(attribute(node, "pads", [])) and len(set(attribute(node, "pads"))) == 1,
)
def _(file: File, node: NodeProto, rng: Random) -> None:
    pads = attribute(node, "pads")
    half = len(pads) // 2
    name = f"{node.name}_fault_pads"
    file.set(name, np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64))
    put(node, pads=[0] * len(pads))
    file.before(node, 0, ("Pad", {"inputs": [name], "mode": "edge"}))


@fault("align_corners", "Resize", "GridSample")
def _(file: File, node: NodeProto, rng: Random) -> None:
    if node.op_type == "GridSample":
        put(node, align_corners=1 - attribute(node, "align_corners", 0))
    else:
        put(node, coordinate_transformation_mode="align_corners")


@fault("resize_coord", "Resize")
def _(file: File, node: NodeProto, rng: Random) -> None:
    put(node, coordinate_transformation_mode="asymmetric")


@fault("resize_coord", "GridSample")
def _(file: File, node: NodeProto, rng: Random) -> None:
    put(node, **rng.choice([{"mode": "nearest"}, {"padding_mode": "border"}]))


@fault("bicubic_a", "Resize", fits=lambda file, node: attribute(node, "mode", b"") == b"cubic")
def _(file: File, node: NodeProto, rng: Random) -> None:
    put(node, cubic_coeff_a=-0.5)


# --- what a node is given ---------------------------------------------------------------------------------------------


@fault("drop_bias", "Conv", "Gemm", "LayerNormalization", fits=lambda _, node: len(node.input) > 2)
def _(file: File, node: NodeProto, rng: Random) -> None:
    del node.input[2:]


def _bias_of(file: File, node: NodeProto) -> int | None:
    """Which input of an addition is a vector of constants."""
    return next((i for i, name in enumerate(node.input) if len(file.shape(name)) == 1 and name in file.constants), None)


@fault("drop_bias", "Add", fits=lambda file, node: _bias_of(file, node) is not None and file.is_float(node.output[0]))
def _(file: File, node: NodeProto, rng: Random) -> None:
    bias = _bias_of(file, node)
    assert bias is not None
    file.bypass(node, node.input[1 - bias])


def _same_shapes(file: File, one: str, other: str) -> bool:
    return one != other and file.shape(one) == file.shape(other) != () and one not in file.constants


@fault(
    "drop_residual",
    "Add",
    fits=lambda file, node: (
        file.is_float(node.output[0]) and _same_shapes(file, *node.input) and len(file.shape(node.input[0])) > 1
    ),
)
def _(file: File, node: NodeProto, rng: Random) -> None:
    file.bypass(node, rng.choice(list(node.input)))


@fault("swap_operands", "Sub", "Div", "Where", fits=lambda file, node: _same_shapes(file, *node.input[-2:]))
def _(file: File, node: NodeProto, rng: Random) -> None:
    *rest, one, other = node.input
    del node.input[:]
    node.input.extend([*rest, other, one])


@fault("concat_order", "Concat", fits=lambda file, node: len({file.shape(n) for n in node.input}) < len(node.input))
def _(file: File, node: NodeProto, rng: Random) -> None:
    names = list(node.input)
    count = range(len(names))
    i, j = rng.choice([(i, j) for i in count for j in range(i) if file.shape(names[i]) == file.shape(names[j])])
    node.input[i], node.input[j] = names[j], names[i]


@fault("missing_mask", "And")
def _(file: File, node: NodeProto, rng: Random) -> None:
    file.bypass(node, node.input[0])


@fault("missing_mask", "Add", fits=lambda file, node: _is_mask(file, node.input[1]))
def _(file: File, node: NodeProto, rng: Random) -> None:
    file.bypass(node, node.input[0])


def _is_mask(file: File, name: str) -> bool:
    return any(node.op_type == "Where" and name in node.output for node in file.graph.node)


# --- axes, places, order ----------------------------------------------------------------------------------------------


@fault("softmax_dim", "Softmax", "LogSoftmax", fits=lambda file, node: len(file.shape(node.output[0])) > 1)
def _(file: File, node: NodeProto, rng: Random) -> None:
    rank = len(file.shape(node.output[0]))
    put(node, axis=rng.choice([axis for axis in range(rank) if axis != attribute(node, "axis", -1) % rank]))


def _last_two_swapped(rank: int) -> list[int]:
    return [*range(rank - 2), rank - 1, rank - 2]


@fault("wrong_layout", "Reshape", fits=lambda file, node: len(file.shape(node.input[0])) > 1)
def _(file: File, node: NodeProto, rng: Random) -> None:
    file.before(node, 0, ("Transpose", {"perm": _last_two_swapped(len(file.shape(node.input[0])))}))


def _turns(file: File, node: NodeProto) -> list[list[int]]:
    """Other orders of the axes that give the same shape."""
    perm, sizes = list(attribute(node, "perm")), file.shape(node.input[0])
    pairs = [(i, j) for i in range(len(perm)) for j in range(i) if sizes and sizes[perm[i]] == sizes[perm[j]] > 1]
    return [[perm[j] if k == i else perm[i] if k == j else p for k, p in enumerate(perm)] for i, j in pairs]


@fault("wrong_axis", "Transpose", fits=lambda file, node: bool(_turns(file, node)))
def _(file: File, node: NodeProto, rng: Random) -> None:
    put(node, perm=rng.choice(_turns(file, node)))


@fault("wrong_axis", "ReduceMean", "ReduceSum", fits=lambda file, node: len(file.shape(node.input[0])) > 1)
def _(file: File, node: NodeProto, rng: Random) -> None:
    shape = file.shape(node.input[0])
    file.set(f"{node.name}_fault_shape", np.array(shape, np.int64))
    turned = {"perm": _last_two_swapped(len(shape))}
    file.before(node, 0, ("Transpose", turned), ("Reshape", {"inputs": [f"{node.name}_fault_shape"]}))


@fault(
    "slice_off_by_one",
    "Slice",
    fits=lambda file, node: file.value(node.input[1]) is not None and file.value(node.input[2]) is not None,
)
def _(file: File, node: NodeProto, rng: Random) -> None:
    start, end, axes = (file.value(name) for name in node.input[1:4])
    assert start is not None
    assert end is not None
    size = file.shape(node.input[0])[int(axes.flat[0]) if axes is not None else 0]
    first, last, _ = slice(int(start.flat[0]), int(end.flat[0])).indices(size)
    by = 1 if last < size else -1 if first > 0 else 0
    for index, values, moved in ((1, start, first + by), (2, end, last + by)):
        values.flat[0] = moved
        file.set(f"{node.name}_fault_{index}", values)
        node.input[index] = f"{node.name}_fault_{index}"


@fault("gather_neighbor", "Gather", fits=lambda file, node: file.value(node.input[1]) is not None)
def _(file: File, node: NodeProto, rng: Random) -> None:
    index = file.value(node.input[1])
    assert index is not None
    size = file.shape(node.input[0])[attribute(node, "axis", 0)]
    file.set(f"{node.name}_fault_index", ((index + 1) % size).astype(index.dtype))
    node.input[1] = f"{node.name}_fault_index"


@fault("index_wrong", "Split", fits=lambda file, node: len({file.shape(name) for name in node.output}) == 1)
def _(file: File, node: NodeProto, rng: Random) -> None:
    i, j = rng.sample(range(len(node.output)), 2)
    node.output[i], node.output[j] = node.output[j], node.output[i]


# --- recurrent layers -------------------------------------------------------------------------------------------------


@fault("rnn_gate_order", "LSTM", "GRU")
def _(file: File, node: NodeProto, rng: Random) -> None:
    gates = 4 if node.op_type == "LSTM" else 3
    one, other = rng.sample(range(gates), 2)
    for index in (1, 2):
        weight = file.value(node.input[index])
        assert weight is not None
        blocks = np.split(weight, gates, axis=1)
        blocks[one], blocks[other] = blocks[other], blocks[one]
        file.set(node.input[index], np.concatenate(blocks, axis=1))


@fault("rnn_bias_drop", "LSTM", "GRU")
def _(file: File, node: NodeProto, rng: Random) -> None:
    node.input[3] = ""


@fault("rnn_linear_before_reset", "GRU")
def _(file: File, node: NodeProto, rng: Random) -> None:
    put(node, linear_before_reset=1 - attribute(node, "linear_before_reset", 0))


# --- weights ----------------------------------------------------------------------------------------------------------


def _weights(model: onnx.ModelProto) -> list[int]:
    sizes = {name for node in model.graph.node if node.op_type == "Resize" for name in node.input}
    found = enumerate(model.graph.initializer)
    return [i for i, one in found if one.data_type in _FLOATS and math.prod(one.dims) > 1 and one.name not in sizes]


def _weight(name: str, change: Callable[[np.ndarray[Any, Any], Random], Any]) -> None:
    def plant(model: onnx.ModelProto, place: int, rng: Random) -> None:
        tensor = model.graph.initializer[place]
        values = numpy_helper.to_array(tensor)
        changed = np.asarray(change(values.astype(np.float64), rng)).astype(values.dtype)
        tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))

    KINDS.append(Kind(name, _weights, plant))


def _one_element(factor: float) -> Callable[[np.ndarray[Any, Any], Random], Any]:
    def change(values: np.ndarray[Any, Any], rng: Random) -> Any:
        values.flat[rng.randrange(values.size)] *= 1 + factor
        return values

    return change


def _as_bfloat16(values: np.ndarray[Any, Any]) -> Any:
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


for _size in (0.1, 1e-3, 1e-5):
    _weight(f"weight_elem_{_size:g}", _one_element(_size))
for _size in (1e-3, 1e-5):
    _weight(f"weight_tensor_{_size:g}", lambda values, rng, size=_size: values * (1 + size))  # type: ignore[misc]
_weight("weight_stored_fp16", lambda values, rng: values.astype(np.float16))
_weight("weight_stored_bf16", lambda values, rng: _as_bfloat16(values))


# --- outputs ----------------------------------------------------------------------------------------------------------


def _output(name: str, steps: Callable[[File, str, int, Random], list[tuple[str, dict[str, Any]]]], kinds: Any) -> None:
    def places(model: onnx.ModelProto) -> list[int]:
        file = File(model)
        made = {one for node in model.graph.node for one in node.output}
        return [
            i
            for i, one in enumerate(model.graph.output)
            if one.name in made and one.type.tensor_type.elem_type in kinds and file.shape(one.name)
        ]

    def plant(model: onnx.ModelProto, place: int, rng: Random) -> None:
        file = File(model)
        value = model.graph.output[place]
        file.after(value.name, *steps(file, value.name, value.type.tensor_type.elem_type, rng))
        if name in ("output_dtype", "output_shape"):
            kind = value.type.tensor_type.elem_type
            value.type.CopyFrom(helper.make_tensor_type_proto(_OTHER[kind] if name == "output_dtype" else kind, None))

    KINDS.append(Kind(name, places, plant))


_OTHER: dict[int, int] = {
    TensorProto.FLOAT: TensorProto.FLOAT16,
    TensorProto.FLOAT16: TensorProto.FLOAT,
    TensorProto.INT64: TensorProto.INT32,
    TensorProto.INT32: TensorProto.INT64,
    TensorProto.BOOL: TensorProto.INT64,
}


def _factor(file: File, name: str, kind: int, rng: Random, place: Any) -> list[tuple[str, dict[str, Any]]]:
    factors = np.ones(file.shape(name), np.float32 if kind == TensorProto.FLOAT else np.float16)
    factors[place] = 1.01
    file.set(f"{name}_fault_factors", factors)
    return [("Mul", {"inputs": [f"{name}_fault_factors"]})]


def _pixel(file: File, name: str, kind: int, rng: Random) -> list[tuple[str, dict[str, Any]]]:
    return _factor(file, name, kind, rng, tuple(rng.randrange(size) for size in file.shape(name)))


def _channel(file: File, name: str, kind: int, rng: Random) -> list[tuple[str, dict[str, Any]]]:
    """The last channel: where scales differ, the models of the zoo have the smallest values there."""
    shape = file.shape(name)
    return _factor(file, name, kind, rng, (slice(None), -1) if len(shape) == 4 else (..., -1))


def _unsqueezed(file: File, name: str, kind: int, rng: Random) -> list[tuple[str, dict[str, Any]]]:
    file.set(f"{name}_fault_axes", np.array([0], np.int64))
    return [("Unsqueeze", {"inputs": [f"{name}_fault_axes"]})]


_output("one_pixel_wrong", _pixel, _FLOATS)
_output("small_channel_wrong", _channel, _FLOATS)
_output("output_dtype", lambda file, name, kind, rng: [("Cast", {"to": _OTHER[kind]})], tuple(_OTHER))
_output("output_shape", _unsqueezed, tuple(_OTHER))
