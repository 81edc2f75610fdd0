"""``mfubench plan``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from mfubench.errors import BadInput

from .folders import keep, own_folder
from .options import (
    Candidates,
    Data,
    Debug,
    Impl,
    Json,
    Mode,
    Quiet,
    Seed,
    Set,
    Verbose,
    out_option,
    overrides,
    put,
)
from .progress import stages
from .watched import tell

Gpu_ = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="A GPU by its product's or its driver's name, such as H200; repeatable. "
        "\\[default: that of --like, else the one here]",
    ),
]
Like_ = Annotated[
    Path | None,
    typer.Option(metavar="RUN", help="An eager run on a GPU: its measured peaks, and its rates to predict times with."),
]
Sizes = Annotated[list[str] | None, typer.Option("--size", help="Sizes of the zoo; repeatable. \\[default: base]")]

MOST = 1e18


def plan(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Models of the zoo, or package.module:build of your own.")
    ],
    gpu: Gpu_ = None,
    like: Like_ = None,
    size: Sizes = None,
    set_: Set = None,
    impl: Impl = "auto",
    mode: Mode = "train",
    dtype: Annotated[str, typer.Option(help="bf16 (autocast), tf32 or fp32.")] = "bf16",
    batch_size: Annotated[
        int | None, typer.Option(help="Requests per step. \\[default: 1024, and 32 for your own model]")
    ] = None,
    candidates: Candidates = None,
    seed: Seed = 0,
    data: Data = "synthetic",
    memory: Annotated[
        float | None, typer.Option(metavar="GIB", help="Memory of the GPU. \\[default: as its driver reports]")
    ] = None,
    samples_per_day: Annotated[
        float | None,
        typer.Option(metavar="N", help="Say how many GPUs keep up with so many per day.", show_default=False),
    ] = None,
    out: Annotated[Path | None, out_option("plan.json, ")] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Before a GPU is rented: does it fit, how many requests, what is the least time of a step and the most MFU?

    Nothing runs there, and in a model of the zoo nothing is computed: it is counted, kernels included, in seconds, of
    any size. The least time is the roofline's; the waterfall says what would bound even perfect kernels. With --like,
    times are predicted from what each kind of operator reached in a run on that GPU.

    Examples:

    mfubench plan kunlun --size large --size large_plus --gpu H200 --gpu "H100 SXM"

    mfubench plan my_package.my_module:build --batch-size 256 --gpu L40S --samples-per-day 1e9

    mfubench plan kunlun --size xl --batch-size 512 --like out/kunlun --out out/plan
    """
    tell(model=", ".join(models))
    _require_positive({"--samples-per-day": samples_per_day, "--memory": memory})
    own_folder(out, "plan")
    out = out and out.absolute()  # a user's model may go to a folder of its own while it is built
    from mfubench.planning.plan import chosen_gpus, make_plans
    from mfubench.planning.plan import like as rates_like
    from mfubench.report.planning import plan_page
    from mfubench.run import read_run
    from mfubench.workload.spec import WorkloadSpec

    sizes: list[str | None] = [*size] if size else [None]
    specs = [
        WorkloadSpec(
            model=model, size=each, overrides=overrides(set_), impl=impl, mode=mode, dtype=dtype,
            batch_size=batch_size, candidates=candidates, seed=seed, data=data,
        )
        for model in models for each in sizes
    ]  # fmt: skip
    run = None if like is None else read_run(like)
    gpus = chosen_gpus(gpu or [], run, dtype, memory)
    with stages(quiet=quiet, verbose=verbose) as progress:
        progress("counting the run", 0.0)
        rates = None if run is None else rates_like(run)
        told = make_plans(specs, gpus, rates=rates, samples_per_day=samples_per_day, progress=progress)
    if out is not None:
        keep(told, plan_page(told), out, "plan.json")
    put(told, lambda: plan_page(told), json=json, verbose=verbose)


def _require_positive(given: Mapping[str, float | None]) -> None:
    for option, number in given.items():
        if number is not None and not 0 < number < MOST:
            raise BadInput(f"{option} {number:g}; allowed: a number above 0, below {MOST:g}")
