"""Two ways to run eager again, operator by operator: with rounding noise added, and in double precision.

Both are dispatch modes, active around the user's own call, so that they see what autograd, autocast and composite
operators come down to. Parameters are changed where an operator reads them: no second copy of them is held.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch._decomp import decomposition_table
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_POOL = 1 << 20
"""A tensor takes its noise from a random place of a pool of twice this length: a draw per operator would cost more
than most operators do."""

_INTEGER_OF = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}

_WIDE = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex32: torch.complex128,
}


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


class NoDouble(Exception):  # no error: an operator of the model has no meaning in double precision
    """Nothing can be said about this model in double precision; the message says why."""


@dataclass(frozen=True)
class _Traits:
    """What is known about an operator from its schema and name."""

    view: bool
    exact: bool
    units: int
    sums: bool
    sums_along: bool
    scan: bool
    normalises: bool
    orders: bool
    names: tuple[str, ...]
    written: frozenset[str]


@functools.cache
def _traits(func: Any) -> _Traits:
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
    return _Traits(
        view=view,
        exact=view or (standard and name in _EXACT and not reduces),
        units=4 if rough else 1,
        sums=standard and name in _SUMS,
        sums_along=standard and name in _SUMS_ALONG,
        scan=name.startswith(("cum", "logcum")),
        normalises=standard and name in _NORMALISES,
        orders=standard and name in ("topk", "sort") and len(schema.returns) == 2 and not written,
        names=tuple(a.name for a in schema.arguments),
        written=written,
    )


def _map(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """An operator's argument or result with every tensor in it changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_map(part, change) for part in value)
    return value


def _tensors(value: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    _map(value, found.append)
    return found


def _by_name(traits: _Traits, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    yield from zip(traits.names, args, strict=False)
    yield from kwargs.items()


def _is_plain(values: Iterable[torch.Tensor]) -> bool:
    """Whether the tensors are ordinary ones, whose numbers lie in a storage."""
    return all(
        type(t) in (torch.Tensor, torch.nn.Parameter) and t.layout is torch.strided and not t.is_quantized
        for t in values
    )


def _is_noisy(tensor: torch.Tensor) -> bool:
    real = tensor.dtype.to_real() if tensor.dtype.is_complex else tensor.dtype
    return real in _INTEGER_OF and tensor.numel() > 0


def _units_of_sum(traits: _Traits, args: tuple[Any, ...], kwargs: dict[str, Any], fresh: Iterable[torch.Tensor]) -> int:
    """Units of noise for a sum: another order of adding is off by the square root of its length.

    An eighth of that in units, since sums are made in lanes, and a quarter for a scan, which is not.

    A power of two, so that few pools of noise are drawn.
    """
    given = _tensors([*args, *kwargs.values()])
    length = 1
    if traits.sums and given:
        length = given[0].numel() // min((t.numel() for t in fresh if t.numel()), default=given[0].numel() or 1)
    elif traits.sums_along and given and given[0].dim():
        dim = dict(_by_name(traits, args, kwargs)).get("dim", -1)
        length = given[0].shape[dim]
    return 1 << max(0, round(math.log2(max(length, 1)) / 2) - (2 if traits.scan else 3))


@functools.lru_cache(maxsize=6)
def _factors(dtype: torch.dtype, units: int, device: torch.device) -> torch.Tensor:
    """Factors `1 + units * eps * U(-1, 1)`, the same in every process."""
    generator = torch.Generator().manual_seed(units)
    uniform = torch.rand(2 * _POOL, generator=generator, dtype=torch.float64, device="cpu") * 2 - 1
    return (1 + units * torch.finfo(dtype).eps * uniform).to(dtype).to(device)


@functools.lru_cache(maxsize=3)
def _signs(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Random signs, 1 or -1, as integers of the dtype."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(2, (2 * _POOL,), generator=generator, dtype=torch.int8, device="cpu")
    return (bits * 2 - 1).to(dtype).to(device)


def _is_whole(real: torch.Tensor) -> torch.Tensor:
    """Which elements are small whole numbers: counts, flags and positions, which are exact.

    Far up all numbers are whole, and most of them are rounded.
    """
    return (real == real.round()) & (real.abs() < 1 / (8 * torch.finfo(real.dtype).eps))


def _branch(condition: Any, yes: Callable[..., Any], no: Callable[..., Any], operands: Any = ()) -> Any:
    """What `torch.cond` does, in plain operators."""
    return (yes if bool(condition) else no)(*operands)


class Path:
    """The way that a run takes through the model: its operators with their shapes and Python arguments.

    Two runs of one model on one input take the same way unless a number taken out of a tensor, or a condition on one,
    came out differently. Such a run says nothing about rounding.
    """

    def __init__(self) -> None:
        self._digest = 0

    def step(self, func: Any, args: Iterable[Any], kwargs: dict[str, Any]) -> None:
        """Go one operator further."""
        self._digest = hash((self._digest, str(func), _shown([*args, *kwargs.values()])))

    def __eq__(self, other: object) -> bool:
        """Whether the way is the same so far."""
        return isinstance(other, Path) and self._digest == other._digest

    __hash__ = None  # type: ignore[assignment]


def _shown(value: Any) -> Any:
    """An operator's argument without what noise may change: numbers to three digits, tensors as shapes."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, (list, tuple)):
        return tuple(_shown(part) for part in value)
    if isinstance(value, float):
        return f"{value:.2e}"
    return value if isinstance(value, (bool, int, str)) else None


def _computes(func: Any) -> bool:
    return not isinstance(func, torch._ops.OpOverload) or not _traits(func).exact


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Changes nothing, and notes the way that the run takes."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.path = Path()
        self.computed = Path()
        """The same without operators that only move or cast values, which a run in double precision does not share."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator."""
        if func is torch.ops.higher_order.cond:
            with self:
                return _branch(*args)
        self.path.step(func, args, kwargs or {})
        if _computes(func):
            self.computed.step(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


class Jitter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds noise of the size of a rounding error to all that is read and computed.

    Parameters, buffers, arguments and constants are moved by one unit in the last place when an operator reads them;
    what an operator computes is multiplied by `1 + c * eps * U(-1, 1)`, with c = 1, or 4 where more than one rounding
    is inside. Zeros stay zero, and results that are small whole numbers stay as they are: counts and positions are
    exact. Operators that only move values are left alone, and so is torch's own random generator.

    Args:
        seed: together with the draw it decides the noise.
        draw: number of the draw.
        loudness: multiplies all of the noise.
    """

    supports_higher_order_operators = True

    def __init__(self, seed: int, draw: int, loudness: int = 1) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = torch.Generator().manual_seed((seed * 1_000_003 + draw * 64 + loudness) % (1 << 62))
        self._loudness = loudness
        self._least_units = 1
        self.path = Path()
        """The way that the run takes, to be compared with that of a `Watch`."""
        self.coarsest = 0.0
        """The largest eps among the dtypes that were computed in."""
        self.blind = False
        """Whether something was run whose operators this mode does not see."""
        # A storage is known by its address, and a weak reference keeps the address from being given out again.
        self._alive: dict[int, StorageWeakRef] = {}
        self._made: set[int] = set()
        self._places: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator on perturbed operands and jitter its result."""
        kwargs = kwargs or {}
        if func is torch.ops.higher_order.cond:
            with self:
                return _branch(*args)
        given = _tensors([*args, *kwargs.values()])
        if self._least_units == 1:  # not inside a kernel that is taken apart
            self.path.step(func, args, kwargs)
        if not isinstance(func, torch._ops.OpOverload) or not _is_plain(given):
            self.blind = True
            return func(*args, **kwargs)
        traits = _traits(func)
        if traits.exact and not self._accumulates(traits, args, kwargs):
            result = self._untie(func, args, kwargs) if traits.orders else func(*args, **kwargs)
            if not any(_is_noisy(t) and not self._is_made(t) for t in given):
                _map(result, self._note)
            return result
        args = tuple(self._read(traits, name, a) for name, a in zip(traits.names, args, strict=False))
        kwargs = {name: self._read(traits, name, a) for name, a in kwargs.items()}
        result = self._taken_apart(func, args, kwargs) if traits.normalises else func(*args, **kwargs)
        written = [t for name, a in _by_name(traits, args, kwargs) if name in traits.written for t in _tensors(a)]
        read = {_storage(t) for t in given} - {_storage(t) for t in written}
        fresh = [t for t in _tensors(result) if all(t is not w for w in written)]
        units = max(self._least_units, traits.units, _units_of_sum(traits, args, kwargs, fresh))
        if _is_plain(fresh):
            for tensor in [*written, *(t for t in fresh if _storage(t) not in read)]:
                self._add_noise(tensor, units)
        return result

    def _taken_apart(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The kernel's result by way of simpler operators, each of which gets its noise."""
        simpler = decomposition_table.get(func)
        if simpler is None:
            return func(*args, **kwargs)
        # Kernels accumulate their statistics in their own ways (Welford's method, lanes): more than one rounding.
        before, self._least_units = self._least_units, 4
        try:
            with self:
                return tuple(simpler(*args, **kwargs))
        finally:
            self._least_units = before

    def _untie(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operator that puts elements in order, with ties broken by chance: torch promises no order among them."""
        given = args[0]
        result = func(*args, **kwargs)
        if kwargs.get("stable") or given.is_complex() or given.dtype is torch.bool or not given.dim():
            return result
        chance = torch.rand(given.shape, generator=self._generator, device="cpu").to(given.device, torch.float64)
        step = 0.25 if not given.is_floating_point() else 1e-290
        scale = 0.0 if not given.is_floating_point() else self._loudness * torch.finfo(given.dtype).eps
        untied = given.double() * (1 + scale * (2 * chance - 1)) + step * chance
        named = dict(_by_name(_traits(func), args, kwargs))
        indices = func(untied, *args[1:], **kwargs)[1]
        dim = named.get("dim", -1)
        return (given.gather(dim, indices), indices)

    @staticmethod
    def _accumulates(traits: _Traits, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return any(name == "accumulate" and value for name, value in _by_name(traits, args, kwargs))

    def _is_made(self, tensor: torch.Tensor) -> bool:
        return _storage(tensor) in self._made

    def _note(self, tensor: torch.Tensor) -> None:
        """Remember that the tensor was computed in this run: it has its noise already."""
        if tensor.layout is torch.strided:
            self._keep_address(tensor)
            self._made.add(_storage(tensor))

    def _keep_address(self, tensor: torch.Tensor) -> None:
        if _storage(tensor) not in self._alive:
            self._alive[_storage(tensor)] = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]

    def _read(self, traits: _Traits, name: str, value: Any) -> Any:
        return value if name in traits.written else _map(value, self._perturb)

    def _perturb(self, tensor: torch.Tensor) -> torch.Tensor:
        """A value that comes from outside, moved by one unit in the last place, the same in all of its uses."""
        if not _is_noisy(tensor) or self._is_made(tensor):
            return tensor
        if tensor.is_complex():
            moved = self._perturb_real(torch.view_as_real(tensor.resolve_conj()), _storage(tensor))
            return torch.view_as_complex(moved.contiguous())
        return self._perturb_real(tensor, _storage(tensor))

    def _perturb_real(self, tensor: torch.Tensor, key: int) -> torch.Tensor:
        tensor = tensor.resolve_neg()
        self._keep_address(tensor)
        if key not in self._places:
            self._places[key] = self._place()
        integer = _INTEGER_OF[tensor.dtype]
        signs = _signs(integer, tensor.device)
        extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if extent > _POOL:
            signs = signs[:_POOL].repeat(extent // _POOL + 2)
        start = (self._places[key] + tensor.storage_offset()) % _POOL
        step = signs.as_strided(tensor.shape, tensor.stride(), start) * self._loudness
        # The largest numbers stand for infinity in masks, they must not become it; zero has no neighbour of its scale.
        info = torch.finfo(tensor.dtype)
        movable = (tensor.abs() < info.max / 2) & (tensor.abs() >= info.tiny) & ~_is_whole(tensor)
        return (tensor.view(integer) + step * movable).view(tensor.dtype)

    def _place(self) -> int:
        return int(torch.randint(_POOL, (), generator=self._generator, device="cpu"))

    def _add_noise(self, tensor: torch.Tensor, units: int) -> None:
        self._note(tensor)
        overlaps = any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if not _is_noisy(tensor) or overlaps or tensor.is_conj() or tensor.is_neg():
            return
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        self.coarsest = max(self.coarsest, torch.finfo(real.dtype).eps)
        pool = _factors(real.dtype, units * self._loudness, real.device)
        count = real.numel()
        parts = [pool[at : at + min(_POOL, count - i)] for i in range(0, count, _POOL) for at in (self._place(),)]
        factors = (parts[0] if len(parts) == 1 else torch.cat(parts)).view(real.shape)
        real.mul_(factors.masked_fill(_is_whole(real), 1))


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class InDouble(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Computes in float64 what the model computes in float32 or a half type, casts within the model included.

    Every operator gets its low-precision tensors as doubles, and where it is told a dtype it is told a double one.
    What is written in place to a low-precision tensor is computed as double and rounded to the tensor's dtype.

    Args:
        swapped: parameters whose data are doubles while the mode is on, for Python code that compares dtypes.
    """

    supports_higher_order_operators = True

    def __init__(self, swapped: Iterable[torch.nn.Parameter] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._swapped = list(swapped)
        self._data: list[torch.Tensor] = []
        self.computed = Path()
        """The way that the run takes, to be compared with that of a `Watch`."""

    def __enter__(self) -> Self:
        """Swap the parameters' data, switch the mode on."""
        self._data = [parameter.data for parameter in self._swapped]
        try:
            for parameter, data in zip(self._swapped, self._data, strict=True):
                parameter.data = _widen(data)
        except BaseException:
            self._swap_back()
            raise
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        """Switch the mode off, give the parameters their data back."""
        try:
            super().__exit__(*error)  # type: ignore[no-untyped-call]
        finally:
            self._swap_back()

    def _swap_back(self) -> None:
        for parameter, data in zip(self._swapped, self._data, strict=True):
            parameter.data = data
        self._data = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator in double precision."""
        kwargs = kwargs or {}
        if func is torch.ops.higher_order.cond:
            # Without the swap of data: that is done once, for the whole run.
            super().__enter__()  # type: ignore[no-untyped-call]
            try:
                return _branch(*args)
            finally:
                super().__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if not isinstance(func, torch._ops.OpOverload):
            msg = f"{func} has no form in double precision"
            raise NoDouble(msg)
        if func is torch.ops.aten.view.dtype:
            msg = "the model reads the bits of its numbers (Tensor.view(dtype))"
            raise NoDouble(msg)
        traits = _traits(func)
        if _computes(func):
            self.computed.step(func, args, kwargs)
        if traits.view:
            # A view of a low-precision tensor has to stay one: what is written to it belongs to the original.
            return func(*args, **kwargs)
        back: list[tuple[torch.Tensor, torch.Tensor]] = []
        args = tuple(self._convert(a, traits, name, back) for name, a in zip(traits.names, args, strict=False))
        kwargs = {name: self._convert(a, traits, name, back) for name, a in kwargs.items()}
        result = func(*args, **kwargs)
        for original, wide in back:
            original.copy_(wide)

        def out(tensor: torch.Tensor) -> torch.Tensor:
            for original, wide in back:
                if tensor is wide:
                    return original
            return tensor if any(tensor is t for t in _tensors([*args, *kwargs.values()])) else _widen(tensor)

        return _map(result, out)

    @staticmethod
    def _convert(value: Any, traits: _Traits, name: str, back: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
        if isinstance(value, torch.dtype):
            return _WIDE.get(value, value)
        if name not in traits.written:
            return _map(value, _widen)

        def written(tensor: torch.Tensor) -> torch.Tensor:
            wide = _widen(tensor)
            if wide is not tensor:
                back.append((tensor, wide))
            return wide

        return _map(value, written)


def _widen(tensor: torch.Tensor) -> torch.Tensor:
    wide = _WIDE.get(tensor.dtype)
    return tensor if wide is None else tensor.to(wide)
