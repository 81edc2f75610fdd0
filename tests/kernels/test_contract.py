"""What holds for every op alike: values, gradients, costs, layouts, dtypes, compiling, observing and errors."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mfu_kernels import OPS, InvalidArgument, UnsupportedImpl, jagged
from mfu_kernels.cost import observing
from mfu_kernels.jagged import trusted_offsets
from tests.kernels.cases import (
    CASES,
    GDPA_CASES,
    LENGTHS,
    ONE_CASE_AN_OP,
    Case,
    Recorder,
    assert_same,
    cost_of,
    gradients,
)

JAGGED = [case for case in ONE_CASE_AN_OP if case.jagged]
MATMULS = [case for case in CASES if OPS[case.function.__name__].kind in ("attention", "gemm")]
ALL_BUT_ACTIVATIONS = [case for case in CASES if case not in GDPA_CASES]
FLOP_LENGTHS = [0, 4, 7, 1]


def by_name(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def counted(run: Callable[[], Tensor], tensors: dict[str, Tensor]) -> tuple[int, int]:
    """FLOPs that FlopCounterMode sees in a forward and in its backward."""
    with FlopCounterMode(display=False) as fwd:
        output = run()
    with FlopCounterMode(display=False) as bwd:
        gradients(output, tensors)
    return fwd.get_total_flops(), bwd.get_total_flops()


def assert_equals_oracle(case: Case, tensors: dict[str, Tensor], lengths: list[int], **others: Any) -> None:
    offsets = case.offsets(lengths)
    actual, expected = case.run(tensors, **offsets | others), case.expect(tensors, **offsets)
    assert_same({"out": actual}, {"out": expected})
    assert_same(gradients(actual, tensors), gradients(expected, tensors))


@by_name(CASES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_values_and_gradients_equal_the_oracle(case: Case, lengths: list[int]) -> None:
    tensors = case.tensors(lengths)
    assert_equals_oracle(case, tensors, lengths)
    assert_equals_oracle(case, tensors, lengths, **case.bound(max(lengths) + 2))


@by_name(CASES)
def test_gradcheck(case: Case) -> None:
    tensors = case.tensors([2, 0, 3])
    others = case.offsets([2, 0, 3]) | case.bound(3)
    names = list(tensors)

    def run(*values: Tensor) -> Tensor:
        return case.run(dict(zip(names, values, strict=True)), **others)

    assert torch.autograd.gradcheck(run, tuple(tensors.values()), fast_mode=True)


@by_name(ALL_BUT_ACTIVATIONS)
def test_flops_equal_what_a_counter_sees_whichever_inputs_need_gradients(case: Case) -> None:
    tensors = case.tensors(FLOP_LENGTHS)
    offsets = case.offsets(FLOP_LENGTHS)
    padded_to = case.bound(max(FLOP_LENGTHS) + 2)
    variables = [tensor for tensor in tensors.values() if tensor.requires_grad]
    for needed in itertools.product((False, True), repeat=len(variables)):
        for tensor, needs in zip(variables, needed, strict=True):
            tensor.requires_grad_(needs)
        cost = cost_of(lambda: case.run(tensors, **offsets, **padded_to))
        model = counted(lambda: case.expect(tensors, **offsets), tensors)
        hardware = counted(lambda: case.run(tensors, **offsets, **padded_to), tensors)
        assert (cost.fwd.model, cost.bwd.model) == model, needed
        assert (cost.fwd.hardware, cost.bwd.hardware) == hardware, needed
        assert (cost.bwd.bytes > 0) == any(needed)


@by_name(CASES)
def test_padded_flops_are_model_flops_of_rows_as_long_as_the_longest(case: Case) -> None:
    cost = cost_of(lambda: case.run(case.tensors(FLOP_LENGTHS), **case.offsets(FLOP_LENGTHS)))
    longest = [max(FLOP_LENGTHS)] * len(FLOP_LENGTHS)
    full = cost_of(lambda: case.run(case.tensors(longest), **case.offsets(longest)))
    assert (cost.fwd.padded, cost.bwd.padded) == (full.fwd.model, full.bwd.model)
    assert full.fwd.model == full.fwd.padded >= cost.fwd.model


@by_name(CASES)
@pytest.mark.parametrize("autocast", [False, True])
def test_bytes_move_each_tensor_once(case: Case, autocast: bool) -> None:
    tensors, offsets = case.tensors(FLOP_LENGTHS, torch.float32), case.offsets(FLOP_LENGTHS)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = case.run(tensors, **offsets)
        cost = cost_of(lambda: case.run(tensors, **offsets))
    inputs = sum(t.nbytes for t in (tensors | offsets).values())
    gradient_bytes = sum(t.nbytes for t in tensors.values() if t.requires_grad)
    assert cost.fwd.bytes == inputs + output.nbytes
    assert output.nbytes + gradient_bytes < cost.bwd.bytes <= output.nbytes + gradient_bytes + inputs


@by_name(CASES)
def test_without_gradients_backward_costs_nothing(case: Case) -> None:
    with torch.no_grad():
        cost = cost_of(lambda: case.run(case.tensors([2, 3]), **case.offsets([2, 3])))
    assert (cost.bwd.model, cost.bwd.padded, cost.bwd.hardware, cost.bwd.bytes) == (0, 0, 0, 0)


@by_name(ONE_CASE_AN_OP)
def test_an_observer_sees_the_op(case: Case) -> None:
    recorder = Recorder()
    with observing(recorder):
        case.run(case.tensors([2, 3]), **case.offsets([2, 3]))
    name = case.function.__name__
    assert recorder.events == [("enter", name, OPS[name].kind, "reference"), ("exit",)]


@by_name(CASES)
def test_strided_views_and_int32_offsets(case: Case) -> None:
    lengths = [3, 0, 5]
    tensors = case.tensors(lengths)
    expected = case.expect(tensors, **case.offsets(lengths))
    views = {name: tensor.repeat_interleave(2, dim=-1)[..., ::2] for name, tensor in tensors.items()}
    numbers = case.offsets(lengths, torch.int32)
    strided = {name: tensor.repeat_interleave(2, dim=-1)[..., ::2] for name, tensor in numbers.items()}
    assert not any(view.is_contiguous() for view in views.values())
    actual = case.run(views, **strided)
    assert_same({"out": actual}, {"out": expected})
    assert_same(gradients(actual, tensors), gradients(expected, tensors))


@by_name(CASES)
def test_bf16_autocast(case: Case) -> None:
    lengths = [3, 0, 5]
    tensors, offsets = case.tensors(lengths, torch.float32), case.offsets(lengths)
    exact = case.run({name: tensor.double() for name, tensor in tensors.items()}, **offsets)
    with torch.autocast("cpu", torch.bfloat16):
        output = case.run(tensors, **offsets)
        mixed = case.run({name: tensor.bfloat16() for name, tensor in tensors.items()}, **offsets)
    ends_in_matmul = case in MATMULS and case.name != "gdpa_block"
    assert output.dtype == (torch.bfloat16 if ends_in_matmul else torch.float32)
    assert mixed.dtype == torch.bfloat16
    for value in (output, mixed):
        assert (value - exact).norm() <= 8 * torch.finfo(torch.bfloat16).eps * exact.norm()
    for grad in gradients(output, tensors).values():
        assert grad.dtype == torch.float32 and grad.isfinite().all()


@by_name(ONE_CASE_AN_OP)
def test_compiled_in_one_graph_equals_eager(case: Case) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(case.run, fullgraph=True, backend="aot_eager")
    for lengths in ([3, 0, 5], [4, 4, 1]):
        tensors, others = case.tensors(lengths), case.offsets(lengths) | case.bound(5)
        actual, expected = compiled(tensors, **others), case.run(tensors, **others)
        assert_same({"out": actual}, {"out": expected})
        assert_same(gradients(actual, tensors), gradients(expected, tensors))


@by_name(ONE_CASE_AN_OP)
def test_an_implementation_that_cannot_run_raises(case: Case) -> None:
    tensors, offsets = case.tensors([2, 3]), case.offsets([2, 3])
    for impl in ("triton", "cuda"):
        with pytest.raises(UnsupportedImpl, match=impl):
            case.run(tensors, **offsets, impl=impl)
    assert_same({"out": case.run(tensors, **offsets, impl="reference")}, {"out": case.run(tensors, **offsets)})


def one_row_more(tensor: Tensor) -> Tensor:
    """One more in the last dimension but one, which no op leaves free."""
    dim = max(-2, -tensor.ndim)
    return torch.cat((tensor, tensor.narrow(dim, 0, 1)), dim=dim)


@by_name(ONE_CASE_AN_OP)
def test_tensors_that_do_not_fit_are_named(case: Case) -> None:
    tensors, offsets = case.tensors([2, 3]), case.offsets([2, 3])
    others = list(tensors)[1:]
    wrong = {
        **{(name, "more dimensions"): tensor[None] for name, tensor in tensors.items()},
        **{(name, "one more"): one_row_more(tensors[name]) for name in others},
        **{(name, "integers"): tensor.detach().long() for name, tensor in tensors.items()},
        **{(name, "another device"): tensors[name].to("meta") for name in others},
        **{(name, "no tensor"): tensor.tolist() for name, tensor in tensors.items()},
    }
    if case.name.startswith(("rms_norm", "layer_norm")):
        del wrong["x", "more dimensions"]
    if case.name == "seed_pooling_absorbed":
        del wrong["seeds", "one more"]  # they are what says how many heads there are
    for (name, what), tensor in wrong.items():
        with pytest.raises(InvalidArgument, match=rf"^{case.function.__name__}: \w+ is .*; allowed: ") as caught:
            case.run(tensors | {name: tensor}, **offsets)
        assert what == "more dimensions" or f": {name} is" in str(caught.value)  # else, the next tensor seems wrong


@by_name([case for case in ONE_CASE_AN_OP if case in MATMULS])
def test_matmuls_need_one_dtype(case: Case) -> None:
    tensors = case.tensors([2, 3])
    second = list(case.shapes)[1]
    with pytest.raises(InvalidArgument, match=f"{second} is of dtype torch.float32; allowed: torch.float64"):
        case.run(tensors | {second: tensors[second].float()}, **case.offsets([2, 3]))


BAD_OFFSETS = {
    "starts after 0": torch.tensor([1, 2, 5]),
    "decreases": torch.tensor([0, 6, 5]),
    "ends before T": torch.tensor([0, 2, 4]),
    "not integers": torch.tensor([0.0, 2.0, 5.0]),
    "two dimensions": torch.tensor([[0, 2, 5]]),
    "no row": torch.tensor([0]),
    "another device": torch.tensor([0, 2, 5], device="meta"),
    "no tensor": [0, 2, 5],
}


@by_name(JAGGED)
@pytest.mark.parametrize("offsets", BAD_OFFSETS.values(), ids=BAD_OFFSETS.keys())
def test_bad_offsets(case: Case, offsets: Tensor) -> None:
    with pytest.raises(InvalidArgument, match=f"^{case.function.__name__}: offsets is "):
        case.run(case.tensors([2, 3]), offsets=offsets)


@pytest.mark.gpu
@by_name(JAGGED)
@pytest.mark.parametrize("name", ["starts after 0", "decreases", "ends before T"])
def test_bad_offsets_on_a_gpu_unless_they_are_trusted(case: Case, name: str) -> None:
    tensors = {key: tensor.detach().cuda() for key, tensor in case.tensors([2, 3]).items()}
    with pytest.raises(InvalidArgument, match=f"^{case.function.__name__}: offsets is "):
        case.run(tensors, offsets=BAD_OFFSETS[name].cuda(), **case.bound(5))


def test_offsets_on_a_device_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    monkeypatch.setattr(jagged, "_check_numbers", lambda op, numbers, total, longest: read.append(total))
    offsets = torch.tensor([0, 2, 5])
    for _ in range(2):
        jagged._check_once("gdpa", offsets, 5, 3)
    assert read == [5]
    offsets[1] = 3  # another version of the same tensor
    jagged._check_once("gdpa", offsets, 5, 3)
    assert read == [5, 5]


@by_name(JAGGED)
@pytest.mark.parametrize("max_length", [-1, 2])
def test_bad_max_length(case: Case, max_length: int) -> None:
    with pytest.raises(InvalidArgument, match=f"^{case.function.__name__}: max_length is {max_length}; allowed: "):
        case.run(case.tensors([2, 3]), **case.offsets([2, 3]), max_length=max_length)


@by_name(JAGGED)
@pytest.mark.parametrize("max_length", ["5", 5.5, torch.tensor(5)])
def test_a_max_length_that_is_no_integer(case: Case, max_length: Any) -> None:
    kind = type(max_length).__name__
    with pytest.raises(InvalidArgument, match=f"^{case.function.__name__}: max_length is of type {kind}; allowed: "):
        case.run(case.tensors([2, 3]), **case.offsets([2, 3]), max_length=max_length)


@pytest.mark.gpu
@by_name(ONE_CASE_AN_OP)
def test_with_max_length_given_nothing_waits_for_the_device(case: Case) -> None:
    lengths = [3, 0, 5]
    tensors = {name: tensor.detach().cuda().requires_grad_() for name, tensor in case.tensors(lengths).items()}
    others = {name: tensor.cuda() for name, tensor in case.offsets(lengths).items()} | case.bound(5)
    weights = torch.randn_like(case.run(tensors, **others, impl="reference"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        with trusted_offsets():
            case.run(tensors, **others, impl="reference").backward(weights)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = case.run(case.tensors(lengths), **case.offsets(lengths))
    torch.testing.assert_close(case.run(tensors, **others, impl="reference").cpu(), expected)


def test_every_op_has_a_case() -> None:
    assert {case.function.__name__ for case in ONE_CASE_AN_OP} == set(OPS)
