"""What a campaign runs, in which order: peaks, the kernels' numbers, their speed, the zoo, the road, what compute buys.

Compiling and the numeric contract keep processors busy, not the GPU: they run side by side, what is timed runs alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from mfu_models import MODELS
from mfubench.errors import BadInput
from mfubench.identity import digest
from mfubench.kernels.catalog import examples_of, ops_with_kernels
from mfubench.scaling.plan import LEAST_SIZES
from mfubench.side_by_side import CONTRACT_PARTS
from mfubench.workload.zoo import all_sizes

STAGES = ("calibration", "contract", "compile", "tune", "bench", "profile", "road", "scale")
TOGETHER = ("contract", "compile")
SHARES = {  # of the budget on a GPU: the most that a task may take, so that one that hangs leaves others their time
    **{"calibration": 0.1, "contract": 0.3, "compile": 0.25, "tune": 0.12, "bench": 0.2, "profile": 0.3, "scale": 0.3},
}
KERNELS = "kernels"  # our kernels, of those whose contract passed; the reference elsewhere
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "eager": {"impl": "reference", "compile": "none"},
    "compiled": {"impl": "reference", "compile": "model"},
    "regions": {"impl": "reference", "compile": "regions"},
    "kernels": {"impl": KERNELS, "compile": "none"},
    "kernels_regions": {"impl": KERNELS, "compile": "regions"},
    # A busier device: the host's time for a step is the same. On an H200, whose 150 GB
    # hold 3072, Kunlun large_plus took 48 GB for 1024 and 93 for 2048.
    "kernels_batch_2048": {"impl": KERNELS, "compile": "none", "batch_size": 2048},
    "kernels_batch_3072": {"impl": KERNELS, "compile": "none", "batch_size": 3072},
    "kernels_regions_batch_2048": {"impl": KERNELS, "compile": "regions", "batch_size": 2048},
    # Where 1024 do not fit.
    "kernels_batch_512": {"impl": KERNELS, "compile": "none", "batch_size": 512},
    "eager_batch_128": {"impl": "reference", "compile": "none", "batch_size": 128},
}
# Each op at the size that published figures are for.
FIRST_SHAPES: Mapping[str, Sequence[str]] = {
    "gdpa": ("X1024", "KV128", "KV64", "X1024 uniform"),
    "gdpa_block": ("PFFN Q1024 KV256",),
    "window_attention": ("swa B1152 L1024 W128",),
    "seed_pooling": ("B1152 L1024 S32",),
    "hstu_attention": ("hstu B128 L1024",),
    "layer_norm": ("norm 1.18M x 512",),
    "rms_norm": ("norm 1.18M x 512",),
    "sum_kron_linear": ("B1152 S256 T32 D512 k4",),
}
Place = tuple[str, str]
"""An op and one of its shapes."""
ZOO = ("kunlun large_plus clicks", "kunlun large_plus impressions", "kunlun large_plus context")
"""The shapes of the model that the claim is about, by name; they are tuned, too."""
# What the paper's claim is about comes first: the full Kunlun with kernels, and the baseline. Then the same compiled,
# the baseline with the best that this machine has for it, too: by regions, as compiling models of these sizes whole
# takes longer than all else; once it is done, at the end, for it is what a user would try first.
FIRST_PROFILES = (
    ("kunlun", "large_plus", "train", "kernels"),
    ("kunlun", "large_plus", "train", "kernels_batch_2048"),
    ("interformer", "large", "train", "eager"),
    ("interformer", "large", "train", "kernels"),
)
NEXT_PROFILES = (
    ("kunlun", "large_plus", "train", "kernels_regions_batch_2048"),
    ("kunlun", "large_plus", "train", "kernels_batch_3072"),
    ("interformer", "xl", "train", "eager_batch_128"),
    ("kunlun", "xl", "train", "kernels_batch_512"),
    ("interformer", "xl", "train", "kernels"),
    ("interformer", "large", "train", "kernels_regions"),
    ("interformer", "xl", "train", "kernels_regions"),
    ("interformer", "large", "train", "regions"),
    ("kunlun", "large_plus", "train", "kernels_regions"),
    ("interformer", "xl", "train", "eager"),
    ("kunlun", "large_plus", "train", "eager"),
    ("interformer", "large", "train", "compiled"),
)
# What no shape above stands for, with the ops that its step calls: tuned at the step's own shapes, before its profile.
TUNED_STEPS: Mapping[tuple[str, ...], Sequence[str]] = {
    ("kunlun", "xl", "train", "kernels_batch_512"): (
        *("window_attention", "seed_pooling", "gdpa_block", "sum_kron_linear", "layer_norm", "embedding"),
    ),
}
# The claim is of two models; the first is what the other's gain is held against.
LADDER = ("interformer", "kunlun")
LADDER_SIZES: Mapping[str, Sequence[str]] = {"cuda": ("tiny", "small", "base", "large"), "cpu": ("tiny", "small")}
LADDER_SAMPLES: Mapping[str, Mapping[str, int]] = {  # impressions: the most to learn from, in steps of, and to predict
    "cuda": {"samples": 200_000, "batch_size": 512, "evaluated": 50_000},
    "cpu": {"samples": 2_000, "batch_size": 32, "evaluated": 2_000},
}
DEFAULTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "cuda": {"sizes": ("base", "large"), "modes": ("train", "infer"), "variants": ("kernels", "eager", "regions")},
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
    peers: Sequence[str] = (),
    data: str | None = None,
) -> list[Task]:
    """The tasks for ``device`` ("cuda" or "cpu") in their order; empty choices mean the device's defaults.

    Kernels are timed on a GPU only: each by itself first, which takes seconds; beside torch's peers, which compile, and
    beside each of ``peers``, which may hang, in tasks of their own. ``peers`` are ``op=package.module:function``.
    ``data`` is the log that sizes of models are trained on, which without one are not.

    Raises:
        BadInput: an unknown stage or model, a size that no model has, a model that has none of the sizes, a peer of no
            op, a log with too few sizes for a slope, or choices that leave nothing.
    """
    _known("--stage", stages, STAGES)
    if data is not None and stages and "scale" not in stages:
        raise BadInput(f"--data {data} is for --stage scale, which is left out; name it too, or leave --data out")
    _known("--model", models, tuple(MODELS))
    _known("--size", sizes, all_sizes())
    for model in models if sizes else ():
        if not set(sizes) & set(MODELS[model].sizes):
            has = ", ".join(MODELS[model].sizes)
            raise BadInput(f"--model {model} has none of --size {', '.join(sizes)}; it has: {has}")
    ops = ops_with_kernels()
    named = _peers_by_op(peers, ops)
    first, every = _shapes(ops, FIRST_SHAPES), _shapes(ops, {op: tuple(examples_of(op).shapes) for op in ops})
    foremost, less = first[: len(FIRST_SHAPES)], first[len(FIRST_SHAPES) :]
    others = [place for place in every if place not in first]
    worth = [*FIRST_SHAPES, *ops]  # to tune, the most first
    zoo = sorted((place for place in every if place[1] in ZOO), key=lambda place: worth.index(place[0]))
    profiles = _profiles(device, sizes, models)
    claims, nexts = ([place for place in profiles if place in group] for group in (FIRST_PROFILES, NEXT_PROFILES))
    last = [*_roads(device, sizes, models), *_ladders(device, sizes, models, data)]
    tuned = {"tuned": True} if tune else {}  # another config may be taken then, which gives another result

    def alone(places: Sequence[Place]) -> Iterator[Task]:
        for place in places if device == "cuda" else ():
            if tune and place in first:
                yield _shape_task("tune", *place)
            yield _bench_task(*place, tuned)

    def beside(places: Sequence[Place]) -> Iterator[Task]:
        if device == "cuda":
            yield from (_bench_task(*place, tuned, builtin=True) for place in places)
            yield from (_bench_task(*place, tuned, peer) for place in places for peer in named.get(place[0], ()))

    def tuned_first(place: Sequence[str]) -> Iterator[Task]:
        for stage in ("contract", "compile", "tune") if tune and device == "cuda" else ():
            yield from (_step_task(stage, place, op) for op in TUNED_STEPS.get(tuple(place), ()))
        yield _profile_task(place, tuned)

    tasks = [
        Task("calibration", "peaks"),
        *_contracts(ops, (*zoo, *first)),
        *(_shape_task("compile", *place) for place in (*zoo, *first) if tune and device == "cuda"),
        *(_shape_task("tune", *place) for place in zoo if tune and device == "cuda"),
        *alone(first),
        *(_profile_task(place, tuned) for place in claims),
        *beside(foremost),
        *(task for place in nexts for task in tuned_first(place)),
        *(last if nexts else []),
        *(*beside(less), *alone(others), *beside(others)),
        *(_profile_task(place, tuned) for place in profiles if place not in (*claims, *nexts)),
        *([] if nexts else last),  # after the zoo, where no profile is worth more than another
    ]
    chosen = [task for task in tasks if not stages or task.stage in stages]
    if not chosen:
        tuning, timing = {"compile", "tune"} & set(stages), {"compile", "tune", "bench"} & set(stages)
        why = "; kernels are timed on a GPU only" if timing and device != "cuda" else ""
        why = why or ("; compile and tune need --tune" if tuning and not tune else "")
        why = why or ("; scale needs --data" if "scale" in stages and data is None else "")
        raise BadInput(f"nothing is left of {_told(stages, sizes, models)}{why}")
    return chosen


def of_kernels(device: str, *, tune: bool) -> list[Task]:
    """What is proved, and with ``tune`` tuned, of the kernels by themselves: it hangs on no model and on no choice."""
    tasks = plan(device, stages=("contract", "tune"), tune=tune)
    return [task for task in tasks if "step" not in task.arguments]


def _told(stages: Sequence[str], sizes: Sequence[str], models: Sequence[str]) -> str:
    """The choices as they were made."""
    given = (("--stage", stages), ("--size", sizes), ("--model", models))
    return " ".join(f"{option} {name}" for option, names in given for name in names)


def _contracts(ops: Sequence[str], tuned: Sequence[Place]) -> list[Task]:
    """A part of each op's before the next of any; on a GPU also at the shapes that may be ``tuned``."""
    shapes = {op: [shape for other, shape in tuned if other == op] for op in ops}
    return [
        Task("contract", f"{op}-{n + 1}", {"op": op, "part": n, "parts": CONTRACT_PARTS, "shapes": shapes[op]})
        for n in range(CONTRACT_PARTS)
        for op in ops
    ]


def _shapes(ops: Sequence[str], shapes: Mapping[str, Sequence[str]]) -> list[Place]:
    """Op and shape of each, the first one of every op before the second of any."""
    turns = zip_longest(*([(op, shape) for shape in shapes.get(op, ())] for op in ops))
    return [place for turn in turns for place in turn if place is not None]


def _shape_task(stage: str, op: str, shape: str) -> Task:
    return Task(stage, f"{op}-{shape}".replace(" ", "-"), {"op": op, "shape": shape})


def _bench_task(op: str, shape: str, more: Mapping[str, Any], *peers: str, builtin: bool = False) -> Task:
    """Ours alone, or beside the ``builtin`` peers, or those that are named."""
    task = _shape_task("bench", op, shape)
    beside = ["torch"] * builtin + [peer.replace(":", ".") for peer in peers]
    name = "-".join([task.name, *(f"beside-{peer}" for peer in beside)])
    return Task("bench", name, {**task.arguments, "peers": list(peers), "builtin": builtin, **more})


def _peers_by_op(peers: Sequence[str], ops: Sequence[str]) -> dict[str, list[str]]:
    by_op: dict[str, list[str]] = {}
    for given in peers:
        op, _, target = given.partition("=")
        if op not in ops or ":" not in target:
            raise BadInput(f"--peer {given}; allowed: op=package.module:function with an op of {', '.join(ops)}")
        by_op.setdefault(op, []).append(target)
    return by_op


def _known(option: str, given: Sequence[str], allowed: Sequence[str]) -> None:
    for name in given:
        if name not in allowed:
            raise BadInput(f"{option} {name} is unknown; allowed: {', '.join(allowed)}")


def _profiles(device: str, sizes: Sequence[str], models: Sequence[str]) -> list[tuple[str, ...]]:
    """Model, size, mode and variant of each."""
    defaults = DEFAULTS[device]
    first = (*FIRST_PROFILES, *NEXT_PROFILES) if device == "cuda" and not sizes else ()
    rest = (
        (model, size, mode, variant)
        for size in sizes or defaults["sizes"]
        for mode in defaults["modes"]
        for model in MODELS
        for variant in defaults["variants"]
        if size in MODELS[model].sizes
    )
    return list(dict.fromkeys(place for place in (*first, *rest) if not models or place[0] in models))


def _profile_task(place: Sequence[str], more: Mapping[str, Any]) -> Task:
    return Task("profile", "-".join(place), {**_workload(place), **more})


def _step_task(stage: str, place: Sequence[str], op: str) -> Task:
    """Of the calls of ``op`` that a profile's step makes; the contract on those of few rows."""
    whole = {"part": 0, "parts": 1} if stage == "contract" else {}
    return Task(stage, "-".join([*place, op]), {"op": op, "step": "-".join(place), **_workload(place), **whole})


def _workload(place: Sequence[str]) -> dict[str, Any]:
    model, size, mode, variant = place
    return {"model": model, "size": size, "mode": mode, "variant": variant, **VARIANTS[variant]}


def _roads(device: str, sizes: Sequence[str], models: Sequence[str]) -> list[Task]:
    if models and "kunlun" not in models:
        return []
    wanted = sizes or (("large",) if device == "cuda" else ("tiny",))
    return [Task("road", f"kunlun-{size}", {"size": size}) for size in wanted if size in MODELS["kunlun"].sizes]


def _ladders(device: str, sizes: Sequence[str], models: Sequence[str], data: str | None) -> list[Task]:
    """One, of the sizes that all of its models have."""
    if data is None:
        return []
    climbed = models or LADDER
    common = [size for size in sizes or LADDER_SIZES[device] if all(size in MODELS[model].sizes for model in climbed)]
    if len(common) < LEAST_SIZES:
        raise BadInput(
            f"--data {data}: what compute buys needs {LEAST_SIZES} sizes or more that {', '.join(climbed)} have; "
            "give more of --size, or none"
        )
    what = {"models": list(climbed), "sizes": common, "data": data, **LADDER_SAMPLES[device]}
    name = "-".join([*climbed, "on", data.partition(":")[0], digest(what)[:6]])  # each log's has a folder of its own
    return [Task("scale", name, {**what, "folder": name})]
