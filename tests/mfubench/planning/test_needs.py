"""What is counted without numbers is what a step really needs: on this CPU exactly, on a GPU as one was measured."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mfu_models import MODELS
from mfubench.errors import BadInput, OutOfMemory
from mfubench.measure.count import Count, Work, WorkKey
from mfubench.measure.memory import MemoryPeak
from mfubench.planning.gpu import known_gpu
from mfubench.planning.needs import Needs, needs_of, step_on
from mfubench.planning.plan import _plan
from mfubench.workload.spec import WorkloadSpec
from tests.compiling import mfubench, process

HERE = Path(__file__).parent
RUN = HERE.parents[2] / "reports/nvidia-h200/campaign/profile/interformer-large-train-kernels.json"
TOY = """
import mfu_kernels, torch, triton
import triton.language as tl

@triton.jit
def double_kernel(x, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, tl.load(x + at) * 2)

class Double(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 64)
        self.weight = torch.nn.Parameter(torch.ones(64))
    def forward(self, x):
        y = mfu_kernels.layer_norm(self.layer(x), self.weight, self.weight)
        out = torch.empty_like(y)
        double_kernel[(1,)](y, out, SIZE=64)
        return y + out

def build():
    return Double(), lambda batch_size, device: (torch.ones(batch_size, 64, device=device),)
"""


@pytest.fixture(scope="module")
def counted() -> dict[str, Any]:
    done = process(str(HERE / "counted.py"), str(RUN))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("model", [*MODELS, "kunlun, inference"])
def test_without_numbers_a_step_needs_the_same_flops_bytes_and_memory(counted: dict[str, Any], model: str) -> None:
    without, real = counted["models"][model]
    assert without == real


def test_memory_flops_and_time_are_those_of_the_run_on_an_h200(counted: dict[str, Any]) -> None:
    run = counted["run"]["run"]
    document = counted["run"]["document"]
    measured, by_datasheet = document["plans"]
    assert measured["memory"]["peak_bytes"] == pytest.approx(run["memory"]["peak_bytes"], rel=0.005)
    assert measured["flops"]["model"] == pytest.approx(run["flops"]["model"], rel=0.005)
    assert measured["at_rates"]["step_ms"] == pytest.approx(run["kernels_ms"], rel=0.02)  # its own rates: four batches
    assert by_datasheet["at_rates"] is None
    assert by_datasheet["least"]["step_ms"] < measured["least"]["step_ms"] < run["kernels_ms"]
    assert measured["impls"]["window_attention"] == "triton" and measured["fits"] and not measured["notes"]
    assert sum(line["ms"] for line in measured["least"]["ledger"]) == pytest.approx(measured["least"]["step_ms"])
    assert measured["least"]["gpus"] == -(-1e9 // (86_400 * measured["least"]["samples_per_s"]))
    assert document["like"]["rates"]["attention"] == pytest.approx(0.42, abs=0.03)


def test_autocast_widens_what_a_gpus_does(counted: dict[str, Any]) -> None:
    """Of a run whose attention is the references': a CPU's autocast keeps two thirds of it in memory."""
    run = json.loads(RUN.with_name("interformer-large-train-eager.json").read_text(encoding="utf-8"))["document"]
    assert counted["reference"] == pytest.approx(run["memory"]["peak_bytes"], rel=0.005)


@pytest.mark.parametrize("asked", [16, 100, 1024, 3000])
@pytest.mark.parametrize("limit", [50, 900, 5000, 20_000])
def test_the_most_requests_are_found_where_the_peak_bends(asked: int, limit: int) -> None:
    """Few requests leave the peak to parameters and their gradients, so a line through few says nothing of many."""
    calls = []

    def peak_at(requests: int) -> int:
        calls.append(requests)
        return max(800, 200 + 2 * requests)

    needs = Needs({}, asked, Count(), MemoryPeak(max(800, 200 + 2 * asked), "(forward)", {}), peak_at)
    found = needs.most_requests(limit)
    assert found is not None and len(calls) <= 15
    most, more = found
    true = (limit - 200) // 2 if limit >= 800 else 0
    if more:
        assert most == 4 * asked and true >= most
    else:
        assert most <= true and true - most <= max(1, 0.011 * true)


def test_a_batch_that_this_machine_cannot_hold_ends_the_search() -> None:
    def peak_at(requests: int) -> int:
        raise OutOfMemory("too many")

    assert Needs({}, 100, Count(), MemoryPeak(1500, "(forward)", {}), peak_at).most_requests(2000) == (100, True)
    assert Needs({}, 100, Count(), MemoryPeak(2500, "(forward)", {}), peak_at).most_requests(2000) is None


def test_a_step_of_no_work_is_no_plan() -> None:
    nothing = Needs({"model": "views:build"}, 1, Count(), MemoryPeak(8, "(forward)", {}))
    with pytest.raises(BadInput, match="views:build: a step has no work that is known"):
        _plan(nothing, known_gpu("H200", "bf16"), None, None)


@pytest.mark.parametrize(("peak", "fits"), [(900, True), (950, False)])
def test_a_tenth_of_the_memory_is_left_for_the_allocator(peak: int, fits: bool) -> None:
    """Of 1000 bytes, of which each request takes 10."""
    count = Count()
    count.work[WorkKey("a", "fwd", "gemm")] = Work(model=10**9, hardware=10**9)
    needs = Needs({}, peak // 10, count, MemoryPeak(peak, "(forward)", {}), lambda requests: 10 * requests)
    plan = _plan(needs, replace(known_gpu("H200", "bf16"), memory_bytes=1000), None, None)
    assert plan["fits"] == fits and (plan["most_requests"], plan["more_may_fit"]) == (90, False)


def test_what_a_gpu_multiplies_in_tf32_is_counted_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU has no other type for it, and the operators and their bytes are the same."""
    monkeypatch.setattr("mfubench.planning.needs.refuse_interpreter", lambda: None)
    monkeypatch.setattr("mfubench.planning.needs.activate", lambda target: None)
    tf32, fp32, bf16 = (
        step_on(known_gpu("H200", dtype), WorkloadSpec("dlrm", size="tiny", impl="reference", batch_size=2))
        for dtype in ("tf32", "fp32", "bf16")
    )
    assert set(tf32.count.dtypes()) == {"float32"} and tf32.count == fp32.count and tf32.memory == fp32.memory
    assert set(bf16.count.dtypes()) == {"bfloat16"}


def test_of_a_users_model_the_most_requests_are_not_known() -> None:
    assert Needs({}, 100, Count(), MemoryPeak(1500, "(forward)", {})).most_requests(2000) is None


def test_a_users_model_is_counted_without_its_own_kernel_which_is_named(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(TOY, encoding="utf-8")
    sys.path.insert(0, str(tmp_path))
    try:
        done = mfubench("plan", "toy:build", "--gpu", "L40S", "--batch-size", "1", "--json", "--quiet")
    finally:
        sys.path.remove(str(tmp_path))
    assert done.returncode == 0, done.stderr
    (plan,) = json.loads(done.stdout)["plans"]
    assert plan["flops"]["model"] == 2 * 2 * 64 * 64  # forward, and the weight's gradient
    assert plan["requests"] == 1 and plan["fits"] and plan["most_requests"] is None
    assert "those of this CPU" in plan["notes"][0] and "own kernels, double_kernel, are not known" in plan["notes"][1]
    assert plan["impls"] == {"layer_norm": "triton"}


def test_kernels_are_refused_where_none_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfubench.planning.needs.refuse_interpreter", lambda: None)
    with pytest.raises(BadInput, match="kernels need an sm_80 or later, and T4 is none"):
        step_on(known_gpu("T4", "fp32"), WorkloadSpec("dlrm", impl="triton"))


def test_where_triton_interprets_nothing_is_counted() -> None:
    with pytest.raises(BadInput, match="unset TRITON_INTERPRET"):
        needs_of(WorkloadSpec("dlrm", size="tiny"), known_gpu("H200", "bf16"))
