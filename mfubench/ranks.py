"""The ranks of a job: processes that work on one step together, each on a device of its own, as torchrun starts them.

Every rank runs the same passes in the same order, and as many steps of each as the others: a collective waits for all.
What one rank measures differently, such as how long its sampler needs, rank 0 decides for all of them.
"""

import platform
from dataclasses import dataclass
from time import sleep
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import BadInput
from .measure.environment import launched

if TYPE_CHECKING:
    from .run import Run

LET_GO_S = 0.25
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many this process is, and what they talk through, such as ``nccl``."""

    rank: int = 0
    world_size: int = 1
    backend: str | None = None

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.world_size == 1

    def agreed(self, value: T) -> T:
        """What rank 0 has, on every rank; all must ask, and nothing that is timed may."""
        if self.alone:
            return value
        import torch.distributed as dist

        told = [value]
        dist.broadcast_object_list(told, src=0)
        return told[0]

    def gathered(self, value: T) -> list[T]:
        """What each rank has, in their order; all must tell."""
        if self.alone:
            return [value]
        import torch.distributed as dist

        told: list[Any] = [None] * self.world_size
        dist.all_gather_object(told, value)
        return told


ALONE = Ranks()


def of_another_rank() -> bool:
    """Whether this process is one of several, and not the one that tells what they found."""
    launch = launched()
    return launch is not None and launch.rank > 0


def take_own_gpu() -> None:
    """Make this process's GPU of its host the current one, where several processes were started.

    Raises:
        BadInput: the host has fewer.
    """
    launch = launched()
    if launch is None:
        return
    import torch

    if launch.local_rank >= torch.cuda.device_count():
        raise BadInput(
            f"process {launch.local_rank} of this host has no GPU of its own, as {torch.cuda.device_count()} are "
            "visible; start as many processes, with torchrun --nproc-per-node, or use --device cpu"
        )
    torch.cuda.set_device(launch.local_rank)


def joined() -> Ranks:
    """The ranks of the process group that a user's ``build()`` has joined; `ALONE` where there is none.

    Raises:
        BadInput: it joined none, or another than that of the processes which torchrun started.
    """
    import torch.distributed as dist

    there = dist.is_available() and dist.is_initialized()
    size, launch = dist.get_world_size() if there else 1, launched()
    started = launch.world_size if launch else 1
    if size != started:
        made = f"a process group of {size}" if there else "no process group"
        raise BadInput(
            f"{started} process{'es were' if started > 1 else ' was'} started, and build() made {made}: start one for "
            "each device with torchrun, call torch.distributed.init_process_group() in build(), and wrap the module "
            "there as your training does; or use neither"
        )
    return ALONE if size == 1 else Ranks(dist.get_rank(), size, str(dist.get_backend()))


def leave() -> None:
    """Leave the process group once all its ranks have come here, as libraries ask for before a process ends.

    The backend's threads then have a moment to drop the tensors of what they did last. For those of Python they wait
    for the interpreter, which a model's reducer holds while it waits for them to end: both for ever, if it is the last
    that holds the group (gloo, seen once in torch 2.13).
    """
    if launched() is None:
        return
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        sleep(LET_GO_S)
        dist.destroy_process_group()


def with_others(run: "Run", ranks: Ranks) -> "Run":
    """``run`` with a row for every rank, and what they reach together; every rank must come here."""
    if ranks.alone or run.parallel is None:
        return run
    run.ranks = ranks.gathered(_row(run, ranks))
    times = [row["mean_step_ms"] for row in run.ranks]

    def of_all(key: str) -> float | None:
        values = [row[key] for row in run.ranks]
        return None if None in values else sum(map(lambda x, t: x * t, values, times)) / sum(times)

    run.parallel |= {
        "samples_per_s": sum(row["samples_per_s"] for row in run.ranks),
        **{key: of_all(key) for key in ("mfu", "mfu_of_measured_peak")},
    }
    return run


def _row(run: "Run", ranks: Ranks) -> dict[str, Any]:
    assert run.parallel is not None
    timings = run.step["timings_ms"]
    return {
        "rank": ranks.rank,
        "host": platform.node(),
        "device": run.device,
        "step_ms": run.step["time_ms"]["median"],
        "mean_step_ms": sum(timings) / len(timings),
        "samples_per_s": run.step["samples_per_s"],
        "model_flops": run.flops["model"],
        "mfu": run.mfu,
        "mfu_of_measured_peak": run.mfu_of_measured_peak,
        "exposed_ms": run.parallel["exposed_ms"],
        "communication_ms": run.parallel["communication_ms"],
        "peak_bytes": run.memory["peak_bytes"],
        "device_peak_bytes": run.memory["device_peak_bytes"],
    }
