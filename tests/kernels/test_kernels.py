"""The numeric contract of every kernel, a part of what `mfubench kernels check` runs, and what a kernel costs."""

import pytest
import torch

from mfu_kernels.examples import Draw
from mfubench.kernels.catalog import examples_of, ops_with_kernels
from mfubench.kernels.check import cases_of, check_case
from tests.kernels.cases import cost_of

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


EVERY = 1 if DEVICE.type == "cuda" else 4  # of the cases: the interpreter is slow, and the command runs all of them


@pytest.mark.parametrize("op", ops_with_kernels())
def test_contract(op: str) -> None:
    examples = examples_of(op)
    found = [check_case(examples, case, DEVICE) for case in cases_of(examples, DEVICE, full=False)[::EVERY]]
    assert len(found) >= 10
    failed = [case for case in found if not case.passed]
    assert not [(dict(case.case), [v for v in case.verdicts if v.ratio > 1], case.faults) for case in failed]


ATTENTIONS = {
    "gdpa": {"q": "T", "k": "B", "v": "B"},
    "seed_pooling": {"seeds": "S", "k": "T", "v": "T"},
    "window_attention": {"q": "T", "k": "T", "v": "T"},
    "hstu_attention": {"q": "T", "k": "T", "v": "T"},
}
# Backward products of the kernels over those of the mathematics, all gradients needed: scores again, or in two kernels.
EXECUTED = {"gdpa": 5 / 4, "seed_pooling": 5 / 4, "window_attention": 7 / 4, "hstu_attention": 7 / 4}


@pytest.mark.parametrize("op", ATTENTIONS)
def test_a_kernel_executes_kept_pairs_and_says_what_it_repeats(op: str) -> None:
    examples = examples_of(op)
    plainest = {name: values[0] for name, values in examples.factors.items()}
    inputs = examples.make(plainest, Draw(torch.float32, torch.device("cpu")))
    tensors = {name: tensor.requires_grad_(name in ATTENTIONS[op]) for name, tensor in inputs.tensors.items()}
    costs = {
        impl: cost_of(lambda impl=impl: examples.function(**tensors, **inputs.others, impl=impl))
        for impl in ("reference", "triton")
    }
    kernel, reference = costs["triton"], costs["reference"]
    assert kernel.fwd.hardware == kernel.fwd.model == reference.fwd.model <= reference.fwd.hardware
    assert (kernel.bwd.model, kernel.bwd.padded) == (reference.bwd.model, reference.bwd.padded)
    assert kernel.bwd.hardware == EXECUTED[op] * kernel.bwd.model
    assert kernel.bwd.recomputed == kernel.bwd.hardware - kernel.bwd.model and reference.bwd.recomputed == 0


@pytest.mark.parametrize("op", ATTENTIONS)
def test_offsets_may_be_strided(op: str) -> None:
    examples = examples_of(op)
    plainest = {name: values[0] for name, values in examples.factors.items()}
    inputs = examples.make(plainest, Draw(torch.float32, DEVICE))
    others = dict(inputs.others)
    expected = examples.function(**inputs.tensors, **others, impl="triton")
    others["offsets"] = others["offsets"].repeat_interleave(2)[::2]
    assert not others["offsets"].is_contiguous()
    assert torch.equal(examples.function(**inputs.tensors, **others, impl="triton"), expected)
