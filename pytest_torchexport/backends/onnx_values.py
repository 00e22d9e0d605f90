"""torch tensors as ONNX Runtime's values and back, and a run whose values are in place before it begins."""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ELEMENT_TYPES: dict[torch.dtype, tuple[int, torch.dtype]] = {
    torch.float32: (1, torch.int32),
    torch.uint8: (2, torch.uint8),
    torch.int8: (3, torch.int8),
    torch.uint16: (4, torch.int16),
    torch.int16: (5, torch.int16),
    torch.int32: (6, torch.int32),
    torch.int64: (7, torch.int64),
    torch.bool: (9, torch.uint8),
    torch.float16: (10, torch.int16),
    torch.float64: (11, torch.int64),
    torch.uint32: (12, torch.int32),
    torch.uint64: (13, torch.int64),
    torch.bfloat16: (16, torch.int16),
    torch.float8_e4m3fn: (17, torch.uint8),
    torch.float8_e4m3fnuz: (18, torch.uint8),
    torch.float8_e5m2: (19, torch.uint8),
    torch.float8_e5m2fnuz: (20, torch.uint8),
}
"""Number of each element type in an ONNX file, and the type whose bits numpy can hold in its place."""
_DTYPE = {number: dtype for dtype, (number, _) in ELEMENT_TYPES.items()}


def ort_value(tensor: torch.Tensor) -> Any:
    """The tensor on the host, where it is not there already, as a value that ONNX Runtime takes."""
    import onnxruntime  # noqa: PLC0415 - an extra

    number, bits = ELEMENT_TYPES[tensor.dtype]
    held = tensor.cpu().contiguous().view(bits).numpy()
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(held, number)


def tensor_of(value: Any, device: torch.device) -> torch.Tensor:
    """A copy of a value on the host: byte by byte, since numpy does not know every element type."""
    dtype, shape = _DTYPE[value.element_type()], list(value.shape())
    tensor = torch.empty(shape, dtype=dtype)
    ctypes.memmove(tensor.data_ptr(), value.data_ptr(), tensor.nbytes)
    return tensor.to(device)


def to_numpy(value: Any) -> Any:
    """A tensor, or a list of such, as numpy has it."""
    return [to_numpy(part) for part in value] if isinstance(value, list) else value.cpu().contiguous().numpy()


def from_numpy(value: Any, device: torch.device) -> Any:
    """What `to_numpy` made of a tensor, or of a list of such."""
    if isinstance(value, list):
        return [from_numpy(part, device) for part in value]
    return torch.from_numpy(np.ascontiguousarray(value)).reshape(value.shape).to(device)


def bound_run(session: Any, feeds: Mapping[str, torch.Tensor], device: torch.device) -> Callable[[], Any]:
    """A run of the session with its inputs where the graph wants them, and its outputs left where the graph has them.

    ONNX Runtime copies an input that is bound to the device of the node which reads it, once. Where tensors are on the
    host and the device is another one, nothing is bound: then each run copies its inputs there and its outputs back.

    Args:
        session: the session; sequences can be neither its inputs nor its outputs.
        feeds: a tensor for each input.
        device: where the session runs.

    Returns:
        A function that runs it and returns the outputs: a list of values on the host, or the binding that holds them.
    """
    values = {name: ort_value(tensor) for name, tensor in feeds.items()}
    if device.type != "cpu" and feeds and all(tensor.device.type == "cpu" for tensor in feeds.values()):
        return functools.partial(session.run_with_ort_values, None, values)
    place = ("cuda", device.index or 0) if device.type == "cuda" else ("cpu", 0)
    binding = session.io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for one in session.get_outputs():
        binding.bind_output(one.name, *place)
    binding.synchronize_inputs()
    return functools.partial(_run, session, binding, values)


def _run(session: Any, binding: Any, kept: Mapping[str, Any]) -> Any:
    del kept  # the binding reads the memory of these values: they have to live as long as it does
    session.run_with_iobinding(binding)
    return binding


def bound_results(result: Any, names: list[str], device: torch.device) -> list[torch.Tensor]:
    """Copies of what a bound run has left, in the order of the outputs' names, one of which may be there twice."""
    if isinstance(result, list):
        return [tensor_of(value, device) for value in result]
    values = dict(zip(dict.fromkeys(names), result.get_outputs(), strict=True))
    on_host = {
        name: tensor_of(value, device) if value.device_name() == "cpu" else from_numpy(value.numpy(), device)
        for name, value in values.items()
    }
    return [on_host[name] for name in names]
