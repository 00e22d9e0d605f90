"""Small models of many architectures, each with its example call and what a check of it has to be told.

Weights are random; BatchNorm's statistics are those of data, and what is initialised to zero is not left there: a model
that does nothing hides every fault.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

Made = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
ZOO: dict[str, Callable[[], Made]] = {}
"""By name, in the order in which they are tried. Import `tests.benchmarks.zoo_all` to have all of them."""


def architecture(make: Callable[[], Made]) -> Callable[[], Made]:
    """Enter a function that makes a model into the zoo, under its name."""
    ZOO[make.__name__] = make
    return make


def build(name: str, seed: int = 0) -> Made:
    """The model with random weights, settled, and its example call."""
    torch.manual_seed(1000 + seed)
    model, args, options = ZOO[name]()
    _fill_zeros(model)
    _calibrate(model, args)
    return model.eval(), args, options


def _fill_zeros(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point():
                continue
            flat = parameter.flatten()
            if bool((flat == flat[0]).all()):  # zeros of a bias, ones of a norm
                parameter.add_(torch.empty_like(parameter, dtype=torch.float32).normal_(0.0, 0.1).to(parameter.dtype))


def _calibrate(model: nn.Module, args: tuple[Any, ...]) -> None:
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.momentum = None  # an average over all runs
        norm.reset_running_stats()
        norm.train()
    with torch.no_grad():
        for _ in range(4):
            model(*(torch.randn_like(one) if one.is_floating_point() else one for one in args))
        for norm in norms:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean += 0.1 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
            norm.running_var *= 1 + 0.2 * torch.rand_like(norm.running_var)
