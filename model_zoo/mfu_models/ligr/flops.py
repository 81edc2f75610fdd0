"""LiGR's model FLOPs in closed form, component by component."""

from collections import Counter
from collections.abc import Mapping, Sequence

from mfu_kernels.window_attention.cost import kept_pairs
from mfu_models.common.flops import FlopCount, check_lengths, linear, mlp, with_backward

from .config import LigrConfig


def components(config: LigrConfig, lengths: Mapping[str, Sequence[int]]) -> Counter[str]:
    """Forward model FLOPs of a batch by component, for ``lengths`` by sequence name (one row a request)."""
    num_requests = check_lengths(lengths, [config.history.name])
    d, m, history = config.width, config.num_candidates, lengths[config.history.name]
    tokens = sum(history) + num_requests * m
    # A candidate sees its history and itself.
    pairs = sum(kept_pairs(n, None, causal=True) + m * (n + 1) for n in history)
    work: Counter[str] = Counter()
    work["dense"] = linear(num_requests * m, len(config.schema.dense), d)
    work["attention"] = config.num_layers * (4 * linear(tokens, d, d) + 4 * pairs * d)
    work["ffn"] = config.num_layers * mlp(tokens, (d, config.expansion * d, d))
    work["gate"] = config.num_layers * 2 * linear(tokens, d, d) if config.gate else 0
    work["set_wise"] = num_requests * (4 * linear(m, d, d) + 4 * m * m * d) if config.set_wise else 0
    work["head"] = mlp(num_requests * m, (d, *config.head_mlp, 1))
    return work


def model_flops(config: LigrConfig, lengths: Mapping[str, Sequence[int]]) -> FlopCount:
    """Forward and backward of a batch."""
    work = components(config, lengths)
    return with_backward(work, work["dense"])
