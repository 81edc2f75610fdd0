"""The public function `embedding`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mfu_kernels.checks import check_floating, check_shapes, invalid
from mfu_kernels.registry import Impl, Op

from .boundary import embedding_triton
from .cost import embedding_cost
from .reference import embedding_reference

OP = Op("embedding", "embedding", embedding_cost, {"reference": embedding_reference, "triton": embedding_triton})


def embedding(weight: Tensor, ids: Tensor, *, vocabs: Sequence[int], impl: Impl = "auto") -> Tensor:
    """Rows of F fields' tables, which lie in one: out_nf = weight[ids_nf + first row of field f].

    The gradient of ``weight`` is dense: a row that no id asks for gets zeros.

    On a CPU the ids are held against their field's vocabulary, but for while compiling. On a GPU that would wait for
    the device. There the kernel gives NaN for an id that is none of its field's, and reads nothing for it; the
    reference asserts on the device that a row is one of the table, and looks another field's up where it is.

    Args:
        weight: [R, w], the fields' rows one field after the other.
        ids: [N, F] int32 or int64, the ids of field f from 0 to ``vocabs[f]`` - 1.
        vocabs: how many rows each of the F fields has; R together.
        impl: which implementation runs.

    Returns:
        [N, F, w] in ``weight.dtype``, each field's row beside the next one's.

    Raises:
        InvalidArgument: shapes, dtypes, devices or vocabularies that do not fit together; on a CPU, ids outside.
        UnsupportedImpl: ``impl`` cannot run here.

    Source: the fused tables of TorchRec and FBGEMM (split table batched embeddings), without pooling.
    """
    sizes = check_shapes("embedding", weight=(weight, "R w"), ids=(ids, "T F"))
    check_floating("embedding", weight=weight)
    vocabs = tuple(vocabs)
    if ids.dtype not in (torch.int32, torch.int64):
        raise invalid("embedding", "ids", f"of dtype {ids.dtype}", "torch.int32 or torch.int64")
    if len(vocabs) != sizes["F"] or min(vocabs) < 1 or sum(vocabs) != sizes["R"]:
        allowed = f"F = {sizes['F']} numbers from 1 that add up to R = {sizes['R']}"
        raise invalid("embedding", "vocabs", list(vocabs), allowed)
    if ids.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_ids(ids, vocabs)
    return OP.run(impl, weight.device, weight, ids, vocabs=vocabs)


def _check_ids(ids: Tensor, vocabs: tuple[int, ...]) -> None:
    for field, vocab in enumerate(vocabs if len(ids) else ()):
        low, high = (int(bound) for bound in ids[:, field].aminmax())
        if low < 0 or high >= vocab:
            wrong = low if low < 0 else high
            raise invalid("embedding", f"an id of field {field}", wrong, f"0 to {vocab - 1}")
