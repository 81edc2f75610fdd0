"""The pedigree of a number: complete, ready for JSON, and never another project's commit."""

import json
import os
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
import torch

import mfubench
from mfubench.measure.environment import cache_directory, cpu_model, device_name, device_uuid, environment, git_state

CPU = torch.device("cpu")
KEYS = {
    "date",
    "mfubench",
    "git_sha",
    "git_dirty",
    "python",
    "torch",
    "triton",
    "cuda_runtime",
    "driver",
    "os",
    "cpu",
    "cpu_cores",
    "torch_threads",
    "memory_bytes",
    "fp32_precision",
    "device_type",
    "device_name",
    "device_uuid",
    "device_capability",
    "device_sm_count",
    "device_memory_bytes",
}


def git(folder: Path, *arguments: str) -> str:
    identity = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, env=os.environ | identity, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "tracked.py").write_text("x = 1\n")
    git(tmp_path, "add", "tracked.py")
    git(tmp_path, "commit", "--quiet", "--no-verify", "--no-gpg-sign", "-m", "one")
    return tmp_path


def test_a_cpu_has_every_key_and_no_device_facts():
    found = environment(CPU)
    assert found.keys() == KEYS
    assert json.loads(json.dumps(found)) == found
    assert found["mfubench"] == mfubench.__version__
    assert found["torch"] == torch.__version__
    assert found["device_name"] == found["cpu"] == cpu_model() == device_name(CPU) != ""
    assert found["memory_bytes"] > 2**28
    assert found["device_uuid"] is found["device_sm_count"] is device_uuid(CPU) is None
    assert datetime.fromisoformat(found["date"]).utcoffset().total_seconds() == 0


def test_the_tf32_switch_is_recorded():
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert environment(CPU)["fp32_precision"]["cuda_matmul"] == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_a_checkout_gives_its_commit_and_whether_it_was_changed(checkout):
    sha = git(checkout, "rev-parse", "HEAD")
    assert git_state(checkout / "tracked.py") == {"git_sha": sha, "git_dirty": False}
    (checkout / "tracked.py").write_text("x = 2\n")
    assert git_state(checkout / "tracked.py") == {"git_sha": sha, "git_dirty": True}


def test_a_new_file_is_a_change_unless_git_ignores_it(checkout):
    """It is imported like any other. What the user has git show by default does not matter."""
    git(checkout, "config", "status.showUntrackedFiles", "no")
    (checkout / ".git" / "info" / "exclude").write_text("out/\n")
    (checkout / "out").mkdir()
    (checkout / "out" / "run.json").write_text("{}")
    assert git_state(checkout / "tracked.py")["git_dirty"] is False
    (checkout / "new.py").write_text("")
    assert git_state(checkout / "tracked.py")["git_dirty"] is True


def test_a_copy_installed_in_another_checkout_does_not_take_its_commit(checkout):
    (checkout / "installed.py").write_text("")
    assert git_state(checkout / "installed.py") == {"git_sha": None, "git_dirty": None}


def test_no_git_is_no_error(tmp_path, monkeypatch):
    assert git_state(tmp_path / "file.py") == {"git_sha": None, "git_dirty": None}
    monkeypatch.setenv("PATH", "")
    assert git_state(Path(mfubench.__file__)) == {"git_sha": None, "git_dirty": None}


def test_the_cache_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "mfubench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "mfubench"


@pytest.mark.gpu
def test_a_gpu_is_recorded():
    found = environment(torch.device("cuda"))
    assert found["device_name"] == torch.cuda.get_device_name()
    assert found["device_uuid"].startswith("GPU-")
    assert found["device_sm_count"] > 0 and found["driver"] and found["cuda_runtime"]
    assert json.loads(json.dumps(found)) == found
