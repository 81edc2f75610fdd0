"""Amortised history: its FLOPs three ways, its sizes, its equations, and that sharing a history changes no score."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mfu_kernels.errors import InvalidArgument
from mfu_models import MODELS
from mfu_models.amortized_history.config import AmortizedHistoryConfig
from mfu_models.batch import Batch
from tests.model_zoo import request_checks as by_hand
from tests.model_zoo import zoo_checks
from tests.model_zoo.zoo_checks import AWKWARD, RECORDED

AMORTIZED = MODELS["amortized_history"]
CONFIG = AmortizedHistoryConfig(
    AWKWARD, max_length=12, width=10, num_layers=2, num_heads=2, expansion=3, head_mlp=(9, 7), num_candidates=4
)
SETTINGS = {
    "default": CONFIG,
    "one-candidate": replace(CONFIG, num_candidates=1),
    "causal": replace(CONFIG, causal=True),
    "concat": replace(CONFIG, mixing="concat"),
    "concat-causal": replace(CONFIG, mixing="concat", causal=True),
    "tiny": AMORTIZED.config("tiny"),
}
SAMPLES = ((0, 0), (3, 3), (9, 0), (1, 7), (5, 0))
in_every_setting = pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)


def lengths_of(config: AmortizedHistoryConfig) -> dict[str, list[int]]:
    return zoo_checks.lengths_of(config, SAMPLES)


@in_every_setting
def test_flops(config: AmortizedHistoryConfig) -> None:
    zoo_checks.check_flops(AMORTIZED, config, lengths_of(config))


@pytest.mark.parametrize("mixing", ["append", "concat"])
def test_flops_of_the_small_size(mixing: str) -> None:
    config = AMORTIZED.config("small", overrides={"num_candidates": 3, "mixing": mixing})
    zoo_checks.check_flops(AMORTIZED, config, zoo_checks.lengths_of(config, [(0, 9), (128, 3)]))


@in_every_setting
def test_gradients(config: AmortizedHistoryConfig) -> None:
    zoo_checks.check_gradients(AMORTIZED, config, lengths_of(config))


@in_every_setting
def test_a_request_does_not_see_the_others(config: AmortizedHistoryConfig) -> None:
    zoo_checks.check_alone(AMORTIZED, config, lengths_of(config))


@pytest.mark.parametrize("source", RECORDED)
@pytest.mark.parametrize("mixing", ["append", "concat"])
def test_schemas_of_recorded_data(source: str, mixing: str) -> None:
    config = AMORTIZED.config("tiny", RECORDED[source], {"num_candidates": 2, "mixing": mixing})
    lengths = zoo_checks.lengths_of(config, [(0, 2, 5), (3, 0, 0)])
    zoo_checks.check_alone(AMORTIZED, config, lengths)
    zoo_checks.check_gradients(AMORTIZED, config, lengths)


@pytest.mark.parametrize(
    ("size", "gflops", "dense_params"),
    [
        ("tiny", 0.00099, 0.035e6),
        ("small", 0.034, 0.426e6),
        ("base", 0.274, 2.8e6),
        ("large", 4.339, 21.0e6),  # 4.338 here: a candidate is no key; all others to the ladder's last digit
        ("xl", 51.9, 157.3e6),
    ],
)
def test_sizes(size: str, gflops: float, dense_params: float) -> None:
    config = AMORTIZED.config(size)
    zoo_checks.check_size(AMORTIZED, config, gflops, dense_params, unread_gflops(size))
    decimals = 2 if size == "large" else len(str(gflops).partition(".")[2])
    found = AMORTIZED.full_length_flops(config).fwd / 1e9
    assert round(found + unread_gflops(size), decimals) == round(gflops, decimals)


def unread_gflops(size: str) -> float:
    """What the ladder counts of the last layer's history rows, which no score reads and which are not made here."""
    config = AMORTIZED.config(size)
    length, d = config.max_length, config.width
    return ((2 + 2 * config.expansion) * 2 * length * d**2 + 4 * d * length**2) / 1e9


def request_gflops(size: str, num_candidates: int, mixing: str) -> float:
    config = AMORTIZED.config(size, overrides={"num_candidates": num_candidates, "mixing": mixing})
    return AMORTIZED.full_length_flops(config).fwd / 1e9


@pytest.mark.parametrize(
    ("size", "candidates", "concat", "append", "amortized", "amortized_a_candidate"),
    [
        ("tiny", 4, 0.014, 0.004, 0.001, 0.00030),
        ("small", 32, 3.779, 1.103, 0.063, 0.00197),
        ("base", 128, 120.863, 35.098, 1.007, 0.00786),
        ("large", 256, 3857.418, 1110.786, 15.570, 0.06082),
        ("xl", 512, 92500.712, 26555.784, 219.044, 0.42782),
    ],
)
def test_requests(
    size: str, candidates: int, concat: float, append: float, amortized: float, amortized_a_candidate: float
) -> None:
    """Whole requests, to 2 % or the last digit: joined with each candidate, a pass for each, and one pass for all."""
    one, two, many = (request_gflops(size, m, "append") for m in (1, 2, candidates))
    last_digit, unread = {"rel": 0.02, "abs": 0.0005}, unread_gflops(size)
    assert many + unread == pytest.approx(amortized, **last_digit)
    assert (many + unread) / candidates == pytest.approx(amortized_a_candidate, rel=0.02)
    assert candidates * (one + unread) == pytest.approx(append, **last_digit)
    assert request_gflops(size, candidates, "concat") == pytest.approx(concat, **last_digit)
    assert many == pytest.approx(one + (candidates - 1) * (two - one))  # every further candidate costs the same
    assert two - one < 0.08 * (one + unread)


def equations(model: nn.Module, batch: Batch, candidate: int) -> Tensor:
    """Score of one candidate, from the equations of the module."""
    config, parts, request = model.config, model.tokens, candidate // batch.num_candidates
    sequence = batch.sequences[config.history.name]
    begin, end = sequence.offsets[request : request + 2].tolist()
    events = [
        by_hand.token(parts.events, sequence.item_ids[t], sequence.side_ids[t]) + parts.position.weight[end - t]
        for t in range(begin, end)
    ]
    c = by_hand.token(parts.events, batch.candidate_items[candidate], batch.candidate_sides[candidate])
    c = c + parts.position.weight[0]
    mixed = (_append if config.mixing == "append" else _concat)(model, events, c)
    fields = by_hand.rows_of(model.fields, batch.sparse[candidate])
    dense = by_hand.mlp(model.dense, batch.dense[candidate])
    return by_hand.mlp(model.head, torch.cat([mixed, dense, *fields]))


def _append(model: nn.Module, events: list[Tensor], candidate: Tensor) -> Tensor:
    x, num_events = torch.stack([*events, candidate]), len(events)
    causal = model.config.causal
    for layer in model.layers:
        q = by_hand.linear(layer.attention.q, x)
        k, v = by_hand.linear(layer.attention.kv, x).chunk(2, dim=1)
        sees = _seen(num_events, causal)
        x = _rest(layer, x, by_hand.attend(q, k, v, model.config.num_heads, sees))
    return x[-1]


def _concat(model: nn.Module, events: list[Tensor], candidate: Tensor) -> Tensor:
    x = torch.stack([torch.cat([event, candidate]) for event in events] or [torch.zeros(2 * len(candidate)).double()])
    for layer in model.layers if events else ():
        q, k, v = by_hand.linear(layer.attention.qkv, x).chunk(3, dim=1)
        x = _rest(layer, x, by_hand.attend(q, k, v, model.config.num_heads, _seen(len(events), model.config.causal)))
    return x.mean(0)


def _seen(num_events: int, causal: bool) -> Any:
    return lambda i, j: j < num_events and (j <= i or not causal)


def _rest(layer: nn.Module, x: Tensor, mixed: Tensor) -> Tensor:
    x = by_hand.norm(layer.attention_norm, x + by_hand.linear(layer.attention.out, mixed))
    return by_hand.norm(layer.ffn_norm, x + by_hand.mlp(layer.ffn, x))


@in_every_setting
def test_the_model_is_its_equations_and_each_candidate_scores_as_if_alone(config: AmortizedHistoryConfig) -> None:
    model, batch = by_hand.model_and_batch(AMORTIZED, config, lengths_of(config))
    with torch.no_grad():
        expected = [equations(model, batch, candidate) for candidate in range(batch.num_impressions)]
        torch.testing.assert_close(model(batch), torch.cat(expected))


@in_every_setting
def test_shared_scores_equal_those_one_by_one(config: AmortizedHistoryConfig) -> None:
    config = replace(config, num_candidates=4)
    lengths = zoo_checks.lengths_of(config, [(2, 6), (0, 0), (1, 3)])
    by_hand.check_one_by_one(AMORTIZED, config, lengths)
    moved = by_hand.candidates_moved(AMORTIZED, config, lengths)
    assert torch.equal(moved[:, 0], torch.eye(4, dtype=torch.bool))
    assert not moved[:, 1:].any()


def test_no_row_of_the_history_depends_on_a_candidate() -> None:
    model, batch = by_hand.model_and_batch(AMORTIZED, CONFIG, zoo_checks.lengths_of(CONFIG, [(0, 5), (0, 3)]))
    items = batch.candidate_items.clone()
    items[1] += 1 if items[1] == 0 else -1
    other = replace(batch, candidate_items=items)
    assert by_hand.rows_moved(model.layers[0], model, batch, other) == [8 + 1]


@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_last_layer_has_no_rows_but_the_candidates(num_layers: int) -> None:
    """Its history rows would be work that no score reads, and that model FLOPs would have as needed."""
    config = replace(CONFIG, num_layers=num_layers)
    model, batch = by_hand.model_and_batch(AMORTIZED, config, zoo_checks.lengths_of(config, [(0, 5), (0, 3)]))
    rows = [by_hand.outputs_of(layer, lambda: model(batch)).shape[0] for layer in model.layers]
    assert rows == [8 + 8, 8][-num_layers:]


@pytest.mark.parametrize("causal", [False, True])
def test_an_event_sees_later_ones_unless_causal(causal: bool) -> None:
    config = replace(CONFIG, causal=causal)
    model, batch = by_hand.model_and_batch(AMORTIZED, config, zoo_checks.lengths_of(config, [(0, 6), (0, 4)]))
    other = by_hand.with_event(batch, "views", 3)
    first = 3 if causal else 0
    assert by_hand.rows_moved(model.layers[0], model, batch, other) == [*range(first, 6), *range(10, 14)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 0}, "max_length=0; allowed: at least 1"),
        ({"width": 0}, "width=0; allowed: at least 1"),
        ({"width": 11}, "width=11; allowed: a multiple of num_heads=2"),
        ({"width": 4}, "width=4; allowed: at least 6"),
        ({"num_layers": 0}, "num_layers=0; allowed: at least 1"),
        ({"num_heads": 0}, "num_heads=0; allowed: at least 1"),
        ({"expansion": 0}, "expansion=0; allowed: at least 1"),
        ({"num_candidates": 0}, "num_candidates=0; allowed: at least 1"),
        ({"mixing": "add"}, "mixing='add'; allowed: append, concat"),
        ({"head_mlp": (3, 0)}, r"head_mlp=\(3, 0\); allowed: widths of at least 1"),
        ({"schema": replace(AWKWARD, sequences=())}, "source test has no event sequence; amortized_history needs one"),
    ],
)
def test_bad_configs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        replace(CONFIG, **change)
