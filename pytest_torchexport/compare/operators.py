"""What is known about torch's operators from their names and schemas, and helpers for what they are given."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_EXACT = _words(
    # copies, fills and factories
    "clone copy to_copy lift_fresh lift fill zero empty empty_like empty_strided new_empty new_empty_strided zeros "
    "zeros_like new_zeros ones ones_like new_ones full full_like new_full scalar_tensor arange eye tril triu complex "
    "diag_embed unsafe_view local_scalar_dense resize set record_stream pin_memory assert_tensor_metadata "
    # rearrangement and padding
    "cat stack hstack vstack repeat repeat_interleave flip roll rot90 constant_pad_nd pad reflection_pad1d "
    "reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d im2col pixel_shuffle "
    "pixel_unshuffle channel_shuffle native_channel_shuffle upsample_nearest1d upsample_nearest2d upsample_nearest3d "
    "upsample_nearest_exact1d upsample_nearest_exact2d upsample_nearest_exact3d block_diag chunk_cat "
    "unsafe_split unsafe_split_with_sizes unsafe_chunk "
    # gathers and scatters that do not add up
    "gather index index_select take take_along_dim embedding embedding_renorm index_put index_put_impl unsafe_index "
    "unsafe_index_put index_copy index_fill scatter masked_fill masked_scatter masked_select where select_scatter "
    "slice_scatter diagonal_scatter as_strided_scatter put unsafe_masked_index "
    # choices among the elements
    "sort topk kthvalue median nanmedian mode unique unique2 unique_dim unique_consecutive max min amax amin aminmax "
    "cummax cummin cummax_helper cummin_helper maximum minimum fmax fmin clamp clamp_min clamp_max clip relu relu6 "
    "hardtanh threshold max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices "
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d "
    "max_unpool2d max_unpool3d nan_to_num "
    # arithmetic without rounding
    "neg negative abs sign sgn positive floor ceil round trunc fix frac fmod copysign conj_physical signbit heaviside "
    "nextafter ldexp frexp real imag"
)
"""Operators whose results are values that they were given: they have no rounding error to be jittered."""

_ROUGH = _words(
    "exp exp2 expm1 log log2 log10 log1p pow float_power sqrt rsqrt cbrt reciprocal_sqrt sin cos tan sinh cosh tanh "
    "asin acos atan atan2 asinh acosh atanh sinc erf erfc erfinv erfcx gamma lgamma digamma polygamma mvlgamma i0 "
    "logit logaddexp logaddexp2 logcumsumexp logsumexp sigmoid log_sigmoid_forward hypot xlogy xlog1py special_i0e "
    "special_i1 special_ndtri special_log_ndtr special_zeta gelu silu mish softplus elu celu selu softmax log_softmax "
    "safe_softmax masked_softmax glu prelu_kernel rrelu_with_noise native_layer_norm native_group_norm "
    "native_batch_norm native_batch_norm_legit native_batch_norm_legit_no_training batch_norm_with_update "
    "batch_norm_no_update cudnn_batch_norm miopen_batch_norm fused_rms_norm weight_norm_interface renorm "
    "addmm_activation cdist_forward pdist_forward euclidean_dist grid_sampler_2d grid_sampler_3d "
    "convert_weight_to_int4pack transformer_encoder_layer_fwd native_multi_head_attention "
    "triton_multi_head_attention triton_scaled_dot_attention thnn_fused_lstm_cell thnn_fused_gru_cell cudnn_rnn "
    "miopen_rnn mkldnn_rnn_layer lstm_mps quantized_lstm quantized_gru foreach_exp foreach_sqrt foreach_pow "
    "upsample_bicubic2d upsample_bilinear2d upsample_trilinear3d upsample_linear1d "
    "cross_entropy_loss nll_loss_forward binary_cross_entropy histogram"
)
_ROUGH_PREFIXES = ("scaled_dot_product", "flash_attention", "efficient_attention", "linalg_", "fft_", "cholesky")
"""Operators with more than one rounding inside: transcendental functions and fused kernels, 4 units instead of 1."""


_SUMS = _words(
    "sum nansum mean nanmean var var_mean std std_mean norm linalg_vector_norm logsumexp native_layer_norm "
    "native_group_norm native_batch_norm native_batch_norm_legit native_batch_norm_legit_no_stats "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d trace dot vdot fused_rms_norm"
)
_SUMS_ALONG = _words("cumsum cumprod logcumsumexp softmax log_softmax safe_softmax")
"""Operators that add up the elements of their operand, all or along `dim`."""


_NORMALISES = _words(
    "native_layer_norm native_group_norm native_batch_norm native_batch_norm_legit cudnn_batch_norm miopen_batch_norm "
    "native_layer_norm_backward native_group_norm_backward native_batch_norm_backward cudnn_batch_norm_backward "
    "miopen_batch_norm_backward"
)
"""Kernels that take a mean away inside. On a constant input the difference is nothing but the error of that mean, which
noise on operands and results never shows: they are taken apart, so that the mean gets noise of its own."""


_JUMPS = _words(
    "floor ceil round trunc fix frac fmod remainder floor_divide sign sgn signbit heaviside copysign frexp hardshrink "
    "threshold mode angle atan2 histc histogram bincount grid_sampler_2d grid_sampler_3d fractional_max_pool2d "
    "fractional_max_pool3d fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask "
    "quantize_per_tensor quantize_per_channel "
    # gradients at a kink
    "threshold_backward hardtanh_backward leaky_relu_backward rrelu_with_noise_backward prelu_kernel_backward "
    "hardshrink_backward softshrink_backward hardswish_backward hardsigmoid_backward"
)
_JUMPS_PREFIXES = (
    *("linalg_eig", "linalg_svd", "linalg_qr", "linalg_lstsq", "linalg_inv", "linalg_lu", "linalg_ldl"),
    *("linalg_solve", "linalg_pinv", "linalg_det", "linalg_slogdet", "lu_", "fake_quantize"),
)
"""Operators whose results change by more than a little where an operand changes by a little, and those that pivot."""

_CONSTANT = _words(
    "empty_like zeros_like ones_like full_like rand_like randn_like randint_like new_empty new_empty_strided new_zeros "
    "new_ones new_full"
)
"""Operators that take nothing of their operand but its form."""


@dataclass(frozen=True)
class Traits:
    """What is known about an operator from its schema and name."""

    view: bool
    exact: bool
    units: int
    sums: bool
    sums_along: bool
    scan: bool
    normalises: bool
    orders: bool
    jumps: bool
    constant: bool
    names: tuple[str, ...]
    written: frozenset[str]


@functools.cache
def traits_of(func: Any) -> Traits:
    """What schema and name say about an operator."""
    schema = func._schema
    own, _, name = schema.name.partition("::")
    name = name.strip("_").removesuffix("_copy")
    reduces = "reduce" in schema.overload_name
    written = frozenset(a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write)
    if name.endswith("batch_norm") or name.startswith("native_batch_norm"):
        # Their schemas do not say that they update the running statistics.
        written |= {a.name for a in schema.arguments if a.name in ("running_mean", "running_var")}
    view = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    standard = own in ("aten", "prims")
    rough = not standard or name in _ROUGH or name.startswith(_ROUGH_PREFIXES)
    return Traits(
        view=view,
        exact=view or (standard and name in _EXACT and not reduces),
        units=4 if rough else 1,
        sums=standard and name in _SUMS,
        sums_along=standard and name in _SUMS_ALONG,
        scan=name.startswith(("cum", "logcum")),
        normalises=standard and name in _NORMALISES,
        orders=standard and name in ("topk", "sort") and len(schema.returns) == 2 and not written,
        # Other libraries' operators may do anything.
        jumps=not standard or name in _JUMPS or name.startswith(_JUMPS_PREFIXES) or "mode" in schema.overload_name,
        constant=standard and name in _CONSTANT,
        names=tuple(a.name for a in schema.arguments),
        written=written,
    )


def map_tensors(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """An operator's argument or result with every tensor in it changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(part, change) for part in value)
    return value


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors in an operator's argument or result, in order."""
    found: list[torch.Tensor] = []
    map_tensors(value, found.append)
    return found


def by_name(traits: Traits, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    """An operator's arguments with their names, positional ones too."""
    yield from zip(traits.names, args, strict=False)
    yield from kwargs.items()


def branch(condition: Any, yes: Callable[..., Any], no: Callable[..., Any], operands: Any = ()) -> Any:
    """What `torch.cond` does, in plain operators."""
    return (yes if bool(condition) else no)(*operands)


def computes(func: Any) -> bool:
    """Whether it is more than moving values: all that is no plain operator counts as computing."""
    return not isinstance(func, torch._ops.OpOverload) or not traits_of(func).exact
