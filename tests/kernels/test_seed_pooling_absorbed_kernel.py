"""The kernels of `seed_pooling_absorbed` beyond their numeric contract."""

import itertools

import pytest
import torch
from torch import Tensor, library

from mfu_kernels import InvalidArgument, seed_pooling, seed_pooling_absorbed
from tests.kernels.running import COMPILES, DEVICE, RUNS_KERNELS, draw, output_and_gradients

LIBRARY = torch.ops.mfubench
OFFSETS = torch.tensor([0, 3, 3, 8], device=DEVICE)


def arguments(width: int = 24) -> dict[str, Tensor]:
    """Three seeds of two heads, and three rows of events, the middle one empty."""
    return {
        "seeds": draw(3, 2, 12),
        "x": draw(8, width),
        "w_k": draw(2, 12, width) * width**-0.5,
        "w_v": draw(2, 12, width).flip(0) * width**-0.5,
    }


@RUNS_KERNELS
def test_the_library_operator_is_what_it_says() -> None:
    queries, x = draw(6, 24), draw(8, 24)
    out, softmax, _ = LIBRARY.seed_pooling_fwd(queries[:, None], x[:, None], x[:, None], None, OFFSETS, 0.3, 5, False)
    for needs in itertools.product((True, False), repeat=2):
        call = (torch.ones_like(out[:, :, 0]), queries, x, OFFSETS, out[:, :, 0], softmax[:, :, 0], 0.3, 5, list(needs))
        library.opcheck(LIBRARY.seed_pooling_absorbed_bwd, call)


@COMPILES
@RUNS_KERNELS
def test_compiled_in_one_graph_equals_eager() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(seed_pooling_absorbed, fullgraph=True, backend="aot_eager")
    others = {"offsets": OFFSETS, "max_length": 5, "impl": "triton"}
    actual = output_and_gradients(compiled, arguments(), **others)
    torch.testing.assert_close(actual, output_and_gradients(seed_pooling_absorbed, arguments(), **others))


@RUNS_KERNELS
@pytest.mark.parametrize("width", [24, 300, 301])
def test_the_gradients_that_are_needed_and_no_others(width: int) -> None:
    for needed in itertools.product((False, True), repeat=4):
        actual, expected = (
            output_and_gradients(seed_pooling_absorbed, arguments(width), needed, offsets=OFFSETS, impl=impl)
            for impl in ("triton", "reference")
        )
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_it_is_seed_pooling_of_projected_events() -> None:
    def projected(seeds: Tensor, x: Tensor, w_k: Tensor, w_v: Tensor) -> Tensor:
        k, v = (torch.einsum("ti,hdi->thd", x, w) for w in (w_k, w_v))
        return seed_pooling(seeds, k, v, OFFSETS, impl="reference")

    actual = output_and_gradients(seed_pooling_absorbed, arguments(), offsets=OFFSETS, impl="reference")
    torch.testing.assert_close(actual, output_and_gradients(projected, arguments()), atol=1e-5, rtol=1e-5)


def test_rotation_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"angles is given; allowed: None: keys that are never made cannot be"):
        seed_pooling_absorbed(**arguments(), offsets=OFFSETS, angles=draw(8, 6))


@RUNS_KERNELS
def test_a_width_that_no_program_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfu_kernels.launching.Kernel.launch", lambda *_, **__: pytest.fail("launched"))
    with pytest.raises(InvalidArgument, match="the width of x is 514; allowed: at most 512"):
        seed_pooling_absorbed(**arguments(514), offsets=OFFSETS, impl="triton")
