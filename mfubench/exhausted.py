"""What to say when memory runs out, and how to go on afterwards."""

import gc
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch

from .errors import OutOfMemory

HOST_ALLOCATOR = "DefaultCPUAllocator: can't allocate memory"
OF_LIBRARIES = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "out of memory")  # what others say
_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+) ?(bytes|[KMGTPE]iB)|Unable to allocate ([\d.]+) ([KMGTPE]iB)")
_FREE = re.compile(r"of which ([\d.]+) ?(bytes|[KMGTPE]iB) is free")
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "PiB": 1 << 50, "EiB": 1 << 60}


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that a device or the host has no memory left; torch raises a plain error on a CPU."""
    of_torch = isinstance(error, (OutOfMemory, torch.OutOfMemoryError)) or _on_host(error)
    return of_torch or (isinstance(error, RuntimeError) and any(words in str(error) for words in OF_LIBRARIES))


def _on_host(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or HOST_ALLOCATOR in str(error)


def out_of_memory(error: BaseException, device: torch.device) -> str | None:
    """How much memory was asked for and how much was free, if that is what ``error`` is about; else None."""
    text = str(error)
    if not ran_out_of_memory(error):
        return None
    on_host = _on_host(error)
    asked = _bytes(_ASKED.search(text))
    free = free_host_memory() if on_host else _bytes(_FREE.search(text))
    if free is None and not on_host and device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    where = "this machine" if on_host else str(device)
    return f"{_size(asked)} asked for, {_size(free)} free on {where}"


def release(parameters: Iterable[torch.nn.Parameter], device: torch.device) -> None:
    """Give back what a step that was cut short has left: its gradients, and what the allocator keeps.

    A device that has failed for good fails at this, too, and whoever needs it next says so.
    """
    for parameter in parameters:
        parameter.grad = None
    gc.collect()
    if device.type == "cuda":
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


def free_host_memory() -> int | None:
    """Bytes that this machine can still give; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None  # not Linux


def _bytes(match: re.Match[str] | None) -> float | None:
    if match is None:
        return None
    amount, unit = (group for group in match.groups() if group)
    return float(amount) * _UNITS[unit]


def _size(num_bytes: float | None) -> str:
    if num_bytes is None:
        return "an unknown amount"
    unit = next((unit for unit in reversed(_UNITS) if num_bytes >= _UNITS[unit]), "bytes")
    return f"{num_bytes / _UNITS[unit]:.4g} {unit}"
