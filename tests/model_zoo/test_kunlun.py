"""Each mechanism of Kunlun is there: a test fails when its mechanism is taken out or done otherwise."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mfu_kernels.jagged import trusted_offsets
from mfu_models.batch import Batch
from mfu_models.kunlun.config import KunlunConfig
from mfu_models.kunlun.model import Interaction, WeightGen, dense_shares
from mfu_models.kunlun.towers import SeedPooling, TowerLayer
from tests.kernels import oracles
from tests.kernels.cases import offsets_of
from tests.kernels.running import COMPILES
from tests.model_zoo.settings import KUNLUN, batch_of, built
from tests.model_zoo.watching import SAMPLES, assert_close, assert_differ, change, influence, moved, scores, watch

DAY_MS = 86_400_000
pytestmark = pytest.mark.usefixtures("in_fp64")

# How the parts are wired.


def pooling_read_by(config: KunlunConfig, depth: int, layer: int) -> str:
    """The pooling, within its tower, whose H_e ``layer`` reads; the head reads as one layer more."""
    if layer >= depth:
        return "final_pool"
    return f"layers.{layer - layer % 2 if config.comp_skip else layer}.pool"


@pytest.mark.parametrize("comp_skip", [True, False])
def test_each_layer_and_the_head_read_the_pooling_that_is_theirs(comp_skip: bool) -> None:
    """Odd layers would pool again, or reuse nothing; a tower that ended would not be pooled once more and kept."""
    config = replace(KUNLUN, num_layers=5, comp_skip=comp_skip)
    model = built(config)
    calls = watch(model, batch_of(config, SAMPLES))
    read = [
        [
            f"towers.{sequence.name}.{pooling_read_by(config, tower.num_layers, layer)}"
            for sequence, tower in config.sequence_towers
        ]
        for layer in range(config.num_layers + 1)
    ]
    pools = {name for name, module in model.named_modules() if isinstance(module, SeedPooling)}
    assert pools == {name for row in read for name in row}
    assert all(len(calls[name]) == 1 for name in pools)
    for layer in range(config.num_layers):
        summary = calls[f"weight_gens.{layer}"][0][1]
        parts, _ = calls[f"interactions.{layer}"][0]
        for part, made in zip(parts, [summary, *(calls[name][0][1] for name in read[layer])], strict=True):
            assert part is made
    last = calls[f"interactions.{config.num_layers - 1}"][0][1]
    ((head_input,), _) = calls["head"][0]
    assert torch.equal(head_input, torch.cat([last, *(calls[name][0][1] for name in read[-1])], dim=1).flatten(1))


@pytest.mark.parametrize("comp_skip", [True, False])
def test_the_parts_follow_each_other_as_in_the_equations(comp_skip: bool) -> None:
    """H_e would be pooled after its layer instead of before, or X_sum would come from another layer's X."""
    config = replace(KUNLUN, comp_skip=comp_skip)
    calls = watch(built(config), batch_of(config, SAMPLES))
    for layer in range(1, config.num_layers):
        assert calls[f"weight_gens.{layer}"][0][0][0] is calls[f"interactions.{layer - 1}"][0][1]
    for sequence, tower in config.sequence_towers:
        prefix = f"towers.{sequence.name}"
        events = calls[f"{prefix}.project"][0][1]
        for layer in range(tower.num_layers):
            args, out = calls[f"{prefix}.layers.{layer}"][0]
            assert args[0] is events and args[1] is calls[f"weight_gens.{layer}"][0][1]
            for (pooled, *_), _ in calls.get(f"{prefix}.layers.{layer}.pool", []):
                assert torch.equal(pooled, events)
            events, _ = out
        assert calls[f"{prefix}.final_pool"][0][0][0] is events


@COMPILES
def test_the_whole_model_is_one_graph() -> None:
    """Something in it that a compiler cannot follow would cut the step into pieces."""
    model, batch = built(KUNLUN), batch_of(KUNLUN, SAMPLES)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with trusted_offsets():
        assert_close(scores(compiled, batch), scores(model, batch))


@pytest.mark.parametrize("comp_skip", [True, False])
def test_comp_skip_alternates_generated_feed_forward_and_attention(comp_skip: bool) -> None:
    """Even layers would attend, or odd ones feed forward: the work that the switch saves."""
    model = built(replace(KUNLUN, comp_skip=comp_skip))
    for sequence, tower in KUNLUN.sequence_towers:
        for i in range(tower.num_layers):
            layer = model.get_submodule(f"towers.{sequence.name}.layers.{i}")
            assert isinstance(layer, TowerLayer)
            has = (layer.ffn is not None, layer.pool is not None, layer.attention is not None)
            assert has == ((i % 2 == 0, i % 2 == 0, i % 2 == 1) if comp_skip else (True, True, True))


@pytest.mark.parametrize("personal", [True, False])
def test_event_types_have_widths_of_their_own(personal: bool) -> None:
    """Personalisation would be a name only, or could not be turned off."""
    config = replace(KUNLUN, event_personalization=personal)
    model = built(config)
    for name, tower in (("clicks", KUNLUN.engagement), ("views", KUNLUN.exposure if personal else KUNLUN.engagement)):
        events = model.get_submodule(f"towers.{name}")
        assert events.get_submodule("project").weight.shape[0] == tower.width
        assert len(events.get_submodule("layers")) == tower.num_layers
        assert events.get_submodule("final_pool").num_heads == tower.num_heads
        assert events.get_submodule("final_pool").seeds.shape == (4 * tower.num_tokens, tower.width)
        assert events.get_submodule("layers.1.attention").window == tower.window


@pytest.mark.parametrize("ffn", ["gdpa", "pffn"])
def test_context_reaches_the_events(ffn: str) -> None:
    """Events would not be personalised by X_sum: after the first layer they must depend on the sample's context."""
    config = replace(KUNLUN, ffn=ffn)
    model, batch = built(config), batch_of(config, SAMPLES)
    sparse = batch.sparse.clone()
    sparse[2] = (sparse[2] + 1) % 11
    before, after = (watch(model, each) for each in (batch, replace(batch, sparse=sparse)))
    for name, sequence in batch.sequences.items():
        key = f"towers.{name}.layers.0"
        assert torch.equal(before[key][0][0][0], after[key][0][0][0])
        of_sample = [i == 2 for i, n in enumerate(sequence.lengths()) for _ in range(n)]
        assert moved(before[key][0][1][0], after[key][0][1][0]) == of_sample


# What each part computes.


@pytest.mark.parametrize(("attention", "window"), [("window", 2), ("full", None)])
def test_an_attention_layer_sees_its_window_both_ways_and_its_own_row_only(attention: str, window: int | None) -> None:
    """An event would depend on events beyond the window, or not on all within; or on another sample's."""
    config = replace(KUNLUN, attention=attention)
    layer = built(config).get_submodule("towers.clicks.layers.1")
    lengths = [5, 0, 7]
    offsets, angles = offsets_of(lengths), torch.rand(12, config.engagement.width // 4)
    x = torch.randn(12, config.engagement.width)
    seen = influence(lambda x: layer(x, torch.empty(0), offsets, 7, angles)[0], x)
    row, place = torch.tensor([0] * 5 + [2] * 7), torch.arange(12)
    near = (place[:, None] - place).abs() <= (12 if window is None else window)
    assert torch.equal(seen, near & (row[:, None] == row))


def test_attention_has_a_residual_and_a_norm() -> None:
    """An odd layer would not be LN(S + SWA(S))."""
    layer = built(KUNLUN).get_submodule("towers.clicks.layers.1")
    x, offsets, angles = torch.randn(5, KUNLUN.engagement.width), offsets_of([2, 0, 3]), torch.rand(5, 5)
    expected = oracles.layer_norm(x + layer.attention(x, offsets, 3, angles))
    after, pooled = layer(x, torch.empty(0), offsets, 3, angles)
    assert_close(after, expected)
    assert pooled is None


def feed_forward(config: KunlunConfig) -> nn.Module:
    return built(config).get_submodule("towers.clicks.layers.0.ffn")


def ffn_inputs(config: KunlunConfig) -> tuple[Tensor, Tensor, Tensor, int]:
    """Events, X_sum, offsets and the longest row's length."""
    width = config.engagement.width
    return torch.randn(6, width), torch.randn(3, config.num_summary, config.width), offsets_of([2, 0, 4]), 4


def test_gdpa_is_the_block_of_the_kernel_library_without_projections() -> None:
    """Another order of norms and residuals, softmax, or hidden projections: not Kunlun's PFFN."""
    ffn = feed_forward(KUNLUN)
    x, summary, offsets, longest = ffn_inputs(KUNLUN)
    assert {name for name, _ in ffn.named_parameters()} == {"mix.weight", "to_kv.weight"}
    keys, values = ffn.to_kv(ffn.mix.weight @ summary).chunk(2, dim=-1)
    expected = []
    for event, b in zip(x, [0, 0, 2, 2, 2, 2], strict=True):
        q = oracles.layer_norm(event)
        heads = []
        for part in range(2):  # the first and the second half of the features
            cut = slice(10 * part, 10 * part + 10)
            heads.append(oracles.ACTIVATIONS["gelu_tanh"](q[cut] @ keys[b][:, cut].T) @ values[b][:, cut])
        expected.append(event + oracles.rms_norm(torch.cat(heads) + q, eps=1e-5))
    assert_close(ffn(x, summary, offsets, longest)[0], torch.stack(expected))


@pytest.mark.parametrize("qo_proj", [False, True])
def test_gdpa_has_no_softmax(qo_proj: bool) -> None:
    """With keys of zero, act(0) = 0 leaves values out of it; a softmax would mix them in evenly."""
    config = replace(KUNLUN, qo_proj=qo_proj)
    x, summary, offsets, longest = ffn_inputs(config)
    ffn = deepcopy(feed_forward(config))
    with torch.no_grad():
        ffn.to_kv.weight[: config.engagement.width].zero_()
    normed = oracles.layer_norm(x)
    assert_close(ffn(x, summary, offsets, longest)[0], x + oracles.rms_norm(normed, eps=1e-5))


def test_projections_around_gdpa_are_what_the_switch_adds() -> None:
    """``qo_proj`` would change more, or less, than projecting queries and the output."""
    plain, projected = (deepcopy(feed_forward(replace(KUNLUN, qo_proj=on))) for on in (False, True))
    added = {name for name, _ in projected.named_parameters()} - {name for name, _ in plain.named_parameters()}
    assert added == {"q_proj.weight", "o_proj.weight"}
    inputs = ffn_inputs(KUNLUN)
    projected.load_state_dict(plain.state_dict(), strict=False)
    assert_differ(projected(*inputs)[0], plain(*inputs)[0])
    with torch.no_grad():
        for name in added:
            projected.get_parameter(name).copy_(torch.eye(KUNLUN.engagement.width))
    assert_close(projected(*inputs)[0], plain(*inputs)[0])


@pytest.mark.parametrize("qo_proj", [False, True])
def test_the_scale_is_inside_the_activation_and_of_the_config(qo_proj: bool) -> None:
    """``gdpa_scale=max_length`` would be ignored, be taken from the batch, or scale the activation's result."""
    one, scaled = (
        deepcopy(feed_forward(replace(KUNLUN, gdpa_scale=scale, qo_proj=qo_proj))) for scale in ("one", "max_length")
    )
    inputs = ffn_inputs(KUNLUN)
    scaled.load_state_dict(one.state_dict())
    assert_differ(scaled(*inputs)[0], one(*inputs)[0])
    with torch.no_grad():
        scaled.to_kv.weight[: KUNLUN.engagement.width] *= KUNLUN.engagement.max_length
    assert_close(scaled(*inputs)[0], one(*inputs)[0])


def test_the_activation_is_the_one_asked_for() -> None:
    """A switch that names an activation would not change it."""
    inputs = ffn_inputs(KUNLUN)
    results = [feed_forward(replace(KUNLUN, activation=name))(*inputs)[0] for name in ("gelu_tanh", "relu", "identity")]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert_differ(results[first], results[second])


def test_pffn_is_one_generated_matrix_with_residual_and_norm() -> None:
    """InterFormer's PFFN, which GDPA is measured against, would be another."""
    ffn = feed_forward(replace(KUNLUN, ffn="pffn"))
    x, summary, offsets, longest = ffn_inputs(KUNLUN)
    weights = (ffn.mix.weight @ summary) @ ffn.to_weight.weight.T * KUNLUN.engagement.width**-0.5
    mapped = torch.stack([event @ weights[b] for event, b in zip(x, [0, 0, 2, 2, 2, 2], strict=True)])
    assert_close(ffn(x, summary, offsets, longest)[0], oracles.layer_norm(x + mapped))


@pytest.mark.parametrize("pooling", ["hsp", "pma"])
@pytest.mark.parametrize("name", ["clicks", "views"])
def test_pooling_attends_from_seeds_and_condenses_them(pooling: str, name: str) -> None:
    """HSP would lack its norm, its rotation, SumKronLinear or the widening; PMA would have more than queries."""
    config = replace(KUNLUN, pooling=pooling)
    pool = built(config).get_submodule(f"towers.{name}.layers.0.pool")
    tower = {field.name: tower for field, tower in config.sequence_towers}[name]
    d, heads, tokens = tower.width, tower.num_heads, tower.num_tokens
    x, offsets, angles = torch.randn(5, d), offsets_of([2, 0, 3]), torch.rand(5, d // heads // 2)
    queries = (oracles.layer_norm(pool.seeds) @ pool.q.weight.T).reshape(-1, heads, d // heads)
    keys, values = (part.reshape(-1, heads, d // heads) for part in (x @ pool.kv.weight.T).chunk(2, dim=-1))
    expected = oracles.seed_pooling(queries, oracles.rotary_time(keys, angles), values, offsets).flatten(2)
    expected = expected @ pool.out.weight.T
    if pooling == "hsp":
        assert pool.seeds.shape[0] == 4 * tokens
        expected = oracles.sum_kron_linear(expected, pool.z, pool.w)
    else:
        assert pool.seeds.shape[0] == tokens and pool.z is None and pool.w is None
    expected = expected if d == config.width else expected @ pool.widen.weight.T
    assert expected.shape == (3, tokens, config.width)
    assert_close(pool(x, offsets, 3, angles), expected)


@pytest.mark.parametrize("gate", [False, True])
def test_the_summary_mixes_tokens_then_features(gate: bool) -> None:
    """WeightGen would be gated where it should not be, or the other way round."""
    gen = WeightGen(replace(KUNLUN, summary_gate=gate), num_tokens=7)
    x = torch.randn(2, 7, KUNLUN.width)
    first, second = gen.mlp.layers
    expected = second(nn.functional.gelu(first(gen.mix.weight @ x)))
    if gate:
        assert gen.gate is not None
        expected = expected * torch.sigmoid(expected @ gen.gate.weight.T + gen.gate.bias)
    assert_close(gen(x), expected)


def test_an_expert_is_a_wukong_block() -> None:
    """Factorisation machine, its norm, its MLP, the linear compression, residual or norm would be missing."""
    expert, _ = Interaction(KUNLUN, "reference").experts
    x = torch.randn(2, 5, KUNLUN.width)
    hidden = oracles.layer_norm((x @ (x.transpose(1, 2) @ expert.y)).flatten(1))
    for i, layer in enumerate(expert.fm_mlp.layers):
        hidden = layer(nn.functional.gelu(hidden) if i else hidden)
    both = torch.cat([hidden.reshape(2, 2, KUNLUN.width), expert.compress.weight @ x], dim=1)
    assert_close(expert(x), oracles.layer_norm(both + x))


@pytest.mark.parametrize("sizes", [(9,), (5, 4), (3, 3, 3), (1, 7, 1), (4, 5)], ids=str)
def test_shares_hold_the_tokens_of_all_parts_in_order(sizes: tuple[int, ...]) -> None:
    """An expert would get another's tokens, or a share's gradient would reach the wrong part."""
    parts = [torch.randn(2, n, 3, requires_grad=True) for n in (4, 3, 2)]
    shares = dense_shares(parts, sizes)
    assert all(share.is_contiguous() for share in shares) and tuple(share.shape[1] for share in shares) == sizes
    assert torch.equal(torch.cat(shares, dim=1), torch.cat(parts, dim=1))
    weights = torch.randn(2, 9, 3)
    sum((share * weight).sum() for share, weight in zip(shares, weights.split(sizes, dim=1), strict=True)).backward()
    assert torch.equal(torch.cat([part.grad for part in parts], dim=1), weights)


@pytest.mark.parametrize("experts", [True, False])
def test_experts_own_their_tokens(experts: bool) -> None:
    """An expert's tokens would depend on another's, or one expert would not see all when there is one only."""
    config = replace(KUNLUN, interaction_experts=experts)
    interaction = Interaction(config, "reference")
    tokens = config.num_interaction_tokens
    seen = influence(lambda x: interaction(x[None])[0], torch.randn(tokens, config.width))
    owner = torch.tensor([0] * 5 + [1] * 4 if experts else [0] * 9)
    assert torch.equal(seen, owner[:, None] == owner)


# Time.


def with_times(batch: Batch, event_ms: int = 0, only: int | None = None, request_ms: int = 0) -> Batch:
    """``batch`` with its clicks, or one of them, ``event_ms`` later, and its requests ``request_ms`` later."""
    times = batch.sequences["clicks"].times_ms.clone()
    times[slice(None) if only is None else only] += event_ms
    return replace(change(batch, "clicks", times_ms=times), times_ms=batch.times_ms + request_ms)


@pytest.mark.parametrize("gap", ["adjacent", "request"])
def test_time_counts_with_rote_and_not_without(gap: str) -> None:
    """ROTE would not be applied, or could not be turned off."""
    batch = batch_of(KUNLUN, SAMPLES)
    earlier = with_times(batch, event_ms=-DAY_MS, only=5)
    for rote in (True, False):
        model = built(replace(KUNLUN, rote=rote, rote_gap=gap))
        assert moved(scores(model, batch), scores(model, earlier)) == [False, False, rote, False, False, False]


@pytest.mark.parametrize("gap", ["adjacent", "request"])
def test_gaps_are_to_the_event_before_or_to_the_request(gap: str) -> None:
    """The two readings of the paper's time gap would be mixed up, or a score would depend on the date."""
    model, batch = built(replace(KUNLUN, rote_gap=gap)), batch_of(KUNLUN, [(7, 6), (3, 1)])
    before = scores(model, batch)
    another_day = change(
        with_times(batch, event_ms=DAY_MS), "views", times_ms=batch.sequences["views"].times_ms + DAY_MS
    )
    assert torch.equal(scores(model, with_times(another_day, request_ms=DAY_MS)), before)
    for apart in (with_times(batch, event_ms=-DAY_MS), with_times(batch, request_ms=DAY_MS)):
        assert moved(before, scores(model, apart)) == [gap == "request"] * 2


@pytest.mark.parametrize("gap", ["adjacent", "request"])
def test_events_are_rotated_by_position_and_log_gap_wherever_they_are_compared(gap: str) -> None:
    """Rotations would reach attention or pooling only, or turn by something else than position and time."""
    config = replace(KUNLUN, rote_gap=gap, rote_scale_s=3600.0)
    batch = batch_of(config, SAMPLES)
    calls = watch(built(config), batch)
    for field, tower in config.sequence_towers:
        times, pairs = batch.sequences[field.name].times_ms, tower.width // tower.num_heads // 2
        theta = 10_000 ** (-torch.arange(pairs) / pairs)
        expected = []
        for b, row in enumerate(oracles.rows(batch.sequences[field.name].offsets)):
            for place, time in enumerate(times[row]):
                since = times[row][max(0, place - 1)] if gap == "adjacent" else time
                until = time if gap == "adjacent" else batch.times_ms[b]
                expected.append((place + torch.log1p((until - since) / 3_600_000)) * theta)
        prefix = f"towers.{field.name}."
        given = [calls[f"{prefix}{name}"][0][0][-1] for name in ("final_pool", "layers.0.pool", "layers.1")]
        for angles in given:
            torch.testing.assert_close(angles, torch.stack(expected), rtol=1e-6, atol=1e-6)  # times are in fp32


@pytest.mark.parametrize("part", ["layers.1", "final_pool"])
def test_rotations_change_attention_and_pooling(part: str) -> None:
    """A layer would be given rotations and not use them."""
    module = built(KUNLUN).get_submodule(f"towers.clicks.{part}")
    x, offsets = torch.randn(5, KUNLUN.engagement.width), offsets_of([5])
    still, turned = torch.zeros(5, 5), torch.arange(5.0)[:, None].expand(5, 5)

    def found(angles: Tensor | None) -> Tensor:
        if part == "layers.1":
            return module(x, torch.empty(0), offsets, 5, angles)[0]
        return module(x, offsets, 5, angles)

    assert_close(found(still), found(None))
    assert_differ(found(turned), found(None))
