"""One step of a workload: data, forward, loss, backward, optimizer; the same code in every pass."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from mfubench.measure.precision import PRECISIONS, fp32_products
from mfubench.measure.scopes import BACKWARD, DATA, FORWARD, LOSS, OPTIMIZER

from .casting import with_cast_weights
from .regions import row_sparse
from .spec import Workload

Phase = Callable[[str], AbstractContextManager[None]]


def unmarked(_name: str) -> AbstractContextManager[None]:
    """The phase of a pass that looks at none."""
    return nullcontext()


def run_step(workload: Workload, index: int, *, phase: Phase = unmarked) -> None:
    """Run step ``index`` on the workload's input sets in turn; ``phase`` marks its parts in the passes that look."""
    run_on(workload, workload.inputs[index % len(workload.inputs)], phase=phase)


def run_on(workload: Workload, batch: Any, *, phase: Phase = unmarked) -> None:
    """Run a step on ``batch``."""
    run_passes(workload, batch, phase=phase)
    if workload.spec.mode == "train":
        with phase(OPTIMIZER):
            update(workload)


def update(workload: Workload) -> None:
    """The optimizers' part of a step."""
    for optimizer in workload.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def run_passes(workload: Workload, batch: Any, *, phase: Phase = unmarked) -> tuple[Any, torch.Tensor | None]:
    """The step on ``batch`` up to its gradients, which are left in the parameters: its output, and its loss if any."""
    train = workload.spec.mode == "train"
    with torch.set_grad_enabled(train), _fp32_products(workload):
        with phase(DATA):
            inputs = workload.to_device(batch)
        with phase(FORWARD), _autocast(workload):
            output = workload.forward(_module(workload), inputs)
        if not train:
            return output, None
        with phase(LOSS), _autocast(workload):
            loss = workload.loss(output, inputs)
        with phase(BACKWARD):
            loss.backward()
    return output, loss.detach()


def _autocast(workload: Workload) -> AbstractContextManager[None]:
    """bf16 means autocast over fp32 master weights."""
    return torch.autocast(workload.device.type, torch.bfloat16, enabled=workload.dtype == "bf16")


def _module(workload: Workload) -> Callable[..., Any]:
    """The module as the step calls it: its weights are cast together where its loop is ours and nothing compiles it."""
    ours = workload.needed is not None and not workload.compiles
    return with_cast_weights(workload.module, torch.bfloat16) if ours and workload.dtype == "bf16" else workload.module


def _fp32_products(workload: Workload) -> AbstractContextManager[None]:
    """tf32 means fp32 products whose factors are rounded, fp32 that they are not, whatever the process has set."""
    precision = PRECISIONS.get(workload.dtype)
    return nullcontext() if precision is None else fp32_products(precision)


def trained(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters that a step changes: those with dense gradients, and tables with row-sparse ones."""
    tables = row_sparse(module)
    changed = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [p for p in changed if id(p) not in tables], [p for p in changed if id(p) in tables]


def listed_optimizers(given: Any) -> list[torch.optim.Optimizer] | None:
    """One optimizer, or several, as a list; None for what is neither."""
    if isinstance(given, torch.optim.Optimizer):
        return [given]
    several = isinstance(given, (list, tuple)) and all(isinstance(one, torch.optim.Optimizer) for one in given)
    return list(given) if several else None


def make_optimizers(module: nn.Module) -> list[torch.optim.Optimizer]:
    """AdamW for dense parameters, fused unless one is complex; Adagrad for tables with row-sparse gradients.

    So ranking models train.
    """
    dense, sparse = trained(module)
    optimizers: list[torch.optim.Optimizer] = []
    if dense:
        optimizers.append(torch.optim.AdamW(dense, lr=1e-3, fused=all(map(torch.is_floating_point, dense))))
    if sparse:
        torch.sparse.check_sparse_tensor_invariants.disable()  # torch's default, said aloud: else Adagrad warns of it
        optimizers.append(torch.optim.Adagrad(sparse, lr=1e-2))
    return optimizers
