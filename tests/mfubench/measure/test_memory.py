"""The memory pass: what is alive at the peak, to the byte, by kind and by the module that it belongs to."""

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mfubench.measure.memory import KINDS, MADE, MemoryPeak, peak_of_step
from mfubench.measure.scopes import BACKWARD, DATA, FORWARD, LOSS, OPTIMIZER, ROOT, ScopeTracker
from mfubench.workload.step import make_optimizers, run_step
from tests.mfubench.steps import training_step

BIG = 1 << 20  # elements; dwarfs everything else
FLOAT = 4


def peak(
    model: nn.Module, *inputs: Tensor, optimizers: Sequence[torch.optim.Optimizer] = (), train: bool = True
) -> MemoryPeak:
    """Peak of one step with the sum of the output as loss."""

    def forward(tracker: ScopeTracker) -> None:
        with torch.no_grad(), tracker.phase(FORWARD):
            model(*inputs)

    step = training_step(model, *inputs, optimizers=optimizers) if train else forward
    return peak_of_step(model, list(optimizers), step)


def trained(model: nn.Module, *inputs: Tensor) -> list[torch.optim.Optimizer]:
    """Its optimizers, after a step that made their state."""
    optimizers = make_optimizers(model)
    model(*inputs).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return optimizers


def mlp(width: int = 64) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 8))


class Planted(nn.Module):
    """Makes a big tensor of its own, which the backward pass needs, or not."""

    def __init__(self, kept: bool = True) -> None:
        super().__init__()
        self.scale, self.kept = nn.Parameter(torch.ones(1)), kept

    def forward(self, x: Tensor) -> Tensor:
        big = x.new_zeros(BIG) if self.kept else x.new_zeros(2 * BIG)[:1].clone()
        return x + (big * self.scale).sum()


def test_kinds_and_modules_add_up_to_the_peak() -> None:
    """A part that is missing, or counted twice, would show here."""
    model, x = mlp(), torch.randn(16, 8)
    found = peak(model, x, optimizers=trained(model, x))
    assert tuple(found.by_kind) == KINDS and found.peak_bytes > 0
    assert sum(found.by_kind.values()) == sum(found.by_module.values()) == found.peak_bytes
    assert all(size >= 0 for size in (*found.by_kind.values(), *found.by_module.values()))


def test_parameters_gradients_and_state_to_the_byte() -> None:
    """With one sample the peak lies in the optimizer, where all gradients are alive and no activation is."""
    model, x = mlp(), torch.randn(1, 8)
    found = peak(model, x, optimizers=trained(model, x))
    parameters = FLOAT * (8 * 64 + 64 + 64 * 8 + 8)
    assert found.by_kind["parameters"] == found.by_kind["gradients"] == parameters
    assert found.by_kind["optimizer_state"] == 2 * parameters + 4 * FLOAT  # two moments, and each tensor's step count
    first = FLOAT * (8 * 64 + 64)
    assert 4 * first <= found.by_module["0"] <= 4 * first + 2 * FLOAT + FLOAT * 64


def test_a_big_activation_stands_under_its_module() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Planted(), nn.Linear(4, 4))
    found = peak(model, torch.randn(2, 4))
    # The big tensor and its product with the scale, of which the second is gone when the gradients come.
    assert found.by_module["1"] >= FLOAT * 2 * BIG > 0.99 * found.peak_bytes
    assert found.by_kind["activations"] >= FLOAT * BIG
    assert max(found.by_module["0"], found.by_module["2"]) < FLOAT * 1000


def test_what_is_freed_is_taken_off() -> None:
    """Three big tensors, of which one lives at a time."""
    model = nn.Sequential(*(Planted(kept=False) for _ in range(3)))
    found = peak(model, torch.randn(2, 4))
    assert FLOAT * 2 * BIG <= found.peak_bytes < FLOAT * 2 * BIG + 10_000


def test_what_made_it_is_known() -> None:
    """What is made is known by its operators; a parameter, a gradient and optimizer state are what they are."""
    model, x = mlp(), torch.randn(16, 8)
    found = peak(model, x, optimizers=trained(model, x))
    assert found.by_key.total() == found.peak_bytes and found.kept_by_key.total() == found.kept_activations.total()
    assert {key.made_by for key in found.by_key if key.kind not in MADE} == {""}
    kept = {(key.module, key.made_by): size for key, size in found.kept_by_key.items() if size}
    assert kept[("1", "elementwise")] == FLOAT * 16 * 64 and kept[("2", "gemm")] == FLOAT * 16 * 8


def test_inference_keeps_no_activations() -> None:
    """Each layer's output dies when the next one's is there; training keeps them all."""
    model, x = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(8))), torch.randn(512, 256)
    layer = FLOAT * 512 * 256
    inferred = peak(model, x, train=False)
    assert inferred.by_kind["activations"] == 2 * layer and inferred.by_kind["gradients"] == 0
    assert peak(model, x).by_kind["activations"] >= 7 * layer


def test_kept_activations_to_the_byte() -> None:
    """A ReLU keeps its output, which the next layer shares; the last output is the loss's input, whose sum is 1."""
    model, x = mlp(), torch.randn(16, 8)
    found = peak(model, x)
    kept = {name: size for name, size in found.kept_activations.items() if size}
    hidden = FLOAT * 16 * 64
    # The first layer's own output is dead when the backward begins: the ReLU has kept its result instead.
    assert kept == {"1": hidden, "2": FLOAT * 16 * 8, LOSS: FLOAT}
    assert not +peak(model, x, train=False).kept_activations


def test_a_batch_that_the_step_fetches_is_no_activation() -> None:
    """A GPU's copy of it is made in the step, and is there whatever the model keeps."""
    model, host = mlp(), torch.randn(16, 8)

    def step(tracker: ScopeTracker) -> None:
        with tracker.phase(DATA):
            x = host.clone()
        with tracker.phase(FORWARD):
            output = model(x)
        with tracker.phase(BACKWARD):
            output.sum().backward()

    found = peak_of_step(model, [], step)
    assert DATA not in found.kept_activations and found.by_module[DATA] == FLOAT * 16 * 8
    assert found.kept_activations == +peak(model, host).kept_activations - Counter({LOSS: FLOAT})
    assert found.by_kind["other"] >= FLOAT * 16 * 8


def test_checkpointing_keeps_no_activations_of_its_block() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = mlp()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = checkpoint(self.block, x, use_reentrant=False)
            return out

    kept = peak(Block(), torch.randn(16, 8)).kept_activations
    assert kept["block.0"] == kept["block.1"] == 0 and kept["block.2"] == FLOAT * 16 * 8


def test_checkpointing_shows_in_the_peak() -> None:
    """What it saves is the reason to use it; what it repeats belongs to the block."""
    x = torch.randn(512, 8)

    class Block(nn.Module):
        def __init__(self, repeat: bool) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(mlp() for _ in range(6)))
            self.repeat = repeat

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = checkpoint(layer, x, use_reentrant=False) if self.repeat else layer(x)
            return x

    plain, repeated = peak(Block(False), x), peak(Block(True), x)
    assert repeated.by_kind["activations"] < plain.by_kind["activations"]
    assert repeated.peak_bytes < 0.8 * plain.peak_bytes
    assert all(name == ROOT or name.startswith(("layers", "(")) for name in repeated.by_module)


def test_sparse_gradients_count_what_they_hold() -> None:
    """A table of a million rows whose batch touches a few makes a gradient of a few rows."""
    model = nn.EmbeddingBag(1_000_000, 4, sparse=True, mode="sum")
    ids = torch.arange(64).view(16, 4)
    found = peak(model, ids, optimizers=trained(model, ids))
    table = FLOAT * 4_000_000
    assert found.by_kind["parameters"] == table and found.by_kind["optimizer_state"] == table + FLOAT
    assert 0 < found.by_kind["gradients"] <= 64 * (8 + 4 * FLOAT)
    assert found.peak_bytes < 2 * table + 100_000


@pytest.mark.parametrize("look", [lambda x: x[:, :4], lambda x: x.unflatten(1, (2, -1)).sum(1)], ids=["slice", "view"])
def test_a_look_at_the_batch_makes_no_memory(look: Callable[[Tensor], Tensor]) -> None:
    """The batch was there before the step; a view of it is no activation of the module that looks."""

    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return look(x)

    found = peak(Looks(), torch.randn(1000, 8), train=False)
    assert found.peak_bytes <= FLOAT * 4000 and sum(found.by_module.values()) == found.peak_bytes


def test_gradients_that_no_optimizer_takes_away_are_there_from_the_start() -> None:
    """As of a parameter that is trained elsewhere: the step adds to its gradient, for which it makes another."""
    model, x = mlp(1000), torch.randn(1, 8)
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    first, found = peak(model, x), peak(model, x)
    assert found.by_kind["gradients"] == parameters and found.peak_bytes > first.peak_bytes


def test_a_shared_parameter_is_there_once() -> None:
    layer = nn.Linear(32, 32)
    assert peak(nn.Sequential(layer, layer), torch.randn(1, 32), train=False).by_kind["parameters"] == FLOAT * 1056


def test_buffers_are_other() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1000, affine=False, track_running_stats=True)).eval()
    found = peak(model, torch.zeros(1, 1000), train=False)
    assert found.by_kind["other"] == 2 * FLOAT * 1000 + 8 and found.by_kind["parameters"] == 0


def test_tensors_that_are_no_buffers_are_there_all_the_same() -> None:
    """As a graph's adjacency that is kept as a plain attribute; what is on another device is not in this memory."""
    model, x = nn.Linear(8, 8), torch.randn(1, 8)
    before = peak(model, x, train=False)
    table = torch.ones(50)
    model.adjacency = torch.eye(100).to_sparse()
    model.__dict__["kept"] = {"a table": table, "elsewhere": torch.ones(9, device="meta"), "no tensor": 3}
    model.__dict__["again"] = [table, model.weight]
    found = peak(model, x, train=False)
    assert found.by_kind["other"] - before.by_kind["other"] == 100 * (2 * 8 + FLOAT) + 50 * FLOAT
    assert found.by_kind["parameters"] == before.by_kind["parameters"]


def test_the_phase_of_the_peak_is_named() -> None:
    model, x = mlp(), torch.randn(1, 8)
    assert peak(model, x, optimizers=trained(model, x)).phase in (BACKWARD, OPTIMIZER)
    assert peak(Planted(), x, train=False).phase == FORWARD


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_a_model_of_the_zoo_adds_up(zoo: Callable[..., object], mode: str) -> None:
    workload = zoo("kunlun", mode=mode)
    run_step(workload, 0)

    def step(tracker: ScopeTracker) -> None:
        run_step(workload, 0, phase=tracker.phase)

    found = peak_of_step(workload.module, workload.optimizers, step)
    parameters = sum(parameter.nbytes for parameter in workload.module.parameters())
    assert found.by_kind["parameters"] == parameters and sum(found.by_module.values()) == found.peak_bytes
    assert (found.by_kind["optimizer_state"] > parameters) == (mode == "train")
    modules = dict(workload.module.named_modules())
    assert all(name in modules or name.startswith("(") for name in found.by_module)


def test_nothing_keeps_the_model_alive() -> None:
    """Many are measured in one process, and the next needs the memory."""
    model = nn.Linear(8, 8)
    gone = weakref.ref(model)
    peak(model, torch.randn(2, 8), optimizers=trained(model, torch.randn(2, 8)))
    with pytest.raises(ValueError, match="broken"):
        peak_of_step(model, [], broken)
    del model
    gc.collect()
    assert gone() is None


def broken(_: ScopeTracker) -> None:
    raise ValueError("broken")
