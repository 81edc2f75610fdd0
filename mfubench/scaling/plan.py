"""What a scaling ladder trains: models x sizes x seeds, the cheapest size of all models first."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from mfu_models import ModelSpec, model_spec
from mfu_models.batch import Schema
from mfubench.errors import BadInput
from mfubench.workload.spec import MAX_SEED, WorkloadSpec

from .train import Settings

LEAST_SIZES = 2
MOST_SEEDS = 100


@dataclass(frozen=True, slots=True)
class Training:
    """One training run of the ladder."""

    model: str
    size: str
    seed: int

    @property
    def name(self) -> str:
        """As reports show it."""
        return f"{self.model} {self.size} seed {self.seed}"

    @property
    def file(self) -> str:
        """What its files are called, without their suffix."""
        return f"{self.model}-{self.size}-seed-{self.seed}"


@dataclass(frozen=True, slots=True)
class Plan:
    """The ladder as asked for. ``spec`` has what all trainings share: implementation, device, dtype and data.

    ``evaluated`` impressions of the later window are predicted, None for all; trainings have the seeds 0 to
    ``seeds`` - 1.
    """

    spec: WorkloadSpec
    models: tuple[str, ...]
    sizes: tuple[str, ...]
    seeds: int
    baseline: str
    evaluated: int | None
    settings: Settings

    def workload(self, training: Training) -> WorkloadSpec:
        """What a training runs."""
        return replace(self.spec, model=training.model, size=training.size, seed=training.seed)

    def trainings(self, schema: Schema) -> list[Training]:
        """All of them, in the order in which they run, so that what a budget cuts off is the most expensive.

        Raises:
            mfu_kernels.errors.InvalidArgument: a model without one of the sizes.
        """
        ranked = {model: _by_flops(model_spec(model), self.sizes, schema) for model in self.models}
        return [
            Training(model, ranked[model][rank], seed)
            for rank in range(len(self.sizes))
            for seed in range(self.seeds)
            for model in self.models
        ]

    def identity(self) -> dict[str, Any]:
        """What two sittings must have in common for their trainings to belong to one ladder; the data are named apart.

        The baseline is not part of it: it only divides.
        """
        shared = {name: getattr(self.spec, name) for name in ("impl", "dtype", "device")}
        return {
            **{"models": list(self.models), "sizes": list(self.sizes), "seeds": self.seeds},
            **{"evaluated": self.evaluated, **asdict(self.settings), **shared},
        }


def make_plan(
    spec: WorkloadSpec,
    models: str,
    sizes: str,
    *,
    settings: Settings,
    seeds: int = 2,
    baseline: str | None = None,
    evaluated: int | None = None,
) -> Plan:
    """The plan for models and sizes named with commas between them; the baseline is the first model unless it is named.

    Raises:
        BadInput: a model that is no one's of the zoo, fewer than two sizes, a baseline that is not among the models, or
            a number out of its bounds.
        mfu_kernels.errors.InvalidArgument: an unknown model.
    """
    named, chosen = _names("--models", models), _names("--sizes", sizes)
    for name in named:
        if ":" in name:
            raise BadInput(f"--models {name}: a model of one's own has no sizes; give models of the zoo")
        model_spec(name)
    if len(chosen) < LEAST_SIZES:
        raise BadInput(f"--sizes {sizes}: a slope needs at least {LEAST_SIZES} sizes, and 3 to check the law")
    if baseline is not None and baseline not in named:
        raise BadInput(f"--baseline {baseline} is none of the models; allowed: {', '.join(named)}")
    counts = {"--samples": settings.samples, "--evaluate": evaluated, "--seeds": seeds}
    for option, value in {**counts, "--batch-size": settings.batch_size}.items():
        most = MOST_SEEDS if option == "--seeds" else MAX_SEED - 1
        if value is not None and not 1 <= value <= most:
            raise BadInput(f"{option} {value}; allowed: 1 {f'to {most}' if value > most else 'or more'}")
    return Plan(spec, named, chosen, seeds, baseline or named[0], evaluated, settings)


def _names(option: str, text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise BadInput(f"{option} {text!r} names nothing; give names with commas between them")
    return names


def _by_flops(model: ModelSpec, sizes: tuple[str, ...], schema: Schema) -> list[str]:
    """The sizes from the least to the most model FLOPs a sample."""
    configs = {size: model.config(size, schema, {"num_candidates": 1} if model.request_level else {}) for size in sizes}
    return sorted(sizes, key=lambda size: model.full_length_flops(configs[size]).total)
