"""The kernels of HSTU attention beyond their contract: the library boundary, which gradients, refusals."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, library

from mfu_kernels import InvalidArgument, UnsupportedImpl, hstu_attention
from tests.kernels.running import COMPILES, DEVICE, RUNS_KERNELS, draw, output_and_gradients

pytestmark = RUNS_KERNELS
LIBRARY = torch.ops.mfubench
LENGTHS = [6, 0, 9]
T, H, D, D_V, R = sum(LENGTHS), 2, 12, 8, 5
NEEDS = list(itertools.product((False, True), repeat=4))


def arguments() -> dict[str, Tensor]:
    """Queries, keys, values and a bias of three rows, the middle one empty."""
    return {"q": draw(T, H, D), "k": draw(T, H, D).flip(0), "v": draw(T, H, D_V), "bias": draw(H, R)}


def offsets() -> Tensor:
    return torch.tensor([0, *itertools.accumulate(LENGTHS)], device=DEVICE)


def attend(impl: str = "triton", **given: Any) -> Tensor:
    """With everything that a mask has: a window, first keys, candidates."""
    mask = {"norm_length": 9, "window": 3, "first_keys": 1, "num_candidates": 2, "max_length": max(LENGTHS)}
    return hstu_attention(**{"offsets": offsets(), **mask, "impl": impl} | given)


@pytest.mark.parametrize("bias", [True, False])
def test_library_operators_are_what_they_say(bias: bool) -> None:
    q, k, v, by_distance = arguments().values()
    given = (q, k, v, offsets(), by_distance if bias else None, 9, 0.5, 3, 1, 2, 9)
    library.opcheck(LIBRARY.hstu_attention_fwd, given)
    for needs in ((True, True, True, bias), (True, False, False, False), (False, True, False, False)):
        library.opcheck(LIBRARY.hstu_attention_bwd, (draw(*v.shape), *given, *needs))


@COMPILES
def test_compiled_in_one_graph_equals_eager() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    actual, expected = (output_and_gradients(run, arguments()) for run in (compiled, attend))
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("needed", NEEDS, ids=str)
def test_the_gradients_that_are_needed_and_no_others(needed: tuple[bool, ...]) -> None:
    actual, expected = (
        output_and_gradients(attend, arguments(), needed, impl=impl) for impl in ("triton", "reference")
    )
    torch.testing.assert_close(actual, expected)


def test_a_larger_max_length_changes_nothing() -> None:
    actual, expected = (output_and_gradients(attend, arguments(), max_length=longest) for longest in (300, 9))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": torch.zeros(T, 3, D)}, InvalidArgument, "k is of shape"),
        ({"bias": torch.zeros(3, R)}, InvalidArgument, "bias is of shape"),
        ({"offsets": torch.tensor([0, 6, 6, 16])}, InvalidArgument, "offsets"),
        ({"max_length": 8}, InvalidArgument, "max_length is 8; allowed: at least 9"),
        ({"num_candidates": 0}, InvalidArgument, "num_candidates is 0"),
        ({"v": torch.zeros(T, H, 4)}, InvalidArgument, "the head dimension is 4"),
        ({name: arguments()[name].double() for name in "qkv"}, UnsupportedImpl, "q is torch.float64"),
    ],
    ids=["heads", "bias", "offsets", "max_length", "candidates", "width", "dtype"],
)
def test_what_does_not_fit_is_refused_before_a_launch(
    change: dict[str, Any], error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mfu_kernels.launching.Kernel.launch", lambda *_, **__: pytest.fail("launched"))
    changed = {name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in change.items()}
    with pytest.raises(error, match=f"^hstu_attention: .*{message}"):
        attend(**arguments() | changed)
