"""Run a program, eager or exported, on a sequence of calls and record all that it did."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pytest_torchexport.subject import containers, devices

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from pytest_torchexport.subject.call import Call


@dataclass
class Record:
    """What a program did on a sequence of calls, from its starting state.

    Attributes:
        outputs: the output of each call, detached.
        arguments: each call's arguments as the program left them.
        state: the entries of the state that differ from the starting state after the last call, by name.
        gradients: gradient of a fixed random projection of all outputs, by `gradient of NAME`.
        error: what the program raised; the lists then hold the calls before it.
    """

    outputs: list[Any] = field(default_factory=list)
    arguments: list[Call] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    error: Exception | None = None


@contextlib.contextmanager
def fixed_rng(seed: int, device: torch.device) -> Iterator[None]:
    """Python's, numpy's and torch's global random generators at a fixed state, put back afterwards."""
    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(
        devices=[device.index or 0] if device.type != "cpu" else [],
        device_type=device.type if device.type != "cpu" else "cuda",
    ):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)


def run(
    program: Callable[..., Any],
    calls: Iterable[Call],
    *,
    device: torch.device,
    seed: int = 0,
    keep_apart: Iterable[torch.Tensor] = (),
    parameters: Mapping[str, torch.Tensor] | None = None,
    names: list[str] | None = None,
    needs_grad_mode: bool = False,
    mode: contextlib.AbstractContextManager[Any] | None = None,
) -> Record:
    """Call the program once per call, each on its own clone of the arguments.

    Args:
        program: the model or an `Exported`.
        calls: the sequence.
        device: for the random generators.
        seed: state of the random generators before the first call.
        keep_apart: tensors that later change under an output which is a view of them; such outputs are cloned.
        parameters: take gradients with respect to these and to every floating input; None takes none.
        names: argument names of the calls' positional arguments, for the names of gradients.
        needs_grad_mode: run with autograd on although no gradients are asked for (forces from energies).
        mode: entered around the program's own work in each call.

    Returns:
        The record, without `state`, which the caller reads where it knows the program to keep it.
    """
    record = Record()
    sequence = list(calls)
    storages = {_storage(tensor) for tensor in keep_apart}
    with fixed_rng(seed, device):
        for index, call in enumerate(sequence):
            mine = call.clone()
            try:
                with torch.set_grad_enabled(parameters is not None or needs_grad_mode):
                    if parameters is not None:
                        _require_grad(mine)
                    with mode or contextlib.nullcontext():
                        output = program(*mine.args, **mine.kwargs)
                        if parameters is not None and index == len(sequence) - 1:
                            record.gradients = gradients(output, mine, parameters, names or [])
                devices.synchronize(device)
            except Exception as error:  # noqa: BLE001 whatever the program raises is a result
                record.error = error
                return record
            record.outputs.append(_detached(output, storages, clone_all=len(sequence) > 1))
            record.arguments.append(mine)
    return record


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else id(tensor)


def _detached(output: Any, storages: set[int], *, clone_all: bool) -> Any:
    def one(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf.copy() if isinstance(leaf, np.ndarray) else leaf
        if clone_all or _storage(leaf) in storages:
            return containers.clone_tensor(leaf.detach())
        return leaf.detach()

    return containers.rebuild(output, one)


def _require_grad(call: Call) -> None:
    for _, tensor in containers.tensors((call.args, dict(call.kwargs))):
        if tensor.is_floating_point() and tensor.is_leaf:
            tensor.requires_grad_()


def gradients(
    output: Any, call: Call, parameters: Mapping[str, torch.Tensor], names: list[str]
) -> dict[str, torch.Tensor]:
    """Gradients of a scalar made of all floating outputs, with respect to the parameters and the floating inputs.

    The scalar is the sum of every output element times a fixed random weight: a plain sum would hide errors that
    cancel (the elements of a softmax always sum to one). Where the scalar does not depend on something, its gradient
    is left out.
    """
    total: torch.Tensor | None = None
    for index, (_, leaf) in enumerate(containers.tensors(output)):
        if leaf.requires_grad:
            real = torch.view_as_real(leaf) if leaf.is_complex() else leaf
            weights = torch.rand(real.shape, generator=torch.Generator().manual_seed(index), dtype=torch.float64) + 0.5
            part = (real * weights.to(real)).sum()
            total = part if total is None else total + part.to(total)
    wanted = {f"gradient of {name}": tensor for name, tensor in parameters.items() if tensor.requires_grad}
    labels = [*names, *(f"args_{i}" for i in range(len(names), len(call.args)))]
    arguments = dict(zip(labels, call.args, strict=False)) | dict(call.kwargs)
    for name, value in arguments.items():
        wanted |= {f"gradient of {path}": t for path, t in containers.tensors(value, name) if t.requires_grad}
    if total is None or not wanted:
        return {}
    found: tuple[torch.Tensor | None, ...] = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    return {name: grad.detach() for name, grad in zip(wanted, found, strict=True) if grad is not None}
