"""What a reproduction script does: run a program on the kept input, and compare with what eager gave.

The source of this module is copied into each script, so it uses nothing of this package, and what it prints is read
by a person.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree


class Kept:
    """The tensors of an archive, read when they are asked for; a key gives the same tensor each time."""

    def __init__(self, folder: Path, name: str, device: str = "cpu") -> None:
        self._archive: Any = np.load(folder / f"{name}.npz")
        self._dtypes: dict[str, str] = json.loads((folder / "dtypes.json").read_text("utf-8"))[name]
        self._device = device
        self.read: dict[str, Any] = {}
        self.given: dict[str, Any] = {}  # what the program gets instead

    def __call__(self, key: str, *, strides: tuple[int, ...] = (), layout: Any = None, grad: bool = False) -> Any:
        """The tensor of this key, on the device, in its own dtype."""
        same = self._dtypes[key].partition("the same tensor as ")[2]
        if same:
            return self(same)
        if key not in self.read:
            tensor = torch.from_numpy(self._archive[key]).to(self._device, getattr(torch, self._dtypes[key]))
            if layout is not None:
                tensor = tensor.to_sparse(layout=layout)
            self.read[key] = (_strided(tensor, strides) if strides else tensor).requires_grad_(grad)
        return self.read[key]

    def names(self) -> list[str]:
        """The keys."""
        return list(self._dtypes)

    def array(self, key: str) -> Any:
        """The numpy array of this key."""
        return self.read.setdefault(key, self._archive[key])


class Archives:
    """Tensors of the failing input, and of the example, whose keys begin with `example:`."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        names = [name for name in ("input", "example") if (folder / f"{name}.npz").exists()]
        self._archives = {name: Kept(folder, name, device) for name in names}

    def __call__(self, key: str, **options: Any) -> Any:
        """The tensor of this key."""
        archive, inside = self._place(key)
        return archive(inside, **options)

    def array(self, key: str) -> Any:
        """The numpy array of this key."""
        archive, inside = self._place(key)
        return archive.array(inside)

    def _place(self, key: str) -> tuple[Kept, str]:
        # The keys of a user's dict may hold the word as well.
        name = "example" if key.startswith("example:") else "input"
        return self._archives[name], key.removeprefix("example:") if name == "example" else key


def _strided(tensor: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    """The same values, laid out as they were; what is expanded along a dimension is so again."""
    for dim, stride in enumerate(strides):
        if stride == 0:
            tensor = tensor.narrow(dim, 0, 1)
    held = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
    return held.expand([-1 if stride else size for size, stride in zip(tensor.shape, strides, strict=True)])


@dataclasses.dataclass
class Named:
    """A container of a class that this script does not know: its name, and its parts by attribute or key."""

    kind: str
    parts: dict[str, Any]
    mapping: bool = False


@dataclasses.dataclass
class Check:
    """What is checked.

    Attributes:
        program: loads the program.
        calls: the failing input, one function for each call; it gives positional and keyword arguments.
        expected: what eager returned, call by call.
        failed: what differed: the element that was furthest off, and the largest error that is allowed there.
        structure: what the program keeps of the containers of eager's outputs: `same`, `script`, `flat`.
        changed: arguments as eager left them: call, key of the argument, eager's value.
        state: reads an entry of the program's state.
        states: entries of the state after the calls, as eager left them.
        gradients: eager's, by name.
        parameters: the program's parameters by name.
        inputs: names of the arguments of the last call whose gradients are taken, by key.
        raises: what eager raised in the last call, if it did.
        seed: state of the random generators.
        grad: whether autograd is on.
        device: where it runs.
        ignored: results that the tolerance leaves out.
        any_order: results whose order means nothing along a dimension, which is given.
        in_order: puts tensors of the program in the order of eager's along a dimension.
        moved: what it gave for the call that is compared.
    """

    folder: Path
    program: Callable[[], Callable[..., Any]]
    calls: list[Callable[[Kept], tuple[tuple[Any, ...], dict[str, Any]]]]
    expected: list[Callable[[Kept], Any]]
    failed: dict[str, tuple[tuple[int, ...], float]]
    structure: str = "same"
    changed: dict[str, tuple[int, str, str]] = dataclasses.field(default_factory=dict)
    state: Callable[[Any, str], Any] | None = None
    states: dict[str, Callable[[Kept], Any]] = dataclasses.field(default_factory=dict)
    gradients: dict[str, str] = dataclasses.field(default_factory=dict)
    parameters: Callable[[Any], dict[str, torch.Tensor]] | None = None
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)
    raises: str = ""
    seed: int = 0
    grad: bool = False
    device: str = "cpu"
    ignored: tuple[str, ...] = ()
    any_order: dict[str, int] = dataclasses.field(default_factory=dict)
    in_order: Callable[[list[torch.Tensor], list[torch.Tensor], int], Any] | None = None
    moved: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)


def check(what: Check) -> int:
    """Run and compare; print the worst difference of each result.

    Returns:
        1 while the difference is there, 0 when it is gone.
    """
    torch.manual_seed(what.seed)
    random.seed(what.seed)
    np.random.seed(what.seed % 2**32)
    eager = Kept(what.folder, "eager", what.device)
    kept = [Kept(what.folder, "input", what.device) for _ in what.calls]
    found: list[Found] = []
    try:
        program = what.program()
        with torch.set_grad_enabled(what.grad or bool(what.gradients)):
            found += _run(what, program, kept, eager)
    except Exception as error:
        return _raised(what, error, started=sum(bool(one.read) for one in kept))
    if what.raises:
        print(f"eager raises {what.raises}\nthe program returns")
        return _concluded(differs=True)
    found += _left_behind(what, program, kept, eager)
    for one in found:
        print(f"{one.path}: {one.text}{'   DIFFERS' if one.differs else ''}")
    return _concluded(differs=any(one.differs for one in found))


def _run(what: Check, program: Callable[..., Any], kept: list[Kept], eager: Kept) -> Iterator[Found]:
    """Call after call, what the program returns, and the gradients of what it returned last."""
    for index, call in enumerate(what.calls):
        args, kwargs = call(kept[index])
        if what.gradients:
            args, kwargs = _tracked(args, kwargs, kept[index])
        output = program(*args, **kwargs)
        title = "output" if len(what.calls) == 1 else f"call {index + 1} output"
        if index < len(what.expected):
            expected, actual = what.expected[index](eager), _detached(output)
            what.moved = dict(_moved(title, expected, actual, what))
            yield from compare(title, expected, actual, what)
        if what.gradients and index == len(what.calls) - 1:
            yield from _compare_gradients(what, program, output, kept[index], eager)


def _moved(path: str, expected: Any, actual: Any, what: Check) -> Iterator[tuple[str, torch.Tensor]]:
    """The program's results in eager's order where it means nothing; those with as many entries move together."""
    ours = [(name, leaf) for name, leaf in _leaves(path, expected) if isinstance(leaf, torch.Tensor)]
    groups: dict[Any, list[tuple[str, torch.Tensor, torch.Tensor]]] = {}
    for (name, mine), other in zip(ours, _tensors(actual), strict=False):
        dim = what.any_order.get(name, mine.dim())
        if (mine.shape, mine.dtype) == (other.shape, other.dtype) and -mine.dim() <= dim < mine.dim():
            groups.setdefault(name if dim else len(mine), []).append((name, mine, other))
    for group in groups.values():
        names, eagers, programs = zip(*group, strict=True)
        if what.in_order is not None:
            yield from zip(names, what.in_order(list(eagers), list(programs), what.any_order[names[0]]), strict=True)


def _left_behind(what: Check, program: Callable[..., Any], kept: list[Kept], eager: Kept) -> Iterator[Found]:
    """The arguments and the state, as the calls leave them."""
    for name, (index, key, expected) in what.changed.items():
        yield from compare(name, eager(expected), kept[index].given.get(key, kept[index](key)), what)
    for name, entry in what.states.items():
        actual: Any = "not there"
        with contextlib.suppress(AttributeError, KeyError, RuntimeError):
            if what.state is not None:
                actual = what.state(program, name.removeprefix("state "))
        yield from compare(name, entry(eager), actual, what)


def _raised(what: Check, error: Exception, started: int) -> int:
    said = f"the program raises {type(error).__name__}: {error}"
    if what.raises:
        print(f"eager raises {what.raises}\n{said}")
        return _concluded(differs=False)
    traceback.print_exc()
    print(f"call {started}: eager runs, {said}" if started else f"it cannot be loaded: {said}")
    return _concluded(differs=True)


THERE, GONE = "The difference is there.", "The difference is gone."


def _concluded(*, differs: bool) -> int:
    print(THERE if differs else GONE)
    return int(differs)


# --- comparison -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Found:
    """How far one result is off."""

    path: str
    text: str
    differs: bool
    error: float = 0.0


def compare(path: str, expected: Any, actual: Any, what: Check) -> Iterator[Found]:
    """Compare two values, part by part."""
    if what.structure == "flat" and isinstance(actual, dict) and path.endswith("output"):
        yield from _compare_flat(path, expected, actual, what)
        return
    ours, theirs = parts(expected), parts(actual)
    if ours is None and theirs is None:
        yield _compare_leaf(path, expected, actual, what)
    elif ours is None or theirs is None or not _same_kind(expected, actual, what.structure):
        yield Found(path, f"eager returns {kind(expected)}, the program {kind(actual)}", differs=True)
    elif _is_mapping(expected):
        if what.structure == "script":  # which leaves out what is None
            ours = {step: part for step, part in ours.items() if part is not None or step in theirs}
        if list(ours) != list(theirs):
            yield Found(path, f"eager has {', '.join(ours)}, the program {', '.join(theirs)}", differs=True)
        for step in ours.keys() & theirs.keys():
            yield from compare(path + step, ours[step], theirs[step], what)
    elif len(ours) != len(theirs):
        yield Found(path, f"eager has {len(ours)} parts, the program {len(theirs)}", differs=True)
    else:
        for (step, mine), other in zip(ours.items(), theirs.values(), strict=True):
            yield from compare(path + step, mine, other, what)


def parts(value: Any) -> dict[str, Any] | None:
    """What a container holds, by the step to it; None for a value that is none."""
    if isinstance(value, Named):
        return value.parts
    if isinstance(value, Mapping):
        return {f"[{key!r}]": part for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {f".{name}": getattr(value, name) for name in value._fields}
    if isinstance(value, (list, tuple, deque)):
        return {f"[{index}]": part for index, part in enumerate(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f".{one.name}": getattr(value, one.name) for one in dataclasses.fields(value)}
    if not pytree.tree_is_leaf(value):
        keyed, _ = pytree.tree_flatten_with_path(value, is_leaf=lambda part: part is not value)
        return {pytree.keystr(path): part for path, part in keyed}
    return None


def kind(value: Any) -> str:
    """The name of a value's type."""
    if isinstance(value, Named):
        return value.kind
    return "None" if value is None else type(value).__name__


def _is_mapping(value: Any) -> bool:
    return value.mapping if isinstance(value, Named) else isinstance(value, Mapping)


def _same_kind(expected: Any, actual: Any, structure: str) -> bool:
    if structure == "script" or _is_mapping(expected) != _is_mapping(actual):
        return _is_mapping(expected) == _is_mapping(actual)
    return kind(expected) == kind(actual)


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    inside = parts(value)
    if inside is None:
        yield path, value
        return
    for step, part in inside.items():
        yield from _leaves(path + step, part)


def _compare_flat(path: str, expected: Any, actual: dict[str, Any], what: Check) -> Iterator[Found]:
    """A program whose outputs have no containers gives the tensors in order, and numbers only if it computes them."""
    ours = [pair for pair in _leaves(path, expected) if not isinstance(pair[1], (type(None), str, bytes))]
    theirs = [leaf for _, leaf in _leaves("", actual)]
    if len(ours) != len(theirs):
        ours = [pair for pair in ours if not isinstance(pair[1], (bool, int, float, complex, np.generic))]
    if len(ours) != len(theirs):
        yield Found(path, f"eager returns {len(ours)} tensors, the program {len(theirs)}", differs=True)
    for (name, mine), other in zip(ours, theirs, strict=False):
        yield _compare_leaf(name, mine, other, what)


def _compare_leaf(path: str, expected: Any, actual: Any, what: Check) -> Found:
    if path in what.ignored:
        return Found(path, "ignored", differs=False)
    actual = what.moved.get(path, actual)
    numbers = (bool, int, float, complex)
    if what.structure != "same" and isinstance(expected, numbers) and isinstance(actual, torch.Tensor):
        actual = actual.item() if not actual.dim() else actual
    is_tensor = isinstance(expected, torch.Tensor)
    if isinstance(expected, (str, bytes, type(None))) or is_tensor != isinstance(actual, torch.Tensor):
        same = type(expected) is type(actual) and expected == actual
        return Found(path, f"eager {_shown(expected)}, exported {_shown(actual)}", differs=not same)
    if isinstance(expected, int) or (not is_tensor and type(expected) is not type(actual)):
        same = type(expected) is type(actual) and expected == actual
        return Found(path, f"eager {expected!r}, exported {actual!r}", differs=not same)
    ours, theirs = torch.as_tensor(expected), torch.as_tensor(actual)
    if isinstance(expected, float):  # as_tensor makes it a float32
        ours, theirs = torch.tensor(expected, dtype=torch.float64), torch.tensor(actual, dtype=torch.float64)
    for name in ("dtype", "shape", "layout"):
        one, other = getattr(ours, name), getattr(theirs, name)
        if one != other:
            return Found(path, f"eager has {name} {one}, the program {other}", differs=True)
    return compare_values(path, ours, theirs.to(ours.device), what.failed)


def _shown(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)


CHUNK = 1 << 20
"""Elements that are compared at a time: the outputs may be as large as the memory allows."""


def compare_values(
    path: str, expected: torch.Tensor, actual: torch.Tensor, failed: Mapping[str, tuple[tuple[int, ...], float]]
) -> Found:
    """The worst difference of two tensors of one kind.

    What was too far off has to come back to what is allowed at that element; beside that, as much counts as
    `torch.testing.assert_close` lets pass. A result that agreed is shown, its rounding is not judged again.
    """
    ours, theirs = _plain(expected), _plain(actual)
    if not ours.numel():
        return Found(path, "empty", differs=False)
    one, other = ours.reshape(-1), theirs.reshape(-1)
    rtol, atol = _tolerance(expected.dtype)
    largest, place, special, beyond = -1.0, 0, 0, False
    for start in range(0, len(one), CHUNK):
        a, b = one[start : start + CHUNK], other[start : start + CHUNK]
        same = (a == b) | ((a != a) & (b != b))  # noqa: PLR0124 NaN differs from itself
        wide, error = a.double(), (b.double() - a.double()).abs()
        error = torch.where(same, 0.0, torch.where(error.isnan(), torch.inf, error))
        special += int((error == torch.inf).sum())
        limit = atol + rtol * torch.where(wide.isfinite(), wide, 0.0).abs().clamp(min=_rms(wide))
        beyond |= bool((error > limit).any())
        worst = int(error.argmax())
        if float(error[worst]) > largest:
            largest, place = float(error[worst]), start + worst
    index = [int(i) for i in np.unravel_index(place, tuple(ours.shape))]
    text = f"worst difference {largest:.9g} at {index}: eager {one[place].item()}, exported {other[place].item()}"
    if path not in failed:
        counts = beyond if not failed or not ours.is_floating_point() else bool(special)
        return Found(path, text if largest else "no difference", counts, largest)
    at, allowed = failed[path]
    element = _at(theirs, at).double() - _at(ours, at).double()
    alike = bool(_at(ours, at) == _at(theirs, at)) or bool(_at(ours, at).isnan() & _at(theirs, at).isnan())
    counts = not alike and not bool(element.abs() <= allowed)
    text += f" (allowed at {list(at)}: {allowed:.3g})" if largest else ""
    return Found(path, text if largest else "no difference", counts or (beyond and largest > allowed), largest)


def _at(tensor: torch.Tensor, index: tuple[int, ...]) -> torch.Tensor:
    return tensor[index] if len(index) == tensor.dim() else tensor.reshape(-1)[0]


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """As a dense real tensor of a dtype that can be compared."""
    tensor = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    tensor = tensor.dequantize() if tensor.is_quantized else tensor
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor.resolve_neg()
    tensor = tensor.cpu() if tensor.device.type == "mps" else tensor  # which has no float64
    return tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize == 1 else tensor


def _rms(wide: torch.Tensor) -> float:
    finite = torch.where(wide.isfinite(), wide, 0.0)
    return float(finite.square().mean().sqrt())


def _tolerance(dtype: torch.dtype) -> tuple[float, float]:
    """The rtol and atol of `torch.testing.assert_close`; zeros for whole numbers and flags."""
    if not (dtype.is_floating_point or dtype.is_complex):
        return 0.0, 0.0
    if dtype.itemsize == 1:
        return 0.25, 1e-2
    known = {torch.float16: (1e-3, 1e-5), torch.bfloat16: (1.6e-2, 1e-5), torch.float64: (1e-7, 1e-7)}
    return known.get(dtype, (1e-7, 1e-7) if dtype is torch.complex128 else (1.3e-6, 1e-5))


def _detached(value: Any) -> Any:
    """The output as it is now: what later calls write to shared memory does not change it."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if type(value) in (list, tuple):
        return type(value)(_detached(part) for part in value)
    return {key: _detached(part) for key, part in value.items()} if type(value) is dict else value


# --- gradients ------------------------------------------------------------------------------------------------------


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for _, leaf in _leaves("", value) if isinstance(leaf, torch.Tensor)]


def _tracked(args: Any, kwargs: Any, kept: Kept) -> Any:
    """The arguments as copies of tensors that autograd tracks: to those themselves nothing may be written in place."""
    copies = {}
    for tensor in kept.read.values():
        if isinstance(tensor, torch.Tensor) and (tensor.is_floating_point() or tensor.is_complex()):
            copies[id(tensor)] = tensor.requires_grad_().clone()
    kept.given = {key: copies.get(id(tensor), tensor) for key, tensor in kept.read.items()}
    return pytree.tree_map(lambda leaf: copies.get(id(leaf), leaf), (args, kwargs))


def _compare_gradients(what: Check, program: Any, output: Any, kept: Kept, eager: Kept) -> Iterator[Found]:
    """Gradients of the sum of all output elements, each times a fixed random weight."""
    known = dict(what.parameters(program)) if what.parameters is not None else {}
    known |= {name: kept.read[key] for name, key in what.inputs.items()}
    tensors, weights = [], []
    for index, leaf in enumerate(_tensors(output)):
        if leaf.requires_grad:
            tensors.append(torch.view_as_real(leaf) if leaf.is_complex() else leaf)
            generator = torch.Generator("cpu").manual_seed(index)
            steps = torch.randint(64, 192, tensors[-1].shape, generator=generator, device="cpu")
            weights.append((steps.double() / 128).to(tensors[-1]))
    wanted = [known[name.removeprefix("gradient of ")] for name in what.gradients]
    found = torch.autograd.grad(tensors, wanted, weights, allow_unused=True) if tensors else [None] * len(wanted)
    for (name, key), gradient in zip(what.gradients.items(), found, strict=True):
        expected = eager(key)
        yield from compare(name, expected, torch.zeros_like(expected) if gradient is None else gradient, what)
