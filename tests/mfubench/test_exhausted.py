"""When memory or time runs out: one clear line, and what was measured before is kept and marked."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mfubench.errors import BadInput
from mfubench.exhausted import free_host_memory, out_of_memory, release
from mfubench.files import write_text
from mfubench.passes import LATER
from mfubench.profiling import first_step, profile_workload
from mfubench.report import write_reports
from mfubench.run import Run, read_run
from mfubench.workload.spec import Workload

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
ON_A_GPU = (
    "CUDA out of memory. Tried to allocate 20.50 GiB. GPU 0 has a total capacity of 79.10 GiB of which 3.25 GiB is "
    "free. Including non-PyTorch memory, this process has 75.84 GiB memory in use."
)
HUGE = 10**15


def raised(function: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:
        function()
    return caught.value


EXHAUSTED: dict[str, tuple[Callable[[], Exception], list[str]]] = {
    "a GPU": (lambda: torch.OutOfMemoryError(ON_A_GPU), ["20.5 GiB asked for", "3.25 GiB free on cuda:0"]),
    "torch on a host": (lambda: raised(lambda: torch.empty(HUGE)), ["3.553 PiB asked for", "free on this machine"]),
    "numpy": (lambda: raised(lambda: np.ones(HUGE)), ["7.11 PiB asked for", "free on this machine"]),
    "cuBLAS": (lambda: RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), ["an unknown amount"]),
    "Triton": (lambda: RuntimeError("Triton Error [CUDA]: out of memory"), ["an unknown amount asked for"]),
    "Python": (lambda: raised(lambda: bytearray(HUGE)), ["an unknown amount asked for"]),
}


@pytest.mark.parametrize("case", EXHAUSTED)
def test_what_was_asked_and_what_was_free(case: str) -> None:
    make, words = EXHAUSTED[case]
    said = out_of_memory(make(), CUDA if case == "a GPU" else CPU)
    assert said is not None and all(part in said for part in words), said


def test_other_errors_are_not_about_memory() -> None:
    assert out_of_memory(RuntimeError("shapes do not fit"), CPU) is None
    assert out_of_memory(ValueError("out of memory"), CPU) is None
    free = free_host_memory()
    assert free is None or 0 < free < 2**50


def test_a_device_that_failed_for_good_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says then is no news; the pass that it failed in is named already."""

    def broken() -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr("torch.cuda.empty_cache", broken)
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    release([parameter], CUDA)
    assert parameter.grad is None


class Greedy(nn.Module):
    """Asks for more than there is in one pass of a profile; ``when`` looks at what watches the step."""

    def __init__(self, when: Callable[[], bool]) -> None:
        super().__init__()
        self.layer, self.when = nn.Linear(8, 4), when

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.when():
            torch.empty(HUGE)
        out: torch.Tensor = self.layer(x)
        return out


def watched_by(name: str) -> bool:
    """Whether a frame of the stack is the pass of this name."""
    frame: Any = sys._getframe()
    while frame is not None and frame.f_code.co_name != name:
        frame = frame.f_back
    return frame is not None


PASSES = {"counts": "count_step", "attribution": "trace_steps", "memory": "peak_of_step"}


@pytest.fixture
def foreign(zoo: Callable[..., Workload], fixed_calibration: object) -> Callable[[nn.Module], Workload]:
    def make(module: nn.Module) -> Workload:
        workload = zoo(steps=2)
        workload.module, workload.needed, workload.optimizers = module, None, []
        workload.inputs, workload.num_samples = [torch.randn(6, 8)], [6]
        workload.forward, workload.loss = lambda model, x: model(x), lambda output, x: output.mean()
        return workload

    return make


def is_whole(run: Run, folder: Path) -> None:
    """A Run that lacks a pass still adds up, and is written, read and reported as any other."""
    assert sum(line.ms for line in run.ledger) == pytest.approx(run.step["time_ms"]["median"], rel=1e-3)
    folder.mkdir()
    write_text(folder / "run.json", run.to_json())
    write_reports([read_run(folder)], folder)
    assert "left out" in (folder / "report.md").read_text()


@pytest.mark.parametrize("lacking", PASSES)
def test_a_pass_that_runs_out_of_memory_is_left_out(
    lacking: str, foreign: Callable[[nn.Module], Workload], tmp_path: Path
) -> None:
    run = profile_workload(foreign(Greedy(lambda: watched_by(PASSES[lacking]))))
    (line,) = (line for line in run.not_measured if line.startswith(LATER[lacking]))
    assert "out of memory: 3.553 PiB asked for" in line and len(run.step["timings_ms"]) == 2
    assert any(line in warning for warning in run.warnings)
    assert (run.flops["model"] is None) == (lacking == "counts") == (run.mfu_of_measured_peak is None)
    assert (run.trace["distortion"] is None) == (lacking == "attribution") == (not run.kernels)
    assert (run.memory["peak_bytes"] is None) == (lacking == "memory")
    if lacking == "attribution":
        assert {line.cause for line in run.ledger} == {"useful", "not_attributed"}
        assert {row.verdict for row in run.modules if row.fwd_model_flops} == {"not measured"}
    is_whole(run, tmp_path / "out")


def test_a_pass_that_breaks_a_users_model_is_left_out(foreign: Callable[[nn.Module], Workload], tmp_path: Path) -> None:
    class Shy(Greedy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.when():
                raise TypeError("not under a dispatch mode")
            return super().forward(x)

    run = profile_workload(foreign(Shy(lambda: watched_by("count_step"))))
    (line,) = (line for line in run.not_measured if line.startswith(LATER["counts"]))
    assert "the model's step fails in it: TypeError: not under a dispatch mode" in line
    is_whole(run, tmp_path / "out")


def test_a_pass_that_breaks_a_model_of_the_zoo_is_a_defect(
    zoo: Callable[..., Workload], fixed_calibration: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object, **_options: object) -> None:
        raise TypeError("planted")

    monkeypatch.setattr("mfubench.profiling.peak_of_step", broken)
    with pytest.raises(TypeError, match="planted"):
        profile_workload(zoo())


@pytest.mark.parametrize("step", [1, 2])
def test_a_step_that_runs_out_of_memory_is_bad_input(step: int, foreign: Callable[[nn.Module], Workload]) -> None:
    """Whether the first one or a timed one does: without a time there is nothing to keep."""
    calls: list[None] = []

    def when() -> bool:
        calls.append(None)
        return len(calls) == step

    with pytest.raises(BadInput, match=r"3.553 PiB asked for.* free on this machine; use a smaller --batch-size"):
        profile_workload(foreign(Greedy(when)))


def test_what_fits_compiled_alone_is_measured_so(foreign: Callable[[nn.Module], Workload]) -> None:
    """Its first step, as it was written, does not; a model that nothing compiles is refused for that."""
    workload = foreign(Greedy(lambda: watched_by("_as_written")))
    with pytest.raises(BadInput, match="the step ran out of memory"):
        first_step(workload)
    workload.may_be_compiled = True
    run = profile_workload(workload)
    (warning,) = (text for text in run.warnings if text.startswith("as it was written, uncompiled, the step ran"))
    assert "3.553 PiB asked for" in warning and len(run.step["timings_ms"]) == 2


USER = """
import sys, time, torch
CALLS = []

class Slow(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 4)

    def forward(self, x):
        CALLS.append(1)
        if len(CALLS) > {fast}:
            {then}
        return self.layer(x)

def build():
    return Slow(), lambda b, d: (torch.ones(b, 8),)
"""
BEFORE_THE_TRACE = 1 + 3 + 2 + 3  # the first step, warm-up, two timed steps; two input sets counted, one of them again
DEAF = "import ctypes; ctypes.CDLL(None).sleep(600)"  # never sees a signal
# The same where time is up as soon as it hangs, however soon that is.
SLEEPS_IN_PYTHON = "import signal; signal.setitimer(signal.ITIMER_REAL, 0.1); time.sleep(600)"
SLEEPS_IN_A_LIBRARY = (
    "import threading; (timer,) = (t for t in threading.enumerate() if isinstance(t, threading.Timer)); "
    f"threading.Timer(0.1, timer.function).start(); {DEAF}"
)


def run_command(folder: Path, fast: int, then: str, *options: str, start: str = "") -> Any:
    (folder / "slow.py").write_text(USER.format(fast=fast, then=then))
    code = f"import mfubench.timeout as t; t.GRACE_S = 0.5; {start}\nfrom mfubench.cli import main\nmain()"
    arguments = ["profile", "slow:build", "--device", "cpu", "--steps", "2", "--out", "out", "--quiet", *options]
    command = [sys.executable, "-c", code, *arguments]
    path = {"PYTHONPATH": ":".join(sys.path)}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env=path | environment())


def environment() -> dict[str, str]:
    import os

    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


@pytest.mark.parametrize("then", [SLEEPS_IN_PYTHON, SLEEPS_IN_A_LIBRARY], ids=["in Python", "in a library"])
def test_what_was_measured_before_time_was_up_is_kept(then: str, tmp_path: Path, calibrated: object) -> None:
    """A model that hangs in the trace pass, whether its wait can be interrupted or not."""
    done = run_command(tmp_path, BEFORE_THE_TRACE, then, "--timeout", "600")
    assert (done.returncode, done.stdout) == (2, "")
    kept, error = done.stderr.splitlines()
    assert kept.endswith(f"what was measured until then is in {tmp_path / 'out'}")
    assert error.startswith("mfubench: error: --timeout 600: the workload was still running")
    run = read_run(tmp_path / "out")
    assert len(run.step["timings_ms"]) == 2 and run.flops["model"] > 0 and run.memory["peak_bytes"] is None
    assert any(line == f"{LATER['attribution']}: not reached" for line in run.not_measured)
    made = {path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".svg"}
    assert made == {"run.json", "report.md", "report.html"}


def test_nothing_is_kept_where_nothing_was_measured(tmp_path: Path, calibrated: object) -> None:
    done = run_command(tmp_path, 0, SLEEPS_IN_A_LIBRARY, "--timeout", "600")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert not (tmp_path / "out").exists()


def test_an_interrupt_keeps_what_was_measured(tmp_path: Path, calibrated: object) -> None:
    """Exit code 130, as from a terminal's Ctrl-C."""
    done = run_command(tmp_path, BEFORE_THE_TRACE, "raise KeyboardInterrupt")
    assert (done.returncode, done.stdout) == (130, "")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["flops"]["model"] > 0
    assert "interrupted" in done.stderr.splitlines()[-1]
