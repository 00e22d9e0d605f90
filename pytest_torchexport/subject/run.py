"""Run a program, eager or exported, on a sequence of calls and record all that it did."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

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
    python, array, cpu = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    # Only the generators that the check uses: seeding all of them would start the CUDA context of a CPU check.
    on_device = _DeviceGenerator(device) if device.type != "cpu" else None
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if on_device is not None:
        on_device.seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
        torch.default_generator.set_state(cpu)
        if on_device is not None:
            on_device.restore()


class _DeviceGenerator:
    """The global random generator of one accelerator, and its state when this object was made."""

    def __init__(self, device: torch.device) -> None:
        self._module: Any = torch.get_device_module(device)
        # MPS is one device with one generator, and its functions take no device.
        self._device = () if device.type == "mps" else (device,)
        self._saved: torch.Tensor = self._module.get_rng_state(*self._device)

    def seed(self, seed: int) -> None:
        if not self._device:
            self._module.manual_seed(seed)
            return
        with self._module.device(self._device[0]):
            self._module.manual_seed(seed)

    def restore(self) -> None:
        self._module.set_rng_state(self._saved, *self._device)


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
    clone_all: bool = False,
    writes_arguments: bool = False,
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
        clone_all: copy every output at once, for a program that hands out memory which it writes to again.
        writes_arguments: the program changes an argument in place: where gradients are taken, it gets tensors that
            autograd lets it write to.

    Returns:
        The record, without `state`, which the caller reads where it knows the program to keep it.
    """
    record = Record()
    sequence = list(calls)
    storages = {storage_of(tensor) for tensor in keep_apart}
    clone_all = clone_all or len(sequence) > 1
    # Tensors made under the caller's inference_mode could take no part in autograd, and state of theirs not be written.
    with torch.inference_mode(mode=False), fixed_rng(seed, device):
        for index, call in enumerate(sequence):
            mine = given = call.clone()
            try:
                with torch.set_grad_enabled(parameters is not None or needs_grad_mode):
                    if parameters is not None:
                        require_grad(mine)
                        given = writable(mine) if writes_arguments else mine
                    with mode or contextlib.nullcontext():
                        output = program(*given.args, **given.kwargs)
                        if parameters is not None and index == len(sequence) - 1:
                            record.gradients = gradients(output, mine, parameters, names or [])
                devices.synchronize(device)
            except Exception as error:  # noqa: BLE001 whatever the program raises is a result
                record.error = error
                return record
            record.outputs.append(_detached(output, storages, clone_all=clone_all))
            record.arguments.append(given if given is mine else _without_graph(given))
    return record


def storage_of(tensor: torch.Tensor) -> int:
    """What two tensors have in common if they share memory: its address; one of its own for a layout without."""
    has_one = tensor.layout is torch.strided and not tensor.is_nested
    return tensor.untyped_storage().data_ptr() if has_one else id(tensor)


def _detached(output: Any, storages: set[int], *, clone_all: bool) -> Any:
    def one(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf.copy() if isinstance(leaf, np.ndarray) else leaf
        if clone_all or storage_of(leaf) in storages:
            return containers.clone_tensor(leaf.detach())
        return leaf.detach()

    return containers.rebuild(output, one)


WRITTEN_LEAF = "a leaf Variable that requires grad"
"""What autograd says where an argument of which the gradient is taken is changed in place."""


def require_grad(call: Call) -> None:
    """Let autograd track the call's floating tensors."""
    for _, tensor in containers.tensors((call.args, dict(call.kwargs))):
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.is_leaf:
            tensor.requires_grad_()


def writable(call: Call) -> Call:
    """The call with copies that autograd has seen being made: it lets nobody write to a leaf that it tracks."""

    def one(leaf: Any) -> Any:
        return leaf.clone() if isinstance(leaf, torch.Tensor) and leaf.requires_grad else leaf

    args, kwargs = containers.rebuild((call.args, dict(call.kwargs)), one)
    return dataclasses.replace(call, args=args, kwargs=kwargs)


def _without_graph(call: Call) -> Call:
    """The call with its tensors as autograd does not know them, so that no graph is held for it."""
    args, kwargs = containers.rebuild(
        (call.args, dict(call.kwargs)), lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else leaf
    )
    return dataclasses.replace(call, args=args, kwargs=kwargs)


def gradients(
    output: Any, call: Call, parameters: Mapping[str, torch.Tensor], names: list[str]
) -> dict[str, torch.Tensor]:
    """Gradients of a scalar made of all floating outputs, with respect to the parameters and the floating inputs.

    The scalar is the sum of every output element times a fixed random weight: a plain sum would hide errors that
    cancel (the elements of a softmax always sum to one). Where the scalar does not depend on something, its gradient
    is left out.
    """
    parts = [
        (torch.view_as_real(leaf) if leaf.is_complex() else leaf, index)
        for index, (_, leaf) in enumerate(containers.tensors(output))
        if leaf.requires_grad
    ]
    wanted = {f"gradient of {name}": tensor for name, tensor in parameters.items() if tensor.requires_grad}
    labels = [*names, *(f"args_{i}" for i in range(len(names), len(call.args)))]
    arguments = dict(zip(labels, call.args, strict=False)) | dict(call.kwargs)
    for name, value in arguments.items():
        wanted |= {f"gradient of {path}": t for path, t in containers.tensors(value, name) if t.requires_grad}
    if not parts or not wanted:
        return {}
    found: tuple[torch.Tensor | None, ...] = torch.autograd.grad(
        [part for part, _ in parts],
        list(wanted.values()),
        [_weights(part, index) for part, index in parts],
        allow_unused=True,
    )
    return {name: grad.detach() for name, grad in zip(wanted, found, strict=True) if grad is not None}


def _weights(output: torch.Tensor, index: int) -> torch.Tensor:
    """What the elements of an output count in that sum: numbers from 0.5 to 1.5 that every floating type holds exactly.

    They are no part of the run: modes that change what a model computes do not see them.
    """
    with _disable_current_modes():
        generator = torch.Generator("cpu").manual_seed(index)
        steps = torch.randint(64, 192, output.shape, generator=generator, device="cpu")
        return (steps.double() / 128).to(output.device, output.dtype)
