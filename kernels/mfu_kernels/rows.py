"""What the kernels that work on whole rows share: how many a program takes, and how many programs walk them all."""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from .launching import capability, config
from .modes import MetaParameters, compiling_ahead

PROCESSORS = 132  # of an H100 or H200: where there is no device to ask
WALKERS_PER_PROCESSOR = 4
INTERPRETED_WALKERS = 3  # few, so that each walks several blocks also on small inputs
FETCHED_BYTES = 48 << 10  # of shared memory for rows that are on their way, so that four programs fit on one of sm_90


def row_configs(key: MetaParameters) -> Sequence[triton.Config]:
    """Rows and warps a program for rows of ``key["width"]``, a power of two; 16 to 64 values a thread."""
    width = int(key["width"])
    configs = [
        config(num_warps=warps, ROWS=rows)
        for warps in (4, 8, 2, 16)
        for rows in (8, 4, 16, 2, 1, 32)
        if 16 <= rows * width // (32 * warps) <= 64
    ]
    return configs or [config(num_warps=min(16, max(1, width // 512)), ROWS=1 if width >= 512 else 8)]


def walking_configs(key: MetaParameters) -> Sequence[triton.Config]:
    """Of `row_configs`, those of few values a thread first: a backward's loop holds several fp32 numbers for each.

    At width 512 in bf16 on sm_90, 4 rows on 4 warps take 96 registers in RMSNorm and 119 in LayerNorm, so that all
    `num_walkers` are resident at once. More than 32 values a thread spill.

    The same with the next rows on their way while some are worked on come first on an sm_90: without, a program waits
    for memory at every step, and what hides that is other programs alone. On an H200, LayerNorm's backward took 0.88 ms
    so, and 1.05 without, RMSNorm's 0.89 and 1.04 (1.18M rows of 512), best beside best.
    """
    configs = sorted(row_configs(key), key=lambda c: c.kwargs["ROWS"] / c.num_warps)
    plain = [c for c in configs if c.kwargs["ROWS"] * int(key["width"]) <= 32 * 32 * c.num_warps] or configs
    ahead = [config(num_warps=c.num_warps, num_stages=stages, **c.kwargs) for stages in (3, 2) for c in plain]
    ahead = [c for c in ahead if _fetched_bytes(key, c) <= FETCHED_BYTES]
    return ahead + plain if capability() == 90 else plain + ahead


def _fetched_bytes(key: MetaParameters, chosen: triton.Config) -> int:
    """Of gradients and values, and of what was added to them, in the stages that wait."""
    rows = 3 if key.get("residual") else 2
    waiting = int(chosen.num_stages) - 1
    return waiting * rows * int(chosen.kwargs["ROWS"]) * int(key["width"]) * int(key["bytes"])


def num_walkers(device: torch.device, per_processor: int = WALKERS_PER_PROCESSOR) -> int:
    """Programs that share out all rows: a few for each multiprocessor.

    What is compiled ahead is compiled for so many: an argument of 1 is a constant, others are not.
    """
    if device.type == "cuda":
        return per_processor * torch.cuda.get_device_properties(device).multi_processor_count
    return per_processor * PROCESSORS if compiling_ahead() else INTERPRETED_WALKERS


def with_unit_stride(x: Tensor) -> Tensor:
    """``x`` itself where its last dimension is dense, else a copy: a kernel reads 16 bytes at a time.

    And a copy of [T, H, d] whose heads lie so far apart that 32 bits do not hold where one begins.
    """
    far = x.ndim == 3 and (x.shape[1] - 1) * x.stride(1) >= 2**31
    return x if x.stride(-1) == 1 and not far else x.contiguous()
