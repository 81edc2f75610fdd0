"""The kernels of the GDPA block beyond their contract: the library boundary, which gradients, cost, refusals."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, library

from mfu_kernels import InvalidArgument, UnsupportedImpl, gdpa_block, gdpa_block_kvpacked
from mfu_kernels.gdpa_block import kernel_bwd
from mfu_kernels.gdpa_block.examples import EXAMPLES
from mfubench.kernels.check import cases_of, check_case
from tests.kernels.cases import cost_of
from tests.kernels.running import COMPILES, DEVICE, RUNS_KERNELS, Called, draw, in_pairs, output_and_gradients

pytestmark = RUNS_KERNELS
CPU = torch.device("cpu")
LIBRARY = torch.ops.mfubench
LENGTHS = [3, 0, 5]
H, D, N_KV = 2, 8, 5
PAIRS = sum(LENGTHS) * N_KV
PRODUCT = 2 * H * D * PAIRS  # FLOPs


def arguments(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    keys = (len(LENGTHS), N_KV, H, D)
    return {
        "x": draw(sum(LENGTHS), H, D, dtype=dtype),
        "k": draw(*keys, dtype=dtype),
        "v": draw(*keys, dtype=dtype) + 1,
    }


def offsets(lengths: list[int] = LENGTHS) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], device=DEVICE)


def block(impl: str = "triton", **tensors: Any) -> Tensor:
    return gdpa_block(**{"offsets": offsets(), "max_length": max(LENGTHS), "impl": impl} | tensors)


def test_library_operators_are_what_they_say() -> None:
    x, k, v = arguments().values()
    given = (x, k, v, offsets())
    for save in (True, False):
        library.opcheck(LIBRARY.gdpa_block_fwd, (*given, ["silu", "relu"], 0.5, 1e-5, 5, save))
    saved = (draw(*x.shape), draw(*x.shape), draw(2, x.shape[0]).abs())
    for passed, *needs in in_pairs((None, x + 1), *((True, False),) * 3):
        library.opcheck(LIBRARY.gdpa_block_bwd, (x, passed, *given[1:], *saved, ["silu", "relu"], 0.5, 5, needs))


@COMPILES
def test_compiled_in_one_graph_equals_eager() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    actual, expected = (output_and_gradients(run, arguments()) for run in (compiled, block))
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("needed", list(itertools.product((False, True), repeat=3)), ids=str)
def test_the_gradients_that_are_needed_and_no_others(needed: tuple[bool, ...]) -> None:
    actual = output_and_gradients(block, arguments(), needed)
    expected = output_and_gradients(block, arguments())
    for (name, value), needs in zip(actual.items(), (True, *needed), strict=True):
        assert torch.equal(value, expected[name]) if needs else value is None


@pytest.mark.parametrize("lengths", [LENGTHS, [200, 0, 70]], ids=["whole rows", "rows shared out"])
def test_keys_and_values_packed_and_apart_are_the_same(lengths: list[int]) -> None:
    others = {"offsets": offsets(lengths), "activation": ("gelu", "relu"), "max_length": max(lengths), "impl": "triton"}
    apart = arguments() | {"x": draw(sum(lengths), H, D)}
    expected = output_and_gradients(gdpa_block, apart, **others)
    packed = {"x": apart["x"], "kv": torch.stack((apart["k"], apart["v"]), dim=2)}
    for needed in ((True, True), (True, False), (False, True)):
        found = output_and_gradients(lambda **given: gdpa_block_kvpacked(**given)[0], packed, needed, **others)
        assert torch.equal(found["out"], expected["out"])
        assert (found["x"] is None, found["kv"] is None) == (not needed[0], not needed[1])
        if needed[0]:
            assert torch.equal(found["x"], expected["x"])
        if needed[1]:
            assert found["kv"].is_contiguous()
            assert torch.equal(found["kv"], torch.stack((expected["k"], expected["v"]), dim=2))


def test_the_gradient_of_packed_keys_and_values_is_written_as_one() -> None:
    x, k, v = arguments().values()
    kv = torch.stack((k, v), dim=2).requires_grad_()
    out, same = gdpa_block_kvpacked(x, kv, offsets(), max_length=max(LENGTHS), impl="triton")
    assert same is x  # which needs no gradient
    weights = torch.ones_like(out)
    with Called() as called:
        (grad,) = torch.autograd.grad(out, kv, weights)
    assert called.names == ["aten.unbind.int", "mfubench.gdpa_block_bwd.default"] and grad.is_contiguous()


def two_readers(x: Tensor, kv: Tensor, weights: Tensor, impl: str, passes: bool = True) -> Tensor:
    """What two readers of x see of it: the block, and ``weights`` times x, taken from the block or not."""
    x = x * 1
    out, passed = gdpa_block_kvpacked(x, kv, offsets(), max_length=max(LENGTHS), impl=impl)
    return out + weights * (passed if passes else x)


def two_read(**options: Any) -> dict[str, Tensor | None]:
    x, k, v = arguments().values()
    tensors, weights = {"x": x, "kv": torch.stack((k, v), dim=2)}, draw(*x.shape) + 0.5
    function = options.pop("function", two_readers)
    return output_and_gradients(function, tensors, weights=weights, **{"impl": "triton"} | options)


def test_the_gradient_of_x_from_its_other_reader_is_added_where_it_is_written() -> None:
    found, expected = two_read(), two_read(passes=False)
    assert torch.equal(found["out"], expected["out"]) and torch.equal(found["kv"], expected["kv"])
    torch.testing.assert_close(found["x"], expected["x"])
    torch.testing.assert_close(found, two_read(impl="reference"), rtol=1e-4, atol=1e-4)
    x, k, v = arguments().values()
    x.requires_grad_()
    out, passed = gdpa_block_kvpacked(x, torch.stack((k, v), dim=2), offsets(), max_length=5, impl="triton")
    both = [torch.ones_like(out), torch.ones_like(x)]
    with Called() as called:
        torch.autograd.grad([out, passed], x, both)
    assert called.names == ["aten.unbind.int", "mfubench.gdpa_block_bwd.default"]


@pytest.mark.parametrize("read", [(True, False), (False, True)], ids=["the block", "x"])
def test_one_reader_alone_gives_its_own_gradient(read: tuple[bool, bool]) -> None:
    x, k, v = arguments().values()
    kv = torch.stack((k, v), dim=2)
    found = []
    for impl in ("triton", "reference"):
        leaves = [x.clone().requires_grad_(), kv.clone().requires_grad_()]
        outs = gdpa_block_kvpacked(*leaves, offsets(), max_length=max(LENGTHS), impl=impl)
        sum((out**2).sum() for out, reads in zip(outs, read, strict=True) if reads).backward()
        found.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_what_is_passed_leaves_gradients_that_others_hold_as_they_are() -> None:
    """The sum would be written over the gradient that came in."""
    x, k, v = arguments().values()
    out, passed = gdpa_block_kvpacked(
        x.requires_grad_(), torch.stack((k, v), dim=2), offsets(), max_length=max(LENGTHS), impl="triton"
    )
    came = draw(*x.shape)
    kept = came.clone()
    torch.autograd.backward([out, passed], [came, came])
    assert torch.equal(came, kept) and x.grad is not None and not torch.equal(x.grad, kept)


@COMPILES
def test_two_readers_compiled_in_one_graph_are_as_in_eager() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(two_readers, fullgraph=True, backend="aot_eager")
    actual, expected = two_read(function=compiled), two_read()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dim", [1, -1])
def test_rows_may_be_fewer_than_max_length_says_and_views_may_be_strided(dim: int) -> None:
    tensors = arguments()
    views = {name: torch.stack([t, t], dim=dim).select(dim, 0) for name, t in tensors.items()}
    apart = offsets().repeat_interleave(2)[::2]
    actual, expected = block(**views, offsets=apart, max_length=300), block(**tensors)
    assert torch.equal(actual, expected)


def test_events_far_from_zero_are_normalised() -> None:
    tensors = arguments()
    x = tensors["x"] + 1000
    tensors |= {"x": x}
    exact = block("reference", **{name: t.double() for name, t in tensors.items()})
    torch.testing.assert_close(block(**tensors).double(), exact, rtol=0, atol=1e-3)


def test_autocast_rounds_what_enters_a_matmul_and_nothing_else() -> None:
    with torch.autocast(DEVICE, torch.float16):
        actual = output_and_gradients(block, arguments())
    assert {value.dtype for value in actual.values()} == {torch.float32}
    expected = output_and_gradients(block, arguments(), impl="reference")
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-2)


def test_no_events_give_no_events_and_gradients_of_zeros() -> None:
    tensors = {name: t[:0] if name == "x" else t for name, t in arguments().items()}
    results = output_and_gradients(block, tensors, offsets=offsets([0, 0, 0]))
    assert results["out"].shape == (0, H, D)
    assert not any(tensor.any() for tensor in results.values())


def test_cost_counts_the_products_of_gradients_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_bwd, "in_parts", lambda *_: True)
    for needed, products, repeated in (((True, True, True), 5, 1), ((False, True, True), 4, 1)):
        tensors = {name: t.requires_grad_(needs) for (name, t), needs in zip(arguments().items(), needed, strict=True)}
        cost = cost_of(lambda tensors=tensors: block(**tensors))
        assert (cost.bwd.hardware, cost.bwd.recomputed) == (products * PRODUCT, repeated * PRODUCT)


@pytest.mark.parametrize(
    ("needed", "products", "repeated"),
    [
        ((True, True, True), 7, 3),
        ((True, False, False), 3, 1),
        ((False, True, True), 4, 1),
        ((False, False, True), 2, 1),
        ((False, False, False), 0, 0),
    ],
)
def test_cost_counts_the_products_that_kernels_execute(needed: tuple[bool, ...], products: int, repeated: int) -> None:
    tensors = {name: t.requires_grad_(needs) for (name, t), needs in zip(arguments().items(), needed, strict=True)}
    cost, plain = (cost_of(lambda impl=impl: block(impl, **tensors, max_length=9)) for impl in ("triton", "reference"))
    assert cost.fwd.hardware == cost.fwd.model == 2 * PRODUCT
    assert (cost.bwd.hardware, cost.bwd.recomputed) == (products * PRODUCT, repeated * PRODUCT)
    for ours, theirs in ((cost.fwd, plain.fwd), (cost.bwd, plain.bwd)):
        assert (ours.model, ours.padded, ours.bytes) == (theirs.model, theirs.padded, theirs.bytes)


def test_what_the_kernels_do_not_take_is_refused_by_name() -> None:
    tensors = arguments()
    with pytest.raises(UnsupportedImpl, match=r"^gdpa_block: impl='triton' takes .*; x is torch.float64; use impl="):
        block(**{name: t.double() for name, t in tensors.items()})
    for d in (4, 257):
        wide = {name: torch.zeros(*t.shape[:-1], d, device=DEVICE) for name, t in tensors.items()}
        with pytest.raises(InvalidArgument, match=rf"^gdpa_block: the head dimension is {d}; allowed: 8 to 256"):
            block(**wide)
    with pytest.raises(InvalidArgument, match=r"^gdpa_block: max_length is 4; allowed: at least 5"):
        block(**tensors, max_length=4)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("strided", [False, True])
def test_gradients_in_parts_are_those_in_one(mixed: bool, strided: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = arguments(torch.float32 if mixed else torch.float16)
    if strided:  # heads that do not lie side by side
        tensors["x"] = tensors["x"].transpose(0, 1).contiguous().transpose(0, 1)
    packed = {"x": tensors["x"], "kv": torch.stack((tensors["k"], tensors["v"]), dim=2)}
    others = {"offsets": offsets(), "activation": ("gelu", "relu"), "max_length": 5, "scale": 0.5, "impl": "triton"}

    def both_readers(**given: Any) -> Tensor:
        """The block, and x's other reader, whose gradient is passed on."""
        out, x = gdpa_block_kvpacked(**given)
        return out + x * 0.5

    def run() -> list[dict[str, Any]]:
        with torch.autocast("cpu", torch.float16, enabled=mixed):
            return [
                output_and_gradients(gdpa_block, tensors, **others),
                output_and_gradients(both_readers, packed, **others),
            ]

    expected = run()
    monkeypatch.setattr(kernel_bwd, "in_parts", lambda *_: True)
    for one, other in zip(run(), expected, strict=True):
        assert torch.equal(one["out"], other["out"])
        for name in one.keys() - {"out"}:
            assert one[name].dtype == other[name].dtype
            torch.testing.assert_close(one[name].float(), other[name].float(), rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("case", cases_of(EXAMPLES, CPU, full=False)[::6], ids=str)
def test_gradients_in_parts_err_within_their_budget(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_bwd, "in_parts", lambda *_: True)
    found = check_case(EXAMPLES, case, CPU)
    assert found.passed, (found.verdicts, found.faults)
