"""``mfubench kernels list | check | static | bench``."""

from pathlib import Path
from typing import Annotated

import typer

from mfubench.errors import BadInput

from .folders import own_folder
from .options import Debug, Json, Quiet, Verbose, put, seconds
from .progress import stages
from .tune import tune

FAILED = 1

Ops = Annotated[
    list[str] | None, typer.Argument(metavar="OP", help="Ops to look at. \\[default: all that have kernels]")
]

kernels = typer.Typer(
    name="kernels",
    no_args_is_help=True,
    help="The Triton kernels: what there is, their numbers, their compiled code, their speed, their best configs.",
)
kernels.command()(tune)


@kernels.command("list")
def list_(json: Json = False, quiet: Quiet = False, verbose: Verbose = False, debug: Debug = False) -> None:
    """List the ops that have kernels: dtypes, GPU generations, named shapes, locked configs.

    Examples:

    mfubench kernels list

    mfubench kernels list --json
    """
    from mfubench.kernels.catalog import list_kernels
    from mfubench.report.kernels import list_page

    listed = list_kernels()
    put(listed, lambda: list_page(listed), json=json, verbose=verbose)


@kernels.command()
def check(
    ops: Ops = None,
    full: Annotated[
        bool, typer.Option("--full", help="The whole product of inputs and configs, in place of all pairs: hours.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu (Triton's interpreter) or cuda.")] = "auto",
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Hold every kernel's numbers against an fp64 reference, within a budget that an honest implementation sets.

    Exits with 1 if a kernel fails; one that hangs or crashes fails its case alone. What this machine cannot prove is
    printed as not proved.

    Examples:

    mfubench kernels check

    mfubench kernels check gdpa rms_norm --full --device cuda --json
    """
    chosen = _device(device)
    import torch

    from mfubench.kernels.apart import check_all
    from mfubench.kernels.catalog import ops_with_kernels
    from mfubench.kernels.check import document
    from mfubench.report.kernels import check_page

    names = ops_with_kernels(ops or [])
    with stages(quiet=quiet, verbose=verbose) as progress:
        found = check_all(names, torch.device(chosen), full=full, progress=progress)
    told = document(found, torch.device(chosen), full=full)
    put(told, lambda: check_page(told), json=json, verbose=verbose)
    if any(op.failed for op in found):
        raise typer.Exit(FAILED)


@kernels.command()
def static(
    ops: Ops = None,
    target: Annotated[
        list[str] | None, typer.Option("--target", help="sm_80, sm_90 or sm_100; repeatable. \\[default: all]")
    ] = None,
    all_configs: Annotated[
        bool, typer.Option("--all-configs", help="Every config of a kernel's space, not only what a launch takes.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Compile every kernel for GPUs that need not be here, and read registers, spills and tensor cores off its code.

    Exits with 1 if a config that a launch would take does not compile, spills or does not fit.

    Examples:

    mfubench kernels static

    mfubench kernels static gdpa --target sm_90 --all-configs --json
    """
    from mfubench.kernels.catalog import ops_with_kernels
    from mfubench.kernels.static import compile_statically, document
    from mfubench.kernels.targets import TARGETS
    from mfubench.report.kernels import static_page

    names = ops_with_kernels(ops or [])
    with stages(quiet=quiet, verbose=verbose) as progress:
        rows = compile_statically(names, target or list(TARGETS), all_configs=all_configs, progress=progress)
    told = document(rows)
    put(told, lambda: static_page(told), json=json, verbose=verbose)
    if told["faults"]:
        raise typer.Exit(FAILED)


@kernels.command()
def bench(
    ops: Ops = None,
    shape: Annotated[
        list[str] | None, typer.Option("--shape", help="A named shape of the op; repeatable. \\[default: all]")
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:FUNCTION", help="One more to time: it takes the op's arguments by name; repeatable."
        ),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="PEER", help="A peer to leave out, by its name; repeatable.")
    ] = None,
    peer_limit: Annotated[
        str,
        typer.Option(metavar="TIME", help="Time limit of one peer or one config; what takes longer is left out."),
    ] = "60s",
    rounds: Annotated[int, typer.Option(help="Samples of each implementation, in turns.")] = 20,
    tune: Annotated[
        bool, typer.Option("--tune", help="First find each kernel's best config; --out DIR keeps them in lock.json.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder for bench.json, report.md and lock.json.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Time kernels beside their peers in one run on a GPU: TFLOP/s, GB/s and share of the floor.

    It runs in a process of its own: a peer that hangs or ends it is left out, and the others are timed.

    Examples:

    mfubench kernels bench gdpa --shape X1024 --out out/gdpa

    mfubench kernels bench --tune --peer my_package.my_module:attention
    """
    if rounds < 2:
        raise BadInput(f"--rounds {rounds}; allowed: 2 or more, or there is no interval")
    peer_limit_s = seconds("--peer-limit", peer_limit)
    if _device("auto") != "cuda":
        raise BadInput("kernels are timed on a GPU only; here is none; `mfubench kernels check` and `static` need none")
    own_folder(out, "kernels bench")
    import torch

    from mfu_kernels.lock import with_entries
    from mfubench.kernels.apart import bench_all
    from mfubench.kernels.bench import document
    from mfubench.kernels.catalog import ops_with_kernels
    from mfubench.kernels.locks import write_lock
    from mfubench.report.kernels import bench_page, write_bench

    device = torch.device("cuda")
    with stages(quiet=quiet, verbose=verbose) as progress:
        rows, won = bench_all(
            ops_with_kernels(ops or []), device, shapes=shape or [], peers=peer or [],
            without=dict.fromkeys(without or [], "left out"), rounds=rounds, tune=tune,
            peer_limit_s=peer_limit_s, progress=progress,
        )  # fmt: skip
    told = document(rows, device)
    if out is not None:
        write_bench(told, out)
        write_lock(with_entries(won), out)
    put(told, lambda: bench_page(told), json=json, verbose=verbose)


def _device(name: str) -> str:
    if name not in ("auto", "cpu", "cuda"):
        raise BadInput(f"--device {name!r} is unknown; allowed: auto, cpu, cuda")
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: no CUDA device is visible; use --device cpu, or see `mfubench doctor`")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"
