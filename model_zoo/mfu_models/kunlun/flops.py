"""Kunlun's model FLOPs in closed form, component by component."""

from collections import Counter
from collections.abc import Mapping, Sequence

from mfu_kernels.window_attention.cost import kept_pairs
from mfu_models.common.config import num_context_tokens
from mfu_models.common.flops import FlopCount, check_lengths, linear, mlp, with_backward
from mfu_models.common.merging import merged_lengths

from .config import KunlunConfig, Tower

DENSE_EXPANSION = 2  # hidden width of the dense features' MLP, in widths


def components(config: KunlunConfig, lengths: Mapping[str, Sequence[int]]) -> Counter[str]:
    """Forward model FLOPs of a batch by component, for ``lengths`` by sequence name (one row a sample)."""
    num_samples = check_lengths(lengths, (sequence.name for sequence in config.schema.sequences))
    d = config.width
    work: Counter[str] = Counter()
    work["dense"] = num_samples * mlp(1, (len(config.schema.dense), DENSE_EXPANSION * d, d))
    tokens = num_context_tokens(config.schema)
    for _ in range(config.num_layers):
        work["weight_gen"] += num_samples * _weight_gen(config, tokens)
        work["interaction"] += num_samples * sum(sum(block.flops().values()) for block in config.expert_blocks)
        tokens = config.num_interaction_tokens
    head_in = (tokens + config.num_pooled_tokens) * d
    work["head"] = num_samples * mlp(1, (head_in, *config.head_mlp, 1))
    for names, tower in config.event_towers:
        work.update(_tower(config, tower, [lengths[name] for name in names]))
    return work


def model_flops(config: KunlunConfig, lengths: Mapping[str, Sequence[int]]) -> FlopCount:
    """Forward and backward of a batch."""
    work = components(config, lengths)
    num_samples = len(next(iter(lengths.values())))
    dense = linear(num_samples, len(config.schema.dense), DENSE_EXPANSION * config.width)
    return with_backward(work, dense)


def _weight_gen(config: KunlunConfig, tokens: int) -> int:
    d, summary = config.width, config.num_summary
    gate = linear(summary, d, d) if config.summary_gate else 0
    return 2 * tokens * summary * d + mlp(summary, (d, d, d)) + gate


def _tower(config: KunlunConfig, tower: Tower, sequences: Sequence[Sequence[int]]) -> Counter[str]:
    rows = merged_lengths(sequences)
    d, events, num_samples = tower.width, sum(rows), len(rows)
    pairs = sum(kept_pairs(n, tower.window if config.attention == "window" else None, causal=False) for n in rows)
    work: Counter[str] = Counter()
    work["event_proj"] = linear(sum(map(sum, sequences)), (1 + len(config.schema.sides)) * d, d)
    if not config.towers:
        joined = len(sequences) * d
        work["merge"] = mlp(events, (joined, joined, d))
    for layer in range(tower.num_layers):
        even = layer % 2 == 0
        if even or not config.comp_skip:
            work["ffn"] += _ffn(config, tower, events, num_samples)
            work["pooling"] += _pooling(config, tower, events, num_samples)
        if not even or not config.comp_skip:
            work["attention"] += 4 * linear(events, d, d) + 4 * pairs * d
    work["pooling"] += _pooling(config, tower, events, num_samples)  # once more when the tower ends
    return work


def _ffn(config: KunlunConfig, tower: Tower, events: int, num_samples: int) -> int:
    d, hidden = tower.width, config.kv_width if config.ffn == "gdpa" else tower.width
    mix = 2 * config.num_summary * hidden * config.width
    if config.ffn == "pffn":
        return num_samples * (mix + linear(hidden, config.width, d)) + linear(events, d, d)
    generate = mix + 2 * linear(hidden, config.width, d)
    projections = 2 * linear(events, d, d) if config.qo_proj else 0
    return num_samples * generate + 4 * events * hidden * d + projections


def _pooling(config: KunlunConfig, tower: Tower, events: int, num_samples: int) -> int:
    d, tokens = tower.width, tower.num_tokens
    queries = tokens * (config.seeds_per_token if config.pooling == "hsp" else 1)
    attend = 2 * linear(events, d, d) + 4 * events * queries * d + num_samples * 2 * linear(queries, d, d)
    kron = config.kron_rank * (2 * tokens * queries * d + linear(tokens, d, d)) if config.pooling == "hsp" else 0
    widen = linear(tokens, d, config.width) if d != config.width else 0
    return attend + num_samples * (kron + widen)
