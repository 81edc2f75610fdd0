"""``mfubench optimize``."""

import sys
from pathlib import Path
from typing import Annotated, cast

import typer

from mfubench.errors import BadInput

from .folders import goes_on, own_folder, sole_writer
from .options import (
    BatchSize,
    Candidates,
    Data,
    Debug,
    Device,
    Dtype,
    Impl,
    Json,
    Lock,
    Mode,
    Peak,
    Quiet,
    Seed,
    Set,
    Size,
    Steps,
    Verbose,
    overrides,
    seconds,
)
from .progress import stages

JUDGES = ("time", "numbers")
COMPILE_SHARE = 0.4  # of the budget: what compiling one change may take unless it is said


def optimize(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model of the zoo (see `mfubench models`), or package.module:build."),
    ],
    size: Size = None,
    set_: Set = None,
    impl: Impl = "reference",
    mode: Mode = "train",
    dtype: Dtype = None,
    device: Device = "auto",
    peak: Peak = None,
    batch_size: BatchSize = None,
    candidates: Candidates = None,
    steps: Steps = 20,
    seed: Seed = 0,
    data: Data = "synthetic",
    lock: Lock = None,
    budget: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="When trials and finishing are to end, give or take seconds: 90s, 9m or 2h.",
        ),
    ] = "9m",
    compile_budget: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="How long compiling one change may take. \\[default: 2/5 of the budget]"),
    ] = None,
    judge: Annotated[
        str, typer.Option(help="time, or numbers: swap kernels without timing them, where an interpreter runs them.")
    ] = "time",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for recipe.toml, optimize.json, the log, reports, and the runs of start and end.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Make a model faster: try what the ledger promises, keep what is proved right and faster, write it as a recipe.

    It starts from the ops' references, or from --impl. With --out, the same command goes on where it was interrupted.

    Examples:

    mfubench optimize kunlun --size small --out out/optimized

    mfubench optimize my_package.my_module:build --batch-size 256 --budget 20m --out out/mine

    TRITON_INTERPRET=1 mfubench optimize kunlun --size tiny --batch-size 2 --judge numbers --out out/kernels
    """
    from mfubench.workload.spec import WorkloadSpec

    spec = WorkloadSpec(
        model=model, size=size, overrides=overrides(set_), impl=impl, mode=mode, dtype=dtype, device=device, peak=peak,
        batch_size=batch_size, candidates=candidates, steps=steps, seed=seed, data=data, lock=lock,
    )  # fmt: skip
    if judge not in JUDGES:
        raise BadInput(f"--judge {judge!r} is unknown; allowed: {', '.join(JUDGES)}")
    budget_s = seconds("--budget", budget)
    compile_s = COMPILE_SHARE * budget_s if compile_budget is None else seconds("--compile-budget", compile_budget)
    own_folder(out, "optimize")
    from mfubench.optimize.log import FILE
    from mfubench.optimize.search import optimize as search
    from mfubench.optimize.state import Plan
    from mfubench.optimize.trial import Judge
    from mfubench.report import write_page
    from mfubench.report.optimization import optimization_page
    from mfubench.report.terminal import print_page, stdout_console

    try:
        with sole_writer(out), stages(quiet=quiet, verbose=verbose) as progress:
            found = search(Plan(spec, out, budget_s, compile_s, cast(Judge, judge)), progress=progress)
    except KeyboardInterrupt:
        if out is not None and (out / FILE).exists():
            print(f"mfubench: {goes_on(out)}", file=sys.stderr)
        raise
    page = optimization_page(found)
    if out is not None:
        write_page(page, out)
    if json:
        sys.stdout.write(found.to_json() + "\n")
    else:
        print_page(page, stdout_console(), full=verbose)
