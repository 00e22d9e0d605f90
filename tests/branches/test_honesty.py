"""What the search must not do: change anything of the user's, hang, blame what cannot be reached."""

from __future__ import annotations

import colorsys
import importlib
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pytest_torchexport import Cause, Verdict, check
from tests.branches.judge import Eager

ROWS = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
FAR = 4321.0

pytestmark = pytest.mark.filterwarnings("ignore")


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.std() > 3 else x + 1


class Stateful(nn.Module):
    """Decides on its input, in helpers too, and keeps state of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.seen = nn.Buffer(torch.zeros(()))
        self.history: list[int] = []
        self.mode = "plain"

    def forward(self, x: torch.Tensor) -> Any:
        self.seen.add_(1)
        self.history.append(x.shape[0])
        y = self.linear(x)
        if y.detach().mean() > FAR:
            self.mode = "loud"
            return y * 2
        while x.abs().max() > 30:
            x = x / 2
        return self._helped(y) + x

    def _helped(self, y: torch.Tensor) -> torch.Tensor:
        return torch.stack([_doubled(row) for row in y if row.sum() > -50])


@pytest.mark.parametrize("backend", [Eager(), "trace", "script"], ids=["eager", "trace", "script"])
def test_nothing_of_the_user_s_is_changed(backend: Any) -> None:
    model, x = Stateful(), ROWS.clone()
    functions = [Stateful.forward, Stateful._helped, _doubled, nn.Linear.forward]
    codes = [function.__code__ for function in functions]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    attributes, rng = {name: id(value) for name, value in vars(model).items()}, torch.get_rng_state()
    tracers = sys.gettrace(), sys.getprofile(), threading.gettrace()
    check(model, (x,), backend=backend)
    assert [function.__code__ for function in functions] == codes
    assert all(function.__code__ is code for function, code in zip(functions, codes, strict=True))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {name: id(value) for name, value in vars(model).items()} == attributes
    assert (model.history, model.mode, model.training) == ([], "plain", True)
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(x, ROWS)
    assert not x.requires_grad
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert (sys.gettrace(), sys.getprofile(), threading.gettrace()) == tracers
    assert torch.is_grad_enabled()


def test_nothing_is_changed_where_the_search_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_torchexport.branches import search

    def broken(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(search, "flip", broken)
    model = Stateful()
    code, before = Stateful.forward.__code__, sys.gettrace()
    with pytest.raises(KeyboardInterrupt):
        check(model, (ROWS,), backend=Eager())
    assert Stateful.forward.__code__ is code
    assert (model.history, model.mode) == ([], "plain")
    assert sys.gettrace() is before


# --- what no input reaches --------------------------------------------------------------------------------------------


def impossible(x: torch.Tensor) -> torch.Tensor:
    if x.abs().min() < -1:
        return x * 2
    return x + 1


def excluded(x: torch.Tensor) -> torch.Tensor:
    if x.abs().min() < -1:  # export: no branch
        return x * 2
    return x + 1 if x.mean() > 0.5 else 1 + x


def test_what_no_input_reaches_is_listed_and_no_failure() -> None:
    outcome = check(impossible, (ROWS,))
    assert outcome.verdict is Verdict.EQUIVALENT, outcome.message
    assert outcome.branches is not None
    ((decision, missing),) = outcome.branches.unreached
    assert (decision.condition, missing.outcome) == ("x.abs().min() < -1", "true")
    assert "gradient" in missing.tried
    assert decision.location.file == __file__
    (entry,) = [entry for entry in outcome.not_checked if "x.abs().min() < -1" in entry.what]
    assert missing.tried in entry.why


def test_a_minimum_makes_it_invalid() -> None:
    outcome = check(impossible, (ROWS,), min_coverage=1.0)
    assert outcome.verdict is Verdict.INVALID
    assert "x.abs().min() < -1" in outcome.message
    assert check(impossible, (ROWS,), min_coverage=0.5).verdict is Verdict.EQUIVALENT


def test_a_comment_takes_it_out_of_the_count() -> None:
    outcome = check(excluded, (ROWS,), min_coverage=1.0)
    assert outcome.verdict is Verdict.EQUIVALENT, outcome.message
    assert outcome.branches is not None
    assert [decision.excluded for decision in outcome.branches.decisions] == [True, False]
    assert (outcome.branches.known, outcome.branches.reached) == (2, 2)
    assert not outcome.branches.unreached


# --- how much it does -------------------------------------------------------------------------------------------------


def gate(x: torch.Tensor) -> torch.Tensor:
    if FAR < x.mean() < FAR + 0.5:
        return x * 2
    return x


def test_the_modes() -> None:
    searched, observed, off = (check(gate, (ROWS,), branches=mode) for mode in ("search", "observe", "off"))
    assert (searched.verdict, searched.cause) == (Verdict.MISMATCH, Cause.BAKED_BRANCH)
    assert searched.location is not None
    assert searched.location.source == "if FAR < x.mean() < FAR + 0.5:"
    assert searched.inputs_by_kind()["branch"] >= 1
    assert observed.verdict is Verdict.EQUIVALENT
    assert observed.branches is not None
    assert observed.branches.mode == "observe"
    assert [one.outcome for _, one in observed.branches.unreached] == ["true"]
    assert "branch" not in observed.inputs_by_kind()
    assert (off.verdict, off.branches) == (Verdict.EQUIVALENT, None)


@pytest.mark.parametrize("budget", [0, 1, 10, 60])
def test_the_budget_is_kept(budget: int) -> None:
    outcome = check(impossible, (ROWS,), search_budget=budget)
    assert outcome.branches is not None
    # Observing the example costs an instrumented run, which counts as three.
    assert outcome.branches.eager_runs <= max(budget, 3) + 3
    ((_, missing),) = outcome.branches.unreached
    assert missing.tried


def test_a_budget_of_nothing_observes_only() -> None:
    outcome = check(gate, (ROWS,), search_budget=0)
    assert outcome.verdict is Verdict.EQUIVALENT
    assert "branch" not in outcome.inputs_by_kind()


# --- inputs that are none ---------------------------------------------------------------------------------------------


def endless(x: torch.Tensor) -> torch.Tensor:
    while x.mean() > FAR:
        x = x + 1
    return x


def grows(x: torch.Tensor) -> torch.Tensor:
    while not x.abs().max() < 30:  # of NaN this never holds
        x = x / 2
    return x


@pytest.mark.timeout(60)
@pytest.mark.parametrize("model", [endless, grows])
def test_a_loop_without_an_end_does_not_hang(model: Any) -> None:
    outcome = check(model, (ROWS,), backend=Eager())
    assert outcome.verdict is Verdict.EQUIVALENT, outcome.message


def refusing(x: torch.Tensor) -> torch.Tensor:
    if x.mean() > FAR:
        msg = "too loud"
        raise ValueError(msg)
    return x * 2


def test_an_input_on_which_eager_raises_is_none() -> None:
    outcome = check(refusing, (ROWS,))
    assert outcome.verdict is Verdict.EQUIVALENT, outcome.message
    assert "branch" not in outcome.inputs_by_kind()


def test_an_input_that_is_assumed_away_is_none() -> None:
    outcome = check(gate, (ROWS,), assume=lambda x: bool(x.mean() < FAR))
    assert outcome.verdict is Verdict.EQUIVALENT, outcome.message
    assert outcome.branches is not None
    assert [one.outcome for _, one in outcome.branches.unreached] == ["true"]


def test_other_inputs_keep_their_verdict() -> None:
    searched, off = check(gate, (ROWS,), backend=Eager()), check(gate, (ROWS,), backend=Eager(), branches="off")
    assert searched.verdict is off.verdict is Verdict.EQUIVALENT
    kept = [tried for tried in searched.inputs if tried.kind != "branch"]
    assert kept == list(off.inputs)
    assert len(searched.inputs) > len(kept)


# --- whose code -------------------------------------------------------------------------------------------------------

LIBRARY = """
def decide(x):
    if 4321.0 < x.mean() < 4321.5:
        return x * 2
    return x
"""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "somelibrary.py").write_text(LIBRARY, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("somelibrary").decide
    del sys.modules["somelibrary"]


def _files(outcome: Any) -> set[str]:
    return {Path(decision.location.file).name for decision in outcome.branches.decisions}


def _with(decide: Any) -> Any:
    def model(x: torch.Tensor) -> Any:
        return decide(x) + (1 if x[0].mean() > FAR else 0)

    return model


def test_user_code_is_narrowed(library: Any) -> None:
    model = _with(library)
    every = check(model, (ROWS,), backend=Eager())
    assert _files(every) == {"somelibrary.py", Path(__file__).name}
    some = check(model, (ROWS,), backend=Eager(), user_code=("-somelibrary",))
    assert _files(some) == {Path(__file__).name}


def hue(x: torch.Tensor) -> Any:
    red, green, blue = x[0, :3].sigmoid().tolist()
    return x + colorsys.rgb_to_hls(red, green, blue)[0]


def test_user_code_is_widened() -> None:
    assert "colorsys.py" not in _files(check(hue, (ROWS,), backend=Eager()))
    wide = check(hue, (ROWS,), backend=Eager(), user_code=("colorsys",))
    assert "colorsys.py" in _files(wide)
    assert wide.branches is not None
    reached = {
        d.condition
        for d in wide.branches.decisions
        if {o.outcome for o in d.outcomes if o.reached_by} >= {"true", "false"}
    }
    assert {"l <= 0.5", "r == maxc"} <= reached
