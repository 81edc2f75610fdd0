"""What torch's own modules and functions compute, by our ops: which of them do the same, and in what form.

Attention of padded rows becomes attention of packed ones without moving anything: rows lie one behind the other as they
are, and what pads a row is a row of its own, which nobody reads.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mfu_kernels as ops
from mfu_kernels.jagged import trusted_offsets
from mfu_kernels.registry import Impl
from mfubench.measure.masked import LOWERED
from mfubench.workload.patching import patch, together
from mfubench.workload.regions import Table


def torch_modules_of(model: nn.Module, op: str) -> list[nn.Module]:
    """torch's own modules in ``model`` that compute what ``op`` does, their forward as it is.

    Norms of one dimension, and tables whose gradients are dense and no more than a sum.
    """
    kind = _MODULES.get(op)
    if kind is None:
        return []
    same = [module for module in model.modules() if isinstance(module, kind) and _has_forward_of(kind, module)]
    return [module for module in same if _is_plain(module)]


def _has_forward_of(kind: type[nn.Module], module: nn.Module) -> bool:
    """Whether its class's forward is ``kind``'s, and its own, if it has one, a change that can be made upon."""
    own = vars(module).get("forward")
    changed = own is None or str(getattr(own, "__module__", "")).partition(".")[0] in ("torch", "mfubench")
    return type(module).forward is kind.forward and changed


def _is_plain(module: Any) -> bool:
    if isinstance(module, nn.Embedding):
        return not module.sparse and only_looks_up(module)
    return len(module.normalized_shape) == 1


def only_looks_up(table: Table) -> bool:
    """Whether a look-up changes no row, and a row's gradient is the sum of its look-ups'."""
    return table.max_norm is None and not table.scale_grad_by_freq


def _layer_norm(self: Any, x: Tensor) -> Tensor:
    return ops.layer_norm(x, self.weight, self.bias, eps=self.eps, impl=self._mfubench_impl)


def _rms_norm(self: Any, x: Tensor) -> Tensor:
    computed = torch.float64 if x.dtype == torch.float64 else torch.float32  # as torch does, whatever x is rounded to
    eps = torch.finfo(computed).eps if self.eps is None else self.eps
    return ops.rms_norm(x, self.weight, eps=eps, impl=self._mfubench_impl)


def _embedding(self: Any, input: Tensor) -> Tensor:  # as torch calls it
    if self.sparse:  # by a change that came later
        return nn.Embedding.forward(self, input)
    num_rows, width = self.weight.shape
    offsets = num_rows * torch.arange(2, device=input.device)
    with trusted_offsets():
        rows = ops.embedding(
            self.weight, input.reshape(-1, 1), offsets, vocabs=[num_rows], impl=self._mfubench_impl
        ).view(*input.shape, width)
    if self.padding_idx is None:
        return rows
    return torch.where((input == self.padding_idx).unsqueeze(-1), rows.detach(), rows)  # whose row learns nothing


_MODULES: dict[str, type[Any]] = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm, "embedding": nn.Embedding}
FORWARDS: dict[str, Callable[..., Tensor]] = {
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "embedding": _embedding,
}


# Attention --------------------------------------------------------------------------------------------------------


OTHERWISE_MASKED = "a mask drops more than padding and what is later"


def attention_by(impl: Impl) -> Callable[..., Tensor]:
    """``F.scaled_dot_product_attention`` by ``window_attention`` without a window, where it `may_be_packed`.

    That a mask drops padding and, where it is one of pairs, all that comes later, is asserted on the device, as reading
    it would wait.
    """
    original = F.scaled_dot_product_attention

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if not may_be_packed(query, key, value, attn_mask, dropout_p):
            return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        rows, _, length, _ = query.shape
        q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (query, key, value))
        nothing = None
        if attn_mask is None:
            offsets = torch.arange(0, rows * length + 1, length, device=query.device)
        else:
            offsets, pads, nothing = padded_rows(attn_mask, rows)
            torch._assert_async(pads, f"scaled_dot_product_attention: {OTHERWISE_MASKED}")
        with trusted_offsets():
            causal = is_causal or (attn_mask is not None and not _is_of_keys(attn_mask))
            mixed = ops.window_attention(
                q, k, v, offsets, window=None, causal=causal, scale=scale, max_length=length, impl=impl
            )
        mixed = mixed.unflatten(0, (rows, length)).transpose(1, 2)
        return cast(Tensor, mixed if nothing is None else mixed.masked_fill(nothing[:, None, None, None], 0.0))

    return attention


def attention_replaced(
    model: nn.Module, attention: Callable[..., Tensor]
) -> Callable[[], AbstractContextManager[None]]:
    """Contexts in which torch's attention is ``attention``, also by the names that ``model``'s files have for it."""
    original = F.scaled_dot_product_attention
    classes = {base for module in model.modules() for base in type(module).__mro__}
    own = {base.__module__ for base in classes if base.__module__.partition(".")[0] != "torch"}
    files = [sys.modules[name] for name in sorted(own & sys.modules.keys())]
    imported = [(file, name) for file in files for name, value in vars(file).items() if value is original]

    @contextmanager
    def replaced() -> Iterator[None]:
        undo = together([patch(*place, attention) for place in [(F, "scaled_dot_product_attention"), *imported]])
        try:
            yield
        finally:
            undo()

    return replaced


def may_be_packed(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float) -> bool:
    """Whether it is self-attention of [B, H, L, d] without dropout, whose mask, if any, is no bias to be learned."""
    if dropout_p or query.ndim != 4 or not query.shape == key.shape == value.shape or not query.shape[2]:
        return False
    if attn_mask is None:
        return True
    return attn_mask.ndim > 1 and attn_mask.shape[-1] == query.shape[2] and not attn_mask.requires_grad


def _is_of_keys(attn_mask: Tensor) -> bool:
    """Whether every query of a row sees the same keys."""
    return attn_mask.shape[-2] == 1 or attn_mask.stride(-2) == 0


def padded_rows(attn_mask: Tensor, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where rows and what pads them begin and end, and whether the mask is one that pads.

    Padding is cut in halves, as its pairs are computed as well. A row of nothing else is whole: by numbers far below 0,
    which are as far below for every key, its weights are as if there were no mask, and torch gives zeros where all its
    keys are dropped.

    Args:
        attn_mask: what broadcasts to [B, H, L, L], true or 0 where a key is seen, false or far below 0 where it is not.
        num_rows: B.

    Returns:
        int64 [5 B + 1] offsets; bool [], true if each row sees keys side by side, the same for every head, and of
        pairs those whose key is not behind the query; bool [B], true where a row's keys are all dropped.
    """
    masks = attn_mask[..., :1, :] if _is_of_keys(attn_mask) else attn_mask
    masks = masks[(None,) * (4 - masks.ndim)]
    seen = masks if masks.dtype == torch.bool else masks == 0
    last = seen[:, 0, -1].expand(num_rows, -1)  # of a row's queries
    length = last.shape[1]
    at = torch.arange(length, device=last.device)
    empty = ~last.any(1)
    end = torch.where(last, at + 1, 0).amax(1).masked_fill(empty, length)
    begin = torch.where(last, at, length).amin(1).masked_fill(empty, 0)
    cuts = torch.stack([torch.zeros_like(begin), begin // 2, begin, end, (end + length) // 2], dim=1)
    rows = length * torch.arange(num_rows + 1, device=last.device)
    offsets = torch.cat([(rows[:-1, None] + cuts).flatten(), rows[-1:]])
    expected = seen[:, :1, -1:]
    if masks.shape[2] > 1:
        expected = expected & (at <= at[:, None])
    pads = (empty | ((end - begin) == last.sum(1))).all() & (seen == expected).all()
    if masks.dtype == torch.bool:
        return offsets, pads, empty
    dropped = (masks[:, 0, -1] == -torch.inf).all(1)
    return offsets, pads & (seen | (masks < -LOWERED)).all(), empty & dropped
