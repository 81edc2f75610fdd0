"""The numeric contract of every kernel, a part of what `mfubench kernels check` runs, and what a kernel costs."""

from typing import Any

import pytest
import torch

from mfu_kernels import UnsupportedImpl
from mfu_kernels.examples import Draw, Examples, Inputs
from mfubench.kernels.catalog import examples_of, ops_with_kernels
from mfubench.kernels.check import DTYPE, cases_of, check_case
from tests.kernels.cases import cost_of
from tests.kernels.running import COMPILES

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def plainest(op: str, dtype: torch.dtype = torch.float32, device: torch.device = DEVICE) -> Inputs:
    examples = examples_of(op)
    return examples.make({name: values[0] for name, values in examples.factors.items()}, Draw(dtype, device))


EVERY = 1 if DEVICE.type == "cuda" else 5  # of the cases: the interpreter is slow, and the command runs all of them
FEWEST = 10
REPEATED = 4  # of these: the interpreter runs programs one after another, so that only what is left behind can differ
IN_TILES_OF_16 = ("gdpa", "gdpa_block")  # in fp32, a quarter of what they take in 16 bits


def a_part(op: str, examples: Examples) -> list[dict[str, Any]]:
    """Some of the cases that the command checks; interpreted, rows of small tiles are short, and as near to an edge."""
    cases = cases_of(examples, DEVICE, full=False)
    cases = cases[:: min(EVERY, len(cases) // FEWEST)]
    if DEVICE.type == "cpu" and op in IN_TILES_OF_16:
        for case in cases:
            if case[DTYPE] == "fp32":
                case["lengths"] = tuple(n - 3 * round(n / 4) for n in case["lengths"])
    return cases


@pytest.mark.parametrize("op", ops_with_kernels())
def test_contract(op: str) -> None:
    examples = examples_of(op)
    found = [
        check_case(examples, case, DEVICE, repeat=DEVICE.type == "cuda" or at % REPEATED == 0)
        for at, case in enumerate(a_part(op, examples))
    ]
    assert len(found) >= FEWEST
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
    examples, inputs = examples_of(op), plainest(op, device=torch.device("cpu"))
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
    examples, inputs = examples_of(op), plainest(op)
    others = dict(inputs.others)
    expected = examples.function(**inputs.tensors, **others, impl="triton")
    others["offsets"] = others["offsets"].repeat_interleave(2)[::2]
    assert not others["offsets"].is_contiguous()
    assert torch.equal(examples.function(**inputs.tensors, **others, impl="triton"), expected)


@pytest.mark.parametrize("op", ops_with_kernels())
def test_second_derivatives_are_refused_and_not_taken_for_zero(op: str) -> None:
    inputs = plainest(op)
    leaves = [tensor.requires_grad_() for tensor in inputs.tensors.values()]
    out = examples_of(op).function(**inputs.tensors, **inputs.others, impl="triton")
    with pytest.raises(UnsupportedImpl, match=r"no second derivatives \(create_graph\); use impl='reference'"):
        torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
    torch.autograd.grad(out.square().sum(), leaves)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="it is about what runs in place of a GPU")
@pytest.mark.parametrize("op", ops_with_kernels())
def test_what_the_interpreter_computes_wrongly_is_refused(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfu_kernels.launching.Kernel.launch", lambda *_, **__: pytest.fail("launched"))
    inputs = plainest(op, torch.bfloat16)
    with pytest.raises(UnsupportedImpl, match="interpreter computes bfloat16 wrongly; take float16 or"):
        examples_of(op).function(**inputs.tensors, **inputs.others, impl="triton")


@COMPILES
@pytest.mark.skipif(DEVICE.type == "cuda", reason="it is about what runs in place of a GPU")
def test_a_compiled_call_on_a_cpu_without_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo cannot look into Triton's settings, so the operator does."""
    torch._dynamo.reset()
    inputs = plainest("rms_norm")
    compiled = torch.compile(examples_of("rms_norm").function, fullgraph=True, backend="aot_eager")
    monkeypatch.setattr("mfu_kernels.boundary.interpreting", lambda: False)
    with pytest.raises(UnsupportedImpl, match="on a CPU needs TRITON_INTERPRET=1; or use impl='reference'"):
        compiled(**inputs.tensors, **inputs.others, impl="triton")
