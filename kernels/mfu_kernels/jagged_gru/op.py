"""The public function `jagged_gru`."""

from torch import Tensor

from mfu_kernels.checks import check_matmul_dtypes, check_shapes, invalid
from mfu_kernels.jagged import check_offsets, host_max_length
from mfu_kernels.registry import Impl, Op

from .cost import jagged_gru_cost
from .reference import jagged_gru_reference

OP = Op("jagged_gru", "gemm", jagged_gru_cost, {"reference": jagged_gru_reference})


def jagged_gru(
    gates: Tensor,
    weight: Tensor,
    offsets: Tensor,
    *,
    attention: Tensor | None = None,
    max_length: int | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """The states of a GRU that starts at 0 in each row; with ``attention``, of DIEN's AUGRU.

    With g = ``gates``_t and s = h_{t-1} ``weight``, each in three parts (update, reset, proposal):

        u = sigmoid(g_u + s_u);  r = sigmoid(g_r + s_r);  p = tanh(g_p + r s_p)
        h_t = (1 - a_t u) h_{t-1} + a_t u p,  with a = ``attention``, or 1

    The steps of a row follow one another: the longest row sets the time.

    Args:
        gates: [T, 3h] the inputs' part of the gates, biases included, packed in B rows.
        weight: [h, 3h] maps the state to its part of the gates.
        offsets: [B+1] int32 or int64, where each row begins and ends.
        attention: [T], scales each step's update gate.
        max_length: at least the longest row's length; None reads it from ``offsets``, which waits for the device.
        impl: which implementation runs.

    Returns:
        [T, h] the state after each step, in the dtype that a matmul of ``gates`` has; kept in fp32 between steps.

    Raises:
        InvalidArgument: shapes, dtypes, devices or offsets that do not fit together.
        UnsupportedImpl: ``impl`` cannot run here.

    Source: the GRU, arXiv 1406.1078, with the reset gate behind the matrix as cuDNN and DIEN have it; AUGRU: DIEN,
    arXiv 1809.03672.
    """
    sizes = check_shapes("jagged_gru", gates=(gates, "T 3h"), weight=(weight, "h 3h"))
    if sizes["3h"] != 3 * sizes["h"]:
        raise invalid("jagged_gru", "weight", f"of shape {list(weight.shape)}", "[h, 3h], as gates is [T, 3h]")
    check_matmul_dtypes("jagged_gru", gates=gates, weight=weight)
    if attention is not None:
        check_shapes("jagged_gru", gates=(gates, "T 3h"), attention=(attention, "T"))
        check_matmul_dtypes("jagged_gru", gates=gates, attention=attention)
    check_offsets("jagged_gru", offsets, gates, num_rows=None, max_length=max_length)
    max_length = host_max_length(offsets, max_length)
    return OP.run(impl, gates.device, gates, weight, offsets, attention, max_length=max_length)
