"""What a budget may say, how it is written and which items it is for."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
import torch

from pytest_torchexport import Budget, UsageError, check
from pytest_torchexport.backends.item_names import names_of
from pytest_torchexport.latency.budget import Limit, as_budgets, budget_of, read_budget

CUDA = names_of("onnx", "onnx:optimize=false", "cuda:1", "float16")


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("1.2x", Budget(ratio=1.2)),
        (" 2x ", Budget("2x")),
        (".5x", Budget(ratio=0.5)),
        ("5ms", Budget(median="5ms")),
        ("5 ms", Budget(median="5ms")),
        ("800us", Budget(median="800 us")),
        ("800\u00b5s", Budget(median="800us")),
        ("1.2x first_call=2s", Budget(ratio="1.2x", first_call="2s")),
        ("ratio=1.2x, p99=8 ms, warmup_calls=3", Budget(ratio=1.2, p99="8ms", warmup_calls=3)),
        ("artifact_size=1GiB 1.20x", Budget(1.2, artifact_size="1GiB")),
        ("1.2x,5ms", Budget(ratio=1.2, median="5ms")),
        (
            "median=5ms first_call=2s peak_memory=5GB recompiles=0 copies=true inputs=example,extra_inputs[0] p99=8ms",
            Budget(
                median="5ms",
                p99="8ms",
                first_call="2s",
                peak_memory="5GB",
                recompiles=0,
                copies=True,
                inputs=("example", "extra_inputs[0]"),
            ),
        ),
        ("inputs=extra_inputs[0],example 1.1x copies=False", Budget(1.1, inputs=("extra_inputs[0]", "example"))),
    ],
)
def test_texts(text: str, budget: Budget) -> None:
    assert read_budget(text) == budget
    assert read_budget(str(budget)) == budget, "its own text says the same"


def test_figures_are_in_seconds_bytes_and_counts() -> None:
    budget = Budget("1.2x", "5ms", "8000us", "0.5min", 3, 0, "500MB", "1.5KiB")
    assert budget.limits == (
        Limit("ratio", "1.2x", 1.2),
        Limit("median", "5 ms", 0.005),
        Limit("p99", "8000 us", pytest.approx(0.008)),  # type: ignore[arg-type]
        Limit("first_call", "0.5 min", 30.0),
        Limit("warmup_calls", "3", 3.0),
        Limit("recompiles", "0", 0.0),
        Limit("peak_memory", "500 MB", 5e8),
        Limit("artifact_size", "1.5 KiB", 1536.0),
    )
    assert Budget().limits == ()
    assert str(Budget()) == "no limit"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"median": "5"}, "Budget median='5' has no unit: give it with its unit (ns, us, ms, s, min), such as '5ms'"),
        ({"ratio": "1.2"}, "Budget ratio='1.2' has no unit: give it with its unit (x), such as '1.2x'"),
        ({"median": 0.005}, "Budget median=0.005 is not accepted: give a text with its unit, median='5ms'"),
        ({"median": "5kg"}, "Budget median='5kg' has the unit 'kg': give one of ns, us, ms, s, min, such as '5ns'"),
        ({"peak_memory": "5ms"}, "has the unit 'ms': give one of B, kB, MB, GB, KiB, MiB, GiB"),
        ({"peak_memory": "5mb"}, "has the unit 'mb': give one of B, kB, MB, GB, KiB, MiB, GiB, such as '5MB'"),
        ({"ratio": "5ms"}, "Budget ratio='5ms' has the unit 'ms': give one of x, such as '5x'"),
        ({"ratio": "0x"}, "Budget ratio='0x' can never be kept: give a finite number above 0, such as '1.2x'"),
        ({"ratio": 0}, "Budget ratio=0 can never be kept"),
        ({"ratio": -1.0}, "Budget ratio=-1.0 can never be kept"),
        ({"ratio": float("nan")}, "Budget ratio=nan is not accepted: give a finite number above 0"),
        ({"ratio": float("inf")}, "Budget ratio=inf is not accepted: give a finite number above 0"),
        ({"ratio": True}, "Budget ratio=True is not accepted: give a text with its unit"),
        ({"p99": "0ms"}, "Budget p99='0ms' can never be kept"),
        ({"first_call": "-2s"}, "Budget first_call='-2s' can never be kept"),
        ({"first_call": "1e999s"}, "Budget first_call='1e999s' is not accepted: give a finite number above 0"),
        ({"first_call": "soon"}, "Budget first_call='soon' is not accepted: give a number and its unit, such as '2s'"),
        ({"first_call": "2 s or so"}, "Budget first_call='2 s or so' is not accepted"),
        ({"warmup_calls": -1}, "Budget warmup_calls=-1 is not accepted: give a whole number from 0 on"),
        ({"warmup_calls": True}, "Budget warmup_calls=True is not accepted"),
        ({"warmup_calls": 20}, "Budget warmup_calls=20 could not be seen to be kept: give a number below 20"),
        ({"recompiles": "0"}, "Budget recompiles='0' is not accepted: give a whole number from 0 on"),
        ({"recompiles": 1.5}, "Budget recompiles=1.5 is not accepted"),
        ({"copies": 1}, "Budget copies=1 is not accepted: give True or False"),
        ({"inputs": ()}, "Budget inputs=() is empty"),
        ({"inputs": ("example", "example")}, "lists an input twice"),
        ({"inputs": (0,)}, "Budget inputs=(0,) is not accepted: give labels of inputs"),
        ({"inputs": 3}, "Budget inputs=3 is not accepted: give labels of inputs"),
        ({"median": "8ms", "p99": "5ms"}, "Budget p99='5ms' is below median='8ms'"),
        ({"medain": "5ms"}, "unknown keyword of Budget 'medain'. Did you mean 'median'? Accepted: ratio, median, p99,"),
    ],
)
def test_nonsense_is_an_error_that_says_what_is_accepted(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        Budget(**given)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "'5' has no unit: write 5x for a multiple of eager's time, or a time such as 5ms"),
        ("", 'the budget is empty: write "1.2x"'),
        ("fast", "'fast' is not a budget: write \"1.2x\""),
        ("500MB", "'500MB' is a size of what? Write peak_memory=500MB or artifact_size=500MB"),
        ("5kg", "'5kg' is not a budget"),
        ("medain=5ms", "unknown keyword of Budget 'medain'"),
        ("median=5", "Budget median='5' has no unit"),
        ("5ms median=4ms", "sets median twice"),
        ("-1.2x", "can never be kept"),
        ("recompiles=many", "Budget recompiles='many' is not accepted"),
        ("copies=yes", "Budget copies='yes' is not accepted: give True or False"),
        ("inputs=", "Budget inputs=('',) is not accepted"),
    ],
)
def test_a_text_that_is_no_budget(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        read_budget(text)
    assert message in str(error.value)


def test_it_is_a_value() -> None:
    budget = Budget("1.2x", p99="8ms")
    assert budget == Budget(ratio=1.2, p99="8 ms")
    assert len({budget, Budget("1.2x", p99="8ms"), Budget("1.3x", p99="8ms")}) == 2
    assert copy.deepcopy(budget) == pickle.loads(pickle.dumps(budget)) == budget
    assert dataclasses.replace(budget, ratio=None) == Budget(p99="8ms")
    with pytest.raises(dataclasses.FrozenInstanceError):
        budget.ratio = "9x"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "ratio"),
    [
        (None, None),
        ("3x", "3x"),
        (Budget("3x"), "3x"),
        ({"onnx": "3x"}, "3x"),
        ({"trace": "3x"}, None),
        ({"onnx": "9x", "onnx-cuda": "3x"}, "3x"),
        ({"onnx-cuda": "9x", "onnx:optimize=false": "3x"}, "3x"),
        ({"*": "9x", "cuda": "3x"}, "3x"),
        ({"cuda": "9x", "onnx": "3x"}, "3x"),
        ({"*-cpu": "9x", "*-cuda:1-*": "3x", "*": "9x"}, "3x"),
        ({"*": "9x", "onnx*": "3x"}, "3x"),
        ({"onnx*": "9x", "onnx*-cuda*": "3x", "*": "9x"}, "3x"),
    ],
)
def test_the_most_exact_name_of_a_dict_counts(given: Any, ratio: str | None) -> None:
    found = budget_of(given, CUDA)
    assert (found and found.ratio) == ratio


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (1.2, '1.2 is not a budget: give "1.2x" (times eager)'),
        (True, "True is not a budget"),
        ({"compile": 1.2}, "'compile': 1.2 is not a budget"),
        ({"compile": "1.2"}, "'compile': '1.2' has no unit"),
        ({3: "1.2x"}, "3 is not the name of items"),
        ({}, "an empty dict limits nothing"),
    ],
)
def test_what_a_test_may_not_give(given: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        as_budgets(given)
    assert message in str(error.value)


def test_a_name_of_no_item_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"latency: 'onxx' names no backend, device or dtype: give 'compile'"):
        budget_of({"onnx": "2x", "onxx": "2x"}, CUDA)


def test_what_is_wrong_is_named_with_its_argument() -> None:
    with pytest.raises(UsageError, match=r"latency='5': '5' has no unit"):
        budget_of("5", CUDA)


def test_without_pytest_a_dict_finds_the_item_by_device_and_dtype() -> None:
    model, args = torch.nn.Linear(2, 2).eval(), (torch.ones(1, 2),)
    limits = {"script": "1ns", "trace-cpu-float32": "1000x"}
    outcome = check(model, args, device=torch.device("cpu"), dtype=torch.float32, n_inputs=0, latency=limits)  # type: ignore[arg-type]
    assert outcome.performance is not None
    assert [one.budget for one in outcome.performance.judged] == ["1000x"]
    assert check(model, args, n_inputs=0, latency={"script": "1ns"}).performance is None
