"""Swaps on a live model: what a change does to its modules, functions and optimizers, and how it is taken back.

A swap patches instances, never classes, and hands out what undoes it; undone in reverse order, the model computes bit
for bit what it did. Parameters, their names and the state dict stay as they are.
"""

import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mfu_kernels as ops
from mfu_kernels.registry import Impl, with_impl
from mfubench.errors import BadInput
from mfubench.measure.precision import PRECISIONS, fp32_products
from mfubench.workload.patching import Undo, own_forward, patch, together
from mfubench.workload.regions import Table, is_table, row_sparse


def _all(undos: list[Undo], missing: str) -> Undo:
    if not undos:
        raise BadInput(f"nothing to change: {missing}")
    return together(undos)


def wrap_forward(module: nn.Module, around: Callable[..., Any]) -> Undo:
    """Run ``around(forward, *args)`` in place of the module's ``forward``; a copy of the module wraps its own."""
    inner = own_forward(module)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return around(inner, self, *args, **kwargs)

    return patch(module, "forward", types.MethodType(forward, module))


# An op's implementation -------------------------------------------------------------------------------------------


def use_impl(model: nn.Module, op: str, impl: str) -> Undo:
    """Choose ``impl`` for ``op`` in every module that calls it, and in torch's own modules that compute the same.

    Modules of the zoo choose by their attribute ``impl``. `torch_modules_of` says which of torch's stand for which op;
    calls of ``F.scaled_dot_product_attention`` without mask or dropout, on rows of one length, become
    ``window_attention`` without a window.

    Raises:
        BadInput: no module has the op.
    """
    undos = [patch(m, "impl", with_impl(m.impl, op, impl)) for m in model.modules() if _has_impl(m)]  # type: ignore[arg-type]
    for module in torch_modules_of(model, op):
        undos.append(patch(module, "forward", types.MethodType(_FORWARDS[op], module)))
        undos.append(patch(module, "_mfubench_impl", impl))
    if op == "window_attention":
        undos.append(_replace_in_forward(model, _attention_by(cast(Impl, impl))))
    return _all(undos, f"no module of the model has the op {op}")


def _has_impl(module: nn.Module) -> bool:
    return isinstance(getattr(module, "impl", None), str)


def torch_modules_of(model: nn.Module, op: str) -> list[nn.Module]:
    """torch's own modules in ``model`` that compute what ``op`` does: one normalised dimension, forward as it is."""
    kind: Any = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm}.get(op)
    if kind is None:
        return []
    same = [m for m in model.modules() if isinstance(m, kind) and type(m).forward is kind.forward]
    return [module for module in same if len(module.normalized_shape) == 1]


def _layer_norm(self: Any, x: Tensor) -> Tensor:
    return ops.layer_norm(x, self.weight, self.bias, eps=self.eps, impl=self._mfubench_impl)


def _rms_norm(self: Any, x: Tensor) -> Tensor:
    eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
    return ops.rms_norm(x, self.weight, eps=eps, impl=self._mfubench_impl)


_FORWARDS: dict[str, Callable[..., Tensor]] = {"layer_norm": _layer_norm, "rms_norm": _rms_norm}


def _attention_by(impl: Impl) -> Callable[..., Tensor]:
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
        if attn_mask is not None or dropout_p or query.ndim != 4 or not query.shape == key.shape == value.shape:
            return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        rows, _, length, _ = query.shape
        q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (query, key, value))
        offsets = torch.arange(0, rows * length + 1, length, device=query.device)
        mixed = ops.window_attention(
            q, k, v, offsets, window=None, causal=is_causal, scale=scale, max_length=length, impl=impl
        )
        unpacked: Tensor = mixed.unflatten(0, (rows, length)).transpose(1, 2)
        return unpacked

    return attention


def _replace_in_forward(model: nn.Module, attention: Callable[..., Tensor]) -> Undo:
    """While ``model`` runs its forward, torch's attention is ``attention``; nobody else's changes."""
    places = [(F, "scaled_dot_product_attention"), *_imported(model, F.scaled_dot_product_attention)]

    def around(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        undo = together([patch(namespace, name, attention) for namespace, name in places])
        try:
            return forward(*args, **kwargs)
        finally:
            undo()

    return wrap_forward(model, around)


def _imported(model: nn.Module, function: Callable[..., Any]) -> list[tuple[Any, str]]:
    """Where the files of the model's own classes have torch's ``function`` under a name of theirs."""
    classes = {base for module in model.modules() for base in type(module).__mro__}
    own = {base.__module__ for base in classes if base.__module__.partition(".")[0] != "torch"}
    files = [sys.modules[name] for name in sorted(own & sys.modules.keys())]
    return [(file, name) for file in files for name, value in vars(file).items() if value is function]


# Modules and optimizers -------------------------------------------------------------------------------------------


def without_attention_weights(model: nn.Module) -> Undo:
    """Every ``nn.MultiheadAttention`` leaves out the weights that it returns, so that it can use a fused kernel."""
    undos = [patch(m, "forward", types.MethodType(_attend, m)) for m in attention_modules(model)]
    return _all(undos, "the model has no nn.MultiheadAttention with torch's own forward")


def attention_modules(model: nn.Module) -> list[nn.MultiheadAttention]:
    """The ``nn.MultiheadAttention`` whose forward is torch's own."""
    return [m for m in model.modules() if isinstance(m, nn.MultiheadAttention) and _plain_attention(m)]


def _plain_attention(module: nn.MultiheadAttention) -> bool:
    return type(module).forward is nn.MultiheadAttention.forward and "forward" not in vars(module)


def _attend(
    self: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    return nn.MultiheadAttention.forward(
        self, query, key, value, key_padding_mask, False, attn_mask, average_attn_weights, is_causal
    )


def with_sparse_gradients(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> Undo:
    """Gradients of tables hold the rows of the batch only, where the optimizer takes such gradients."""
    undos = [patch(m, "sparse", True) for _, m in list(tables_to_make_sparse(model, optimizers))]
    return _all(undos, "no table with dense gradients has an optimizer that takes row-sparse ones")


def tables_to_make_sparse(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[tuple[str, Table]]:
    """Tables with dense gradients whose optimizer does the same with row-sparse ones, by name."""
    takes = {id(parameter) for optimizer in optimizers for parameter in _takes_sparse(optimizer)}
    for name, table in dense_tables(model):
        plain = table.max_norm is None and not table.scale_grad_by_freq
        if plain and id(table.weight) in takes:
            yield name, table


def dense_tables(model: nn.Module) -> Iterator[tuple[str, Table]]:
    """Tables that are trained with gradients as large as they are, by name."""
    for name, module in model.named_modules():
        if is_table(module) and not module.sparse and module.weight.requires_grad:
            yield name, module


def _takes_sparse(optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    """Parameters that ``optimizer`` updates alike from dense and row-sparse gradients."""
    for group in optimizer.param_groups:
        plain = not group.get("weight_decay") and not group.get("momentum") and not group.get("maximize")
        if isinstance(optimizer, (torch.optim.SGD, torch.optim.Adagrad)) and plain and not group.get("fused"):
            yield from group["params"]


def update_together(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], how: str) -> Undo:
    """Optimizers that loop over their parameters update them ``fused``, in one kernel, or ``foreach``, in a few."""
    undos = []
    for optimizer in looping_optimizers(model, optimizers, how):
        for group in (optimizer.defaults, *optimizer.param_groups):
            undos += [_set_item(group, "fused", how == "fused"), _set_item(group, "foreach", how == "foreach")]
        if how == "fused":
            undos += [_count_beside(parameter, state) for parameter, state in optimizer.state.items()]
    return _all(undos, f"no optimizer loops over its parameters and could update {how}")


def _count_beside(parameter: Tensor, state: dict[str, Any]) -> Undo:
    """The steps of ``parameter`` that were taken are counted on its device, where one kernel updates it."""
    count = state.get("step")
    if not isinstance(count, Tensor) or count.device == parameter.device:
        return lambda: None
    state["step"] = count.to(parameter.device, torch.float32)
    return lambda: state.__setitem__("step", state["step"].to(count))


def _set_item(group: dict[str, Any], key: str, value: Any) -> Undo:
    before = group[key]
    group[key] = value
    return lambda: group.__setitem__(key, before)


def looping_optimizers(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], how: str
) -> list[torch.optim.Optimizer]:
    """Those that can update ``fused`` or ``foreach`` and do not.

    Row-sparse gradients go one by one in any case, and what torch decides by itself on a GPU is left alone.
    """
    sparse = row_sparse(model)
    return [optimizer for optimizer in optimizers if _loops(optimizer, how, sparse)]


def _loops(optimizer: torch.optim.Optimizer, how: str, sparse: set[int]) -> bool:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not {"fused", "foreach"} <= optimizer.defaults.keys() or any(id(p) in sparse for p in parameters):
        return False
    on_cuda = any(parameter.is_cuda for parameter in parameters)
    foreach = all(group["foreach"] or (group["foreach"] is None and on_cuda) for group in optimizer.param_groups)
    fused = all(group["fused"] for group in optimizer.param_groups)
    return not fused and not (how == "foreach" and foreach)


# Dtypes -----------------------------------------------------------------------------------------------------------


def autocast_forward(model: nn.Module) -> Undo:
    """``model``'s forward runs under bf16 autocast, over parameters that stay as they are."""
    device_type = next((parameter.device.type for parameter in model.parameters()), "cpu")

    def around(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device_type, torch.bfloat16):
            return forward(*args, **kwargs)

    return wrap_forward(model, around)


def use_tf32() -> Undo:
    """fp32 products of this process round their factors to TF32."""
    stack = ExitStack()
    stack.enter_context(fp32_products(PRECISIONS["tf32"]))
    return stack.close
