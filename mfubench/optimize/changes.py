"""The changes that a search may make and a recipe holds: a name, a few plain parameters, and what they do.

A change acts on a spec (dtype, batch size), on input sets (their order), or on a live model and its optimizers; then it
can be taken back. What it alters beyond speed stands in ``alters``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from mfubench.errors import BadInput
from mfubench.workload.patching import Undo

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mfubench.workload.spec import Workload, WorkloadSpec


@dataclass(frozen=True, slots=True)
class Change:
    """One change. A subclass says what it does; its fields are the parameters that a recipe keeps."""

    name: ClassVar[str]
    alters: ClassVar[str] = ""  # what of the training or the numbers it alters beyond rounding, in words
    exclusive: ClassVar[bool] = False  # one of its kind takes the place of another
    trains: ClassVar[bool] = False  # it needs optimizers

    def excludes(self, other: "Change") -> bool:
        """Whether ``other`` is not worth trying once this is kept."""
        return self.exclusive and type(other) is type(self)

    @property
    def title(self) -> str:
        """The change in a few words, which tell it from every other."""
        return " ".join([self.name, *(str(value) for value in asdict(self).values())])

    def respec(self, spec: "WorkloadSpec") -> "WorkloadSpec":
        """``spec`` with the change, where it is one of the workload."""
        return spec

    def rebatch(self, workload: "Workload") -> None:
        """Change ``workload``'s input sets."""

    def swap(self, model: "nn.Module", optimizers: Sequence["torch.optim.Optimizer"]) -> Undo:
        """Change the live model and its optimizers, and hand out what undoes it.

        Raises:
            BadInput: there is nothing in them to change.
        """
        return lambda: None

    def adopt(self, model: "nn.Module", optimizers: Sequence["torch.optim.Optimizer"]) -> Undo | None:
        """The same in a script, which has no spec, and maybe other optimizers or none.

        None where only the script itself can do it.

        Raises:
            BadInput: there is nothing in the model to change.
        """
        try:
            return self.swap(model, optimizers)
        except BadInput:
            if self.trains:
                return None
            raise

    def describe(self, description: dict[str, Any]) -> None:
        """Say in a workload's description what has changed."""

    def check(self) -> None:
        """Refuse parameters that mean nothing.

        Raises:
            BadInput: naming what is allowed.
        """


@dataclass(frozen=True, slots=True)
class UseImpl(Change):
    """Another implementation of an op."""

    name: ClassVar[str] = "impl"
    op: str
    impl: str

    @property
    def title(self) -> str:
        """The op and its implementation."""
        return f"impl {self.op}={self.impl}"

    def swap(self, model: "nn.Module", optimizers: Sequence["torch.optim.Optimizer"]) -> Undo:
        """In the zoo's modules and in torch's own that compute the op."""
        from . import swap

        return swap.use_impl(model, self.op, self.impl)

    def describe(self, description: dict[str, Any]) -> None:
        """The op beside what was chosen for all."""
        from mfu_kernels.registry import with_impl

        description["impl"] = with_impl(description["impl"], self.op, self.impl)

    def check(self) -> None:
        """The op exists and has the implementation."""
        from mfu_kernels import OPS

        if self.op not in OPS:
            raise BadInput(f"change impl: op {self.op!r} is unknown; there are: {', '.join(sorted(OPS))}")
        have = OPS[self.op].implementations
        if self.impl not in have:
            raise BadInput(f"change impl: {self.op} has no implementation {self.impl!r}; it has: {', '.join(have)}")


@dataclass(frozen=True, slots=True)
class Compile(Change):
    """torch.compile of every module of one class, of the model region by region, or of the whole model."""

    name: ClassVar[str] = "compile"
    region: str
    dynamic: bool = True
    cudagraphs: bool = False

    def excludes(self, other: Change) -> bool:
        """What is compiled already: with all regions each of their classes, with the whole model everything."""
        if not isinstance(other, Compile) or other == self:
            return False
        from mfubench.workload.regions import MODEL, REGIONS

        inside = {MODEL: True, REGIONS: other.region != MODEL}
        return inside.get(self.region, False) and not other.cudagraphs

    @property
    def title(self) -> str:
        """The class without its package."""
        return f"compile {self.short}" + (", CUDA graphs" if self.cudagraphs else "")

    @property
    def short(self) -> str:
        """The region without its package."""
        return self.region.rpartition(".")[2]

    def swap(self, model: "nn.Module", optimizers: Sequence["torch.optim.Optimizer"]) -> Undo:
        """Nothing is compiled before the first call."""
        return self._compiled(model, floats_change=False)

    def adopt(self, model: "nn.Module", optimizers: Sequence["torch.optim.Optimizer"]) -> Undo:
        """The script may change what no trial has seen change."""
        return self._compiled(model, floats_change=True)

    def _compiled(self, model: "nn.Module", *, floats_change: bool) -> Undo:
        from mfubench.workload.regions import compile_region

        return compile_region(
            model, self.region, dynamic=self.dynamic, cudagraphs=self.cudagraphs, floats_change=floats_change
        )

    def describe(self, description: dict[str, Any]) -> None:
        """The regions that are compiled."""
        before = description["compile"]
        name = "cudagraphs" if self.cudagraphs else self.short
        description["compile"] = name if before == "none" else f"{before}, {name}"


@dataclass(frozen=True, slots=True)
class UseDtype(Change):
    """Products in a shorter dtype: bf16 under autocast over fp32 master weights, or fp32 factors rounded to TF32."""

    name: ClassVar[str] = "dtype"
    alters: ClassVar[str] = "the precision of products"
    exclusive: ClassVar[bool] = True
    dtype: str

    def respec(self, spec: "WorkloadSpec") -> "WorkloadSpec":
        """The workload's dtype."""
        return replace(spec, dtype=self.dtype)

    def adopt(self, model: "nn.Module", optimizers: Sequence["torch.optim.Optimizer"]) -> Undo:
        """Autocast around the forward; TF32 is a setting of the whole process."""
        from . import swap

        return swap.use_tf32() if self.dtype == "tf32" else swap.autocast_forward(model)

    def check(self) -> None:
        """A workload's dtype."""
        _allowed(self, "dtype", ("bf16", "tf32"))


@dataclass(frozen=True, slots=True)
class UseBatchSize(Change):
    """More requests a step; time is held against samples."""

    name: ClassVar[str] = "batch_size"
    alters: ClassVar[str] = "the batch size of the training"
    exclusive: ClassVar[bool] = True
    batch_size: int

    def respec(self, spec: "WorkloadSpec") -> "WorkloadSpec":
        """The workload's batch size."""
        return replace(spec, batch_size=self.batch_size)

    def excludes(self, other: Change) -> bool:
        """Smaller batches; a larger one takes this one's place."""
        return isinstance(other, UseBatchSize) and other.batch_size < self.batch_size

    def adopt(self, model: "nn.Module", optimizers: Sequence["torch.optim.Optimizer"]) -> Undo | None:
        """The script draws its batches itself."""
        return None

    def check(self) -> None:
        """At least one request."""
        if self.batch_size < 1:
            raise BadInput(f"change batch_size: batch_size {self.batch_size}; allowed: 1 or more")


@dataclass(frozen=True, slots=True)
class BucketByLength(Change):
    """Requests of like length share a batch, so that less is padded."""

    name: ClassVar[str] = "bucket_by_length"
    alters: ClassVar[str] = "which samples share a batch"

    def rebatch(self, workload: "Workload") -> None:
        """The same requests in another order."""
        from .rows import bucketed

        if workload.needed is None:
            raise BadInput(f"change {self.name}: the model makes its own batches, whose lengths only it knows")
        batches = bucketed(workload.inputs)
        workload.inputs = [batch.pin_memory() for batch in batches] if workload.device.type == "cuda" else batches
        workload.num_samples = [batch.num_requests for batch in workload.inputs]

    def adopt(self, model: "nn.Module", optimizers: Sequence["torch.optim.Optimizer"]) -> Undo | None:
        """The script draws its batches itself."""
        return None

    def describe(self, description: dict[str, Any]) -> None:
        """Other batches are other data."""
        from mfubench.identity import digest

        description["data_description"] += ", batches of like length"
        description["data_hash"] = digest(description["data_hash"], self.name)


@dataclass(frozen=True, slots=True)
class UpdateTogether(Change):
    """An optimizer that loops over parameters updates all in one kernel (fused) or a few (foreach)."""

    name: ClassVar[str] = "optimizer"
    exclusive: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    how: str

    def swap(self, model: "nn.Module", optimizers: Sequence["torch.optim.Optimizer"]) -> Undo:
        """Those that loop."""
        from . import swap

        return swap.update_together(model, optimizers, self.how)

    def check(self) -> None:
        """Two ways."""
        _allowed(self, "how", ("fused", "foreach"))


@dataclass(frozen=True, slots=True)
class SparseGradients(Change):
    """Gradients of embedding tables hold the batch's rows only."""

    name: ClassVar[str] = "sparse_gradients"
    trains: ClassVar[bool] = True

    def swap(self, model: "nn.Module", optimizers: Sequence["torch.optim.Optimizer"]) -> Undo:
        """Where the optimizer takes them."""
        from . import swap

        return swap.with_sparse_gradients(model, optimizers)


@dataclass(frozen=True, slots=True)
class WithoutAttentionWeights(Change):
    """``nn.MultiheadAttention`` without the weights that it returns beside its output."""

    name: ClassVar[str] = "attention_without_weights"

    def swap(self, model: "nn.Module", optimizers: Sequence["torch.optim.Optimizer"]) -> Undo:
        """Where torch's own forward runs."""
        from . import swap

        return swap.without_attention_weights(model)


def added(kept: Sequence[Change], change: Change) -> tuple[Change, ...]:
    """``kept`` with ``change`` behind, in place of what it does itself and of its kind where only one can be."""
    rest = (o for o in kept if not (change.excludes(o) or (change.exclusive and type(o) is type(change))))
    return (*rest, change)


def _allowed(change: Change, field: str, allowed: Sequence[str]) -> None:
    given = getattr(change, field)
    if given not in allowed:
        raise BadInput(f"change {change.name}: {field} {given!r}; allowed: {', '.join(allowed)}")


CHANGES: Mapping[str, type[Change]] = {
    kind.name: kind
    for kind in (
        UseImpl,
        Compile,
        UseDtype,
        UseBatchSize,
        BucketByLength,
        UpdateTogether,
        SparseGradients,
        WithoutAttentionWeights,
    )
}


def to_plain(change: Change) -> dict[str, Any]:
    """A change as plain values, which JSON and TOML hold."""
    return {"change": change.name, **asdict(change)}


def from_plain(given: Mapping[str, Any]) -> Change:
    """The change that `to_plain` wrote.

    Raises:
        BadInput: an unknown change, or parameters that it does not have or does not take.
    """
    name = given.get("change")
    if not isinstance(name, str) or name not in CHANGES:
        raise BadInput(f"change {name!r} is unknown; this release knows: {', '.join(CHANGES)}")
    kind = CHANGES[name]
    types: dict[str, Any] = {field.name: field.type for field in fields(kind)}
    parameters = {key: value for key, value in given.items() if key != "change"}
    if parameters.keys() != types.keys():
        raise BadInput(
            f"change {name} has {', '.join(parameters) or 'no parameters'}; it takes: {', '.join(types) or 'none'}"
        )
    for key, value in parameters.items():
        if type(value) is not types[key]:
            raise BadInput(f"change {name}: {key} is {value!r}; allowed: a value of {types[key].__name__}")
    change = kind(**parameters)
    change.check()
    return change
