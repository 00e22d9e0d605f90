"""A failing input made simple: what it fails by stays, the rest goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
from torch.export import Dim

from pytest_torchexport import booleans, floats, integers, optional
from pytest_torchexport.inputs.shapes import normalise
from pytest_torchexport.inputs.shrink import shrink
from pytest_torchexport.inputs.simpler import rounded, shortest, simpler
from pytest_torchexport.inputs.space import Space
from pytest_torchexport.subject.call import Call, bind
from pytest_torchexport.subject.equality import identical

if TYPE_CHECKING:
    from collections.abc import Callable


class Model(torch.nn.Module):
    def forward(
        self,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
        *,
        flag: bool = False,
        mode: Literal["a", "b", "c"] = "a",
        scale: float = 1.0,
        parts: Any = None,
    ) -> torch.Tensor:
        return x


MODEL = Model()


def noise(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shrunk(
    example: Call,
    failing: Call | tuple[Call, ...],
    fails: Callable[..., Any],
    *,
    domains: dict[str, Any] | None = None,
    shapes: Any = None,
    budget: int = 300,
) -> tuple[Call, ...]:
    """The shrunken calls; `fails` gets the first call's arguments by name, or all calls' if there are several."""
    space = Space.of(MODEL, example, domains, normalise(MODEL, example, shapes), seed=0)
    calls = failing if isinstance(failing, tuple) else (failing,)
    ran = []

    def judge(tried: tuple[Call, ...]) -> bool:
        assert tried
        ran.append(tried)
        named = [bind(MODEL, call) for call in tried]
        return bool(fails(*named) if isinstance(failing, tuple) else fails(**named[0]))

    assert judge(calls), "the test's own input fails"
    ran.clear()
    result, used = shrink(calls, space, judge, budget)
    assert used == len(ran) <= budget
    assert judge(result)
    assert all(call.label == "found" for call in result)
    again, _ = shrink(calls, space, judge, budget)
    assert identical([bind(MODEL, call) for call in again], [bind(MODEL, call) for call in result]), "deterministic"
    return result


def found(*args: Any, **kwargs: Any) -> Call:
    return Call(args, kwargs, "branch", "found")


X = noise(4, 6)


def test_what_does_not_matter_goes_back_to_the_example() -> None:
    example = Call((X, noise(3)), {"flag": False, "scale": 1.5})
    failing = found(noise(4, 6, seed=9) * 10, noise(3, seed=8), flag=True, scale=0.1)
    (made,) = shrunk(example, failing, lambda x, y, flag, scale: flag)
    assert made.kwargs == {"flag": True, "scale": 1.5}
    assert identical(made.args, example.args)


def test_a_mean_becomes_a_round_constant() -> None:
    (made,) = shrunk(Call((X,)), found(noise(4, 6) + 3.7), lambda x: x.mean() > 2.9)
    assert identical(made.args[0], torch.full((4, 6), 3.0))


def test_a_single_element_is_left_and_is_round() -> None:
    x = noise(40, 60)
    x[17, 5], x[3, 3] = 7.3214, 0.5
    (made,) = shrunk(Call((noise(40, 60, seed=1),)), found(x), lambda x: x[17, 5] > 5 and x[3, 3] < 1)
    assert made.args[0].nonzero().tolist() == [[17, 5]]
    assert float(made.args[0][17, 5]) == 6.0


def test_elements_that_matter_together_stay() -> None:
    x = noise(64).abs() + 1
    x[41] = 0.3
    (made,) = shrunk(Call((-x,)), found(x), lambda x: x[3] > 0.5 and x[40] > 0.5 and x[41] < 0.5)
    assert made.args[0].nonzero().reshape(-1).tolist() == [3, 40]
    assert set(made.args[0].tolist()) == {0.0, 1.0}


def test_a_nan_stays_alone() -> None:
    x = noise(5, 5)
    x[1, 1] = x[2, 2] = float("nan")
    (made,) = shrunk(Call((X[:1].repeat(5, 1)[:, :5],)), found(x), lambda x: x.isnan().any())
    assert int(made.args[0].isnan().sum()) == 1
    assert int((made.args[0] != 0).sum()) == 1


def test_many_elements_are_round() -> None:
    x = noise(64).abs() + 1
    x[::2] *= -1
    (made,) = shrunk(Call((X,)), found(x), lambda x: (x[::2] < -0.4).all() and (x[1::2] > 0.4).all())
    assert bool((made.args[0] == made.args[0].round()).all())


def test_a_narrow_band_keeps_its_digits() -> None:
    (made,) = shrunk(Call((torch.tensor([1.0]),)), found(torch.tensor([0.123412])), lambda x: 0.1234 < x < 0.12345)
    assert shortest(made.args[0][0]) == pytest.approx(0.12341, abs=2e-6)


def test_tokens_become_small_and_the_telling_one_stays() -> None:
    ids = torch.tensor([[5, 9, 50256, 3], [7, 7, 7, 50256]])
    (made,) = shrunk(Call((torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]),)), found(ids), lambda x: (x == 50256).any())
    assert sorted(made.args[0].reshape(-1).tolist()) in ([0] * 7 + [50256], [50256] * 8)


def test_whole_numbers_become_small() -> None:
    (made,) = shrunk(Call((torch.tensor(3),)), found(torch.tensor(977)), lambda x: x > 40)
    assert int(made.args[0]) == 41


def test_masks_become_plain() -> None:
    mask = noise(8, 8) > 0
    mask[3] = False
    (made,) = shrunk(Call((torch.ones(8, 8, dtype=torch.bool),)), found(mask), lambda x: not x[3].any())
    assert made.args[0].dtype is torch.bool
    assert not made.args[0].any()


def test_python_numbers_become_round() -> None:
    (made,) = shrunk(Call((X,), {"scale": 1.0}), found(X, scale=8.31415), lambda x, scale: scale > 3)
    assert made.kwargs["scale"] in (4.0, 5.0, 10.0)


def test_sizes_become_small_and_keep_what_matters() -> None:
    batch = Dim("batch", min=1)
    x = torch.zeros(9, 3)
    x[7] = 5.0
    shapes = {"x": {0: batch}, "y": {0: batch}}
    example = Call((torch.ones(4, 3), torch.ones(4)))
    (made,) = shrunk(
        example, found(x, torch.arange(9.0)), lambda x, y: (x > 4).any() and len(x) == len(y), shapes=shapes
    )
    assert made.args[0].shape == (1, 3)
    assert made.args[1].shape == (1,)


def test_the_last_elements_may_be_those_that_matter() -> None:
    x = torch.arange(27.0).reshape(9, 3)
    shapes = {"x": {0: Dim("batch", min=1)}}
    row = torch.tensor([24.0, 25.0, 26.0])
    (made,) = shrunk(Call((torch.ones(4, 3),)), found(x), lambda x: (x == row).all(-1).any(), shapes=shapes)
    assert identical(made.args[0], row.reshape(1, 3))


def test_the_smallest_size_that_fails_is_found() -> None:
    shapes = {"x": {0: Dim("batch", max=64)}}
    (made,) = shrunk(Call((torch.ones(4, 3),)), found(torch.ones(50, 3)), lambda x: len(x) > 13, shapes=shapes)
    assert made.args[0].shape == (14, 3)


def test_an_odd_size_stays_odd() -> None:
    shapes = {"x": {0: Dim("batch", min=2)}}
    (made,) = shrunk(Call((torch.ones(4, 3),)), found(torch.ones(7, 3)), lambda x: len(x) % 2, shapes=shapes)
    assert made.args[0].shape == (3, 3)


def test_the_smallest_of_a_row_of_sizes_is_found() -> None:
    shapes = {"x": {0: Dim("batch", min=2)}}
    (made,) = shrunk(Call((torch.ones(4, 3),)), found(torch.ones(63, 3)), lambda x: len(x) % 4 == 3, shapes=shapes)
    assert made.args[0].shape == (3, 3)


def test_sizes_that_go_together_go_alone_where_they_can() -> None:
    shapes = {"x": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}}
    (made,) = shrunk(Call((torch.ones(4, 4),)), found(torch.ones(9, 9)), lambda x: x.shape[1] > 6, shapes=shapes)
    assert made.args[0].shape == (2, 7)


def test_options_go_back() -> None:
    example = Call((X, noise(3)), {"parts": {"m": X, "n": noise(2)}, "mode": "b"})
    failing = found(X, None, parts={"n": noise(2)}, mode="c", flag=True)
    domains = {"parts['m']": optional(), "flag": booleans()}
    (made,) = shrunk(example, failing, lambda x, y, parts, mode, flag: mode == "c", domains=domains)
    assert identical(made.args, example.args)
    assert identical(sorted(made.kwargs.items()), sorted({**example.kwargs, "mode": "c", "flag": False}.items()))
    (made,) = shrunk(example, failing, lambda y, **_: y is None, domains=domains)
    assert identical(bind(MODEL, made)["mode"], "b")
    assert "m" in made.kwargs["parts"]


def test_an_argument_that_the_example_leaves_out_goes() -> None:
    (made,) = shrunk(Call((X,)), found(X + 1, flag=True, mode="c"), lambda x, flag=False, mode="a": flag)
    assert dict(made.kwargs) == {"flag": True}
    assert made.args[0].equal(X)


def test_calls_go_that_do_not_matter() -> None:
    example = Call((torch.zeros(1),))
    calls = tuple(found(torch.tensor([float(n)])) for n in range(6))
    result = shrunk(example, calls, lambda *named: any(one["x"] == 3 for one in named))
    assert [call.args[0].tolist() for call in result] == [[3.0]]


def test_calls_of_a_sequence_become_alike() -> None:
    calls = tuple(found(torch.tensor([float(n), 1.0])) for n in range(1, 6))
    result = shrunk(Call((torch.zeros(2),)), calls, lambda *named: sum(float(one["x"].sum()) > 1 for one in named) >= 3)
    assert len(result) == 3
    assert all(call is result[0] for call in result)


def test_the_order_of_calls_stays() -> None:
    calls = tuple(found(torch.tensor([float(n % 3)])) for n in range(6))

    def fails(*named: dict[str, Any]) -> bool:
        values = [float(one["x"]) for one in named]
        return 2.0 in values and 1.0 in values[values.index(2.0) :]

    result = shrunk(Call((torch.zeros(1),)), calls, fails)
    assert [float(call.args[0]) for call in result] == [2.0, 1.0]


def test_nothing_leaves_its_domain() -> None:
    seen: list[dict[str, Any]] = []

    def fails(**named: Any) -> bool:
        seen.append(named)
        return bool(named["x"].sum() > 30)

    domains = {"x": floats(0.5, 3), "y": integers(2, 9), "scale": floats(1, 2)}
    example = Call((torch.full((4, 6), 0.7), torch.tensor([4, 4])), {"scale": 1.5})
    shrunk(
        example, found(torch.full((4, 6), 2.71) - X.abs() / 10, torch.tensor([9, 3]), scale=2.0), fails, domains=domains
    )
    assert seen
    for named in seen:
        assert 0.5 <= float(named["x"].min()) <= float(named["x"].max()) <= 3
        assert 2 <= int(named["y"].min()) <= int(named["y"].max()) <= 9
        assert 1 <= named["scale"] <= 2


@pytest.mark.parametrize("budget", [0, 1, 7])
def test_the_budget_is_kept(budget: int) -> None:
    (made,) = shrunk(Call((X,)), found(X + 3.14159), lambda x: x.mean() > 2.9, budget=budget)
    if not budget:
        assert made.args[0].equal(X + 3.14159)


def test_many_arguments_go_back_at_once() -> None:
    example = Call((X,), {"parts": [torch.tensor([float(n)]) for n in range(30)]})
    failing = found(X + 1, parts=[torch.tensor([n + 0.5]) for n in range(30)])
    (made,) = shrunk(example, failing, lambda x, parts: parts[7] == 7.5, budget=20)
    different = [n for n in range(30) if not made.kwargs["parts"][n].equal(example.kwargs["parts"][n])]
    assert 7 in different
    assert len(different) < 5


def test_the_same_input_is_judged_once() -> None:
    space = Space.of(MODEL, Call((X,)), None, None, seed=0)
    seen: list[bytes] = []

    def fails(calls: tuple[Call, ...]) -> bool:
        content = calls[0].args[0].numpy().tobytes()
        assert content not in seen
        seen.append(content)
        return bool(calls[0].args[0].sum() > 40)

    shrink((found(X + 3.14159),), space, fails, 300)
    assert seen


@pytest.mark.parametrize(
    ("number", "whole", "first"),
    [(7.0, True, [0, 1, -1, 2, 3, 6]), (0.0, False, []), (float("nan"), False, []), (0.1, False, [0, 0.1])],
)
def test_simpler_numbers(number: float, whole: bool, first: list[float]) -> None:
    found = simpler(number, whole=whole)
    assert number not in found
    assert found[: len(first) - 1] == first[: len(first) - 1]


@pytest.mark.parametrize("number", [3.14159, -271.8, 1e-7 / 3, 1e30 / 7, 12345.678, float("inf"), float("-inf")])
@pytest.mark.parametrize("whole", [True, False])
def test_simplifying_ends(number: float, whole: bool) -> None:
    for _ in range(200):
        others = simpler(number, whole=whole)
        if not others:
            break
        number = others[len(others) // 2]
    assert number == 0


def test_rounding_keeps_what_is_not_finite() -> None:
    values = torch.tensor([0.0, 123.456, -0.0012345, float("inf"), float("nan")])
    wanted = torch.tensor([0.0, 120.0, -0.0012, float("inf"), float("nan")], dtype=torch.float64)
    torch.testing.assert_close(rounded(values, 2), wanted, equal_nan=True)


def test_nothing_is_tried_beyond_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large input has as many elements to be put back as it likes."""
    made = []
    before = Space.with_values

    def counted(self: Space, call: Call, *args: Any) -> Call:
        made.append(call)
        return before(self, call, *args)

    monkeypatch.setattr(Space, "with_values", counted)
    large = noise(100, 100)
    shrunk(found(noise(100, 100, seed=4)), found(large), lambda x, **_: x.equal(large), budget=8)
    assert len(made) < 100
