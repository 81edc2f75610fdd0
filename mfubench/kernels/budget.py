"""How far a kernel may err: measured against an honest implementation, never chosen.

The truth is the op's reference in fp64. The honest implementation is the same reference with what the hardware forces
and nothing more: inputs, outputs and the operands of every matmul are of the kernel's dtype, all else is fp32. A kernel
may err twice as much forward and three times as much backward, and always by one rounding of its output.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mfu_kernels.examples import Examples, Inputs

FACTORS = {"forward": 2.0, "backward": 3.0}
OUTPUT = "out"
DISAGREES = 0.05  # rms difference from a result that was proved, as a share, above which something else was computed
_MATMULS = {torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm, torch.ops.aten.baddbmm}


class RoundedMatmuls(TorchDispatchMode):
    """Rounds the fp32 operands of every matmul to ``dtype``, as a tensor core takes them; sums stay in fp32."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "overloadpacket", None) in _MATMULS:
            args = [_rounded(arg, self.dtype) if isinstance(arg, Tensor) else arg for arg in args]
        return func(*args, **(kwargs or {}))


def _rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype).to(tensor.dtype) if tensor.is_floating_point() else tensor


Results = Mapping[str, Tensor]
"""The output, and the gradient of each input by its name."""


def results(examples: Examples, inputs: Inputs, weights: Tensor, *, impl: str) -> Results:
    """Output and gradients of ``(output * weights).sum()``, with the inputs as they are."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.tensors.items()}
    out = examples.function(**leaves, **inputs.others, impl=impl)
    of = list(leaves.values())
    grads = torch.autograd.grad(out, of, weights.to(out.dtype), materialize_grads=True) if of else ()
    return {OUTPUT: out.detach(), **dict(zip(leaves, grads, strict=True))}


def truth(examples: Examples, inputs: Inputs, weights: Tensor) -> Results:
    """The reference in fp64 on the host."""
    return results(examples, _converted(inputs, torch.float64), weights.double().cpu(), impl="reference")


def honest(examples: Examples, inputs: Inputs, weights: Tensor, dtype: torch.dtype) -> Results:
    """The reference with matmul operands and results rounded to ``dtype``; a gradient has its input's dtype."""
    with RoundedMatmuls(dtype):
        found = results(examples, _converted(inputs, torch.float32), weights.float().cpu(), impl="reference")
    kept = {OUTPUT: dtype, **{name: tensor.dtype for name, tensor in inputs.tensors.items()}}
    return {name: tensor.to(kept[name]) for name, tensor in found.items()}


def _converted(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    def convert(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to("cpu", dtype if value.is_floating_point() else value.dtype)

    return Inputs(
        {name: convert(tensor) for name, tensor in inputs.tensors.items()},
        {name: convert(value) for name, value in inputs.others.items()},
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a result errs beside its budget, both as root mean square; ``ratio`` above 1 is too much."""

    name: str
    error: float
    budget: float

    @property
    def ratio(self) -> float:
        """Error in budgets; infinite where the result is not finite."""
        return in_budgets(self.error, self.budget)


def in_budgets(error: float, budget: float) -> float:
    """``error`` over ``budget``: infinite where it is not finite, or where nothing is allowed and there is one."""
    if not error < math.inf:
        return math.inf
    return 0.0 if error == 0 else error / budget if budget else math.inf


def beyond_range(fair: Results) -> Results:
    """Where an honest result is beyond half of what its dtype holds: there none is right. NaN is not."""
    return {name: tensor.abs() > torch.finfo(tensor.dtype).max / 2 for name, tensor in fair.items()}


def zeroed(found: Results, where: Results) -> Results:
    """``found`` with zeros ``where`` its shape is the same."""
    return {
        name: tensor.masked_fill(where[name].to(tensor.device), 0.0) if tensor.shape == where[name].shape else tensor
        for name, tensor in found.items()
    }


def judge(kernel: Results, fair: Results, exact: Results) -> list[Verdict]:
    """A verdict on each result: rms error of the kernel against its budget."""
    verdicts = []
    for name, expected in exact.items():
        factor = FACTORS["forward" if name == OUTPUT else "backward"]
        one_rounding = torch.finfo(kernel[name].dtype).eps / 2 * _rms(expected)
        allowed = factor * max(_rms(fair[name].double() - expected), one_rounding)
        verdicts.append(Verdict(name, _rms(kernel[name].double().cpu() - expected), allowed))
    return verdicts


def difference(out: Tensor, expected: Tensor) -> float:
    """Their rms difference as a share of ``expected``; infinite where it is none."""
    if out.shape != expected.shape:
        return math.inf
    share = float((out.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-30))
    return share if math.isfinite(share) else math.inf


def pooled(draws: Sequence[Sequence[Verdict]]) -> list[Verdict]:
    """The verdicts on several draws of one case as one: errors and budgets over all their numbers."""

    def over_all(values: Iterable[float]) -> float:
        return math.sqrt(fmean(value * value for value in values))

    return [
        Verdict(same[0].name, over_all(v.error for v in same), over_all(v.budget for v in same))
        for same in zip(*draws, strict=False)  # where a draw did not run, there are none
    ]


def _rms(tensor: Tensor) -> float:
    return float(tensor.square().mean().sqrt()) if tensor.numel() else 0.0
