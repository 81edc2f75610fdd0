"""Three independent counts of model FLOPs agree to the FLOP: closed form, count pass, and loops counted by torch.

The loops run each sample alone and unpadded, with plain matrix products that touch kept pairs only. A count that is
wrong makes MFU wrong by as much.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mfu_models import MODELS
from mfu_models.common.flops import FlopCount
from mfu_models.kunlun.config import KunlunConfig, Tower
from mfu_models.kunlun.towers import SeedPooling
from mfu_models.transformer.config import TransformerConfig
from mfubench.measure.count import Count, by_module, count_step
from mfubench.workload.spec import Workload, WorkloadSpec
from mfubench.workload.step import make_optimizers, run_step
from tests.model_zoo.loops import ops_as_loops
from tests.model_zoo.settings import (
    BASES,
    BATCHES,
    CLICKS,
    KUNLUN,
    MIXED,
    SWITCHES,
    TRANSFORMER,
    VIEWS,
    batch_of,
    bce,
    built,
    in_every_setting,
    lengths_of,
    name_of,
    pairwise_changes,
    schema_with,
    spec_of,
)

Samples = Sequence[tuple[int, ...]]
ATTENTIONS = [
    pytest.param(config, id=f"{name_of(config)}-{attention}")
    for config, attention in (
        (KUNLUN, "window"),
        (replace(KUNLUN, attention="full"), "full"),
        (TRANSFORMER, "both_ways"),
        (replace(TRANSFORMER, causal=True), "causal"),
    )
]


@cache
def flops_of_one(config: Any, sample: tuple[int, ...]) -> FlopCount:
    """What FlopCounterMode sees when one sample runs alone through loops."""
    batch, model = batch_of(config, [sample]), built(config)
    with ops_as_loops():
        with FlopCounterMode(display=False) as fwd:
            loss = bce(model(batch), batch)
        with FlopCounterMode(display=False) as bwd:
            loss.backward()
    model.zero_grad(set_to_none=True)
    return FlopCount(fwd.get_total_flops(), bwd.get_total_flops())


def flops_of_all(config: Any, samples: Samples) -> FlopCount:
    """The sum over samples that each run alone."""
    counts = [flops_of_one(config, tuple(sample)) for sample in samples]
    return FlopCount(sum(count.fwd for count in counts), sum(count.bwd for count in counts))


def closed_form(config: Any, samples: Samples) -> FlopCount:
    return spec_of(config).model_flops(config, lengths_of(config, samples))


def count_pass(config: Any, samples: Samples, mode: str = "train") -> Count:
    """The count pass over a whole step on the jagged batch, its optimizer included."""
    model: nn.Module = spec_of(config).build(config, "reference")
    workload = Workload(
        spec=WorkloadSpec(name_of(config), mode=mode),
        description={},
        device=torch.device("cpu"),
        dtype="fp32",
        module=model,
        inputs=[batch_of(config, samples)],
        num_samples=[len(samples)],
        forward=lambda module, batch: module(batch),
        loss=bce,
        to_device=lambda batch: batch,
        optimizers=make_optimizers(model) if mode == "train" else [],
    )
    return count_step(model, lambda tracker: run_step(workload, 0, phase=tracker.phase))


def counted(count: Count) -> FlopCount:
    return FlopCount(count.total("fwd").model, count.total("bwd").model)


def assert_counts_agree(config: Any, samples: Samples) -> None:
    expected = flops_of_all(config, samples)
    assert closed_form(config, samples) == expected, "closed form"
    assert counted(count_pass(config, samples)) == expected, "count pass"


@pytest.mark.parametrize("name", SWITCHES)
def test_the_settings_cover_every_pair_of_switches(name: str) -> None:
    """Without this, two switches that break each other could go untested."""
    chosen = list(pairwise_changes(SWITCHES[name]))
    for first in SWITCHES[name]:
        assert {first} in [set(change) for change in chosen]
        for second in set(SWITCHES[name]) - {first}:
            assert {(first in change, second in change) for change in chosen} == {
                (a, b) for a in (False, True) for b in (False, True)
            }


@in_every_setting
def test_counts_agree_in_every_setting(config: Any) -> None:
    """A switch whose work the closed form or the count pass misses, or counts where it does not run."""
    assert_counts_agree(config, MIXED)


@pytest.mark.parametrize("config", ATTENTIONS)
@pytest.mark.parametrize("samples", BATCHES[1:], ids=str)
def test_counts_agree_on_awkward_lengths(config: Any, samples: Samples) -> None:
    """An edge of the kept pairs, or a row without events, is miscounted."""
    assert_counts_agree(config, samples)


@pytest.mark.parametrize(("size", "samples"), [("tiny", ((32, 32), (0, 5), (9, 0))), ("small", ((33, 17), (0, 1)))])
@pytest.mark.parametrize("name", BASES)
def test_counts_agree_at_real_sizes(name: str, size: str, samples: Samples) -> None:
    """A size whose own widths or depths break the closed form."""
    assert_counts_agree(MODELS[name].config(size), samples)


small = st.integers(1, 4)


@st.composite
def towers(draw: st.DrawFn, num_layers: int) -> Tower:
    heads = draw(st.integers(1, 3))
    return Tower(
        max_length=6,
        width=2 * heads * draw(st.integers(1, 3)),
        num_heads=heads,
        num_tokens=draw(small),
        num_layers=draw(st.integers(1, num_layers)),
        window=draw(small),
    )


def switches(draw: st.DrawFn, name: str) -> dict[str, Any]:
    return {key: value for key, value in SWITCHES[name].items() if draw(st.booleans())}


def schemas() -> st.SearchStrategy[Any]:
    kinds = ((CLICKS,), (VIEWS,), (CLICKS, VIEWS), (replace(VIEWS, name="seen"), CLICKS, VIEWS))
    sides = st.integers(1, 3)
    return st.builds(lambda kind, num_sides: schema_with(*kind, num_sides=num_sides), st.sampled_from(kinds), sides)


@st.composite
def kunluns(draw: st.DrawFn) -> KunlunConfig:
    num_layers, num_summary = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    return KunlunConfig(
        draw(schemas()),
        width=draw(st.integers(1, 9)),
        num_layers=num_layers,
        num_summary=num_summary,
        kv_width=draw(small),
        num_experts=draw(st.integers(1, (num_summary + 1) // 2)),
        fm_rank=draw(small),
        expert_mlp=tuple(draw(st.lists(small, max_size=2))),
        head_mlp=tuple(draw(st.lists(small, max_size=2))),
        engagement=draw(towers(num_layers)),
        exposure=draw(towers(num_layers)),
        seeds_per_token=draw(st.integers(2, 3)),
        kron_rank=draw(small),
        **switches(draw, "kunlun"),
    )


@st.composite
def transformers(draw: st.DrawFn) -> TransformerConfig:
    heads = draw(st.integers(1, 3))
    return TransformerConfig(
        draw(schemas()),
        max_length=6,
        width=6 * heads * draw(st.integers(1, 2)),
        num_layers=draw(small),
        num_heads=heads,
        expansion=draw(small),
        head_mlp=tuple(draw(st.lists(small, max_size=2))),
        **switches(draw, "transformer"),
    )


def assert_counts_agree_on(config: Any, draw: Callable[[Any], Any]) -> None:
    sample = st.tuples(*(st.integers(0, 6) for _ in config.schema.sequences))
    assert_counts_agree(config, draw(st.lists(sample, min_size=1, max_size=2)))


few_examples = hypothesis_settings(max_examples=8, deadline=None, derandomize=True, database=None)


@few_examples
@given(kunluns(), st.data())
def test_counts_agree_on_any_kunlun(config: KunlunConfig, data: st.DataObject) -> None:
    """A term of the closed form has the wrong dimension in it, or is right for the usual shapes only."""
    assert_counts_agree_on(config, data.draw)


@few_examples
@given(transformers(), st.data())
def test_counts_agree_on_any_transformer(config: TransformerConfig, data: st.DataObject) -> None:
    """As for kunlun."""
    assert_counts_agree_on(config, data.draw)


@pytest.mark.parametrize("config", ATTENTIONS)
def test_rows_by_module_sum_to_the_total_and_nothing_is_unknown(config: Any) -> None:
    """The table by module would not explain the total, or work would be missing from both."""
    count = count_pass(config, MIXED)
    rows = by_module(count.work)
    for direction, flops in (("fwd", counted(count).fwd), ("bwd", counted(count).bwd)):
        assert sum(row[direction].model for row in rows.values()) == flops > 0
    assert count.unknown_ops == set()
    modules = {name for name, _ in built(config).named_modules()}
    assert {name for name, row in rows.items() if row["fwd"].model + row["bwd"].model} <= modules


@in_every_setting
def test_inference_needs_the_forward_and_nothing_else(config: Any) -> None:
    """A step without gradients would be credited with a backward, or with another forward than training."""
    assert counted(count_pass(config, MIXED, mode="infer")) == FlopCount(closed_form(config, MIXED).fwd, 0)


@in_every_setting
def test_batches_need_what_their_samples_need(config: Any) -> None:
    """Model FLOPs would depend on how samples are batched."""
    alone = [closed_form(config, [sample]) for sample in MIXED]
    assert closed_form(config, MIXED) == FlopCount(sum(c.fwd for c in alone), sum(c.bwd for c in alone))


# Forward GFLOP of a sample with every sequence full, worked out when the sizes were chosen, with the digits kept then
# (the base transformer has since moved by one in its last).
LADDER = {
    "transformer": {"tiny": 0.00114, "small": 0.037, "base": 1.157, "large": 6.629, "xl": 70.2},
    "kunlun": {
        "tiny": 0.00182,
        "small": 0.0267,
        "base": 0.2204,
        "large": 2.497,
        "large_plus": 10.652,
        "xl": 46.888,
        "xxl": 141.52,
    },
}
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no CompSkip": {"comp_skip": False},
    "full attention": {"attention": "full"},
    "neither": {"comp_skip": False, "attention": "full"},
    "PMA": {"pooling": "pma"},
}
VARIANT_GFLOP = {
    "base": (0.2204, 0.3400, 0.2557, 0.4105, 0.1835),
    "large": (2.497, 3.993, 3.156, 5.483, 2.050),
    "large_plus": (10.652, 18.516, 14.728, 26.667, 9.555),
    "xl": (46.888, 82.598, 61.249, 111.321, 42.626),
    "xxl": (141.52, 242.95, 180.73, 321.36, 129.24),
}


def gflop(name: str, size: str, **overrides: Any) -> float:
    spec = MODELS[name]
    return spec.full_length_flops(spec.config(size, overrides=overrides)).fwd / 1e9


@pytest.mark.parametrize("name", LADDER)
def test_the_ladder_is_the_one_that_was_planned(name: str) -> None:
    """A size is no longer the model that it was chosen to be."""
    assert {size: gflop(name, size) for size in MODELS[name].sizes} == pytest.approx(LADDER[name], rel=0.01)


@pytest.mark.parametrize("size", VARIANT_GFLOP)
def test_variants_are_as_they_were_planned(size: str) -> None:
    """A switch takes away, or adds, other work than it should."""
    variants = [gflop("kunlun", size, **overrides) for overrides in VARIANTS.values()]
    assert variants == pytest.approx(VARIANT_GFLOP[size], rel=1e-3)


@pytest.mark.parametrize(
    ("size", "switch", "percent"),
    [
        ("large_plus", "comp_skip", -42.5),
        ("xl", "comp_skip", -43.2),
        ("large", "attention", -27.2),
        ("large_plus", "attention", -30.6),
    ],
)
def test_switches_save_what_the_paper_says(size: str, switch: str, percent: float) -> None:
    """CompSkip with the window on (paper: -43.1 %), the window with CompSkip off (-29.5 %), to the printed digit."""
    others = {"comp_skip": {}, "attention": {"comp_skip": False}}[switch]
    without = {"comp_skip": {"comp_skip": False}, "attention": {"attention": "full"}}[switch]
    change = gflop("kunlun", size, **others) / gflop("kunlun", size, **others | without) - 1
    assert round(100 * change, 1) == percent


@pytest.mark.parametrize("config", [KUNLUN, MODELS["kunlun"].config("tiny"), MODELS["kunlun"].config("base")])
def test_sum_kron_linear_has_few_parameters(config: KunlunConfig) -> None:
    """k (S T + D²) parameters, not (S D) (T D): the point of SumKronLinear."""
    model = spec_of(config).build(config)
    for sequence, tower in config.sequence_towers:
        pools = [m for m in model.get_submodule(f"towers.{sequence.name}").modules() if isinstance(m, SeedPooling)]
        assert len(pools) == (tower.num_layers + 1) // 2 + 1
        for pool in pools:
            seeds = config.seeds_per_token * tower.num_tokens
            expected = config.kron_rank * (seeds * tower.num_tokens + tower.width**2)
            assert pool.z is not None and pool.w is not None
            assert pool.z.numel() + pool.w.numel() == expected


def test_lengths_that_make_no_batch_are_refused() -> None:
    """A sequence that was forgotten would count as no work."""
    for lengths in ({"clicks": [1]}, {"clicks": [1], "views": [1, 2]}, {}):
        with pytest.raises(ValueError, match="lengths must give one row a sample"):
            MODELS["kunlun"].model_flops(KUNLUN, lengths)
