"""Goal selection in the style of DenseTNT, a motion forecaster for driving: which of many goals will a car head for?

The network scores candidate goals on the map; then the best are picked one after the other, leaving out those too near
to one already picked. That last part is control flow: a loop, a set of tensors that grows, a dictionary. It is
scripted, and the module around it is traced, with `strict=False` because it returns a dictionary.
`optimize_for_inference` then folds constants and fuses layers, one more step on which a model can go wrong without an
error.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_torchexport import Trace, floats

# PyTorch announces the end of TorchScript with a warning, and here warnings are errors.
pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.:DeprecationWarning")


def select_goals(goals: torch.Tensor, scores: torch.Tensor, radius: float, most: int) -> dict[str, torch.Tensor]:
    """The goals of the highest scores, at most `most`, no two of them within the radius."""
    selected = {"goals": goals[:0], "scores": scores[:0]}
    for index in torch.argsort(scores, descending=True, stable=True):
        goal = goals[index]
        distances = torch.sqrt(torch.square(selected["goals"] - goal).sum(dim=-1))
        if bool((distances > radius).all()):
            selected["goals"] = torch.cat([selected["goals"], goal.unsqueeze(0)])
            selected["scores"] = torch.cat([selected["scores"], scores[index].unsqueeze(0)])
        if selected["goals"].size(0) == most:
            break
    return selected


class Forecaster(nn.Module):
    """From polylines (lanes and past tracks) and candidate goals to a trajectory for each selected goal."""

    def __init__(self, select, width: int = 16, steps: int = 6) -> None:
        super().__init__()
        self.select = select
        self.steps = steps
        self.points = nn.Sequential(nn.Linear(4, width), nn.LayerNorm(width), nn.ReLU())
        self.goals = nn.Sequential(nn.Linear(2, width), nn.ReLU())
        self.attention = nn.MultiheadAttention(width, num_heads=2, batch_first=True)
        self.score = nn.Linear(width, 1)
        self.decoder = nn.Sequential(nn.Linear(2 + width, width), nn.ReLU(), nn.Linear(width, steps * 2))

    def forward(self, polylines: torch.Tensor, goals: torch.Tensor) -> dict[str, torch.Tensor]:
        lanes = self.points(polylines).amax(dim=1).unsqueeze(0)
        features, _ = self.attention(self.goals(goals).unsqueeze(0), lanes, lanes)
        scores = torch.log_softmax(self.score(features).flatten(), dim=0)
        selected = self.select(goals, scores, 1.0, 6)
        context = lanes.amax(dim=1).expand(selected["goals"].size(0), -1)
        trajectories = self.decoder(torch.cat([selected["goals"], context], dim=-1))
        return {
            "goals": selected["goals"],
            "scores": selected["scores"],
            "trajectories": trajectories.view(-1, self.steps, 2),
        }


TRACE = Trace(strict=False, optimize_for_inference=True)
INPUTS = {"polylines": floats(-5.0, 5.0), "goals": floats(-2.0, 2.0)}


def example() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(5, 8, 4), torch.rand(24, 2) * 4 - 2


@pytest.mark.export_equivalent(backends=[TRACE])
def test_scripted_selection(export_check):
    export_check(Forecaster(torch.jit.script(select_goals)).eval(), example(), inputs=INPUTS)


@pytest.mark.export_equivalent(
    backends=[TRACE], xfail={"trace": "the selection is recorded for the example: which goals, and how many"}
)
def test_selection_in_python(export_check):
    export_check(Forecaster(select_goals).eval(), example(), inputs=INPUTS)
