"""The tolerance: what may be set, for all results or by name."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pytest_torchexport import Tolerance, UsageError
from pytest_torchexport.compare.tolerance import Rules, read_tolerance


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"rtol": 1e-3}, "atol is missing"),
        ({"atol": 1e-3}, "rtol is missing"),
        ({"rtol": -1e-3, "atol": 0.0}, "rtol=-0.001"),
        ({"rtol": 0.0, "atol": math.nan}, "atol=nan"),
        ({"rtol": math.inf, "atol": 0.0}, "rtol=inf"),
        ({"rtol": "1e-3", "atol": 0.0}, "rtol='1e-3'"),
        ({"rtol": True, "atol": 0.0}, "rtol=True"),
        ({"k": -1}, "k=-1"),
        ({"k": 0.5}, "at least 1"),
        ({"k": math.nan}, "k=nan"),
        ({"precision": "tf16"}, "'tf32', 'bf16', 'fp16'"),
        ({"compare": "bag"}, "'values', 'set', 'ignore'"),
        ({"compare": "set", "dim": "0"}, "dim='0'"),
        ({"rtol": 0.1, "atol": 0.1, "k": 8}, "either rtol and atol or k"),
        ({"rtol": 0.1, "atol": 0.1, "precision": "tf32"}, "either rtol and atol or precision"),
    ],
)
def test_a_wrong_tolerance_is_an_error_that_names_the_number(arguments: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Tolerance(**arguments)


def test_a_tolerance_is_shown_with_both_numbers() -> None:
    assert str(Tolerance(rtol=1, atol=1e-5)) == "rtol=1, atol=1e-05"


def test_a_tolerance_is_shown_with_what_is_set() -> None:
    assert str(Tolerance()) == "calibrated"
    assert str(Tolerance(k=10, precision="bf16")) == "k=10, precision='bf16'"
    assert str(Tolerance(compare="set", dim=-1)) == "compare='set', dim=-1"


@pytest.mark.parametrize(
    ("text", "tolerance"),
    [
        ("k=10", Tolerance(k=10)),
        (" rtol=1e-3 atol=1e-5 ", Tolerance(rtol=1e-3, atol=1e-5)),
        ("rtol=1e-3, atol=0", Tolerance(rtol=1e-3, atol=0)),
        ("precision=tf32 k=8", Tolerance(k=8, precision="tf32")),
        ("compare=ignore", Tolerance(compare="ignore")),
    ],
)
def test_a_tolerance_is_read_from_a_line(text: str, tolerance: Tolerance) -> None:
    assert read_tolerance(text) == tolerance


@pytest.mark.parametrize("text", ["", "10", "k=", "k=ten", "rtol=1e-3", "tol=3", "precision=int8", "k"])
def test_a_wrong_line_is_an_error(text: str) -> None:
    with pytest.raises(UsageError):
        read_tolerance(text)


PATHS = [
    "output['logits']",
    "call 2 output['logits']",
    "output['aux'][0]",
    "output.loss",
    "state bn.running_mean",
    "argument x",
    "gradient of head.weight",
    "output",
    "output[1]",
]


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("logits", {"output['logits']", "call 2 output['logits']"}),
        ("output['logits']", {"output['logits']", "call 2 output['logits']"}),
        ("call 2 output['logits']", {"call 2 output['logits']"}),
        ("['aux'][0]", {"output['aux'][0]"}),
        ("loss", {"output.loss"}),
        ("running_mean", {"state bn.running_mean"}),
        ("bn.running_mean", {"state bn.running_mean"}),
        ("x", {"argument x"}),
        ("head.weight", {"gradient of head.weight"}),
        ("output", {"output"}),
        ("1", {"output[1]"}),
        ("[1]", {"output[1]"}),
        ("gradient of *", {"gradient of head.weight"}),
        ("output[*", {p for p in PATHS if "output[" in p}),
        ("logit", set()),
        ("*", set(PATHS)),
    ],
)
def test_a_name_stands_for_results(name: str, fits: set[str]) -> None:
    mine = Tolerance(k=9)
    rules = Rules.of({name: mine})
    assert {path for path in PATHS if rules.of_result(path) == mine} == fits
    assert rules.unknown(PATHS) == ([] if fits else [name])


def test_the_most_exact_name_counts() -> None:
    rules = Rules.of({"out*": Tolerance(k=7), "logits": Tolerance(k=8), "output['logits']": Tolerance(k=9)})
    assert rules.of_result("output['logits']").k == 9
    assert rules.of_result("output['aux']['logits']").k == 8
    assert rules.of_result("output[1]").k == 7
    assert rules.of_result("state n") == Tolerance()
    assert str(rules) == "set: out*: k=7; logits: k=8; output['logits']: k=9"
    assert str(Rules.of({"*": Tolerance(k=7)})) == "set: k=7"
    assert str(Rules.of(None)) == str(Rules.of(Tolerance())) == "calibrated"


@pytest.mark.parametrize("given", [1e-3, "k=3", {"x": 1e-3}, {0: Tolerance()}, [Tolerance()]])
def test_what_is_no_tolerance_is_an_error_that_shows_one(given: Any) -> None:
    with pytest.raises(UsageError, match=r"Tolerance\(rtol=1e-4, atol=1e-5\)"):
        Rules.of(given)
