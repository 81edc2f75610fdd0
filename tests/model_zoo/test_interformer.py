"""InterFormer: its FLOPs three ways, its sizes, and that context and history exchange what its equations say."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mfu_kernels.errors import InvalidArgument
from mfu_models import MODELS
from mfu_models.batch import Batch, SequenceField
from mfu_models.common.config import num_context_tokens
from mfu_models.common.merging import Alignment
from mfu_models.interformer.arches import InteractionArch, SelfGate, SequenceArch, SequenceSummary
from mfu_models.interformer.config import InterFormerConfig
from mfu_models.interformer.flops import components
from mfu_models.interformer.model import InterFormer
from mfu_models.interformer.rows import Rows
from tests.kernels import oracles
from tests.model_zoo import zoo_checks
from tests.model_zoo.zoo_checks import AWKWARD, RECORDED

SPEC = MODELS["interformer"]
THREE = (*AWKWARD.sequences, SequenceField("likes", "engagement"))
CONFIG = InterFormerConfig(
    replace(AWKWARD, sequences=THREE),
    max_length=9,
    width=12,
    num_layers=2,
    num_heads=2,
    num_summary=5,
    num_cls=3,
    num_pma=4,
    num_recent=2,
    cross_rank=8,
    event_width=11,
    interaction_mlp=(13, 6),
    head_mlp=(10, 7),
    num_cross=3,
)
# Rows without any event come first, amid and last; one row has fewer events than `num_recent`.
SAMPLES = ((0, 0, 0), (3, 0, 2), (0, 0, 0), (0, 1, 0), (0, 0, 0))
BUSY = ((7, 3, 5), (2, 6, 4))
CHOICES = [
    *(("dhen", "scale", "sequence_first"), ("dhen", "printed", "parallel")),
    *(("dot", "scale", "parallel"), ("dot", "printed", "sequence_first")),
    *(("dcn", "scale", "parallel"), ("dcn", "printed", "sequence_first")),
]  # any two switches take all their combinations
SETTINGS = {"-".join(c): replace(CONFIG, interaction=c[0], gate=c[1], order=c[2]) for c in CHOICES} | {
    "one-layer": replace(CONFIG, num_layers=1, interaction_mlp=(), head_mlp=(), num_cross=1),
    "one-sequence": replace(CONFIG, schema=replace(AWKWARD, sequences=THREE[:1])),
    "tiny": SPEC.config("tiny"),
}
in_every_setting = pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)


def lengths_of(config: InterFormerConfig, samples: Any = SAMPLES) -> dict[str, list[int]]:
    """Lengths of ``samples`` with as many sequences as the config's schema has."""
    return zoo_checks.lengths_of(config, [sample[: len(config.schema.sequences)] for sample in samples])


@in_every_setting
def test_flops(config: InterFormerConfig) -> None:
    zoo_checks.check_flops(SPEC, config, lengths_of(config, [(0, 0, 0), (2, 1, 3)]))


def test_flops_on_awkward_lengths() -> None:
    zoo_checks.check_flops(SPEC, CONFIG, lengths_of(CONFIG))


def test_flops_of_the_small_size() -> None:
    config = SPEC.config("small")
    zoo_checks.check_flops(SPEC, config, lengths_of(config, [(0, 9), (3, 2)]))


def test_flops_without_any_event() -> None:
    zoo_checks.check_flops(SPEC, CONFIG, lengths_of(CONFIG, [(0, 0, 0)]))


@in_every_setting
def test_gradients(config: InterFormerConfig) -> None:
    zoo_checks.check_gradients(SPEC, config, lengths_of(config))


@in_every_setting
def test_a_sample_does_not_see_the_others(config: InterFormerConfig) -> None:
    zoo_checks.check_alone(SPEC, config, lengths_of(config))


@pytest.mark.parametrize("source", RECORDED)
def test_schemas_of_recorded_data(source: str) -> None:
    config = SPEC.config("tiny", RECORDED[source])
    lengths = lengths_of(config, [(0, 2, 3), (1, 0, 0)])
    zoo_checks.check_flops(SPEC, config, lengths)
    zoo_checks.check_gradients(SPEC, config, lengths)


@pytest.mark.parametrize(
    ("size", "context", "gflops", "dense_params"),
    [
        ("tiny", 9, 0.00182, 0.177e6),
        ("small", 17, 0.031, 2.3e6),
        ("base", 33, 0.347, 21.3e6),
        ("large", 65, 3.517, 183.1e6),
        ("xl", 65, 26.7, 774.2e6),
    ],
)
def test_sizes(size: str, context: int, gflops: float, dense_params: float) -> None:
    config = SPEC.config(size)
    assert num_context_tokens(config.schema) == context
    zoo_checks.check_size(SPEC, config, gflops, dense_params)
    last_digit = 10 ** -len(str(gflops).partition(".")[2])
    assert SPEC.full_length_flops(config).fwd / 1e9 == pytest.approx(gflops, abs=1.5 * last_digit)


def test_the_printed_order_needs_one_summary_of_the_history_more() -> None:
    first, parallel = (
        components(SPEC.config("base", overrides={"order": order}), {"clicks": [256], "impressions": [256]})
        for order in ("sequence_first", "parallel")
    )
    assert parallel["sequence_summary"] == first["sequence_summary"] * 4 // 3
    assert parallel - first == {"sequence_summary": first["sequence_summary"] // 3}
    for size, more in {"tiny": 0.085, "small": 0.074, "base": 0.051, "large": 0.039, "xl": 0.041}.items():
        orders = (SPEC.config(size, overrides={"order": order}) for order in ("sequence_first", "parallel"))
        first_fwd, parallel_fwd = (SPEC.full_length_flops(config).fwd for config in orders)
        assert parallel_fwd / first_fwd - 1 == pytest.approx(more, abs=0.0006)


# How the parts are wired.

Calls = dict[str, tuple[tuple[Any, ...], Any]]


def watch(model: nn.Module, batch: Batch) -> Calls:
    """Arguments and result of each submodule's last call in one forward pass, by its name."""
    calls: Calls = {}
    handles = [
        module.register_forward_hook(lambda _, args, out, name=name: calls.update({name: (args, out)}))
        for name, module in model.named_modules()
    ]
    with torch.no_grad():
        model(batch)
    for handle in handles:
        handle.remove()
    return calls


def built(config: InterFormerConfig = CONFIG, samples: Any = SAMPLES) -> tuple[InterFormer, Batch]:
    model = zoo_checks.build(SPEC, config)
    assert isinstance(model, InterFormer)
    return model, zoo_checks.batch_of(config, lengths_of(config, samples))


def influence(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """bool [out, in]: which of the items of ``x`` (its first axis) each item of the output depends on."""
    jacobian = torch.autograd.functional.jacobian(function, x)
    return jacobian.movedim(x.dim(), 1).flatten(2).abs().amax(dim=-1) > 1e-8


@pytest.mark.parametrize("order", ["sequence_first", "parallel"])
def test_summaries_cross_as_the_order_says(order: str) -> None:
    model, batch = built(replace(CONFIG, order=order, num_layers=3))
    calls, late = watch(model, batch), order == "parallel"
    for layer in range(3):
        (x, s_sum), x_next = calls[f"interactions.{layer}"]
        (s, x_sum, *_), s_next = calls[f"sequences.{layer}"]
        assert x is calls[f"context_summaries.{layer}"][0][0]
        assert x_sum is calls[f"context_summaries.{layer}"][1]
        assert s_sum is calls[f"sequence_summaries.{layer}"][1]
        assert calls[f"sequence_summaries.{layer}"][0][0] is (s if late else s_next)
        assert calls[f"context_summaries.{layer + 1}"][0][0] is x_next
    assert len(model.sequence_summaries) == 3 + late
    last = calls[f"sequence_summaries.{2 + late}"]
    assert last[0][0] is calls["sequences.2"][1]
    ((head_input,), _) = calls["head"]
    assert torch.equal(head_input, torch.cat([calls["context_summaries.3"][1], last[1]], dim=1).flatten(1))


@pytest.mark.parametrize("order", ["sequence_first", "parallel"])
def test_information_flows_both_ways(order: str) -> None:
    """A context field changes its sample's events, and an event changes its sample's X_sum of the next layer."""
    config = replace(CONFIG, order=order)
    model, batch = built(config, BUSY)
    before = watch(model, batch)
    sparse = batch.sparse.clone()
    sparse[0, 2] = (sparse[0, 2] + 1) % 11
    by_context = watch(model, replace(batch, sparse=sparse))
    moved = (before["sequences.0"][1] - by_context["sequences.0"][1]).abs().amax(dim=1) > 1e-5
    rows = before["sequences.0"][0][2].offsets.tolist()
    assert moved[: rows[1]].all() and not moved[rows[1] :].any()
    clicks = batch.sequences["clicks"]
    items = clicks.item_ids.clone()
    items[1] = (items[1] + 1) % 50
    sequences = {**batch.sequences, "clicks": replace(clicks, item_ids=items)}
    by_event = watch(model, replace(batch, sequences=sequences))
    assert torch.equal(before["context_summaries.0"][1], by_event["context_summaries.0"][1])
    moved = (before["context_summaries.1"][1] - by_event["context_summaries.1"][1]).abs().amax(dim=2) > 1e-6
    assert moved[0].all() and not moved[1].any()


def test_the_events_are_merged_by_recency_side_by_side_in_the_schemas_order() -> None:
    model, batch = built()
    ((joined,), _) = watch(model, batch)["merge.mask"]
    parts = [batch.sequences[field.name] for field in THREE]
    alignment = Alignment.of(parts)
    assert joined.shape == (3 + 1, 3 * 11)
    assert torch.equal(joined, alignment.join([model.events.of(part) for part in parts]))
    # Sample 1 has 3 clicks and 2 likes: the first place has a click only, no place has a view.
    assert joined[:3, :11].any(dim=1).all() and not joined[:3, 11:22].any()
    assert joined[:3, 22:].any(dim=1).tolist() == [False, True, True]


def test_cls_tokens_are_the_first_of_x_sum_and_lie_before_each_row_in_the_first_layer_only() -> None:
    model, batch = built()
    calls = watch(model, batch)
    (s, _, rows, _), s_next = calls["sequences.0"]
    events = calls["merge"][1].split([0, 3, 0, 1, 0])
    x_sum = calls["context_summaries.0"][1]
    expected = [torch.cat([cls, own]) for cls, own in zip(x_sum[:, :3], events, strict=True)]
    assert torch.equal(s, torch.cat(expected))
    assert rows.offsets.diff().tolist() == [len(row) for row in expected] and rows.max_length == 6
    assert calls["sequences.1"][0][0] is s_next


# What each part computes.


def some_rows(lengths: list[int], num_cls: int) -> Rows:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return Rows.of(Alignment(offsets, sum(lengths), max(lengths), ()), num_cls)


def test_a_history_is_summed_up_by_cls_pma_and_most_recent_tokens() -> None:
    """Each CLS token stands for itself, PMA sees the whole row, recent tokens are the last events, latest first."""
    summary = SequenceSummary(CONFIG, "reference")
    rows = some_rows([3, 0, 1], num_cls=3)
    s = torch.randn(6 + 3 + 4, 12)
    own_row = torch.tensor([0] * 6 + [1] * 3 + [2] * 4)
    seen = influence(lambda x: summary(x, rows).flatten(0, 1), s).unflatten(0, (3, 9))
    for b, (first, length) in enumerate([(0, 3), (6, 0), (9, 1)]):
        for token in range(9):
            expected = torch.zeros(len(s), dtype=torch.bool)
            if token < 3:
                expected[first + token] = True
            elif token < 7:
                expected = own_row == b
            elif token - 7 < length:
                expected[first + 3 + length - 1 - (token - 7)] = True
            assert torch.equal(seen[b, token], expected), (b, token)
    gate = summary.gate
    for b, token, expected in ((0, 7, s[5]), (0, 8, s[4]), (2, 7, s[12]), (2, 8, torch.zeros(12)), (1, 2, s[8])):
        torch.testing.assert_close(summary(s, rows)[b, token], gate(expected))


@pytest.mark.parametrize("part", ["cls", "pma", "recent"])
def test_each_part_of_a_summary_reaches_the_score(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = built(samples=BUSY)
    before = model(batch)
    for summary in model.sequence_summaries:
        if part == "pma":
            summary.pma.register_forward_hook(lambda *call: torch.zeros_like(call[-1]))
    if part != "pma":
        kept = getattr(Rows, part)
        monkeypatch.setattr(Rows, part, lambda *args: torch.zeros_like(kept(*args)))
    assert ((model(batch) - before).abs() > 1e-5).all()


def test_the_mask_reaches_the_score() -> None:
    model, batch = built(samples=BUSY)
    before = model(batch)
    model.merge.mask.register_forward_hook(lambda *call: torch.ones_like(call[-1]))
    assert ((model(batch) - before).abs() > 1e-5).all()


def test_both_readings_of_the_gate() -> None:
    scale, printed = (SelfGate(replace(CONFIG, gate=gate)) for gate in ("scale", "printed"))
    x = torch.randn(2, 3, 12)
    for gate, expected in (
        (scale, x * torch.sigmoid(x @ scale.linear.weight.T + scale.linear.bias)),
        (printed, torch.sigmoid(x * (x @ printed.linear.weight.T + printed.linear.bias))),
    ):
        torch.testing.assert_close(gate(x), expected)


def test_the_context_summary_is_gated_tokens_of_a_two_layer_mlp() -> None:
    model, batch = built()
    summary = model.context_summaries[1]
    (x,), out = watch(model, batch)["context_summaries.1"]
    mixed = torch.nn.functional.gelu(torch.einsum("mn,bnd->bmd", summary.compress.weight, x))
    torch.testing.assert_close(out, summary.gate(mixed @ summary.linear.weight.T + summary.linear.bias))
    assert out.shape == (5, 5, 12)


@pytest.mark.parametrize("kind", ["dot", "dcn", "dhen"])
def test_an_interaction_is_products_crosses_or_both(kind: str) -> None:
    config = replace(CONFIG, interaction=kind)
    arch = InteractionArch(config, "reference")
    x, s_sum = torch.randn(2, 7, 12), torch.randn(2, 9, 12)
    tokens = torch.cat([x, s_sum], dim=1)
    flat = crossed = tokens.flatten(1)
    for cross in arch.crosses:
        crossed = flat * (crossed @ cross.v.weight.T @ cross.u.weight.T + cross.u.bias) + crossed
    assert len(arch.crosses) == (0 if kind == "dot" else 3)
    products = [(tokens[:, i] * tokens[:, j]).sum(1) / 12**0.5 for i in range(16) for j in range(i, 16)]
    features = {"dot": [flat, *products], "dcn": [crossed], "dhen": [crossed, *products]}[kind]
    hidden = arch.mlp(torch.cat([part.reshape(2, -1) for part in features], dim=1)).reshape(2, 7, 12)
    torch.testing.assert_close(arch(x, s_sum), oracles.layer_norm(hidden + x), rtol=1e-5, atol=1e-5)


def test_the_generated_map_is_the_samples_own() -> None:
    """S' = LN(S + (X_sum W) S), the map's columns being mixtures of X_sum, scaled by 1 / sqrt(d)."""
    arch, rows = SequenceArch(CONFIG, "reference"), some_rows([2, 0, 3], num_cls=3)
    s, x_sum = torch.randn(14, 12), torch.randn(3, 5, 12)
    arch.attention.register_forward_hook(lambda *call: torch.zeros_like(call[-1]))
    expected = []
    for token, b in zip(s, [0] * 5 + [1] * 3 + [2] * 6, strict=True):
        generated = x_sum[b].T @ arch.generate.weight.T  # X_sum W, [d, d]
        expected.append(oracles.layer_norm(oracles.layer_norm(token + generated @ token / 12**0.5)))
    out = arch(s, x_sum, rows, torch.zeros(14, 3))
    torch.testing.assert_close(out, torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_attention_sees_its_whole_row_both_ways_and_no_other() -> None:
    arch, rows = SequenceArch(CONFIG, "reference"), some_rows([2, 0, 3], num_cls=3)
    x_sum, angles = torch.randn(3, 5, 12), torch.rand(14, 3)
    seen = influence(lambda s: arch(s, x_sum, rows, angles), torch.randn(14, 12))
    row = torch.tensor([0] * 5 + [1] * 3 + [2] * 6)
    assert torch.equal(seen, row[:, None] == row)


def test_positions_rotate_each_row_from_its_first_cls_token() -> None:
    model, batch = built()
    (_, _, rows, angles), _ = watch(model, batch)["sequences.1"]
    assert rows.positions().tolist() == [i for n in (3, 6, 3, 4, 3) for i in range(n)]
    assert torch.equal(angles, rows.positions()[:, None] * 10_000 ** (-torch.arange(3) / 3))


def test_the_order_of_events_counts() -> None:
    """Without RoPE a history would be a bag of events, but for the most recent."""
    config = replace(CONFIG, num_recent=1)
    model, batch = built(config, [(6, 0, 0)])
    model, batch = model.double(), replace(batch, dense=batch.dense.double())
    swapped = torch.tensor([1, 0, 2, 3, 4, 5])
    clicks = batch.sequences["clicks"]
    changed = replace(clicks, item_ids=clicks.item_ids[swapped], side_ids=clicks.side_ids[swapped])
    again = replace(batch, sequences={**batch.sequences, "clicks": changed})
    assert (model(batch) - model(again)).abs().max() > 1e-7
    model.theta.zero_()
    torch.testing.assert_close(model(batch), model(again), rtol=1e-10, atol=1e-10)


def test_every_feature_reaches_the_score() -> None:
    model, batch = built(samples=BUSY)
    before = model(batch)

    def differs(changed: Batch) -> bool:
        return bool(((model(changed) - before).abs() > 1e-6).all())

    def other(ids: Tensor, column: int) -> Tensor:
        return torch.cat([ids[:, :column], (ids[:, column : column + 1] + 1) % 7, ids[:, column + 1 :]], dim=1)

    assert differs(replace(batch, dense=batch.dense + 1))
    assert all(differs(replace(batch, sparse=other(batch.sparse, column))) for column in range(6))
    for name, events in batch.sequences.items():
        changes = [replace(events, item_ids=(events.item_ids + 1) % 50)]
        changes += [replace(events, side_ids=other(events.side_ids, column)) for column in range(3)]
        assert all(differs(replace(batch, sequences={**batch.sequences, name: change})) for change in changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 0}, "max_length=0; allowed: at least 1"),
        ({"num_layers": 0}, "num_layers=0; allowed: at least 1"),
        ({"num_pma": 0}, "num_pma=0; allowed: at least 1"),
        ({"num_recent": -1}, "num_recent=-1; allowed: at least 1"),
        ({"num_cross": 0}, "num_cross=0; allowed: at least 1"),
        ({"cross_rank": 0}, "cross_rank=0; allowed: at least 1"),
        ({"num_cls": 6}, "num_cls=6; allowed: at most num_summary=5"),
        ({"num_heads": 4}, r"width=12; allowed: a multiple of 8 \(num_heads=4, even head width for RoPE\)"),
        ({"event_width": 5}, "event_width=5; allowed: at least 6, 2 a side id"),
        ({"interaction_mlp": (8, 0)}, r"interaction_mlp=\(8, 0\); allowed: widths of at least 1"),
        ({"head_mlp": (-1,)}, r"head_mlp=\(-1,\); allowed: widths of at least 1"),
        ({"interaction": "fm"}, "interaction='fm'; allowed: dot, dcn, dhen"),
        ({"gate": "none"}, "gate='none'; allowed: scale, printed"),
        ({"order": "last"}, "order='last'; allowed: sequence_first, parallel"),
        ({"schema": replace(AWKWARD, sequences=())}, "source test has no event sequence; interformer needs one"),
    ],
)
def test_bad_configs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        replace(CONFIG, **change)
