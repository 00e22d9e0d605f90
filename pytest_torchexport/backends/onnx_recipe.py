"""Source by which a script without this package runs an ONNX file on torch tensors of every element type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_torchexport.backends.onnx_values import ELEMENT_TYPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def onnx_recipe(
    *, provider: str, options: Mapping[str, str], complex_inputs: Sequence[str], outputs: Sequence[str]
) -> str:
    """The source of `load(path, device)`, which opens an ONNX file in ONNX Runtime.

    What it returns takes the values of the graph's inputs by name, and gives its outputs by name.

    Args:
        provider: the execution provider.
        options: of the provider.
        complex_inputs: names of the inputs that hold a complex tensor as pairs of real numbers.
        outputs: what each output is to eager: `tensor`, `complex` or `number`; empty if all are tensors.
    """
    facts = f"""
PROVIDER = ({provider!r}, {dict(options)!r})
COMPLEX_INPUTS = {list(complex_inputs)!r}
OUTPUTS = {list(outputs)!r}

# The number of an element type in an ONNX file, and a type with as many bits that numpy has as well.
TYPES = {{
{_types()}
}}
"""
    return f"\nimport ctypes\n\nimport onnxruntime\n{facts}{_SOURCE}"


def _types() -> str:
    """The engine's table as source: what the engine can pass, the script can pass."""
    return "\n".join(f"    {dtype}: ({number}, {bits})," for dtype, (number, bits) in ELEMENT_TYPES.items())


_SOURCE = '''\
DTYPES = {number: dtype for dtype, (number, _) in TYPES.items()}
NUMBERS = {
    "tensor(bool)": torch.bool,
    "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64,
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
}


def load(path, device):
    """The ONNX file as a function from a dict of inputs to a dict of outputs, both torch tensors."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, settings, providers=[PROVIDER], enable_fallback=0)
    types = {one.name: one.type for one in session.get_inputs()}
    names = [one.name for one in session.get_outputs()]
    sequences = any(kind.startswith("seq(") for kind in types.values())
    sequences = sequences or any(one.type.startswith("seq(") for one in session.get_outputs())

    def program(inputs):
        feeds = {name: _as_tensor(value, name, types) for name, value in inputs.items() if name in types}
        if sequences:  # which only the plain call carries
            results = session.run(None, {name: _to_numpy(value) for name, value in feeds.items()})
            results = [_from_numpy(value, device) for value in results]
        else:
            results = session.run_with_ort_values(None, {name: _to_ort(value) for name, value in feeds.items()})
            results = [_from_ort(value, device) for value in results]
        outputs = {}
        for index, (name, value) in enumerate(zip(names, results)):
            kind = OUTPUTS[index] if index < len(OUTPUTS) else "tensor"
            if kind == "number":
                value = value.item()
            elif kind == "complex":
                value = torch.view_as_complex(value.contiguous())
            # A graph may give out one value several times under one name.
            outputs[name if name not in outputs else f"{name}#{index}"] = value
        return outputs

    return program


def _as_tensor(value, name, types):
    if isinstance(value, (list, tuple)):
        return [_as_tensor(part, name, types) for part in value]
    if not isinstance(value, torch.Tensor):
        return torch.tensor(value, dtype=NUMBERS[types[name]])
    value = value.detach().resolve_conj().resolve_neg()
    return torch.view_as_real(value) if name in COMPLEX_INPUTS else value


def _to_ort(tensor):
    number, bits = TYPES[tensor.dtype]
    array = tensor.cpu().contiguous().view(bits).numpy()
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, number)


def _from_ort(value, device):
    tensor = torch.empty(list(value.shape()), dtype=DTYPES[value.element_type()])
    ctypes.memmove(tensor.data_ptr(), value.data_ptr(), tensor.nbytes)
    return tensor.to(device)


def _to_numpy(value):
    return [_to_numpy(part) for part in value] if isinstance(value, list) else value.cpu().contiguous().numpy()


def _from_numpy(value, device):
    if isinstance(value, list):
        return [_from_numpy(part, device) for part in value]
    return torch.from_numpy(np.ascontiguousarray(value)).reshape(value.shape).to(device)
'''
