"""The public function `gdpa_block`."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mfu_kernels.activations import activation_per_head
from mfu_kernels.checks import check_eps, check_matmul_dtypes, check_shapes
from mfu_kernels.jagged import check_offsets, host_max_length
from mfu_kernels.limits import HEAD_DIMS
from mfu_kernels.registry import Impl, Op

from .boundary import gdpa_block_triton
from .cost import gdpa_block_cost
from .reference import gdpa_block_reference

OP = Op(
    "gdpa_block",
    "attention",
    gdpa_block_cost,
    {"reference": gdpa_block_reference, "triton": gdpa_block_triton},
    proved_natively=True,
    widths=HEAD_DIMS,
)


def gdpa_block(
    x: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    scale: float = 1.0,
    activation: str | Sequence[str] = "gelu_tanh",
    eps: float = 1e-5,
    max_length: int | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """n = LN(x), o = GDPA(n, k, v) + n, out = x + RMSNorm(o): Kunlun's feed-forward block of an event sequence.

    Both norms run over all H d features of an event and have no weights.

    Args:
        x: [T, H, d] packed events of B rows.
        k, v: [B, n_kv, H, d] keys and values of each row.
        offsets: [B+1] int32 or int64, where each row begins and ends in ``x``.
        scale: multiplies the scores inside the activation.
        activation: a name in `ACTIVATIONS`, or one name for each head.
        eps: of both norms, above 0.
        max_length: at least the longest row's length; None reads it from ``offsets``, which waits for the device.
        impl: which implementation runs.

    Returns:
        [T, H, d] in ``x.dtype``.

    Raises:
        InvalidArgument: shapes, dtypes, devices, offsets, activation or eps that do not fit together.
        UnsupportedImpl: ``impl`` cannot run here.

    Source: Kunlun, arXiv 2602.10016; the order of norms and residuals is that of Meta's norm-fusion post on
    pytorch.org.
    """
    check_shapes("gdpa_block", x=(x, "T H d"), k=(k, "B n_kv H d"), v=(v, "B n_kv H d"))
    check_matmul_dtypes("gdpa_block", x=x, k=k, v=v)
    out: Tensor = _run(x, (k, v), None, offsets, scale, activation, eps, max_length, impl)
    return out


def gdpa_block_kvpacked(
    x: Tensor,
    kv: Tensor,
    offsets: Tensor,
    *,
    scale: float = 1.0,
    activation: str | Sequence[str] = "gelu_tanh",
    eps: float = 1e-5,
    max_length: int | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """`gdpa_block` of the two slices of ``kv``, such as a fused projection gives, and ``x`` for another reader.

    The kernels write the gradient of ``kv`` as one tensor, where autograd would lay those of k and v side by side in
    another pass. They add the gradient of ``x`` that its other reader makes where they write theirs, which would be
    another pass too, if that reader took the ``x`` that is given.

    Args:
        kv: [B, n_kv, 2, H, d] keys and values of each row.
        x, offsets, scale, activation, eps, max_length, impl: as `gdpa_block` has them.

    Returns:
        [T, H, d] in ``x.dtype``, and ``x``.

    Raises:
        InvalidArgument, UnsupportedImpl: where `gdpa_block` does.
    """
    check_shapes("gdpa_block", x=(x, "T H d"), kv=(kv, "B n_kv 2 H d"))
    check_matmul_dtypes("gdpa_block", x=x, kv=kv)
    k, v = kv.unbind(2)
    found = _run(x, (k, v), kv, offsets, scale, activation, eps, max_length, impl)
    return found if isinstance(found, tuple) else (found, x)


def _run(
    x: Tensor,
    separate: tuple[Tensor, Tensor],
    packed: Tensor | None,
    offsets: Tensor,
    scale: float,
    activation: str | Sequence[str],
    eps: float,
    max_length: int | None,
    impl: Impl,
) -> Any:
    check_offsets("gdpa_block", offsets, x, num_rows=separate[0].shape[0], max_length=max_length)
    check_eps("gdpa_block", eps)
    names = activation_per_head("gdpa_block", activation, x.shape[1])
    others = {"eps": eps, "max_length": host_max_length(offsets, max_length), "packed": packed}
    return OP.run(impl, x.device, x, *separate, offsets, scale=scale, activation=names, **others)
