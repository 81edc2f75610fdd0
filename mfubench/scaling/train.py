"""Train one model once through a window of a log, and evaluate it on the impressions that come after.

Every impression is seen once and in random order, as a ranking model sees its log. The settings were chosen on the last
tenth of the training window of two logs, with `tests/benchmarks/quality.py --validate`.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from math import ceil, isfinite
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mfu_kernels.precision import widened
from mfu_models import model_spec
from mfu_models.batch import Batch
from mfu_models.common.check_batch import check_batch
from mfu_models.output import TrainingOutput
from mfubench.data.histories import Array
from mfubench.data.logs import LogSource
from mfubench.errors import BadInput
from mfubench.measure.timing import wait_for
from mfubench.progress import Progress, silent
from mfubench.workload.prepare import DEFAULT_SIZE, prepare
from mfubench.workload.spec import Workload, WorkloadSpec
from mfubench.workload.step import run_passes, update

from .entropy import Floats, log_losses, normalised_entropy
from .windows import shuffled

AT_ONCE = 8  # steps that run between two looks at the clock, their batches made before
PREDICTED = 2  # batches at once, where no gradient takes memory
LAST_SHARE = 0.1  # of the steps, whose mean loss is the last one
BATCH_SIZE = 512
Changed = Callable[[Batch, np.random.Generator], Batch]


def unchanged(batch: Batch, _rng: np.random.Generator) -> Batch:
    """The batch as it is."""
    return batch


@dataclass(frozen=True, slots=True)
class Settings:
    """How every model is trained: the workload's optimizers, their rates warmed up and then brought down to 0.

    ``dense_rate`` is that of batches of 512, and grows with the root of the batch size, as suits Adam (Malladi et
    al., On the SDEs and Scaling Rules for Adaptive Gradient Algorithms, NeurIPS 2022). ``warmup`` and ``decay_from``
    are shares of the steps; ``samples`` is how many impressions of the window are seen, the first of the random order,
    None for all.
    """

    batch_size: int = BATCH_SIZE
    dense_rate: float = 4e-3
    table_rate: float = 2e-2
    warmup: float = 0.05
    decay_from: float = 0.5
    samples: int | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """One training run: what it cost and how well it predicts.

    ``flops`` are model FLOPs of all its steps, forward and backward, at the true lengths of its batches; ``seconds``
    what the steps took with the batches made already, ``loading_seconds`` what making them took. NE is by the
    evaluated window's own rate, and by the training window's. ``losses`` float32 [N]: the log loss of each evaluated
    impression in nats, in the order of the window.
    """

    params: int
    dense_params: int
    samples: int
    steps: int
    flops: int
    seconds: float
    loading_seconds: float
    evaluation_seconds: float
    ne: float
    ne_by_training_rate: float
    last_training_loss: float
    losses: npt.NDArray[np.float32] = field(repr=False, compare=False)

    def facts(self) -> dict[str, Any]:
        """All but the losses, ready for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "losses"}


def learning(spec: WorkloadSpec, settings: Settings) -> WorkloadSpec:
    """The workload of a training's steps: each impression is a request with one candidate."""
    return replace(spec, mode="train", batch_size=settings.batch_size, candidates=1, steps=1)


def predicting(spec: WorkloadSpec, settings: Settings) -> WorkloadSpec:
    """That of its evaluation."""
    return replace(learning(spec, settings), mode="infer", batch_size=PREDICTED * settings.batch_size)


def train(
    spec: WorkloadSpec,
    windows: tuple[LogSource, LogSource],
    settings: Settings | None = None,
    *,
    changed: Changed = unchanged,
    progress: Progress = silent,
) -> Trained:
    """Train the model of ``spec`` on the first window and evaluate it on the second, each impression of both once.

    Model, size, seed, implementation, device and dtype are ``spec``'s; the batch size is the settings'. ``changed``
    may alter each batch of both windows, with the generator that ordered the impressions.

    Raises:
        BadInput: a loss that is no number, and as ``prepare``.
    """
    settings, (first, second) = settings or Settings(), windows
    model = model_spec(spec.model)
    config = model.config(spec.size or DEFAULT_SIZE, first.schema, {"num_candidates": 1} if model.request_level else {})
    lengths = {sequence.name: 1 for sequence in first.schema.sequences} | model.max_lengths(config)
    workload = prepare(learning(spec, settings), first)
    _warm_up(workload)

    def batches(source: LogSource, size: int, samples: int | None) -> Iterator[tuple[Array, Batch]]:
        rng = np.random.default_rng(spec.seed)
        rows = shuffled(source, rng, samples)
        for at in range(0, len(rows), size):
            batch = changed(source.batch(rows[at : at + size], lengths), rng)
            check_batch(batch, source.schema, lengths)
            yield rows[at : at + size], batch.pin_memory() if workload.device.type == "cuda" else batch

    samples = min(len(first.targets), settings.samples or len(first.targets))

    def flops_of(batch: Batch) -> int:
        return model.model_flops(config, batch.lengths()).total

    seen = batches(first, settings.batch_size, samples)
    learnt = _learn(workload, seen, settings, -(-samples // settings.batch_size), flops_of, progress)
    begin = perf_counter()
    p = _predict(workload, second, batches(second, PREDICTED * settings.batch_size, None), progress)
    y = second.labels(second.targets)
    ends = learnt.losses[-ceil(LAST_SHARE * len(learnt.losses)) :]
    return Trained(
        params=workload.description["num_params"],
        dense_params=workload.description["dense_params"],
        samples=samples,
        steps=len(learnt.losses),
        flops=learnt.flops,
        seconds=learnt.seconds,
        loading_seconds=learnt.loading_seconds,
        evaluation_seconds=perf_counter() - begin,
        ne=normalised_entropy(p, y),
        ne_by_training_rate=normalised_entropy(p, y, float(first.labels(first.targets).mean())),
        last_training_loss=sum(ends) / len(ends),
        losses=log_losses(p, y).astype(np.float32),
    )


def _warm_up(workload: Workload) -> None:
    """A first pass, which compiles kernels and fills caches, and changes neither weights nor the random state."""
    with torch.random.fork_rng([workload.device] if workload.device.type == "cuda" else []):
        run_passes(workload, workload.inputs[0])
    workload.module.zero_grad(set_to_none=True)
    wait_for(workload.device)


@dataclass(slots=True)
class _Learnt:
    """Each step's log loss, without what a model adds to it; model FLOPs and seconds of all steps."""

    losses: list[float] = field(default_factory=list)
    flops: int = 0
    seconds: float = 0.0
    loading_seconds: float = 0.0


def _learn(
    workload: Workload,
    batches: Iterator[tuple[Array, Batch]],
    settings: Settings,
    steps: int,
    flops_of: Callable[[Batch], int],
    progress: Progress,
) -> _Learnt:
    learnt = _Learnt()
    begin = perf_counter()
    while chunk := [batch for _, batch in islice(batches, AT_ONCE)]:
        loaded, logits = perf_counter(), []
        for at, batch in enumerate(chunk, start=len(learnt.losses)):
            _set_rates(workload, settings, at, steps)
            output, _ = run_passes(workload, batch)
            update(workload)
            logits.append((output.logits if isinstance(output, TrainingOutput) else output).detach())
        wait_for(workload.device)
        learnt.loading_seconds += loaded - begin
        learnt.seconds += perf_counter() - loaded
        learnt.losses += [_log_loss(*each) for each in zip(logits, chunk, strict=True)]
        learnt.flops += sum(map(flops_of, chunk))
        if not isfinite(sum(learnt.losses[-len(chunk) :])):
            raise BadInput(f"the training loss is no number after {len(learnt.losses)} of {steps} steps")
        progress(f"step {len(learnt.losses)} of {steps}", len(learnt.losses) / steps)
        begin = perf_counter()
    return learnt


def _log_loss(logits: torch.Tensor, batch: Batch) -> float:
    return nn.functional.binary_cross_entropy_with_logits(widened(logits).cpu(), batch.labels).item()


def _set_rates(workload: Workload, settings: Settings, done: int, steps: int) -> None:
    """The learning rates of the step that follows ``done`` of ``steps``."""
    s, dense_rate = settings, settings.dense_rate * (settings.batch_size / BATCH_SIZE) ** 0.5
    factor = min(1.0, (done + 1) / (s.warmup * steps), (1 - done / steps) / (1 - s.decay_from))
    for optimizer in workload.optimizers:
        tables = isinstance(optimizer, torch.optim.Adagrad)
        for group in optimizer.param_groups:
            group["lr"] = factor * (s.table_rate if tables else dense_rate)


def _predict(
    workload: Workload, window: LogSource, batches: Iterator[tuple[Array, Batch]], progress: Progress
) -> Floats:
    """The probability of each of the window's impressions, in its order: float64 [N]."""
    serving = replace(workload, spec=replace(workload.spec, mode="infer"))
    serving.module.eval()
    progress("predicting", 1.0)
    found = np.empty(len(window.targets))
    for rows, batch in batches:
        logits, _ = run_passes(serving, batch)
        found[np.searchsorted(window.targets, rows)] = torch.sigmoid(logits.double()).cpu().numpy()
    return found
