"""``mfubench sweep``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .folders import goes_on, own_folder, sole_writer
from .options import (
    Candidates,
    Compile,
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

STEPS = {"train": 20, "infer": 100}  # of which a percentile of 99 can be told


def sweep(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model of the zoo (see `mfubench models`), or package.module:build."),
    ],
    batch_sizes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,C",
            help="Requests per step. \\[default: doubling, in inference from 1, in training from 16, until throughput "
            "no longer rises or the memory ends]",
        ),
    ] = None,
    p99_ms: Annotated[
        float | None,
        typer.Option(
            metavar="MS",
            help="How long 99 % of an inference's steps may take: what is the most throughput within it?",
            show_default=False,
        ),
    ] = None,
    size: Size = None,
    set_: Set = None,
    impl: Impl = "auto",
    compile_: Compile = "none",
    mode: Mode = "train",
    dtype: Dtype = None,
    device: Device = "auto",
    peak: Peak = None,
    candidates: Candidates = None,
    steps: Annotated[
        int | None, typer.Option(help="Timed steps of each size. \\[default: 20, and 100 in inference]")
    ] = None,
    seed: Seed = 0,
    data: Data = "synthetic",
    lock: Lock = None,
    recipe: Recipe = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Nothing runs on after it: 90s, 9m or 2h. \\[default: until it is done]",
        ),
    ] = None,
    out: Annotated[Path | None, out_option("sweep.json, each batch size's run.json, ")] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Which batch size? Profile one after the other: throughput, latency, MFU, memory, and what the steps wait for.

    It names the batch size of the most throughput, the smallest that comes near it, and, of an inference with --p99-ms,
    the most throughput whose answers are in time. Each size runs in a process of its own, so that one that needs too
    much memory costs itself alone. With --out, the same command goes on where it was interrupted.

    Examples:

    mfubench sweep dlrm --mode infer --p99-ms 5

    mfubench sweep kunlun --size small --batch-sizes 16,64,256 --out out/sweep

    mfubench sweep my_package.my_module:build --mode infer --budget 9m --out out/sweep
    """
    from mfubench.workload.spec import WorkloadSpec

    spec = WorkloadSpec(
        model=model, size=size, overrides=overrides(set_), impl=impl, compile=compile_, mode=mode, dtype=dtype,
        device=device, peak=peak, candidates=candidates, seed=seed, data=data, lock=lock,
        steps=STEPS.get(mode, 20) if steps is None else steps,
    )  # fmt: skip
    budget_s = None if budget is None else seconds("--budget", budget)
    from mfubench.sweep import Sweep, SweepPlan, sizes_of

    plan = SweepPlan(spec, () if batch_sizes is None else sizes_of(batch_sizes), p99_ms, recipe)
    own_folder(out, "sweep")
    from mfubench.report import write_page
    from mfubench.report.sweep import sweep_page

    found = Sweep(plan, out)
    with sole_writer(out):
        try:
            with stages(quiet=quiet, verbose=verbose) as progress:
                found.climb(budget_s=budget_s, progress=progress)
        finally:
            found.keep()
            if out is not None and found.done:
                write_page(sweep_page(found.to_document()), out)
                if not found.complete:
                    print(f"mfubench: {goes_on(out)}", file=sys.stderr)
    told = found.to_document()
    put(told, lambda: sweep_page(told), json=json, verbose=verbose)
