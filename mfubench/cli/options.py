"""Options that every command has, and where their output goes: results to stdout, everything else to stderr."""

import json as json_module
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mfubench.errors import BadInput

if TYPE_CHECKING:
    from mfubench.report.blocks import Page

DEBUG_FLAG = "--debug"
UNITS = {"s": 1, "m": 60, "h": 3600}
MOST_HOURS = 500  # a pipe's timeout ends at 596

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="More detail: longer tables, each step's progress.")]
Debug = Annotated[bool, typer.Option(DEBUG_FLAG, help="Show the traceback of an error.")]


def out_option(files: str) -> Any:
    """``--out``, a folder for what a command writes beside its reports."""
    told = f"Folder for {files}report.md with its charts, and report.html."
    return typer.Option("--out", metavar="DIR", help=told, show_default=False)


Out = Annotated[Path | None, out_option("run.json, ")]

# What a workload is made of; each has the default of the command that takes it.
Size = Annotated[str | None, typer.Option(help="Size of a zoo model: tiny, small, base, ... \\[default: base]")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a field of the model's config.")
]
Impl = Annotated[
    str,
    typer.Option(help="Implementation of a zoo model's ops: auto, reference, triton; then ,OP=triton for single ops."),
]
Compile = Annotated[
    str,
    typer.Option("--compile", help="Compile the timed step: none, regions, model, cudagraphs."),
]
Mode = Annotated[str, typer.Option(help="train (forward, backward, optimizer) or infer.")]
Dtype = Annotated[
    str | None, typer.Option(help="bf16 (autocast), tf32 or fp32. \\[default: bf16 on CUDA, fp32 on a CPU]")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Peak = Annotated[str | None, typer.Option(help="Peak for MFU: datasheet or measured. \\[default: datasheet on CUDA]")]
BatchSize = Annotated[int | None, typer.Option(help="Requests per step. \\[default: 1024 on CUDA, 32 on a CPU]")]
Candidates = Annotated[
    int | None,
    typer.Option(help="Candidates per request. \\[default: the size's where a model scores whole requests, else 1]"),
]
Steps = Annotated[int, typer.Option(help="Timed steps.")]
Seed = Annotated[int, typer.Option(help="Seed of weights and batches.")]
Lock = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="A lock.json of `mfubench kernels tune`: the configs that our kernels take first.",
        show_default=False,
    ),
]
Recipe = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A recipe.toml of `mfubench optimize` to apply first.", show_default=False),
]
Data = Annotated[str, typer.Option(help="synthetic, kuairand:PATH or movielens:PATH.")]


def overrides(pairs: list[str] | None) -> dict[str, str]:
    """The fields that ``--set`` overrides.

    Raises:
        BadInput: one without a value.
    """
    for pair in pairs or []:
        if "=" not in pair:
            raise BadInput(f"--set {pair!r} has no '='; give KEY=VALUE")
    return dict(pair.split("=", 1) for pair in pairs or [])


def seconds(option: str, given: str) -> float:
    """A duration such as 9m in seconds, which are also the unit of a bare number.

    Raises:
        BadInput: it is none.
    """
    number, unit = (given[:-1], given[-1]) if given[-1:] in UNITS else (given, "s")
    try:
        wanted = float(number) * UNITS[unit]
    except ValueError:
        wanted = 0.0
    if not 0 < wanted <= MOST_HOURS * UNITS["h"]:
        allowed = f"a time above 0, up to {MOST_HOURS}h: 90s, 9m, 2h, or a number of seconds"
        raise BadInput(f"{option} {given}; allowed: {allowed}")
    return wanted


def put(told: Any, page: "Callable[[], Page]", *, json: bool, verbose: bool) -> None:
    """The result on stdout: one document, or its page."""
    if json:
        sys.stdout.write(json_module.dumps(told, indent=1) + "\n")
        return
    from mfubench.report.terminal import print_page, stdout_console

    print_page(page(), stdout_console(), full=verbose)
