"""From a WorkloadSpec to a Workload: device and dtype chosen, model built, batches drawn, everything hashed."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from mfu_kernels.jagged import trusted_offsets
from mfu_kernels.precision import widened
from mfu_models import ModelSpec, model_spec
from mfu_models.batch import Batch, Schema
from mfu_models.common.check_batch import check_batch
from mfu_models.common.flops import FlopCount
from mfu_models.output import TrainingOutput
from mfubench.data import Source, open_source
from mfubench.errors import BadInput, OutOfMemory
from mfubench.exhausted import free_host_memory
from mfubench.identity import digest
from mfubench.measure.environment import launched
from mfubench.ranks import take_own_gpu

from .description import describe
from .spec import NUM_ROTATED, Workload, WorkloadSpec
from .step import make_optimizers, trained
from .user import prepare_user

DEFAULT_SIZE = "base"
DEFAULT_BATCH_SIZE = {"cpu": 32, "cuda": 1024}


def prepare(
    spec: WorkloadSpec, source: Source | None = None, *, building: AbstractContextManager[Any] | None = None
) -> Workload:
    """Build the workload; ``source`` is its data source where that is open already. Its lock holds in this process.

    ``building``: a context in which a model of the zoo is built, such as one whose tensors have no memory.

    Raises:
        BadInput: a device that is not there, a model or data source that cannot be had, more memory than there is.
        mfu_kernels.errors.InvalidArgument: the same, from the packages below.
    """
    device, dtype = device_and_dtype(spec)
    if spec.lock is not None:
        from mfubench.kernels.locks import use_lock

        use_lock(spec.lock)
    if spec.compile == "cudagraphs" and device.type != "cuda":
        raise BadInput("--compile cudagraphs needs a CUDA device; here is none; use --compile none, regions or model")
    if ":" in spec.model:
        return prepare_user(spec, device, dtype, DEFAULT_BATCH_SIZE[device.type])
    if launched() is not None:
        raise BadInput(
            f"{spec.model}: a model of the zoo runs in one process, and several were started; run it without torchrun, "
            "or have a build() of your own wrap it as your training does"
        )
    return _prepare_zoo(spec, model_spec(spec.model), device, dtype, source, building)


def device_and_dtype(spec: WorkloadSpec) -> tuple[torch.device, str]:
    """The device that ``spec`` runs on, and the dtype that it asks for or the device's default.

    Raises:
        BadInput: a CUDA device, or a dtype that needs one, where none is.
    """
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: no CUDA device is visible; use --device cpu, or see `mfubench doctor`")
    device = torch.device("cuda" if spec.device != "cpu" and torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        take_own_gpu()
    dtype = spec.dtype or ("bf16" if device.type == "cuda" else "fp32")
    if dtype == "tf32" and device.type != "cuda":
        raise BadInput("--dtype tf32 needs a CUDA device; here is none; use --dtype fp32 or bf16")
    return device, dtype


def _prepare_zoo(
    spec: WorkloadSpec,
    model: ModelSpec,
    device: torch.device,
    dtype: str,
    source: Source | None,
    building: AbstractContextManager[Any] | None,
) -> Workload:
    size = spec.size or DEFAULT_SIZE
    batch_size = spec.batch_size or DEFAULT_BATCH_SIZE[device.type]
    synthetic = model.config(size).schema
    source = source or open_source(spec.data, synthetic)
    config = model.config(size, source.schema, _overrides(spec, model))
    num_candidates = config.num_candidates if model.request_level else spec.candidates or 1
    if building is None:
        _check_memory(model, config, device, spec.mode)
    torch.manual_seed(spec.seed)
    with device, building or nullcontext():
        module = model.build(config, spec.impl)  # type: ignore[arg-type]
    module.train(spec.mode == "train")
    max_lengths = _all_max_lengths(source.schema, model.max_lengths(config))
    num_sets = min(spec.steps, NUM_ROTATED)
    _check_room_for_batches(source.schema, batch_size, num_candidates, num_sets)
    try:
        requests = source.batches(
            batch_size, num_sets, seed=spec.seed, max_lengths=max_lengths, num_candidates=num_candidates
        )
    except MemoryError as error:
        raise OutOfMemory(f"--batch-size {batch_size}: {error}; use a smaller one, or fewer --candidates") from error
    for batch in requests:
        check_batch(batch, source.schema, max_lengths)
    inputs = requests if model.request_level else [batch.per_impression() for batch in requests]
    if device.type == "cuda":
        inputs = [batch.pin_memory() for batch in inputs]

    def needed(batch: Batch) -> tuple[FlopCount, FlopCount]:
        lengths = batch.lengths()
        longest = {name: [max(rows)] * len(rows) for name, rows in lengths.items()}
        exact, padded = model.model_flops(config, lengths), model.model_flops(config, longest)
        if spec.mode == "infer":
            return exact.inference, padded.inference
        return exact, padded

    description = describe(
        spec, module, device, dtype, size=size, batch_size=batch_size, data=source.description, model_id=repr(config)
    )
    description |= {"num_candidates": num_candidates, "request_level": model.request_level}
    lengths = [batch.lengths() for batch in requests]
    shape = [batch_size, *([num_candidates] if num_candidates > 1 else [])]  # a request of one is an impression
    description["data_hash"] = digest(source.fingerprint, asdict(source.schema), spec.seed, *shape, lengths)
    return Workload(
        spec=spec,
        description=description,
        device=device,
        dtype=dtype,
        module=module,
        inputs=inputs,
        num_samples=[batch.num_requests for batch in requests],
        forward=_forward,
        loss=_click_loss,
        to_device=mover(device),
        optimizers=make_optimizers(module) if spec.mode == "train" else [],
        num_candidates=num_candidates,
        needed=needed,
        warnings=_of_too_small_a_log(source, batch_size),
    )


def _of_too_small_a_log(source: Source, batch_size: int) -> list[str]:
    """A warning where every batch has rows twice."""
    there = source.num_impressions
    if there is None or batch_size <= there:
        return []
    return [
        f"a step has {batch_size} requests, the log only {there} impressions: batches repeat the same rows, and caches "
        "find what they would not find in a larger log"
    ]


def _overrides(spec: WorkloadSpec, model: ModelSpec) -> Mapping[str, Any]:
    """The overrides of the model's config; the number of candidates is part of it where the model sees requests."""
    if spec.candidates is None or not model.request_level:
        return spec.overrides
    if "num_candidates" in spec.overrides:
        raise BadInput(f"--candidates {spec.candidates} and --set num_candidates say the same; give one of them")
    return {**spec.overrides, "num_candidates": spec.candidates}


def _all_max_lengths(schema: Schema, read: dict[str, int]) -> dict[str, int]:
    """Also for sequences that the model does not read, so that models which read others still share their data."""
    longest = max(read.values())
    return {sequence.name: read.get(sequence.name, longest) for sequence in schema.sequences}


def _forward(module: Callable[..., Any], batch: Batch) -> Any:
    with trusted_offsets():  # `check_batch` has read them
        return module(batch)


def _click_loss(output: torch.Tensor | TrainingOutput, batch: Batch) -> torch.Tensor:
    if isinstance(output, TrainingOutput):
        return _click_loss(output.logits, batch) + output.auxiliary_loss
    logits = widened(output)
    return nn.functional.binary_cross_entropy_with_logits(logits, batch.labels.to(logits.dtype))


def mover(device: torch.device) -> Callable[[Any], Any]:
    """What brings a batch to ``device``: nothing on a CPU, where it is already.

    A GPU fetches it on a stream of its own: while it still computes the step before, if the host is ahead of it, as in
    loops that train. What computes waits for it.
    """
    if device.type == "cpu":
        return lambda batch: batch
    fetching = torch.cuda.Stream(device)

    def fetch(batch: Batch) -> Batch:
        computing = torch.cuda.current_stream(device)
        with torch.cuda.stream(fetching):
            fetched = batch.to(device, non_blocking=True)
        computing.wait_stream(fetching)
        fetched.record_stream(computing)
        return fetched

    return fetch


def _check_room_for_batches(schema: Schema, batch_size: int, num_candidates: int, num_sets: int) -> None:
    """Refuse batches that cannot fit even without an event: before one is drawn, as the system may end who tries."""
    numbers = len(schema.dense) + len(schema.sparse) + len(schema.sides) + 2  # and the item, and the label
    wanted, free = 4 * numbers * batch_size * num_candidates * num_sets, free_host_memory()
    if free is not None and wanted > free:
        raise OutOfMemory(
            f"--batch-size {batch_size}: {num_sets} batches with a request's candidates {num_candidates} need more "
            f"than {wanted / 1e9:.1f} GB; {free / 1e9:.1f} GB are free; use a smaller one, or fewer --candidates"
        )


def _check_memory(model: ModelSpec, config: Any, device: torch.device, mode: str) -> None:
    """Refuse what cannot fit before anything is allocated, activations and row-sparse gradients left out.

    Beside a parameter training keeps what `make_optimizers` makes of it: with a dense gradient that and two moments,
    of a table with a row-sparse one Adagrad's sum alone.
    """
    try:
        module = model.outline(config)
    except (RuntimeError, ArithmeticError) as error:
        raise BadInput(f"{model.name} cannot be built with such a config: {error}; choose smaller values") from error
    wanted = _nbytes(module.parameters())
    if mode == "train":
        dense, sparse = trained(module)
        wanted += 3 * _nbytes(dense) + _nbytes(sparse)
    free = _free_on(device) if device.type == "cuda" else free_host_memory()
    if free is not None and wanted > free:
        raise OutOfMemory(
            f"{model.name} needs at least {wanted / 1e9:.1f} GB for its parameters"
            f"{', gradients and optimizer state' if mode == 'train' else ''}; {free / 1e9:.1f} GB are free on "
            f"{device.type}; choose a smaller --size, or see its FLOPs with `mfubench models`"
        )


def _free_on(device: torch.device) -> int:
    """Bytes that this process can still have of a GPU: what nobody has, and what it holds and does not use."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + held)


def _nbytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)
