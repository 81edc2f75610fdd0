"""What a campaign runs, in which order: peaks, the kernels' numbers, their speed, the zoo, the road to Kunlun."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mfu_models import MODELS
from mfubench.errors import BadInput
from mfubench.kernels.catalog import ops_with_kernels

STAGES = ("calibration", "contract", "bench", "profile", "road")
VARIANTS: Mapping[str, Mapping[str, str]] = {
    "eager": {"impl": "reference", "compile": "none"},
    "compiled": {"impl": "reference", "compile": "model"},
    "kernels": {"impl": "triton", "compile": "none"},
    "kernels_compiled": {"impl": "triton", "compile": "model"},
}
# The pair that the paper's claim is about goes first: the full Kunlun with kernels, InterFormer as a baseline.
FIRST_PROFILES = (
    ("kunlun", "large_plus", "train", "kernels"),
    ("interformer", "large", "train", "eager"),
    ("interformer", "large", "train", "compiled"),
    ("interformer", "xl", "train", "eager"),
    ("interformer", "xl", "train", "compiled"),
    ("kunlun", "large_plus", "train", "eager"),
    ("kunlun", "large_plus", "train", "kernels_compiled"),
)
DEFAULTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "cuda": {"sizes": ("base", "large"), "modes": ("train", "infer"), "variants": ("kernels", "eager", "compiled")},
    "cpu": {"sizes": ("tiny",), "modes": ("train", "infer"), "variants": ("eager",)},
}


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to run; ``arguments`` are plain, so that they travel to another process."""

    stage: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """``stage/name``, also the place of its result."""
        return f"{self.stage}/{self.name}"


def plan(
    device: str,
    *,
    stages: Sequence[str] = (),
    sizes: Sequence[str] = (),
    models: Sequence[str] = (),
    tune: bool = False,
) -> list[Task]:
    """The tasks for ``device`` ("cuda" or "cpu") in their order; empty choices mean the device's defaults.

    Raises:
        BadInput: an unknown stage or model, or a size that no model has.
    """
    _known("--stage", stages, STAGES)
    _known("--model", models, tuple(MODELS))
    _known("--size", sizes, tuple(dict.fromkeys(size for spec in MODELS.values() for size in spec.sizes)))
    ops = ops_with_kernels()
    tasks = [
        Task("calibration", "peaks"),
        *(Task("contract", op, {"op": op}) for op in ops),
        *(Task("bench", op, {"op": op, "tune": tune}) for op in ops),
        *_profiles(device, sizes, models),
        *_roads(device, sizes, models),
    ]
    return [task for task in tasks if not stages or task.stage in stages]


def _known(option: str, given: Sequence[str], allowed: Sequence[str]) -> None:
    for name in given:
        if name not in allowed:
            raise BadInput(f"{option} {name} is unknown; allowed: {', '.join(allowed)}")


def _profiles(device: str, sizes: Sequence[str], models: Sequence[str]) -> list[Task]:
    defaults = DEFAULTS[device]
    first = FIRST_PROFILES if device == "cuda" and not sizes else ()
    rest = (
        (model, size, mode, variant)
        for size in sizes or defaults["sizes"]
        for mode in defaults["modes"]
        for model in MODELS
        for variant in defaults["variants"]
        if size in MODELS[model].sizes
    )
    wanted = dict.fromkeys(place for place in (*first, *rest) if not models or place[0] in models)
    return [Task("profile", "-".join(place), _profile_arguments(*place)) for place in wanted]


def _profile_arguments(model: str, size: str, mode: str, variant: str) -> dict[str, Any]:
    return {"model": model, "size": size, "mode": mode, "variant": variant, **VARIANTS[variant]}


def _roads(device: str, sizes: Sequence[str], models: Sequence[str]) -> list[Task]:
    if models and "kunlun" not in models:
        return []
    wanted = sizes or (("large",) if device == "cuda" else ("tiny",))
    return [Task("road", f"kunlun-{size}", {"size": size}) for size in wanted if size in MODELS["kunlun"].sizes]
