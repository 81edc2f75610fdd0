"""``mfubench profile``."""

import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mfubench.errors import BadInput, TimeUp
from mfubench.progress import Progress

from .folders import own_folder
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
    Lock,
    Mode,
    Out,
    Peak,
    Quiet,
    Recipe,
    Seed,
    Set,
    Size,
    Steps,
    Verbose,
    overrides,
    seconds,
)
from .progress import stages
from .watched import tell

if TYPE_CHECKING:
    from mfubench.run import Run

TRACE_NAME = "trace.json.gz"
KEEPING_S = 10.0  # for which the other ranks let rank 0 keep what was measured: the first that ends, ends all
TENSORBOARD = "tensorboard"  # a log folder that torch-tb-profiler opens


def profile(
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
    device: Device = "auto",
    peak: Peak = None,
    batch_size: BatchSize = None,
    candidates: Candidates = None,
    steps: Steps = 20,
    seed: Seed = 0,
    timeout: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Give up on a workload that takes longer than 90s, 9m or 2h; keep what was measured.",
            show_default=False,
        ),
    ] = None,
    data: Data = "synthetic",
    lock: Lock = None,
    recipe: Recipe = None,
    out: Out = None,
    trace: Annotated[
        bool, typer.Option("--trace", help=f"Keep the trace: DIR/{TRACE_NAME}, and for TensorBoard.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Run a model, and say how much of the device it uses and which modules lose the rest.

    Examples:

    mfubench profile kunlun --size small

    mfubench profile transformer --data kuairand:PATH --mode infer --out out/transformer

    mfubench profile kunlun --size base --set comp_skip=false --set engagement.window=100 --json

    mfubench profile my_package.my_module:build --batch-size 256

    mfubench profile kunlun --size small --recipe out/optimized/recipe.toml

    torchrun --nproc-per-node 8 -m mfubench profile my_package.my_module:build --out out/job
    """
    from mfubench.workload.spec import WorkloadSpec

    if trace and out is None:
        raise BadInput("--trace needs --out DIR, the folder that the trace goes to")
    spec = WorkloadSpec(
        model=model, size=size, overrides=overrides(set_), impl=impl, compile=compile_, mode=mode, dtype=dtype,
        device=device, peak=peak, batch_size=batch_size, candidates=candidates, steps=steps, seed=seed, data=data,
        lock=lock,
    )  # fmt: skip
    limit_s = None if timeout is None else seconds("--timeout", timeout)
    from mfubench.ranks import leave, of_another_rank

    silent = of_another_rank()
    if silent:  # rank 0 tells of all
        quiet, out, trace = True, None, False
        limit_s = None if limit_s is None else limit_s + KEEPING_S
    own_folder(out, "profile")
    out = out and out.absolute()  # a user's model may go to a folder of its own while it is built
    from mfubench.optimize.recipe import prepare_with, read_recipe
    from mfubench.profiling import profile as profile_spec
    from mfubench.profiling import profile_workload
    from mfubench.timeout import time_limit

    given = read_recipe(recipe) if recipe is not None else None

    known: list[Callable[[], Run]] = []
    with tempfile.TemporaryDirectory(prefix="mfubench-") as place, stages(quiet=quiet, verbose=verbose) as told:
        scratch = Path(place)
        trace_path = scratch / TRACE_NAME if trace else None
        progress = _kept_as_it_goes(told, known, out, scratch) if tell(model=model, scratch=place) else told
        try:
            with time_limit(limit_s, lambda: _keep_at_the_end(known, out, scratch)):
                if given is None:
                    run = profile_spec(spec, progress=progress, trace_path=trace_path, keep=known.append)
                else:
                    workload = prepare_with(spec, given)
                    run = profile_workload(workload, progress=progress, trace_path=trace_path, keep=known.append)
                leave()
        except (TimeUp, KeyboardInterrupt):
            _keep(known, out, scratch)
            raise
        wrong = _not_put(run, out, scratch)
    if silent:
        return
    if json:
        sys.stdout.write(run.to_json() + "\n")
    else:
        from mfubench.report.terminal import print_runs, stdout_console

        print_runs([run], stdout_console(), full=verbose)
    if wrong is not None:
        raise wrong


def _kept_as_it_goes(progress: Progress, known: "list[Callable[[], Run]]", out: Path | None, scratch: Path) -> Progress:
    """``progress``, and before each pass what is measured so far for who waits, should this process break in it."""

    def kept(stage: str, done: float) -> None:
        if known and out is not None:
            from mfubench.run import write_run

            with suppress(OSError):
                write_run(known[0](), scratch)
                tell(kept=str(scratch / "run.json"), out=str(out))
        progress(stage, done)

    return kept


def _keep(known: "list[Callable[[], Run]]", out: Path | None, scratch: Path) -> None:
    """Write what was measured before the end came, if anything was."""
    if known and out is not None:
        put_run(known[0](), out, scratch)
        print(f"mfubench: warning: what was measured until then is in {out}", file=sys.stderr)


def _keep_at_the_end(known: "list[Callable[[], Run]]", out: Path | None, scratch: Path) -> None:
    """The same in a process that ends at once and says so."""
    tell(over=True)
    _keep(known, out, scratch)


def _not_put(run: "Run", out: Path | None, scratch: Path) -> OSError | None:
    """Write the run, or give why it cannot be written: what took minutes to measure is told all the same."""
    try:
        if out is not None:
            put_run(run, out, scratch)
    except OSError as error:
        return error
    return None


def put_run(run: "Run", out: Path, scratch: Path) -> None:
    """Write a run and its reports into ``out``, and its trace, if one was kept in ``scratch``."""
    from mfubench.files import place_file
    from mfubench.report import write_reports
    from mfubench.run import write_run

    out.mkdir(parents=True, exist_ok=True)
    if run.trace["path"] is not None:
        run.trace["path"] = TRACE_NAME
        place_file(scratch / TRACE_NAME, out / TRACE_NAME)
        (out / TENSORBOARD).mkdir(exist_ok=True)
        place_file(scratch / TRACE_NAME, out / TENSORBOARD / f"{run.workload['model_hash']}.pt.trace.json.gz")
    write_run(run, out)
    write_reports([run], out)
