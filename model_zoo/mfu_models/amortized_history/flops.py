"""Model FLOPs of LinkedIn's amortised history modelling in closed form, component by component."""

from collections import Counter
from collections.abc import Mapping, Sequence

from mfu_kernels.window_attention.cost import kept_pairs
from mfu_models.common.flops import FlopCount, check_lengths, linear, mlp, with_backward

from .config import AmortizedHistoryConfig


def components(config: AmortizedHistoryConfig, lengths: Mapping[str, Sequence[int]]) -> Counter[str]:
    """Forward model FLOPs of a batch by component, for ``lengths`` by sequence name (one row a request)."""
    num_requests = check_lengths(lengths, [config.history.name])
    d, m, width, history = config.width, config.num_candidates, config.token_width, lengths[config.history.name]
    events, pairs = sum(history), sum(kept_pairs(n, None, config.causal) for n in history)
    if config.mixing == "append":
        queries, keys, pairs = events + num_requests * m, events, pairs + events * m
    else:
        queries, keys, pairs = events * m, events * m, pairs * m
    work: Counter[str] = Counter()
    work["dense"] = linear(num_requests * m, len(config.schema.dense), d)
    projections = 2 * linear(queries, width, width) + 2 * linear(keys, width, width)
    work["attention"] = config.num_layers * (projections + 4 * pairs * width)
    work["ffn"] = config.num_layers * mlp(queries, (width, config.expansion * width, width))
    work["head"] = mlp(num_requests * m, (config.head_mlp_in, *config.head_mlp, 1))
    return work


def model_flops(config: AmortizedHistoryConfig, lengths: Mapping[str, Sequence[int]]) -> FlopCount:
    """Forward and backward of a batch."""
    work = components(config, lengths)
    return with_backward(work, work["dense"])
