"""SDIM's model FLOPs in closed form, component by component."""

from collections import Counter
from collections.abc import Mapping, Sequence

from mfu_models.common.flops import FlopCount, check_lengths, linear, mlp

from .config import SdimConfig


def components(config: SdimConfig, lengths: Mapping[str, Sequence[int]]) -> Counter[str]:
    """Forward model FLOPs of a batch by component, for ``lengths`` by sequence name (one row a sample)."""
    num_samples = check_lengths(lengths, [config.long_history.name, config.short_history.name])
    long, short = (sum(lengths[history.name]) for history in (config.long_history, config.short_history))
    d = config.width
    work: Counter[str] = Counter()
    work["hash"] = linear(long + num_samples, d, config.num_hashes)
    work["short_din"] = mlp(short, (4 * d, *config.att_mlp, 1)) + 2 * short * d
    work["head"] = mlp(num_samples, config.head_widths)
    return work


def model_flops(config: SdimConfig, lengths: Mapping[str, Sequence[int]]) -> FlopCount:
    """Forward and backward of a batch. Every matrix product has two gradients, but hashes have none."""
    work = components(config, lengths)
    return FlopCount(fwd=sum(work.values()), bwd=2 * (work["short_din"] + work["head"]))
