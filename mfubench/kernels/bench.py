"""Kernels beside their peers on named shapes, in one run: milliseconds, TFLOP/s, GB/s, and share of the floor.

The floor of a call is the longer of two times: its least bytes at this GPU's measured copy bandwidth, and its FLOPs at
what a large GEMM reaches here. An attention's backward counts as 2.5 forwards, scores repeated, whatever is executed:
so do the public figures that these are compared with.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfu_kernels import OPS
from mfu_kernels.cost import OpCost, observing
from mfu_kernels.examples import Draw, Examples, Inputs
from mfubench.errors import BadInput, MfubenchError
from mfubench.measure.calibrate import Calibration, load_or_calibrate
from mfubench.measure.environment import environment
from mfubench.measure.stats import median_ci
from mfubench.measure.timing import wait_for

from .catalog import examples_of
from .check import check_op
from .machine_code import toolchain
from .peers import CannotRun, Peer, peers_of
from .timing import Call, time_in_turns
from .tune import tune_op

OURS = "mfubench"
ATTENTION_BACKWARD = 2.5
DISAGREES = 0.05  # rms difference from ours, as a share, above which a peer does something else
DIRECTIONS = ("forward", "backward")
ROUNDS = 20


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


class PeerBroke(MfubenchError):
    """A peer ruined this process's CUDA context: nothing can be timed here any more, but elsewhere without it."""

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(f"peer {peer!r} broke the device's context: {reason}; time the kernels --without {peer!r}")
        self.peer, self.reason = peer, reason


def bench_op(
    op: str,
    examples: Examples,
    device: torch.device,
    *,
    shapes: Sequence[str] = (),
    peers: Sequence[str] = (),
    without: Mapping[str, str] = MappingProxyType({}),
    rounds: int = ROUNDS,
    checked: bool = False,
    progress: Callable[[str, float], None] = lambda stage, done: None,
) -> list[BenchRow]:
    """Time ``op`` and its peers in bf16 on the named ``shapes``, all of them by default.

    A kernel that fails its numeric contract is not timed: it is checked first, unless ``checked`` says that it was. A
    peer that cannot run, or runs out of memory, is listed with the reason; those of ``without`` are not tried, and
    listed with the reason that it has for them.

    Raises:
        BadInput: no GPU, or an unknown shape.
        PeerBroke: a peer made a fault after which this process can use the GPU no more.
    """
    if device.type != "cuda":
        raise BadInput("kernels are timed on a GPU only; here is none; `mfubench kernels check` and `static` need none")
    wanted = _named(op, examples, shapes)
    progress(f"{op}: checking its numbers first", 0.0)
    failed = [] if checked else check_op(examples, device).failed
    if failed:
        why = f"{len(failed)} cases fail the numeric contract; see `mfubench kernels check {op}`"
        return [BenchRow(op, shape, way, OURS, True, reason=why) for shape in wanted for way in DIRECTIONS]
    calibration = load_or_calibrate(device, "bf16")
    rows: list[BenchRow] = []
    for index, shape in enumerate(wanted):
        progress(f"{op}: {shape}", (index + 1) / (len(wanted) + 1))
        torch.compiler.reset()  # dynamo counts every shape of every op as one function's, and runs the ninth eagerly
        rows += _bench_shape(op, shape, examples, device, calibration, _offered(op, examples, peers, without), rounds)
        torch.cuda.empty_cache()
    return rows


def _ours(examples: Examples) -> Peer:
    return Peer(OURS, lambda given: lambda **tensors: examples.function(**tensors, **given.others, impl="triton"))


def _offered(op: str, examples: Examples, peers: Sequence[str], without: Mapping[str, str]) -> list[Peer]:
    return [
        _left_out(peer, without[peer.name]) if peer.name in without else peer for peer in peers_of(op, examples, peers)
    ]


def _left_out(peer: Peer, reason: str) -> Peer:
    def refuse(_inputs: Inputs) -> Callable[..., Tensor]:
        raise CannotRun(reason)

    return replace(peer, make=refuse)


def _named(op: str, examples: Examples, shapes: Sequence[str]) -> list[str]:
    for shape in shapes:
        if shape not in examples.shapes:
            raise BadInput(f"{op} has no shape {shape!r}; it has: {', '.join(examples.shapes)}")
    return list(shapes or examples.shapes)


def _bench_shape(
    op: str,
    shape: str,
    examples: Examples,
    device: torch.device,
    calibration: Calibration,
    peers: Sequence[Peer],
    rounds: int,
) -> list[BenchRow]:
    try:
        inputs = examples.make(examples.shapes[shape], Draw(torch.bfloat16, device, on_device=True))
        ours = _ours(examples)
        with retained_graphs():
            built, absent = _build([ours, *peers], inputs)
            cost = _cost_of(lambda: examples.function(**built.leaves, **inputs.others, impl="triton"))
            timed = {
                "forward": time_in_turns(built.forward, rounds=rounds),
                "backward": time_in_turns(built.backward, rounds=rounds),
            }
    except torch.OutOfMemoryError as error:
        return [BenchRow(op, shape, way, OURS, True, reason=f"out of memory: {error}") for way in DIRECTIONS]
    same = {peer.name: peer.same_math for peer in (ours, *peers)}
    rows = [
        _row(op, shape, way, name, same[name], samples, timed[way][OURS], _work(op, cost, way), calibration)
        for way in DIRECTIONS
        for name, samples in timed[way].items()
    ]
    missing = [BenchRow(op, shape, way, name, same[name], reason=why) for name, way, why in absent]
    return rows + missing


@contextmanager
def retained_graphs() -> Iterator[None]:
    """Inside, a compiled backward may run many times: it must not hand its saved tensors' memory on."""
    from torch._functorch import config

    with config.patch(donated_buffer=False):
        yield


@dataclass(slots=True)
class Built:
    """Calls to time, by implementation."""

    leaves: dict[str, Tensor]
    forward: dict[str, Call] = field(default_factory=dict)
    backward: dict[str, Call] = field(default_factory=dict)


def _build(peers: Sequence[Peer], inputs: Inputs) -> tuple[Built, list[tuple[str, str, str]]]:
    """Forward and backward calls of each implementation that runs and agrees; of the others name, direction, reason."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.tensors.items()}
    built, absent = Built(leaves), list[tuple[str, str, str]]()
    expected: Tensor | None = None
    for peer in peers:
        try:
            call = peer.make(inputs)
            out = call(**leaves)
            wait_for(out.device)  # a fault of a kernel shows when it is waited for
        except Exception as error:
            if expected is None:
                raise
            _check_context(peer, error, inputs)
            absent += [(peer.name, direction, _reason(error)) for direction in DIRECTIONS]
            continue
        expected = out.detach() if expected is None else expected
        if peer.same_math and _difference(out.detach(), expected) > DISAGREES:
            why = f"its output differs from ours by more than {DISAGREES:.0%}"
            absent += [(peer.name, direction, why) for direction in DIRECTIONS]
            continue
        built.forward[peer.name] = _forward(call, leaves)
        backward = _backward(out, list(leaves.values()), torch.randn_like(out))
        try:
            backward()
            wait_for(out.device)
        except Exception as error:  # a peer that has no backward that runs here
            if peer is peers[0]:
                raise
            _check_context(peer, error, inputs)
            absent.append((peer.name, "backward", _reason(error)))
            continue
        built.backward[peer.name] = backward
    return built, absent


def _check_context(peer: Peer, error: Exception, inputs: Inputs) -> None:
    """Raise PeerBroke where ``error`` has left a context in which nothing runs."""
    try:
        wait_for(next(iter(inputs.tensors.values())).device)
    except RuntimeError:
        raise PeerBroke(peer.name, _reason(error)) from error


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


def _difference(out: Tensor, expected: Tensor) -> float:
    if out.shape != expected.shape:
        return float("inf")
    return float((out.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-30))


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


def bench_all(
    ops: Sequence[str],
    device: torch.device,
    *,
    shapes: Sequence[str],
    peers: Sequence[str],
    without: Mapping[str, str],
    rounds: int,
    tune: bool,
    progress: Callable[[str, float], None] = lambda stage, done: None,
) -> tuple[list[BenchRow], list[dict[str, Any]]]:
    """Rows of every op in ``ops``, and the lock's entries that ``tune`` found."""
    rows: list[BenchRow] = []
    won: list[dict[str, Any]] = []
    for op in ops:
        examples = examples_of(op)
        if tune:
            won += tune_op(examples, device, shapes=_named(op, examples, shapes), progress=progress)
        rows += bench_op(
            op, examples, device, shapes=shapes, peers=peers, without=without, rounds=rounds, progress=progress
        )
    return rows, won


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
