"""Compiling ahead: what a campaign launches, once each, found again; what cannot be compiled costs itself."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mfu_kernels.gdpa.tiles import num_splits
from mfu_kernels.modes import compile_ahead
from mfubench.campaign import ahead
from mfubench.campaign.ahead import NOT_BEGUN, launching
from mfubench.campaign.plan import Task, plan
from mfubench.cli import main
from tests.compiling import mfubench, python
from tests.mfubench.scaling.small import write_log

CODE = """
import json, sys
from pathlib import Path
from mfubench.campaign.ahead import compile_for
from mfubench.campaign.plan import Task
from mfubench.campaign.runner import Limits

if __name__ == "__main__":
    tasks = [Task(stage, name, arguments) for stage, name, arguments in json.loads(sys.argv[1])]
    limits = Limits(200, 200, 200)
    print(json.dumps(compile_for("sm_90", tasks, Path(sys.argv[2]), limits=limits, progress=lambda stage, done: None)))
"""

SOME = 4  # configs of a kernel


def compiled(folder: Path, *tasks: Task) -> dict[str, Any]:
    done = python(CODE, json.dumps([(task.stage, task.name, dict(task.arguments)) for task in tasks]), str(folder))
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def of_shape(stage: str, op: str, shape: str) -> Task:
    return Task(stage, f"{op}-{shape}", {"op": op, "shape": shape, "peers": [], "builtin": False})


def of_model(model: str, compile: str = "none", impl: str = "kernels") -> Task:
    arguments = {"model": model, "size": "tiny", "mode": "train", "impl": impl, "compile": compile, "batch_size": 32}
    return Task("profile", f"{model}-{compile}-{impl}", arguments)


def test_what_launches_the_same_is_compiled_once() -> None:
    chosen = launching(plan("cuda", tune=True))
    assert {task.stage for task in chosen} == {"contract", "compile", "bench", "profile", "road"}
    shapes = Counter((task.arguments["op"], task.arguments["shape"]) for task in chosen if "shape" in task.arguments)
    assert set(shapes.values()) == {1} and shapes["gdpa", "X1024"] == 1
    assert all(task.arguments["impl"] == "kernels" for task in chosen if task.stage == "profile")
    assert {task.stage for task in launching(plan("cuda"))} == {"contract", "bench", "profile", "road"}
    same = [of_model("dlrm"), of_model("dlrm", "regions"), of_model("dlrm", impl="reference"), of_model("din")]
    assert launching(same) == [same[0], same[3]]


def test_a_ladders_steps_are_those_of_its_trainings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (task,) = launching(plan("cuda", stages=["scale"], data=write_log(tmp_path)))
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        ahead, "step_without_numbers",
        lambda spec: seen.append((spec.model, spec.size, spec.mode, spec.batch_size, spec.candidates, spec.dtype)),
    )  # fmt: skip
    ahead._LAUNCHES["scale"](task.arguments)
    assert len(seen) == 16 and {(model, *rest) for model, _, *rest in seen} == {
        (model, mode, requests, 1, "bf16")
        for model in ("interformer", "kunlun")
        for mode, requests in (("train", 512), ("infer", 1024))
    }


def test_kernels_of_an_op_and_of_a_step_are_kept_and_found_again(tmp_path: Path) -> None:
    shape = of_shape("bench", "rms_norm", "norm 1.18M x 512")
    told = compiled(tmp_path, shape, of_model("amortized_history"), of_model("none"))
    kernels = {name.split()[0] for name in told["kernels"]}
    assert {"rms_norm_fwd_kernel", "rms_norm_bwd_kernel", "layer_norm_bwd_kernel", "embedding_sum_kernel"} <= kernels
    assert told["failed"] == {} and [stage["done"] for stage in told["stages"]] == [1, 1]
    assert list(told["not_done"]) == [of_model("none").id] and "'none'" in told["not_done"][of_model("none").id]
    binaries = set((tmp_path / "triton").rglob("*.cubin"))
    assert len(binaries) >= len(told["kernels"]) and told["cache_bytes"] > sum(file.stat().st_size for file in binaries)
    again = compiled(tmp_path, shape)
    assert set(again["kernels"]) <= set(told["kernels"])
    assert set((tmp_path / "triton").rglob("*.cubin")) == binaries


def test_what_is_tuned_is_compiled_with_every_config(tmp_path: Path) -> None:
    """One that is locked for a GPU of that generation is not: H200s have locked norms, and A100s nothing."""
    shape = of_shape("tune", "rms_norm", "norm 1.18M x 512").arguments
    step = {**of_model("ligr").arguments, "op": "layer_norm", "step": "ligr"}
    code = f"""
from mfu_kernels.rms_norm.kernel import BACKWARD, FORWARD
from mfubench.campaign.ahead import compile_task
from mfubench.worker import UNWATCHED
for kernel in (FORWARD, BACKWARD):
    kernel.space = lambda key, space=kernel.space: space(key)[:{SOME}]
shape, step = {shape!r}, {step!r}
for stage, arguments, target in (
    ("tune", shape, "sm_80"), ("tune", shape, "sm_90"), ("tune", step, "sm_80"), ("contract", step, "sm_80"),
):
    arguments = {{**arguments, "target": target, "cache": {str(tmp_path)!r}}}
    told = compile_task(UNWATCHED, stage=stage, arguments=arguments)
    print(len(told["kernels"]) + len(told["failed"]), *{{kernel.split()[0] for kernel in told["kernels"]}})
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    *shapes, of_step, of_contract = (line.split() for line in done.stdout.splitlines())
    anywhere, locked = (int(count) for count, *_ in shapes)
    assert 2 <= locked <= 4 < 2 * SOME <= anywhere  # a default and a locked one of each of two kernels
    for compiled_there in (of_step, of_contract):
        assert set(compiled_there[1:]) == {"layer_norm_fwd_kernel", "layer_norm_bwd_kernel"}
        assert int(compiled_there[0]) >= 4  # both kernels, each with more than one config


def test_rows_are_shared_out_as_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton compiles an argument of 1 as a constant, so that what is launched with another number is not found."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=132))
    there = num_splits(12, 300, torch.device("cuda"))
    with compile_ahead(lambda _: None, lambda *_: "none"):
        assert num_splits(12, 300, torch.device("meta")) == there > 1


def test_a_budget_that_is_over_leaves_the_rest(tmp_path: Path) -> None:
    done = mfubench(
        "campaign", "--ahead", "sm_80", "--stage", "bench", "--budget", "1s", "--out", str(tmp_path), "--json"
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert set(told["not_done"].values()) == {NOT_BEGUN} and told["kernels"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ahead", "sm_12"], "--ahead sm_12 is unknown; allowed: sm_80, sm_90, sm_100"),
        (["--ahead", "sm_90", "--stage", "calibration"], "nothing chosen launches kernels; stages that do: contract"),
    ],
)
def test_bad_input(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = mfubench("campaign", *arguments, "--out", str(tmp_path / "none"))
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_interpreter_compiles_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["campaign", "--ahead", "sm_90", "--out", str(tmp_path)])
    assert ended.value.code == 2 and "unset TRITON_INTERPRET" in capsys.readouterr().err
