"""The numeric contract of a kernel's Gluon form, emulated: bf16 too, in many orders, over the form's own configs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mfu_kernels.examples import Draw, Examples, Inputs
from mfu_kernels.launching import Kernel
from mfubench.kernels.budget import Results, Verdict, honest, judge, pooled, truth
from mfubench.kernels.check import DTYPE, DTYPES, MORE_DRAWS, poisoned_memory
from mfubench.kernels.pairwise import pairwise_cover

from .running import emulated

CHOICE = "choice"
Run = Callable[[Inputs, Tensor], Results]
"""Calls a form's host function: of inputs and the weights of the output, results by name, not necessarily all."""


def cases(examples: Examples, configs: int, **factors: Sequence[Any]) -> list[dict[str, Any]]:
    """All pairs of the op's factors, those in ``factors`` with the values that the form takes, dtypes and configs."""
    return pairwise_cover({**examples.factors, **factors, DTYPE: ("bf16", "fp16"), CHOICE: tuple(range(configs))})


def check(examples: Examples, case: Mapping[str, Any], kernel: Kernel, form: str, run: Run) -> None:
    """Assert that the form errs within its budget, takes its own config, writes all, and repeats its bits."""
    verdicts = _draw(examples, case, kernel, form, run, 0)
    if any(verdict.ratio > 1 for verdict in verdicts):  # by chance?
        verdicts = pooled([_draw(examples, case, kernel, form, run, 2 * n) for n in range(MORE_DRAWS + 1)])
    assert verdicts and all(verdict.ratio <= 1 for verdict in verdicts), verdicts


def _draw(
    examples: Examples, case: Mapping[str, Any], kernel: Kernel, form: str, run: Run, seed: int
) -> Sequence[Verdict]:
    dtype, cpu = DTYPES[case[DTYPE]], torch.device("cpu")
    inputs = examples.make(case, Draw(dtype, cpu, seed=seed))
    with torch.no_grad():
        shape = examples.function(**inputs.tensors, **inputs.others, impl="reference").shape
    weights = Draw(dtype, cpu, seed=seed + 1).normal(*shape)
    found = []
    for order in (seed, seed + 1):
        with emulated(kernel, form, order, case[CHOICE]) as taken, poisoned_memory():
            found.append(run(inputs, weights))
        assert taken or not weights.numel(), "no launch took the form"
    exact, fair = truth(examples, inputs, weights), honest(examples, inputs, weights, dtype)
    once, again = found
    assert all(torch.equal(once[name], again[name]) for name in once)
    return judge(once, fair, {name: exact[name] for name in once})
