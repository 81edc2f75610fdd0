"""DIN's and DIEN's model FLOPs in closed form, component by component."""

from collections import Counter
from collections.abc import Mapping, Sequence

from mfu_models.common.flops import FlopCount, check_lengths, linear, mlp

from .config import DinConfig


def components(config: DinConfig, lengths: Mapping[str, Sequence[int]]) -> Counter[str]:
    """Forward model FLOPs of a batch by component, for ``lengths`` by sequence name (one row a sample)."""
    num_samples = check_lengths(lengths, [config.history.name])
    events, e, h = sum(lengths[config.history.name]), config.width, config.interest_width
    work: Counter[str] = Counter()
    work["head"] = mlp(num_samples, config.head_widths)
    if not config.dien:
        work["local_activation"] = mlp(events, (4 * e, *config.att_mlp, 1))
        work["weighted_sum"] = 2 * events * e
        return work
    work["gru"] = linear(events, e, 3 * h) + linear(events, h, 3 * h)
    work["attention"] = linear(events, h, e) + 2 * events * e
    work["augru"] = 2 * linear(events, h, 3 * h)
    work["auxiliary"] = mlp(2 * events, (h + e, *config.aux_mlp, 1))  # what came next, and what did not
    return work


def model_flops(config: DinConfig, lengths: Mapping[str, Sequence[int]]) -> FlopCount:
    """Forward and backward of a batch. Every matrix product has two gradients, but a row's first state needs none."""
    work = components(config, lengths)
    fwd = sum(work.values())
    begun = sum(length > 0 for length in lengths[config.history.name])
    first_states = 2 * linear(begun, config.interest_width, 3 * config.interest_width) if config.dien else 0
    return FlopCount(fwd=fwd, bwd=2 * fwd - first_states, training_only=work["auxiliary"])
