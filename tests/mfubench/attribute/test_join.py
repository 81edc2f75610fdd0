"""Who spent the traced time: on traces written by hand, to the microsecond, and on real ones of a CPU."""

import gzip
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mfubench.attribute.attribution import NOBODYS, UNOWNED, Attribution
from mfubench.attribute.join import attribute
from mfubench.measure.count import WorkKey, count_step
from mfubench.measure.scopes import BACKWARD, DATA, FORWARD, LOSS, OPTIMIZER, ROOT, Scope, ScopeTracker
from mfubench.measure.trace import NOTHING, STEP_PREFIX, Trace, trace_steps
from mfubench.workload.spec import Workload
from mfubench.workload.step import run_step
from tests.mfubench.attribute.by_hand import ENGINE, STEP, Known, joined, kernel, launch, node, scope, span
from tests.mfubench.steps import training_step

CPU = torch.device("cpu")


@pytest.fixture
def on_a_cpu() -> Attribution:
    tracker = Known(Scope(0, FORWARD), Scope(1, ROOT), Scope(2, "a"), Scope(3, LOSS), Scope(4, BACKWARD), owners={9: 2})
    events = [
        *(span(STEP, 0, 100, "user_annotation"), scope(0, FORWARD, 10, 50), scope(1, ROOT, 14, 40)),
        *(span("aten::linear", 16, 10), span("aten::addmm", 18, 6)),
        *(scope(2, "a", 30, 20), span("aten::relu", 32, 10)),
        *(scope(3, LOSS, 60, 2), scope(4, BACKWARD, 62, 30), span("aten::ones_like", 64, 2)),
        *(node("AddmmBackward0", 70, 10, 9), span("AddmmBackward0", 71, 8), span("aten::mm", 72, 6)),
        *(node("torch::autograd::AccumulateGrad", 84, 4, None), span("aten::add_", 85, 2)),
        span("aten::relu", 150, 40),  # after the step
    ]
    return joined(events, tracker, "cpu")


def test_self_times_on_a_cpu(on_a_cpu: Attribution) -> None:
    """An operator has its own time; the rest is its owner's, or nobody's."""
    assert on_a_cpu.busy == {
        WorkKey(ROOT, "fwd", "gemm"): 10,
        WorkKey("a", "fwd", "elementwise"): 10,
        WorkKey(LOSS, "bwd", "copy"): 2,  # its first gradient
        WorkKey("a", "bwd", "gemm"): 6,
        WorkKey("a", "bwd", "elementwise"): 2,
    }
    assert on_a_cpu.host == {
        (UNOWNED, "fwd"): 18,
        (FORWARD, "fwd"): 6,
        (ROOT, "fwd"): 10 + 4,  # 4 before it began
        ("a", "fwd"): 10,
        (LOSS, "fwd"): 2,
        (LOSS, "bwd"): 2,
        ("a", "bwd"): 4 + 4 + 4 + 2,  # each node's own time, and the gap before it
        (BACKWARD, "fwd"): 4,
    }


def test_the_parts_add_up_on_a_cpu(on_a_cpu: Attribution) -> None:
    assert sum(on_a_cpu.busy.values()) + sum(on_a_cpu.host.values()) == on_a_cpu.span == 100
    assert on_a_cpu.idle == sum(on_a_cpu.host.values()) == 70
    assert on_a_cpu.attributed_share() == pytest.approx(1 - (18 + 6 + 4) / 100)


def test_time_is_kept_by_the_operators_that_it_was_spent_in(on_a_cpu: Attribution) -> None:
    """FLOP coverage looks for an unknown operator at any depth: the outermost may be a composite one."""
    assert on_a_cpu.by_operators == {
        ("aten::linear",): 4,
        ("aten::linear", "aten::addmm"): 6,
        ("aten::relu",): 10,
        ("aten::ones_like",): 2,
        ("aten::mm",): 6,
        ("aten::add_",): 2,
    }


def test_what_an_operator_costs_that_does_nothing_is_the_hosts() -> None:
    """5 us of each operator's self time here, the median of three; one that takes less leaves no negative work."""
    nothing = [span(NOTHING, 0, 60, "user_annotation")]
    nothing += [span("aten::add_", start, took) for start, took in ((2, 5), (10, 4), (20, 30))]
    step = [
        *(span(STEP, 100, 100, "user_annotation"), scope(0, ROOT, 105, 90)),
        *(span("aten::linear", 110, 40), span("aten::addmm", 112, 32), span("aten::relu", 160, 3)),
    ]
    found = joined([*nothing, *step], Known(Scope(0, ROOT), owners={}), "cpu")
    assert found.busy == {WorkKey(ROOT, "fwd", "gemm"): (8 - 5) + (32 - 5), WorkKey(ROOT, "fwd", "elementwise"): 0}
    assert found.host == {(UNOWNED, "fwd"): 10, (ROOT, "fwd"): (90 - 43) + 5 + 5 + 3}
    assert sum(found.busy.values()) + sum(found.host.values()) == found.span == 100


def test_a_gpus_kernels_have_no_host_cost_in_them() -> None:
    events = [
        *(span(NOTHING, 0, 60, "user_annotation"), span("aten::add_", 2, 5), launch(1, 3), kernel(1, 4, 3)),
        *(span(STEP, 100, 100, "user_annotation"), scope(0, ROOT, 105, 90)),
        *(span("aten::mul", 110, 9), launch(2, 112), kernel(2, 120, 7)),
    ]
    found = joined(events, Known(Scope(0, ROOT), owners={}), "cuda")
    assert found.busy == {WorkKey(ROOT, "fwd", "elementwise"): 7} and found.span == 7


def test_a_scope_that_repeats_a_forward_has_a_direction_of_its_own() -> None:
    """Its operators and its host time; the backward of the same module keeps its own."""
    tracker = Known(Scope(0, BACKWARD), Scope(1, "a", recompute=True), Scope(2, "a"), owners={3: 2})
    events = [
        *(span(STEP, 0, 100, "user_annotation"), scope(0, BACKWARD, 2, 96), node("TanhBackward0", 10, 80, 3)),
        *(scope(1, "a", 20, 40), span("aten::tanh", 25, 20), span("aten::tanh_backward", 70, 10)),
    ]
    found = joined(events, tracker, "cpu")
    assert found.busy == {WorkKey("a", "recompute", "elementwise"): 20, WorkKey("a", "bwd", "elementwise"): 10}
    assert found.host[("a", "recompute")] == 20


def test_kernels_are_kept_by_module_direction_and_innermost_operator(on_a_cpu: Attribution) -> None:
    assert on_a_cpu.kernels == {
        (WorkKey(ROOT, "fwd", "gemm"), "aten::linear"): [4, 1],
        (WorkKey(ROOT, "fwd", "gemm"), "aten::addmm"): [6, 1],
        (WorkKey("a", "fwd", "elementwise"), "aten::relu"): [10, 1],
        (WorkKey(LOSS, "bwd", "copy"), "aten::ones_like"): [2, 1],
        (WorkKey("a", "bwd", "gemm"), "aten::mm"): [6, 1],
        (WorkKey("a", "bwd", "elementwise"), "aten::add_"): [2, 1],
    }


def test_on_a_gpu_they_have_the_kernels_names(on_a_gpu: Attribution) -> None:
    assert {name for _, name in on_a_gpu.kernels} == {f"kernel_{number}" for number in range(1, 10)}
    assert on_a_gpu.kernels[WorkKey("a", "bwd", "gemm"), "kernel_7"] == [10, 1]
    assert sum(time for time, _ in on_a_gpu.kernels.values()) == sum(on_a_gpu.busy.values())


def test_a_gradient_is_accumulated_for_the_node_before() -> None:
    """Such a node has no number: two modules' nodes, each followed by one, must not be mixed up."""
    events = [
        *(span(STEP, 0, 40, "user_annotation"), node("A", 0, 10, 1), node("Accumulate", 10, 10, None)),
        *(node("B", 20, 10, 2), node("Accumulate", 30, 10, None)),
    ]
    found = joined(events, Known(Scope(0, "a"), Scope(1, "b"), owners={1: 0, 2: 1}), "cpu")
    assert found.host == {("a", "bwd"): 20, ("b", "bwd"): 20, (UNOWNED, "fwd"): 0}


GPU_SCOPES = (
    *(Scope(0, DATA), Scope(1, FORWARD), Scope(2, ROOT), Scope(3, "a"), Scope(4, "b", op="gdpa", kind="attention")),
    *(Scope(5, LOSS), Scope(6, BACKWARD), Scope(7, OPTIMIZER)),
)


@pytest.fixture
def on_a_gpu() -> Attribution:
    """A step whose backward runs in a thread of its own, with kernels that overlap, and gaps between them."""
    tracker = Known(*GPU_SCOPES, owners={20: 3, 21: 4, 30: 5})
    host = [
        *(span(STEP, 0, 200, "user_annotation"), scope(0, DATA, 1, 8)),
        *(span("aten::copy_", 2, 5), launch(1, 3, name="cudaMemcpyAsync")),
        *(scope(1, FORWARD, 10, 60), scope(2, ROOT, 12, 55)),
        *(scope(3, "a", 14, 30), span("aten::linear", 15, 14), span("aten::addmm", 16, 12), launch(2, 18)),
        *(scope(4, "b/gdpa", 46, 18), launch(3, 48)),  # a kernel that no operator launches
        *(scope(5, LOSS, 72, 10), span("aten::mean", 73, 8), launch(4, 74), scope(6, BACKWARD, 84, 100)),
        *(scope(7, OPTIMIZER, 186, 10), span("aten::_fused_adamw_", 187, 8), launch(9, 188)),
        launch(99, 250),  # after the step
    ]
    engine = [
        *(node("MeanBackward0", 90, 8, 30, ENGINE), span("aten::div", 91, 4, thread=ENGINE)),
        *(launch(5, 92, ENGINE), node("GdpaBackward", 100, 10, 21, ENGINE), launch(6, 101, ENGINE)),
        *(node("AddmmBackward0", 112, 20, 20, ENGINE), span("aten::mm", 114, 9, thread=ENGINE)),
        *(launch(7, 115, ENGINE), node("torch::autograd::AccumulateGrad", 134, 6, None, ENGINE)),
        *(span("aten::add_", 135, 4, thread=ENGINE), launch(8, 136, ENGINE)),
    ]
    device = [
        *(kernel(1, 10, 5, "gpu_memcpy"), kernel(2, 20, 10), kernel(3, 55, 20), kernel(4, 75, 5)),
        *(kernel(5, 92, 4), kernel(6, 104, 16), kernel(7, 116, 14), kernel(8, 125, 3), kernel(9, 196, 12)),
        *(kernel(99, 260, 50), kernel(77, 300, 10)),  # launched after the step, and by nobody that is known
        span("gpu annotation", 0, 500, "gpu_user_annotation", thread=7),
    ]
    return joined([*host, *engine, *device], tracker, "cuda")


def test_a_kernel_belongs_to_what_launched_it(on_a_gpu: Attribution) -> None:
    assert on_a_gpu.busy == {
        WorkKey(DATA, "fwd", "copy"): 5,
        WorkKey("a", "fwd", "gemm"): 10,
        WorkKey("b", "fwd", "attention"): 20,
        WorkKey(LOSS, "fwd", "reduction"): 5,
        WorkKey(LOSS, "bwd", "elementwise"): 4,
        WorkKey("b", "bwd", "attention"): 16,
        WorkKey("a", "bwd", "gemm"): 10,  # 14, of which it shares 4 with the kernel before
        WorkKey("a", "bwd", "elementwise"): 0,  # ran while the one before still did
        WorkKey(OPTIMIZER, "fwd", "other"): 12,
    }
    assert on_a_gpu.by_operators[("aten::linear", "aten::addmm")] == 10
    assert on_a_gpu.by_operators[("kernel_3",)] == 20  # no operator: named after the kernel


def test_idle_time_belongs_to_the_kernel_that_was_waited_for(on_a_gpu: Attribution) -> None:
    assert on_a_gpu.host == {
        ("a", "fwd"): 5,
        ("b", "fwd"): 25,
        (LOSS, "bwd"): 12,
        ("b", "bwd"): 8,
        (OPTIMIZER, "fwd"): 66,
    }
    assert on_a_gpu.idle == 116


def test_busy_and_idle_add_up_on_a_gpu(on_a_gpu: Attribution) -> None:
    """From the first kernel's start to the last one's end; time that two kernels share is counted once."""
    assert sum(on_a_gpu.busy.values()) == 82
    assert on_a_gpu.span == 82 + 116 == 208 - 10
    assert on_a_gpu.attributed_share() == 1.0


def test_a_step_ends_where_the_host_ends_it_and_not_where_the_device_does() -> None:
    """The device's own span of a step lies behind the host's; what is launched meanwhile is of no step."""
    events = [
        *(span(STEP, 0, 50, "user_annotation"), scope(0, ROOT, 1, 40), span("aten::mul", 5, 9), launch(1, 6)),
        *(span(STEP, 10, 90, "gpu_user_annotation", thread=7), kernel(1, 10, 30)),
        *(span("aten::mul", 60, 9), launch(2, 61), kernel(2, 62, 38)),
    ]
    found = joined(events, Known(Scope(0, ROOT), owners={}), "cuda")
    assert found.busy == {WorkKey(ROOT, "fwd", "elementwise"): 30} and found.span == 30


def test_a_kernel_outside_every_scope_is_nobodys() -> None:
    events = [span(STEP, 0, 50, "user_annotation"), span("aten::mul", 5, 9), launch(1, 6), kernel(1, 10, 30)]
    found = joined(events, Known(owners={}), "cuda")
    assert found.busy == {WorkKey(UNOWNED, "fwd", "elementwise"): 30} and found.attributed_share() == 0.0


def test_all_kernels_of_a_graph_belong_to_its_launch() -> None:
    events = [
        *(span(STEP, 0, 50, "user_annotation"), scope(0, ROOT, 1, 9), launch(1, 2, name="cudaGraphLaunch")),
        *(kernel(1, 10, 5), kernel(1, 15, 5), kernel(1, 22, 8)),
    ]
    found = joined(events, Known(Scope(0, ROOT), owners={}), "cuda")
    assert sum(found.busy.values()) == 18 and found.host == {(ROOT, "fwd"): 2} and found.idle == 2


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_empty_trace_is_no_division_by_zero(device: str) -> None:
    found = joined([], Known(owners={}), device)
    assert found.span == found.idle == 0 and found.attributed_share() == 0.0


# Real traces. The machine may interrupt a step anywhere, which is no defect: what is claimed of times must hold in one
# of a few traces, or on a clock that nothing disturbs.
TRIES = 4
OPERATOR_US = 10.0


def traced(workload: Workload, num_steps: int = 2) -> Trace:
    """A few steps of ``workload`` that has run before."""
    run_step(workload, 0)

    def step(tracker: ScopeTracker, index: int) -> None:
        run_step(workload, index, phase=tracker.phase)

    return trace_steps(workload.module, step, device=CPU, num_steps=num_steps)


def evenly_timed(trace: Trace) -> Trace:
    """The same spans in the same nest, on a clock of its own, which nothing interrupts.

    An operator works for OPERATOR_US, but for those that do nothing; from any beginning or end to the next takes 1.
    """
    host = [event for event in trace.events if event.get("cat") in ("cpu_op", "user_annotation")]
    assert len({event["tid"] for event in host}) == 1, "on a CPU the backward pass runs in the thread of the forward"
    clock, timed, ends = 0.0, [], []
    opened: list[dict[str, Any]] = []

    def close() -> None:
        nonlocal clock
        span = opened.pop()
        ends.pop()
        idle = any(around["name"] == NOTHING for around in opened)
        clock += 1 + OPERATOR_US * (span["cat"] == "cpu_op" and not idle)
        span["dur"] = clock - span["ts"]

    for event in sorted(host, key=lambda event: (event["ts"], -event["dur"])):
        while ends and ends[-1] <= event["ts"]:
            close()
        clock += 1
        opened.append({**event, "ts": clock})
        ends.append(event["ts"] + event["dur"])
        timed.append(opened[-1])
    while opened:
        close()
    return replace(trace, events=timed)


def traced_model(model: nn.Module, x: Tensor) -> Attribution:
    """The same for a module with the sum of its output as loss."""

    step = training_step(model, x)
    return attribute(trace_steps(model, lambda tracker, _index: step(tracker), device=CPU, num_steps=2), "cpu")


def by_module(found: Attribution, direction: str) -> dict[str, float]:
    """Busy microseconds of one direction by module."""
    times: dict[str, float] = defaultdict(float)
    for key, time in found.busy.items():
        if key.direction == direction:
            times[key.module] += time
    return times


class Recurrent(nn.Module):
    """A GRU, which torch makes of products and others."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(64, 64, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.gru(x)[0]
        return out


def test_work_of_an_operator_that_is_made_of_others_is_classed_by_them() -> None:
    """As it is counted: products that took no time would be lost time that is less than none."""
    model, x = Recurrent(), torch.randn(8, 12, 64)
    busy = {key: time for key, time in traced_model(model, x).busy.items() if key.module == "gru"}
    products = WorkKey("gru", "fwd", "gemm")
    assert busy[products] > 0 and busy[WorkKey("gru", "fwd", "elementwise")] > 0
    counted = count_step(model, lambda tracker: training_step(model, x)(tracker)).work
    assert counted[products].model == 2 * 8 * 12 * 2 * 64 * 3 * 64


def test_each_traced_step_has_its_number_of_operators() -> None:
    """Which differ where a step does what the others do not, such as an update."""
    layer, x = nn.Linear(3, 1), torch.ones(2, 3)

    def step(tracker: ScopeTracker, index: int) -> None:
        for _ in range(1 + 3 * index):
            layer(x)

    first, second = attribute(trace_steps(layer, step, device=CPU, num_steps=2), "cpu").operators
    assert first > 0 and second == 4 * first


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("size", ["tiny", "small"])
@pytest.mark.parametrize("model", ["transformer", "kunlun"])
def test_nearly_all_the_time_of_a_model_has_an_owner(
    zoo: Callable[..., Workload], model: str, size: str, mode: str
) -> None:
    """Of what runs and of what passes between; almost nothing of the work itself is without one."""
    workload = zoo(model, size=size, mode=mode)
    found = attribute(evenly_timed(traced(workload)), "cpu")
    assert sum(found.busy.values()) + sum(found.host.values()) == found.span
    assert found.attributed_share() >= 0.995
    nobodys = sum(time for key, time in found.busy.items() if key.module in NOBODYS)
    assert nobodys < 0.005 * sum(found.busy.values())
    names = {key.module for key in found.busy}
    assert names <= {*dict(workload.module.named_modules()), ROOT, LOSS, OPTIMIZER, DATA, *NOBODYS}
    assert any(key.kind == "attention" and key.direction == "fwd" for key in found.busy)
    assert (mode == "train") == any(key.kind == "attention" and key.direction == "bwd" for key in found.busy)


@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_a_heavy_module_has_most_of_the_time(direction: str) -> None:
    heavy = nn.Sequential(nn.Linear(16, 1024), nn.GELU(), nn.Linear(1024, 16))
    model, x = nn.Sequential(nn.Linear(16, 16), heavy, nn.Linear(16, 16)), torch.randn(512, 16)
    shares = []
    for _ in range(TRIES):
        times = by_module(traced_model(model, x), direction)
        assert set(times) >= {"0", "1.0", "1.1", "1.2", "2"}
        shares.append(sum(time for name, time in times.items() if name.startswith("1.")) / sum(times.values()))
    assert max(shares) > 0.8, shares


class Repeats(nn.Module):
    """Its block's forward is made again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.block = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.block, x, use_reentrant=self.reentrant)
        return out


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_repeated_forward_is_told_apart_from_the_backward(reentrant: bool) -> None:
    """The last layer's may be cut short: its product is not needed. The rest takes as long as the first time."""
    model, x = Repeats(reentrant), torch.randn(256, 64, requires_grad=True)
    ratios = []
    for _ in range(TRIES):
        found = traced_model(model, x)
        assert {"block.0", "block.1", "block.2"} <= by_module(found, "fwd").keys() & by_module(found, "bwd").keys()
        assert {"block.0", "block.1"} <= by_module(found, "recompute").keys()
        tanh = [found.busy[WorkKey("block.1", direction, "elementwise")] for direction in ("fwd", "recompute", "bwd")]
        assert min(tanh) > 0
        ratios.append(tanh[1] / tanh[0])
    assert any(0.5 < ratio < 2 for ratio in ratios), ratios


class Hooked(nn.Module):
    """Three layers, of which the middle one's output has a hook, as where a gradient is clipped or turned round."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.hooked, self.last = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hooked(self.first(x))
        hidden.register_hook(lambda gradient: -gradient)
        return self.last(hidden)


def test_a_node_whose_output_has_a_hook_keeps_its_owner() -> None:
    """The profiler gives such a node's span no number, but its function's inside."""
    found = traced_model(Hooked(), torch.randn(4, 8))
    products = {key.module: calls / 2 for (key, name), (_, calls) in found.kernels.items() if name == "aten::mm"}
    assert products == {"first": 1, "hooked": 2, "last": 2}


def test_a_kept_trace_is_whole_and_gzipped(tmp_path: Path) -> None:
    path = tmp_path / "trace.json.gz"
    model, x = nn.Linear(4, 4), torch.randn(2, 4)
    trace = trace_steps(model, lambda tracker, index: model(x), device=CPU, num_steps=3, keep=path)
    kept = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert kept == trace.events and list(tmp_path.iterdir()) == [path]
    steps = [event["name"] for event in kept if event.get("name", "").startswith(STEP_PREFIX)]
    assert sorted(steps) == [f"{STEP_PREFIX}{index}" for index in range(3)]
