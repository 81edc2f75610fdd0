"""Causes that are planted show in the ledger under their own name, with 80 to 120 % of what they cost.

A plant is most of its step, or carries a stopwatch that runs in the timing pass, so that what else the machine does
hits both sides alike; the same step without it is profiled in turn, and the medians of a few profiles are compared. No
other line may move by more than a tenth of the step.
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
from mfu_models.common.layers import LayerNorm
from mfubench.measure.calibrate import Calibration, load_or_calibrate
from mfubench.measure.timing import time_steps
from mfubench.profiling import profile_workload
from mfubench.run import Run
from mfubench.workload.spec import WARMUP_STEPS, Workload

pytestmark = [pytest.mark.timed, pytest.mark.usefixtures("fixed_calibration")]
ZooWorkload = MakePlain = Callable[..., Workload]
STEPS, PROFILES, MORE_PROFILES = 6, 3, 5
MAX_MOVED = 0.1  # of the step, by which another line may differ


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
        return median(self._of_timing_pass())

    def fastest_ms(self) -> float:
        """The least of the timing pass: what a bandwidth is calibrated by on a CPU."""
        return min(self._of_timing_pass())

    def _of_timing_pass(self) -> list[float]:
        first = 1 + WARMUP_STEPS
        return self.seen_ms[first : first + STEPS]


@pytest.fixture
def plain(zoo: ZooWorkload) -> MakePlain:
    """A workload of a module that somebody else wrote, with the mean of its output as loss."""

    def make(
        module: nn.Module, *inputs: Tensor, mode: str = "train", on: str = "cpu", dtype: str = "fp32", **changes: Any
    ) -> Workload:
        return replace(
            zoo(mode=mode, steps=STEPS, device=on, dtype=dtype),
            module=module.to(on),
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


def step_ms(run: Run) -> float:
    return float(run.step["time_ms"]["median"])


Cost = Callable[[Run, Run], float]
"""Milliseconds that a plant cost, from the profiles of the step without it and with it."""


def shown(
    cause: str,
    plain: Callable[[], Workload],
    planted: Callable[[], tuple[Workload, Cost]],
    *,
    profiles: int = PROFILES,
    beyond: str = "",
) -> list[Run]:
    """The plant's profiles, after holding them against what it cost and against the same step without it.

    ``beyond`` is a line that the plant may move too.
    """
    without, runs, ratios = [], [], []
    for _ in range(profiles):
        without.append(profile_workload(plain()))
        workload, cost_ms = planted()
        runs.append(profile_workload(workload))
        ratios.append(line_ms(runs[-1], cause) / cost_ms(without[-1], runs[-1]))
    assert 0.8 <= median(ratios) <= 1.2, ratios
    others = {line.cause for run in (*without, *runs) for line in run.ledger} - {cause, beyond}
    middle = median(step_ms(run) for run in runs)
    moved = {
        name: (median(line_ms(run, name) for run in runs) - median(line_ms(run, name) for run in without)) / middle
        for name in others
    }
    assert not {name: share for name, share in moved.items() if abs(share) > MAX_MOVED}
    return runs


def test_a_data_step_that_waits_is_data(plain: MakePlain) -> None:
    def workload(**changes: Any) -> Workload:
        return plain(nn.Linear(64, 64), torch.randn(64, 64), **changes)

    def planted() -> tuple[Workload, Cost]:
        watch = Stopwatch()

        def slowly(batch: Any) -> Any:
            with watch.running():
                sleep(0.04)
            return batch

        return workload(to_device=slowly), lambda *_: watch.timed_ms()

    runs = shown("data", workload, planted)
    assert {largest(run) for run in runs} == {"data"}


class TinyOps(nn.Module):
    """Thousands of operators on almost nothing."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.watch, self.factor = number, Stopwatch(), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        with self.watch.running():
            for _ in range(self.number):
                x = x.mul_(self.factor)
        return x


def test_thousands_of_tiny_operators_are_launch(plain: MakePlain) -> None:
    def workload(model: TinyOps) -> Workload:
        return plain(model, torch.zeros(()), mode="infer")

    def planted() -> tuple[Workload, Cost]:
        model = TinyOps(3000)
        return workload(model), lambda *_: model.watch.timed_ms()

    runs = shown("launch", lambda: workload(TinyOps(1)), planted, profiles=MORE_PROFILES)
    assert {largest(run) for run in runs} == {"launch"}


NORM_SHAPE = (65536, 1024)  # 256 MiB, as large as the copy that the calibration times


class HugeNorm(nn.Module):
    """A norm that reads and writes far more than any cache holds, and a copy of as many bytes beside it."""

    def __init__(self, with_norm: bool) -> None:
        super().__init__()
        self.norm_watch, self.copy_watch = Stopwatch(), Stopwatch()
        self.norm = nn.LayerNorm(NORM_SHAPE[-1], elementwise_affine=False) if with_norm else nn.Identity()
        self.register_buffer("target", torch.zeros(NORM_SHAPE))

    def forward(self, x: Tensor) -> Tensor:
        with self.copy_watch.running():
            self.target.copy_(x)  # type: ignore[operator]
        with self.norm_watch.running():
            return self.norm(x)  # type: ignore[no-any-return]


def test_the_traffic_of_a_norm_over_a_huge_tensor_is_memory_bound(
    plain: MakePlain, calibrated: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs what a copy of the same bytes does; all that the norm takes stands in the lines of norms."""
    monkeypatch.setattr("mfubench.profiling.load_or_calibrate", lambda *args, **options: calibrated)
    x, models = torch.randn(NORM_SHAPE), []

    def planted() -> tuple[Workload, Cost]:
        models.append(HugeNorm(with_norm=True))
        return plain(models[-1], x, mode="infer"), lambda *_: models[-1].copy_watch.fastest_ms()

    # What a CPU's norm takes beyond its traffic, fresh pages above all, is inefficiency of the same class.
    beyond = "inefficiency.norm"
    runs = shown("memory_bound.norm", lambda: plain(HugeNorm(with_norm=False), x, mode="infer"), planted, beyond=beyond)
    whole = [(line_ms(run, "memory_bound.norm") + line_ms(run, beyond)) for run in runs]
    ratios = [said / model.norm_watch.timed_ms() for said, model in zip(whole, models, strict=True)]
    assert 0.8 <= median(ratios) <= 1.2, ratios


@pytest.fixture
def own_peaks(fixed_calibration: Calibration, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peaks of the GPU that is here, not fixed ones, and no window for an energy that nobody asks for."""
    monkeypatch.setattr("mfubench.profiling.load_or_calibrate", load_or_calibrate)
    monkeypatch.setattr("mfubench.measure.nvml.MIN_ENERGY_WINDOW_S", 0.0)


@pytest.mark.gpu
@pytest.mark.usefixtures("own_peaks")
def test_a_norm_over_a_huge_tensor_is_memory_bound_on_a_gpu(plain: MakePlain) -> None:
    """There, too, it costs what a copy of the same bytes does; what its kernel takes longer is inefficiency."""
    x, target = torch.randn(NORM_SHAPE, device="cuda"), torch.empty(NORM_SHAPE, device="cuda")
    norm, nothing = LayerNorm(NORM_SHAPE[-1], "triton").cuda(), nn.Identity()

    def workload(model: nn.Module) -> Workload:
        return plain(nn.Sequential(nn.LeakyReLU(), model), x, mode="infer", on="cuda", dtype="fp32")

    def cost_ms(*_: Run) -> float:
        return cuda_ms(lambda: target.copy_(x))

    beyond = "inefficiency.norm"
    shown("memory_bound.norm", lambda: workload(nothing), lambda: (workload(norm), cost_ms), beyond=beyond)


class OneInFp32(nn.Module):
    """Two products under autocast, the second of which leaves it or not."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.own = dtype
        self.first, self.second = (nn.Linear(8192, 8192, bias=False, device="cuda") for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=self.own == torch.bfloat16):
            return self.second(x.to(self.own))  # type: ignore[no-any-return]


@pytest.mark.gpu
@pytest.mark.usefixtures("own_peaks")
def test_a_product_in_fp32_in_a_bf16_model_is_dtype(plain: MakePlain) -> None:
    """It costs what the product takes longer than in bf16."""
    x = torch.randn(8192, 8192, device="cuda")
    half = x.bfloat16()

    def workload(dtype: torch.dtype) -> Workload:
        return plain(OneInFp32(dtype), x, mode="infer", on="cuda", dtype="bf16")

    def cost_ms(*_: Run) -> float:
        return cuda_ms(lambda: x @ x) - cuda_ms(lambda: half @ half)

    runs = shown("dtype", lambda: workload(torch.bfloat16), lambda: (workload(torch.float32), cost_ms))
    (line,) = (line for line in runs[0].ledger if line.cause == "dtype")
    assert line.modules == ["second"]


def cuda_ms(call: Callable[[], object]) -> float:
    """Median milliseconds of a call on the GPU, the warm-up left out."""

    def step(_index: int) -> None:
        call()

    return median(time_steps(step, device=torch.device("cuda"), num_steps=20, warmup=5))


class Repeated(nn.Module):
    """A heavy MLP whose whole forward is made again in the backward: its last operator keeps its output for it."""

    def __init__(self, repeats: bool) -> None:
        super().__init__()
        self.repeats, self.watch = repeats, Stopwatch()
        self.block = nn.Sequential(*(part for _ in range(4) for part in (nn.Linear(512, 512), nn.Sigmoid())))

    def heavy(self, x: Tensor) -> Tensor:
        repeated = torch._C._current_autograd_node() is not None
        with self.watch.running() if repeated else nullcontext():
            out: Tensor = self.block(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.heavy, x, use_reentrant=False) if self.repeats else self.heavy(x)
        return out


def test_activation_checkpointing_is_recompute(plain: MakePlain) -> None:
    def planted() -> tuple[Workload, Cost]:
        model = Repeated(repeats=True)
        return plain(model, torch.randn(512, 512)), lambda *_: model.watch.timed_ms()

    def without() -> Workload:
        return plain(Repeated(repeats=False), torch.randn(512, 512))

    for run in shown("recompute", without, planted, profiles=MORE_PROFILES):
        (line,) = (line for line in run.ledger if line.cause == "recompute")
        assert all(name.startswith("block.") for name in line.modules)


class Padded(nn.Module):
    """Attention whose reference pads every row to the longest."""

    def __init__(self, lengths: list[int]) -> None:
        super().__init__()
        self.kv = nn.Parameter(torch.randn(len(lengths), 64, 2, 32))
        self.register_buffer("offsets", torch.tensor([0, *lengths]).cumsum(0))
        self.longest = max(lengths)

    def forward(self, x: Tensor) -> Tensor:
        return gdpa(x, self.kv, self.kv, self.offsets, max_length=self.longest, impl="reference")


def test_one_very_long_row_is_padding(plain: MakePlain) -> None:
    """What it costs is what the same events take less when they are spread evenly."""
    long, even = [976, *[16] * 31], [46] * 32
    assert sum(long) == sum(even)
    x = torch.randn(sum(long), 2, 32, requires_grad=True)

    def cost_ms(without: Run, uneven: Run) -> float:
        return step_ms(uneven) - step_ms(without)

    runs = shown("padding", lambda: plain(Padded(even), x), lambda: (plain(Padded(long), x), cost_ms))
    assert {largest(run) for run in runs} == {"padding"}


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


def test_an_optimizer_that_is_not_fused_is_optimizer(plain: MakePlain) -> None:
    def planted() -> tuple[Workload, Cost]:
        model = ManyParameters()
        optimizer = LoopedAdam(model)
        return plain(model, torch.randn(4, 32), optimizers=[optimizer]), lambda *_: optimizer.watch.timed_ms()

    runs = shown("optimizer", lambda: plain(ManyParameters(), torch.randn(4, 32)), planted)
    assert {largest(run) for run in runs} == {"optimizer"}
