"""Budgets that are computed: what rounds otherwise passes, what is wrong in one place does not."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mfu_kernels import OPS
from mfubench.optimize.build import build
from mfubench.optimize.changes import UseDtype, UseImpl
from mfubench.optimize.numbers import (
    STEPS,
    Finding,
    check_results,
    check_training,
    draws_random_numbers,
    results,
    rounding,
)
from mfubench.optimize.rows import with_empty_histories
from mfubench.workload.prepare import prepare
from mfubench.workload.spec import Workload, WorkloadSpec

ONE_LAYER = {"num_layers": "1", "engagement.num_layers": "1"}
SPEC = WorkloadSpec("kunlun", size="tiny", overrides=ONE_LAYER, batch_size=6, steps=2, device="cpu")
OP = "sum_kron_linear"


@pytest.fixture
def original(sparse_tables: None) -> Workload:
    return prepare(SPEC)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Tensor]], Workload]:
    """The workload with a kernel of our own for OP: ``kernel(reference, x, z, w)``."""
    reference = OPS[OP].implementations["reference"]

    def planted(kernel: Callable[..., Tensor]) -> Workload:
        implementation = lambda *args, **kwargs: kernel(reference, *args, **kwargs)  # noqa: E731
        monkeypatch.setitem(OPS[OP].implementations, "triton", implementation)  # type: ignore[arg-type]
        monkeypatch.setattr("mfu_kernels.registry._check_triton_runs", lambda op, device: None)
        return build(SPEC, [UseImpl(OP, "triton")])

    return planted


def checked(original: Workload, changed: Workload) -> Finding:
    batches = {"a batch": original.inputs[0], "a batch with empty rows": with_empty_histories(original.inputs[1])}
    return check_results(original, changed, batches)


def test_the_model_itself_is_well_within(original: Workload) -> None:
    found = checked(original, prepare(SPEC))
    assert found.passed and found.share <= 0.25 and found.truth == "fp64"


def test_another_order_of_the_same_sums_passes(original: Workload, plant: Any) -> None:
    """H = sum_r Z_r^T X W_r, the W products first and the ranks summed from the last on."""

    def other_order(_reference: Any, x: Tensor, z: Tensor, w: Tensor) -> Tensor:
        terms = [z[r].T @ (x @ w[r]) for r in range(z.shape[0])]
        total = terms.pop()
        while terms:
            total = total + terms.pop()
        return total

    found = checked(original, plant(other_order))
    assert found.passed and found.share > 0


class WrongGradient(torch.autograd.Function):
    """The identity, whose gradient is off by one part in ten thousand in one element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        wrong = grad.clone()
        wrong.view(-1)[grad.abs().argmax()] *= 1 + 1e-4
        return wrong


def test_one_wrong_gradient_is_refused(original: Workload, plant: Any) -> None:
    """Outputs are right to the last bit; one element of one gradient is not."""
    changed = plant(lambda reference, x, z, w: reference(x, z, WrongGradient.apply(w)))
    found = checked(original, changed)
    assert not found.passed and found.tensor.startswith("gradient of towers.") and found.tensor.endswith(".w")
    batch = original.inputs[0]
    assert torch.equal(results(original, batch)["output 0"], results(changed, batch)["output 0"])


def test_a_missing_gradient_is_refused(original: Workload, plant: Any) -> None:
    found = checked(original, plant(lambda reference, x, z, w: reference(x, z.detach(), w)))
    assert not found.passed and "only one of the two has it" in found.tensor


def test_numbers_that_are_not_finite_are_refused(original: Workload, plant: Any) -> None:
    found = checked(original, plant(lambda reference, x, z, w: reference(x, z, w) * float("nan")))
    assert not found.passed and found.share == float("inf")


def test_wrong_only_on_empty_rows_is_refused(original: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = OPS["seed_pooling"].implementations["reference"]

    def kernel(seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *others: Any, **options: Any) -> Tensor:
        pooled = reference(seeds, k, v, offsets, *others, **options)
        empty = offsets.diff() == 0
        return torch.where(empty[:, None, None, None], torch.ones_like(pooled), pooled)

    monkeypatch.setitem(OPS["seed_pooling"].implementations, "triton", kernel)  # type: ignore[arg-type]
    monkeypatch.setattr("mfu_kernels.registry._check_triton_runs", lambda op, device: None)
    changed = build(SPEC, [UseImpl("seed_pooling", "triton")])
    assert check_results(original, changed, {"a batch": original.inputs[0]}).passed
    found = checked(original, changed)
    assert not found.passed and found.batch == "a batch with empty rows"


def test_bf16_is_held_to_what_bf16_errs(original: Workload) -> None:
    changed = build(SPEC, [UseDtype("bf16")])
    found = checked(original, changed)
    assert found.passed and found.dtype == "bf16"
    strict = checked(original, replace(changed, dtype="fp32"))  # the same module without autocast
    assert strict.passed and strict.dtype == "fp32"


def test_wrong_beyond_bf16_is_refused_in_bf16(original: Workload, plant: Any) -> None:
    changed = replace(plant(lambda reference, x, z, w: 1.5 * reference(x, z, w)), dtype="bf16")
    assert not checked(original, changed).passed


# Rounding ---------------------------------------------------------------------------------------------------------


def test_rounding_moves_sums_as_a_sum_from_left_to_right_may_err() -> None:
    x = torch.full((4096,), 0.1)
    naive = torch.tensor(0.0)
    for value in x:
        naive = naive + value
    moved = []
    for seed in range(20):
        with rounding(seed):
            moved.append(float(x.sum()))
    truth = float(x.double().sum())
    spread = max(abs(value - truth) for value in moved)
    assert abs(float(x.sum()) - truth) < spread and abs(float(naive) - truth) < 64 * spread
    assert len(set(moved)) > 1


def test_rounding_leaves_copies_and_whole_numbers() -> None:
    x, ids = torch.randn(1000), torch.arange(5)
    with rounding(0):
        assert torch.equal(x.clone(), x) and torch.equal(torch.cat([x, x])[:1000], x)
        assert torch.equal(ids + ids, 2 * ids)
        assert not torch.equal(x * 1.0, x)


def test_rounding_moves_gradients_too() -> None:
    weight = torch.randn(8, 8, requires_grad=True)

    def gradient() -> Tensor:
        (found,) = torch.autograd.grad((torch.ones(3, 8) @ weight).tanh().sum(), weight)
        return found

    plain = gradient()
    with rounding(1):
        moved = gradient()
    assert not torch.equal(plain, moved)
    torch.testing.assert_close(plain, moved, rtol=1e-5, atol=1e-6)


# Trainings --------------------------------------------------------------------------------------------------------


def test_the_same_model_trains_alike_and_is_left_as_it_was(original: Workload) -> None:
    before = {name: value.clone() for name, value in original.module.state_dict().items()}
    found = check_training(original, prepare(SPEC))
    assert found.passed and found.share == 0.0
    assert all(torch.equal(value, before[name]) for name, value in original.module.state_dict().items())
    assert not any(state for optimizer in original.optimizers[:1] for state in optimizer.state.values())


def test_a_training_that_drifts_is_refused(original: Workload) -> None:
    """Right gradients, wrong updates: nothing but the losses shows it."""
    changed = prepare(SPEC)
    for group in changed.optimizers[0].param_groups:
        group["lr"] *= 1.05
    assert checked(original, changed).passed
    found = check_training(original, changed)
    assert not found.passed and 0 < found.step < STEPS


@pytest.mark.parametrize(("units", "passes"), [(1, True), (16, False)])
def test_a_loss_that_is_rounded_the_other_way_passes(
    units: int, passes: bool, original: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One unit in the last place is no wrong loss, also where no training from moved parameters happens to stray."""
    monkeypatch.setattr("mfubench.optimize.numbers.move_parameters", lambda module, roundoff, seed: None)

    def moved(output: Any, batch: Any) -> Tensor:
        loss = original.loss(output, batch)
        unit = torch.nextafter(loss.detach(), torch.tensor(torch.inf)) - loss.detach()
        return loss + units * unit

    found = check_training(original, replace(prepare(SPEC), loss=moved))
    assert found.share > 0 and found.passed is passes


# State ------------------------------------------------------------------------------------------------------------


class Counts(nn.Module):
    """What it computes depends on how often it was called, in a buffer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 1)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("average", torch.zeros(6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.average = 0.5 * self.average + 0.5 * x.mean(0)
        return self.linear(x - self.average) * (1 + self.calls)


def test_a_model_that_changes_its_own_state_is_held_against_itself(original: Workload) -> None:
    one, other = random_workload(original, Counts)
    state = {name: (buffer, buffer.clone()) for name, buffer in one.module.named_buffers()}
    results(other, other.inputs[0])  # as where it is compiled
    found = check_results(one, other, {"a batch": one.inputs[0]})
    assert found.share <= 0.25
    trained = check_training(one, other)
    assert trained.share == 0.0
    for name, (buffer, value) in state.items():
        assert one.module.get_buffer(name) is buffer and torch.equal(buffer, value)


def test_its_state_is_no_noise_that_hides_what_is_wrong(original: Workload) -> None:
    one, other = random_workload(original, Counts)
    forward = replace(other, forward=lambda model, batch: model(*batch) * (1 + 1e-4))
    assert not check_results(one, forward, {"a batch": one.inputs[0]}).passed
    assert not check_training(one, forward).passed


# Chance -----------------------------------------------------------------------------------------------------------


class Drops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(self.first(x)))


class AlwaysDrops(Drops):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.dropout(self.first(x), 0.5, training=True))


def random_workload(original: Workload, kind: type[nn.Module]) -> tuple[Workload, Workload]:
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        module = kind()
        optimizers = [torch.optim.AdamW(module.parameters(), lr=1e-2)]
        x = torch.randn(12, 6)
        parts = {"module": module, "inputs": [(x,)], "num_samples": [12], "optimizers": optimizers, "needed": None}
        forward, loss = (lambda model, batch: model(*batch)), (lambda output, batch: output.square().mean())
        made.append(replace(original, forward=forward, loss=loss, **parts))
    return made[0], made[1]


def test_dropout_is_off_while_numbers_are_compared(original: Workload) -> None:
    one, other = random_workload(original, Drops)
    assert draws_random_numbers(one)
    assert check_results(one, other, {"a batch": one.inputs[0]}).passed
    assert one.module.training and one.module.drop.training
    with torch.no_grad():
        other.module.last.bias.add_(1e-3)
    assert not check_results(one, other, {"a batch": one.inputs[0]}).passed
    assert check_training(one, other).passed  # far within what dropout does by itself


class Scores(Drops):
    """Gives its own loss in training, and scores elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        scores = super().forward(x)
        return scores.square().mean() if self.training else scores.sum(1)


class ScoresByItself(Scores):
    def forward(self, x: Tensor) -> Tensor:
        scores = self.last(nn.functional.dropout(self.first(x), 0.5, training=self.training))
        return scores.square().mean() if self.training else scores.sum(1)


def test_a_training_is_compared_as_one_where_its_dropout_can_be_turned_off_alone(original: Workload) -> None:
    one, other = random_workload(original, Scores)
    one.loss = other.loss = lambda output, batch: output
    assert check_results(one, other, {"a batch": one.inputs[0]}).passed
    assert all(module.training for module in one.module.modules())


def test_a_model_that_runs_in_training_alone_is_told_why_it_cannot_be_compared(original: Workload) -> None:
    one, other = random_workload(original, ScoresByItself)
    one.loss = other.loss = lambda output, batch: output
    with pytest.raises(
        ValueError, match="only be compared in evaluation, and there its step fails: RuntimeError: grad"
    ):
        check_results(one, other, {"a batch": one.inputs[0]})
    assert one.module.training


def test_chance_that_cannot_be_turned_off_is_refused(original: Workload) -> None:
    one, other = random_workload(original, AlwaysDrops)
    with pytest.raises(ValueError, match="random numbers in evaluation too"):
        check_results(one, other, {"a batch": one.inputs[0]})


class DrawsOtherwise(Drops):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x)) + (random.random() if self.draws == "random" else np.random.rand())


@pytest.mark.parametrize("draws", ["random", "numpy"])
def test_chance_that_is_not_torchs_is_seen(draws: str, original: Workload) -> None:
    one, other = random_workload(original, DrawsOtherwise)
    one.module.draws = other.module.draws = draws  # type: ignore[assignment]
    with pytest.raises(ValueError, match="random numbers in evaluation too"):
        check_results(one, other, {"a batch": one.inputs[0]})


# Masks, and what a loss knows -------------------------------------------------------------------------------------


class Masks(Drops):
    """Scores, of which those that are not to be chosen are far below the others."""

    low: float

    def forward(self, x: Tensor) -> Tensor:
        mask = x > 0
        scores = x * self.last(self.first(x)) / mask.sum(1, keepdim=True).clamp(min=1)
        return scores.masked_fill(mask, torch.finfo(scores.dtype).min if self.low == 0 else self.low)


@pytest.mark.parametrize("low", [-torch.inf, -1e9, 0.0], ids=["-inf", "-1e9", "finfo.min"])
def test_masked_scores_are_judged_by_those_that_are_not(low: float, original: Workload) -> None:
    one, other = random_workload(original, Masks)
    one.module.low = other.module.low = low  # type: ignore[assignment]
    one.loss = other.loss = lambda output, batch: output[output > -1e8].square().mean()
    assert check_results(one, other, {"a batch": one.inputs[0]}).share <= 0.25
    wrong = replace(other, forward=lambda model, batch: model(*batch) * (1 + 1e-4))
    assert not check_results(one, wrong, {"a batch": one.inputs[0]}).passed
    unmasked = replace(other, forward=lambda model, batch: model(*batch).clamp(min=-1e3))
    assert not check_results(one, unmasked, {"a batch": one.inputs[0]}).passed


def test_a_loss_may_know_the_models_weights(original: Workload) -> None:
    """As one does that scores against a table which the model looks up as well."""
    one, other = random_workload(original, Drops)
    for workload in (one, other):
        weight = workload.module.first.weight
        workload.module.drop = nn.Identity()
        workload.loss = lambda output, batch, weight=weight: (output * weight.sum(1)).square().mean()
    weights = one.module.first.weight.clone()
    found = check_results(one, other, {"a batch": one.inputs[0]})
    assert found.share <= 0.25 and found.truth == "fp64"
    assert torch.equal(one.module.first.weight, weights)
    other.module.first.weight.register_hook(lambda grad: grad * (1 + 1e-4))
    assert not check_results(one, other, {"a batch": one.inputs[0]}).passed
