"""Checking, tuning and timing one op as work for a worker: what `mfubench kernels check` and `bench` have one do."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from math import inf
from typing import Any

import torch

from mfubench.errors import BadInput, ToolBroke
from mfubench.progress import Progress, silent
from mfubench.side_by_side import CONTRACT_PARTS, SharedProgress, one_a_core, one_thread, share_out, workers
from mfubench.worker import FAILED, Answer, Watch, Worker

from .bench import NOT_REACHED, BenchRow, bench_op, left_out, named_shapes, not_timed
from .catalog import examples_of
from .check import OpResult, check_op, joined
from .peers import peers_of
from .tune import tune_op

CASE_LIMITS_S = {"cuda": 120.0, "cpu": inf}  # compiling for a case takes seconds; the interpreter takes its time
CHECKING_SHARE = 0.3  # of a bench's progress


def check_work(
    watch: Watch, *, op: str, device: str, full: bool, part: tuple[int, int], without: Mapping[str, str]
) -> OpResult:
    """A part of an op's numeric contract; a case of ``without`` is a failed one."""
    with one_thread():
        return check_op(examples_of(op), torch.device(device), full=full, part=part, without=without, watch=watch)


def tune_work(
    watch: Watch, *, op: str, shape: str, device: str, adopted: Sequence[Mapping[str, Any]], without: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The entries that tuning an op at a shape finds, beside those that hold already."""
    from mfu_kernels.lock import adopt

    adopt(adopted)
    return tune_op(examples_of(op), torch.device(device), shapes=[shape], without=without, watch=watch)


def bench_work(
    watch: Watch,
    *,
    op: str,
    shape: str,
    device: str,
    peers: Sequence[str],
    skipped: Mapping[str, str],
    rounds: int,
    adopted: Sequence[Mapping[str, Any]],
    without: Mapping[str, str],
) -> list[BenchRow]:
    """The rows of an op at a shape; ``skipped`` are peers that are not wanted, and why."""
    from mfu_kernels.lock import adopt

    adopt(adopted)
    examples = examples_of(op)
    offered = left_out(peers_of(op, examples, peers), {**skipped, **without})
    return bench_op(op, examples, torch.device(device), shapes=[shape], peers=offered, rounds=rounds, watch=watch)


def check_all(
    ops: Sequence[str],
    device: torch.device,
    *,
    full: bool = False,
    progress: Progress = silent,
) -> list[OpResult]:
    """The contract of every op in ``ops``, natively or, on a CPU, under Triton's interpreter, by a worker on each core.

    A case that hangs, crashes or breaks the device is a failed one, and the others go on.

    Raises:
        ToolBroke: a check itself broke.
    """
    places = [(op, part) for op in ops for part in range(CONTRACT_PARTS)]
    found: dict[tuple[str, int], OpResult] = {}
    told = SharedProgress(progress, len(places))

    def check(worker: Worker, place: tuple[str, int]) -> None:
        op, part = place
        told.begins(f"{op}: checking its numbers")
        answer = worker.run(
            check_work,
            {"op": op, "device": device.type, "full": full, "part": (part, CONTRACT_PARTS)},
            part_limit_s=CASE_LIMITS_S[device.type],
            begins=lambda case: told.goes_on(f"{op}: {case}"),
        )
        found[place] = _document(answer, op)

    with workers(device.type, min(one_a_core(), len(places))) as hands:
        share_out(places, hands, check)
    return [joined([found[op, part] for part in range(CONTRACT_PARTS)]) for op in ops]


def bench_all(
    ops: Sequence[str],
    device: torch.device,
    *,
    shapes: Sequence[str],
    peers: Sequence[str],
    without: Mapping[str, str],
    rounds: int,
    tune: bool,
    peer_limit_s: float,
    progress: Progress = silent,
) -> tuple[list[BenchRow], list[dict[str, Any]]]:
    """Rows of every op in ``ops``, and the lock's entries that ``tune`` found.

    A kernel that fails its numeric contract is not timed. A peer, or a config that is tuned, that takes longer than
    ``peer_limit_s``, or ends its process, is left out with the reason.

    Raises:
        BadInput: an unknown shape or peer, also one to leave out.
        ToolBroke: a kernel of ours fails.
    """
    known = {peer.name for op in ops for peer in peers_of(op, examples_of(op), peers)}
    for name in without:
        if name not in known:
            raise BadInput(f"--without {name}: none of these ops has that peer; they have: {', '.join(sorted(known))}")
    wanted = [(op, shape) for op in ops for shape in named_shapes(op, examples_of(op), shapes)]
    rows: list[BenchRow] = []
    won: list[dict[str, Any]] = []
    checking = check_all(
        list(dict(wanted)), device, progress=lambda stage, done: progress(stage, CHECKING_SHARE * done)
    )
    failed = {found.op: len(found.failed) for found in checking}
    with closing(Worker(device.type)) as worker:
        for index, (op, shape) in enumerate(wanted):
            done = CHECKING_SHARE + (1 - CHECKING_SHARE) * index / len(wanted)
            if failed[op]:
                why = f"{failed[op]} cases fail the numeric contract; see `mfubench kernels check {op}`"
                rows += not_timed(op, shape, why)
                continue
            place = {"op": op, "shape": shape, "device": device.type, "adopted": won}
            if tune:
                progress(f"tuning {op} at {shape}", done)
                won = won + _document(worker.run(tune_work, place, part_limit_s=peer_limit_s), f"{op} at {shape}")
            progress(f"{op}: {shape}", done)
            chosen = {"peers": list(peers), "skipped": dict(without), "rounds": rounds}
            answer = worker.run(bench_work, {**place, **chosen, "adopted": won}, part_limit_s=peer_limit_s)
            found = _document(answer, f"{op} at {shape}")
            cut_off = f"{NOT_REACHED}: {answer.reason}"
            rows += [replace(row, reason=cut_off) if row.reason == NOT_REACHED else row for row in found]
    return rows, won


def _document(answer: Answer, what: str) -> Any:
    if answer.status == FAILED:
        raise ToolBroke(f"{what}: {answer.reason}")
    return answer.document
