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
    candidates = num_requests * m
    tokens, full_layers = sum(history) + candidates, config.num_layers - 1
    keys, rows = config.num_layers * tokens, full_layers * tokens + candidates  # the last layer: candidates' rows alone
    past = sum(kept_pairs(n, None, causal=True) for n in history)
    seen = sum(m * (n + 1) for n in history)  # a candidate sees its history and itself
    work: Counter[str] = Counter()
    work["dense"] = linear(candidates, len(config.schema.dense), d)
    work["attention"] = 2 * linear(rows, d, d) + 2 * linear(keys, d, d)
    work["attention"] += 4 * (full_layers * past + config.num_layers * seen) * d
    work["ffn"] = mlp(rows, (d, config.expansion * d, d))
    work["gate"] = 2 * linear(rows, d, d) if config.gate else 0
    work["set_wise"] = num_requests * (4 * linear(m, d, d) + 4 * m * m * d) if config.set_wise else 0
    work["head"] = mlp(candidates, (d, *config.head_mlp, 1))
    return work


def model_flops(config: LigrConfig, lengths: Mapping[str, Sequence[int]]) -> FlopCount:
    """Forward and backward of a batch."""
    work = components(config, lengths)
    return with_backward(work, work["dense"])
