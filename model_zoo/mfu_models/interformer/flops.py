"""InterFormer's model FLOPs in closed form, component by component."""

from collections import Counter
from collections.abc import Mapping, Sequence

from mfu_kernels.window_attention.cost import kept_pairs
from mfu_models.common.config import num_context_tokens
from mfu_models.common.flops import FlopCount, check_lengths, linear, mlp, with_backward
from mfu_models.common.merging import merged_lengths

from .config import InterFormerConfig

DENSE_EXPANSION = 2  # hidden width of the dense features' MLP, in widths


def components(config: InterFormerConfig, lengths: Mapping[str, Sequence[int]]) -> Counter[str]:
    """Forward model FLOPs of a batch by component, for ``lengths`` by sequence name (one row a sample)."""
    names = [sequence.name for sequence in config.schema.sequences]
    num_samples, d = check_lengths(lengths, names), config.width
    merged = merged_lengths([lengths[name] for name in names])
    rows = [config.num_cls + n for n in merged]
    joined = len(names) * config.event_width
    head_in = (config.num_summary + config.num_sequence_summary) * d
    work: Counter[str] = Counter()
    work["dense"] = num_samples * mlp(1, (len(config.schema.dense), DENSE_EXPANSION * d, d))
    work["merge"] = mlp(sum(merged), (joined, joined, d))
    work["context_summary"] = (config.num_layers + 1) * num_samples * _context_summary(config)
    work["sequence_summary"] = config.num_sequence_summaries * _sequence_summary(config, rows)
    work["interaction"] = config.num_layers * num_samples * _interaction(config)
    work["sequence"] = config.num_layers * _sequence(config, rows)
    work["head"] = num_samples * mlp(1, (head_in, *config.head_mlp, 1))
    return work


def model_flops(config: InterFormerConfig, lengths: Mapping[str, Sequence[int]]) -> FlopCount:
    """Forward and backward of a batch."""
    work = components(config, lengths)
    num_samples = len(next(iter(lengths.values())))
    dense = linear(num_samples, len(config.schema.dense), DENSE_EXPANSION * config.width)
    return with_backward(work, dense)


def _context_summary(config: InterFormerConfig) -> int:
    """Tokens mixed to n_sum, a linear map of each, and the gate's."""
    d, tokens = config.width, config.num_summary
    return linear(d, num_context_tokens(config.schema), tokens) + mlp(tokens, (d, d, d))


def _sequence_summary(config: InterFormerConfig, rows: Sequence[int]) -> int:
    """Learned queries over each row, and the gate on all tokens of S_sum."""
    d, queries = config.width, config.num_pma
    attend = linear(sum(rows), d, 2 * d) + 4 * sum(rows) * queries * d
    return attend + len(rows) * (2 * linear(queries, d, d) + linear(config.num_sequence_summary, d, d))


def _interaction(config: InterFormerConfig) -> int:
    tokens, d = config.num_interaction_tokens, config.width
    dot = 0 if config.interaction == "dcn" else linear(tokens, d, tokens)
    cross = 0 if config.interaction == "dot" else mlp(1, (tokens * d, config.cross_rank, tokens * d))
    return dot + config.num_cross * cross + mlp(1, config.interaction_widths)


def _sequence(config: InterFormerConfig, rows: Sequence[int]) -> int:
    """The generated matrix [d, d] and its use, then attention over whole rows."""
    d = config.width
    pairs = sum(kept_pairs(n, None, causal=False) for n in rows)
    return len(rows) * linear(d, config.num_summary, d) + 5 * linear(sum(rows), d, d) + 4 * pairs * d
