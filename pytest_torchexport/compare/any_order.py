"""Put the entries of results in eager's order, where their order means nothing: kept boxes, chosen indices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pytest_torchexport.compare.values import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST = 4096
"""Entries of several numbers that are matched by their distances; more are put in order, the first number first."""


def in_order_of(expected: Sequence[torch.Tensor], actual: Sequence[torch.Tensor], dim: int) -> Sequence[torch.Tensor]:
    """The exported program's results with their entries along a dimension in the order that fits eager's best.

    Several results are moved together: the third box stays with the third score. Numbers on their own are matched by
    size, which leaves the smallest largest difference. Entries of several numbers are matched as a whole: each of
    eager's, from the first on, with the nearest one that is left.

    Args:
        expected: eager's tensors, of one size along the dimension.
        actual: the program's, of the same shapes and dtypes.
        dim: the dimension whose order does not matter.
    """
    ours, theirs = [plain(one) for one in expected], [plain(one).to(plain(expected[0]).device) for one in actual]
    if not ours[0].numel():
        return actual
    dim %= expected[0].dim()  # complex numbers have one more here
    if len(ours) == 1 and dim == ours[0].dim() - 1:
        places = ours[0].argsort(stable=True, dim=dim).argsort(dim)
        order = theirs[0].argsort(stable=True, dim=dim).gather(dim, places)
        return [actual[0].gather(dim, order.to(actual[0].device))]
    order = _matched(
        *(
            torch.cat([_rows(one, dim, mine) for one, mine in zip(side, ours, strict=True)], 1)
            for side in (ours, theirs)
        )
    )
    return [one.index_select(dim, order.to(one.device)) for one in actual]


def _rows(values: torch.Tensor, dim: int, scale: torch.Tensor) -> torch.Tensor:
    """The entries as rows of numbers of one magnitude: columns of large ones should not decide alone."""
    rows, sizes = (one.movedim(dim, 0).flatten(1) if one.dim() > 1 else one[:, None] for one in (values, scale))
    largest = sizes.double().abs().nan_to_num(0.0, 0.0, 0.0).amax(0).clamp_min(torch.finfo(torch.float32).tiny)
    return rows.double().nan_to_num(0.0) / largest


def _matched(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """For each row of eager's the row of the program's that belongs to it."""
    if len(ours) > _MOST:
        return _in_order(theirs)[_in_order(ours).argsort()]
    far = torch.cdist(ours.cpu(), theirs.cpu(), p=1.0)
    order = torch.empty(len(ours), dtype=torch.int64)
    for row in range(len(ours)):
        order[row] = nearest = int(far[row].argmin())
        far[:, nearest] = torch.inf
    return order


def _in_order(rows: torch.Tensor) -> torch.Tensor:
    """The numbers of the rows in lexicographic order."""
    order = torch.arange(len(rows), device=rows.device)
    for column in reversed(rows.unbind(1)):
        order = order[column[order].argsort(stable=True)]
    return order
