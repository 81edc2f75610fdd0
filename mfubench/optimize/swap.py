"""Swaps on a live model: what a change does to its modules, functions and optimizers, and how it is taken back.

A swap patches instances, never classes, and hands out what undoes it; undone in reverse order, the model computes bit
for bit what it did. Parameters, their names and the state dict stay as they are.
"""

import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn

from mfu_kernels.registry import IMPLS, Impl, with_impl
from mfubench.errors import BadInput
from mfubench.measure.precision import PRECISIONS, fp32_products
from mfubench.workload.patching import Undo, own_forward, patch, together
from mfubench.workload.regions import Table, is_table, row_sparse

from .of_torch import FORWARDS, attention_by, attention_replaced, only_looks_up, torch_modules_of


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

    Modules of the zoo choose by their attribute ``impl``; `of_torch` says which of torch's modules, and which calls of
    its attention, compute which op.

    Raises:
        BadInput: no module has the op.
    """
    undos = [patch(m, "impl", with_impl(m.impl, op, impl)) for m in model.modules() if _has_impl(m)]  # type: ignore[arg-type]
    for module in torch_modules_of(model, op):
        undos.append(patch(module, "forward", types.MethodType(FORWARDS[op], module)))
        undos.append(patch(module, "_mfubench_impl", impl))
    if op == "window_attention":
        undos.append(_attend_by(model, cast(Impl, impl)))
    return _all(undos, f"no module of the model has the op {op}")


def _attend_by(model: nn.Module, impl: Impl) -> Undo:
    """While ``model`` runs its forward, torch's attention is the op's where it can be; nobody else's changes."""
    replaced = attention_replaced(model, attention_by(impl))

    def around(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with replaced():
            return forward(*args, **kwargs)

    return wrap_forward(model, around)


def _has_impl(module: nn.Module) -> bool:
    """Whether its attribute of that name is ours."""
    impl = getattr(module, "impl", None)
    return isinstance(impl, str) and impl.partition(",")[0] in IMPLS


# Modules and optimizers -------------------------------------------------------------------------------------------


def without_attention_weights(model: nn.Module) -> Undo:
    """Every ``nn.MultiheadAttention`` leaves out the weights that it returns, so that it can use a fused kernel."""
    undos = [patch(m, "forward", types.MethodType(_attend, m)) for m in _attention_modules(model)]
    return _all(undos, "the model has no nn.MultiheadAttention with torch's own forward")


def _attention_modules(model: nn.Module) -> list[nn.MultiheadAttention]:
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


def weights_watched(model: nn.Module, handed_out: Callable[[nn.MultiheadAttention], None]) -> Undo:
    """Tell of each ``nn.MultiheadAttention`` that hands out weights, and run it once more without, for who watches."""

    def forward(self: nn.MultiheadAttention, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        out, weights = nn.MultiheadAttention.forward(self, *args, **kwargs)
        if weights is not None:
            handed_out(self)
            with torch.no_grad():
                _attend(self, *args, **kwargs)
        return out, weights

    return together([patch(m, "forward", types.MethodType(forward, m)) for m in _attention_modules(model)])


def with_sparse_gradients(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> Undo:
    """Gradients of tables hold the rows of the batch only, where the optimizer takes such gradients."""
    undos = [patch(m, "sparse", True) for _, m in list(tables_to_make_sparse(model, optimizers))]
    return _all(undos, "no table with dense gradients has an optimizer that takes row-sparse ones")


def tables_to_make_sparse(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[tuple[str, Table]]:
    """Tables with dense gradients whose optimizer does the same with row-sparse ones, by name."""
    takes = {id(parameter) for optimizer in optimizers for parameter in _takes_sparse(optimizer)}
    for name, table in dense_tables(model):
        if only_looks_up(table) and id(table.weight) in takes:
            yield name, table


def dense_tables(model: nn.Module) -> Iterator[tuple[str, Table]]:
    """Tables that are trained with gradients as large as they are, and need not be, by name."""
    for name, module in model.named_modules():
        may_be_sparse = is_table(module) and getattr(module, "mode", "") != "max"
        if may_be_sparse and not module.sparse and module.weight.requires_grad:
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
