"""Several processes that work on one step, as torchrun starts them: here two, on the CPU, through gloo."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mfubench.cli.app import main
from mfubench.comparison import require_comparable
from mfubench.errors import BadInput
from mfubench.measure.environment import Launch, launched
from mfubench.ranks import ALONE, joined, take_own_gpu
from mfubench.run import Run, read_run, run_of
from mfubench.workload.prepare import prepare
from mfubench.workload.spec import WorkloadSpec

BATCH_SIZE, WIDTH, HIDDEN, LATE_MS = 32, 16, 64, 100
MODEL = f"""
import time
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_to_all_single
from torch.nn.parallel import DistributedDataParallel


class Sharded(nn.Module):
    "A rank's columns of a table: looked up for the requests of all ranks, and sent home."

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(100, {WIDTH})

    def forward(self, ids):
        found = self.table(ids)
        return all_to_all_single(torch.empty_like(found), found)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.sharded = Sharded()
        self.dense = DistributedDataParallel(nn.Sequential(nn.Linear({WIDTH}, {HIDDEN}), nn.Linear({HIDDEN}, 1)))
        self.steps = 0

    def forward(self, ids):
        self.steps += 1
        if dist.get_rank() == 1:
            time.sleep({LATE_MS / 1e3})
        return self.dense(self.sharded(ids))


class Failing(Model):
    def forward(self, ids):
        if dist.get_rank() == 1 and self.steps == 6:
            raise ValueError("no more")
        return super().forward(ids)


def make_batch(batch_size, device):
    return (torch.randint(100, (batch_size,), device=device),)


def build():
    dist.init_process_group("gloo")
    return Model(), make_batch


def failing():
    dist.init_process_group("gloo")
    return Failing(), make_batch


def alone():
    return nn.Embedding(100, 1), make_batch
"""


def torchrun(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Two processes of the command, in ``folder``, which has the model."""
    (folder / "job.py").write_text(MODEL)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    return subprocess.run(
        [*launcher, "-m", "mfubench", *arguments],
        capture_output=True, text=True, cwd=folder, env=environment, timeout=240,
    )  # fmt: skip


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run, str]:
    folder = tmp_path_factory.mktemp("job")
    done = torchrun(
        folder, "profile", "job:build", "--batch-size", str(BATCH_SIZE), "--steps", "6", "--out", "out", "--json"
    )
    assert done.returncode == 0, done.stderr
    return folder / "out", run_of(json.loads(done.stdout), "stdout"), done.stderr  # one document, not one a rank


def test_one_rank_tells_of_all(job: tuple[Path, Run, str]) -> None:
    out, run, stderr = job
    assert run == read_run(out)
    assert run.parallel is not None and (run.world_size, run.parallel["backend"]) == (2, "gloo")
    assert [row["rank"] for row in run.ranks] == [0, 1]
    assert run.parallel["samples_per_s"] == pytest.approx(sum(row["samples_per_s"] for row in run.ranks))
    assert run.ranks[0]["samples_per_s"] == run.step["samples_per_s"]
    assert len(re.findall("measuring memory", stderr)) == 1
    report = (out / "report.md").read_text()
    assert "rank 0 of 2" in report and "its 2 ranks together" in report and "## Ranks" in report


def test_flops_are_each_ranks_own(job: tuple[Path, Run, str]) -> None:
    """Collectives need none, and hide none."""
    _, run, _ = job
    products = WIDTH * HIDDEN + HIDDEN
    assert run.flops["model"] == 3 * 2 * BATCH_SIZE * products
    assert [row["model_flops"] for row in run.ranks] == [run.flops["model"]] * 2
    assert run.flops["coverage"] == 1.0 and run.flops["unknown_ops"] == []


def test_what_ranks_say_is_counted_in_bytes(job: tuple[Path, Run, str]) -> None:
    """The rows of a table to and fro, and the gradients of what all ranks have."""
    _, run, _ = job
    assert run.parallel is not None
    told = {row["name"]: (row["calls"], row["bytes"]) for row in run.parallel["collectives"]}
    rows, gradients = 4 * BATCH_SIZE * WIDTH, 4 * (WIDTH * HIDDEN + HIDDEN + HIDDEN + 1)
    assert told["c10d::alltoall_base_"] == (2, 2 * rows) and told["c10d::allreduce_"][1] == gradients


def test_who_waits_for_a_late_rank_says_so(job: tuple[Path, Run, str]) -> None:
    """Rank 1 sleeps before it comes to the first collective, which rank 0 waits for in that module."""
    _, run, _ = job
    assert run.parallel is not None
    waited = {line.cause: line for line in run.ledger}["communication"]
    assert waited.ms >= 0.5 * LATE_MS and waited.modules[0] == "sharded"
    assert sum(line.ms for line in run.ledger) == pytest.approx(run.step["time_ms"]["median"])
    assert {row.name: row.verdict for row in run.modules}["sharded"] == "communication-bound"
    assert run.hotspots[0]["cause"] == "communication"
    exposed = [row["exposed_ms"] for row in run.ranks]
    assert exposed[0] == pytest.approx(waited.ms) and exposed[1] < exposed[0]
    assert all(row["communication_ms"] >= row["exposed_ms"] for row in run.ranks)


def test_a_run_of_two_ranks_does_not_compare_with_one_alone(job: tuple[Path, Run, str]) -> None:
    _, run, _ = job
    document = json.loads(run.to_json()) | {"parallel": None, "ranks": []}
    with pytest.raises(BadInput, match="ranks: 2, 1"):
        require_comparable({"job": run, "alone": run_of(document, "alone")})


@pytest.mark.parametrize(
    ("wrong", "at"),
    [
        ({"parallel": {"world_size": "two"}}, "parallel.world_size"),
        ({"ranks": [{"rank": 0}]}, "ranks"),
        ({"ranks": None}, "ranks"),
    ],
)
def test_a_document_of_a_job_that_is_not_whole_is_refused(
    job: tuple[Path, Run, str], wrong: dict[str, Any], at: str
) -> None:
    _, run, _ = job
    with pytest.raises(BadInput, match=at):
        run_of(json.loads(run.to_json()) | wrong, "x")


def test_a_rank_that_fails_ends_all_with_its_reason(tmp_path: Path) -> None:
    done = torchrun(tmp_path, "profile", "job:failing", "--batch-size", "4", "--quiet")
    assert done.returncode != 0 and done.stdout == ""
    assert "mfubench: error: rank 1: the model's step failed: ValueError: no more (job.py:" in done.stderr
    assert "mfubench" not in "".join(re.findall(r"File \"(.*)\"", done.stderr))  # no traceback of ours


def _launched(monkeypatch: pytest.MonkeyPatch, *told: str | None) -> None:
    for name, value in zip(("RANK", "LOCAL_RANK", "WORLD_SIZE"), told, strict=True):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("job:alone", "2 processes were started, and build() made no process group"),
        ("dlrm", "dlrm: a model of the zoo runs in one process, and several were started"),
    ],
)
def test_a_model_that_is_no_ranks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str, why: str) -> None:
    (tmp_path / "job.py").write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    _launched(monkeypatch, "0", "0", "2")
    with pytest.raises(BadInput, match=re.escape(why)):
        prepare(WorkloadSpec(model, size=None if ":" in model else "tiny", device="cpu"))


def test_a_command_that_is_not_for_ranks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _launched(monkeypatch, "1", "1", "2")
    with pytest.raises(SystemExit) as ended:
        main(["optimize", "dlrm"])
    assert ended.value.code == 2
    told = "mfubench: error: rank 1: mfubench optimize runs in one process, and several were started"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("told", "found"),
    [
        (("3", "1", "4"), Launch(3, 1, 4)),
        (("0", "0", "1"), None),  # torchrun of one process
        (("0", None, "8"), None),  # a scheduler that starts no process for each device
        ((None, None, None), None),
    ],
)
def test_which_process_this_is(
    monkeypatch: pytest.MonkeyPatch, told: tuple[str | None, ...], found: Launch | None
) -> None:
    _launched(monkeypatch, *told)
    assert launched() == found


@pytest.mark.parametrize("told", [("4", "0", "4"), ("1", "", "2"), ("-1", "0", "2"), ("one", "0", "2")])
def test_no_process_of_a_job(monkeypatch: pytest.MonkeyPatch, told: tuple[str, ...]) -> None:
    _launched(monkeypatch, *told)
    with pytest.raises(BadInput, match="no process of a job; start it with torchrun"):
        launched()


def test_a_process_without_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    _launched(monkeypatch, "1", "1", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BadInput, match="process 1 of this host has no GPU of its own, as 1 are visible"):
        take_own_gpu()


def test_a_group_of_one_is_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As scripts have it that run with and without torchrun."""
    _launched(monkeypatch, None, None, None)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        assert joined() == ALONE
    finally:
        dist.destroy_process_group()
