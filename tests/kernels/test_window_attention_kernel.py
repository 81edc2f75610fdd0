"""The kernels of window attention beyond their contract: packed inputs, the library boundary, gradients that are 0."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, library

from mfu_kernels import InvalidArgument, UnsupportedImpl, window_attention, window_attention_qkvpacked
from tests.kernels.running import COMPILES, DEVICE, RUNS_KERNELS, Called, draw, output_and_gradients

pytestmark = RUNS_KERNELS
LIBRARY = torch.ops.mfubench
OFFSETS = torch.tensor([0, 3, 3, 40], device=DEVICE)
T, H = 40, 2
OTHERS = {"offsets": OFFSETS, "window": 5, "max_length": 37, "impl": "triton"}


def packed(width: int = 12, dtype: torch.dtype = torch.float32) -> Tensor:
    """Queries, keys and values of two heads and three rows, the middle one empty."""
    return draw(T, 3, H, width, dtype=dtype)


def separate(width: int = 12) -> dict[str, Tensor]:
    return dict(zip("qkv", packed(width).unbind(1), strict=True))


def turns(width: int = 12) -> Tensor:
    return 30 * draw(T, width // 2)


def sliced(qkv: Tensor, **others: Any) -> Tensor:
    """What `window_attention_qkvpacked` stands for."""
    return window_attention(*qkv.unbind(1), **others)


@pytest.mark.parametrize("rotated", [False, True])
def test_library_operators_are_what_they_say(rotated: bool) -> None:
    q, k, v = separate().values()
    mask, angles = (5, False, 0.3, 37), turns() if rotated else None
    out, levels, _, back = LIBRARY.window_attention_fwd(q, k, v, OFFSETS, angles, *mask)
    library.opcheck(LIBRARY.window_attention_fwd, (q, k, v, OFFSETS, angles, *mask))
    for needs in ((True, True, True), (False, True, False), (False, False, True)):
        call = (torch.ones_like(out), q, k, v, OFFSETS, out, levels, back if rotated else None, *mask, *needs)
        library.opcheck(LIBRARY.window_attention_bwd, call)


@COMPILES
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("form", ["packed", "separate"])
def test_compiled_in_one_graph_equals_eager(form: str, rotated: bool) -> None:
    torch._dynamo.reset()
    function = {"packed": window_attention_qkvpacked, "separate": window_attention}[form]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    tensors, others = {"packed": {"qkv": packed()}, "separate": separate()}[form], OTHERS
    if rotated:
        others = {**others, "angles": turns()}
    actual = output_and_gradients(compiled, tensors, **others)
    for name, expected in output_and_gradients(function, tensors, **others).items():
        assert torch.equal(actual[name], expected), name


@pytest.mark.parametrize("width", [12, 32])
@pytest.mark.parametrize("angles", [None, "given", "learned"])
@pytest.mark.parametrize("scale", [None, -0.4])
def test_packed_and_separate_agree_to_the_bit(width: int, angles: str | None, scale: float | None) -> None:
    tensors, others = {"qkv": packed(width)}, {**OTHERS, "scale": scale}
    if angles is not None:
        (tensors if angles == "learned" else others)["angles"] = turns(width)
    actual = output_and_gradients(window_attention_qkvpacked, tensors, **others)
    for name, expected in output_and_gradients(sliced, tensors, **others).items():
        assert torch.equal(actual[name], expected), name


@pytest.mark.parametrize("rotated", [False, True])
def test_the_gradient_of_a_packed_projection_is_written_as_one(rotated: bool) -> None:
    qkv = packed().requires_grad_()
    out = window_attention_qkvpacked(qkv, **OTHERS, angles=turns() if rotated else None)
    weights = torch.ones_like(out)
    with Called() as called:
        (grad,) = torch.autograd.grad(out, qkv, weights)
    assert called.names == ["mfubench.window_attention_bwd.default"] and grad.is_contiguous()


@pytest.mark.parametrize("rotated", [False, True])
def test_the_gradients_that_are_needed_and_no_others(rotated: bool) -> None:
    others = {name: value for name, value in OTHERS.items() if name != "impl"}
    if rotated:
        others["angles"] = turns()
    for needed in itertools.product((False, True), repeat=3):
        actual, expected = (
            output_and_gradients(window_attention, separate(), needed, **others, impl=impl)
            for impl in ("triton", "reference")
        )
        torch.testing.assert_close(actual, expected, msg=lambda m, needed=needed: f"{needed}: {m}")


def test_under_autocast_a_packed_projection_is_cast_as_one() -> None:
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float16
    qkv = packed().requires_grad_()
    with torch.autocast(DEVICE, dtype):
        out = window_attention_qkvpacked(qkv, **OTHERS)
    (grad,) = torch.autograd.grad(out, qkv, torch.ones_like(out))
    expected = window_attention_qkvpacked(qkv.to(dtype), **OTHERS)
    assert out.dtype == dtype and grad.dtype == torch.float32 and torch.equal(out, expected)


def test_a_larger_max_length_changes_nothing() -> None:
    expected = output_and_gradients(window_attention, separate(), **OTHERS)
    actual = output_and_gradients(window_attention, separate(), **{**OTHERS, "max_length": 1000})
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("window", [0, 3])
def test_a_query_that_sees_one_key_gives_its_value_and_no_gradient_of_scores(dtype: torch.dtype, window: int) -> None:
    """The exact gradients of q and k are 0: what is left of them is the rounding of two equal products, no more."""
    offsets = torch.tensor([0, 1, 2, 2, 3], device=DEVICE) if window else OFFSETS
    qkv = packed(32, dtype)[: int(offsets[-1])]
    found = output_and_gradients(
        window_attention_qkvpacked, {"qkv": qkv}, offsets=offsets, window=window, impl="triton"
    )
    out, grad = found["out"], found["qkv"]
    eps, product = torch.finfo(torch.float32).eps, 32 * 4.0**2
    assert out is not None and grad is not None
    torch.testing.assert_close(out, qkv[:, 2], rtol=2 * torch.finfo(dtype).eps, atol=0)
    assert grad[:, :2].abs().max() <= 8 * eps * product
    torch.testing.assert_close(grad[:, 2], draw(*out.shape, dtype=dtype), rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"qkv": torch.zeros(T, 2, H, 12)}, InvalidArgument, r"qkv is of shape .*; allowed: \[T, 3, H, d\]"),
        ({"qkv": torch.zeros(T, 3, H, 12).long()}, InvalidArgument, "qkv is of dtype torch.int64"),
        ({"qkv": torch.zeros(T, 3, H, 512)}, InvalidArgument, "the head dimension is 512; allowed: 8 to 256"),
        ({"qkv": torch.zeros(T, 3, H, 12).double()}, UnsupportedImpl, "takes .*; q is torch.float64"),
        ({"offsets": torch.tensor([0, 3, 9])}, InvalidArgument, "offsets is "),
        ({"max_length": 36}, InvalidArgument, "max_length is 36; allowed: at least 37"),
        ({"window": -1}, InvalidArgument, "window is -1; allowed: None or an integer of at least 0"),
        ({"angles": torch.zeros(T, 5)}, InvalidArgument, "angles is of shape"),
    ],
    ids=["slices", "integers", "width", "dtype", "offsets", "max_length", "window", "angles"],
)
def test_what_does_not_fit_is_refused_before_a_launch(
    change: dict[str, Any], error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mfu_kernels.launching.Kernel.launch", lambda *_, **__: pytest.fail("launched"))
    on_device = {name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in change.items()}
    with pytest.raises(error, match=f"^window_attention: .*{message}"):
        window_attention_qkvpacked(**({"qkv": packed(), **OTHERS} | on_device))
