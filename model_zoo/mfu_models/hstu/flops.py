"""HSTU's model FLOPs in closed form, component by component."""

from collections import Counter
from collections.abc import Mapping, Sequence

from mfu_kernels.hstu_attention.cost import kept_pairs
from mfu_models.common.flops import FlopCount, check_lengths, linear, mlp, with_backward

from .config import HstuConfig


def components(config: HstuConfig, lengths: Mapping[str, Sequence[int]]) -> Counter[str]:
    """Forward model FLOPs of a batch by component, for ``lengths`` by sequence name (one row a request)."""
    num_impressions = check_lengths(lengths, [config.history.name]) * config.num_candidates
    d, history = config.width, lengths[config.history.name]
    full = [n + config.num_candidates for n in history]
    tail = [min(n, config.tail_tokens - 1) + config.num_candidates for n in history]
    work: Counter[str] = Counter()
    work["dense"] = linear(num_impressions, len(config.schema.dense), d)
    work["input"] = linear(sum(full), d, d)
    for layer in range(config.num_layers):
        rows = full if layer < config.truncated_after else tail
        read = sum(rows) if layer + 1 < config.num_layers else num_impressions
        work.update(_layer(config, rows, read))
    work["head"] = mlp(num_impressions, (d, *config.head_mlp, 1))
    return work


def model_flops(config: HstuConfig, lengths: Mapping[str, Sequence[int]]) -> FlopCount:
    """Forward and backward of a batch."""
    work = components(config, lengths)
    return with_backward(work, work["dense"])


def _layer(config: HstuConfig, rows: Sequence[int], read: int) -> Counter[str]:
    """One layer over rows of this many tokens, the candidates included, of which ``read`` tokens are read after it."""
    scores, values = config.num_heads * config.qk_width, config.num_heads * config.v_width
    first = config.first_keys if config.semi_local else 0
    pairs = sum(kept_pairs(n, config.window, first, config.num_candidates) for n in rows)
    work: Counter[str] = Counter()
    work["uvqk"] = linear(read + sum(rows), config.width, scores + values)
    work["attention"] = 2 * pairs * (scores + values)
    work["output"] = linear(read, values * (3 if config.concat_ux else 1), config.width)
    return work
