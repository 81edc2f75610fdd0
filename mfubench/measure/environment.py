"""The pedigree that travels with every number: which code ran, on what, under which settings.

It records and never steers. It also reads environment variables, such as those by which torchrun says which process of
a job this is. Beside it only `group` does, which hands them on to the processes that it starts, `kernels.interpreter`,
which sets the one by which Triton interprets, `measure.trace`, which sets the one that silences the profiler's log, and
`report.terminal`, which asks how wide the reader of a pipe is.
"""

import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mfubench import __version__
from mfubench.errors import BadInput

from .nvml import driver_version

if TYPE_CHECKING:
    import torch


def environment(device: "torch.device") -> dict[str, Any]:
    """Code, software, host and device as one flat dict, ready for JSON; None for what this machine does not have."""
    import torch

    matmul, cudnn = torch.backends.cuda.matmul, cast(Any, torch.backends.cudnn)
    return {
        "date": now(),
        "mfubench": __version__,
        **git_state(Path(__file__)),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "triton": _version("triton"),
        "cuda_runtime": torch.version.cuda,
        "driver": driver_version(),
        "os": platform.platform(),
        "cpu": cpu_model(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": _memory_bytes(),
        "fp32_precision": {
            "cuda_matmul": matmul.fp32_precision,
            "cudnn_conv": cudnn.conv.fp32_precision,
            "cudnn_rnn": cudnn.rnn.fp32_precision,
        },
        **_device(device),
    }


def command_line() -> str:
    """What the user typed, for whoever wants to do it again."""
    return shlex.join(["mfubench", *sys.argv[1:]])


@dataclass(frozen=True, slots=True)
class Launch:
    """Which of a job's processes this one is, in all and on its host, and how many there are."""

    rank: int
    local_rank: int
    world_size: int


def launched() -> Launch | None:
    """This process as torchrun tells of it, or another launcher that sets the same variables; None if it is alone.

    Raises:
        BadInput: a variable is no number of a process.
    """
    told = [os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")]
    if None in told:
        return None
    numbers = [int(text) if text and text.isascii() and text.isdigit() else -1 for text in told]
    if min(numbers) < 0 or not max(numbers[:2]) < numbers[2]:
        raise BadInput(
            f"RANK, LOCAL_RANK and WORLD_SIZE are {', '.join(map(repr, told))}, no process of a job; start it with "
            "torchrun, or unset them"
        )
    return Launch(*numbers) if numbers[2] > 1 else None


def injected() -> bool:
    """Whether a tool such as Nsight looks into this process, which may not follow it into a fork."""
    return any(name.endswith("INJECTION64_PATH") for name in os.environ)


def device_name(device: "torch.device") -> str:
    """The GPU's name as its driver reports it, or the CPU's model."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


def device_uuid(device: "torch.device") -> str | None:
    """The GPU's UUID as NVML spells it, "GPU-…"; None for a CPU."""
    import torch

    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else None


def cpu_model() -> str:
    """The CPU's model name, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def git_state(file: Path) -> dict[str, Any]:
    """``git_sha`` and ``git_dirty`` of the checkout that tracks ``file``, as `uncommitted`; both None where none does.

    An installed copy inside somebody else's checkout is not tracked there, so it does not take that checkout's commit.
    """
    sha = git(file.parent, "rev-parse", "HEAD")
    if sha is None or git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        return {"git_sha": None, "git_dirty": None}
    return {"git_sha": sha, "git_dirty": uncommitted(file.parent)}


def uncommitted(folder: Path, *, limit_s: float = 10) -> bool | None:
    """Whether the checkout around ``folder`` has what its commit has not; None where git does not tell.

    A new file counts too, unless git ignores it: code runs whether it was added or not.
    """
    changes = git(folder, "status", "--porcelain", "--untracked-files=normal", limit_s=limit_s)
    return None if changes is None else bool(changes)


def git(folder: Path, *arguments: str, limit_s: float = 10) -> str | None:
    """What git prints in ``folder``; None where it fails, takes longer or is not there."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def cache_directory() -> Path:
    """Where mfubench keeps what it may lose: $XDG_CACHE_HOME/mfubench, else ~/.cache/mfubench."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "mfubench"


def now() -> str:
    """The date and time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _device(device: "torch.device") -> dict[str, Any]:
    import torch

    known: dict[str, Any] = {"device_type": device.type, "device_name": device_name(device)}
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return known | {
        "device_uuid": device_uuid(device),
        "device_capability": f"{gpu.major}.{gpu.minor}" if gpu else None,
        "device_sm_count": gpu.multi_processor_count if gpu else None,
        "device_memory_bytes": gpu.total_memory if gpu else None,
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
