"""Modules that decide on arguments: optional tensors, flags, modes, tasks, dictionaries, lists, numbers of steps."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from pytest_torchexport import integers, sampled_from
from tests.branches.corpus.case import EXAMPLE, Case, Infeasible, Truth, call, normal, seeded

CASES: list[Case] = []


def flags(*rows: str) -> torch.Tensor:
    return torch.tensor([[letter == "1" for letter in row] for row in rows])


class MaskedAttention(nn.Module):
    """Self-attention whose key mask is optional; a row that masks everything attends to everything."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, need_weights: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        scores = query @ key.transpose(1, 2) / 8**0.5
        if mask is not None:
            nothing = ~mask.any(-1)
            if nothing.any():
                mask = mask | nothing.unsqueeze(-1)
            scores = scores.masked_fill(~mask.unsqueeze(1), float("-inf"))
        weights = scores.softmax(-1)
        if need_weights:
            return weights @ value, weights
        return weights @ value


CASES.append(
    Case(
        "masked attention",
        make=lambda: seeded(MaskedAttention),
        args=lambda: (normal(2, 5, 8), flags("11100", "11111")),
        kwargs=lambda: {"need_weights": False},
        decisions=[
            Truth("mask is not None", true=EXAMPLE, false=lambda: call(normal(2, 5, 8), need_weights=False)),
            Truth(
                "nothing.any()",
                true=lambda: call(normal(2, 5, 8), flags("00000", "11111"), need_weights=False),
                false=EXAMPLE,
            ),
            Truth(
                "need_weights",
                true=lambda: call(normal(2, 5, 8), flags("11100", "11111"), need_weights=True),
                false=EXAMPLE,
            ),
        ],
        wrong={"trace": "nothing.any()", "onnx-torchscript": "nothing.any()", "export": "refused", "onnx": "refused"},
        right=("script",),
    )
)


class Pooler(nn.Module):
    """Pooling by a mode string."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.out = nn.Linear(width, 3)

    def forward(self, hidden: torch.Tensor, mode: Literal["mean", "max", "cls"] = "mean") -> torch.Tensor:
        match mode:
            case "mean":
                pooled = hidden.mean(1)
            case "max":
                pooled = hidden.amax(1)
            case "cls":
                pooled = hidden[:, 0]
            case _:
                raise ValueError(mode)
        return self.out(pooled)


CASES.append(
    Case(
        "pooler by mode",
        make=lambda: seeded(Pooler),
        args=lambda: (normal(2, 4, 6),),
        kwargs=lambda: {"mode": "mean"},
        decisions=[
            Truth('"mean"', true=EXAMPLE, false=lambda: call(normal(2, 4, 6), mode="max")),
            Truth(
                '"max"',
                true=lambda: call(normal(2, 4, 6), mode="max"),
                false=lambda: call(normal(2, 4, 6), mode="cls"),
            ),
            Truth(
                '"cls"',
                true=lambda: call(normal(2, 4, 6), mode="cls"),
                false=Infeasible("another mode raises"),
            ),
        ],
    )
)


class Interpolation(StrEnum):
    NEAREST = "nearest"
    BILINEAR = "bilinear"


class Resizer(nn.Module):
    """Upsamples by a factor; a factor of one returns the input as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.smooth = nn.Conv2d(2, 2, 3, padding=1)

    def forward(
        self, image: torch.Tensor, factor: int = 2, how: Interpolation = Interpolation.BILINEAR
    ) -> torch.Tensor:
        if factor == 1:
            return self.smooth(image)
        if how == Interpolation.NEAREST:
            image = F.interpolate(image, scale_factor=factor, mode="nearest")
        else:
            image = F.interpolate(image, scale_factor=factor, mode="bilinear", align_corners=False)
        return self.smooth(image)


CASES.append(
    Case(
        "resizer",
        make=lambda: seeded(Resizer),
        args=lambda: (normal(1, 2, 5, 4), 2, Interpolation.BILINEAR),
        decisions=[
            Truth(
                "factor == 1",
                true=lambda: call(normal(1, 2, 5, 4), 1, Interpolation.BILINEAR),
                false=EXAMPLE,
            ),
            Truth(
                "how == Interpolation.NEAREST",
                true=lambda: call(normal(1, 2, 5, 4), 2, Interpolation.NEAREST),
                false=EXAMPLE,
            ),
        ],
    )
)


class MultiTask(nn.Module):
    """Heads by the name of the task; a name without a head gets the features themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(5, 8)
        self.heads = nn.ModuleDict({"depth": nn.Linear(8, 1), "normals": nn.Linear(8, 3)})

    def forward(self, x: torch.Tensor, task: str) -> torch.Tensor:
        hidden = self.trunk(x).relu()
        try:
            return self.heads[task](hidden)
        except KeyError:
            return hidden


CASES.append(
    Case(
        "multi task",
        make=lambda: seeded(MultiTask),
        args=lambda: (normal(3, 5), "depth"),
        decisions=[
            Truth("except KeyError", "exception", true=lambda: call(normal(3, 5), "albedo"), false=EXAMPLE),
        ],
        options={"inputs": {"task": sampled_from(["depth", "normals", "albedo"])}},
    )
)


class BatchDict(nn.Module):
    """The batch of a data loader: the image is always there, depth and camera only for some data sets."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Linear(6, 4)
        self.depth = nn.Linear(2, 4)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden = self.image(batch["image"])
        if "depth" in batch:
            hidden = hidden + self.depth(batch["depth"])
        scale = batch.get("scale")
        if scale is not None and scale.abs().max() > 1:
            hidden = hidden / scale.abs().max()
        return hidden


def batches() -> list[dict[str, torch.Tensor]]:
    image = normal(2, 6)
    return [
        {"image": image},
        {"image": image, "depth": normal(2, 2, seed=1)},
        {"image": image, "scale": torch.tensor([0.5, 0.25])},
        {"image": image, "depth": normal(2, 2, seed=2), "scale": torch.tensor([4.0, 0.25])},
        {"image": image, "scale": torch.tensor([0.5, -3.0])},
    ]


CASES.append(
    Case(
        "batch dict",
        make=lambda: seeded(BatchDict),
        args=lambda: (batches()[2],),
        decisions=[
            Truth('"depth" in batch', true=lambda: call(batches()[1]), false=EXAMPLE),
            Truth("scale is not None", true=EXAMPLE, false=lambda: call(batches()[0])),
            Truth("scale.abs().max() > 1", true=lambda: call(batches()[4]), false=EXAMPLE),
        ],
        options={"inputs": {"batch": sampled_from(batches())}},
        wrong={
            "trace": "scale.abs().max() > 1",
            "onnx-torchscript": "scale.abs().max() > 1",
            "export": "refused",
            "onnx": "refused",
        },
        right=("script",),
    )
)


class PyramidFusion(nn.Module):
    """Fuses as many feature maps as it is given, coarse to fine."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 1)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        fused = maps[0]
        for other in maps[1:]:
            size = other.shape[-2:]
            fused = self.mix(F.interpolate(fused, size=size, mode="nearest")) + other
        if len(maps) > 2:
            fused = fused / len(maps)
        return fused


def levels(count: int) -> list[torch.Tensor]:
    return [normal(1, 3, 2 * 2**n, 2 * 2**n, seed=n) for n in range(count)]


CASES.append(
    Case(
        "pyramid fusion",
        make=lambda: seeded(PyramidFusion),
        args=lambda: (levels(2),),
        decisions=[
            Truth("maps[1:]", "loop", other=lambda: call(levels(1))),
            Truth("len(maps) > 2", true=lambda: call(levels(3)), false=EXAMPLE),
        ],
        options={"inputs": {"maps": sampled_from([levels(1), levels(2), levels(3)])}},
        right=("script",),
    )
)


class Refiner(nn.Module):
    """A recurrent refinement whose caller says how many steps to make."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, steps: int = 3) -> torch.Tensor:
        state = torch.zeros_like(x)
        for _ in range(steps):
            state = torch.tanh(self.cell(state) + x)
        return state


CASES.append(
    Case(
        "refiner",
        make=lambda: seeded(Refiner),
        args=lambda: (normal(2, 4), 3),
        decisions=[Truth("range(steps)", "loop", other=lambda: call(normal(2, 4), 4))],
        right=("script",),
    )
)


class RequestedScale(nn.Module):
    """Super resolution: the request holds the factor as a tensor; whole numbers above one are done with shuffling."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, image: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        scale = int(factor)
        if scale == 2:
            return F.pixel_shuffle(self.twice(image), 2)
        if scale > 2:
            return F.interpolate(image, scale_factor=scale, mode="nearest")
        return image


CASES.append(
    Case(
        "requested scale",
        make=lambda: seeded(RequestedScale),
        args=lambda: (normal(1, 1, 4, 4), torch.tensor(2)),
        decisions=[
            Truth("int(factor)", "number", other=lambda: call(normal(1, 1, 4, 4), torch.tensor(3))),
            Truth("scale == 2", true=EXAMPLE, false=lambda: call(normal(1, 1, 4, 4), torch.tensor(3))),
            Truth(
                "scale > 2",
                true=lambda: call(normal(1, 1, 4, 4), torch.tensor(3)),
                false=lambda: call(normal(1, 1, 4, 4), torch.tensor(1)),
            ),
        ],
        options={"inputs": {"factor": integers(1, 4)}},
        wrong={"trace": "scale == 2", "onnx-torchscript": "scale == 2", "export": "refused", "onnx": "refused"},
    )
)
