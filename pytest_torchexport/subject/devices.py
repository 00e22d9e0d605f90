"""Devices: which are here, a model placed on one, and the numerics flags that both sides ran under."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.errors import UsageError
from pytest_torchexport.subject import containers

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = ("cpu", "cuda", "mps", "xpu")


def parse(name: str) -> torch.device:
    """The device of a name such as `cpu`, `cuda`, `cuda:1`, `mps`, `xpu`.

    Raises:
        UsageError: no such device name; lists the accepted ones.
    """
    kind, colon, index = name.partition(":")
    if kind not in KINDS or (colon and not index.isdecimal()):
        msg = f"unknown device {name!r}. Accepted: {', '.join(KINDS)}, or one of several by its number: cuda:1."
        raise UsageError(msg)
    return torch.device(kind, int(index)) if index else torch.device(kind)


def unavailable(device: torch.device) -> str | None:
    """Why the device cannot be used on this machine; None if it can."""
    if device.type == "cpu":
        return None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            built = "torch was built without CUDA" if torch.version.cuda is None else "no usable NVIDIA GPU was found"
            return f"device {device} is not available: {built}"
        count = torch.cuda.device_count()
    elif device.type == "mps":
        count = 1 if torch.backends.mps.is_available() else 0
    else:
        count = torch.xpu.device_count() if torch.xpu.is_available() else 0
    if (device.index or 0) >= count:
        return f"device {device} is not available: this machine has {count} {device.type} device(s)"
    return None


def available() -> list[str]:
    """The kinds of device that this machine has, `cpu` first."""
    return [kind for kind in KINDS if unavailable(torch.device(kind)) is None]


def place_model(
    model: Callable[..., Any], device: torch.device, dtype: torch.dtype | None = None
) -> Callable[..., Any]:
    """The model with its parameters and buffers on the device, floating ones in the dtype if one is given.

    The user's model is left as it is: where it is not right already, a copy is made whose tensors are the moved ones,
    so that nothing is held twice on one device.

    Raises:
        UsageError: the model has to move and cannot be copied.
    """
    if not isinstance(model, torch.nn.Module):
        return model
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    moved = {key: containers.place(tensor, device, dtype) for key, tensor in tensors.items()}
    if all(moved[key] is tensor for key, tensor in tensors.items()):
        return model
    memo: dict[int, Any] = {}
    for key, tensor in tensors.items():
        placed = moved[key]
        if isinstance(tensor, torch.nn.Parameter) and not isinstance(placed, torch.nn.Parameter):
            placed = torch.nn.Parameter(placed, requires_grad=tensor.requires_grad)
        memo[key] = placed.detach() if placed is tensor and not isinstance(tensor, torch.nn.Parameter) else placed
    if isinstance(model, torch.jit.ScriptModule):
        return copy.deepcopy(model).to(device=device, dtype=dtype)
    try:
        twin: torch.nn.Module = copy.deepcopy(model, memo)
    except Exception as error:
        msg = (
            f"the model has to move to {device}{f' and {dtype}' if dtype else ''} for this test, and cannot be copied "
            f"({type(error).__name__}: {error}). Build it there: Model().to({str(device)!r})."
        )
        raise UsageError(msg) from error
    return twin


def numerics_flags() -> dict[str, Any]:
    """The global settings that decide how exactly torch computes; recorded for eager and for the exported program."""
    return {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cuda.matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "mkldnn": torch._C._has_mkldnn and torch.backends.mkldnn.enabled,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "default_dtype": str(torch.get_default_dtype()),
        "threads": torch.get_num_threads(),
    }


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; errors of its kernels surface here."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
