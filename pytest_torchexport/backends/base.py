"""The protocol between the engine and a backend: `Backend` makes an `Exported` from an `ExportRequest`.

A backend of your own subclasses `Backend`, is registered by entry point or `register_backend`, and is tested by
`pytest_torchexport.check_backend`.
"""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from pytest_torchexport.errors import UsageError
from pytest_torchexport.subject.output import FlatOutput as FlatOutput  # noqa: PLC0414 part of the protocol
from pytest_torchexport.subject.output import Structure as Structure  # noqa: PLC0414

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pytest_torchexport.outcome import Cause, Location, NotChecked
    from pytest_torchexport.subject.call import Call


@dataclass(frozen=True)
class Suspicion:
    """Something the exporter itself said about the program; evidence if the program turns out to be wrong."""

    cause: Cause
    text: str
    location: Location | None = None


LARGEST = 1 << 30
"""Bytes that all values of a program may take for it to be looked into."""


class TooLarge(Exception):  # no error: not every value can be held
    """The values inside of a program take too much memory."""


@dataclass(frozen=True)
class Step:
    """One operator of an exported program as it ran.

    Attributes:
        operator: as the format spells it: `aten.mul.Tensor`, `Gemm`, `aten::relu`.
        inputs: names of the values that it reads: outputs of earlier steps, and values from outside (arguments,
            parameters, constants), whose names no step has as an output.
        outputs: what it computes, by the names that later steps read them by; only tensors.
        module: the submodule that it belongs to, by its name in the user's model (`layer1.0.bn1`); empty if unknown.
        location: the user's line, where the program knows it.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: Mapping[str, torch.Tensor]
    module: str = ""
    location: Location | None = None


@dataclass(frozen=True)
class Recipe:
    """How a script that has neither this package nor the model loads an exported program and calls it.

    Attributes:
        source: Python source with its imports. It defines `load(path, device)`, which reads the artifact and returns a
            callable with the outputs of the program. It may define `state(program)` and `parameters(program)`, which
            give what `Exported.read_state` and `Exported.parameters` give, and `finish()`, which is called in the end.
        arrange: turns positional and keyword arguments of a call of the model into those of the callable; None where
            they are the same.
        needs: what the script needs beside torch and numpy, one text each: `onnxruntime`.
        file: the artifact, where `Exported.reproduction` wrote one itself: its path from the script's folder.
        plain: the program takes tuples in the place of named ones.
        note: what the script does not show as it was in the check, and why.
        model: an expression that makes the program from `model`, for a program that is no file. The recipe is then
            another form of what was checked; where the difference does not survive in it, the script makes the model
            from its own source.
    """

    source: str
    arrange: Callable[[tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]] | None = None
    needs: tuple[str, ...] = ()
    file: str = ""
    plain: bool = False
    note: str = ""
    model: str = ""


@dataclass(frozen=True)
class ExportRequest:
    """What a backend exports.

    Attributes:
        model: the user's module or function, on the device, in the mode (train or eval) that the user left it in.
            It is the user's own object: a backend must not change its parameters, its mode or its attributes.
            What running it changes (buffers, attributes) is restored by the engine, after `export` and before `save`.
        example: the example call; a private copy, on the device.
        dynamic_shapes: torch.export's own format, by argument name; None if every shape is fixed.
        device: where the program has to run.
        directory: an existing empty folder for the artifact and its side files.
        grad: whether gradients are asked for.
    """

    model: Callable[..., Any]
    example: Call
    dynamic_shapes: Mapping[str, Any] | None
    device: torch.device
    directory: Path
    grad: bool = False


class Exported(ABC):
    """An exported program, loaded and ready to run.

    Attributes:
        suspicions: what the exporter warned about.
        not_checked: what this backend leaves unchecked for this program (a pruned input, an unread state).
        details: facts for the report, JSON-ready (graphs, breaks, provider, opset).
        optimizer: what rewrites the program for a call and not for `steps`, in words; empty if nothing does. Where
            every step agrees with eager and a call does not, the fault is there.
        takes_host_arguments: whether the program takes arguments on the host where it runs on another device, and
            copies them there and its results back by itself. Then a call that is bound to such arguments is timed
            with both copies.
        load_seconds: what reading the program alone took, where `load` does more than its user would: it shares
            weights, or reads what the report says. None where it does not.
        cold_start_note: what has to be known beside the times of its first calls, where `Backend.load_anew` made it:
            caches that were off.
    """

    optimizer: ClassVar[str] = ""
    takes_host_arguments: ClassVar[bool] = False
    cold_start_note: str = ""
    load_seconds: float | None = None

    suspicions: list[Suspicion]
    not_checked: list[NotChecked]
    details: dict[str, Any]

    def __init__(self) -> None:
        self.suspicions = []
        self.not_checked = []
        self.details = {}

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program once, called as the model's forward is called.

        The arguments are the engine's private copies: the program may change them in place, and where eager does,
        it has to.

        Returns:
            The program's output, structured as the backend's `Structure` says; for `FLAT` a `FlatOutput`.

        Raises:
            ConventionError: the program cannot be called with these arguments, because the export fixed one.
            NothingCompiled: the call ran, but not in the exported form.
            Exception: anything else is the exported program's own failure.
        """

    def bound_call(self, *args: Any, **kwargs: Any) -> Callable[[], Any]:
        """A call with its arguments in place, to be timed: what is left is what the program costs where it is deployed.

        All that is ours is done once, here: arguments are looked at, converted, put into the program's order and onto
        its device. A timing throws the result away; the work that ends in it is the program's whole work. On an
        accelerator it may still be under way when the call returns: who times it waits for the device.

        Args:
            args: as for a call. They are the program's, which may change them in place again and again.
            kwargs: as for a call.

        Raises:
            Exception: as a call, here or in the calls of what is returned.
        """
        return functools.partial(self, *args, **kwargs)

    def bound_output(self, result: Any) -> Any:
        """What a bound call has returned, as a call would return it; never timed, and asked for before the next call.

        For a program whose results need work that a deployment would not do: they are given out as they are.
        """
        return result

    @property
    def recompiles(self) -> int | None:
        """How often something was compiled again since the example; None for a program that never does."""
        return None

    def read_state(self) -> dict[str, Any] | None:
        """The program's state by qualified name (`bn.running_mean`), live tensors and Python values.

        An empty dict if it carries none. None if it carries a state that cannot be read.
        """
        return {}

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Set the program's state to values that `read_state` returned earlier, in place where they are tensors."""
        for name, tensor in (self.read_state() or {}).items():
            if isinstance(tensor, torch.Tensor) and isinstance(state.get(name), torch.Tensor):
                overwrite(tensor, state[name])

    def reset(self) -> None:  # noqa: B027 most programs have no state beside what they give
        """Undo what earlier runs changed and `read_state` does not give: constants that the program writes to.

        The engine calls it before each input, and `write_state` after it. A program that cannot undo such a change
        loads itself anew; otherwise one input changes what the next one meets, and a right program looks wrong. What
        `read_state` and `parameters` returned before is then no longer the program's own.
        """

    @property
    def shares_module(self) -> bool:
        """Whether the program runs on the user's own module object, so that its state is the module's."""
        return False

    def parameters(self) -> dict[str, torch.Tensor] | None:
        """The program's parameters by qualified name, for gradients; None where it has none to give."""
        return None

    def steps(self, *args: Any, **kwargs: Any) -> Iterator[Step] | None:
        """Run the program once more, operator by operator, and give what each one computes.

        For a failure's first diverging layer. In one pass: an exporter's graph is interpreted, or every value of the
        program is made an output. What the program computes in one piece (a fused kernel, a block of control flow) is
        one step. Arguments as for a call; the state is what it was before that call.

        Returns:
            The steps in the order in which they run; None where the program's inside cannot be seen.

        Raises:
            TooLarge: the values would have to be held together, and take more than `LARGEST` bytes.
        """
        del args, kwargs
        return None

    def reproduction(self, calls: Sequence[Call], folder: Path) -> Recipe | None:
        """How a script without this package and without the model runs the program on a failing input.

        Called after `close`, with the model in its starting state.

        Args:
            calls: the failing input.
            folder: where the script will be. A program without an artifact may write one there.

        Returns:
            The recipe; None where no such script can be written.
        """
        del calls, folder
        return None

    def close(self) -> None:  # noqa: B027 most programs have nothing to release
        """Release what outlives the object (sessions, compiled code). Called once, after the last run."""


class Backend(ABC):
    """A way to export a model; its options are the fields of a frozen dataclass.

    Class attributes:
        name: the name in markers, on the command line and in test ids.
        structure: what the program's outputs keep of eager's structure.
        gradients: whether gradients can be taken through the exported program.
    """

    name: ClassVar[str]
    structure: ClassVar[Structure] = Structure.SAME
    gradients: ClassVar[bool] = False

    @property
    def id(self) -> str:
        """The name with the options that differ from their defaults: `compile:mode=max-autotune`."""
        changed = [
            f"{option.name}={_spell(getattr(self, option.name))}"
            for option in options_of(type(self))
            if getattr(self, option.name) != _default(option)
        ]
        return self.name + (":" + ",".join(changed) if changed else "")

    def unavailable(self, device: torch.device) -> str | None:
        """Why the backend cannot run on the device here, with the remedy; None if it can."""
        del device
        return None

    @abstractmethod
    def export(self, request: ExportRequest) -> Any:
        """Export the model. Whatever is raised becomes the verdict `refused`.

        Returns:
            The backend's own program object, handed to `save` and `load`.
        """

    def save(self, program: Any, directory: Path) -> Path | None:
        """Write the program to the folder.

        Returns:
            The file, or None for a backend that has no artifact on disk.
        """
        del program, directory
        return None

    @abstractmethod
    def load(self, program: Any, path: Path | None, request: ExportRequest) -> Exported:
        """The runnable program, read back from `path` if `save` wrote one.

        Args:
            program: what `export` returned; what it held in memory beside the file should be gone since `save`.
            path: what `save` returned.
            request: what was exported.

        Whatever is raised becomes the verdict `failed` at stage `load`.
        """

    def load_anew(self, program: Any, path: Path | None, request: ExportRequest) -> Exported:
        """The program as a new process would have it, as far as this one can: no earlier load is of use to it.

        Its first calls are timed, so it has not been called. Arguments as for `load`, which is called where a backend
        says nothing else. What `load` returned before has been closed.
        """
        return self.load(program, path, request)

    def cold_start_variants(self) -> dict[str, Backend]:
        """The options on which the first calls depend, each with the backend that has it changed, by its spelling.

        Such a backend loads what this one has saved.
        """
        return {}


def options_of(backend: Any) -> list[dataclasses.Field[Any]]:
    """The options of a backend class: the fields of its dataclass that its constructor takes; none if it is none."""
    return [one for one in dataclasses.fields(backend) if one.init] if dataclasses.is_dataclass(backend) else []


def overwrite(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Give the tensor another's values, in place; another's shape and dtype too, where the program changed those."""
    with torch.no_grad():
        if tensor.shape == value.shape and tensor.dtype == value.dtype:
            tensor.copy_(value)
        else:
            tensor.data = value.detach().clone()
        if tensor.grad_fn is not None and not tensor._is_view():
            tensor.detach_()  # what an earlier run computed it from is no part of the next one


def _default(option: dataclasses.Field[Any]) -> Any:
    if option.default is not dataclasses.MISSING:
        return option.default
    return option.default_factory() if option.default_factory is not dataclasses.MISSING else None


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "".join(char if char.isalnum() or char in "._-+" else "-" for char in str(value)).strip("-")


def choose(name: str, value: object, accepted: tuple[Any, ...]) -> None:
    """Raise a `UsageError` that lists the accepted values, unless the option's value is one of them.

    1 is not taken for True: who writes `freeze=1` may have meant something else.
    """
    if not any(type(value) is type(one) and value == one for one in accepted):
        listed = ", ".join(repr(one) for one in accepted)
        msg = f"{name}={value!r} is not accepted: choose one of {listed}"
        raise UsageError(msg)


def expect(name: str, value: object, kind: type | tuple[type, ...], wanted: str, least: int | None = None) -> None:
    """Raise a `UsageError` unless the option's value is None or of the kind.

    Args:
        name: of the option.
        value: what the user gave.
        kind: accepted types; a bool is no int.
        wanted: the kind in words, for the message: `a number from 1 on`.
        least: the smallest accepted number.
    """
    fits = isinstance(value, kind) and not isinstance(value, bool)
    if value is not None and not (fits and (least is None or value >= least)):  # type: ignore[operator]
        msg = f"{name}={value!r} is not accepted: give {wanted}, or None"
        raise UsageError(msg)
