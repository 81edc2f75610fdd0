"""The baseline's model FLOPs in closed form, component by component."""

from collections import Counter
from collections.abc import Mapping, Sequence

from mfu_kernels.window_attention.cost import kept_pairs
from mfu_models.common.config import num_context_tokens
from mfu_models.common.flops import FlopCount, check_lengths, linear, mlp, with_backward

from .config import TransformerConfig

DENSE_EXPANSION = 2  # hidden width of the dense features' MLP, in widths


def components(config: TransformerConfig, lengths: Mapping[str, Sequence[int]]) -> Counter[str]:
    """Forward model FLOPs of a batch by component, for ``lengths`` by sequence name (one row a sample)."""
    num_samples = check_lengths(lengths, [config.history.name])
    d = config.width
    rows = [n + 1 for n in lengths[config.history.name]]  # the candidate is the last token of its history
    tokens, pairs = sum(rows), sum(kept_pairs(n, None, config.causal) for n in rows)
    work: Counter[str] = Counter()
    work["dense"] = num_samples * mlp(1, (len(config.schema.dense), DENSE_EXPANSION * d, d))
    work["event_proj"] = linear(tokens, 2 * d, d)
    work["attention"] = config.num_layers * (4 * linear(tokens, d, d) + 4 * pairs * d)
    work["ffn"] = config.num_layers * mlp(tokens, (d, config.expansion * d, d))
    work["head"] = num_samples * mlp(1, ((2 + num_context_tokens(config.schema)) * d, *config.head_mlp, 1))
    return work


def model_flops(config: TransformerConfig, lengths: Mapping[str, Sequence[int]]) -> FlopCount:
    """Forward and backward of a batch."""
    work = components(config, lengths)
    num_samples = len(next(iter(lengths.values())))
    dense = linear(num_samples, len(config.schema.dense), DENSE_EXPANSION * config.width)
    return with_backward(work, dense)
