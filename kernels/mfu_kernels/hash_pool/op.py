"""The public function `hash_pool`."""

from torch import Tensor

from mfu_kernels.checks import check_floating, check_shapes, invalid
from mfu_kernels.jagged import check_offsets
from mfu_kernels.registry import Impl, Op

from .cost import hash_pool_cost
from .reference import hash_pool_reference

OP = Op("hash_pool", "reduction", hash_pool_cost, {"reference": hash_pool_reference})


def hash_pool(
    values: Tensor,
    hashes: Tensor,
    query_hashes: Tensor,
    offsets: Tensor,
    *,
    bits: int,
    max_length: int | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Sum of each row's values that share the query's bucket, once for each of G = m / ``bits`` hash functions.

    A bit is the sign of a hash, with 0 as positive; ``bits`` successive ones name a bucket of their group, and
    out_bg = sum over t in row b of values_t, where the bits of group g are as the query's. Hashes are constants: no
    gradient flows to them.

    Args:
        values: [T, D] packed values of B rows.
        hashes: [T, m] of the values, such as random projections of them.
        query_hashes: [B, m] of each row's query.
        offsets: [B+1] int32 or int64, where each row begins and ends.
        bits: how many hashes make a bucket's name; divides m.
        max_length: at least the longest row's length, where it is known; the reference does without.
        impl: which implementation runs.

    Returns:
        [B, G, D] in ``values.dtype``, summed in fp32, in fp64 for fp64 input; a bucket without values gives zeros.

    Raises:
        InvalidArgument: shapes, dtypes, devices, offsets or bits that do not fit together.
        UnsupportedImpl: ``impl`` cannot run here.

    Source: the sampling of SDIM, arXiv 2205.10249.
    """
    sizes = check_shapes(
        "hash_pool", values=(values, "T D"), hashes=(hashes, "T m"), query_hashes=(query_hashes, "B m")
    )
    check_floating("hash_pool", values=values, hashes=hashes, query_hashes=query_hashes)
    check_offsets("hash_pool", offsets, values, num_rows=None, max_length=max_length)
    if sizes["B"] != offsets.shape[0] - 1:
        given = f"of shape {list(query_hashes.shape)}"
        raise invalid("hash_pool", "query_hashes", given, f"[B, m] with B = {offsets.shape[0] - 1}")
    if bits < 1 or sizes["m"] % bits:
        raise invalid("hash_pool", "bits", bits, f"a divisor of m = {sizes['m']}")
    return OP.run(impl, values.device, values, hashes, query_hashes, offsets, bits=bits, max_length=max_length)
