"""The kernel of the rotation beyond its numeric contract: the library boundary, which gradients, what is refused."""

import itertools

import pytest
import torch
from torch import Tensor, library

from mfu_kernels import InvalidArgument, UnsupportedImpl, rotary_time
from tests.kernels.running import COMPILES, RUNS_KERNELS, draw, output_and_gradients

pytestmark = RUNS_KERNELS


def arguments() -> dict[str, Tensor]:
    return {"x": draw(5, 2, 12), "angles": draw(5, 6)}


@pytest.mark.parametrize("back", [False, True])
def test_the_library_operator_is_what_it_says(back: bool) -> None:
    library.opcheck(torch.ops.mfubench.rotary_time, (*arguments().values(), back))


@COMPILES
def test_compiled_in_one_graph_equals_eager() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(rotary_time, fullgraph=True, backend="aot_eager")
    actual, expected = (
        output_and_gradients(run, arguments(), (True, False), impl="triton") for run in (compiled, rotary_time)
    )
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_the_gradients_that_are_needed_and_no_others() -> None:
    for needed in itertools.product((False, True), repeat=2):
        actual, expected = (
            output_and_gradients(rotary_time, arguments(), needed, impl=impl) for impl in ("triton", "reference")
        )
        torch.testing.assert_close(actual, expected)


def test_what_kernels_do_not_take_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedImpl, match=r"^rotary_time: impl='triton' takes .*; x is torch.float64; use impl="):
        rotary_time(draw(5, 2, 12).double(), draw(5, 6), impl="triton")
    with pytest.raises(InvalidArgument, match=r"^rotary_time: the head dimension is 258; allowed: 8 to 256"):
        rotary_time(draw(5, 2, 258), draw(5, 129), impl="triton")
