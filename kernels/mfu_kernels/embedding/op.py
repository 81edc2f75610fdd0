"""The public function `embedding`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mfu_kernels.checks import check_floating, check_shapes, invalid
from mfu_kernels.jagged import check_offsets, row_lengths, trusting
from mfu_kernels.registry import Impl, Op

from .boundary import embedding_triton
from .cost import embedding_cost
from .reference import embedding_reference

OP = Op(
    "embedding",
    "embedding",
    embedding_cost,
    {"reference": embedding_reference, "triton": embedding_triton},
    proved_natively=True,
)


def embedding(
    weight: Tensor, ids: Tensor, offsets: Tensor, *, vocabs: Sequence[int] | None = None, impl: Impl = "auto"
) -> Tensor:
    """Rows of F fields' tables, which lie in one: out_nf = weight[ids_nf + offsets_f].

    The gradient of ``weight`` is dense: a row that no id asks for gets zeros.

    On a CPU each id is held against its field's vocabulary, unless the batch is trusted (`trusted_offsets`) or the call
    is being compiled. On a GPU that would wait for the device. There the kernel gives NaN for an id that is none of its
    field's, and reads nothing for it; the reference looks up what is there, be it another field's, and lets the device
    assert that it is a row of the table.

    Args:
        weight: [R, w], the fields' rows one field after the other.
        ids: [N, F] int32 or int64; those of field f count from 0, its first row.
        offsets: [F+1] int32 or int64, where each field's rows begin and end.
        vocabs: how many rows each field has, where the host knows it; without, the reference reads ``offsets`` if it
            computes gradients, which waits for the device.
        impl: which implementation runs.

    Returns:
        [N, F, w] in ``weight.dtype``, each field's row beside the next one's.

    Raises:
        InvalidArgument: shapes, dtypes, devices, offsets or vocabularies that do not fit together; ids outside, on a
            CPU.
        UnsupportedImpl: ``impl`` cannot run here.

    Source: the fused tables of TorchRec and FBGEMM (split table batched embeddings), without pooling.
    """
    sizes = check_shapes("embedding", weight=(weight, "R w"), ids=(ids, "T F"))
    check_floating("embedding", weight=weight)
    if ids.dtype not in (torch.int32, torch.int64):
        raise invalid("embedding", "ids", f"of dtype {ids.dtype}", "torch.int32 or torch.int64")
    check_offsets("embedding", offsets, weight, num_rows=sizes["F"], max_length=None)
    if vocabs is not None and (len(vocabs) != sizes["F"] or min(vocabs) < 0 or sum(vocabs) != sizes["R"]):
        allowed = f"F = {sizes['F']} numbers that add up to R = {sizes['R']}"
        raise invalid("embedding", "vocabs", list(vocabs), allowed)
    if ids.device.type == "cpu" and not (torch.compiler.is_compiling() or trusting()):
        _check_numbers(ids, row_lengths(offsets), vocabs)
    return OP.run(impl, weight.device, weight, ids, offsets, vocabs=vocabs)


def _check_numbers(ids: Tensor, counts: list[int], vocabs: Sequence[int] | None) -> None:
    """``vocabs`` are what ``offsets`` say, and each field's ids are below its own."""
    if vocabs is not None and list(vocabs) != counts:
        raise invalid("embedding", "vocabs", list(vocabs), f"{counts}, as offsets have them")
    if not len(ids):
        return
    least, largest = (bound.tolist() for bound in ids.aminmax(dim=0))
    for field, (low, high, count) in enumerate(zip(least, largest, counts, strict=True)):
        if low < 0 or high >= count:
            raise invalid("embedding", f"an id of field {field}", low if low < 0 else high, f"0 to {count - 1}")
