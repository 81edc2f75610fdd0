"""Whether a changed model still computes what it computed: outputs, every gradient, and the losses of a short training.

Nothing is held against a tolerance that somebody chose. The truth is the model as it was, in fp64. How far one may be
from it is measured on the model as it was: it runs in the changed model's dtype, as it is and with the results of its
operators moved at random by what rounding could have done to them, and the farthest of these runs sets the budget of
each tensor. A changed model may err ``FACTOR`` times as much, in the root mean square and at the worst element. Its
losses over ``STEPS`` steps may stray from the original's as far, times that factor, as trainings do that begin from
parameters moved by up to one rounding error of that dtype; and by one rounding error of the loss itself, which a few
trainings may all happen not to make.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from mfu_models.batch import Batch
from mfubench.kernels.budget import in_budgets
from mfubench.measure.classify import op_class
from mfubench.measure.operators import OperatorMode, operator_name, tensors_of
from mfubench.user_code import located
from mfubench.workload.kept import buffers_kept, kept
from mfubench.workload.patching import Undo, patch, together
from mfubench.workload.spec import Workload
from mfubench.workload.step import run_passes, update

FACTOR = 4.0
ROUNDED = 5  # runs with moved results
TRAININGS = 3  # from moved parameters
STEPS = 20
ROUNDOFF = {"fp32": 2.0**-24, "tf32": 2.0**-11, "bf16": 2.0**-8}
ROUNDING = ("gemm", "attention", "norm", "reduction", "elementwise")  # classes of operators whose results are rounded
SUMMING = ("norm", "reduction")  # of these, classes that sum over elements where they have fewer results than inputs
MASKED = -1e8  # what is below was put there for what is not to be chosen: it would set all the others' budget
SUMS = ("aten::sum", "aten::mean")
Results = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Finding:
    """The tensor that came closest to its budget, or went beyond it: ``share`` of 1 is the budget itself."""

    tensor: str
    share: float
    batch: str
    dtype: str
    truth: str

    @property
    def passed(self) -> bool:
        """Within the budget; a number that is not finite never is."""
        return self.share <= 1.0

    def __str__(self) -> str:
        how = "within" if self.passed else "beyond"
        what = f"{self.batch}, {self.dtype}, truth {self.truth}"
        return f"{self.tensor} errs {self.share:.3g} of its budget, {how} it ({what})"


def check_results(original: Workload, changed: Workload, batches: Mapping[str, Any]) -> Finding:
    """Hold outputs and gradients of ``changed`` on each of ``batches``, by name, against those of ``original``.

    Both hold the same parameters. Returns the worst finding; the first beyond its budget ends the check.
    """
    worst: Finding | None = None
    with _without_chance([original, changed]):
        for name, batch in batches.items():
            found = _check_batch(original, changed, name, batch)
            worst = found if worst is None or not found.share <= worst.share else worst
            if not worst.passed:
                break
    assert worst is not None, "a check needs a batch"
    return worst


def _check_batch(original: Workload, changed: Workload, name: str, batch: Any) -> Finding:
    honest = replace(original, dtype=changed.dtype)
    truth, truth_dtype = _truth(original, batch)
    runs = [results(honest, batch)]
    for seed in range(ROUNDED):
        with rounding(seed):
            runs.append(results(honest, batch))
    found = results(changed, batch)
    if found.keys() != truth.keys():
        other = sorted(found.keys() ^ truth.keys())
        return Finding(f"{other[0]} (only one of the two has it)", float("inf"), name, changed.dtype, truth_dtype)
    shares = {key: _share(found[key], truth[key], [run[key] for run in runs], changed.dtype) for key in truth}
    key = max(shares, key=lambda item: shares[item])
    return Finding(key, shares[key], name, changed.dtype, truth_dtype)


def results(workload: Workload, batch: Any) -> Results:
    """Outputs and, where it trains, the gradient of every parameter, by name; nothing is left in the module."""
    for parameter in workload.module.parameters():
        parameter.grad = None
    with buffers_kept(workload.module):
        output, _ = run_passes(workload, batch)
    found = {f"output {place}": tensor.detach() for place, tensor in enumerate(tensors_of(output))}
    for name, parameter in workload.module.named_parameters():
        if parameter.grad is not None:
            found[f"gradient of {name}"], parameter.grad = parameter.grad, None
    return {name: tensor for name, tensor in found.items() if tensor.is_floating_point()}


def _truth(original: Workload, batch: Any) -> tuple[Results, str]:
    """Results in fp64, or in fp32 where the model's own code does not run in fp64, and which of them."""
    try:
        with _in_fp64(original.module):
            return results(replace(original, dtype="fp64"), _double(batch)), "fp64"
    except Exception as error:  # whatever a user's own operator raises for a dtype that it does not know
        return results(replace(original, dtype="fp32"), batch), f"fp32, as fp64 raises {type(error).__name__}"


@contextmanager
def _in_fp64(module: nn.Module) -> Iterator[None]:
    """Widen its own parameters and buffers, as a loss may know them too; a copy's would be others."""
    tensors = [tensor for tensor in [*module.parameters(), *module.buffers()] if tensor.is_floating_point()]
    before = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.double()
        yield
    finally:
        for tensor, data in zip(tensors, before, strict=True):
            tensor.grad = None
            tensor.data = data


def _double(batch: Any) -> Any:
    if isinstance(batch, Batch):
        return replace(batch, dense=batch.dense.double(), labels=batch.labels.double())
    return tree_map(lambda leaf: leaf.double() if _is_floating(leaf) else leaf, batch)


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def rounding(seed: int) -> OperatorMode:
    """A context in which results of arithmetic are moved, at random, by what rounding could have done to them.

    That is one rounding error of their dtype, and for a sum of n terms the square root of n times that of the sum of
    their magnitudes, which a sum from left to right may err by; torch's own sums err less, a compiler's or a kernel's
    need not. Copies and look-ups do not round. (Monte Carlo arithmetic; cf. Parker, UCLA CSD-970002, and Higham, The
    Accuracy of Floating Point Summation, SIAM J. Sci. Comput. 14 (1993), section 2.)
    """
    generators: dict[torch.device, torch.Generator] = {}

    def move(func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        name = operator_name(func)
        if op_class(name) not in ROUNDING:
            return
        sizes = [leaf.numel() for leaf in tree_leaves(args) if _is_floating(leaf)]
        sums = func(args[0].abs(), *args[1:], **kwargs) if name in SUMS and _is_floating(args[0]) else None
        for tensor in tree_leaves(out):
            if not _is_floating(tensor) or tensor.layout != torch.strided or not tensor.numel():
                continue
            if tensor.device not in generators:
                generators[tensor.device] = torch.Generator(tensor.device).manual_seed(seed)
            generator = generators[tensor.device]
            drawn = torch.empty_like(tensor, dtype=torch.float32).uniform_(-1.0, 1.0, generator=generator)
            terms = max([1, *sizes]) / tensor.numel() if op_class(name) in SUMMING else 1.0
            scale = max(1.0, terms) ** 0.5 * torch.finfo(tensor.dtype).eps / 2
            moved = (tensor if sums is None else sums) * drawn.to(tensor.dtype) * scale
            tensor.add_(moved.nan_to_num_(0.0, 0.0, 0.0))  # infinities are not rounded

    return OperatorMode(move)


def move_parameters(module: nn.Module, roundoff: float, seed: int) -> None:
    """Multiply every number by a factor drawn from 1 - ``roundoff`` to 1 + ``roundoff``."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point():
                drawn = torch.rand(parameter.shape, generator=generator, dtype=torch.float64).mul_(2).sub_(1)
                parameter.copy_(parameter.double() * (1 + roundoff * drawn.to(parameter.device)))


def _share(found: Tensor, truth: Tensor, runs: Sequence[Tensor], dtype: str) -> float:
    """How much of the budget the error of ``found`` takes, in the worse of two norms."""
    if found.shape != truth.shape:
        return float("inf")
    values = _values([found, truth, *runs])
    if values is None:
        return float("inf")
    masked = values[1] < MASKED
    if any(not torch.equal(value < MASKED, masked) for value in values):
        return float("inf")
    found, truth, *runs = (value[~masked] for value in values)
    if truth.numel() == 0:
        return 0.0
    floor = ROUNDOFF[dtype] ** 2 * float(truth.abs().max())  # where the original happens to make no error at all
    return max(
        in_budgets(norm(found - truth), FACTOR * max(norm(run - truth) for run in runs) + floor) for norm in NORMS
    )


NORMS: tuple[Callable[[Tensor], float], ...] = (
    lambda error: float(error.square().mean().sqrt()),
    lambda error: float(error.abs().max()),
)


def _values(tensors: Sequence[Tensor]) -> list[Tensor] | None:
    """All in fp64; row-sparse ones as the values of their rows, where all have the same rows. None if rows differ."""
    sparse = [tensor.is_sparse for tensor in tensors]
    if not any(sparse):
        return [tensor.double() for tensor in tensors]
    if not all(sparse):
        return [(tensor.to_dense() if tensor.is_sparse else tensor).double() for tensor in tensors]
    packed = [tensor.coalesce() for tensor in tensors]
    if any(not torch.equal(tensor.indices(), packed[0].indices()) for tensor in packed):
        return None
    return [tensor.values().double() for tensor in packed]


# Trainings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Training:
    """The step at which the losses strayed farthest, measured in what they may stray."""

    step: int
    share: float

    @property
    def passed(self) -> bool:
        """Within the noise at every step."""
        return self.share <= 1.0

    def __str__(self) -> str:
        how = "within" if self.passed else "beyond"
        return f"losses of {STEPS} steps stray {self.share:.3g} of {FACTOR:g} times the noise, {how} it"


def check_training(original: Workload, changed: Workload) -> Training:
    """Train both from the same parameters, and the original from moved ones; all are as they were afterwards.

    Where the model draws random numbers, each training of the original draws its own, and so sets the noise.
    """
    chance = draws_random_numbers(original)
    reference = _train(original, seed=0)
    noise = [0.0] * STEPS
    for number in range(TRAININGS):
        with kept(original.module, original.optimizers):
            move_parameters(original.module, ROUNDOFF[changed.dtype], number)
            moved = _train(original, seed=number + 1 if chance else 0)
        noise = [max(known, abs(a - b)) for known, a, b in zip(noise, moved, reference, strict=True)]
    widest, shares = 0.0, []
    for known, loss, expected in zip(noise, _train(changed, seed=0), reference, strict=True):
        widest = max(widest, known, ROUNDOFF["fp32"] * abs(expected))
        floor = ROUNDOFF[changed.dtype] * abs(expected)
        shares.append(in_budgets(abs(loss - expected), FACTOR * widest + floor))
    step = max(range(STEPS), key=lambda at: shares[at])
    return Training(step, shares[step])


def _train(workload: Workload, seed: int) -> list[float]:
    torch.manual_seed(seed)
    losses = []
    with kept(workload.module, workload.optimizers):
        for index in range(STEPS):
            _, loss = run_passes(workload, workload.inputs[index % len(workload.inputs)])
            update(workload)
            losses.append(loss)
    return [float(loss) for loss in losses if loss is not None]


# Chance -----------------------------------------------------------------------------------------------------------


def draws_random_numbers(workload: Workload) -> bool:
    """Whether a step draws random numbers, as dropout does."""
    before = _generators(workload.device)
    results(workload, workload.inputs[0])
    return before != _generators(workload.device)


def _generators(device: torch.device) -> list[Any]:
    """The states of torch's, Python's and numpy's."""
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    numpys = np.random.get_state(legacy=False)["state"]
    return [*(state.tolist() for state in states), random.getstate(), numpys["key"].tolist(), numpys["pos"]]


@contextmanager
def _without_chance(workloads: Sequence[Workload]) -> Iterator[None]:
    """A model that draws random numbers is held against itself with dropout off, or else in evaluation.

    There it may go other ways, such as without a loss that only a training has.

    Raises:
        ValueError: it draws them there too, or does not run there.
    """
    if not draws_random_numbers(workloads[0]):
        yield
        return
    modules = [module for workload in workloads for module in workload.module.modules()]
    undos: list[Undo] = []
    try:
        for turn_off in (_dropout_off, _evaluating):
            undos += map(turn_off, modules)
            if not _draws_still(workloads[0]):
                break
        else:
            raise ValueError("the model draws random numbers in evaluation too: its numbers cannot be compared")
        yield
    finally:
        together(undos)()


def _dropout_off(module: nn.Module) -> Undo:
    """A fused recurrent layer has no backward in evaluation, so that its own dropout is set to none."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return _evaluating(module)
    if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
        return patch(module, "dropout", 0.0)
    return lambda: None


def _evaluating(module: nn.Module) -> Undo:
    return patch(module, "training", False)


def _draws_still(workload: Workload) -> bool:
    try:
        return draws_random_numbers(workload)
    except Exception as error:
        raise ValueError(
            "the model draws random numbers, so that its numbers can only be compared in evaluation, and there its "
            f"step fails: {located(error)}"
        ) from None
