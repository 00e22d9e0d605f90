"""What is to be checked, as the user gave it (`Subject`, `Policy`), validated and placed on the device (`Plan`)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from pytest_torchexport.compare.tolerance import Given, Rules
from pytest_torchexport.errors import UsageError
from pytest_torchexport.inputs import draw, shapes
from pytest_torchexport.subject import containers, devices, source
from pytest_torchexport.subject.call import Call, bind, check_callable, describe_type
from pytest_torchexport.subject.state import fingerprint, identical, parameters

if TYPE_CHECKING:
    from pytest_torchexport.backends.base import Backend
    from pytest_torchexport.latency.budget import Budget
    from pytest_torchexport.subject.fingerprint import Fingerprint


@dataclass(frozen=True)
class Subject:
    """What is checked: the model, the example call, and what is known about other calls.

    Argument names follow `torch.export.export`; see `check` for each.
    """

    model: Callable[..., Any]
    args: Any = ()
    kwargs: Mapping[str, Any] | None = None
    dynamic_shapes: Any = None
    inputs: Mapping[str, Any] | None = None
    extra_inputs: Sequence[Any] = ()
    assume: Callable[..., bool] | None = None
    calls: int = 1


BRANCH_MODES = ("search", "observe", "off")
"""What can be done about branches that the example does not take."""


@dataclass(frozen=True)
class Policy:
    """How it is checked: what marker, command line and ini say. A `torch.device` or `torch.dtype` becomes its name.

    `search_budget` is in runs of the eager module, None for the default; `min_coverage` a fraction of the outcomes of
    all decisions; `user_code` as `subject.source.user_code` takes it.

    `latency` is what the program may take in time and memory; with an empty `Budget()` it is measured and not judged,
    with None not even that, and `latency_left_out` says why where there was something to measure. An excess fails only
    with `enforce`. `crowd` is the number of other processes in which tests may run at the same time. With `precise`,
    the ratio to eager is wanted to be known well, also where less decides the budget.

    Raises:
        UsageError: device or dtype is no name.
    """

    backend: str | Backend = "trace"
    device: str = "cpu"
    dtype: str | None = None
    tolerance: Given = None
    n_inputs: int = 10
    seed: int = 0
    grad: bool = False
    branches: str = "search"
    search_budget: int | None = None
    min_coverage: float | None = None
    user_code: tuple[str, ...] = ()
    latency: Budget | None = None
    enforce: bool = True
    crowd: int = 0
    precise: bool = False
    latency_left_out: str = ""

    def __post_init__(self) -> None:
        given: dict[str, object] = {"device": self.device, "dtype": self.dtype}
        if isinstance(self.device, torch.device):
            given["device"] = str(self.device)
        elif not isinstance(self.device, str):
            msg = f"device is {_shown(self.device)}: give a name ({', '.join(devices.KINDS)}, cuda:1) or a torch.device"
            raise UsageError(msg)
        if isinstance(self.dtype, torch.dtype):
            given["dtype"] = str(self.dtype).removeprefix("torch.")
        elif self.dtype is not None and not isinstance(self.dtype, str):
            msg = f"dtype is {_shown(self.dtype)}: give one of {', '.join(_DTYPES)}, or None"
            raise UsageError(msg)
        if isinstance(self.user_code, list):
            given["user_code"] = tuple(self.user_code)
        for name, value in given.items():
            object.__setattr__(self, name, value)


def _shown(value: object) -> str:
    return "None" if value is None else describe_type(value)


@dataclass
class Plan:
    """Everything about a test that does not depend on the backend; once placed, on its device and in its dtype.

    Attributes:
        model: the user's model, or its copy on the device.
        example: the example call on the device; never run itself, only its clones.
        dynamic_shapes: by argument name, as torch.export takes them.
        inputs: declared domains by argument name.
        extra_inputs: further calls to check, placed.
        assume: predicate on a call's arguments; False drops a generated input.
        calls: length of call sequences.
        device: where everything runs.
        dtype: of floating parameters and inputs; None leaves them.
        n_inputs: number of generated inputs.
        seed: for generated inputs and for the state of the random generators before each run.
        grad: whether gradients are taken.
        branches: `search`, `observe` or `off`.
        search_budget: runs of eager that the branch search may use.
        user_code: whose decisions count, beside those of the user's own code.
        rules: the tolerance of each result; eager's part of a check does not depend on them.
    """

    model: Callable[..., Any]
    example: Call
    dynamic_shapes: Mapping[str, Any] | None
    inputs: Mapping[str, Any] | None
    extra_inputs: tuple[Call, ...]
    assume: Callable[..., bool] | None
    calls: int
    device: torch.device
    dtype: torch.dtype | None
    n_inputs: int
    seed: int
    grad: bool
    branches: str = "off"
    search_budget: int | None = None
    user_code: tuple[str, ...] = ()
    rules: Rules = field(default_factory=Rules)

    def names(self, call: Call) -> dict[str, Any]:
        """A call's arguments by name."""
        return bind(self.model, call)

    def is_example(self, calls: Iterable[Call]) -> bool:
        """Whether every call passes exactly the example's values."""
        example = self.names(self.example)
        return all(identical(self.names(call), example) for call in calls)

    def has_example_shapes(self, calls: Iterable[Call]) -> bool:
        """Whether every call has the example's tensors, by name and shape."""
        return all(self._shapes(call) == self._shapes(self.example) for call in calls)

    def _shapes(self, call: Call) -> dict[str, tuple[int, ...]]:
        return {path: tuple(tensor.shape) for path, tensor in containers.tensors(self.names(call))}

    def place(self, device: torch.device) -> None:
        """Put model and calls on the device, floating tensors in the dtype. The user's own model stays as it is.

        Raises:
            UsageError: the model has to move and cannot be copied.
        """
        self.device = device
        self.model = devices.place_model(self.model, device, self.dtype)
        self.example = self.example.place(device, self.dtype).clone()
        self.extra_inputs = tuple(call.place(device, self.dtype) for call in self.extra_inputs)

    def parameters(self) -> dict[str, torch.Tensor] | None:
        """The parameters of all modules that the model leads to, by name, where gradients are asked for; else None."""
        if not self.grad:
            return None
        return dict(parameters(self.model))

    def key(self) -> Fingerprint | None:
        """A fingerprint that two plans share only if eager does the same for both; None if that cannot be known."""
        shapes = containers.rebuild(self.dynamic_shapes, repr) if self.dynamic_shapes else None
        rest = (self.dtype, self.device, self.calls, self.n_inputs, self.seed, self.grad, devices.numerics_flags())
        branches = (self.branches, self.search_budget, self.user_code)
        call = [self.example.args, dict(self.example.kwargs)]
        extra = [[one.args, dict(one.kwargs)] for one in self.extra_inputs]
        return fingerprint(self.model, call, extra, list(rest), list(branches), shapes, self.inputs, self.assume)


def make_plan(subject: Subject, policy: Policy, origin: str) -> Plan:
    """Validate everything the user gave.

    Args:
        subject: what is checked.
        policy: how; its backend and device play no part here.
        origin: id of the test function, part of the seed.

    Returns:
        The plan, not yet placed on a device.

    Raises:
        UsageError: something is wrong; the message says what, and how to mend it.
    """
    check_callable(subject.model)
    _check_policy(subject, policy)
    example = _example(subject)
    bind(subject.model, example)
    dynamic = shapes.normalise(subject.model, example, subject.dynamic_shapes)
    draw.generate(subject.model, example, subject.inputs, dynamic, seed=0)  # raises where a domain does not fit
    _check_materialized(subject.model)
    if subject.assume is not None and not callable(subject.assume):
        msg = f"assume is {describe_type(subject.assume)}: give a function that is called as the model is"
        raise UsageError(msg)
    return Plan(
        model=subject.model,
        example=example,
        dynamic_shapes=dynamic,
        inputs=subject.inputs,
        extra_inputs=tuple(_extra(subject, index, one) for index, one in enumerate(_listed(subject.extra_inputs))),
        assume=subject.assume,
        calls=subject.calls,
        device=torch.device("cpu"),
        dtype=_dtype(policy.dtype),
        n_inputs=policy.n_inputs,
        seed=derive_seed(policy.seed, origin),
        grad=policy.grad,
        branches=policy.branches,
        search_budget=policy.search_budget,
        user_code=policy.user_code,
        rules=Rules.of(policy.tolerance),
    )


def _check_policy(subject: Subject, policy: Policy) -> None:
    budget = 0 if policy.search_budget is None else policy.search_budget
    for name, value, least in (
        ("calls", subject.calls, 1),
        ("n_inputs", policy.n_inputs, 0),
        ("seed", policy.seed, 0),
        ("search_budget", budget, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            msg = f"{name}={value!r}: give a whole number of at least {least}"
            raise UsageError(msg)
    if not isinstance(policy.grad, bool):
        msg = f"grad={policy.grad!r}: give True or False"
        raise UsageError(msg)
    _check_branches(policy)


def _check_branches(policy: Policy) -> None:
    if policy.branches not in BRANCH_MODES:
        msg = f"branches={policy.branches!r}: give one of {', '.join(map(repr, BRANCH_MODES))}"
        raise UsageError(msg)
    minimum = policy.min_coverage
    if minimum is not None and not is_fraction(minimum):
        msg = f"min_coverage={minimum!r}: give a fraction from 0 to 1, such as 0.9 for 90 %, or None"
        raise UsageError(msg)
    if not isinstance(policy.user_code, tuple):
        msg = f"user_code is {_shown(policy.user_code)}: give a tuple of packages or globs, user_code=('-timm',)"
        raise UsageError(msg)
    source.user_code(policy.user_code)  # raises where an entry is wrong


def is_fraction(value: object) -> bool:
    """Whether the value is a number from 0 to 1; a flag is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


def _dtype(name: str | None) -> torch.dtype | None:
    if name is not None and name not in _DTYPES:
        msg = f"unknown dtype {name!r}. Accepted: {', '.join(_DTYPES)}."
        raise UsageError(msg)
    return None if name is None else _DTYPES[name]


def _example(subject: Subject) -> Call:
    args = (subject.args,) if isinstance(subject.args, torch.Tensor) else subject.args
    if not isinstance(args, (tuple, list)):
        msg = f"args is {describe_type(subject.args)}: pass the positional arguments as a tuple, args=(x, y)"
        raise UsageError(msg)
    kwargs = {} if subject.kwargs is None else subject.kwargs
    if not isinstance(kwargs, Mapping):
        msg = f"kwargs is {describe_type(kwargs)}: pass the keyword arguments as a dict, kwargs={{'mask': mask}}"
        raise UsageError(msg)
    return Call(tuple(args), dict(kwargs))


def _listed(extra_inputs: Any) -> Sequence[Any]:
    """The further calls; not a tensor, which would be taken apart into its rows, nor a single call."""
    if isinstance(extra_inputs, (list, tuple)):
        return extra_inputs
    msg = (
        f"extra_inputs is {_shown(extra_inputs)}: give a list of calls, each a tuple of positional arguments, a dict "
        "of keyword arguments, or a pair (args, kwargs): extra_inputs=[(x,), {'x': y}]"
    )
    raise UsageError(msg)


def _extra(subject: Subject, index: int, given: Any) -> Call:
    if isinstance(given, torch.Tensor):
        given = (given,)
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], tuple) and isinstance(given[1], dict):
        args, kwargs = given
    elif isinstance(given, (tuple, list)):
        args, kwargs = tuple(given), {}
    elif isinstance(given, dict):
        args, kwargs = (), given
    else:
        msg = (
            f"extra_inputs[{index}] is {describe_type(given)}: give a tuple of positional arguments, a dict of keyword "
            "arguments, or a pair (args, kwargs)"
        )
        raise UsageError(msg)
    call = Call(args, kwargs, "extra", f"extra_inputs[{index}]")
    try:
        bind(subject.model, call)
    except UsageError as error:
        msg = f"extra_inputs[{index}]: {error}"
        raise UsageError(msg) from None
    return call


def _check_materialized(model: object) -> None:
    if isinstance(model, torch.nn.Module):
        for name, parameter in model.named_parameters():
            if torch.nn.parameter.is_lazy(parameter):
                msg = f"parameter {name!r} of the lazy module is not initialised: call the model once before the check"
                raise UsageError(msg)


def derive_seed(seed: int, origin: str) -> int:
    """A 31-bit seed from the user's seed and the test function's id, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{origin}".encode()).digest()[:4], "big") >> 1
