"""The kernels that a step launches, found and compiled where no GPU is: ours, a user's own, tuned and broken ones."""

import json
from pathlib import Path
from typing import Any

import pytest

from mfubench.errors import BadInput
from mfubench.gate.launches import launched_kernels
from mfubench.kernels.machine_code import MachineCode
from mfubench.kernels.targets import TARGETS
from tests.compiling import python

CODE = """
import json, sys
from dataclasses import asdict, replace
from mfubench.gate.launches import launched_kernels
from mfubench.kernels.targets import TARGETS
from mfubench.workload.ahead import step_without_numbers
from mfubench.workload.spec import WorkloadSpec

def rows(spec, target, **limits):
    step = lambda: step_without_numbers(WorkloadSpec(**spec))
    return [asdict(row) for row in launched_kernels(step, replace(TARGETS[target], **limits))]

sys.path.insert(0, sys.argv[2])
print(json.dumps([rows(spec, target, **limits) for spec, target, limits in json.loads(sys.argv[1])]))
"""
KERNELS = """
import torch, triton
import triton.language as tl
from torch import nn

DEVICE = triton.runtime.driver.active.get_active_torch_device()  # as Triton's tutorials ask


@triton.jit
def scale_kernel(
    x, out, count, BLOCK: tl.constexpr
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, at < count) * 2, at < count)


@triton.autotune([triton.Config({"BLOCK": size}, num_warps=2) for size in (1 << 21, 256, 512)], key=["count"])
@triton.heuristics({"WHOLE": lambda given: given["count"] % given["BLOCK"] == 0})
@triton.jit
def tuned_kernel(x, out, count, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at) if WHOLE else tl.load(x + at, at < count))


@triton.jit
def broken_kernel(x, BLOCK: tl.constexpr):
    tl.store(x + tl.arange(0, BLOCK), tl.no_such_function(x))


@triton.jit
def large_kernel(x, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)
    tl.store(x + at, tl.dot(tl.load(x + at), tl.load(x + at)).to(tl.bfloat16))


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        out, count = torch.zeros_like(x), x.numel()
        for size in (count, count, count - 1):
            scale_kernel[(triton.cdiv(size, 128),)](x, out, size, BLOCK=128, num_warps=8)
        return out

    @staticmethod
    def backward(ctx, grad):
        out, count = torch.zeros_like(grad), grad.numel()
        for _ in range(2):
            tuned_kernel[lambda chosen: (triton.cdiv(count, chosen["BLOCK"]), 2)](grad, out, count)
        return out


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, x):
        return Scaled.apply(self.linear(x))


class Failing(Model):
    def forward(self, x):
        broken_kernel[(3, 1)](x, BLOCK=64)
        large_kernel[(1,)](torch.zeros(64, 64, dtype=torch.bfloat16), SIZE=64)
        ready = scale_kernel.warmup(x, x, 64, BLOCK=64, grid=(1,))
        ready._init_handles()
        assert ready.n_regs >= 8
        ready[(7, 1, 1)](x, x, 64, 64)
        return super().forward(x)


def batches(batch_size, device):
    return (torch.ones(batch_size, 64, device=device),)


def build():
    return Model(), batches


def build_failing():
    return Failing(), batches
"""
Rows = list[dict[str, Any]]


def told(folder: Path, *wanted: Any, **settings: str) -> list[Rows]:
    """The rows of each spec, on a target with other limits, all in one process."""
    done = python(CODE, json.dumps(wanted), str(folder), **settings)
    assert done.returncode == 0, done.stderr
    rows: list[Rows] = json.loads(done.stdout)
    return rows


def named(rows: Rows, kernel: str) -> Rows:
    return [row for row in rows if row["kernel"] == kernel]


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "own_kernels.py").write_text(KERNELS)
    moved = KERNELS.replace("    at = tl.program_id", "    # which are this program's\n    at = tl.program_id")
    (folder / "moved_kernels.py").write_text(f"# Lines below are one further down.\n{moved}")
    (folder / "changed_kernels.py").write_text(KERNELS.replace("at < count) * 2", "at < count) * 3"))
    return folder


def spec(model: str, **options: str) -> dict[str, Any]:
    return {"model": model, "steps": 1, **options}


@pytest.fixture(scope="module")
def own_and_failing(modules: Path) -> list[Rows]:
    failing = (spec("own_kernels:build_failing", mode="infer"), "sm_80", {"block_shared": 4096})
    return told(modules, (spec("own_kernels:build"), "sm_90", {}), failing)


@pytest.fixture(scope="module")
def own(own_and_failing: list[Rows]) -> Rows:
    return own_and_failing[0]


def test_a_step_of_the_zoo_launches_kernels_of_ours_and_does_so_again(tmp_path: Path) -> None:
    """As on a GPU: its batch, its dtype and its choice of implementations; the hash seed does not matter."""
    wanted = (spec("amortized_history", size="tiny"), "sm_90", {})
    first, again = (
        told(tmp_path, wanted, TRITON_CACHE_DIR=str(tmp_path), PYTHONHASHSEED=seed)[0] for seed in ("1", "2")
    )
    assert first == again
    assert {"embedding_fwd_kernel", "embedding_sum_kernel", "layer_norm_bwd_kernel"} <= {row["kernel"] for row in first}
    for row in first:
        assert row["error"] is None and row["taken"] and row["launches"] >= len(row["grids"]) >= 1
        assert all(len(grid.split("x")) == 3 for grid in row["grids"])
        assert row["code"].keys() == set(MachineCode.__dataclass_fields__) and len(row["code"]["digest"]) == 16
        assert f"def {row['kernel']}(" in Path(row["file"]).read_text().splitlines()[row["line"] - 1]
    places = [(row["kernel"], row["variant"], row["config"]) for row in first]
    assert len(set(places)) == len(places)
    rows = {row["variant"] for row in named(first, "layer_norm_fwd_kernel") if "residual=True" in row["variant"]}
    kinds = ("fp32", "bf16")
    assert rows == {f"bytes=2 residual=True width=32 residual=*{kind}:16" for kind in kinds}, "two codes, a key"


def test_a_kernel_of_the_users_own_is_seen(modules: Path, own: Rows) -> None:
    whole, rest = named(own, "scale_kernel")
    assert whole["variant"] == "BLOCK=128 count=i32:16 out=*bf16:16 x=*bf16:16"
    assert rest["variant"] == "BLOCK=128 count=i32 out=*bf16:16 x=*bf16:16"
    assert (whole["config"], whole["launches"], whole["grids"]) == ("num_stages=3 num_warps=8", 2, ["16x1x1"])
    assert whole["taken"] and not whole["locked"] and whole["code"]["warps"] == 8
    assert whole["file"] == str(modules / "own_kernels.py")
    assert KERNELS.splitlines()[whole["line"] - 1] == "def scale_kernel("


def test_an_autotuner_lists_its_candidates_and_takes_one_that_compiles(own: Rows) -> None:
    large, first, second = named(own, "tuned_kernel")
    assert not any(row["taken"] for row in (large, first, second)), "a GPU would tell"
    assert large["error"].startswith("CompilationError") and (large["code"], large["launches"]) == (None, 0)
    assert (first["config"], first["launches"], first["grids"]) == ("BLOCK=256 num_stages=3 num_warps=2", 2, ["8x2x1"])
    assert (second["config"], second["launches"], second["grids"]) == (
        "BLOCK=512 num_stages=3 num_warps=2",
        0,
        ["4x2x1"],
    )
    assert "WHOLE=True" in first["variant"] and "BLOCK" not in first["variant"]


def test_what_does_not_compile_or_fit_costs_itself(own_and_failing: list[Rows]) -> None:
    rows = own_and_failing[1]
    broken, large, ready = rows[:3]
    assert "no_such_function" in broken["error"] and (broken["grids"], broken["launches"]) == (["3x1x1"], 1)
    assert broken["taken"] and broken["code"] is None and KERNELS.splitlines()[broken["line"] - 1].startswith("def br")
    assert "shared memory" in large["error"] and large["code"] is None
    assert (ready["kernel"], ready["grids"], ready["error"]) == ("scale_kernel", ["7x1x1"], None), "compiled beforehand"
    assert len(named(rows, "scale_kernel")) == 3, "what comes behind is launched all the same"


def test_a_digest_is_of_what_a_kernel_does(modules: Path, own: Rows) -> None:
    """Not of where it stands or what is said of it; and nothing of one target is left for the next."""
    wanted = [
        (spec("moved_kernels:build"), "sm_90", {}),
        (spec("changed_kernels:build"), "sm_90", {}),
        (spec("own_kernels:build"), "sm_80", {}),
        (spec("own_kernels:build"), "sm_90", {}),
    ]
    moved, changed, older, again = told(modules, *wanted)
    assert again == own
    assert [row["code"] for row in moved] == [row["code"] for row in own]
    assert all(there["line"] > here["line"] for there, here in zip(moved, own, strict=True))
    for rows in (changed, older):
        assert [(row["kernel"], row["variant"]) for row in rows] == [(row["kernel"], row["variant"]) for row in own]
        assert all(
            there["code"]["digest"] != here["code"]["digest"]
            for there, here in zip(named(rows, "scale_kernel"), named(own, "scale_kernel"), strict=True)
        )
    assert [row["code"] for row in named(changed, "tuned_kernel")] == [
        row["code"] for row in named(own, "tuned_kernel")
    ]


def test_kernels_and_tuners_are_left_as_they_were(modules: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(modules)!r})
import torch
from triton.runtime import Autotuner, JITFunction
from mfubench.kernels.ahead import activate, recorded
from mfubench.kernels.targets import TARGETS
activate(TARGETS["sm_90"])
import own_kernels as own
before, found, x = (JITFunction.run, Autotuner.run), [], torch.zeros(1024)
with recorded(found.append):
    own.tuned_kernel[(4,)](x, x, 1024)
assert [launch.trial for launch in found] == [True, True, True, False]
assert (JITFunction.run, Autotuner.run) == before and own.tuned_kernel.cache == {{}}
assert "do_bench" not in vars(own.tuned_kernel)
try:
    own.scale_kernel[(4,)](x, x, 1024, 256)
except RuntimeError as error:
    print(error)
"""
    done = python(code)
    assert (done.returncode, done.stdout) == (0, "scale_kernel: a kernel is not launched where no GPU is\n"), (
        done.stderr
    )


def test_the_interpreter_compiles_nothing() -> None:
    with pytest.raises(BadInput, match="unset TRITON_INTERPRET"):
        launched_kernels(lambda: None, TARGETS["sm_90"])
