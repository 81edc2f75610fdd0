"""The kernels of GDPA beyond their contract: the library boundary, which gradients, few rows, cost, refusals."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, library

from mfu_kernels import InvalidArgument, UnsupportedImpl, gdpa
from mfu_kernels.gdpa.kernel_bwd import MAX_ROUNDED_KEYS
from mfubench.kernels.catalog import examples_of
from mfubench.kernels.check import check_case
from tests.kernels.running import COMPILES, DEVICE, RUNS_KERNELS, draw, in_pairs, output_and_gradients

pytestmark = RUNS_KERNELS
LIBRARY = torch.ops.mfubench
LENGTHS = [3, 0, 5]
H, D, N_KV = 2, 12, 20


def arguments(num_keys: int = N_KV) -> dict[str, Tensor]:
    """Queries of three rows, the middle one empty; fp32 keys are more than one block of them."""
    keys = (len(LENGTHS), num_keys, H, D)
    return {"q": draw(sum(LENGTHS), H, D), "k": draw(*keys), "v": draw(*keys) + 1}


def offsets() -> Tensor:
    return torch.tensor([0, *itertools.accumulate(LENGTHS)], device=DEVICE)


def attend(impl: str = "triton", **given: Any) -> Tensor:
    return gdpa(**{"offsets": offsets(), "scale": 0.3, "max_length": max(LENGTHS), "impl": impl} | given)


def test_library_operators_are_what_they_say() -> None:
    given = (*arguments().values(), offsets(), 0.5, ["silu", "relu"], 5)
    library.opcheck(LIBRARY.gdpa_fwd, given)
    for needs in in_pairs(*((True, False),) * 3):
        library.opcheck(LIBRARY.gdpa_bwd, (draw(sum(LENGTHS), H, D), *given, list(needs)))


@COMPILES
def test_compiled_in_one_graph_equals_eager() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    actual, expected = (output_and_gradients(run, arguments()) for run in (compiled, attend))
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("needed", list(itertools.product((False, True), repeat=3)), ids=str)
def test_the_gradients_that_are_needed_and_no_others(needed: tuple[bool, ...]) -> None:
    actual, expected = (
        output_and_gradients(attend, arguments(), needed, impl=impl) for impl in ("triton", "reference")
    )
    torch.testing.assert_close(actual, expected)


def test_a_larger_max_length_changes_nothing_beyond_rounding() -> None:
    actual, expected = (output_and_gradients(attend, arguments(), max_length=longest) for longest in (1000, 5))
    torch.testing.assert_close(actual, expected)


def test_one_row_shared_out_among_programs_equals_the_reference() -> None:
    tensors = {name: t[:1] if name != "q" else draw(300, H, D) for name, t in arguments().items()}
    alone = {"offsets": torch.tensor([0, 300], device=DEVICE), "max_length": 300}
    actual, expected = (output_and_gradients(attend, tensors, impl=impl, **alone) for impl in ("triton", "reference"))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)


def test_the_contract_holds_for_more_keys_than_dq_is_rounded_for() -> None:
    examples = examples_of("gdpa")
    plainest = {name: values[0] for name, values in examples.factors.items()}
    case = {**plainest, "lengths": LENGTHS, "keys": MAX_ROUNDED_KEYS + 1, "d": 16, "dtype": "fp16", "config": None}
    found = check_case(examples, case, torch.device(DEVICE))
    assert found.passed, found


@pytest.mark.parametrize("dim", [1, -1])
def test_views_may_be_strided(dim: int) -> None:
    tensors = arguments()
    views = {name: torch.stack([t, t], dim=dim).select(dim, 0) for name, t in tensors.items()}
    actual, expected = (output_and_gradients(attend, given) for given in (views, tensors))
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": torch.zeros(3, N_KV, 3, D)}, InvalidArgument, "k is of shape"),
        ({"v": torch.zeros(3, N_KV + 1, H, D)}, InvalidArgument, "v is of shape"),
        ({"offsets": torch.tensor([0, 3, 3, 9])}, InvalidArgument, "offsets"),
        ({"max_length": 4}, InvalidArgument, "max_length is 4; allowed: at least 5"),
        ({"activation": "softmax"}, InvalidArgument, "activation is 'softmax'"),
        ({name: t[..., :4] for name, t in arguments().items()}, InvalidArgument, "the head dimension is 4"),
        ({name: t.double() for name, t in arguments().items()}, UnsupportedImpl, "q is torch.float64"),
    ],
    ids=["heads", "keys", "offsets", "max_length", "activation", "width", "dtype"],
)
def test_what_does_not_fit_is_refused_before_a_launch(
    change: dict[str, Any], error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mfu_kernels.launching.Kernel.launch", lambda *_, **__: pytest.fail("launched"))
    changed = {name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in change.items()}
    with pytest.raises(error, match=f"^gdpa: .*{message}"):
        attend(**arguments() | changed)
