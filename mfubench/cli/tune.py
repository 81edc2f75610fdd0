"""``mfubench kernels tune``."""

from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .folders import keep, own_folder
from .options import (
    BatchSize,
    Candidates,
    Compile,
    Data,
    Debug,
    Dtype,
    Impl,
    Json,
    Lock,
    Mode,
    Quiet,
    Recipe,
    Seed,
    Set,
    Size,
    Verbose,
    out_option,
    overrides,
    put,
    seconds,
)
from .progress import stages
from .watched import tell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mfu_kernels.lock import Entry

DOCUMENT = "tune.json"


def tune(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model of the zoo (see `mfubench models`), or package.module:build."),
    ],
    size: Size = None,
    set_: Set = None,
    impl: Impl = "auto",
    compile_: Compile = "none",
    mode: Mode = "train",
    dtype: Dtype = None,
    batch_size: BatchSize = None,
    candidates: Candidates = None,
    seed: Seed = 0,
    data: Data = "synthetic",
    recipe: Recipe = None,
    lock: Lock = None,
    again: Annotated[
        bool, typer.Option("--again", help="Also kernels whose configs were all measured on this very GPU.")
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="When tuning and its proof are to end, give or take seconds: 90s, 9m or 2h. \\[default: no end]",
        ),
    ] = None,
    config_limit: Annotated[
        str, typer.Option(metavar="TIME", help="Time limit of one config; what takes longer is left out and named.")
    ] = "60s",
    out: Annotated[Path | None, out_option(f"lock.json, {DOCUMENT}, ")] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Find the fastest configs of the kernels that a model's step launches, at its shapes, on this GPU.

    A step's calls are recorded; each kernel that no config was measured for here tries its whole space, and takes what
    is right and proved faster, twice. Then the step itself is timed in turns, with what was found and without.
    DIR/lock.json, which grows op by op, goes to --lock, and in your own script to mfubench.use_lock; given to this
    command, it goes on from there.

    Examples:

    mfubench kernels tune kunlun --size xl --batch-size 512 --out out/tuned

    mfubench profile kunlun --size xl --batch-size 512 --lock out/tuned/lock.json

    mfubench kernels tune my_package.my_module:build --recipe out/optimized/recipe.toml --budget 10m --out out/tuned
    """
    tell(model=model)
    from mfubench.workload.spec import WorkloadSpec

    spec = WorkloadSpec(
        model=model, size=size, overrides=overrides(set_), impl=impl, compile=compile_, mode=mode, dtype=dtype,
        batch_size=batch_size, candidates=candidates, seed=seed, data=data, lock=lock,
    )  # fmt: skip
    budget_s = inf if budget is None else seconds("--budget", budget)
    config_limit_s = seconds("--config-limit", config_limit)
    own_folder(out, "kernels tune")
    from mfubench.kernels.locks import write_lock
    from mfubench.optimize.recipe import read_recipe
    from mfubench.report.tuning import tuning_page
    from mfubench.tuning.step import Subject, tune_step

    subject = Subject(spec, None if recipe is None else read_recipe(recipe))

    def keep_so_far(entries: "Sequence[Entry]") -> None:
        if out is not None and entries:
            out.mkdir(parents=True, exist_ok=True)
            write_lock(entries, out)

    with stages(quiet=quiet, verbose=verbose) as progress:
        told = tune_step(
            subject, again=again, budget_s=budget_s, config_limit_s=config_limit_s, progress=progress, keep=keep_so_far
        )
    if out is not None:
        keep(told, tuning_page(told), out, DOCUMENT)
        write_lock(told["lock"], out)
    put(told, lambda: tuning_page(told), json=json, verbose=verbose)
