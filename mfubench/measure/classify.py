"""Class of an operator by its name: which lines of the ledger its time belongs to, and whether its FLOPs are known."""

import re
from functools import cache

import torch

from mfu_kernels.cost import OpClass

_BY_NAME: dict[OpClass, tuple[str, ...]] = {
    "gemm": (
        *("mm", "addmm", "bmm", "baddbmm", "addbmm", "linear", "matmul", "einsum", "mv", "addmv", "dot", "vdot"),
        *(
            "_scaled_mm",
            "_scaled_mm_v2",
            "_grouped_mm",
            "_scaled_grouped_mm",
            "_int_mm",
            "_addmm_activation",
            "bilinear",
            "_trilinear",
        ),
        *("_weight_int8pack_mm", "_weight_int4pack_mm", "_weight_int4pack_mm_for_cpu", "_dyn_quant_matmul_4bit"),
        *("_weight_int4pack_mm_with_scales_and_zeros", "mkldnn_linear_backward", "mkldnn_linear_backward_input"),
        *("mkldnn_linear_backward_weights", "_sparse_semi_structured_mm", "_sparse_semi_structured_addmm"),
        "_sparse_semi_structured_linear",
        *("convolution", "_convolution", "conv1d", "conv2d", "conv3d", "cudnn_convolution", "mkldnn_convolution"),
        *("convolution_backward", "tensordot", "inner", "outer", "linear_backward", "mkldnn_linear"),
        *("mkldnn_rnn_layer", "mkldnn_rnn_layer_backward", "_cudnn_rnn", "_cudnn_rnn_backward", "lstm"),
        "_transformer_encoder_layer_fwd",  # attention, too, but most of it is products
        *("_sparse_mm", "_sparse_addmm", "matmul_backward", "_euclidean_dist"),
    ),
    "attention": ("scaled_dot_product_attention", "_transform_bias_rescale_qkv", "_native_multi_head_attention"),
    "norm": (
        *("native_layer_norm", "native_layer_norm_backward", "layer_norm", "rms_norm", "_fused_rms_norm"),
        *("_fused_rms_norm_backward", "native_batch_norm", "batch_norm", "native_group_norm", "group_norm"),
        *("native_batch_norm_backward", "native_group_norm_backward", "cudnn_batch_norm", "instance_norm"),
    ),
    "embedding": (
        *("embedding", "embedding_bag", "_embedding_bag", "_embedding_bag_forward_only", "embedding_dense_backward"),
        *("embedding_backward", "embedding_sparse_backward", "_embedding_bag_backward", "embedding_renorm_"),
    ),
    "reduction": (
        *(
            "sum",
            "mean",
            "amax",
            "amin",
            "max",
            "min",
            "norm",
            "var",
            "std",
            "var_mean",
            "std_mean",
            "prod",
            "all",
            "any",
        ),
        *("argmax", "argmin", "logsumexp", "cumsum", "cumprod", "count_nonzero", "segment_reduce", "sort", "topk"),
        *("softmax", "_softmax", "_softmax_backward_data", "log_softmax", "_log_softmax", "_log_softmax_backward_data"),
        *("linalg_vector_norm", "_segment_reduce_backward", "index_add", "index_add_", "bincount", "histc", "unique"),
    ),
    "copy": (
        *(
            "copy_",
            "_to_copy",
            "to",
            "clone",
            "contiguous",
            "cat",
            "stack",
            "index",
            "index_select",
            "gather",
            "repeat",
        ),
        *("scatter", "scatter_", "scatter_add", "scatter_add_", "index_put", "index_put_", "_index_put_impl_", "roll"),
        *("index_copy", "index_copy_", "index_fill", "index_fill_", "masked_select", "take_along_dim", "flip", "pad"),
        *("zero_", "fill_", "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_full"),
        *("empty", "empty_like", "empty_strided", "new_empty", "arange", "_pin_memory", "select_backward", "resize_"),
        *("slice_backward", "split_with_sizes_copy", "constant_pad_nd", "_unsafe_index", "embedding_copy", "nonzero"),
        *("index_select_backward", "new_empty_strided", "new_ones", "reshape", "narrow_copy", "repeat_interleave"),
    ),
}
_CLASS = {name: kind for kind, names in _BY_NAME.items() for name in names}
_ATTENTION_MARKS = ("_attention", "flash_", "sdpa")
# Names of torch's operators that do matmul-like work: without a formula, their presence lowers FLOP coverage.
_MATMUL_LIKE = re.compile(
    r"mm(_|$)|matmul|(^|_)linear(_|$)|attention|conv(?!ert)|rnn|lstm|gru|^_?linalg_|cholesky|(?<!re)solve|^_fft_"
    r"|^_trilinear$|^_euclidean_dist$|^_transformer_encoder|semi_structured|_int[48]pack|geqrf|ormqr|householder"
)
_HARMLESS = re.compile(
    r"^_?linalg_(vector_norm|norm|cross|diagonal|check_errors|_powsum)$|reorder|_flatten_weight$"
    r"|^_thnn_(fused|differentiable)_|_prepack$|^resolve_"
)


_Patterns = tuple[tuple[OpClass, re.Pattern[str]], ...]

# FBGEMM's operators: after its products, such as jagged_dense_bmm, those that look up, sort and pack rows.
_FBGEMM: _Patterns = (
    ("gemm", _MATMUL_LIKE),
    ("embedding", re.compile(r"embedding|_embs|bounds_check_indices|_cache_|^(lru|lfu|lxu)_cache|pruned_.*_lookup")),
    ("reduction", re.compile(r"cumsum|segment_sum|jagged_softmax|unique_indices|histogram")),
    ("elementwise", re.compile(r"^jagged_dense.*elementwise|Quantized|offsets_range|lengths_range|murmur_hash")),
    ("copy", re.compile(r"permute|bucketize|to_(padded_)?dense|dense_to_jagged|index_select|jagged_slice|reorder")),
    ("copy", re.compile(r"pack_|regroup|tbe_input|expand_into_jagged|repeat_arange|all_to_one_device|uvm_to_")),
)
# Torch's operators on quantized tensors and packed weights; those that pack, or tell of what is packed, come first.
_QUANTIZED: _Patterns = (
    ("copy", re.compile(r"(^|_)(pre|un)?pack(_|$)|^cat|^make_|^dropout$")),
    ("other", re.compile(r"^conv\w*_(stride|padding|dilation|groups|transpose)$")),
    ("gemm", _MATMUL_LIKE),
    ("embedding", re.compile(r"^embedding")),
    ("norm", re.compile(r"_norm")),
    ("reduction", re.compile(r"softmax|max_pool|choose_qparams")),
    ("elementwise", re.compile(r"^(add|mul|clamp|threshold|sigmoid|hardswish)|elu|(^|_)quant|dequantize|^convert_")),
)
_PATTERNS = {"fbgemm": _FBGEMM, **dict.fromkeys(("quantized", "_quantized", "quantized_decomposed"), _QUANTIZED)}


def _by_pattern(namespace: str, base: str) -> OpClass | None:
    """Class of an operator of a namespace whose operators are told by parts of their names."""
    return next((kind for kind, pattern in _PATTERNS[namespace] if pattern.search(base)), None)


@cache
def op_class(name: str) -> OpClass:
    """Class of a dispatched operator, given as ``aten::mm`` or ``mm``; ``other`` for what is not known."""
    namespace, _, base = name.rpartition("::")
    if namespace in _PATTERNS:
        return _by_pattern(namespace, base) or "other"
    if namespace == FULLY_SHARDED:
        return "copy"
    if base in _CLASS:
        return _CLASS[base]
    if any(mark in base for mark in _ATTENTION_MARKS):
        return "attention"
    packet = getattr(torch.ops.aten, base, None) if namespace in ("", "aten") else None
    if packet is None:
        return "other"
    overloads = (getattr(packet, overload) for overload in packet.overloads())
    return "elementwise" if any(torch.Tag.pointwise in overload.tags for overload in overloads) else "other"


FULLY_SHARDED = "fsdp"  # torch's operators that pack what its ranks gather and scatter, and unpack it
_COLLECTIVES = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "symm_mem", "_dtensor")
_COLLECTIVE_KERNELS = re.compile(r"^(nccl|nvshmem)")


@cache
def communicates(name: str) -> bool:
    """Whether an operator or a kernel moves data between the ranks of a job, or waits for others to."""
    return name.partition("::")[0] in _COLLECTIVES or bool(_COLLECTIVE_KERNELS.search(name))


@cache
def may_hide_flops(name: str) -> bool:
    """Whether an operator without a FLOP formula could do matmul-like work: foreign ones, and a list of torch's."""
    namespace, _, base = name.rpartition("::")
    if namespace in _PATTERNS:
        return _by_pattern(namespace, base) in (None, "gemm")
    if namespace not in ("", "aten", "prim", "prims", "profiler", FULLY_SHARDED) and not communicates(name):
        return True
    return bool(_MATMUL_LIKE.search(base)) and not _HARMLESS.search(base)
