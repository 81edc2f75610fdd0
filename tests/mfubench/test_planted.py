"""Causes that are planted show in the ledger under their own name, with 80 to 120 % of what they cost.

A plant is most of its step, or carries a stopwatch that runs in the timing pass, so that what else the machine does
hits both sides alike; and the median of a few profiles is compared.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from statistics import median
from time import perf_counter, sleep
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mfu_kernels import gdpa
from mfubench.profiling import profile_workload
from mfubench.run import Run
from mfubench.workload.spec import WARMUP_STEPS, Workload

pytestmark = [pytest.mark.timed, pytest.mark.usefixtures("fixed_calibration")]
ZooWorkload = Callable[..., Workload]
STEPS, PROFILES, MORE_PROFILES = 6, 3, 5


@dataclass
class Stopwatch:
    """Times one stretch of code, once a step."""

    seen_ms: list[float] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        start = perf_counter()
        try:
            yield
        finally:  # a forward that is repeated ends in an exception, as soon as the backward has what it needs
            self.seen_ms.append(1e3 * (perf_counter() - start))

    def timed_ms(self) -> float:
        """Median of the timing pass, which comes after a first step and the warm-up."""
        first = 1 + WARMUP_STEPS
        return median(self.seen_ms[first : first + STEPS])


@pytest.fixture
def plain(zoo: ZooWorkload) -> Callable[..., Workload]:
    """A workload of a module that somebody else wrote, with the mean of its output as loss."""

    def make(module: nn.Module, *inputs: Tensor, mode: str = "train", **changes: Any) -> Workload:
        return replace(
            zoo(mode=mode, steps=STEPS),
            module=module,
            inputs=[inputs],
            num_samples=[1],
            forward=lambda model, batch: model(*batch),
            loss=lambda output, batch: output.mean(),
            **{"to_device": lambda batch: batch, "optimizers": [], "needed": None} | changes,
        )

    return make


def line_ms(run: Run, cause: str) -> float:
    """Milliseconds of one cause, 0 where the ledger has no such line."""
    return sum(line.ms for line in run.ledger if line.cause == cause)


def largest(run: Run) -> str:
    return max(run.ledger, key=lambda line: line.ms).cause


def shown(found: list[tuple[float, float]]) -> None:
    """The median of (what the ledger says / what was planted) is 80 to 120 %."""
    ratios = [said / planted for said, planted in found]
    assert 0.8 <= median(ratios) <= 1.2, found


def test_a_data_step_that_waits_is_data(plain: Callable[..., Workload]) -> None:
    wait_ms, found = 40.0, []

    def slowly(batch: Any) -> Any:
        sleep(wait_ms / 1e3)
        return batch

    for _ in range(PROFILES):
        run = profile_workload(plain(nn.Linear(64, 64), torch.randn(64, 64), to_device=slowly))
        assert largest(run) == "data"
        found.append((line_ms(run, "data"), wait_ms))
    shown(found)


class TinyOps(nn.Module):
    """Thousands of operators on almost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.watch, self.factor = Stopwatch(), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        with self.watch.running():
            for _ in range(3000):
                x = x.mul_(self.factor)
        return x


def test_thousands_of_tiny_operators_are_launch(plain: Callable[..., Workload]) -> None:
    found = []
    for _ in range(MORE_PROFILES):
        model = TinyOps()
        run = profile_workload(plain(model, torch.zeros(()), mode="infer"))
        assert largest(run) == "launch"
        found.append((line_ms(run, "launch"), model.watch.timed_ms()))
    shown(found)


class Repeated(nn.Module):
    """A heavy MLP whose whole forward is made again in the backward: its last operator keeps its output for it."""

    def __init__(self) -> None:
        super().__init__()
        self.watch = Stopwatch()
        self.block = nn.Sequential(*(part for _ in range(4) for part in (nn.Linear(512, 512), nn.Sigmoid())))

    def heavy(self, x: Tensor) -> Tensor:
        repeated = torch._C._current_autograd_node() is not None
        with self.watch.running() if repeated else nullcontext():
            out: Tensor = self.block(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.heavy, x, use_reentrant=False)
        return out


def test_activation_checkpointing_is_recompute(plain: Callable[..., Workload]) -> None:
    found = []
    for _ in range(MORE_PROFILES):
        model = Repeated()
        run = profile_workload(plain(model, torch.randn(512, 512)))
        found.append((line_ms(run, "recompute"), model.watch.timed_ms()))
        (line,) = (line for line in run.ledger if line.cause == "recompute")
        assert all(name.startswith("block.") for name in line.modules)
    shown(found)


class Padded(nn.Module):
    """Attention whose reference pads every row to the longest."""

    def __init__(self, lengths: list[int]) -> None:
        super().__init__()
        self.kv = nn.Parameter(torch.randn(len(lengths), 64, 2, 32))
        self.register_buffer("offsets", torch.tensor([0, *lengths]).cumsum(0))
        self.longest = max(lengths)

    def forward(self, x: Tensor) -> Tensor:
        return gdpa(x, self.kv, self.kv, self.offsets, max_length=self.longest, impl="reference")


def test_one_very_long_row_is_padding(plain: Callable[..., Workload]) -> None:
    """What it costs is what the same events take less when they are spread evenly."""
    long, even = [976, *[16] * 31], [46] * 32
    assert sum(long) == sum(even)
    found = []
    for _ in range(PROFILES):
        x = torch.randn(sum(long), 2, 32, requires_grad=True)
        uneven, spread = (profile_workload(plain(Padded(lengths), x)) for lengths in (long, even))
        assert largest(uneven) == "padding" and line_ms(spread, "padding") == 0
        planted = uneven.step["time_ms"]["median"] - spread.step["time_ms"]["median"]
        found.append((line_ms(uneven, "padding"), planted))
    shown(found)


class ManyParameters(nn.Module):
    """Many small tensors to update, and little else to do."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ParameterList(torch.randn(32) for _ in range(500))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.stack(list(self.parts)).sum(0)


class LoopedAdam(torch.optim.Adam):
    """One parameter after the other, a dozen operators each."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module.parameters(), lr=1e-3, foreach=False, fused=False)
        self.watch = Stopwatch()

    def step(self, closure: Any = None) -> Any:
        with self.watch.running():
            return super().step(closure)


def test_an_optimizer_that_is_not_fused_is_optimizer(plain: Callable[..., Workload]) -> None:
    found = []
    for _ in range(PROFILES):
        model = ManyParameters()
        optimizer = LoopedAdam(model)
        run = profile_workload(plain(model, torch.randn(4, 32), optimizers=[optimizer]))
        assert largest(run) == "optimizer"
        found.append((line_ms(run, "optimizer"), optimizer.watch.timed_ms()))
    shown(found)
