"""DLRMv2's model FLOPs in closed form, component by component: pooling multiplies no matrices."""

from collections import Counter
from collections.abc import Mapping, Sequence

from mfu_models.common.flops import FlopCount, check_lengths, linear, mlp, with_backward
from mfu_models.common.pooled_tokens import num_pooled_tokens

from .config import DlrmConfig


def components(config: DlrmConfig, lengths: Mapping[str, Sequence[int]]) -> Counter[str]:
    """Forward model FLOPs of a batch by component, for ``lengths`` by sequence name (one row a sample)."""
    num_samples = check_lengths(lengths, (sequence.name for sequence in config.schema.sequences))
    flat = num_pooled_tokens(config.schema) * config.width
    work: Counter[str] = Counter()
    work["bottom"] = mlp(num_samples, (len(config.schema.dense), *config.bottom_mlp, config.width))
    work["cross"] = config.num_cross * mlp(num_samples, (flat, config.cross_rank, flat))
    work["over"] = mlp(num_samples, (flat, *config.over_mlp, 1))
    return work


def model_flops(config: DlrmConfig, lengths: Mapping[str, Sequence[int]]) -> FlopCount:
    """Forward and backward of a batch."""
    work = components(config, lengths)
    num_samples = len(next(iter(lengths.values())))
    dense = linear(num_samples, len(config.schema.dense), (*config.bottom_mlp, config.width)[0])
    return with_backward(work, dense)
