"""DIN and DIEN: their FLOPs three ways, their sizes, and that they compute what their equations say."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, softplus

from mfu_kernels.errors import InvalidArgument
from mfu_models import MODELS
from mfu_models.batch import Batch, EventSequence
from mfu_models.din.config import DinConfig
from mfu_models.din.evolution import InterestEvolution
from mfu_models.din.flops import components
from mfu_models.din.model import Din
from mfu_models.output import TrainingOutput
from mfubench.workload.prepare import prepare
from mfubench.workload.spec import WorkloadSpec
from mfubench.workload.step import run_step
from tests.model_zoo import zoo_checks
from tests.model_zoo.zoo_checks import AWKWARD, RECORDED

DIN = MODELS["din"]
CONFIG = DinConfig(AWKWARD, max_length=12, width=20, att_mlp=(9, 7), head_mlp=(8, 3), interest_width=6, aux_mlp=(10, 4))
DIEN = replace(CONFIG, dien=True)
SETTINGS = {
    "din": CONFIG,
    "din-softmax": replace(CONFIG, softmax=True),
    "dien": DIEN,
    "tiny": DIN.config("tiny"),
    "dien-tiny": DIN.config("tiny", overrides={"dien": True}),
}
SAMPLES = ((0, 3), (5, 0), (0, 0), (7, 1), (1, 9), (0, 2))
in_every_setting = pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)


def built(config: DinConfig, dtype: torch.dtype = torch.float32) -> Din:
    model = zoo_checks.build(DIN, config, dtype)
    assert isinstance(model, Din)
    return model


def sequence_of(lengths: list[int]) -> EventSequence:
    """A sequence of which only the lengths matter: each event is of an item of its own."""
    ids = torch.arange(sum(lengths))
    return EventSequence(ids, ids[:, None], ids, torch.tensor([0, *lengths]).cumsum(0), max(lengths))


def with_clicks(batch: Batch, order: Tensor) -> Batch:
    """``batch``, its clicks reordered."""
    clicks = batch.sequences["clicks"]
    ids, sides, times = (t[order] for t in (clicks.item_ids, clicks.side_ids, clicks.times_ms))
    other = EventSequence(ids, sides, times, clicks.offsets, clicks.max_length)
    return replace(batch, sequences={**batch.sequences, "clicks": other})


@in_every_setting
def test_flops(config: DinConfig) -> None:
    zoo_checks.check_flops(DIN, config, zoo_checks.lengths_of(config, SAMPLES))


@pytest.mark.parametrize("dien", [False, True])
def test_flops_of_the_small_size(dien: bool) -> None:
    config = DIN.config("small", overrides={"dien": dien})
    zoo_checks.check_flops(DIN, config, zoo_checks.lengths_of(config, [(0, 1), (14, 2), (3, 0)]))


def test_flops_of_no_events_at_all() -> None:
    for config in (CONFIG, DIEN):
        zoo_checks.check_flops(DIN, config, zoo_checks.lengths_of(config, [(0, 0), (0, 1)]))


@in_every_setting
def test_gradients(config: DinConfig) -> None:
    zoo_checks.check_gradients(DIN, config, zoo_checks.lengths_of(config, SAMPLES))


@in_every_setting
def test_a_sample_does_not_see_the_others(config: DinConfig) -> None:
    zoo_checks.check_alone(DIN, config, zoo_checks.lengths_of(config, SAMPLES))


@pytest.mark.parametrize("source", RECORDED)
def test_schemas_of_recorded_data(source: str) -> None:
    config = DIN.config("tiny", RECORDED[source])
    lengths = zoo_checks.lengths_of(config, [(0, 2, 5), (3, 0, 0)])
    assert config.history.name == {"kuairand": "clicks", "movielens": "liked"}[source]
    zoo_checks.check_flops(DIN, config, lengths)
    zoo_checks.check_gradients(DIN, config, lengths)


@pytest.mark.parametrize(
    ("size", "gflops", "dense_params"),
    [
        ("tiny", 0.00031, 0.027e6),
        ("small", 0.00513, 0.346e6),
        ("base", 0.086, 5.3e6),
        ("large", 1.503, 80.4e6),
        ("xl", 11.9, 589.8e6),
    ],
)
def test_sizes(size: str, gflops: float, dense_params: float) -> None:
    config = DIN.config(size)
    zoo_checks.check_size(DIN, config, gflops, dense_params)
    without_dense = DIN.full_length_flops(config).fwd - 2 * 13 * config.head_mlp[0]  # the ladder's DIN has none
    assert round(without_dense / 1e9, len(str(gflops).partition(".")[2])) == gflops


@pytest.mark.parametrize(
    ("size", "max_length", "gflops", "dense_params"),
    [
        ("tiny", 32, 0.00117, 0.040e6),
        ("small", 128, 0.021, 0.411e6),
        ("base", 256, 0.144, 5.5e6),
        ("large", 512, 4.459, 85.3e6),
        ("xl", 1024, 29.6, 608.3e6),
    ],
)
def test_sizes_of_dien(size: str, max_length: int, gflops: float, dense_params: float) -> None:
    """The ladder's auxiliary network reads 2h numbers, where there are h + e."""
    config = DIN.config(size, overrides={"dien": True, "max_length": max_length})
    missing = 2 * (2 * max_length) * (config.interest_width - config.width) * config.aux_mlp[0]
    flops = DIN.full_length_flops(config)
    assert missing == 0 or size in ("large", "xl")
    assert round((flops.fwd + missing) / 1e9, len(str(gflops).partition(".")[2])) == gflops
    if missing:
        gflops -= missing / 1e9
    zoo_checks.check_size(DIN, config, gflops, dense_params)


def test_only_training_pays_for_the_auxiliary_loss() -> None:
    lengths = zoo_checks.lengths_of(DIEN, SAMPLES)
    flops, parts = DIN.model_flops(DIEN, lengths), components(DIEN, lengths)
    assert flops.inference.fwd == flops.fwd - parts["auxiliary"] < flops.fwd
    assert flops.inference.bwd == 0


def test_din_is_its_equations() -> None:
    model = built(CONFIG).eval()
    batch = zoo_checks.batch_of(CONFIG, zoo_checks.lengths_of(CONFIG, [(3, 0), (0, 2), (2, 1)]))
    events = model.events.of(batch.sequences["clicks"])
    targets = model.events(batch.candidate_items, batch.candidate_sides)
    first, second = model.interest.hidden.layers
    users = []
    for begin, end, c in ((0, 3, targets[0]), (3, 3, targets[1]), (3, 5, targets[2])):
        user = torch.zeros(20)
        for h in events[begin:end]:
            hidden = second(gelu(first(torch.cat([c, h, c - h, c * h]))))
            user = user + model.interest.weight(gelu(hidden)) * h
        users.append(user)
    inputs = torch.cat([torch.stack(users), targets, model.fields(batch.sparse).flatten(1), batch.dense], dim=1)
    torch.testing.assert_close(model(batch), model.head(inputs)[:, 0])


@pytest.mark.parametrize("softmax", [False, True])
def test_weights_are_not_normalised_unless_asked_for(softmax: bool) -> None:
    interest = built(replace(CONFIG, softmax=softmax)).interest
    events, target = torch.randn(5, 20), torch.randn(1, 20)
    once = interest(events, target, sequence_of([5]))
    twice = interest(torch.cat([events, events]), target, sequence_of([10]))
    torch.testing.assert_close(twice, once if softmax else 2 * once)
    same = events[:1].expand(5, -1)
    is_mean = torch.allclose(interest(same, target, sequence_of([5])), events[:1])
    assert is_mean is softmax


def test_din_weighs_each_event_by_the_candidate() -> None:
    interest = built(CONFIG).interest
    events, targets = torch.randn(1, 20), torch.randn(2, 20)
    users = interest(events.expand(2, -1), targets, sequence_of([1, 1]))
    weights = users / events
    torch.testing.assert_close(weights, weights[:, :1].expand(-1, 20))  # a multiple of the event, ...
    assert (weights[0, 0] - weights[1, 0]).abs() > 1e-3  # ... which depends on the candidate


@pytest.mark.parametrize(
    ("config", "sequential"), [(CONFIG, False), (replace(CONFIG, softmax=True), False), (DIEN, True)]
)
def test_only_dien_sees_the_order_of_events(config: DinConfig, sequential: bool) -> None:
    model = built(config).eval()
    batch = zoo_checks.batch_of(config, zoo_checks.lengths_of(config, [(9, 1)]))
    shuffled = model(with_clicks(batch, torch.tensor([4, 0, 8, 2, 6, 1, 7, 3, 5])))
    assert torch.allclose(shuffled, model(batch), atol=1e-6) is not sequential


def test_dien_is_its_equations() -> None:
    model = built(DIEN, torch.float64)
    interest = model.interest
    assert isinstance(interest, InterestEvolution)
    events, target = torch.randn(4, 20, dtype=torch.float64), torch.randn(1, 20, dtype=torch.float64)

    def step(recurrence: Any, x: Tensor, state: Tensor, attention: Tensor | float = 1.0) -> Tensor:
        z, r, p = recurrence.of_input(x).chunk(3)
        of_z, of_r, of_p = (state @ recurrence.of_state).chunk(3)
        z = attention * torch.sigmoid(z + of_z)
        return (1 - z) * state + z * torch.tanh(p + torch.sigmoid(r + of_r) * of_p)

    states = [torch.zeros(6, dtype=torch.float64)]
    for event in events:
        states.append(step(interest.gru, event, states[-1]))
    interests = torch.stack(states[1:])
    attention = (interests @ interest.attention.key.weight.T @ target[0]).softmax(dim=0)
    evolved = torch.zeros(6, dtype=torch.float64)
    for x, a in zip(interests, attention, strict=True):
        evolved = step(interest.augru, x, evolved, a)
    loss = torch.zeros((), dtype=torch.float64)
    for t, before in enumerate(states[:-1]):
        right, wrong = (interest.auxiliary.mlp(torch.cat([before, events[i]])) for i in (t, (t + 2) % 4))
        loss = loss - (torch.sigmoid(right).log() + (1 - torch.sigmoid(wrong)).log()).squeeze() / 4
    user, auxiliary_loss = interest(events, target, sequence_of([4]))
    torch.testing.assert_close(user[0], torch.cat([evolved, events.mean(dim=0)]))
    torch.testing.assert_close(auxiliary_loss, loss, rtol=1e-6, atol=1e-6)


def test_a_long_history_does_not_drown_the_interest() -> None:
    """The sum of so many events would be a hundred times as long as the interest beside it."""
    interest = built(DIEN).eval().interest
    event, target = torch.randn(1, 20), torch.randn(1, 20)
    few, many = (interest(event.expand(n, -1), target, sequence_of([n])).user[0] for n in (2, 200))
    torch.testing.assert_close(many[6:], few[6:])
    none = interest(event[:0], target, sequence_of([0])).user
    assert torch.equal(none, torch.zeros(1, 26))


def test_dien_evolves_towards_the_candidate() -> None:
    """A plain GRU in the AUGRU's place would give both candidates the same interest."""
    interest = built(DIEN).interest
    events, targets = torch.randn(5, 20), 5 * torch.randn(2, 20)
    user, _ = interest(events.repeat(2, 1), targets, sequence_of([5, 5]))
    assert (user[0, :6] - user[1, :6]).abs().max() > 1e-3
    torch.testing.assert_close(user[0, 6:], user[1, 6:])


def test_the_auxiliary_loss_does_not_look_ahead_or_into_other_rows() -> None:
    """Each event is judged by the state before it in its own row: 0 for the first."""
    auxiliary = built(DIEN).interest.auxiliary
    seen: list[Tensor] = []
    auxiliary.mlp.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    states, events = torch.randn(6, 6), torch.randn(6, 20)
    auxiliary(states, events, sequence_of([0, 3, 0, 2, 1, 0]))
    before = torch.stack([states[0] * 0, states[0], states[1], states[2] * 0, states[3], states[4] * 0])
    assert torch.equal(seen[0], torch.cat([before, events], dim=1))
    assert torch.equal(seen[1], torch.cat([before, events[[3, 4, 5, 0, 1, 2]]], dim=1))


@pytest.mark.parametrize("candidates", [2, 3, 4])
def test_the_auxiliary_loss_tells_an_event_from_one_of_another_item(candidates: int) -> None:
    """Half a batch away lies the very same event, where each history is repeated for an even number of candidates."""
    auxiliary = built(DIEN).interest.auxiliary
    seen: list[Tensor] = []
    auxiliary.mlp.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0][:, 6:]))
    ids = torch.arange(4)
    history = EventSequence(ids, ids[:, None], ids, torch.tensor([0, 4]), 4).repeat(candidates)
    events = torch.eye(4, 20)[history.item_ids]
    auxiliary(torch.randn(len(events), 6), events, history)
    happened, others = (found.argmax(dim=1) for found in seen)
    assert torch.equal(happened, history.item_ids)
    assert (others != happened).all() and others.bincount(minlength=4).tolist() == [candidates] * 4


def test_where_all_events_are_of_one_item_the_auxiliary_loss_tells_none_apart() -> None:
    auxiliary = built(DIEN).interest.auxiliary
    states, events = torch.randn(3, 6), torch.randn(1, 20).expand(3, -1)
    same = torch.zeros(3, dtype=torch.int64)
    history = EventSequence(same, same[:, None], same, torch.tensor([0, 3]), 3)
    before = torch.cat([torch.zeros(1, 6), states[:2]])
    happened = auxiliary.mlp(torch.cat([before, events], dim=1))
    torch.testing.assert_close(auxiliary(states, events, history), softplus(-happened).mean())
    alone = auxiliary(states[:1], events[:1], sequence_of([1]))
    torch.testing.assert_close(alone, softplus(-happened[0, 0]))


def test_the_auxiliary_loss_trains_interests_and_events_and_nothing_behind_them() -> None:
    model = built(DIEN)
    batch = zoo_checks.batch_of(DIEN, zoo_checks.lengths_of(DIEN, SAMPLES))
    output = model(batch)
    assert isinstance(output, TrainingOutput)
    output.auxiliary_loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    groups = ("events.", "interest.gru.", "interest.auxiliary.")
    assert trained == {name for name, _ in model.named_parameters() if name.startswith(groups)}


def test_the_auxiliary_loss_is_weighed_and_only_there_in_training() -> None:
    batch = zoo_checks.batch_of(DIEN, zoo_checks.lengths_of(DIEN, SAMPLES))
    full, part = built(DIEN)(batch), built(replace(DIEN, aux_weight=0.3))(batch)
    torch.testing.assert_close(part.auxiliary_loss, 0.3 * full.auxiliary_loss)
    assert torch.equal(part.logits, full.logits)
    assert torch.equal(built(DIEN).eval()(batch), full.logits)
    assert isinstance(built(CONFIG)(batch), Tensor)


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_a_workload_of_dien(mode: str) -> None:
    """The loss is the click loss and the auxiliary one, and the closed form knows which of them the mode has."""
    spec = WorkloadSpec("din", "tiny", {"dien": "true"}, mode=mode, device="cpu", batch_size=4, steps=1)  # type: ignore[arg-type]
    workload = prepare(spec)
    (batch,) = workload.inputs
    output = workload.forward(workload.module, batch)
    assert workload.needed is not None
    needed, _ = workload.needed(batch)
    flops = DIN.model_flops(DIN.config("tiny", overrides={"dien": True}), batch.lengths())
    assert needed == (flops if mode == "train" else flops.inference)
    if mode == "train":
        torch.testing.assert_close(workload.loss(output, batch), zoo_checks.bce(output, batch))
    else:
        assert isinstance(output, Tensor)
    run_step(workload, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 0}, "max_length=0; allowed: at least 1"),
        ({"interest_width": 0}, "interest_width=0; allowed: at least 1"),
        ({"att_mlp": ()}, r"att_mlp=\(\); allowed: one or more widths of at least 1"),
        ({"head_mlp": (8, 0)}, r"head_mlp=\(8, 0\); allowed: one or more widths of at least 1"),
        ({"aux_mlp": (-1,)}, r"aux_mlp=\(-1,\); allowed: one or more widths of at least 1"),
        ({"width": 5}, "width=5; allowed: at least 6"),
        ({"aux_weight": 0.0}, "aux_weight=0.0; allowed: more than 0"),
        ({"schema": replace(AWKWARD, sequences=())}, "source test has no event sequence; din needs one"),
    ],
)
def test_bad_configs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        replace(CONFIG, **change)
