"""What a model is made of, as plain data: who calls which op, what can be compiled by itself, what its optimizers do.

Remedies are read off this and the Run; neither holds a tensor, so that they cross to the process that searches.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfu_kernels import OPS, UnsupportedImpl
from mfu_kernels.registry import interpreting
from mfubench.measure.calibrate import DTYPES, load_or_calibrate
from mfubench.measure.compiled import run_eagerly
from mfubench.measure.operators import tensors_of
from mfubench.measure.scopes import ROOT, Scope, ScopeTracker
from mfubench.profiling import profile_workload
from mfubench.run import Run
from mfubench.workload.prepare import prepare
from mfubench.workload.regions import class_name, is_table, regions
from mfubench.workload.spec import Workload, WorkloadSpec
from mfubench.workload.step import run_step
from mfubench.workload.update import Update

from .of_torch import OTHERWISE_MASKED, attention_replaced, may_be_packed, padded_rows, torch_modules_of
from .rows import bucketed
from .swap import dense_tables, looping_optimizers, tables_to_make_sparse, weights_watched

WIDTH_MULTIPLE = {"cpu": 16, "cuda": 8}  # fp32 lanes of AVX-512; elements of 16 bytes in 16-bit tensor-core products
KERNEL = "triton"
ATTENTION = "window_attention"  # the op that can take the place of torch's


@dataclass(slots=True)
class OpUse:
    """An op that the model computes: where, its class, what runs now, and why its kernel cannot run here, if so."""

    modules: list[str]
    kind: str
    impl: str
    blocked: str | None


@dataclass(slots=True)
class Survey:
    """What remedies need to know; modules by name."""

    device: str
    dtype: str
    batch_size: int
    interpreted: bool  # kernels run under Triton's interpreter, whose time says nothing
    shapes_vary: bool
    peaks: dict[str, float]  # measured TFLOP/s of a large GEMM by dtype
    bandwidth_gb_s: float
    ops: dict[str, OpUse] = field(default_factory=dict)
    regions: dict[str, list[str]] = field(default_factory=dict)  # class -> modules that run inside its calls
    regional: list[str] = field(default_factory=list)  # modules inside what regional compilation compiles
    attention: list[str] = field(default_factory=list)  # nn.MultiheadAttention that hands out its weights
    optimizers: dict[str, list[str]] = field(default_factory=dict)  # how -> classes that could update that way
    update_bytes: int = 0  # least that the optimizers move
    sparse_tables: list[str] = field(default_factory=list)  # row-sparse now
    dense_tables: dict[str, int] = field(default_factory=dict)  # dense, could be row-sparse: bytes
    stuck_tables: dict[str, int] = field(default_factory=dict)  # dense, as their optimizer is: bytes
    odd_widths: list[str] = field(default_factory=list)
    one_size: bool = False  # of batches
    padded_share_won: float | None = None  # of padded FLOPs that bucketing by length would leave out


def survey(spec: WorkloadSpec, tell: Callable[[str], None]) -> tuple[Run, Survey]:
    """Profile ``spec``'s workload as it is, and look at its parts.

    Raises:
        BadInput, mfu_kernels.errors.InvalidArgument, ToolBroke: as `profiling.profile`.
    """
    tell("profiling")
    workload = prepare(spec)
    run = profile_workload(workload)
    tell("looking at the model")
    return run, look(workload, run)


def look(workload: Workload, run: Run) -> Survey:
    """The parts of ``workload``, of which ``run`` is the profile."""
    seen = _Looker(workload.module)
    update = Update(workload.optimizers)
    attention_watched = attention_replaced(workload.module, seen.attend)
    unwatch = weights_watched(workload.module, seen.with_weights.add)
    with run_eagerly(), seen.attached(), attention_watched():
        run_step(workload, 0, phase=update.seen_in(seen.phase))
    unwatch()
    update_bytes = update.least_bytes()
    del update  # which keeps all gradients
    device, model = workload.device, workload.module
    found = Survey(
        device=device.type,
        dtype=workload.dtype,
        batch_size=workload.description["batch_size"],
        interpreted=_interpreted(device),
        shapes_vary=len({tuple(tensor.shape for tensor in tensors_of(batch)) for batch in workload.inputs}) > 1,
        peaks={name: load_or_calibrate(device, name).gemm_tflops[name] for name in DTYPES[device.type]},
        bandwidth_gb_s=run.peak["bandwidth_gb_s"],
    )
    found.ops = {name: OpUse(sorted(places), *_op(name, seen, device)) for name, places in _ops(seen, model).items()}
    if seen.attention_blocked and ATTENTION in found.ops:
        found.ops[ATTENTION].blocked = seen.attention_blocked
    found.regions = seen.regions()
    names = {module: name for name, module in model.named_modules()}
    found.regional = sorted({names[part] for r in regions(model) if r is not model for part in r.modules()})
    found.attention = sorted(names[module] or ROOT for module in seen.with_weights)
    for how in ("fused", "foreach"):
        found.optimizers[how] = [type(o).__name__ for o in looping_optimizers(model, workload.optimizers, how)]
    found.sparse_tables = [name for name, m in model.named_modules() if is_table(m) and m.sparse]
    found.update_bytes = update_bytes
    if workload.optimizers:
        found.dense_tables = {n: table.weight.nbytes for n, table in tables_to_make_sparse(model, workload.optimizers)}
        dense = {name: table.weight.nbytes for name, table in dense_tables(model)}
        found.stuck_tables = {name: size for name, size in dense.items() if name not in found.dense_tables}
    found.odd_widths = _odd_widths(model, WIDTH_MULTIPLE[device.type])
    found.one_size = workload.one_size
    found.padded_share_won = _padded_share_won(workload)
    return found


def _interpreted(device: torch.device) -> bool:
    try:
        return device.type == "cpu" and interpreting()
    except UnsupportedImpl:
        return False  # no triton at all: then every kernel says so itself


def _ops(seen: "_Looker", model: nn.Module) -> dict[str, set[str]]:
    """Modules by the op that they compute, also where they are torch's own."""
    found = {name: set(places) for name, places in seen.ops.items()}
    names = {module: name or ROOT for name, module in model.named_modules()}
    for op in OPS:
        for module in torch_modules_of(model, op):
            found.setdefault(op, set()).add(names[module])
    if seen.attention:
        found.setdefault(ATTENTION, set()).update(seen.attention)
    return found


def _op(name: str, seen: "_Looker", device: torch.device) -> tuple[str, str, str | None]:
    op = OPS[name]
    try:
        op.choose(KERNEL, device)
        blocked = None
    except UnsupportedImpl as error:
        blocked = str(error)
    return op.kind, seen.impls.get(name, "torch"), blocked


def _odd_widths(model: nn.Module, multiple: int) -> list[str]:
    return [
        f"{name} [{module.out_features}, {module.in_features}]"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and (module.in_features % multiple or (module.out_features % multiple and module.out_features > 1))
    ]


def _padded_share_won(workload: Workload) -> float | None:
    """Share of the padded FLOPs that batches of like length leave out; None where the batches are the user's."""
    if workload.needed is None or len(workload.inputs) < 2:
        return None
    needed = workload.needed

    def padded(batches: Sequence[object]) -> int:
        return sum(needed(batch)[1].total for batch in batches)

    return 1.0 - padded(bucketed(workload.inputs)) / padded(workload.inputs)


class _Looker(ScopeTracker):
    """Notes who calls which op, and which modules run inside which."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.modules = {name: module for module, name in self.names.items()}
        self.ops: dict[str, set[str]] = defaultdict(set)
        self.impls: dict[str, str] = {}
        self.torchs_attention: Callable[..., Tensor] = F.scaled_dot_product_attention
        self.attention: set[str] = set()  # modules that call it, or would without the weights that they hand out
        self.attention_blocked: str | None = None  # why no op can take its place
        self.with_weights: set[nn.Module] = set()  # attention that hands them out
        self.callees: dict[str, dict[str, None]] = defaultdict(dict)
        self.inside: dict[str, set[str]] = defaultdict(set)

    def opened(self, scope: Scope) -> None:
        """Note it under everything that is open."""
        if scope.op is not None:
            self.ops[scope.op].add(scope.module)
            self.impls[scope.op] = str(scope.impl)
        if scope.module not in self.modules:
            return
        outer = [s.module for s in self.stack[:-1] if s.module in self.modules]
        for name in outer:
            self.inside[name].add(scope.module)
        if outer and outer[-1] != scope.module:
            self.callees[outer[-1]][scope.module] = None

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """torch's own attention; notes the module that calls it, if an op can take its place."""
        caller = self.current.module if self.current is not None else ""
        packed = may_be_packed(query, key, value, attn_mask, dropout_p)
        if packed and torch._C._current_graph_task_id() != -1:  # in a backward
            self.attention_blocked = "checkpointing repeats it outside of the model's forward"
        elif packed and caller in self.modules:
            if attn_mask is None or bool(padded_rows(attn_mask, len(query))[1]):
                self.attention.add(caller)
            else:
                self.attention_blocked = f"{OTHERWISE_MASKED}, in {caller}"
        return self.torchs_attention(query, key, value, attn_mask, dropout_p, *args, **kwargs)

    def regions(self) -> dict[str, list[str]]:
        """Classes of the modules that the model calls itself, through containers of torch: what runs inside each."""
        found: dict[str, set[str]] = defaultdict(set)
        waiting = list(self.callees[ROOT])
        while waiting:
            name = waiting.pop()
            module = self.modules[name]
            if type(module).__module__.startswith("torch.nn") and self.callees[name]:
                waiting += self.callees[name]
            elif self.callees[name] or self.inside[name] or not type(module).__module__.startswith("torch.nn"):
                found[class_name(module)] |= {name, *self.inside[name]}
        if len(found) == 1:  # a wrapper around all the rest is no region of its own
            (only,) = found
            if len({n for n in self.modules if class_name(self.modules[n]) == only}) == 1:
                return {}
        return {name: sorted(modules) for name, modules in sorted(found.items())}
