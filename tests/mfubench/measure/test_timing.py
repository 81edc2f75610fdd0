"""The timing pass: whole steps in turn over the input sets, warm-up left out, and nobody looking."""

import time
from typing import Any

import pytest
import torch
from torch import nn

from mfu_kernels.cost import current_observer
from mfubench.measure import timing
from mfubench.measure.calibrate import Calibration
from mfubench.measure.timing import keep_going, time_alone, time_in_turn, time_steps
from mfubench.profiling import profile_workload
from mfubench.workload.spec import WARMUP_STEPS
from mfubench.workload.step import run_step

CPU = torch.device("cpu")


def lookers(model: nn.Module) -> list[str]:
    """Everything that could be watching a step and so change its time."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    found = [f"{name} of {kind}" for name, kind in ((h, m) for m in model.modules() for h in hooks if getattr(m, h))]
    if torch.autograd._profiler_enabled():
        found.append("a profiler")
    if current_observer() is not None:
        found.append("an observer of ops")
    if torch._C._len_torch_dispatch_stack():
        found.append("a dispatch mode")
    return found


def test_every_step_is_timed_in_turn_after_the_warmup() -> None:
    """The index is what rotates the input sets; a step that always gets 0 would time a warm cache."""
    ran: list[int] = []
    told: list[int] = []
    timings = time_steps(ran.append, device=CPU, num_steps=5, warmup=2, progress=told.append)
    assert ran == [0, 1, 0, 1, 2, 3, 4] and told == [1, 2, 3, 4, 5] and len(timings) == 5


def test_on_a_gpu_a_steps_time_has_hardly_any_progress_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events stand around the steps, and what is told between two of them is in the later step's time."""

    class Event:
        def __init__(self, **_options: Any) -> None: ...

        def record(self) -> None:
            self.at = time.perf_counter()

        def elapsed_time(self, other: "Event") -> float:
            return 1e3 * (other.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_device: None)
    monkeypatch.setattr(timing, "TELL_S", 0.05)
    told: list[int] = []
    timings = time_steps(
        lambda index: time.sleep(0.01), device=torch.device("cuda"), num_steps=20, warmup=0, progress=told.append
    )
    assert len(timings) == 20 and all(milliseconds >= 10 for milliseconds in timings)
    assert 1 <= len(told) <= 4 and told == sorted(set(told))


def test_the_warmup_is_not_in_the_timings() -> None:
    durations_s = iter((0.3, 0.004, 0.004))
    timings = time_steps(lambda index: time.sleep(next(durations_s)), device=CPU, num_steps=2, warmup=1)
    assert all(4.0 <= milliseconds < 300.0 for milliseconds in timings)


def test_what_runs_beside_the_timed_steps_starts_after_the_warmup() -> None:
    ran: list[object] = []
    time_steps(ran.append, device=CPU, num_steps=2, warmup=2, started=lambda: ran.append("started"))
    assert ran == [0, 1, "started", 0, 1]


def test_steps_go_on_in_turn_until_the_time_is_over() -> None:
    ran: list[int] = []

    def step(index: int) -> None:
        ran.append(index)
        time.sleep(0.01)

    start = time.perf_counter()
    more = keep_going(step, device=CPU, first=3, seconds=0.1, step_ms=100.0)
    assert time.perf_counter() - start >= 0.1
    assert ran == list(range(3, 3 + more)) and more >= 2


def test_no_step_goes_on_where_none_is_needed() -> None:
    assert keep_going(lambda index: pytest.fail("ran"), device=CPU, first=3, seconds=0.0, step_ms=1.0) == 0


def test_a_step_sees_its_own_input_set(zoo: Any) -> None:
    workload = zoo(steps=6)
    assert len(workload.inputs) == 4
    seen: list[int] = []

    def forward(module: nn.Module, batch: Any) -> torch.Tensor:
        seen.append(next(place for place, known in enumerate(workload.inputs) if known is batch))
        return module(batch)

    workload.forward = forward
    time_steps(lambda index: run_step(workload, index), device=CPU, num_steps=6, warmup=0)
    assert seen == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_nobody_looks_at_a_timed_step(zoo: Any, mode: str) -> None:
    """A hook or a profiler would make a step that its host bounds look slower than it is."""
    workload = zoo("kunlun", mode=mode)
    seen: list[str] = []
    loss_of = workload.loss

    def forward(module: nn.Module, batch: Any) -> torch.Tensor:
        seen.extend(lookers(module))
        assert torch.is_grad_enabled() == (mode == "train")
        return module(batch)

    def loss(output: torch.Tensor, batch: Any) -> torch.Tensor:
        seen.extend(lookers(workload.module))
        return loss_of(output, batch)

    workload.forward, workload.loss = forward, loss
    timings = time_steps(lambda index: run_step(workload, index), device=CPU, num_steps=2, warmup=1)
    assert seen == [] and len(timings) == 2 and min(timings) > 0


def test_a_profile_times_with_nobody_looking(
    zoo: Any, fixed_calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other passes look, and must not while the timing pass runs; it runs every step that was asked for."""
    workload = zoo(steps=3)
    timing, seen = [False], []

    def timed(*args: Any, **options: Any) -> list[float]:
        timing[0] = True
        try:
            return time_steps(*args, **options)
        finally:
            timing[0] = False

    def forward(module: nn.Module, batch: Any) -> torch.Tensor:
        seen.append((timing[0], bool(lookers(module))))
        return module(batch)

    monkeypatch.setattr("mfubench.profiling.time_steps", timed)
    workload.forward = forward
    run = profile_workload(workload)
    assert seen.count((True, False)) == WARMUP_STEPS + 3 and (True, True) not in seen
    assert (False, True) in seen and len(run.step["timings_ms"]) == 3


def test_a_step_trains(zoo: Any) -> None:
    """Every parameter that the batch reaches moves, and no gradient is left for the next step."""
    workload = zoo("kunlun")
    before = {name: parameter.detach().clone() for name, parameter in workload.module.named_parameters()}
    run_step(workload, 0)
    moved = [name for name, parameter in workload.module.named_parameters() if not torch.equal(parameter, before[name])]
    assert moved == list(before) and all(parameter.grad is None for parameter in workload.module.parameters())


def test_a_step_of_inference_changes_nothing(zoo: Any) -> None:
    workload = zoo(mode="infer")
    before = {name: parameter.detach().clone() for name, parameter in workload.module.named_parameters()}
    run_step(workload, 0)
    assert all(torch.equal(parameter, before[name]) for name, parameter in workload.module.named_parameters())
    assert workload.optimizers == []


@pytest.mark.gpu
def test_on_a_gpu_the_host_does_not_wait_between_steps() -> None:
    """Events are read when all steps have run; a synchronisation would add the launch gaps to each step."""
    x = torch.randn(256, 256, device="cuda")
    torch.cuda.synchronize()

    def step(index: int) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            torch.mm(x, x)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    timings = time_steps(step, device=x.device, num_steps=5, warmup=2)
    assert len(timings) == 5 and min(timings) > 0


def test_steps_in_turn_share_each_rounds_index_in_an_order_that_changes() -> None:
    ran: list[tuple[str, int]] = []
    told: list[int] = []
    steps = [lambda index, name=name: ran.append((name, index)) for name in "ab"]
    timings = time_in_turn(steps, device=CPU, num_rounds=40, warmup=2, progress=told.append)
    assert [len(own) for own in timings] == [40, 40] and told[-1] == 40
    assert ran[:4] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    rounds = [ran[4 + 2 * at : 6 + 2 * at] for at in range(40)]
    assert all({index for _, index in each} == {at} for at, each in enumerate(rounds))
    assert all({name for name, _ in each} == {"a", "b"} for each in rounds)
    first = [each[0][0] for each in rounds]
    assert 10 < first.count("a") < 30 and first != ["a", "b"] * 20


def test_steps_in_turn_keep_their_own_timings_on_a_machine_that_drifts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that runs ever faster: each round's ratio stays, whichever of the two went first."""
    now = [0.0]

    def takes(seconds: float) -> Any:
        def step(_index: int) -> None:
            now[0] += seconds * (1 + now[0])

        return step

    monkeypatch.setattr("mfubench.measure.timing.perf_counter", lambda: now[0])
    fast, slow = time_in_turn([takes(0.002), takes(0.003)], device=CPU, num_rounds=60, warmup=0)
    assert fast[-1] > 1.3 * fast[0]
    assert all(after / before == pytest.approx(1.5, rel=0.01) for before, after in zip(fast, slow, strict=True))


def test_a_step_alone_is_waited_for_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that its time has the device's part in it: here 3 ms after the host's 2."""
    clock, said = [0.0], []
    monkeypatch.setattr(timing, "perf_counter", lambda: clock[0])

    def step(index: int) -> None:
        said.append(index)
        clock[0] += 0.002

    def wait(_: torch.device) -> None:
        said.append("waits")
        clock[0] += 0.003

    monkeypatch.setattr(timing, "wait_for", wait)
    assert time_alone(step, device=CPU, num_steps=2) == pytest.approx([5.0, 5.0])
    assert said == ["waits", 0, "waits", 1, "waits"]
