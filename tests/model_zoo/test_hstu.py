"""HSTU: its FLOPs three ways, its sizes, and that it computes what its equations say, each candidate by itself."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mfu_kernels.errors import InvalidArgument
from mfu_models import MODELS
from mfu_models.batch import Batch
from mfu_models.hstu.config import HstuConfig
from mfu_models.hstu.flops import components
from tests.model_zoo import request_checks as by_hand
from tests.model_zoo import zoo_checks
from tests.model_zoo.zoo_checks import AWKWARD, RECORDED

HSTU = MODELS["hstu"]
CONFIG = HstuConfig(
    AWKWARD,
    max_tokens=13,
    width=10,
    num_layers=3,
    num_heads=2,
    qk_width=3,
    v_width=4,
    head_mlp=(7,),
    local_keys=3,
    first_keys=2,
    full_layers=2,
    tail_tokens=5,
    num_candidates=3,
)
SETTINGS = {
    "default": CONFIG,
    "one-candidate": replace(CONFIG, num_candidates=1),
    "semi-local": replace(CONFIG, semi_local=True),
    "local": replace(CONFIG, semi_local=True, first_keys=0),
    "truncated": replace(CONFIG, truncate=True),
    "truncated-to-candidates": replace(CONFIG, truncate=True, full_layers=1, tail_tokens=1),
    "paper": replace(CONFIG, concat_ux=False, position_bias=True),
    "all": replace(CONFIG, semi_local=True, truncate=True, concat_ux=False, position_bias=True),
    "tiny": HSTU.config("tiny"),
    "ultra-tiny": HSTU.config("ultra_tiny", overrides={"num_candidates": 2}),
}
SAMPLES = ((0, 0), (3, 3), (9, 0), (1, 7), (5, 0))
in_every_setting = pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)


def lengths_of(config: HstuConfig) -> dict[str, list[int]]:
    return zoo_checks.lengths_of(config, SAMPLES)


@in_every_setting
def test_flops(config: HstuConfig) -> None:
    zoo_checks.check_flops(HSTU, config, lengths_of(config))


@pytest.mark.parametrize("size", ["small", "ultra_small"])
def test_flops_of_the_small_size(size: str) -> None:
    config = HSTU.config(size, overrides={"num_candidates": 2, "local_keys": 9, "tail_tokens": 12})
    zoo_checks.check_flops(HSTU, config, zoo_checks.lengths_of(config, [(0, 20), (128, 3)]))


@in_every_setting
def test_gradients(config: HstuConfig) -> None:
    zoo_checks.check_gradients(HSTU, config, lengths_of(config))


@in_every_setting
def test_a_request_does_not_see_the_others(config: HstuConfig) -> None:
    """Nor does a score depend on the longest history of the batch, as it would if 1/N were the batch's."""
    zoo_checks.check_alone(HSTU, config, lengths_of(config))


@pytest.mark.parametrize("source", RECORDED)
@pytest.mark.parametrize("size", ["tiny", "ultra_tiny"])
def test_schemas_of_recorded_data(source: str, size: str) -> None:
    config = HSTU.config(size, RECORDED[source], {"num_candidates": 2})
    lengths = zoo_checks.lengths_of(config, [(0, 2, 5), (3, 0, 0)])
    zoo_checks.check_alone(HSTU, config, lengths)
    zoo_checks.check_gradients(HSTU, config, lengths)


@pytest.mark.parametrize(
    ("size", "gflops", "dense_params"),
    [
        ("tiny", 0.00250, 0.017e6),
        ("small", 0.071, 0.099e6),
        ("base", 0.839, 1.5e6),
        ("large", 8.861, 7.9e6),
        ("xl", 95.6, 15.2e6),
        ("dlrmv3", 163.2, 9.7e6),
        ("ultra_tiny", 0.00171, 0.018e6),
        ("ultra_small", 0.049, 0.095e6),
        ("ultra_base", 1.334, 2.0e6),
        ("ultra_large", 7.597, 7.9e6),
        ("ultra_xl", 53.2, 17.0e6),
    ],
)
def test_sizes(size: str, gflops: float, dense_params: float) -> None:
    """The ladder counted the last layer's history rows, too, of which scores read the keys and values alone."""
    config = HSTU.config(size)
    rows = (config.tail_tokens if config.truncate else config.max_tokens) - 1
    width = config.num_heads * (config.qk_width + config.v_width) + 3 * config.num_heads * config.v_width
    unread = 2 * rows * config.width * width / 1e9
    zoo_checks.check_size(HSTU, config, gflops, dense_params, unread)
    decimals = 5 if gflops < 0.01 else len(str(gflops).partition(".")[2])
    assert round(HSTU.full_length_flops(config).fwd / 1e9 + unread, decimals) == gflops


@pytest.mark.parametrize("switches", [{}, {"semi_local": True, "truncate": True}], ids=["full", "ultra"])
def test_a_request_of_many_candidates_costs_less_than_as_many_requests(switches: dict[str, Any]) -> None:
    def gflops(num_candidates: int) -> float:
        config = HSTU.config("large", overrides={"num_candidates": num_candidates, **switches})
        return HSTU.full_length_flops(config).fwd / 1e9

    one, two, many = gflops(1), gflops(2), gflops(64)
    assert many == pytest.approx(one + 63 * (two - one))  # every further candidate costs the same
    assert many < one * 64 / 30


def test_ultra_saves_attention_and_then_whole_tokens() -> None:
    full, ultra = HSTU.config("ultra_xl", overrides={"semi_local": False, "truncate": False}), HSTU.config("ultra_xl")
    lengths = {name: [length] for name, length in HSTU.max_lengths(full).items()}
    local = components(replace(full, semi_local=True), lengths)
    assert local["attention"] < 0.2 * components(full, lengths)["attention"]
    assert local["uvqk"] == components(full, lengths)["uvqk"]
    halves = (2 * 3 * 3072 + (2 * 6 - 1) * 512) / ((2 * 9 - 1) * 3072)  # U with Q, and V with K: the last has one half
    assert components(ultra, lengths)["uvqk"] == pytest.approx(local["uvqk"] * halves, rel=1e-4)


def equations(model: nn.Module, batch: Batch, candidate: int) -> Tensor:
    """Score of one candidate, [1], from the equations of the module, token by token."""
    config, x = model.config, _tokens(model, batch, candidate)
    for depth, layer in enumerate(model.layers):
        if config.truncate and depth == config.full_layers:
            x = x[-config.tail_tokens :]
        x = x + _update(layer, config, x, num_events=len(x) - 1)
    return by_hand.mlp(model.head, by_hand.norm(model.norm, x[-1]))


def _tokens(model: nn.Module, batch: Batch, candidate: int) -> Tensor:
    sequence, parts = batch.sequences[model.config.history.name], model.tokens
    request = candidate // batch.num_candidates
    begin, end = sequence.offsets[request : request + 2].tolist()
    rows = []
    for t in range(begin, end):
        x = parts.project(by_hand.token(parts.events, sequence.item_ids[t], sequence.side_ids[t]))
        age_s = (batch.times_ms[request] - sequence.times_ms[t]).item() / 1000
        rows.append(x + parts.position.weight[end - t] + model.age.weight[int(age_s + 1).bit_length() - 1])
    x = parts.project(by_hand.token(parts.events, batch.candidate_items[candidate], batch.candidate_sides[candidate]))
    rows.append(x + parts.position.weight[0] + by_hand.context(parts.context, batch, candidate))
    return torch.stack(rows)


def _update(layer: nn.Module, config: HstuConfig, x: Tensor, num_events: int) -> Tensor:
    d_v, d_qk = config.num_heads * config.v_width, config.num_heads * config.qk_width
    normed = by_hand.norm(layer.norm, x)
    (u, q), (v, k) = (
        nn.functional.silu(by_hand.linear(half, normed)).split([d_v, d_qk], dim=1) for half in (layer.uq, layer.vk)
    )
    mixed = torch.zeros_like(u)
    for i in range(len(x)):
        here = min(i, num_events)
        local = config.local_keys if config.semi_local else len(x) + 1
        seen = [j for j in range(here) if here - j < local or j < config.first_keys]
        away = torch.tensor([here - j for j in seen] + [0])
        for h in range(config.num_heads):
            on, to = slice(h * config.qk_width, (h + 1) * config.qk_width), slice(h * config.v_width, None)
            scores = k[[*seen, i], on] @ q[i, on] / config.qk_width**0.5
            scores = scores if layer.bias is None else scores + layer.bias[h, away]
            values = v[[*seen, i], to][:, : config.v_width]
            mixed[i, to][: config.v_width] = nn.functional.silu(scores) @ values / config.max_tokens
    gated = u * by_hand.norm(layer.attention_norm, mixed)
    return by_hand.linear(layer.out, torch.cat([u, mixed, gated], dim=1) if config.concat_ux else gated)


@in_every_setting
def test_the_model_is_its_equations_and_each_candidate_scores_as_if_alone(config: HstuConfig) -> None:
    model, batch = by_hand.model_and_batch(HSTU, config, lengths_of(config))
    for layer in model.layers if config.position_bias else ():
        nn.init.normal_(layer.bias)
    with torch.no_grad():
        expected = [equations(model, batch, candidate) for candidate in range(batch.num_impressions)]
        torch.testing.assert_close(model(batch), torch.cat(expected))


@in_every_setting
def test_no_candidate_sees_another(config: HstuConfig) -> None:
    lengths = zoo_checks.lengths_of(config, [(2, 6), (1, 3)])
    config = replace(config, num_candidates=4)
    moved = by_hand.candidates_moved(HSTU, config, lengths)
    assert torch.equal(moved[:, 0], torch.eye(4, dtype=torch.bool))
    assert not moved[:, 1].any()
    by_hand.check_one_by_one(HSTU, config, lengths)


@pytest.mark.parametrize("position", [0, 4, 8])
def test_no_token_sees_a_later_one(position: int) -> None:
    model, batch = by_hand.model_and_batch(HSTU, CONFIG, zoo_checks.lengths_of(CONFIG, [(0, 9), (0, 4)]))
    other = by_hand.with_event(batch, "views", position)
    assert by_hand.rows_moved(model.layers[-2], model, batch, other) == list(range(position, 12))


@pytest.mark.parametrize(
    ("semi_local", "seen"), [(False, [0, 1, 2, 3, 4, 5, 6, 7]), (True, [0, 1, 6, 7])], ids=["full", "semi-local"]
)
def test_a_semi_local_query_sees_its_neighbours_and_the_first(semi_local: bool, seen: list[int]) -> None:
    """With K1 = 3 and K2 = 2 a candidate behind 8 events sees itself, the last 2 and the first 2."""
    config = replace(CONFIG, num_layers=1, full_layers=1, semi_local=semi_local)
    model, batch = by_hand.model_and_batch(HSTU, config, zoo_checks.lengths_of(config, [(0, 8)]))
    moved = [t for t in range(8) if (model(by_hand.with_event(batch, "views", t)) - model(batch)).abs().max() > 1e-12]
    assert moved == seen


def test_truncation_keeps_the_last_tokens_of_every_row() -> None:
    config = replace(CONFIG, truncate=True, num_layers=4)  # 5 tokens: 4 events and a candidate, of which here are 3
    model, batch = by_hand.model_and_batch(HSTU, config, zoo_checks.lengths_of(config, [(0, 9), (0, 0), (0, 2)]))
    sizes = [by_hand.outputs_of(layer, lambda: model(batch)).shape[0] for layer in model.layers]
    assert sizes == [11 + 9, 11 + 9, 6 + 9, 9]  # no score reads the last layer's history
    before, after = (by_hand.outputs_of(layer, lambda: model(batch)) for layer in model.layers[1:3])
    kept = [*range(5, 12), 12, 13, 14, *range(15, 20)]
    x, rows = before[kept], [slice(0, 7), slice(7, 10), slice(10, 15)]
    expected = [x[row] + _update(model.layers[2], config, x[row], len(x[row]) - 3) for row in rows]
    torch.testing.assert_close(after, torch.cat(expected))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_tokens": 1}, "max_tokens=1; allowed: at least 2"),
        ({"num_layers": 0}, "num_layers=0; allowed: at least 1"),
        ({"num_heads": 0}, "num_heads=0; allowed: at least 1"),
        ({"qk_width": 0}, "qk_width=0; allowed: at least 1"),
        ({"v_width": 0}, "v_width=0; allowed: at least 1"),
        ({"local_keys": 0}, "local_keys=0; allowed: at least 1"),
        ({"num_candidates": 0}, "num_candidates=0; allowed: at least 1"),
        ({"first_keys": -1}, "first_keys=-1; allowed: at least 0"),
        ({"full_layers": 0}, "full_layers=0; allowed: at least 1"),
        ({"tail_tokens": 0}, "tail_tokens=0; allowed: at least 1"),
        ({"truncate": True, "full_layers": 4}, "full_layers=4; allowed with truncate: 1 to num_layers=3"),
        ({"truncate": True, "tail_tokens": 14}, "tail_tokens=14; allowed with truncate: 1 to max_tokens=13"),
        ({"head_mlp": (0,)}, r"head_mlp=\(0,\); allowed: widths of at least 1"),
        ({"width": 5}, "width=5; allowed: at least 6"),
        ({"schema": replace(AWKWARD, sequences=())}, "source test has no event sequence; hstu needs one"),
    ],
)
def test_bad_configs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        replace(CONFIG, **change)
