"""``mfubench campaign``."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from mfubench.errors import BadInput, ToolBroke

from .folders import goes_on, own_folder, sole_writer, writable_folder
from .options import Debug, Json, Quiet, Verbose, put, seconds
from .progress import stages

if TYPE_CHECKING:
    from mfubench.campaign.plan import Task
    from mfubench.campaign.store import Store


def campaign(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder that keeps every result as it comes.")],
    budget: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="No task runs on after it, and the report is written then: 90s, 9m or 2h.",
        ),
    ] = "9m",
    task_limit: Annotated[
        str,
        typer.Option(metavar="TIME", help="Time limit of one task; on a GPU also a share of the budget."),
    ] = "5m",
    peer_limit: Annotated[
        str,
        typer.Option(metavar="TIME", help="Time limit of one peer or one config; what takes longer is left out."),
    ] = "30s",
    stage: Annotated[
        list[str] | None,
        typer.Option(
            "--stage", help="calibration, contract, compile, tune, bench, profile, road or scale; repeatable."
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option("--size", help="Sizes of the zoo. \\[default: base and large on CUDA, tiny on a CPU]"),
    ] = None,
    model: Annotated[list[str] | None, typer.Option("--model", help="Models of the zoo. \\[default: all]")] = None,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="First find each kernel's best config where none is locked for this GPU, or some are untried.",
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(help="A real log to train sizes of models on, after the road: kuairand:PATH or movielens:PATH."),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(metavar="OP=MODULE:FUNCTION", help="One more to time that op's kernels beside; repeatable."),
    ] = None,
    ahead: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="Run nothing; compile into DIR what it will launch on a GPU that is not here: sm_80, sm_90 or sm_100.",
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="DIR",
            help="An earlier campaign here with the same kernels: take over their contract and, with --tune, configs.",
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Run nothing; write the reports of DIR again, and its results between the markers in FILE.",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure all there is on a device, the most valuable first: peaks, the kernels' numbers and speed, the zoo.

    With --data also what compute buys: sizes of models are trained on that log, as `mfubench scale` does.

    A kill at any moment leaves what is done; the same command goes on from there, and tries again what failed. DIR gets
    a file for each task, report.md with its charts and report.html.

    Where a GPU is rented, minutes of it go to compiling. --ahead does that before, on any machine with the same Triton
    and Python; then copy DIR there.

    Where an earlier campaign on the same device and toolchain differs in models or in the profiler, but not in kernels,
    --from takes over what it proved of them.

    Examples:

    mfubench campaign --budget 9m --out out/campaign

    mfubench campaign --budget 30m --size tiny --stage contract --stage profile --out out/campaign

    mfubench campaign --budget 30m --data kuairand:PATH --out out/campaign

    mfubench campaign --from out/earlier --budget 9m --out out/campaign

    mfubench campaign --ahead sm_90 --tune --budget 30m --out out/campaign

    mfubench campaign --out out/campaign --table README.md
    """
    given = {"--budget": budget, "--task-limit": task_limit, "--peer-limit": peer_limit}
    budget_s, task_s, peer_s = (seconds(name, text) for name, text in given.items())
    if source is not None and (table is not None or ahead is not None):
        beside = "--ahead" if table is None else "--table"
        raise BadInput(f"--from {source} is for a campaign that runs tasks, {beside} runs none; give one of them")
    from mfubench.campaign.plan import SHARES, STAGES, of_kernels, plan
    from mfubench.campaign.store import Store

    store, lender = Store(out), None if source is None else Store(source)
    if table is not None:
        _put_results(store, table)
        print(f"mfubench: wrote {out}'s results into {table}, and its reports again", file=sys.stderr)
        _put(store, json=json, verbose=verbose)
        return
    own_folder(out, "campaign")
    import torch

    from mfubench.campaign.runner import Limits, run_campaign
    from mfubench.measure.environment import environment
    from mfubench.side_by_side import one_a_core

    device = "cuda" if ahead is not None or torch.cuda.is_available() else "cpu"
    limits = Limits(budget_s, task_s, peer_s, SHARES if device == "cuda" and ahead is None else {})
    tasks = plan(
        device, stages=stage or [], sizes=size or [], models=model or [], tune=tune, peers=peer or [], data=data
    )
    if data is not None:
        from mfubench.scaling.windows import open_windows

        open_windows(data)  # a log that cannot be read is told of before hours of all else
    if ahead is not None:
        from mfubench.campaign.ahead import compile_for
        from mfubench.report.kernels import ahead_page

        with stages(quiet=quiet, verbose=verbose) as progress:
            told = compile_for(ahead, tasks, out, limits=limits, progress=progress)
        put(told, lambda: ahead_page(told), json=json, verbose=verbose)
        return
    with sole_writer(out):
        here = environment(torch.device(device))
        if lender is not None:
            store.require_lender(lender, here)
        store.open(here, tasks)
        if lender is not None:
            _take_over(store, lender, of_kernels(device, tune=tune))
        try:
            with stages(quiet=quiet, verbose=verbose) as progress:
                outcome = run_campaign(
                    tasks, store, device, limits=limits, progress=progress, side_by_side=one_a_core()
                )
        finally:
            _write(store)
    print(f"mfubench: {outcome.told()}{f'; {goes_on(out)}' if outcome.left else ''}", file=sys.stderr)
    _put(store, json=json, verbose=verbose)
    if outcome.failed and not any(store.documents(stage) for stage in STAGES):
        raise ToolBroke(f"no task has a result; {out}/report.md says why")


def _take_over(store: "Store", lender: "Store", tasks: "list[Task]") -> None:
    taken = store.take_over(lender, tasks)
    named = {"contract": "contracts", "tune": "tuned shapes"}
    told = " and ".join(f"{taken[stage]} {name}" for stage, name in named.items() if taken[stage])
    print(f"mfubench: took over {told or 'nothing new'} from {lender.folder}", file=sys.stderr)


def _put(store: "Store", *, json: bool, verbose: bool) -> None:
    from mfubench.report.campaign import campaign_page

    index, results = store.index(), _results(store)
    put({**index, "results": results}, lambda: campaign_page(index, results), json=json, verbose=verbose)


def _put_results(store: "Store", file: Path) -> None:
    """The reports of the campaign again, and its tables and charts into ``file``, unless one of them cannot be."""
    from mfubench.report.campaign import between_markers, put_table, results_table

    index, results = store.index(), _results(store)
    results_table(index, results)
    between_markers(file)
    writable_folder(store.folder)
    place = Path(os.path.relpath(store.folder, file.parent))
    pictures = {title: quote((place / name).as_posix()) for title, name in _write_page(index, results, store).items()}
    put_table(results_table(index, results, pictures), file)


def _results(store: "Store") -> dict[str, list[dict[str, Any]]]:
    from mfubench.campaign.plan import STAGES

    return {stage: store.shown(stage) for stage in STAGES}


def _write_page(index: dict[str, Any], results: dict[str, list[dict[str, Any]]], store: "Store") -> dict[str, str]:
    from mfubench.report import write_page
    from mfubench.report.campaign import campaign_page

    return write_page(campaign_page(index, results), store.folder)


def _write(store: "Store") -> None:
    _write_page(store.index(), _results(store), store)
    tuned = [entry for found in store.documents("tune") for entry in found["entries"]]
    if tuned:
        from mfu_kernels.lock import with_entries
        from mfubench.kernels.locks import write_lock

        write_lock(with_entries(tuned), store.folder)
