"""FLOPs of one dispatched torch operator.

torch's own registry counts what a kernel executes and never discounts a causal mask; attention is therefore counted
here, once for the mathematics and once for the hardware. Fused attention's backward repeats the scores: 5 matrix
products, of which the mathematics needs 4.

A multiply-add of complex numbers is 4 multiplications and 4 additions of real ones: 4 times as many. Torch multiplies
complex by complex numbers alone, of which real ones are made first where a model mixes them. A complex convolution
never comes by: it is 3 real ones, which are counted as these.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import is_fake
from torch.utils.flop_counter import flop_registry

from mfubench.errors import BadInput

from .classify import op_class
from .flex import flex_pairs
from .masked import near_highest
from .operators import arguments_by_name, dense_parts, is_nested, operator_name, tensors_of

SDPA_FORWARD = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
)
SDPA_BACKWARD = (
    *(f"{name}_backward" for name in SDPA_FORWARD[:3]),
    "_scaled_dot_product_flash_attention_for_cpu_backward",
)
# On rows between offsets: what jagged nested tensors run on a GPU, and torch.nn.attention.varlen.
VARLEN = (
    *("_flash_attention_forward", "_flash_attention_backward"),
    *("_efficient_attention_forward", "_efficient_attention_backward"),
    *("_varlen_attn", "_varlen_attn_out", "_varlen_attn_backward"),
)
# Whose masks are aligned at the lower right corner, the last query with the last key (torch/nn/attention/bias.py).
LOWER_RIGHT = (
    *("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_backward"),
    *(name for name in VARLEN if not name.startswith("_efficient")),
)

FLEX = ("higher_order::flex_attention", "higher_order::flex_attention_backward")  # whose masks are functions

MASKS = ("attn_mask", "attn_bias", "bias")  # which queries see which keys, or what is added to their scores

# All steps of a recurrent network in one: of all its layers, or of one layer in one direction.
RECURRENT = ("_cudnn_rnn", "_cudnn_rnn_backward", "mkldnn_rnn_layer", "mkldnn_rnn_layer_backward")

# Whose factor that is learned may be packed, of a shape that tells nothing: the width of the other says how much each
# number of what comes out is the sum of.
PACKED = (
    *("_int_mm", "_weight_int8pack_mm", "_weight_int4pack_mm", "_weight_int4pack_mm_for_cpu", "_dyn_quant_matmul_4bit"),
    *("_weight_int4pack_mm_with_scales_and_zeros", "mkldnn_linear"),
)
_PACKED = re.compile(r"^_?quantized::\w*(linear|matmul|int4mm)")  # if these multiply, and do not pack


class Flops(NamedTuple):
    """``model``: what the mathematics needs; ``hardware``: executed.

    Of what is executed, ``recomputed`` repeats earlier work, and ``unwanted`` has a result that nobody asked for.
    """

    model: int
    hardware: int
    recomputed: int = 0
    unwanted: int = 0


def dispatched_flops(func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> Flops | None:
    """FLOPs of one call, None where no formula is known (which is right for everything that multiplies no matrices).

    Raises:
        BadInput: attention on jagged rows whose offsets are a tensor without numbers.
    """
    flops = _of_real_numbers(func, args, kwargs, out)
    if flops is None or getattr(func, "namespace", "") != "aten":
        return flops  # a formula that a user has registered is of whatever its operator takes
    is_complex = any(tensor.is_complex() for tensor in tensors_of((args, kwargs)))
    return Flops(*(4 * number for number in flops)) if is_complex else flops


def _of_real_numbers(func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> Flops | None:
    packet = getattr(func, "_overloadpacket", func)  # a higher-order operator has no overloads
    name = operator_name(func).removeprefix("aten::").removeprefix("torch_attn::")
    args = [
        value for value in args if not isinstance(value, torch.dtype)
    ]  # which a product may have behind its factors
    if name in SDPA_FORWARD or name in SDPA_BACKWARD or name in VARLEN:
        return _attention(name, arguments_by_name(func, args, kwargs))
    if name in FLEX:
        return _flex_attention(name, args)
    if name in RECURRENT:
        return _recurrent(name, arguments_by_name(func, args, kwargs))
    if name in _PRODUCTS and any(tensor.layout != torch.strided for tensor in args):
        return _sparse_product(*args[-2:])
    if name in PACKED or (_PACKED.search(name) and op_class(name) == "gemm"):
        return _same(2 * out.numel() * args[0].shape[-1])
    if name in _MULTIPLY_ADDS:
        return _same(2 * _MULTIPLY_ADDS[name](args))
    if any(map(is_nested, tensors_of(args))):  # it has no shape, which torch's own formulas ask for
        return _same(2 * _NESTED[name](args)) if name in _NESTED else None
    if packet in flop_registry:
        return _same(int(flop_registry[packet](*args, **kwargs, out_val=out)))
    return None


def _same(flops: int) -> Flops:
    return Flops(flops, flops)


# Of two factors, the last arguments.
_PRODUCTS = ("mm", "addmm", "_sparse_addmm", "mv", "addmv", "bmm")


def _sparse_product(first: torch.Tensor, second: torch.Tensor) -> Flops | None:
    """Each number that the sparse factor holds meets a row or a column of the other; None where both are sparse."""
    if second.layout == torch.strided:
        sparse, met = first, second.shape[-1] if second.ndim > 1 else 1
    elif first.layout == torch.strided:
        sparse, met = second, first.shape[-2]
    else:
        return None
    return _same(2 * sum(part.numel() for part in dense_parts(sparse)[:1]) * met)


# Multiply-adds of what torch's registry leaves out, or counts otherwise: of groups it forgets the weights' gradient.
_MULTIPLY_ADDS = {
    "mv": lambda a: a[0].numel(),
    "addmv": lambda a: a[1].numel(),
    "dot": lambda a: a[0].numel(),
    "vdot": lambda a: a[0].numel(),
    "addbmm": lambda a: a[1].numel() * a[2].shape[-1],
    "linear": lambda a: a[0].numel() * a[1].shape[0],  # whole for a nested tensor
    "linear_backward": lambda a: a[1].numel() * a[2].shape[1] * (a[3][0] + a[3][1]),
    "mkldnn_linear_backward": lambda a: a[1].numel() * a[0].shape[-1] * (a[3][0] + a[3][1]),
    "mkldnn_linear_backward_input": lambda a: a[1].numel() * a[0][-1],
    "mkldnn_linear_backward_weights": lambda a: a[0].numel() * a[1].shape[-1],
    "_addmm_activation": lambda a: a[1].numel() * a[2].shape[-1],
    "_trilinear": lambda a: _three_factors(*a),
    # Of four numbers in a row of the sparse factor it holds two.
    "_sparse_semi_structured_mm": lambda a: a[0].numel() * a[2].shape[-1],
    "_sparse_semi_structured_addmm": lambda a: a[1].numel() * a[3].shape[-1],
    "_sparse_semi_structured_linear": lambda a: a[0].numel() // a[0].shape[-1] * a[1].numel(),
    "convolution_backward": lambda a: a[1 if a[7] else 0].numel() * a[2][0].numel() * (a[10][0] + a[10][1]),
    "_native_multi_head_attention": lambda a: _whole_attention(*a[:4]),
    "_euclidean_dist": lambda a: _distances(*a),
    "_cdist_forward": lambda a: _distances(*a[:2]) if _by_a_product(*a) else 0,
}
# The same of nested tensors.
_NESTED = {
    "bmm": lambda a: _row_by_row(*a[:2]),
    "matmul": lambda a: _row_by_row(*a[:2]),
    "matmul_backward": lambda a: _row_by_row(*a[1:3]) * sum(a[3]),
}
MANY_POINTS = 25  # beyond so many torch.cdist makes a product of the distances (ATen/native/Distance.cpp)


def _distances(first: torch.Tensor, second: torch.Tensor) -> int:
    """torch.cdist by one product of points that have two more coordinates: their squared length, and a one."""
    return first.numel() // max(first.shape[-1], 1) * second.shape[-2] * (first.shape[-1] + 2)


def _by_a_product(first: torch.Tensor, second: torch.Tensor, norm: float, mode: int | None) -> bool:
    """Whether distances are computed so, which only Euclid's can be, rather than one by one, which is no product."""
    many = max(first.shape[-2], second.shape[-2]) > MANY_POINTS
    return norm == 2 and (mode == 1 or (not mode and many))


def _three_factors(
    first: torch.Tensor,
    second: torch.Tensor,
    third: torch.Tensor,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    summed: Sequence[int],
    unrolled: int = 1,
) -> int:
    """nn.Bilinear, and each of its gradients: the first two make a product, which makes one with the third.

    Either is elementwise if nothing is summed. That is done anew at each place of one dimension, whose sum is an
    addition to what comes out (``_trilinear`` in ATen/native/Linear.cpp). Nothing is done where one of them is empty.
    """
    if not first.numel() * second.numel() * third.numel():
        return 0
    shapes = []
    for tensor, expanded in ((first, expand1), (second, expand2), (third, expand3)):
        lengths = iter(tensor.shape)
        shapes.append([1 if dim in expanded else next(lengths) for dim in range(tensor.ndim + len(expanded))])
    times = max(shape[unrolled] for shape in shapes)
    for shape in shapes:
        shape[unrolled] = 1
    inside = {dim for dim in summed if dim != unrolled}
    before, after = inside.intersection(expand3), inside.difference(expand3)
    left, right, last = shapes
    between = [1 if dim in before else max(pair) for dim, pair in enumerate(zip(left, right, strict=True))]
    return times * (_broadcast_product(left, right, before) + _broadcast_product(between, last, after))


def _broadcast_product(first: Sequence[int], second: Sequence[int], summed: Collection[int]) -> int:
    """Multiply-adds of two tensors of as many dimensions; where one of them is alone, its sum is taken before."""
    lengths = enumerate(zip(first, second, strict=True))
    return prod(min(pair) if dim in summed else max(pair) for dim, pair in lengths) if summed else 0


def _row_by_row(first: torch.Tensor, second: torch.Tensor) -> int:
    """Products of a nested tensor's rows with those of another, or with a dense factor."""
    if not is_nested(second):
        return first.numel() * second.shape[-1]
    return int((first._nested_tensor_size().prod(1) * second._nested_tensor_size()[:, -1]).sum())


def _whole_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, width: int) -> int:
    """nn.MultiheadAttention outside training, one operator: projections in and out, scores, weighted sum."""
    rows = zip(*map(_row_lengths, (query, key, value)), strict=True)
    return sum(width * ((2 * q + k + v) * width + 2 * q * k) for q, k, v in rows)


def _row_lengths(tensor: torch.Tensor, dim: int = 0) -> list[int]:
    """Length of each row of [rows, length, width], nested or not; of a nested one's rows in another dimension."""
    if is_nested(tensor):
        return list(tensor._nested_tensor_size()[:, dim].tolist())
    return [tensor.shape[1]] * tensor.shape[0]


def _recurrent(name: str, named: Mapping[str, Any]) -> Flops:
    """Every step multiplies each of the weights' matrices once.

    Backward they do twice, but for what needs no gradient: the rows that went in, and the states before the first step.
    """
    rows, states = named["input"], named.get("hx", named.get("hx_"))
    steps, first_steps = rows.numel() // rows.shape[-1], states.shape[-2]
    if name.startswith("_cudnn"):
        weights, a_layer = named["weight"], named["weight_stride0"]
        entries = (1 + named["bidirectional"]) * a_layer  # of the first layer
        of_rows, of_states = weights[:entries:a_layer], weights[1::a_layer]
    else:  # the backward's names are one ahead of the forward's
        weights = [named[weight] for weight in ("weight0", "weight1", "weight2") if weight in named][:2]
        of_rows, of_states = weights[:1], weights[1:]
    every = 2 * steps * sum(weight.numel() for weight in weights if weight.ndim == 2)
    if not name.endswith("_backward"):
        return _same(every)
    rows_wanted, states_wanted, _, weights_wanted = named.get(
        "output_mask", (rows.requires_grad, states.requires_grad, False, True)
    )
    spared = 0 if rows_wanted else 2 * steps * sum(weight.numel() for weight in of_rows)
    spared += 0 if states_wanted else 2 * first_steps * sum(weight.numel() for weight in of_states)
    executed = every * (1 + weights_wanted)
    return Flops(executed - spared, executed, unwanted=spared)


def _attention(name: str, named: Mapping[str, Any]) -> Flops:
    query, key, value = named["query"], named["key"], named["value"]
    if name in VARLEN:  # heads next to last
        heads, rows = query.shape[-2], _rows(name, named)
    elif is_nested(query):
        heads, rows = query.size(1), list(zip(_row_lengths(query, 1), _row_lengths(key, 1), strict=True))
    else:
        heads, rows = int(query.shape[:-2].numel()), [(query.shape[-2], key.shape[-2])]
    pairs = heads * sum(_kept(name, named, queries, keys) for queries, keys in rows)
    return _of_pairs(name, _unmasked(named, pairs), pairs, query, value)


def _of_pairs(name: str, kept: int, executed: int, query: torch.Tensor, value: torch.Tensor, walks: int = 1) -> Flops:
    """Fused attention, by the pairs of queries and keys that are needed and those that are multiplied.

    The backward needs the scores again, and in each of its ``walks`` over the pairs what the first one made, too.
    """
    of_scores, of_values = 2 * query.size(-1), 2 * value.size(-1)
    once, useful = executed * (of_scores + of_values), kept * (of_scores + of_values)
    if not name.endswith("_backward"):
        return Flops(useful, once)
    again = executed * (walks * of_scores + (walks - 1) * of_values)
    return Flops(2 * useful, 2 * once + again, recomputed=again)


def _flex_attention(name: str, args: Sequence[Any]) -> Flops:
    """FlexAttention, whose arguments come without names (torch/_higher_order_ops/flex_attention.py of 2.11 and 2.13).

    What a mask is made from is their last; the backward's come with the output and its gradient in between. Compiled,
    that walks over the pairs once for the queries' gradient and once for the keys' (flex_backwards.py.jinja of both).
    """
    query, key, value = args[:3]
    kept, executed = flex_pairs(query, key, args[9 if name.endswith("_backward") else 4], args[-1])
    return _of_pairs(name, kept, executed, query, value, walks=2)


def _unmasked(named: Mapping[str, Any], pairs: int) -> int:
    """Of a call's ``pairs`` those that a mask in a tensor keeps: no kernel skips what it drops, but nobody needs it.

    A bias is added to scores, which are not seen here: what lies far below the highest of its row is dropped. Where
    attention is written out, as in torch's math backend, `MaskedProducts` finds them.
    """
    mask = next((named[name] for name in MASKS if named.get(name) is not None), None)
    if mask is None or mask.is_meta or is_fake(mask) or not mask.numel():
        return pairs
    kept = int(mask.sum()) if mask.dtype == torch.bool else sum(int(part.sum()) for part in near_highest(mask))
    return pairs * kept // int(mask.numel())  # it may be the same for all heads, samples or queries


def _rows(name: str, named: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Queries and keys of each row; without offsets the tensors are [B, S, H, D]."""
    stem = next(stem for stem in ("cum_seq", "cu_seqlens", "cu_seq") if f"{stem}_q" in named)
    of_queries, of_keys = named[f"{stem}_q"], named.get(f"{stem}_k")
    if of_queries is None:
        query, key = named["query"], named["key"]
        return [(query.shape[1], key.shape[1])] * query.shape[0]
    queries = _numbers(name, of_queries).diff().tolist()
    used = named.get("seqused_k")  # of a cache that is not full
    keys = _numbers(name, of_queries if of_keys is None else of_keys).diff() if used is None else _numbers(name, used)
    return list(zip(queries, keys.tolist(), strict=True))


def _numbers(name: str, lengths: torch.Tensor) -> torch.Tensor:
    if lengths.is_meta or is_fake(lengths):
        raise BadInput(
            f"{name}: its FLOPs depend on its rows' lengths, and these are in a {lengths.device.type} tensor without "
            "numbers (meta or fake); count it on tensors that have them"
        )
    return lengths


def _kept(name: str, named: Mapping[str, Any], queries: int, keys: int) -> int:
    """Pairs of a row's queries and keys that the mask keeps."""
    variant = named.get("custom_mask_type")  # 1: causal, aligned at the upper left corner; 2: at the lower right
    shift = keys - queries if name in LOWER_RIGHT or variant == 2 else 0
    left, right = named.get("window_size_left"), named.get("window_size_right")
    if name.startswith("_varlen") and named.get("window_size"):
        left, right = named["window_size"]
    if named.get("is_causal") or variant:
        right = 0
    pairs = queries * keys if right is None or right < 0 else _pairs_up_to(queries, keys, shift + right)
    return pairs - (0 if left is None or left < 0 else _pairs_up_to(queries, keys, shift - left - 1))


def _pairs_up_to(queries: int, keys: int, diagonal: int) -> int:
    """Pairs whose key's place in the row is at most ``diagonal`` beyond their query's."""

    def before(query: int) -> int:
        """Pairs up to ``query`` if the first query saw one key, the next two, and so on to all of them."""
        growing = min(max(query, 0), keys)
        return growing * (growing + 1) // 2 + max(query - keys, 0) * keys

    return before(queries + diagonal) - before(diagonal)
