# mypy: disable-error-code="arg-type,no-any-return"
from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from pytest_torchexport import UsageError, check
from pytest_torchexport.outcome import Verdict
from pytest_torchexport.plan import Policy, Subject, make_plan
from pytest_torchexport.subject.call import name_of

X = torch.rand(2, 3)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor, factor: float = 2.0) -> torch.Tensor:
        return self.linear(x) * factor

    def step(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def closing(first: nn.Module, second: nn.Module) -> Any:
    def function(x: torch.Tensor) -> torch.Tensor:
        return first(second(x))

    return function


def test_a_device_or_dtype_object_stands_for_its_name() -> None:
    policy = Policy(device=torch.device("cuda:1"), dtype=torch.float16)
    assert (policy.device, policy.dtype) == ("cuda:1", "float16")
    assert check(Scale(), (X,), device=torch.device("cpu"), n_inputs=0).device == "cpu"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device": None}, r"device is None: give a name \(cpu, cuda, mps, xpu, cuda:1\) or a torch.device"),
        ({"device": 0}, "device is an int: give a name"),
        ({"dtype": 16}, "dtype is an int: give one of float32, float16, bfloat16, float64, or None"),
        ({"dtype": torch.int8}, "unknown dtype 'int8'. Accepted: float32"),
        ({"grad": "yes"}, "grad='yes': give True or False"),
        ({"grad": None}, "grad=None: give True or False"),
        ({"branches": "all"}, "branches='all': give one of 'search', 'observe', 'off'"),
        ({"branches": None}, "branches=None: give one of 'search'"),
        ({"search_budget": -1}, "search_budget=-1: give a whole number of at least 0"),
        ({"search_budget": 1.5}, "search_budget=1.5: give a whole number"),
        ({"min_coverage": 95}, "min_coverage=95: give a fraction from 0 to 1, such as 0.9 for 90 %, or None"),
        ({"min_coverage": float("nan")}, "min_coverage=nan: give a fraction"),
        ({"min_coverage": True}, "min_coverage=True: give a fraction"),
        ({"min_coverage": 1.0, "branches": "off"}, "min_coverage=1.0 with branches='off': nothing is observed"),
        ({"user_code": "timm"}, r"user_code is a str: give a tuple of packages or globs, user_code=\('-timm',\)"),
        ({"user_code": ("a b",)}, r"user_code holds 'a b': give the name of a package \(timm, timm.layers\) or a glob"),
        ({"user_code": (3,)}, "user_code holds 3: give the name of a package"),
        ({"extra_inputs": 5}, r"extra_inputs is an int: give a list of calls.*extra_inputs=\[\(x,\)"),
        ({"extra_inputs": X}, "extra_inputs is a Tensor: give a list of calls"),
        ({"extra_inputs": {"x": X}}, "extra_inputs is a dict: give a list of calls"),
        ({"extra_inputs": None}, "extra_inputs is None: give a list of calls"),
        ({"extra_inputs": [5]}, r"extra_inputs\[0\] is an int"),
    ],
)
def test_what_is_wrong_is_said_in_the_users_words(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check(Scale(), (X,), n_inputs=0, **given)


def test_branch_settings_that_are_accepted() -> None:
    policy = Policy(user_code=["-timm", "src/*.py"], min_coverage=1, search_budget=0, branches="observe")
    make_plan(Subject(Scale(), (X,)), policy, "")
    assert policy.user_code == ("-timm", "src/*.py")
    assert Policy().branches == "search"


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (Scale(), ["linear.weight", "linear.bias"]),
        (Scale().step, ["linear.weight", "linear.bias"]),
        (functools.partial(Scale(), factor=3.0), ["linear.weight", "linear.bias"]),
        (
            closing(Scale(), Scale()),
            ["first.linear.weight", "first.linear.bias", "second.linear.weight", "second.linear.bias"],
        ),
        (torch.sin, []),
    ],
)
def test_gradients_are_asked_of_all_modules_that_the_model_leads_to(model: Any, names: list[str]) -> None:
    plan = make_plan(Subject(model, (X,)), Policy(grad=True), "")
    assert sorted(plan.parameters() or {}) == sorted(names)
    assert make_plan(Subject(model, (X,)), Policy(), "").parameters() is None


@pytest.mark.parametrize("model", [Scale().step, functools.partial(Scale(), factor=3.0), closing(Scale(), Scale())])
@pytest.mark.parametrize("backend", ["compile:backend=eager", "export"])
def test_gradients_through_any_callable_agree(model: Any, backend: str) -> None:
    outcome = check(model, (X,), backend=backend, grad=True, n_inputs=1)
    assert outcome.verdict is Verdict.EQUIVALENT, outcome.message
    compared = "gradient" not in " ".join(str(entry.what) for entry in outcome.not_checked)
    assert compared == (backend != "export" or model.__class__.__name__ == "method")


def test_a_builtin_is_called_by_its_name() -> None:
    assert name_of(torch.sin) == "sin"
    assert name_of(functools.partial(torch.sin)) == "sin"
    assert name_of(Scale().step) == "Scale.step"


def test_making_a_compile_backend_imports_no_compiler() -> None:
    code = (
        "import sys; from pytest_torchexport import Compile; Compile(backend='cudagraphs'); "
        "print([name for name in sys.modules if name.startswith(('torch._inductor.compile', 'torch._functorch.aot'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
