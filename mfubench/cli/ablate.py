"""``mfubench ablate``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .folders import goes_on, own_folder, sole_writer
from .options import (
    BatchSize,
    Candidates,
    Compile,
    Data,
    Debug,
    Device,
    Dtype,
    Impl,
    Json,
    Mode,
    Peak,
    Quiet,
    Seed,
    Set,
    Size,
    Verbose,
    out_option,
    overrides,
    seconds,
)
from .progress import stages


def ablate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model with an ablation: kunlun.")],
    size: Size = None,
    set_: Set = None,
    impl: Impl = "auto",
    compile_: Compile = "none",
    mode: Mode = "train",
    dtype: Dtype = None,
    device: Device = "auto",
    peak: Peak = None,
    batch_size: BatchSize = None,
    candidates: Candidates = None,
    steps: Annotated[int, typer.Option(help="Timed steps of each setting, and rounds of each pair of them.")] = 20,
    seed: Seed = 0,
    data: Data = "synthetic",
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Begin nothing new once it is over; what runs is finished: 90s, 9m or 2h. "
            "\\[default: until it is done]",
        ),
    ] = None,
    out: Annotated[Path | None, out_option("ablation.json, each step's run.json, ")] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Walk from InterFormer's parts to the full Kunlun, one switch at a time, beside what was published.

    Every setting is profiled; neighbours on the road are timed in turn, and so is the full model with and without each
    switch. DIR gets ablation.json, runs/STEP/run.json, report.md with its charts and report.html as the results come;
    the same command goes on where it was interrupted or its budget ended.

    Examples:

    mfubench ablate kunlun --size small --out out/ablation

    mfubench ablate kunlun --size tiny --data kuairand:PATH --steps 50 --budget 10m --out out/ablation
    """
    budget_s = None if budget is None else seconds("--budget", budget)
    from mfubench.workload.spec import WorkloadSpec

    spec = WorkloadSpec(
        model=model, size=size, overrides=overrides(set_), impl=impl, compile=compile_, mode=mode, dtype=dtype,
        device=device, peak=peak, batch_size=batch_size, candidates=candidates, steps=steps, seed=seed, data=data,
    )  # fmt: skip
    own_folder(out, "ablate")
    from mfubench.ablate.ladder import Ladder
    from mfubench.report import write_page
    from mfubench.report.ablation import ablation_page
    from mfubench.report.terminal import print_page, stdout_console

    with sole_writer(out):
        ladder = Ladder(spec, out)
        try:
            with stages(quiet=quiet, verbose=verbose) as progress:
                ladder.climb(budget_s=budget_s, progress=progress)
        finally:
            ladder.keep()
            ablation, (done, of) = ladder.ablation(), ladder.progress_made
            if out is not None and done:
                write_page(ablation_page(ablation), out)
            if done and not ablation.complete:
                print(f"mfubench: {done} of {of} measurements done; {goes_on(out)}", file=sys.stderr)
    if json:
        sys.stdout.write(ablation.to_json() + "\n")
    else:
        print_page(ablation_page(ablation), stdout_console(), full=verbose)
