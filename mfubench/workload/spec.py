"""What a user asks for, and what it becomes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mfubench.errors import BadInput
from mfubench.ranks import ALONE, Ranks

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mfu_models.common.flops import FlopCount

    from .loader import Loader

CHOICES: Mapping[str, tuple[str, ...]] = {
    "impl": ("auto", "reference", "triton"),
    "compile": ("none", "regions", "model", "cudagraphs"),
    "mode": ("train", "infer"),
    "dtype": ("bf16", "fp32", "tf32"),
    "device": ("auto", "cpu", "cuda"),
    "peak": ("datasheet", "measured"),
}
NUM_ROTATED = 4  # input sets that a timing pass rotates, so that no step finds its inputs in a cache
TRACED_STEPS = 2
WARMUP_STEPS = 3
MAX_SEED = 2**63  # torch's
MAX_REQUESTS = 10**9  # of a step, and candidates of one: what fits is told by the memory that is free
MAX_STEPS = 10**7  # of each of which a time is kept, and on a GPU an event is made before the first


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """A workload as asked for; None means the default of the device that it runs on.

    ``batch_size`` counts requests, and ``candidates`` the candidates of each: by default those of the size's config for
    a model that scores whole requests, and 1 for the others. ``lock`` is a lock file, whose configs launches of our
    kernels take before others.
    """

    model: str
    size: str | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    impl: str = "auto"
    compile: str = "none"
    mode: str = "train"
    dtype: str | None = None
    device: str = "auto"
    peak: str | None = None
    batch_size: int | None = None
    candidates: int | None = None
    steps: int = 20
    seed: int = 0
    data: str = "synthetic"
    lock: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if name == "impl":
                value = _checked_impl(value)
            if value is not None and value not in allowed:
                raise BadInput(f"--{name} {value!r} is unknown; allowed: {', '.join(allowed)}")
        for name, most in (("batch_size", MAX_REQUESTS), ("candidates", MAX_REQUESTS), ("steps", MAX_STEPS)):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                range_ = "1 or more" if value < 1 else f"1 to {most}"
                raise BadInput(f"--{name.replace('_', '-')} {value}; allowed: {range_}")
        if not 0 <= self.seed < MAX_SEED:
            raise BadInput(f"--seed {self.seed}; allowed: 0 or more, below 2**63")


def _checked_impl(impl: str) -> str:
    """What stands before the ops that ``impl`` names one by one, as in ``reference,gdpa=triton``.

    Raises:
        BadInput: it names an op or an implementation that there is not.
        mfu_kernels.errors.InvalidArgument: a part of it names no op's implementation.
    """
    head, _, rest = impl.partition(",")
    if rest:
        from mfu_kernels import OPS
        from mfu_kernels.registry import named_impls

        for op, chosen in named_impls(impl).items():
            if op not in OPS or chosen not in CHOICES["impl"]:
                raise BadInput(
                    f"--impl {impl!r}: {op}={chosen} is unknown; implementations: {', '.join(CHOICES['impl'])}; "
                    f"ops: {', '.join(OPS)}"
                )
    return head


@dataclass(slots=True)
class Workload:
    """A workload made real: its module on its device, its input sets there or on the host, its step's parts.

    ``inputs`` are what ``forward`` takes; ``loss`` turns an output and an input into a scalar. ``num_samples`` counts
    the requests of each input, each of ``num_candidates``, also where the model sees impressions. ``needed`` gives the
    closed-form model FLOPs of an input, and of it with every row as long as the longest, None for a user's own module.
    Such a module may be compiled by its author, and any by a recipe, in whole or in part. It may be that of one of the
    ``ranks`` of a job; then the requests are the rank's own. Its input sets may be the first of its own ``loader``.
    """

    spec: WorkloadSpec
    description: dict[str, Any]
    device: "torch.device"
    dtype: str
    module: "nn.Module"
    inputs: list[Any]
    num_samples: list[int]
    forward: Callable[[Callable[..., Any], Any], Any]
    loss: Callable[[Any, Any], "torch.Tensor"]
    to_device: Callable[[Any], Any]
    optimizers: list["torch.optim.Optimizer"]
    num_candidates: int = 1
    needed: Callable[[Any], tuple["FlopCount", "FlopCount"]] | None = None
    may_be_compiled: bool = False
    ranks: Ranks = ALONE
    loader: "Loader | None" = None
    warnings: list[str] = field(default_factory=list)

    @property
    def compiles(self) -> bool:
        """Whether a step may be compiled, as was asked for, or as its author or a recipe has it."""
        return self.spec.compile != "none" or self.may_be_compiled

    @property
    def one_size(self) -> bool:
        """Whether there are no batches of another size, as of a loader that puts them together its own way."""
        return self.loader is not None and not self.loader.takes_sizes

    def num_requests(self, steps: int) -> int:
        """Requests in so many steps, which take the input sets in turn."""
        return sum(self.num_samples[index % len(self.inputs)] for index in range(steps))
