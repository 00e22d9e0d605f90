"""Masks: those of padded batches stay such."""

from __future__ import annotations

import itertools

import torch

from pytest_torchexport.inputs import draw
from pytest_torchexport.subject.call import Call


def _masks(example: torch.Tensor) -> list[torch.Tensor]:
    def attend(mask: torch.Tensor) -> torch.Tensor:
        return mask

    stream = draw.generate(attend, Call((example,)), None, None, seed=3)
    return [calls[0].args[0] for calls in itertools.islice(stream, 20)]


def _is_padding(mask: torch.Tensor) -> bool:
    flags = mask != 0
    return bool(flags[..., 0].all()) and bool((flags[..., :-1] | ~flags[..., 1:]).all())


def test_a_padding_mask_stays_one() -> None:
    for example in (torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]), torch.ones(2, 5, dtype=torch.int64)):
        masks = _masks(example)
        assert len(masks) > 5
        assert all(_is_padding(mask) for mask in masks)
        assert any(not bool((mask == example).all()) for mask in masks)


def test_other_masks_are_free() -> None:
    for example in (torch.tensor([[0, 1, 1, 0, 1], [1, 0, 1, 1, 0]]), torch.ones(2, 5, dtype=torch.bool)):
        assert not all(_is_padding(mask) for mask in _masks(example))
