"""How a decision goes the other way: functions that decide once or twice, far from what chance and special numbers do.

No input is generated, so that what is reached is reached by the search.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from pytest_torchexport import check, floats, integers
from pytest_torchexport.branches import search
from tests.branches.judge import Eager

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_torchexport.outcome import BranchCoverage

pytestmark = pytest.mark.filterwarnings("ignore")

ROWS = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([[3, 5, 8, 1, 4, 4], [9, 2, 2, 7, 1, 6]])


@dataclass(frozen=True)
class Way:
    """A module or function with a decision, the example call, and what the search has to reach.

    `others`: other parts of the search reach it as well. `beyond`: why it is not reached yet.
    """

    make: Callable[..., Any]
    args: tuple[Any, ...]
    wanted: str
    inputs: dict[str, Any] | None
    others: bool
    beyond: str

    def coverage(self) -> BranchCoverage:
        model = self.make() if isinstance(self.make, type) else self.make
        outcome = check(model, self.args, backend=Eager(), n_inputs=0, inputs=self.inputs)
        assert outcome.branches is not None
        return outcome.branches


WAYS: list[Way] = []


def way(
    *args: Any, wanted: str = "true", inputs: dict[str, Any] | None = None, others: bool = False, beyond: str = ""
) -> Callable[..., Any]:
    """Register a function, or a class that makes a module."""

    def register(make: Callable[..., Any]) -> Callable[..., Any]:
        WAYS.append(Way(make, args or (ROWS,), wanted, inputs, others, beyond))
        return make

    return register


# --- where the gradient would end -------------------------------------------------------------------------------------


@way()
def detached(x: torch.Tensor) -> Any:
    return x * 2 if 4321.0 < x.detach().mean() < 4321.5 else x


@way()
def without_grad(x: torch.Tensor) -> Any:
    with torch.no_grad():
        level = x.std()
    if 4321.0 < level < 4321.5:
        return x * 2
    return x


@way()
@torch.no_grad()
def decorated(x: torch.Tensor) -> Any:
    if 4321.0 < x.sum() < 4321.5:
        return x * 2
    return x


@way()
@torch.no_grad()
def decorated_with_numbers(x: torch.Tensor) -> Any:
    levels = x.mean(1).tolist()
    if not levels[0] <= 4321.0 and 1234.0 < levels[1] - float(x[2].mean()) < 1234.5:
        return x * 2
    return x


@way(beyond="tensors of inference mode have no gradient")
@torch.inference_mode()
def inference(x: torch.Tensor) -> Any:
    if 4321.0 < x.mean() < 4321.5:
        return x * 2
    return x


@way()
def number(x: torch.Tensor) -> Any:
    level = x.mean().item()
    if 4321.0 < level < 4321.5:
        return x * 2
    return x


@way()
def arithmetic(x: torch.Tensor) -> Any:
    level, spread = float(x.mean()), float(x.std())
    if 4321.0 < (level * 3 - 1) / 2 + abs(spread) < 4321.5:
        return x * 2
    return x


@way()
def mathematics(x: torch.Tensor) -> Any:
    decibel = 20 * math.log10(max(x.pow(2).mean().sqrt().item(), 1e-9))
    if 61.1 < decibel < 61.2:
        return x * 2
    return x


@way()
def rounded(x: torch.Tensor) -> Any:
    if round((x[0] - x[1]).mean().item()) == 4321:
        return x * 2
    return x


@way()
def listed(x: torch.Tensor) -> Any:
    values = x.mean(1).tolist()
    if 4321.0 < values[2] < 4321.5:
        return x * 2
    return x


@way()
def summed_in_python(x: torch.Tensor) -> Any:
    if 4321.0 < sum(x.mean(1).tolist()) < 4321.5:
        return x * 2
    return x


@way(others=True)
def with_numpy(x: torch.Tensor) -> Any:
    level = float(x.numpy().mean())
    if level > 4321.0:
        return x * 2
    return x


@way(beyond="what numpy calculates has no gradient")
def band_with_numpy(x: torch.Tensor) -> Any:
    level = float(x.numpy().std())
    if 4321.0 < level < 4321.5:
        return x * 2
    return x


@way()
def band_of_squares(x: torch.Tensor) -> Any:
    if 4321.0 < x.var() < 4325.0:
        return x * 2
    return x


@way()
def written_in_place(x: torch.Tensor) -> Any:
    work = torch.zeros(4)
    work[1:] += x[1:].mean(1)
    work.mul_(2)
    if 4321.0 < work.sum() < 4321.5:
        return x * 2
    return x


@way()
def into_out(x: torch.Tensor) -> Any:
    total = torch.empty(8)
    torch.sum(x, 0, out=total)
    if 4321.0 < total[3] < 4321.5:
        return x * 2
    return x


# --- counts, choices, sizes -------------------------------------------------------------------------------------------


@way()
def counted(x: torch.Tensor) -> Any:
    if (x > 4321).sum() == 9:
        return x * 2
    return x


@way(others=True)
def share(x: torch.Tensor) -> Any:
    if 0.4 < (x[1:] > 4321 + x[0]).float().mean() < 0.5:
        return x * 2
    return x


@way()
def any_of(x: torch.Tensor) -> Any:
    if ((x > 4321.0) & (x < 4321.5)).any():
        return x * 2
    return x


@way()
def all_of(x: torch.Tensor) -> Any:
    if ((x > 4321.0) & (x < 4329.5)).all():
        return x * 2
    return x


@way()
class Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.gate = nn.Linear(8, 40)

    def forward(self, x: torch.Tensor) -> Any:
        if self.gate(x.mean(0)).argmax() == 23:
            return x * 2
        return x


@way()
def rows_kept(x: torch.Tensor) -> Any:
    kept = x[x.mean(1) > 4321]
    if kept.shape[0] == 3:
        return kept.sum(0)
    return x.sum(0)


@way()
def found(x: torch.Tensor) -> Any:
    if len((x > 4321).nonzero()) == 5:
        return x * 2
    return x


@way()
def largest(x: torch.Tensor) -> Any:
    if 4321.0 < x.flatten().sort().values[-1] < 4321.5:
        return x * 2
    return x


@way(beyond="each step changes one element, and then another one is the tenth")
def tenth(x: torch.Tensor) -> Any:
    if 4321.0 < x.flatten().sort().values[10] < 4321.5:
        return x * 2
    return x


@way()
def largest_in_python(x: torch.Tensor) -> Any:
    tallest = max(x.mean(1).tolist())
    if 4321.0 < tallest < 4321.5:
        return x * 2
    return x


# --- equality ---------------------------------------------------------------------------------------------------------


@way()
def equal_number(x: torch.Tensor) -> Any:
    if x[0].sum() == 4321.25:
        return x * 2
    return x


@way(ROWS, ROWS + 1, others=True)
def equal_tensors(x: torch.Tensor, y: torch.Tensor) -> Any:
    if torch.equal(x[0], y[0]):
        return x * 2
    return x + y


@way(ROWS, ROWS + 1, beyond="only one element is made exact")
def equal_after_arithmetic(x: torch.Tensor, y: torch.Tensor) -> Any:
    if torch.equal(x[0], 3 * y[1] + 1):
        return x * 2
    return x + y


@way(ROWS, ROWS + 1)
def all_close(x: torch.Tensor, y: torch.Tensor) -> Any:
    if torch.allclose(x, 7 * y + 1, rtol=0, atol=0.01):
        return x * 2
    return x + y


# --- kinds of statements ----------------------------------------------------------------------------------------------


@way()
def chained(x: torch.Tensor) -> Any:
    low, high = 4321.0, 4321.5
    return x * 2 if low < x.mean() <= high else x


@way()
def compound(x: torch.Tensor) -> Any:
    if (x[0] - x[1]).mean() > 4321 and not x[2:].std() > 0.5:
        return x * 2
    return x


@way()
def nested(x: torch.Tensor) -> Any:
    if x[0].mean() > 4321:
        if x[1].mean() < -1234:
            return x * 2
        return x * 3
    return x


@way(wanted="true")
def filtered(x: torch.Tensor) -> Any:
    kept = [row for row in x if 4321.0 < row.sum() < 4321.5]
    return x.sum() + len(kept)


@way()
def matched(x: torch.Tensor) -> Any:
    match int(x.sum()):
        case 4321:
            return x * 2
        case _:
            return x


@way()
def guarded(x: torch.Tensor) -> Any:
    match x.mean().item():
        case level if 4321.0 < level < 4321.5:
            return x * 2
    return x


@way()
def matched_and_named(x: torch.Tensor) -> Any:
    match int((x[0] - x[1]).mean()):
        case 0:
            return x
        case (4321 | 4322) as level:
            return x * level
        case other:
            return x + other


def _is_loud(level: torch.Tensor) -> bool | torch.Tensor:
    return 4321.0 < level < 4321.5


@way()
def asked_of_a_helper(x: torch.Tensor) -> Any:
    if _is_loud(x.mean()):
        return x * 2
    return x


@way()
def caught(x: torch.Tensor) -> Any:
    try:
        level = x.mean()
        if 4321.0 < level < 4321.5:
            return x * 2
    except ValueError:
        return x - 1
    return x


@way(wanted="another number")
def until_small(x: torch.Tensor) -> Any:
    steps = 0
    while 4321.0 < x.std() < 4321.5 and steps < 20:
        x, steps = x / 2, steps + 1
    return x


@way(wanted="another number", others=True)
def as_many_as_said(x: torch.Tensor) -> Any:
    for _ in range(int((x[0] - x[1]).mean().abs() * 3)):
        x = x / 2
    return x


@way(wanted="another number", beyond="a `for` loop is not driven by the number that its range is made of")
def as_many_as_said_far_away(x: torch.Tensor) -> Any:
    for _ in range(int((x[0] - x[1]).mean() / 4321)):
        x = x / 2
    return x


# --- models -----------------------------------------------------------------------------------------------------------


class Score(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x: torch.Tensor) -> Any:
        return self.layers(x).mean()


@way()
class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score = Score()

    def forward(self, x: torch.Tensor) -> Any:
        if self.score(x) > 0.4:
            return x * 2
        return x


@way()
class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score = torch.jit.script(Score())

    def forward(self, x: torch.Tensor) -> Any:
        if self.score(x) > 0.4:
            return x * 2
        return x


@way()
class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Buffer(torch.tensor(4321.0))
        self.high = 4321.5

    def forward(self, x: torch.Tensor) -> Any:
        if self.low < x.mean() < self.high:
            return x * 2
        return x


@way({"image": ROWS, "more": [ROWS + 1, (ROWS + 2,)]})
def in_containers(batch: dict[str, Any]) -> Any:
    if 4321.0 < 3 * batch["more"][1][0].mean() - 2.5 * batch["image"].mean() < 4321.5:
        return batch["image"] * 2
    return batch["image"]


@way(ROWS, 0.5, inputs={"scale": floats(0, 1e6)})
def of_a_plain_number(x: torch.Tensor, scale: float) -> Any:
    if 4321.0 < scale * 3 + x.mean() < 4321.5:
        return x * 2
    return x


@way(ROWS.abs().clamp(max=1.0), inputs={"x": floats(0, 1)})
def in_a_domain(x: torch.Tensor) -> Any:
    if 0.9311 < x.mean() < 0.9312 and x.std() < 0.05:
        return x * 2
    return x


@way(TOKENS, inputs={"tokens": integers(0, 9999)})
class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed = nn.Embedding(10000, 8)

    def forward(self, tokens: torch.Tensor) -> Any:
        x = self.embed(tokens)
        if x[..., 0].mean() > 2.8:
            return x * 2
        return x


@way(TOKENS, inputs={"tokens": integers(0, 99999)})
def whole_numbers(tokens: torch.Tensor) -> Any:
    if 54321 < (3 * tokens[0] - tokens[1]).sum() < 54425:
        return tokens * 2
    return tokens


@way(TOKENS, inputs={"tokens": integers(0, 99999)})
def whole_numbers_in_a_narrow_band(tokens: torch.Tensor) -> Any:
    if 54321 < tokens[0].sum() < 54325:
        return tokens * 2
    return tokens


@way(TOKENS, inputs={"tokens": integers(0, 99999)})
def whole_numbers_exactly(tokens: torch.Tensor) -> Any:
    if tokens[0].sum() == 54321:
        return tokens * 2
    return tokens


# --- tests ------------------------------------------------------------------------------------------------------------


def _each(wanted: Callable[[Way], bool]) -> pytest.MarkDecorator:
    params = [
        pytest.param(way, id=way.make.__name__, marks=[pytest.mark.xfail(reason=way.beyond)] if way.beyond else [])
        for way in WAYS
        if wanted(way)
    ]
    return pytest.mark.parametrize("way", params)


def reached(coverage: BranchCoverage, wanted: str) -> bool:
    """Whether the search reached the outcome of that name wherever there is one."""
    known = [one for decision in coverage.decisions for one in decision.outcomes if one.outcome == wanted]
    assert known, coverage.decisions
    assert any(one.reached_by != "example" for one in known), "the example takes it already"
    return all(one.reached_by in ("search", "example") for one in known)


@_each(lambda way: True)
def test_the_other_outcome_is_reached(way: Way) -> None:
    coverage = way.coverage()
    assert not coverage.unreached, coverage.unreached
    assert reached(coverage, way.wanted)


@_each(lambda way: not way.others and not way.beyond)
def test_it_is_the_gradient_that_does_it(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "flip", lambda *args: None)
    assert way.coverage().unreached
