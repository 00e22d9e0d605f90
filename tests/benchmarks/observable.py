"""How large a fault's effect is in float64, as a multiple of eager's rounding noise: is there anything to be found?

The noise is measured here a second time, by the study's formula and without the package, so that a mistake in the
package's own measurement cannot hide the faults that it misses.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from tests.benchmarks.planted import leaves

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.fx import GraphModule

DRAWS = 4
_LOW = (torch.float32, torch.float16, torch.bfloat16)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_EXACT = _words(
    "view reshape _unsafe_view as_strided permute transpose t expand slice select squeeze unsqueeze split chunk "
    "unbind cat stack clone copy_ contiguous alias detach embedding gather index index_select where relu neg abs "
    "max_pool2d max_pool2d_with_indices constant_pad_nd reflection_pad2d pad zeros ones full zeros_like ones_like "
    "full_like arange new_zeros new_ones eye lift_fresh_copy roll flip topk sort argmax amax max min clamp round "
    "floor ceil trunc sign masked_fill unfold _to_copy expand_copy fill_ zero_ empty empty_like empty_strided tril "
    "triu"
)
_COARSE = _words(
    "exp exp2 log log2 pow tanh sigmoid erf gelu silu mish softplus hardswish hardsigmoid _softmax _log_softmax sqrt "
    "rsqrt sin cos elu leaky_relu native_layer_norm native_batch_norm native_group_norm scaled_dot_product_attention "
    "_scaled_dot_product_flash_attention_for_cpu _native_batch_norm_legit_no_training lstm gru _fft_r2c "
    "linalg_solve_ex _linalg_solve_ex upsample_bicubic2d upsample_bilinear2d grid_sampler_2d"
)


class _Jitter(TorchDispatchMode):
    """Multiplies what each operator computes by one and a rounding error."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if name in _EXACT or func._schema.is_mutable:
            return result
        return tree_map(lambda one: self._off(one, 4 if name in _COARSE else 1), result)

    def _off(self, value: Any, times: int) -> Any:
        if not isinstance(value, torch.Tensor) or not (value.is_floating_point() or value.is_complex()):
            return value
        real = torch.view_as_real(value) if value.is_complex() else value
        noise = torch.rand(real.shape, generator=self._random, dtype=torch.float64) * 2 - 1
        off = (real.double() * (1 + times * torch.finfo(real.dtype).eps * noise)).to(real.dtype)
        off = torch.where(real == real.round(), real, off)
        return torch.view_as_complex(off) if value.is_complex() else off


def _one_ulp(value: Any, random: torch.Generator) -> Any:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    up = torch.rand(value.shape, generator=random) < 0.5
    far = torch.full_like(value, torch.inf)
    moved = torch.where(up, torch.nextafter(value, far), torch.nextafter(value, -far))
    return torch.where(value == 0, value, moved)


def jittered(module: GraphModule, args: tuple[Any, ...], seed: int) -> list[Any]:
    """The outputs of a run with rounding noise on inputs, weights and every operator."""
    random = torch.Generator().manual_seed(seed)
    noisy = copy.deepcopy(module)
    for tensor in (*noisy.parameters(), *noisy.buffers()):
        tensor.data = _one_ulp(tensor.data, random)
    args = tuple(_one_ulp(arg, random) for arg in args)
    with torch.no_grad(), _Jitter(seed):
        result = noisy(*args)
    return leaves(result)


def doubled(module: GraphModule) -> GraphModule:
    """The same graph in float64, with every cast to a lower type inside of it; what a fault rounds stays rounded."""
    twin = copy.deepcopy(module).double()
    for part in twin.modules():
        for name, value in vars(part).items():
            if isinstance(value, torch.Tensor) and value.dtype in _LOW:
                setattr(part, name, value.double())
    for node in list(twin.graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            twin.graph.erase_node(node)
            continue
        node.args, node.kwargs = tree_map(lambda one: torch.float64 if one in _LOW else one, (node.args, node.kwargs))
    twin.recompile()
    return twin


def in_double(twin: GraphModule, args: tuple[Any, ...]) -> list[Any]:
    """The outputs of a graph that `doubled` made."""
    wide = tuple(a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args)
    with torch.no_grad(), _double_by_default():
        return leaves(twin(*wide))


@contextmanager
def _double_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def noise_scale(eager: torch.Tensor, reference: torch.Tensor, draws: list[torch.Tensor]) -> torch.Tensor:
    """The noise of each element: the study's T."""
    y = _real(eager)
    noise = torch.stack([(_real(other) - y).abs() for other in (reference, *draws)]).amax(0)
    noise = torch.where(noise.isfinite(), noise, 0.0)
    quiet = noise.square().mean().sqrt() if noise.numel() else noise.new_zeros(())
    quietest = quiet.expand_as(noise)
    for axis, size in enumerate(noise.shape):
        if size > 1 and noise.numel() // size >= 8:
            others = [other for other in range(noise.dim()) if other != axis]
            along = noise.square().mean(others, keepdim=True).sqrt() if others else noise
            quietest = torch.minimum(quietest, along)
    info = torch.finfo(eager.dtype)
    rounding = torch.where(y.isfinite(), y.abs(), 0.0) * (info.eps / 2)
    return torch.stack([noise, quietest, rounding]).amax(0).clamp_min(info.tiny)


def _real(value: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(value).double() if value.is_complex() else value.double()


def effect(right: torch.Tensor, wrong: torch.Tensor, scale: torch.Tensor) -> float:
    """The largest difference of two float64 results, in units of the noise."""
    one, other = _real(right), _real(wrong)
    if not one.numel():
        return 0.0
    apart = torch.where(one == other, 0.0, (one - other).abs() / scale)
    both_nan = one.isnan() & other.isnan()
    return float(torch.where(both_nan, 0.0, apart.nan_to_num_(nan=torch.inf)).max())
