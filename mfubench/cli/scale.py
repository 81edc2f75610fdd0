"""``mfubench scale``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mfubench.errors import ToolBroke

from .folders import goes_on, keep, own_folder, sole_writer
from .options import (
    Debug,
    Device,
    Dtype,
    Impl,
    Json,
    Quiet,
    Verbose,
    out_option,
    put,
    seconds,
)
from .progress import stages


def scale(
    models: Annotated[str, typer.Option(metavar="A,B", help="Models of the zoo, with commas between them.")],
    sizes: Annotated[str, typer.Option(metavar="S,M,L", help="Sizes that all of them have; 3 or more check the law.")],
    data: Annotated[str, typer.Option(help="A real log: kuairand:PATH or movielens:PATH.")],
    baseline: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Model whose slope the others are compared with. \\[default: the first]"),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Impressions that each training sees. \\[default: the first 80 % in time, all]")
    ] = None,
    evaluate: Annotated[
        int | None, typer.Option(help="Later impressions to predict, drawn at random. \\[default: all]")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Trainings of each size, with the seeds 0, 1, ...")] = 2,
    batch_size: Annotated[int, typer.Option(help="Impressions per step.")] = 512,
    impl: Impl = "auto",
    dtype: Dtype = None,
    device: Device = "auto",
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="No training runs on after it; one cut off is not kept: 90s, 9m or 2h. \\[default: until it is done]",
        ),
    ] = None,
    out: Annotated[Path | None, out_option("scaling.json, every training, ")] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """What does compute buy? Train sizes of several models on a real log and fit how their entropy falls with compute.

    Every model learns once through the first part of the log in time and predicts later impressions. Its normalised
    entropy (NE) is fitted against the compute of its training, in model FLOPs and in device time; the ratio of two
    slopes is the scaling efficiency. The cheapest sizes come first. With --out, the same command goes on where it was
    interrupted or its budget ended.

    Examples:

    mfubench scale --models interformer,kunlun --sizes tiny,small,base --data kuairand:PATH --out out/scale

    mfubench scale --models dlrm,wukong --sizes tiny,small,base --data movielens:PATH --samples 20000 --budget 20m
    """
    budget_s = None if budget is None else seconds("--budget", budget)
    from mfubench.scaling.plan import make_plan
    from mfubench.scaling.train import Settings
    from mfubench.workload.spec import WorkloadSpec

    first = models.partition(",")[0]
    plan = make_plan(
        WorkloadSpec(first, impl=impl, dtype=dtype, device=device, data=data),
        models,
        sizes,
        settings=Settings(batch_size=batch_size, samples=samples),
        seeds=seeds,
        baseline=baseline,
        evaluated=evaluate,
    )
    own_folder(out, "scale")
    from mfubench.report.scaling import scaling_page
    from mfubench.scaling.document import scaling_document
    from mfubench.scaling.ladder import Ladder
    from mfubench.scaling.names import FILE

    with sole_writer(out):
        ladder = Ladder(plan, out)
        try:
            with stages(quiet=quiet, verbose=verbose) as progress:
                ladder.climb(budget_s=budget_s, progress=progress)
        finally:
            told, (done, of) = scaling_document(ladder), ladder.progress_made
            if out is not None and done:
                keep(told, scaling_page(told), out, FILE)
            if not told["complete"]:
                print(f"mfubench: {done} of {of} trainings done; {goes_on(out)}", file=sys.stderr)
    if not done and told["complete"]:
        raise ToolBroke(
            f"no training was done; {'; '.join(f'{name}: {why}' for name, why in told['not_done'].items())}"
        )
    put(told, lambda: scaling_page(told), json=json, verbose=verbose)
