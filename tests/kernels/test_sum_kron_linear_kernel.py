"""The kernel of SumKronLinear beyond its contract: the library boundary, which gradients, cost, refusals."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, library

from mfu_kernels import InvalidArgument, UnsupportedImpl, sum_kron_linear
from mfu_kernels.sum_kron_linear import backward, kernel, kernel_bwd
from mfu_kernels.sum_kron_linear.fusion import fuses
from tests.kernels.cases import cost_of
from tests.kernels.running import COMPILES, DEVICE, RUNS_KERNELS, draw, output_and_gradients

pytestmark = RUNS_KERNELS
LIBRARY = torch.ops.mfubench
B, S, M, R, D, E = 3, 6, 2, 3, 12, 10
MIX_TOKENS = 2 * B * R * M * S * D  # FLOPs
MIX_FEATURES = 2 * B * R * M * D * E


def arguments(dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    return {"x": draw(B, S, D, dtype=dtype), "z": draw(R, S, M, dtype=dtype), "w": draw(R, D, E, dtype=dtype)}


def kron(impl: str = "triton", **tensors: Tensor) -> Tensor:
    return sum_kron_linear(**tensors, impl=impl)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the forward's kernel was launched with."""
    seen: list[Any] = []
    launch = kernel.FORWARD.launch

    def recorded(*args: Any, **kwargs: Any) -> None:
        seen.append(kwargs["key"])
        launch(*args, **kwargs)

    monkeypatch.setattr(kernel.FORWARD, "launch", recorded)
    return seen


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_library_operators_are_what_they_say(dtype: torch.dtype) -> None:
    given = tuple(arguments(dtype).values())
    library.opcheck(LIBRARY.sum_kron_linear_fwd, given)
    for needs in itertools.product((True, False), repeat=3):
        library.opcheck(LIBRARY.sum_kron_linear_bwd, (draw(B, M, E, dtype=dtype), *given, *needs))


@COMPILES
def test_compiled_in_one_graph_equals_eager() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(kron, fullgraph=True, backend="aot_eager")
    actual, expected = (output_and_gradients(run, arguments()) for run in (compiled, kron))
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("needed", list(itertools.product((False, True), repeat=3)), ids=str)
def test_the_gradients_that_are_needed_and_no_others(needed: tuple[bool, ...]) -> None:
    actual = output_and_gradients(kron, arguments(), needed)
    expected = output_and_gradients(kron, arguments())
    for (name, value), needs in zip(actual.items(), (True, *needed), strict=True):
        assert torch.equal(value, expected[name]) if needs else value is None


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_views_may_be_strided(dim: int) -> None:
    tensors = arguments()
    views = {name: torch.stack([t, t], dim=dim).select(dim, 0) for name, t in tensors.items()}
    assert torch.equal(kron(**views), kron(**tensors))


@pytest.mark.parametrize(
    ("sizes", "dtype", "fused"),
    [
        ((256, 128, 512), torch.float16, True),
        ((257, 128, 512), torch.float16, False),
        ((256, 129, 512), torch.float16, False),
        ((256, 128, 513), torch.float16, False),
        ((64, 16, 1024), torch.bfloat16, True),
        ((64, 16, 256), torch.float32, False),
    ],
)
def test_where_the_forward_is_fused(sizes: tuple[int, int, int], dtype: torch.dtype, fused: bool) -> None:
    assert fuses(*sizes, dtype) == fused


def test_the_rule_decides_what_is_launched_and_both_ways_give_the_same(launches: list[Any]) -> None:
    tensors = arguments()
    exact = kron("reference", **{name: t.double() for name, t in tensors.items()})
    fused = kron(**tensors)
    assert len(launches) == 1
    plain = kron(**arguments(torch.float32))
    assert len(launches) == 1
    torch.testing.assert_close(fused.double(), exact, rtol=0, atol=4e-3 * float(exact.abs().max()))
    torch.testing.assert_close(plain, kron("reference", **arguments(torch.float32)))


@pytest.mark.parametrize(
    ("sizes", "fused", "capability"),
    [
        ((128, 256), True, 90),
        ((129, 256), False, 90),
        ((256, 128), True, 100),
        ((128, 64), True, 80),
        ((128, 65), False, 80),
    ],
)
def test_where_the_backward_is_fused(
    sizes: tuple[int, int], fused: bool, capability: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_bwd, "capability", lambda: capability)
    assert kernel_bwd.fits(*sizes, torch.bfloat16, torch.device("cpu")) == fused
    assert not kernel_bwd.fits(*sizes, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("needed", list(itertools.product((False, True), repeat=3))[1:], ids=str)
def test_kernel_and_matmuls_give_the_same_gradients(needed: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole numbers, so to the bit; more steps than programs, and tokens, terms and features that fill no tile."""
    sizes = {"x": (5, 40, 40), "z": (3, 40, 5), "w": (3, 40, 7)}
    whole = {name: draw(*shape).sign().to(torch.float16) for name, shape in sizes.items()}
    whole["x"][:, 4:] = 0
    whole["w"][:, 4:] = 0

    def gradients(fused: bool) -> dict[str, Tensor]:
        monkeypatch.setattr(backward, "fits", lambda *_: fused)
        inputs = {name: t.clone().requires_grad_(n) for (name, t), n in zip(whole.items(), needed, strict=True)}
        kron(**inputs).sum().backward()
        return {name: t.grad for name, t in inputs.items() if t.requires_grad}

    fused, plain = gradients(True), gradients(False)
    assert fused.keys() == plain.keys() and all(torch.equal(fused[name], plain[name]) for name in fused)
    assert all(t.abs().max() > 0 for t in fused.values())


def test_whole_numbers_have_no_error() -> None:
    sizes = {"x": (9, 40, 24), "z": (5, 40, 3), "w": (5, 24, 300)}
    whole = {name: draw(*shape).sign().to(torch.float16) for name, shape in sizes.items()}
    whole["x"][:, 4:] = 0  # sums stay below 2048, up to which fp16 has every whole number
    exact = kron("reference", **{name: t.double() for name, t in whole.items()})
    assert torch.equal(kron(**whole).double(), exact) and exact.abs().max() < 2048


def test_autocast_rounds_what_enters_a_matmul(launches: list[Any]) -> None:
    with torch.autocast(DEVICE, torch.float16):
        actual = output_and_gradients(kron, arguments(torch.float32))
        expected = output_and_gradients(kron, arguments(torch.float32), impl="reference")
    assert len(launches) == 1 and {name: t.dtype for name, t in actual.items()} == {
        "out": torch.float16,
        **dict.fromkeys("xzw", torch.float32),
    }
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=4e-3 * float(value.abs().max()))


@pytest.mark.parametrize("needed", list(itertools.product((False, True), repeat=3)), ids=str)
@pytest.mark.parametrize(("dtype", "out_dim", "blocks"), [("float16", E, 1), ("float16", 600, 3), ("float32", 600, 1)])
def test_cost_counts_what_is_executed(needed: tuple[bool, ...], dtype: str, out_dim: int, blocks: int) -> None:
    tensors = arguments(getattr(torch, dtype))
    tensors["w"] = draw(R, D, out_dim, dtype=getattr(torch, dtype))
    for tensor, needs in zip(tensors.values(), needed, strict=True):
        tensor.requires_grad_(needs)
    cost, plain = (cost_of(lambda impl=impl: kron(impl, **tensors)) for impl in ("triton", "reference"))
    for ours, theirs, repeated in (
        (cost.fwd, plain.fwd, (blocks - 1) * MIX_TOKENS),
        (cost.bwd, plain.bwd, needed[2] * MIX_TOKENS),
    ):
        assert (ours.model, ours.padded, ours.bytes) == (theirs.model, theirs.padded, theirs.bytes)
        assert (ours.hardware, ours.recomputed) == (theirs.hardware + repeated, repeated)
    assert plain.fwd.hardware == MIX_TOKENS + MIX_FEATURES * out_dim // E


def test_every_key_that_is_fused_has_a_config_that_fits() -> None:
    powers = [2**n for n in range(3, 9)]
    for tokens, out, terms, columns in itertools.product(powers[1:], powers[:5], (1, 2, 4, 8, 16), powers[1:]):
        key = {"tokens": tokens, "out": out, "terms": terms, "columns": columns}
        for config in kernel.FORWARD.space(key):
            assert config.kwargs["ROWS"] % out == 0 and config.kwargs["TERMS"] <= terms
        assert kernel.FORWARD.space(key), key


def test_what_the_kernel_does_not_take_is_refused_by_name() -> None:
    tensors = arguments()
    with pytest.raises(
        UnsupportedImpl, match=r"^sum_kron_linear: impl='triton' takes .*; x is torch.float64; use impl="
    ):
        kron(**{name: t.double() for name, t in tensors.items()})
    with pytest.raises(InvalidArgument, match=r"^sum_kron_linear: x is of shape .* at least 1"):
        kron(**tensors | {"x": tensors["x"][:0]})
