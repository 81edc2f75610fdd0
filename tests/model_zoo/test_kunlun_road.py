"""The road from InterFormer's parts to Kunlun: one switch a step; and the merged sequences that it starts from."""

from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from mfu_models import MODELS
from mfu_models.batch import EventSequence, SequenceField
from mfu_models.common.merging import Alignment
from mfu_models.kunlun.config import KunlunConfig, Tower, max_lengths
from mfu_models.kunlun.flops import components
from mfu_models.kunlun.road import road
from tests.model_zoo import zoo_checks
from tests.model_zoo.zoo_checks import AWKWARD, RECORDED

SPEC = MODELS["kunlun"]
THREE = (*AWKWARD.sequences, SequenceField("likes", "engagement"))
CONFIG = KunlunConfig(
    AWKWARD,
    width=20,
    num_layers=2,
    num_summary=4,
    kv_width=7,
    num_experts=2,
    fm_rank=5,
    expert_mlp=(13, 6),
    head_mlp=(9, 8),
    engagement=Tower(max_length=9, width=8, num_heads=2, num_tokens=3, num_layers=2, window=1),
    exposure=Tower(max_length=11, width=6, num_heads=1, num_tokens=2, num_layers=1, window=2),
    kron_rank=3,
)
MERGED = replace(CONFIG, towers=False)
MERGED_THREE = replace(MERGED, schema=replace(AWKWARD, sequences=THREE))
OFF = {
    "ffn": "pffn",
    "pooling": "pma",
    "attention": "full",
    "comp_skip": False,
    "event_personalization": False,
    "interaction_experts": False,
    "rote": False,
    "qo_proj": True,
    "summary_gate": True,
    "gdpa_scale": "max_length",
    "rote_gap": "request",
}
SAMPLES = ((0, 0, 0), (3, 1, 2), (0, 0, 0), (0, 4, 1), (0, 0, 0))
SETTINGS = (
    {f"road-{name}": config for name, config in road(CONFIG).items()}
    | {f"merged-{name}={value}": replace(MERGED, **{name: value}) for name, value in OFF.items()}
    | {"merged": MERGED, "merged-three": MERGED_THREE}
    | {"merged-one": replace(MERGED, schema=replace(AWKWARD, sequences=THREE[:1]))}
)
in_every_setting = pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)


def lengths_of(config: KunlunConfig, samples: Any = SAMPLES) -> dict[str, list[int]]:
    return zoo_checks.lengths_of(config, [sample[: len(config.schema.sequences)] for sample in samples])


def changes(before: KunlunConfig, after: KunlunConfig) -> set[str]:
    return {field.name for field in fields(before) if getattr(before, field.name) != getattr(after, field.name)}


@pytest.mark.parametrize("size", SPEC.sizes)
def test_each_step_turns_one_switch_and_the_last_is_kunlun(size: str) -> None:
    kunlun = SPEC.config(size)
    steps = road(kunlun)
    switches = ["towers", "ffn", "pooling", "rote", "attention", "comp_skip", "event_personalization"]
    configs = list(steps.values())
    turned = [changes(before, after) for before, after in pairwise(configs)]
    assert turned == [{switch} for switch in (*switches, "interaction_experts")]
    assert configs[-1] == kunlun
    assert list(steps) == [
        *("interformer", "+towers", "+gdpa", "+hsp", "+rote", "+window", "+comp_skip", "+event_personalization"),
        "+experts",
    ]


def test_the_road_keeps_what_is_no_part_of_it() -> None:
    kunlun = replace(CONFIG, activation="silu", summary_gate=True)
    assert all(step.activation == "silu" and step.summary_gate for step in road(kunlun).values())


@in_every_setting
def test_flops(config: KunlunConfig) -> None:
    zoo_checks.check_flops(SPEC, config, lengths_of(config, [(0, 0, 0), (2, 1, 3)]))


@in_every_setting
def test_gradients(config: KunlunConfig) -> None:
    zoo_checks.check_gradients(SPEC, config, lengths_of(config, [(3, 2, 4), (0, 0, 0), (1, 4, 0)]))


@in_every_setting
def test_a_sample_does_not_see_the_others(config: KunlunConfig) -> None:
    zoo_checks.check_alone(SPEC, config, lengths_of(config))


@pytest.mark.parametrize("source", RECORDED)
def test_schemas_of_recorded_data(source: str) -> None:
    config = SPEC.config("tiny", RECORDED[source], {"towers": False})
    zoo_checks.check_flops(SPEC, config, lengths_of(config, [(0, 2, 3), (3, 0, 0)]))


def test_merged_sequences_run_through_one_tower_of_the_engagement_widths() -> None:
    model = zoo_checks.build(SPEC, MERGED_THREE)
    assert list(model.towers) == ["clicks+views+likes"]
    tower = model.towers["clicks+views+likes"]
    assert tower.merge.mask.weight.shape == (24, 24) and tower.merge.compress.weight.shape == (8, 24)
    assert len(tower.layers) == 2 and tower.final_pool.seeds.shape == (12, 8)
    assert MERGED.num_pooled_tokens == 3 and max_lengths(MERGED) == {"clicks": 9, "views": 9}
    assert MERGED_THREE.event_towers == ((("clicks", "views", "likes"), CONFIG.engagement),)
    separate = zoo_checks.build(SPEC, CONFIG)
    assert {name: tower.merge for name, tower in separate.towers.items()} == {"clicks": None, "views": None}
    assert max_lengths(CONFIG) == {"clicks": 9, "views": 11} and CONFIG.num_pooled_tokens == 5


def state_of(config: KunlunConfig, samples: Any) -> tuple[Any, list[EventSequence], Any]:
    """The only tower, its sequences, and its state before the first layer."""
    model, batch = zoo_checks.build(SPEC, config), zoo_checks.batch_of(config, lengths_of(config, samples))
    (tower,) = model.towers.values()
    sequences = [batch.sequences[field.name] for field in THREE]
    return tower, sequences, tower(sequences, batch.times_ms)


def test_a_tower_of_merged_sequences_starts_from_their_mask_net() -> None:
    tower, sequences, state = state_of(MERGED_THREE, SAMPLES)
    rows = Alignment.of(sequences)
    joined = rows.join([tower.project(tower.embedding.of(sequence)) for sequence in sequences])
    assert joined.shape == (3 + 4, 3 * 8)
    assert torch.equal(state.x, tower.merge(joined))
    assert state.offsets.tolist() == [0, 0, 3, 3, 7, 7] and state.max_length == 4


@pytest.mark.parametrize("gap", ["adjacent", "request"])
def test_rotation_of_merged_events_is_by_the_latest_of_each_place(gap: str) -> None:
    tower, sequences, state = state_of(replace(MERGED_THREE, rote_gap=gap), SAMPLES)
    rows = Alignment.of(sequences)
    times = rows.latest([sequence.times_ms for sequence in sequences])
    assert torch.equal(state.angles, tower.angles(rows.offsets, times, torch.full((5,), 86_400_000 * 19_000)))
    assert state.angles.isfinite().all() and (state.angles >= 0).all()


def test_every_event_of_every_sequence_reaches_the_score() -> None:
    config = MERGED_THREE
    model, batch = zoo_checks.build(SPEC, config), zoo_checks.batch_of(config, lengths_of(config, [(3, 2, 4)]))
    for name, sequence in batch.sequences.items():
        for event in range(len(sequence.item_ids)):

            def other(ids: Tensor, event: int = event) -> Tensor:
                return ids.index_put((torch.tensor([event]),), (ids[event] + 1) % 7)

            changed = replace(sequence, item_ids=other(sequence.item_ids))
            again = replace(batch, sequences={**batch.sequences, name: changed})
            assert (model(again) - model(batch)).abs().max() > 1e-6


def test_merging_saves_most_of_the_towers_work() -> None:
    """Separate towers of the same widths work on every sequence; a merged one on the longest alone."""
    config = SPEC.config("base", overrides={"event_personalization": False})
    lengths = {"clicks": [256, 40], "impressions": [256, 100]}
    separate, merged = components(config, lengths), components(replace(config, towers=False), lengths)
    assert merged["attention"] == components(config, {"clicks": [256, 100], "impressions": [0, 0]})["attention"]
    assert merged["event_proj"] == separate["event_proj"]
    assert merged["merge"] == 2 * 356 * (256 * 256 + 256 * 128)
