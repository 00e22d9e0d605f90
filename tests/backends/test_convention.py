from __future__ import annotations

from typing import Any

import pytest
import torch

from pytest_torchexport.backends.convention import Convention, grouped_shapes
from pytest_torchexport.errors import ConventionError
from pytest_torchexport.subject.call import Call

X, Y = torch.rand(2), torch.rand(3)


def model(
    x: torch.Tensor, factor: float = 2.0, pair: Any = None, *rest: torch.Tensor, mode: str = "sum", **named: Any
) -> torch.Tensor:
    return x


def plain(x: torch.Tensor, factor: float = 2.0, pair: Any = None) -> torch.Tensor:
    return x


def test_a_call_gets_the_form_of_the_example() -> None:
    convention = Convention(plain, Call((X,), {"factor": 3.0}))
    args, kwargs = convention.arrange((), {"factor": 3.0, "x": Y})
    assert args == (Y,)
    assert kwargs == {"factor": 3.0}
    assert convention.arrange((Y, 3.0), {})[1] == {"factor": 3.0}


def test_what_a_call_leaves_out_gets_its_default() -> None:
    args, kwargs = Convention(plain, Call((X, 2.0))).arrange((Y,), {})
    assert args[1] == 2.0
    assert kwargs == {}


def test_a_default_may_be_given_where_the_example_leaves_it_out() -> None:
    assert Convention(plain, Call((X,))).arrange((Y, 2.0), {}) == ((Y,), {})


@pytest.mark.parametrize(
    ("example", "call", "argument", "said"),
    [
        (Call((X, 3.0)), Call((X, 4.0)), "factor", r"the export fixed factor to 3\.0: it cannot be 4\.0"),
        (Call((X, 3.0)), Call((X,)), "factor", r"the export fixed factor to 3\.0: it cannot be 2\.0"),
        (Call((X,)), Call((X, 4.0)), "factor", r"leaves factor to its default, which is 2\.0"),
        (Call((X,)), Call((X,), {"pair": Y}), "pair", "leaves pair to its default, which is None"),
        (Call((X, 2.0, (Y, 1))), Call((X, 2.0, (Y, 2))), "pair", r"the export fixed pair\[1\] to 1"),
        (Call((X, 2.0, (Y, 1))), Call((X, 2.0, (Y,))), "pair", r"the structure of pair to pair\[0\], pair\[1\]"),
        (Call((X, 2.0, {"a": Y})), Call((X, 2.0, {"b": Y})), "pair", "the structure of pair"),
        (Call((X, 2.0, Y)), Call((X, 2.0, 5)), "pair", "pair is a tensor in the example"),
        (Call((X, 2.0, 5)), Call((X, 2.0, Y)), "pair", "the export fixed pair to 5"),
        (Call((X, 2.0, 1)), Call((X, 2.0, True)), "pair", "the export fixed pair to 1: it cannot be True"),
    ],
)
def test_another_value_than_the_exports_is_an_error(example: Call, call: Call, argument: str, said: str) -> None:
    with pytest.raises(ConventionError, match=said) as raised:
        Convention(plain, example).arrange(call.args, call.kwargs)
    assert raised.value.argument == argument


def test_an_argument_without_default_has_to_be_passed() -> None:
    def loose(*rest: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        return named["z"]

    with pytest.raises(ConventionError, match="cannot do without"):
        Convention(loose, Call((), {"z": X})).arrange((), {})


def test_a_number_that_became_a_symbol_may_vary_within_its_type() -> None:
    convention = Convention(plain, Call((X, 2.0, 5)), dynamic=frozenset({2}))
    assert convention.arrange((X, 2.0, 7), {})[0][2] == 7
    for other in (7.5, True, Y):
        with pytest.raises(ConventionError, match=r"pair is of type int"):
            convention.arrange((X, 2.0, other), {})


def test_nan_is_the_same_value_as_nan() -> None:
    nan = float("nan")
    assert Convention(plain, Call((X, nan))).arrange((X, float("nan")), {})[0][0] is X


def test_no_tensor_of_the_example_is_kept() -> None:
    import gc
    import weakref

    tensor = torch.rand(3)
    alive = weakref.ref(tensor)
    convention = Convention(plain, Call((tensor, 3.0)))
    del tensor
    gc.collect()
    assert alive() is None
    assert convention.arrange((X, 3.0), {})[0][0] is X


def test_shapes_of_variadic_arguments_are_grouped() -> None:
    call = Call((X, 2.0, None, Y, Y), {"mode": "max", "z": X})
    shapes = {"x": {0: "b"}, "rest_1": {0: "n"}, "z": {0: "b"}}
    assert grouped_shapes(model, call, shapes) == {
        "x": {0: "b"},
        "factor": None,
        "pair": None,
        "rest": (None, {0: "n"}),
        "mode": None,
        "named": {"z": {0: "b"}},
    }
    assert grouped_shapes(torch.sin, Call((X,)), {"x": None}) == {"x": None}
