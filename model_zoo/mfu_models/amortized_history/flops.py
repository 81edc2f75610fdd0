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
    events, past = sum(history), sum(kept_pairs(n, None, config.causal) for n in history)
    candidates, layers = num_requests * m, config.num_layers
    if config.mixing == "append":  # the last layer has no rows but the candidates'
        rows, keys = (layers - 1) * events + layers * candidates, layers * events
        pairs = (layers - 1) * past + layers * events * m
    else:
        rows = keys = layers * events * m
        pairs = layers * past * m
    work: Counter[str] = Counter()
    work["dense"] = linear(candidates, len(config.schema.dense), d)
    work["attention"] = 2 * linear(rows, width, width) + 2 * linear(keys, width, width) + 4 * pairs * width
    work["ffn"] = mlp(rows, (width, config.expansion * width, width))
    work["head"] = mlp(candidates, (config.head_mlp_in, *config.head_mlp, 1))
    return work


def model_flops(config: AmortizedHistoryConfig, lengths: Mapping[str, Sequence[int]]) -> FlopCount:
    """Forward and backward of a batch."""
    work = components(config, lengths)
    return with_backward(work, work["dense"])
