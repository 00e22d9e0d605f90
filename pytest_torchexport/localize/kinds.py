"""Operators of different formats by what they do: `aten.addmm.default`, `Gemm` and `linear` are all products."""

from __future__ import annotations

import functools
import re

_NAMES = {
    "product": "addmm mm linear gemm matmul bmm baddbmm addbmm mv addmv dot einsum fusedmatmul fusedgemm inner",
    "convolution": "conv conv1d conv2d conv3d convolution convtranspose conv_transpose1d conv_transpose2d "
    "conv_transpose3d convolution_overrideable thnn_conv2d slow_conv2d fusedconv",
    "layer norm": "layer_norm layernorm layernormalization skiplayernormalization simplifiedlayernormalization "
    "rms_norm rmsnormalization",
    "batch norm": "batch_norm batchnormalization batch_norm_legit batch_norm_legit_no_training batch_norm_with_update "
    "batch_norm_impl_index batch_norm_no_update",
    "group norm": "group_norm groupnormalization groupnorm instance_norm instancenormalization",
    "attention": "attention multiheadattention multi_head_attention grouped_query_attention",
    "recurrent layer": "lstm gru rnn rnn_tanh rnn_relu lstm_cell gru_cell rnn_layer quantized_lstm",
    "max pool": "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices "
    "max_pool1d_with_indices maxpool adaptive_max_pool2d globalmaxpool",
    "average pool": "avg_pool1d avg_pool2d avg_pool3d averagepool adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d globalaveragepool mean reducemean",
    "sum": "sum reducesum",
    "subtract": "sub subtract rsub isub",
    "multiply": "mul multiply imul",
    "divide": "div divide true_divide truediv itruediv",
    "add": "add iadd",
    "clamp": "clamp clip clamp_min clamp_max hardtanh relu6",
    "softmax": "softmax safe_softmax",
    "log softmax": "log_softmax logsoftmax",
    "sigmoid": "sigmoid sigmoid_",
    "lookup": "embedding gather index_select index gathernd take embedding_bag",
    "join": "cat concat concatenate stack hstack vstack",
    "pad": "pad constant_pad_nd reflection_pad2d replication_pad2d reflection_pad1d replication_pad1d",
    "resize": "interpolate resize upsample upsample_nearest2d upsample_bilinear2d upsample_nearest1d "
    "upsample_bicubic2d upsample_nearest_exact2d upsample_linear1d upsample_trilinear3d upsample_nearest3d",
    "choose": "where masked_fill",
    "power": "pow power square",
    "leaky relu": "leaky_relu leakyrelu",
    "move": "view reshape expand permute transpose t unsqueeze squeeze slice select contiguous clone detach alias to "
    "to_copy cast castlike identity dropout feature_dropout alpha_dropout flatten unflatten split chunk "
    "split_with_sizes tensor_split constant shape lift_fresh lift_fresh_copy movedim swapaxes narrow unsafe_view "
    "view_as expand_as getitem reshape_alias copy unbind unsafe_split float half double type_as listconstruct "
    "tupleconstruct tupleunpack listunpack numtotensor size constantofshape sym_size scalar_tensor",
}
_KINDS = {name: kind for kind, names in _NAMES.items() for name in names.split()}
_PREFIXES = ("native_", "mkldnn_", "cudnn_", "miopen_", "quantized_", "thnn_", "fused_", "unsafe_")


@functools.cache
def kind_of(operator: str) -> str:
    """What an operator does, in a word; for one that is not known, its plain name.

    Args:
        operator: as its format spells it: `aten.mul.Tensor`, `Gemm`, `aten::relu_`, `torch.nn.functional.relu`.
    """
    namespace, _, rest = operator.rpartition("::") if "::" in operator else ("", "", operator)
    parts = rest.split(".")
    if not namespace and len(parts) > 2 and parts[0] in ("aten", "prims", "prim"):
        name = parts[1]
    elif namespace:
        name = parts[0]
    else:
        name = parts[-1]
    name = name.strip("_").lower()
    name = re.sub(r"_copy$", "", name) if name not in _KINDS else name
    if name.startswith(("scaled_dot_product", "flash_attention", "efficient_attention")):
        return "attention"
    for prefix in _PREFIXES:
        if name not in _KINDS:
            name = name.removeprefix(prefix)
    return _KINDS.get(name, name)
