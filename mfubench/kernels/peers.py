"""What a kernel is timed beside: torch's own implementations, and one that the user names.

A peer computes the op itself, or only work of the same shape, such as softmax attention beside GDPA: then it is a
ceiling, marked as one, and its numbers are not held against ours.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mfu_kernels.examples import Examples, Inputs
from mfubench.errors import BadInput
from mfubench.user_code import named_function

Call = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Peer:
    """One implementation; ``make(inputs)`` gives a function of the op's tensors by name, or raises why."""

    name: str
    make: Callable[[Inputs], Call]
    same_math: bool = True


class CannotRun(Exception):
    """Why a peer does not take these inputs; it is listed as absent with this reason."""


def peers_of(op: str, examples: Examples, named: Sequence[str] = (), *, builtin: bool = True) -> list[Peer]:
    """The ``builtin`` peers of an op, the compiled reference first, and each of ``named``, as `named_peer` finds it.

    Raises:
        BadInput: there is none of that name.
    """
    compiled = Peer("torch.compile(reference)", lambda inputs: _compiled_reference(examples, inputs))
    own = [compiled, *PEERS_BY_OP.get(op, [])] if builtin else []
    return own + [named_peer(target) for target in named]


def named_peer(target: str) -> Peer:
    """A function that takes the op's arguments by name: ``package.module:function``.

    Raises:
        BadInput: there is none of that name.
    """
    try:
        function = named_function(target, "a peer takes the op's arguments by name")
    except BadInput as error:
        raise BadInput(f"--peer {target}: {error}") from error
    return Peer(target, lambda inputs: lambda **tensors: function(**tensors, **inputs.others))


def _compiled_reference(examples: Examples, inputs: Inputs) -> Call:
    return _compiled(lambda **tensors: examples.function(**tensors, **inputs.others, impl="reference"))


def _compiled(function: Call) -> Call:
    compiled: Call = torch.compile(function, dynamic=False)
    return compiled


def _lengths(inputs: Inputs) -> list[int]:
    return [int(n) for n in inputs.others["offsets"].diff().tolist()]


def _dense_rows(inputs: Inputs) -> tuple[int, int]:
    """Rows and their common length.

    Raises:
        CannotRun: they differ.
    """
    lengths = _lengths(inputs)
    if len(set(lengths)) != 1:
        raise CannotRun("rows of unlike lengths")
    return len(lengths), lengths[0]


def _heads_first(x: Tensor, rows: int) -> Tensor:
    heads: Tensor = x.unflatten(0, (rows, -1)).transpose(1, 2)
    return heads


def _sdpa(backend: str) -> Callable[[Inputs], Call]:
    """Dense softmax attention with queries and keys of GDPA or seed pooling, in one of SDPA's backends."""

    def make(inputs: Inputs) -> Call:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        rows, _ = _dense_rows(inputs)

        def heads(x: Tensor) -> Tensor:
            if x.dim() == 4:
                return x.transpose(1, 2)
            return _heads_first(x, rows)

        def run(**tensors: Tensor) -> Tensor:
            seeds = tensors.get("seeds")
            q = heads(tensors["q"]) if seeds is None else seeds.transpose(0, 1).expand(rows, -1, -1, -1)
            with sdpa_kernel(getattr(SDPBackend, backend)):
                return F.scaled_dot_product_attention(q, heads(tensors["k"]), heads(tensors["v"]))

        return run

    return make


def _varlen(inputs: Inputs) -> Call:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise CannotRun(str(error)) from error
    others = inputs.others
    if others.get("angles") is not None or "angles" in inputs.tensors:
        raise CannotRun("it rotates nothing")
    offsets, longest = others["offsets"].int(), int(others["max_length"])
    reach = -1 if others["window"] is None else int(others["window"])
    window = (reach, 0 if others.get("causal") else reach)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scale = others.get("scale")
        out: Any = varlen_attn(q, k, v, offsets, offsets, longest, longest, window_size=window, scale=scale)
        attended: Tensor = out if isinstance(out, Tensor) else out[0]  # with the log-sum-exp, in some versions
        return attended

    return run


def _flex(inputs: Inputs) -> Call:
    """FlexAttention with a mask of the window, over a batch of rows of one length, else over all rows end to end.

    Making the mask is not timed.
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    from mfu_kernels.jagged import row_of_each

    others, lengths = inputs.others, _lengths(inputs)
    if others.get("angles") is not None or "angles" in inputs.tensors:
        raise CannotRun("it rotates nothing")
    batch = len(lengths) if len(set(lengths)) == 1 else 1
    length = inputs.tensors["q"].shape[0] // batch
    row = row_of_each(others["offsets"], length * batch)[:length]  # in a batch, all of a mask's events are one row's
    reach = length if others["window"] is None else int(others["window"])
    causal = bool(others.get("causal"))

    def seen(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = (row[query] == row[key]) & ((query - key) <= reach)
        return near & (key <= query) if causal else near & ((key - query) <= reach)

    mask = torch.compile(create_block_mask)(seen, None, None, length, length, device=str(row.device))
    attend = _compiled(flex_attention)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (_heads_first(x, batch) for x in (q, k, v))
        return attend(q, k, v, block_mask=mask, scale=others.get("scale")).transpose(1, 2).flatten(0, 1)

    return run


def _torch_rms_norm(inputs: Inputs) -> Call:
    eps = inputs.others["eps"]
    return lambda x, weight=None: F.rms_norm(x, x.shape[-1:], None if weight is None else weight.to(x.dtype), eps)


def _torch_layer_norm(inputs: Inputs) -> Call:
    eps = inputs.others["eps"]

    def run(x: Tensor, residual: Tensor | None = None, **affine: Tensor) -> Tensor:
        x = x if residual is None else x + residual.to(x.dtype)
        return F.layer_norm(x, x.shape[-1:], **{name: t.to(x.dtype) for name, t in affine.items()}, eps=eps)

    return run


def _look_up(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Inputs], Call]:
    """``function(rows, table)`` with the ids of all fields as rows of the one table."""
    return lambda inputs: lambda weight: function(inputs.others["ids"] + inputs.others["offsets"][:-1], weight)


def _index_select(rows: Tensor, weight: Tensor) -> Tensor:
    found: Tensor = weight.index_select(0, rows.flatten()).unflatten(0, rows.shape)
    return found


def _unfused_block(inputs: Inputs) -> Call:
    """The block as a chain of our own kernels: what fusing them is worth."""
    from mfu_kernels import gdpa, layer_norm, rms_norm

    others = dict(inputs.others)
    eps = others.pop("eps", 1e-5)

    def run(x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        normed = layer_norm(x.flatten(1), eps=eps, impl="triton").view_as(x)
        attended = gdpa(normed, k, v, **others, impl="triton")
        return x + rms_norm((attended + normed).flatten(1), eps=eps, impl="triton").view_as(x)

    return run


def _eager_reference(op: str) -> Callable[[Inputs], Call]:
    def make(inputs: Inputs) -> Call:
        function = getattr(import_module("mfu_kernels"), op)
        return lambda **tensors: function(**tensors, **inputs.others, impl="reference")

    return make


_SOFTMAX = [
    Peer(f"SDPA {name} (softmax)", _sdpa(backend), same_math=False)
    for name, backend in (("cuDNN", "CUDNN_ATTENTION"), ("flash", "FLASH_ATTENTION"))
]
PEERS_BY_OP: Mapping[str, list[Peer]] = {
    "gdpa": _SOFTMAX,
    "gdpa_block": [Peer("chain of our kernels", _unfused_block)],
    "window_attention": [Peer("varlen_attn", _varlen), Peer("FlexAttention", _flex)],
    "seed_pooling": _SOFTMAX,
    "sum_kron_linear": [Peer("two matmuls", _eager_reference("sum_kron_linear"))],
    "rms_norm": [
        Peer("F.rms_norm", _torch_rms_norm),
        Peer("torch.compile(F.rms_norm)", lambda inputs: _compiled(_torch_rms_norm(inputs))),
    ],
    "layer_norm": [
        Peer("F.layer_norm", _torch_layer_norm),
        Peer("torch.compile(F.layer_norm)", lambda inputs: _compiled(_torch_layer_norm(inputs))),
    ],
    "embedding": [
        Peer("F.embedding", _look_up(F.embedding)),
        Peer("torch.compile(F.embedding)", lambda inputs: _compiled(_look_up(F.embedding)(inputs))),
        Peer("index_select", _look_up(_index_select)),
        Peer("look-up in copies", _eager_reference("embedding")),
    ],
}
