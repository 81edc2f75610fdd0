"""LiGR: its FLOPs three ways, its sizes, and that it computes what its equations say: a score is one of a set."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mfu_kernels.errors import InvalidArgument
from mfu_models import MODELS
from mfu_models.batch import Batch
from mfu_models.ligr.config import LigrConfig
from tests.model_zoo import request_checks as by_hand
from tests.model_zoo import zoo_checks
from tests.model_zoo.zoo_checks import AWKWARD, RECORDED

LIGR = MODELS["ligr"]
CONFIG = LigrConfig(
    AWKWARD, max_length=12, num_candidates=4, width=10, num_layers=2, num_heads=2, expansion=3, head_mlp=(7,)
)
SETTINGS = {
    "default": CONFIG,
    "one-candidate": replace(CONFIG, num_candidates=1),
    "no-gate": replace(CONFIG, gate=False),
    "no-set": replace(CONFIG, set_wise=False),
    "plain": replace(CONFIG, gate=False, set_wise=False),
    "tiny": LIGR.config("tiny"),
}
SAMPLES = ((0, 0), (3, 3), (9, 0), (1, 7), (5, 0))
in_every_setting = pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)


def lengths_of(config: LigrConfig) -> dict[str, list[int]]:
    return zoo_checks.lengths_of(config, SAMPLES)


@in_every_setting
def test_flops(config: LigrConfig) -> None:
    zoo_checks.check_flops(LIGR, config, lengths_of(config))


def test_flops_of_the_small_size() -> None:
    config = LIGR.config("small", overrides={"num_candidates": 5})
    zoo_checks.check_flops(LIGR, config, zoo_checks.lengths_of(config, [(0, 9), (128, 3)]))


@in_every_setting
def test_gradients(config: LigrConfig) -> None:
    zoo_checks.check_gradients(LIGR, config, lengths_of(config))


@in_every_setting
def test_a_request_does_not_see_the_others(config: LigrConfig) -> None:
    zoo_checks.check_alone(LIGR, config, lengths_of(config))


@pytest.mark.parametrize("source", RECORDED)
def test_schemas_of_recorded_data(source: str) -> None:
    config = LIGR.config("tiny", RECORDED[source])
    lengths = zoo_checks.lengths_of(config, [(0, 2, 5), (3, 0, 0)])
    zoo_checks.check_alone(LIGR, config, lengths)
    zoo_checks.check_gradients(LIGR, config, lengths)


@pytest.mark.parametrize(
    ("size", "gflops", "dense_params", "candidates", "gflops_a_candidate"),
    [
        ("tiny", 0.00228, 0.034e6, 4, 0.0006),
        ("small", 0.077, 0.254e6, 16, 0.0048),
        ("base", 0.926, 1.5e6, 32, 0.0289),
        ("large", 5.926, 8.5e6, 64, 0.0926),
        ("xl", 50.7, 15.1e6, 256, 0.1982),
    ],
)
def test_sizes(size: str, gflops: float, dense_params: float, candidates: int, gflops_a_candidate: float) -> None:
    """The ladder counted the last layer's history rows, too, which no score reads."""
    config = LIGR.config(size)
    length, d = config.max_length, config.width
    unread = (2 + 2 + 2 * config.expansion) * 2 * length * d**2 + 4 * d * length * (length + 1) // 2
    zoo_checks.check_size(LIGR, config, gflops, dense_params, unread / 1e9)
    flops = (LIGR.full_length_flops(config).fwd + unread) / 1e9
    decimals = len(str(gflops).partition(".")[2])
    assert round(flops, decimals) == gflops
    assert config.num_candidates == candidates
    assert round(flops / candidates, 4) == gflops_a_candidate


def equations(model: nn.Module, batch: Batch, request: int) -> Tensor:
    """Scores of a request's candidates, from the equations of the module."""
    config, m = model.config, batch.num_candidates
    x, num_events = _tokens(model, batch, request)
    for layer in model.layers:
        normed = by_hand.norm(layer.attention_norm, x)
        q = by_hand.linear(layer.attention.q, normed)
        k, v = by_hand.linear(layer.attention.kv, normed).chunk(2, dim=1)
        mixed = by_hand.attend(q, k, v, config.num_heads, lambda i, j: j == i or j < min(i, num_events))
        x = _add(layer.attention_residual, x, by_hand.linear(layer.attention.out, mixed))
        x = _add(layer.ffn_residual, x, by_hand.mlp(layer.ffn, by_hand.norm(layer.ffn_norm, x)))
    candidates = x[-m:]
    if config.set_wise:
        inner = model.set_wise.attention
        q, k, v = by_hand.linear(inner.qkv, by_hand.norm(model.set_wise.norm, candidates)).chunk(3, dim=1)
        mixed = by_hand.attend(q, k, v, config.num_heads, lambda _i, _j: True)
        candidates = candidates + by_hand.linear(inner.out, mixed)
    return by_hand.mlp(model.head, by_hand.norm(model.norm, candidates))[:, 0]


def _add(residual: nn.Module, x: Tensor, branch: Tensor) -> Tensor:
    gate = 1 if residual.gate is None else 1 / (1 + torch.exp(-by_hand.linear(residual.gate, x)))
    return x + gate * branch


def _tokens(model: nn.Module, batch: Batch, request: int) -> tuple[Tensor, int]:
    """Tokens of one request, history and then candidates, and how many of them are the history's."""
    sequence, parts, m = batch.sequences[model.config.history.name], model.tokens, batch.num_candidates
    begin, end = sequence.offsets[request : request + 2].tolist()
    rows = [
        by_hand.token(parts.events, sequence.item_ids[t], sequence.side_ids[t]) + parts.position.weight[end - t]
        for t in range(begin, end)
    ]
    for c in range(request * m, (request + 1) * m):
        x = by_hand.token(parts.events, batch.candidate_items[c], batch.candidate_sides[c])
        rows.append(x + parts.position.weight[0] + by_hand.context(parts.context, batch, c))
    return torch.stack(rows), end - begin


@in_every_setting
def test_the_model_is_its_equations(config: LigrConfig) -> None:
    model, batch = by_hand.model_and_batch(LIGR, config, lengths_of(config))
    with torch.no_grad():
        expected = [equations(model, batch, request) for request in range(len(SAMPLES))]
        torch.testing.assert_close(model(batch), torch.cat(expected))


@pytest.mark.parametrize("set_wise", [True, False])
def test_a_score_depends_on_the_set_through_set_wise_attention_only(set_wise: bool) -> None:
    config, lengths = replace(CONFIG, set_wise=set_wise), zoo_checks.lengths_of(CONFIG, [(2, 6), (1, 3)])
    moved = by_hand.candidates_moved(LIGR, config, lengths)
    assert torch.equal(moved[:, 0], torch.ones(4, 4).bool() if set_wise else torch.eye(4).bool())
    assert not moved[:, 1].any()
    if not set_wise:
        by_hand.check_one_by_one(LIGR, config, lengths)


def test_a_set_has_no_order() -> None:
    model, batch = by_hand.model_and_batch(LIGR, CONFIG, zoo_checks.lengths_of(CONFIG, [(0, 5), (0, 0)]))
    order = torch.tensor([2, 0, 3, 1, 4, 7, 5, 6])
    names = ("dense", "sparse", "candidate_items", "candidate_sides", "labels")
    shuffled = replace(batch, **{name: getattr(batch, name)[order] for name in names})
    torch.testing.assert_close(model(shuffled), model(batch)[order])


@pytest.mark.parametrize("position", [0, 4, 8])
def test_no_event_sees_a_later_one_and_all_candidates_see_it(position: int) -> None:
    model, batch = by_hand.model_and_batch(LIGR, CONFIG, zoo_checks.lengths_of(CONFIG, [(0, 9), (0, 4)]))
    other = by_hand.with_event(batch, "views", position)
    assert by_hand.rows_moved(model.layers[-2], model, batch, other) == [*range(position, 9), *range(13, 17)]


def test_the_last_layer_has_no_rows_but_the_candidates() -> None:
    """Its history rows would be work that no score reads, and that model FLOPs would have as needed."""
    model, batch = by_hand.model_and_batch(LIGR, CONFIG, zoo_checks.lengths_of(CONFIG, [(0, 9), (0, 4)]))
    rows = [by_hand.outputs_of(layer, lambda: model(batch)).shape[0] for layer in model.layers]
    assert rows == [13 + 8, 8]


def test_a_shut_gate_keeps_a_branch_out() -> None:
    model, batch = by_hand.model_and_batch(LIGR, replace(CONFIG, num_layers=1), lengths_of(CONFIG))
    residual = model.layers[0].attention_residual
    other = by_hand.with_event(batch, "views", 1)
    assert (model(other) - model(batch)).abs().max() > by_hand.NO_NOISE
    nn.init.zeros_(residual.gate.weight)
    nn.init.constant_(residual.gate.bias, -1e3)
    assert torch.equal(model(other), model(batch))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 0}, "max_length=0; allowed: at least 1"),
        ({"num_candidates": 0}, "num_candidates=0; allowed: at least 1"),
        ({"width": 0}, "width=0; allowed: at least 1"),
        ({"width": 11}, "width=11; allowed: a multiple of num_heads=2"),
        ({"width": 4}, "width=4; allowed: at least 6"),
        ({"num_layers": 0}, "num_layers=0; allowed: at least 1"),
        ({"num_heads": 0}, "num_heads=0; allowed: at least 1"),
        ({"expansion": 0}, "expansion=0; allowed: at least 1"),
        ({"head_mlp": (3, 0)}, r"head_mlp=\(3, 0\); allowed: widths of at least 1"),
        ({"schema": replace(AWKWARD, sequences=())}, "source test has no event sequence; ligr needs one"),
    ],
)
def test_bad_configs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        replace(CONFIG, **change)
