"""The kernels of the norms beyond their numeric contract: the library boundary, which gradients, what is refused."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, library

from mfu_kernels import InvalidArgument, UnsupportedImpl, layer_norm, rms_norm
from mfu_kernels.limits import MAX_ROW_WIDTH
from tests.kernels.running import COMPILES, RUNS_KERNELS, Called, draw, in_pairs, output_and_gradients

pytestmark = RUNS_KERNELS
NORMS = pytest.mark.parametrize("norm", [rms_norm, layer_norm], ids=["rms_norm", "layer_norm"])
LIBRARY = torch.ops.mfubench


def arguments(norm: Callable[..., Tensor], *rows: int) -> dict[str, Tensor]:
    """All tensors that the norm takes, 12 wide, the residual in another dtype than x."""
    tensors = {"x": draw(*rows, 12), "weight": draw(12)}
    if norm is layer_norm:
        tensors |= {"bias": draw(12), "residual": draw(*rows, 12, dtype=torch.float16)}
    return tensors


@NORMS
def test_library_operators_are_what_they_say(norm: Callable[..., Tensor]) -> None:
    given, grad, mean, rstd = arguments(norm, 5), draw(5, 12), draw(5), draw(5).abs()
    x, weight = given["x"], given["weight"]
    if norm is rms_norm:
        calls = [(LIBRARY.rms_norm_fwd, (x, w, 1e-6)) for w in (weight, None)]
        calls += [(LIBRARY.rms_norm_bwd, (grad, x, w, rstd)) for w in (weight, None)]
    else:
        bias, residual = given["bias"], given["residual"]
        calls = [(LIBRARY.layer_norm_fwd, (x, *others, 1e-5)) for others in ((weight, bias, residual), (None,) * 3)]
        calls += [
            (LIBRARY.layer_norm_bwd, (grads, x, weight, added, mean, rstd, *needs))
            for (grads, added), *needs in in_pairs(
                ((grad, x), (grad, residual), (draw(4, 5, 12)[1:2], x)), *((True, False),) * 3
            )
        ]
    for operator, call in calls:
        library.opcheck(operator, call)


@COMPILES
@NORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_compiled_in_one_graph_equals_eager(norm: Callable[..., Tensor], dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(norm, fullgraph=True, backend="aot_eager")
    tensors = arguments(norm, 2, 3)
    tensors["x"] = tensors["x"].to(dtype)
    actual = output_and_gradients(compiled, tensors, impl="triton")
    for name, expected in output_and_gradients(norm, tensors, impl="triton").items():
        assert torch.equal(actual[name], expected), name


@NORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_gradients_that_are_needed_and_no_others(norm: Callable[..., Tensor], dtype: torch.dtype) -> None:
    tensors = arguments(norm, 5)
    if norm is layer_norm:
        tensors["residual"] = tensors["residual"].to(dtype)
    for needed in itertools.product((False, True), repeat=len(tensors)):
        actual = output_and_gradients(norm, tensors, needed, impl="triton")
        expected = output_and_gradients(norm, tensors, needed, impl="reference")
        torch.testing.assert_close(actual, expected, msg=lambda m, needed=needed: f"{needed}: {m}")


@NORMS
def test_inputs_of_several_dimensions_and_any_strides(norm: Callable[..., Tensor]) -> None:
    tensors = arguments(norm, 2, 3) | {"x": draw(2, 12, 3).transpose(1, 2)}
    if norm is layer_norm:
        tensors["residual"] = draw(12, 2, 3).permute(1, 2, 0)
    torch.testing.assert_close(norm(**tensors, impl="triton"), norm(**tensors, impl="reference"))


def test_the_gradient_of_a_slice_of_tokens_is_read_as_it_lies() -> None:
    tensors, weights = arguments(layer_norm, 4, 3), draw(4, 7, 12)[:, 2:5]
    leaves = [tensor.requires_grad_() for tensor in tensors.values()]
    found = []
    for impl in ("triton", "reference"):
        out = layer_norm(*leaves[:3], residual=leaves[3], impl=impl)
        found.append(torch.autograd.grad(out, leaves, weights))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)  # the residual is in fp16
    out = layer_norm(leaves[0], impl="triton")
    with Called() as called:
        torch.autograd.grad(out, leaves[0], weights)
    assert called.names == ["mfubench.layer_norm_bwd.default", "aten.view.default"]


@NORMS
def test_no_rows_give_no_rows_and_gradients_of_zeros(norm: Callable[..., Tensor]) -> None:
    results = output_and_gradients(norm, arguments(norm, 0), impl="triton")
    assert results["out"].shape == (0, 12)
    assert not any(tensor.any() for tensor in results.values())


@NORMS
def test_the_widest_row_is_normalised(norm: Callable[..., Tensor]) -> None:
    x = {"x": draw(2, MAX_ROW_WIDTH)}
    actual, expected = (output_and_gradients(norm, x, impl=impl) for impl in ("triton", "reference"))
    torch.testing.assert_close(actual, expected)


@NORMS
def test_what_kernels_do_not_take_is_refused_by_name(norm: Callable[..., Tensor]) -> None:
    name = norm.__name__
    with pytest.raises(UnsupportedImpl, match=rf"^{name}: impl='triton' takes .*; weight is torch.float64; use impl="):
        norm(draw(2, 8), draw(8).double(), impl="triton")
    with pytest.raises(InvalidArgument, match=rf"^{name}: the row width is {MAX_ROW_WIDTH + 1}; allowed: at most"):
        norm(draw(1, MAX_ROW_WIDTH + 1), impl="triton")
    with pytest.raises(InvalidArgument, match=rf"^{name}: weight is of shape \[5\] .*; allowed: \[8\]"):
        norm(draw(2, 8), draw(5), impl="triton")


@NORMS
def test_factors_lie_in_memory_as_they_like(norm: Callable[..., Tensor]) -> None:
    """As columns of a table do, or one number for all columns."""
    columns = draw(12, 2)
    for factor in (columns[:, 0], draw(24)[::2], draw(1).expand(12)):
        factors = {"weight": factor} | ({"bias": factor} if norm is layer_norm else {})
        x = draw(5, 12)
        expected = norm(x, **{name: f.clone() for name, f in factors.items()}, impl="triton")
        assert torch.equal(norm(x, **factors, impl="triton"), expected)


def test_x_and_residual_have_gradients_of_their_own() -> None:
    """Both are leaves here, as where learned seeds meet learned positions: what is added to one is not the other's."""
    x, residual = draw(5, 12).requires_grad_(), draw(5, 12).requires_grad_()
    for _ in range(2):
        layer_norm(x, None, None, residual=residual, impl="triton").square().mul(torch.arange(12.0)).sum().backward()
    assert x.grad is not None and residual.grad is not None
    once = torch.autograd.grad(
        layer_norm(x, None, None, residual=residual, impl="triton").square().mul(torch.arange(12.0)).sum(), x
    )[0]
    torch.testing.assert_close(x.grad, 2 * once)
    assert x.grad.data_ptr() != residual.grad.data_ptr()
