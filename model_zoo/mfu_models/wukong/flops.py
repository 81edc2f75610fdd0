"""Wukong's model FLOPs in closed form, component by component: pooling multiplies no matrices."""

from collections import Counter
from collections.abc import Mapping, Sequence

from mfu_models.common.flops import FlopCount, check_lengths, linear, mlp, with_backward

from .config import WukongConfig


def components(config: WukongConfig, lengths: Mapping[str, Sequence[int]]) -> Counter[str]:
    """Forward model FLOPs of a batch by component, for ``lengths`` by sequence name (one row a sample)."""
    num_samples = check_lengths(lengths, (sequence.name for sequence in config.schema.sequences))
    work: Counter[str] = Counter()
    work["dense"] = mlp(num_samples, (len(config.schema.dense), *config.dense_mlp, config.width))
    for block in config.blocks:
        work.update({name: num_samples * flops for name, flops in block.flops().items()})
    work["head"] = mlp(num_samples, config.head_widths)
    return work


def model_flops(config: WukongConfig, lengths: Mapping[str, Sequence[int]]) -> FlopCount:
    """Forward and backward of a batch."""
    work = components(config, lengths)
    num_samples = len(next(iter(lengths.values())))
    dense = linear(num_samples, len(config.schema.dense), (*config.dense_mlp, config.width)[0])
    return with_backward(work, dense)
