"""GDPA beyond the contract: activations, scale, autocast of mixed inputs."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mfu_kernels import ACTIVATIONS, InvalidArgument, gdpa
from tests.kernels import oracles
from tests.kernels.cases import GDPA_CASES, assert_same
from tests.kernels.running import COMPILES, DEVICE, RUNS_KERNELS, draw

CASE = GDPA_CASES[0]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.sampled_from(sorted(ACTIVATIONS)), st.floats(-2, 2))
def test_any_lengths_equal_the_oracle(lengths: list[int], activation: str, scale: float) -> None:
    tensors, offsets = CASE.tensors(lengths), CASE.offsets(lengths)
    actual = gdpa(**tensors, **offsets, activation=activation, scale=scale)
    assert_same({"out": actual}, {"out": oracles.gdpa(**tensors, **offsets, activation=activation, scale=scale)})


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_far_from_zero(name: str) -> None:
    x = torch.linspace(-12, 12, 97, dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS[name](x), oracles.ACTIVATIONS[name](x), rtol=1e-9, atol=1e-12)


def test_the_scale_is_inside_the_activation() -> None:
    tensors, offsets = CASE.tensors([2, 3]), CASE.offsets([2, 3])
    once, thrice = (gdpa(**tensors, **offsets, activation="relu2", scale=scale) for scale in (1.0, 3.0))
    torch.testing.assert_close(thrice, 9 * once)


def test_heads_with_one_activation_in_common_equal_its_name() -> None:
    tensors, offsets = CASE.tensors([2, 3]), CASE.offsets([2, 3])
    assert torch.equal(
        gdpa(**tensors, **offsets, activation=["silu"] * 2), gdpa(**tensors, **offsets, activation="silu")
    )


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_takes_fp32_queries_and_bf16_keys(compiled: bool) -> None:
    tensors, offsets = CASE.tensors([2, 3], torch.float32), CASE.offsets([2, 3])
    run = torch.compile(gdpa, fullgraph=True, backend="aot_eager") if compiled else gdpa
    with torch.autocast("cpu", torch.bfloat16):
        keys, values = (tensors[name].detach().bfloat16() for name in ("k", "v"))
        out = run(tensors["q"], keys, values, **offsets, max_length=3)
    assert out.dtype == torch.bfloat16
    assert not out.isnan().any()


@pytest.mark.parametrize("activation", ["softmax", ("silu",), ("silu", "tanh"), (), {"silu", "relu"}, None])
def test_unknown_activations_and_wrong_numbers_of_them(activation: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^gdpa: activation is .*; allowed: "):
        gdpa(**CASE.tensors([2]), **CASE.offsets([2]), activation=activation)


def test_the_number_of_rows_is_that_of_the_keys() -> None:
    with pytest.raises(InvalidArgument, match=r"offsets is of shape \[4\]; allowed: \[B\+1\] with B = 2"):
        gdpa(**CASE.tensors([2, 3]), **CASE.offsets([2, 3, 0]))


def test_no_keys_are_an_error() -> None:
    tensors = CASE.tensors([2])
    with pytest.raises(InvalidArgument, match=r"k is of shape \[1, 0, 2, 4\].*n_kv = at least 1"):
        gdpa(tensors["q"], tensors["k"][:, :0], tensors["v"][:, :0], **CASE.offsets([2]))


@RUNS_KERNELS
@COMPILES
def test_not_every_longest_row_is_compiled_for_anew() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    run = torch.compile(gdpa, fullgraph=True, dynamic=True, backend=backend)
    keys = draw(2, 5, 2, 8)
    for longest in (9, 11, 14, 17):
        offsets = torch.tensor([0, longest, longest + 6], device=DEVICE)
        rows = draw(longest + 6, 2, 8)
        torch._dynamo.mark_static(rows, 1)  # as heads are in a model; torch 2.11 repeats no tuple a symbol's times
        run(rows, keys, keys, offsets, max_length=longest, impl="triton")
    assert len(graphs) < 4
