"""The README's section on a user's own model: its command works as printed, and so does its code."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from mfubench.measure.calibrate import Calibration
from mfubench.profiling import profile
from mfubench.workload.spec import WorkloadSpec
from tests.house.tree import ROOT

SECTION = (ROOT / "README.md").read_text("utf-8").split("## Your own model\n")[1].split("\n## ")[0]
CODE = re.findall(r"^```python\n(.*?)^```", SECTION, flags=re.MULTILINE | re.DOTALL)


def test_the_example_runs_as_printed(calibrated: Calibration) -> None:
    """In the repository's root, whether or not the package is installed."""
    command = "mfubench profile examples.own_model:build --batch-size 64"
    assert command in SECTION and command in (ROOT / "examples" / "own_model.py").read_text("utf-8")
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), "--device", "cpu", "--steps", "2", "--json"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert run["workload"]["batch_size"] == 64 and run["step"]["time_ms"]["median"] > 0
    assert run["flops"]["coverage"] == 1.0 and run["flops"]["unknown_ops"] == []
    assert {"items", "blocks.1.ffn.2"} <= {row["name"] for row in run["modules"] if row["time_ms"] > 0}
    optimizer = next(line["ms"] for line in run["ledger"] if line["cause"] == "optimizer")
    assert optimizer > 0, "the example's own optimizers step"


@pytest.mark.usefixtures("fixed_calibration")
def test_the_code_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "printed_model.py").write_text(CODE[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    run = profile(WorkloadSpec("printed_model:build", device="cpu", batch_size=8, steps=2))
    assert run.flops["coverage"] == 1.0


@pytest.mark.usefixtures("fixed_calibration")
def test_its_script_runs_on_what_a_training_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(3, 1)
    held: dict[str, Any] = {
        "model": model,
        "loader": DataLoader(TensorDataset(torch.rand(64, 3)), batch_size=8, shuffle=True),
        "loss": lambda output, batch: output.square().mean(),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }
    exec(CODE[1], held)
    assert held["run"].step["loader"]["samples_per_s"] > 0
    assert "fed by its loader" in capsys.readouterr().out and (tmp_path / "out/mine/report.html").exists()
