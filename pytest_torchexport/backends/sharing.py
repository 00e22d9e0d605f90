"""One copy of the weights: a loaded program uses the memory of the user's own parameters where they are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pytest_torchexport.subject.state import identical

if TYPE_CHECKING:
    from collections.abc import Mapping


def share_parameters(loaded: torch.nn.Module, original: torch.nn.Module, *, prefix: str = "") -> None:
    """Let a loaded program's parameters be views of the user's, so that a large model is not held twice.

    Only a parameter with the same dtype, shape, device and bits is shared: a weight that the exporter changed stays
    what it is, and shows in the comparison. The parameters stay objects of their own, with gradients of their own.
    Two names of one parameter in the user's model (tied weights) are one parameter again, which saving undoes:
    the gradient is then that of the tied weight.

    Args:
        loaded: the program's module, `torch.nn.Module` or `ScriptModule`.
        original: the user's module.
        prefix: what the program's names have in front of the user's, without the dot.
    """
    theirs = dict(original.named_parameters(remove_duplicate=False))
    kept: dict[int, torch.nn.Parameter] = {}
    for name, parameter in list(loaded.named_parameters(remove_duplicate=False)):
        source = theirs.get(name.removeprefix(f"{prefix}.") if prefix else name)
        if source is None or not _same_memory_will_do(parameter, source):
            continue
        parameter.data = source.data
        first = kept.setdefault(id(source), parameter)
        if first is not parameter and not isinstance(loaded, torch.jit.ScriptModule):
            owner, _, attribute = name.rpartition(".")
            setattr(loaded.get_submodule(owner), attribute, first)


def free_buffers(loaded: torch.nn.Module) -> None:
    """Let the buffers be tensors of their own, in the same memory, where a file was read into views.

    A view cannot be detached: what one run computed a buffer from would be part of the next run's gradients.
    """
    for part in loaded.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer._is_view():
                part._buffers[name] = buffer.detach()


def _same_memory_will_do(parameter: torch.Tensor, source: torch.Tensor) -> bool:
    if parameter.data_ptr() == source.data_ptr() or source.layout is not torch.strided or source.is_quantized:
        return False
    return parameter.stride() == source.stride() and identical(parameter.detach(), source.detach())


def by_name(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors by the user's names: without the prefix of a wrapper that the exporter needed."""
    return {name.removeprefix(f"{prefix}.") if prefix else name: tensor for name, tensor in tensors.items()}
