"""Kernels beside their peers on named shapes, in one run: milliseconds, TFLOP/s, GB/s, and share of the floor.

The floor of a call is the longer of two times: its least bytes at this GPU's measured copy bandwidth, and its FLOPs at
what a large GEMM reaches here. An attention's backward counts as 2.5 forwards, scores repeated, whatever is executed:
so do the public figures that these are compared with.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfu_kernels import OPS
from mfu_kernels.cost import OpCost, observing
from mfu_kernels.examples import Draw, Examples, Inputs
from mfubench.errors import BadInput
from mfubench.measure.calibrate import Calibration, load_or_calibrate
from mfubench.measure.environment import environment
from mfubench.measure.stats import median_ci
from mfubench.measure.timing import wait_for
from mfubench.worker import UNWATCHED, PartBroke, Watch

from .budget import DISAGREES, difference
from .machine_code import toolchain
from .peers import CannotRun, Peer
from .timing import Call, time_in_turns

OURS = "mfubench"
ATTENTION_BACKWARD = 2.5
DIRECTIONS = ("forward", "backward")
ROUNDS = 20
NOT_REACHED = "not reached"  # a peer, when what stands so far is all that there is


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One implementation at one shape in one direction; without a time, ``reason`` says why there is none.

    ``times_ours`` is how many times as long as ours it takes, from samples paired by round.
    """

    op: str
    shape: str
    direction: str
    implementation: str
    same_math: bool
    ms: tuple[float, float, float] | None = None
    tflops: float | None = None
    gb_s: float | None = None
    floor_ms: float | None = None
    share_of_floor: float | None = None
    times_ours: tuple[float, float, float] | None = None
    samples_ms: Sequence[float] = field(default_factory=list)
    reason: str | None = None


def bench_op(
    op: str,
    examples: Examples,
    device: torch.device,
    *,
    shapes: Sequence[str] = (),
    peers: Sequence[Peer] = (),
    rounds: int = ROUNDS,
    watch: Watch = UNWATCHED,
) -> list[BenchRow]:
    """Time ``op`` and ``peers`` in bf16 on the named ``shapes``, all of them by default.

    Ours first, by itself: that stands while the peers, which may hang, are built and all are timed in turns. A peer
    that cannot run, or runs out of memory, is listed with the reason. That ours is right was proved before.

    Raises:
        BadInput: no GPU, or an unknown shape.
        PartBroke: a peer made a fault after which this process can use the GPU no more.
    """
    if device.type != "cuda":
        raise BadInput("kernels are timed on a GPU only; here is none; `mfubench kernels check` and `static` need none")
    wanted = named_shapes(op, examples, shapes)
    calibration = load_or_calibrate(device, "bf16")
    rows: list[BenchRow] = []
    for shape in wanted:
        torch.compiler.reset()  # dynamo counts every shape of every op as one function's, and runs the ninth eagerly
        rows += _bench_shape(op, shape, examples, device, calibration, peers, rounds, watch)
        torch.cuda.empty_cache()
    return rows


def not_timed(op: str, shape: str, reason: str) -> list[BenchRow]:
    """Rows that say why there is no time of ours."""
    return [BenchRow(op, shape, direction, OURS, True, reason=reason) for direction in DIRECTIONS]


def named_shapes(op: str, examples: Examples, shapes: Sequence[str]) -> list[str]:
    """``shapes``, or all that there are.

    Raises:
        BadInput: the op has none of that name.
    """
    for shape in shapes:
        if shape not in examples.shapes:
            raise BadInput(f"{op} has no shape {shape!r}; it has: {', '.join(examples.shapes)}")
    return list(shapes or examples.shapes)


def left_out(peers: Sequence[Peer], without: Mapping[str, str]) -> list[Peer]:
    """``peers``; those of ``without`` are not tried, and listed with the reason that it has for them."""

    def refusal(reason: str) -> Callable[[Inputs], Callable[..., Tensor]]:
        def refuse(_inputs: Inputs) -> Callable[..., Tensor]:
            raise CannotRun(reason)

        return refuse

    return [replace(peer, make=refusal(without[peer.name])) if peer.name in without else peer for peer in peers]


def _ours(examples: Examples) -> Peer:
    return Peer(OURS, lambda given: lambda **tensors: examples.function(**tensors, **given.others, impl="triton"))


def _bench_shape(
    op: str,
    shape: str,
    examples: Examples,
    device: torch.device,
    calibration: Calibration,
    peers: Sequence[Peer],
    rounds: int,
    watch: Watch,
) -> list[BenchRow]:
    same = {peer.name: peer.same_math for peer in (_ours(examples), *peers)}

    def rows_of(timed: Mapping[str, Mapping[str, list[float]]]) -> list[BenchRow]:
        return [
            _row(op, shape, way, name, same[name], samples, timed[way][OURS], _work(op, cost, way), calibration)
            for way in DIRECTIONS
            for name, samples in timed[way].items()
        ]

    def missing(absent: Sequence[tuple[str, str, str]]) -> list[BenchRow]:
        return [BenchRow(op, shape, way, name, same[name], reason=why) for name, way, why in absent]

    def without_peers(reason: str) -> list[BenchRow]:
        return alone + missing([(peer.name, way, reason) for peer in peers for way in DIRECTIONS])

    try:
        inputs = examples.make(examples.shapes[shape], Draw(torch.bfloat16, device, on_device=True))
        with retained_graphs():
            built = _built(_ours(examples), inputs)
            cost = _cost_of(lambda: examples.function(**built.leaves, **inputs.others, impl="triton"))
            alone = rows_of(_timed(built, rounds, watch))
    except torch.OutOfMemoryError as error:
        return not_timed(op, shape, f"out of memory: {error}")
    if not peers:
        return alone
    watch.so_far(without_peers(NOT_REACHED))
    try:
        with retained_graphs():
            for peer in peers:
                with watch.part(peer.name):
                    _add(built, peer, inputs)
            return rows_of(_timed(built, rounds, watch)) + missing(built.absent)
    except torch.OutOfMemoryError:
        return without_peers("out of memory beside ours")


def _timed(built: "Built", rounds: int, watch: Watch) -> dict[str, dict[str, list[float]]]:
    """Samples by direction and implementation; every peer is a part, ours is not: nothing goes without it."""

    def part(name: str) -> AbstractContextManager[None]:
        return nullcontext() if name == OURS else watch.part(name)

    return {
        way: time_in_turns(calls, rounds=rounds, part=part)
        for way, calls in zip(DIRECTIONS, (built.forward, built.backward), strict=True)
    }


@contextmanager
def retained_graphs() -> Iterator[None]:
    """Inside, a compiled backward may run many times: it must not hand its saved tensors' memory on."""
    from torch._functorch import config

    with config.patch(donated_buffer=False):
        yield


@dataclass(slots=True)
class Built:
    """Calls to time, by implementation; what ours gives, and of those that are not timed name, direction and reason."""

    leaves: dict[str, Tensor]
    expected: Tensor
    forward: dict[str, Call]
    backward: dict[str, Call]
    absent: list[tuple[str, str, str]] = field(default_factory=list)


def _built(ours: Peer, inputs: Inputs) -> Built:
    """Of ours alone, which runs, or there is nothing to compare with."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.tensors.items()}
    call = ours.make(inputs)
    out = call(**leaves)
    backward = _backward(out, list(leaves.values()), torch.randn_like(out))
    backward()
    wait_for(out.device)  # a fault of a kernel shows when it is waited for
    return Built(leaves, out.detach(), {ours.name: _forward(call, leaves)}, {ours.name: backward})


def _add(built: Built, peer: Peer, inputs: Inputs) -> None:
    """Forward and backward calls of a peer that runs and agrees, or why there are none."""
    try:
        call = peer.make(inputs)
        out = call(**built.leaves)
        wait_for(out.device)
    except Exception as error:
        _check_context(peer, error, inputs)
        built.absent += [(peer.name, direction, _reason(error)) for direction in DIRECTIONS]
        return
    if peer.same_math and difference(out.detach(), built.expected) > DISAGREES:
        why = f"its output differs from ours by more than {DISAGREES:.0%}"
        built.absent += [(peer.name, direction, why) for direction in DIRECTIONS]
        return
    built.forward[peer.name] = _forward(call, built.leaves)
    backward = _backward(out, list(built.leaves.values()), torch.randn_like(out))
    try:
        backward()
        wait_for(out.device)
    except Exception as error:  # a peer that has no backward that runs here
        _check_context(peer, error, inputs)
        built.absent.append((peer.name, "backward", _reason(error)))
        return
    built.backward[peer.name] = backward


def _check_context(peer: Peer, error: Exception, inputs: Inputs) -> None:
    """Raise PartBroke where ``error`` has left a context in which nothing runs."""
    try:
        wait_for(next(iter(inputs.tensors.values())).device)
    except RuntimeError:
        raise PartBroke(peer.name, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, CannotRun):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _cost_of(call: Callable[[], object]) -> OpCost:
    """What the one op inside ``call`` says of its work."""
    watch = _Watch()
    with observing(watch):
        call()
    return watch.costs[0]


class _Watch:
    """Takes down the cost of the outermost op."""

    def __init__(self) -> None:
        self.costs: list[OpCost] = []

    def enter_op(self, name: str, kind: str, impl: str, cost: Callable[[], OpCost]) -> None:
        self.costs.append(cost())

    def exit_op(self) -> None:
        pass

    def enter_shared(self, num_samples: int) -> None:
        pass

    def exit_shared(self) -> None:
        pass


def _forward(call: Callable[..., Tensor], leaves: Mapping[str, Tensor]) -> Call:
    return lambda: call(**leaves)  # with gradients, as in training: what backward needs is kept


def _backward(out: Tensor, leaves: list[Tensor], weights: Tensor) -> Call:
    return lambda: torch.autograd.grad(out, leaves, weights, retain_graph=True, allow_unused=True)


def _work(op: str, cost: OpCost, direction: str) -> tuple[float, float]:
    """FLOPs and least bytes."""
    if direction == "forward":
        return cost.fwd.model, cost.fwd.bytes
    flops = ATTENTION_BACKWARD * cost.fwd.model if OPS[op].kind == "attention" else cost.bwd.model
    return flops, cost.bwd.bytes


def _row(
    op: str,
    shape: str,
    direction: str,
    name: str,
    same_math: bool,
    samples: Sequence[float],
    ours: Sequence[float],
    work: tuple[float, float],
    calibration: Calibration,
) -> BenchRow:
    flops, num_bytes = work
    ms = median_ci(samples)
    floor_ms = 1e3 * max(num_bytes / (1e9 * calibration.copy_gb_s), flops / (1e12 * calibration.gemm_tflops["bf16"]))
    return BenchRow(
        op, shape, direction, name, same_math,
        ms=ms,
        tflops=flops / ms[0] / 1e9 if flops else None,
        gb_s=num_bytes / ms[0] / 1e6,
        floor_ms=floor_ms,
        share_of_floor=floor_ms / ms[0],
        times_ours=None if name == OURS else median_ci(np.asarray(samples) / np.asarray(ours)),
        samples_ms=list(samples),
    )  # fmt: skip


def document(rows: Sequence[BenchRow], device: torch.device) -> dict[str, Any]:
    """The rows as JSON with their pedigree."""
    calibration = load_or_calibrate(device, "bf16")
    return {
        "schema_version": 1,
        "environment": environment(device),
        "toolchain": toolchain(),
        "dtype": "bf16",
        "flop_convention": "2 per multiply-add, kept pairs only; an attention's backward counts as 2.5 forwards",
        "peak": {
            "measured_tflops": calibration.gemm_tflops["bf16"],
            "bandwidth_gb_s": calibration.copy_gb_s,
            "measured_date": calibration.date,
            "measured_how": calibration.how,
        },
        "rows": [asdict(row) for row in rows],
    }
